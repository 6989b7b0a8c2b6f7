"""The Dice, Jaccard, Tversky and MCC losses of segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customloss import scores
from customloss.compat.batch_scores import OfBatch
from customloss.compat.drop_in import DropIn, at, plain
from customloss.losses.composed import confusion_loss
from customloss.losses.formula import Score


def _clamped(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, alpha: float, beta: float, smooth: float,
    eps: float,
) -> Tensor:  # fmt: skip
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth).clamp_min(eps)


@scores.uses("distance")
def _semimetric_clamped(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, common: Tensor, distance_pos: Tensor,
    distance_neg: Tensor, **parameters: float,
) -> Tensor:  # fmt: skip
    return _clamped(common, distance_pos, distance_neg, tn, **parameters)


class DiceLoss(OfBatch):
    """``1 - (I + smooth) / (I + fp / 2 + fn / 2 + smooth)`` of the semimetric sums."""

    alpha, beta, gamma = 0.5, 0.5, 1.0

    def __init__(
        self, mode: str, classes: Sequence[int] | None = None, log_loss: bool = False,
        from_logits: bool = True, smooth: float = 0.0, ignore_index: int | None = None,
        eps: float = 1e-7, class_weights: Sequence[float] | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(mode, classes, log_loss, from_logits, smooth, eps, strict)
        if mode == "binary" and class_weights is not None:
            raise ValueError(
                f"class_weights: expected None with mode='binary', got {class_weights}"
            )
        given = class_weights
        self.class_weights = None if given is None else torch.as_tensor(given).float()
        self.ignore_index = ignore_index

    def similarity(self, soft: bool) -> Score:
        # a class with a pixel has tp + beta fn of at least that
        if not soft and min(1.0, self.beta) + self.smooth >= self.eps:
            weights = {"fp_weight": self.alpha, "fn_weight": self.beta}
            return at(scores.tversky, smooth=self.smooth, **weights)
        return at(
            _semimetric_clamped if soft else _clamped,
            alpha=self.alpha, beta=self.beta, smooth=self.smooth, eps=self.eps,
        )  # fmt: skip

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        mean = super().forward(y_pred, y_true)
        return mean if self.gamma == 1 else mean**self.gamma


class JaccardLoss(DiceLoss):
    """``1 - (I + smooth) / (I + fp + fn + smooth)`` of the semimetric sums."""

    alpha, beta = 1.0, 1.0


class TverskyLoss(DiceLoss):
    """``(1 - (I + smooth) / (I + alpha fp + beta fn + smooth))`` of the semimetric sums."""

    def __init__(
        self, mode: str, classes: Sequence[int] | None = None, log_loss: bool = False,
        from_logits: bool = True, smooth: float = 0.0, ignore_index: int | None = None,
        eps: float = 1e-7, alpha: float = 0.5, beta: float = 0.5, gamma: float = 1.0,
        class_weights: Sequence[float] | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights,
            strict=strict,
        )  # fmt: skip
        self.alpha, self.beta, self.gamma = alpha, beta, gamma


def _mcc(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, eps: float) -> Tensor:
    tp, fp, fn, tn = tp + eps, fp + eps, fn + eps, tn + eps
    return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()


class MCCLoss(DropIn):
    """``1 - (tp tn - fp fn) / sqrt((tp+fp) (tp+fn) (tn+fp) (tn+fn))`` of probabilities, with
    ``eps`` added to every sum.

    A wart: it takes probabilities, where the other losses take logits: of logits its number means
    nothing. ``strict=False`` takes logits.
    """

    def __init__(self, eps: float = 1e-5, *, strict: bool = True) -> None:
        super().__init__()
        self.eps, self.strict = eps, strict

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of two tensors ``[N, H, W]`` or ``[N, 1, H, W]``; a scalar."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        batch = y_true.shape[0]
        return confusion_loss(
            at(_mcc, eps=self.eps), y_pred.reshape(batch, 1, -1), y_true.reshape(batch, 1, -1),
            activation="none" if self.strict else "sigmoid",
        )  # fmt: skip
