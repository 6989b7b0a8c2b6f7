"""Exact, fused F-measure losses for PyTorch."""

from customloss import _ops, reference
from customloss._backend import backend, current_backend
from customloss._build_info import BuildInfo, build_info
from customloss.functional import ConfusionSums, confusion_sums, soft_f1_loss
from customloss.modules import SoftF1Loss

__version__ = "0.1.0"

__all__ = [
    "BuildInfo",
    "ConfusionSums",
    "SoftF1Loss",
    "backend",
    "build_info",
    "confusion_sums",
    "current_backend",
    "reference",
    "soft_f1_loss",
]
