"""The losses of segmentation_models_pytorch 0.6, in its words.

``alpha`` and ``beta`` are our fp_weight and fn_weight; the classes are those of the whole batch;
``smooth_factor`` is our label smoothing, and twice that of a sigmoid.

Warts: an absent class costs nothing, but the mean is still divided by it; ``gamma`` of the Tversky
loss is applied behind the mean over the classes. ``strict=False`` leaves absent classes out of the
mean. Each class names its own.

Lives here: scores.py and pointwise.py.
May import: ``losses``, ``scores``.
Start with ``DiceLoss`` in scores.py.
"""

from __future__ import annotations

from customloss.compat.smp.pointwise import (
    FocalLoss,
    SoftBCEWithLogitsLoss,
    SoftCrossEntropyLoss,
)
from customloss.compat.smp.scores import DiceLoss, JaccardLoss, MCCLoss, TverskyLoss

__all__ = (
    "DiceLoss", "FocalLoss", "JaccardLoss", "MCCLoss", "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss", "TverskyLoss",
)  # fmt: skip
