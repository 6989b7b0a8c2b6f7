"""MONAI's focal loss, which is Lin's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.compat.drop_in import DropIn, Numbers, plain, refused
from customloss.compat.monai.reading import (
    Weight,
    checked,
    counted,
    reduction_word,
    warn_of_one_channel,
)  # fmt: skip
from customloss.losses.parts import compound


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
            if not self.include_background and isinstance(self.alpha, (int, float)):
                warnings.warn(
                    "`include_background=False`, scalar `alpha` ignored when using softmax.",
                    stacklevel=2,
                )
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
