"""MONAI's focal losses: Lin's, and the asymmetric ones of the unified focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.compat.drop_in import DropIn, Numbers, plain, refused
from customloss.compat.monai.reading import (
    Weight,
    checked,
    counted,
    reduced,
    reduction_word,
    warn_of_one_channel,
)  # fmt: skip
from customloss.losses.named_sums import ExtendedSums
from customloss.losses.parts import compound
from customloss.losses.sums import confusion_sums


class FocalLoss(DropIn):
    """Lin's focal loss ``α (1 - p_t)^γ (-log p_t)`` of logits: of a sigmoid, or with
    ``use_softmax`` of the true class.

    Warts that are kept: ``reduction="sum"`` is a sum of means over space. A mean over pixels that
    are not ignored is divided by their number, whatever the number of classes. Without the
    background a softmax is that of the other classes alone, and a single ``alpha`` is ignored; with
    it the weight of class 0 is 1 - alpha.

    Where ours differs: with soft targets p_t is t p + (1 - t)(1 - p), and MONAI's is another; and
    float64 is kept, which MONAI rounds to float32.
    """

    class_weight: Tensor | None

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None, weight: Weight = None,
        reduction: Any = "mean", use_softmax: bool = False, ignore_index: int | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction_word(reduction))
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.gamma, self.weight, self.use_softmax = gamma, weight, use_softmax
        single = alpha is None or isinstance(alpha, (int, float))
        self.alpha: Any = alpha if single else torch.as_tensor(alpha)
        self.ignore_index, self.strict = ignore_index, strict
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self._weights, self._alphas = Numbers(), Numbers()

    def _background(self, channels: int) -> int:
        """How many classes are left out."""
        return 0 if self.include_background or channels == 1 else 1

    def _by_class(self, name: str, of: Numbers, given: Tensor, scored: int) -> Sequence[float]:
        """One number for each class that is scored."""
        numbers = of.of(given)
        if len(numbers) != scored or min(numbers) < 0 or (scored == 1 and name == "weight"):
            raise ValueError(
                f"{name}: expected one number >= 0, or {scored} in a sequence, one for each class "
                f"that is scored, got {list(numbers)}"
            )
        return numbers

    def _weighted(self, scored: int) -> tuple[Sequence[float], float]:
        """The weights of the classes, or none, and a factor of the loss."""
        if self.class_weight is None:
            return (), 1.0
        if self.class_weight.dim() == 0:
            return (), self._factor()
        return self._by_class("weight", self._weights, self.class_weight, scored), 1.0

    def of_sigmoid(self, input: Tensor) -> tuple[dict[str, Any], float]:
        """The options of a compound whose focal loss this is, with nothing ignored, and what
        multiplies that."""
        channels = input.shape[1]
        background = self._background(channels)
        scored = channels - background
        options: dict[str, Any] = {"focal_gamma": self.gamma}
        if background:
            options["pointwise_classes"] = tuple(range(1, channels))
        if isinstance(self.alpha, Tensor):
            alphas = self._by_class("alpha", self._alphas, self.alpha, scored)
            options["pos_weight"] = (*[1.0] * background, *alphas)
        elif self.alpha is not None:
            options["focal_alpha"] = float(self.alpha)
        weights, factor = self._weighted(scored)
        if weights:
            options["pointwise_class_weight"] = (*[0.0] * background, *weights)
        if self.reduction == "mean":
            options["pointwise_reduction"] = "mean_all"
            return options, factor * channels / scored
        options["pointwise_reduction"] = "sum"
        return options, factor / max(1, input.shape[2:].numel())

    def _of_softmax(
        self, input: Tensor, target: Tensor, ignored: tuple[int, ...], class_numbers: bool
    ) -> tuple[Tensor, Tensor, dict[str, Any], float]:
        """The same of a softmax, and the classes that it runs over."""
        background = self._background(input.shape[1])
        if background:
            input = input[:, 1:]
            # pixels of the background are of no class
            target = target.long() - 1 if class_numbers else target[:, 1:]
            ignored = (-1, *(number - 1 for number in ignored)) if class_numbers else ignored
        scored = input.shape[1]
        if scored == 1:
            raise refused(self, "a softmax of one class, whose loss is always 0,", "use a sigmoid")
        weights, factor = self._weighted(scored)
        alphas: Sequence[float] = ()
        if isinstance(self.alpha, Tensor):
            alphas = self._by_class("alpha", self._alphas, self.alpha, scored)
        elif self.alpha is not None and not background:
            alphas = (1 - self.alpha, *[self.alpha] * (scored - 1))
        if alphas:
            weights = [a * b for a, b in zip(alphas, weights or [1.0] * scored)]
        options: dict[str, Any] = {"activation": "softmax", "focal_gamma": self.gamma}
        if weights:
            options["pointwise_class_weight"] = tuple(weights)
        if ignored:
            options["ignore_index"] = tuple(sorted(set(ignored)))
        if self.reduction == "mean":
            options["pointwise_reduction"] = "mean_all"
            return input, target, options, factor / scored
        options["pointwise_reduction"] = "sum"
        return input, target, options, factor / max(1, input.shape[2:].numel())

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and ``[B, C or 1, *spatial]``."""
        if self.reduction == "none":
            raise refused(self, "reduction='none', a loss for every voxel,", "take 'mean' or 'sum'")
        input, target = plain(input), plain(target)
        channels = input.shape[1]
        if channels == 1:
            warn_of_one_channel(
                to_onehot_y=self.to_onehot_y, include_background=not self.include_background
            )
        class_numbers = self.to_onehot_y and channels > 1
        checked(input, target, class_numbers)
        ignored: tuple[int, ...] = ()
        count, weight = None, None
        if self.ignore_index is not None:
            if class_numbers or channels == 1:
                count, ignored = target != self.ignore_index, (self.ignore_index,)
            else:
                count = weight = counted(target, self.ignore_index)
        if self.use_softmax:
            input, target, options, scale = self._of_softmax(input, target, ignored, class_numbers)
        else:
            options, scale = self.of_sigmoid(input)
            options |= {"ignore_index": ignored} if ignored else {}
        if count is None:
            return scale * compound(None, input, target, None, options, 0.0, focal_weight=1.0)
        # divided by how many pixels are not ignored, in the batch, or for a sum in each sample
        in_samples = self.reduction == "sum"
        options["pointwise_reduction"] = "sum"
        if in_samples:
            options |= {"samplewise": True, "reduction": "none"}
        loss = compound(None, input, target, weight, options, 0.0, focal_weight=1.0)
        size = count.flatten(1).sum(1, dtype=loss.dtype)
        size = (size if in_samples else size.sum()).clamp_min(torch.finfo(torch.float32).eps)
        return self._factor() * (loss / size).sum()

    def _factor(self) -> float:
        """The one weight of all classes, or 1."""
        weight = self.class_weight
        return self._weights.of(weight)[0] if weight is not None and weight.dim() == 0 else 1.0


# ---- the unified focal loss ----------------------------------------------------------------------


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
