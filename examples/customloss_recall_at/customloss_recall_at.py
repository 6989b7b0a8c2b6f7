"""Recall at a wanted precision: what screening asks for ("no more than one false alarm in ten")."""

from __future__ import annotations

from torch import Tensor

from customloss import scores


def recall_at(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, precision: float, penalty: float = 4.0
) -> Tensor:
    """Recall, less ``penalty`` for each unit of precision that is missing."""
    missing = precision - scores.precision(tp, fp, fn, tn)
    return scores.recall(tp, fp, fn, tn) - penalty * missing.clamp_min(0)


def recall_at_90(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """Recall at a precision of 0.9."""
    return recall_at(tp, fp, fn, tn, precision=0.9)
