"""What the losses of a score of segmentation_models_pytorch and pytorch-toolbelt share: the sums of
a class over the whole batch, and a mean over the classes in which absent ones cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.compat.drop_in import DropIn, plain
from customloss.losses.composed import confusion_loss
from customloss.losses.formula import Score


class OfBatch(DropIn):
    """1 minus a similarity of every class, or -log of it, and the mean over the classes.

    ``strict=False`` leaves absent classes out of the mean.
    """

    class_weights: Tensor | None = None
    ignore_index: int | None = None

    def __init__(
        self, mode: str, classes: Sequence[int] | Tensor | None, log_loss: bool, from_logits: bool,
        smooth: float, eps: float, strict: bool,
    ) -> None:  # fmt: skip
        if mode not in ("binary", "multiclass", "multilabel"):
            raise ValueError(f"mode: expected 'binary', 'multiclass' or 'multilabel', got {mode!r}")
        if mode == "binary" and classes is not None:
            raise ValueError(f"classes: expected None with mode='binary', got {classes}")
        super().__init__()
        self.mode, self.log_loss, self.from_logits = mode, log_loss, from_logits
        self.smooth, self.eps, self.strict = smooth, eps, strict
        self.classes = None if classes is None else torch.as_tensor(classes).long()

    def similarity(self, soft: bool) -> Score:
        """The similarity of a class; ``soft`` says that labels between 0 and 1 are possible."""
        raise NotImplementedError

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of ``[N, C, *spatial]`` and class numbers ``[N, *spatial]``, or of two tensors
        of one shape unless the mode is ``"multiclass"``; a scalar."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        batch, channels = y_true.shape[0], y_pred.shape[1]
        numbers = self.mode == "multiclass"
        channels = 1 if self.mode == "binary" else channels
        y_pred = y_pred.reshape(batch, channels, -1)
        y_true = y_true.reshape((batch, -1) if numbers else (batch, channels, -1))
        activation = ("softmax" if numbers else "sigmoid") if self.from_logits else "none"
        options: dict[str, Any] = {"activation": activation, "absent": "skip"}
        options["ignore_index"] = self.ignore_index
        if self.log_loss:
            options |= {"link": "log", "log_floor": self.eps}
        score = self.similarity(y_true.is_floating_point() and not numbers)
        if self.strict:
            options |= {"average": "none", "reduction": "none"}
            if self.classes is None and self.class_weights is None:  # fewer operations
                loss = confusion_loss(score, y_pred, y_true, **options | {"reduction": "sum"})
                return loss if channels == 1 else loss / channels
            return self._mean(confusion_loss(score, y_pred, y_true, **options).reshape(channels))
        chosen = None if self.classes is None else self.classes.tolist()
        options |= {"classes": chosen, "class_weight": self.class_weights}
        return confusion_loss(score, y_pred, y_true, **options)

    def _mean(self, loss: Tensor) -> Tensor:
        """The mean over the classes, absent ones included; the weights are float32, as there."""
        weights = None if self.class_weights is None else self.class_weights.to(loss.device)
        if self.classes is not None:
            chosen = self.classes.to(loss.device)
            loss, weights = loss[chosen], None if weights is None else weights[chosen]
        return loss.mean() if weights is None else (loss * weights).sum() / weights.sum()
