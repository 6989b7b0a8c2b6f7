"""The asymmetric and unified focal losses of MONAI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss.compat.drop_in import DropIn, plain, refused
from customloss.compat.monai.reading import (
    checked,
    counted,
    reduced,
    reduction_word,
    warn_of_one_channel,
)  # fmt: skip
from customloss.losses.named_sums import ExtendedSums
from customloss.losses.sums import confusion_sums


class _Asymmetric(DropIn):
    """What the asymmetric losses have in common: probabilities of two classes."""

    def __init__(
        self, to_onehot_y: bool, delta: float, gamma: float, epsilon: float, reduction: Any,
        ignore_index: int | None, strict: bool,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction_word(reduction))
        self.to_onehot_y, self.delta, self.gamma, self.epsilon = to_onehot_y, delta, gamma, epsilon
        self.ignore_index, self.strict = ignore_index, strict

    def sums(
        self, y_pred: Tensor, y_true: Tensor, **asked: Any
    ) -> tuple[ExtendedSums, Tensor | None]:
        """The sums of every sample and class, and which pixels count."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        class_numbers = self.to_onehot_y and y_pred.shape[1] > 1
        if y_pred.shape[1] == 1:
            warn_of_one_channel(to_onehot_y=self.to_onehot_y)
        checked(y_pred, y_true, class_numbers)
        count, weight = None, None
        if self.ignore_index is not None and class_numbers:
            count = y_true != self.ignore_index
            asked["ignore_index"] = self.ignore_index
        elif self.ignore_index is not None:
            count = weight = counted(y_true, self.ignore_index)
        p = y_pred.clamp(self.epsilon, 1.0 - self.epsilon)
        asked |= {"activation": "none", "samplewise": True, "dtype": p.dtype}
        return confusion_sums(p, y_true, weight, support=True, **asked), count


class AsymmetricFocalTverskyLoss(_Asymmetric):
    """``1 - T`` of the background and ``(1 - T)^(1 - gamma)`` of class 1, of probabilities.

    T = (tp + epsilon) / (tp + delta fn + (1 - delta) fp + epsilon) of every sample.
    """

    def __init__(
        self, to_onehot_y: bool = False, delta: float = 0.7, gamma: float = 0.75,
        epsilon: float = 1e-7, reduction: Any = "mean", ignore_index: int | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(to_onehot_y, delta, gamma, epsilon, reduction, ignore_index, strict)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of probabilities ``[B, 2, *spatial]``; without reduction ``[B, 2]``."""
        (tp, fp, fn, *_), _ = self.sums(y_pred, y_true)
        whole = tp + self.delta * fn + (1 - self.delta) * fp + self.epsilon
        score = (tp + self.epsilon) / whole
        loss = torch.stack((1 - score[:, 0], (1 - score[:, 1]) ** (1 - self.gamma)), -1)
        return reduced(loss, self.reduction)


class AsymmetricFocalLoss(_Asymmetric):
    """``(1 - delta) (1 - p_0)^gamma (-log p_0)`` of pixels of the background and ``delta (-log
    p_1)`` of those of class 1, of probabilities; a mean over both classes of all pixels."""

    def __init__(
        self, to_onehot_y: bool = False, delta: float = 0.7, gamma: float = 2,
        epsilon: float = 1e-7, reduction: Any = "mean", ignore_index: int | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(to_onehot_y, delta, gamma, epsilon, reduction, ignore_index, strict)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of probabilities ``[B, 2, *spatial]``."""
        if self.reduction == "none":
            raise refused(self, "reduction='none', a loss for every voxel,", "take 'mean' or 'sum'")
        sums, count = self.sums(
            y_pred, y_true, log_loss=True, focal=True, focal_gamma=self.gamma, focal_split=True
        )
        assert sums.focal_pos is not None and sums.log_loss_pos is not None
        total = (1 - self.delta) * sums.focal_pos[:, 0] + self.delta * sums.log_loss_pos[:, 1]
        if self.reduction == "sum":
            return total.sum()
        if count is None:
            return total.sum() / (2 * y_pred[:, :1].numel())
        return total.sum() / (2 * count.sum(dtype=total.dtype)).clamp_min(self.epsilon)


class AsymmetricUnifiedFocalLoss(DropIn):
    """``weight`` times :class:`AsymmetricFocalLoss` plus ``1 - weight`` times
    :class:`AsymmetricFocalTverskyLoss`, of probabilities of one channel or two. Two passes.

    Warts: both are means, whatever the ``reduction``; ignored pixels count in these means, and as
    false positives of p = epsilon.
    """

    def __init__(
        self, to_onehot_y: bool = False, num_classes: int = 2, weight: float = 0.5,
        gamma: float = 0.5, delta: float = 0.7, reduction: Any = "mean",
        ignore_index: int | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction_word(reduction))
        self.to_onehot_y, self.num_classes, self.weight = to_onehot_y, num_classes, weight
        self.gamma, self.delta = gamma, delta
        self.ignore_index, self.strict = ignore_index, strict
        self.asy_focal_loss = AsymmetricFocalLoss(gamma=gamma, delta=delta)
        self.asy_focal_tversky_loss = AsymmetricFocalTverskyLoss(gamma=gamma, delta=delta)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of probabilities ``[B, 1 or 2, H, W]`` or ``[B, 1 or 2, H, W, D]``."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        if y_pred.dim() not in (4, 5):
            raise ValueError(f"y_pred: expected 4 or 5 dimensions, got {list(y_pred.shape)}")
        labels = y_true
        if y_pred.shape[1] == 1:
            if self.to_onehot_y:
                warn_of_one_channel(to_onehot_y=True)
            y_pred = torch.cat((1 - y_pred, y_pred), 1)
            y_true = torch.cat((1 - y_true, y_true), 1) if y_true.shape[1] == 1 else y_true
        if self.ignore_index is not None:
            y_pred, y_true = self._holed(y_pred, y_true, labels)
        parts = (self.asy_focal_loss, self.asy_focal_tversky_loss)
        for part in parts:
            part.to_onehot_y = y_true.shape[1] == 1 and self.to_onehot_y
        focal, tversky = (part(y_pred, y_true) for part in parts)
        loss: Tensor = self.weight * focal + (1 - self.weight) * tversky
        return loss

    def _holed(self, y_pred: Tensor, y_true: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and targets that are 0 where pixels are ignored, which MONAI counts as p =
        epsilon of no class."""
        assert self.ignore_index is not None
        if labels.shape[1] == 1:
            mask = labels != self.ignore_index
        else:
            mask = counted(labels, self.ignore_index)
        if y_true.shape[1] == 1:
            y_true = torch.cat((y_true == 0, y_true == 1), 1)
        return y_pred * mask, y_true * mask
