"""The losses of a score of segmentation_models_pytorch 0.6, in its words.

``alpha`` and ``beta`` are our fp_weight and fn_weight; the classes are those of the whole batch.

Warts: an absent class costs nothing, but the mean is still divided by it; ``gamma`` is applied
behind the mean over the classes. ``strict=False`` leaves absent classes out of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss import scores
from customloss.compat.drop_in import DropIn, at, plain
from customloss.losses.composed import confusion_loss


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


class DiceLoss(DropIn):
    """``1 - (I + smooth) / (I + fp / 2 + fn / 2 + smooth)`` of the semimetric sums."""

    alpha, beta, gamma = 0.5, 0.5, 1.0

    def __init__(
        self, mode: str, classes: Sequence[int] | None = None, log_loss: bool = False,
        from_logits: bool = True, smooth: float = 0.0, ignore_index: int | None = None,
        eps: float = 1e-7, class_weights: Sequence[float] | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        if mode not in ("binary", "multiclass", "multilabel"):
            raise ValueError(f"mode: expected 'binary', 'multiclass' or 'multilabel', got {mode!r}")
        super().__init__()
        if mode == "binary" and not (classes is None and class_weights is None):
            raise ValueError("classes, class_weights: expected none with mode='binary'")
        self.mode, self.log_loss, self.from_logits = mode, log_loss, from_logits
        self.smooth, self.eps, self.ignore_index, self.strict = smooth, eps, ignore_index, strict
        self.classes = None if classes is None else torch.as_tensor(classes).long()
        given = class_weights
        self.class_weights = None if given is None else torch.as_tensor(given).float()

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of ``[N, C, *spatial]``."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        batch, channels = y_true.shape[0], y_pred.shape[1]
        numbers = self.mode == "multiclass"
        channels = 1 if self.mode == "binary" else channels
        y_pred = y_pred.reshape(batch, channels, -1)
        y_true = y_true.reshape((batch, -1) if numbers else (batch, channels, -1))
        activation = ("softmax" if numbers else "sigmoid") if self.from_logits else "none"
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "activation": activation}
        soft = y_true.is_floating_point() and not numbers
        score = at(
            _semimetric_clamped if soft else _clamped,
            alpha=self.alpha, beta=self.beta, smooth=self.smooth, eps=self.eps,
        )  # fmt: skip
        if self.log_loss:
            options |= {"link": "log", "log_floor": self.eps}
        options["absent"] = "skip"
        if self.strict:
            options |= {"average": "none", "reduction": "none"}
            mean = self._mean(confusion_loss(score, y_pred, y_true, **options).reshape(channels))
        else:
            chosen = None if self.classes is None else self.classes.tolist()
            options |= {"classes": chosen, "class_weight": self.class_weights}
            mean = confusion_loss(score, y_pred, y_true, **options)
        return mean if self.gamma == 1 else mean**self.gamma

    def _mean(self, loss: Tensor) -> Tensor:
        """The mean over the classes, absent ones included; the weights are float32, as there."""
        weights = None if self.class_weights is None else self.class_weights.to(loss.device)
        if self.classes is not None:
            chosen = self.classes.to(loss.device)
            loss, weights = loss[chosen], None if weights is None else weights[chosen]
        return loss.mean() if weights is None else (loss * weights).sum() / weights.sum()


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
