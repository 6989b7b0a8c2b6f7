"""The losses of MONAI 1.6, in its words: the same constructors, state dicts and numbers.

=========================  =========================================================================
sigmoid, softmax           ``activation``; ``other_act`` runs before ours, as a pass of its own
to_onehot_y                the target is class numbers, which are not spread out
batch                      not ``samplewise``
smooth_nr, smooth_dr       ``smooth=(smooth_nr, smooth_dr)``; ``jaccard=True`` has half of both
soft_label, squared_pred   the semimetric and the squared Dice
alpha, beta of Tversky     ``fp_weight``, ``fn_weight``
weight                     ``class_weight``, but not divided by its sum
lambda_dice, lambda_ce     ``score_weight``, ``cross_entropy_weight``
=========================  =========================================================================

Warts that all of them have, and keep: an input of one channel has no softmax (its logits are scored
as they are), no background and no one-hot, of which they warn; an input without spatial dimensions
is one group unless ``batch``. With ``soft_label`` probabilities have to be in [0, 1].

Lives here: reading.py (how a batch is read), scores.py, focal.py, unified.py,
compounds.py and wrappers.py.
May import: ``batches``, ``losses``, ``scores``.
Start with ``DiceLoss`` in scores.py.
"""

from __future__ import annotations

from customloss.compat.monai.compounds import DiceCELoss, DiceFocalLoss, GeneralizedDiceFocalLoss
from customloss.compat.monai.focal import FocalLoss
from customloss.compat.monai.scores import (
    DiceLoss,
    GeneralizedDiceLoss,
    MaskedDiceLoss,
    MCCLoss,
    TverskyLoss,
)  # fmt: skip
from customloss.compat.monai.unified import (
    AsymmetricFocalLoss,
    AsymmetricFocalTverskyLoss,
    AsymmetricUnifiedFocalLoss,
)  # fmt: skip
from customloss.compat.monai.wrappers import DeepSupervisionLoss, MaskedLoss

__all__ = (
    "AsymmetricFocalLoss", "AsymmetricFocalTverskyLoss", "AsymmetricUnifiedFocalLoss",
    "DeepSupervisionLoss", "DiceCELoss", "DiceFocalLoss", "DiceLoss", "FocalLoss",
    "GeneralizedDiceFocalLoss", "GeneralizedDiceLoss", "MCCLoss", "MaskedDiceLoss", "MaskedLoss",
    "TverskyLoss",
)  # fmt: skip
