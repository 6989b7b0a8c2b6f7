"""Exact, fused F-measure losses for PyTorch.

A loss is a score, such as F1, of the soft confusion sums tp, fp, fn and tn of a batch. They are
added up in one pass over the logits, and the gradient is made in one more::

    criterion = customloss.DiceCELoss(ignore_index=255)
    criterion(logits, target).backward()  # [N, C, H, W] and class numbers [N, H, W]

Begin with these:

====================  ==============================================================================
SoftF1Loss            soft F1, or Fβ, of yes or no for each sample or label
DiceLoss              the same by the name that it has for segmentation
DiceCELoss            Dice and cross-entropy, for classes that exclude each other
DiceBCELoss           Dice and binary cross-entropy, for one class or classes that overlap
ConfusionLoss         any score of the sums, also one of your own
loss, loss_names      a loss by its name, and all the names
confusion_sums        the sums themselves, differentiable, and the counts for a metric
accumulate            one loss of a batch that is cut into micro-batches
DeepSupervision       a loss of outputs at several resolutions
scores                the scores, as functions of the sums
====================  ==============================================================================

Every loss is a module and a function: ``DiceCELoss`` and ``dice_ce_loss``. ``help`` of either lists
its options. The README and the folder docs of the source tree have more: docs/losses.md says which
loss is for which problem, docs/training.md how to measure F1 while training.
"""

from typing import TYPE_CHECKING, NoReturn

from customloss import distributed, reference, scores
from customloss._backends.choice import backend, current_backend
from customloss._ops import register as _register  # noqa: F401 (it defines torch.ops.customloss)
from customloss.batches.accumulation import accumulate
from customloss.batches.deep_supervision import DeepSupervision, deep_supervision_loss
from customloss.batches.streaming import StreamingLoss
from customloss.compat.custom_f1 import CustomF1Loss, custom_f1_loss
from customloss.compat.patching.patch import patch, unpatch
from customloss.info import BuildInfo, build_info, empty_cache
from customloss.info import __version__ as __version__
from customloss.losses.base import Loss
from customloss.losses.composed import (
    BalancedAccuracyLoss,
    ConfusionLoss,
    ExpLogDiceLoss,
    FowlkesMallowsLoss,
    GeneralizedDiceLoss,
    GMeanLoss,
    LogCoshDiceLoss,
    LogPrecisionRecallLoss,
    MCCLoss,
    MulticlassMCCLoss,
    balanced_accuracy_loss,
    confusion_loss,
    exp_log_dice_loss,
    fowlkes_mallows_loss,
    g_mean_loss,
    generalized_dice_loss,
    log_cosh_dice_loss,
    log_precision_recall_loss,
    mcc_loss,
    multiclass_mcc_loss,
)
from customloss.losses.compound import CompoundLoss, compound_loss
from customloss.losses.compound_presets import (
    DiceBCELoss,
    DiceCELoss,
    DiceFocalLoss,
    TverskyCELoss,
    dice_bce_loss,
    dice_ce_loss,
    dice_focal_loss,
    tversky_ce_loss,
)
from customloss.losses.extra_sums import (
    SemimetricDiceLoss,
    SemimetricJaccardLoss,
    SemimetricTverskyLoss,
    SquaredDiceLoss,
    WeightedLogLoss,
    f_optimal_weight,
    semimetric_dice_loss,
    semimetric_jaccard_loss,
    semimetric_tversky_loss,
    squared_dice_loss,
    weighted_log_loss,
)
from customloss.losses.named_sums import ConfusionSums, ExtendedSums
from customloss.losses.pointwise import (
    BCELoss,
    CrossEntropyLoss,
    FocalLoss,
    bce_loss,
    cross_entropy_loss,
    focal_loss,
)
from customloss.losses.ratios import (
    AnyLoss,
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    SigmoidF1Loss,
    SoftF1Loss,
    TverskyLoss,
    any_loss,
    dice_loss,
    focal_tversky_loss,
    jaccard_loss,
    sigmoid_f1_loss,
    soft_f1_loss,
    tversky_loss,
)
from customloss.losses.registry import loss, loss_names, register_score
from customloss.losses.sums import confusion_sums

__all__ = [
    "AnyLoss",
    "BCELoss",
    "BalancedAccuracyLoss",
    "BuildInfo",
    "CompoundLoss",
    "ConfusionLoss",
    "ConfusionSums",
    "CrossEntropyLoss",
    "CustomF1Loss",
    "DeepSupervision",
    "DiceBCELoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "ExpLogDiceLoss",
    "ExtendedSums",
    "FocalLoss",
    "FocalTverskyLoss",
    "FowlkesMallowsLoss",
    "GMeanLoss",
    "GeneralizedDiceLoss",
    "JaccardLoss",
    "LogCoshDiceLoss",
    "LogPrecisionRecallLoss",
    "Loss",
    "MCCLoss",
    "MulticlassMCCLoss",
    "SemimetricDiceLoss",
    "SemimetricJaccardLoss",
    "SemimetricTverskyLoss",
    "SigmoidF1Loss",
    "SoftF1Loss",
    "SquaredDiceLoss",
    "StreamingLoss",
    "TverskyCELoss",
    "TverskyLoss",
    "WeightedLogLoss",
    "accumulate",
    "any_loss",
    "backend",
    "balanced_accuracy_loss",
    "bce_loss",
    "build_info",
    "compound_loss",
    "confusion_loss",
    "confusion_sums",
    "cross_entropy_loss",
    "current_backend",
    "custom_f1_loss",
    "deep_supervision_loss",
    "dice_bce_loss",
    "dice_ce_loss",
    "dice_focal_loss",
    "dice_loss",
    "distributed",
    "empty_cache",
    "exp_log_dice_loss",
    "f_optimal_weight",
    "focal_loss",
    "focal_tversky_loss",
    "fowlkes_mallows_loss",
    "g_mean_loss",
    "generalized_dice_loss",
    "jaccard_loss",
    "log_cosh_dice_loss",
    "log_precision_recall_loss",
    "loss",
    "loss_names",
    "mcc_loss",
    "multiclass_mcc_loss",
    "patch",
    "reference",
    "register_score",
    "scores",
    "semimetric_dice_loss",
    "semimetric_jaccard_loss",
    "semimetric_tversky_loss",
    "sigmoid_f1_loss",
    "soft_f1_loss",
    "squared_dice_loss",
    "tversky_ce_loss",
    "tversky_loss",
    "unpatch",
    "weighted_log_loss",
]

if not TYPE_CHECKING:  # a type checker would take every name for one of the package

    def __getattr__(name: str) -> NoReturn:
        """Says what a loss is called here. ``name`` is set and no object, or Python would add a
        guess of its own."""
        cure = ""
        if not name.startswith("_"):
            from customloss._spec import unknown

            cure = unknown.name_cure(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{cure}", name=name)


# What is public says so: help, tracebacks and pickles name the package, not the file.
for _name in __all__:
    _value = globals()[_name]
    if getattr(_value, "__module__", "").startswith(f"{__name__}."):
        _value.__module__ = __name__
del _name, _value
