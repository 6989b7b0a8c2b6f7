"""How MONAI's losses read a batch and reduce the losses of its groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from customloss.compat.drop_in import DropIn, plain, refused
from customloss.losses.composed import confusion_loss

Act = Callable[[Tensor], Tensor]
Weight = Sequence[float] | float | Tensor | None


class Batch(NamedTuple):
    """A batch in our words; ``scored`` is the number of classes that are scored."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    scored: int
    options: dict[str, Any]


def checked(input: Tensor, target: Tensor, class_numbers: bool) -> None:
    fits = (input.shape[0], 1, *input.shape[2:]) if class_numbers else tuple(input.shape)
    if tuple(target.shape) != fits:
        cure = "" if class_numbers else "; to_onehot_y=True takes class numbers [B, 1, *spatial]"
        raise ValueError(
            f"target: expected the shape {list(fits)} for an input {list(input.shape)}, got "
            f"{list(target.shape)}{cure}"
        )


def counted(target: Tensor, ignore_index: int) -> Tensor:
    """Which pixels of a one-hot target count: those that are not of the ignored class, or, where
    ``ignore_index`` is no class, those that are of any."""
    if 0 <= ignore_index < target.shape[1]:
        return 1.0 - target[:, ignore_index : ignore_index + 1].float()
    return target.sum(1, keepdim=True) > 0


def warn_of_one_channel(**asked: bool) -> None:
    """Warns, as MONAI does, of what an input of one channel has none of."""
    for name, given in asked.items():
        if given:
            value = name != "include_background"
            warnings.warn(f"single channel prediction, `{name}={value}` ignored.", stacklevel=4)


class OfScore(DropIn):
    """What the losses of a score have in common."""

    ignore_index: int | None = None

    def __init__(
        self, include_background: bool, to_onehot_y: bool, sigmoid: bool, softmax: bool,
        other_act: Act | None, reduction: Any, smooth_nr: float, smooth_dr: float, batch: bool,
        strict: bool,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction_word(reduction))
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act: expected a function or None, got {other_act!r}")
        if sigmoid + softmax + (other_act is not None) > 1:
            raise ValueError(
                "sigmoid, softmax, other_act: expected one of them at most, got "
                f"{sigmoid}, {softmax}, {other_act}"
            )
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)
        self.batch, self.strict = batch, strict

    def activation(self, channels: int) -> str:
        """What our pass applies to the input."""
        return "sigmoid" if self.sigmoid else "softmax" if self.softmax and channels > 1 else "none"

    def read(self, input: Tensor, target: Tensor) -> Batch:
        """The batch in our words."""
        input, target = plain(input), plain(target)
        channels = input.shape[1]
        single = channels == 1
        if single:
            warn_of_one_channel(
                softmax=self.softmax, to_onehot_y=self.to_onehot_y,
                include_background=not self.include_background,
            )  # fmt: skip
        if self.other_act is not None:
            input = plain(self.other_act(input))
        class_numbers = self.to_onehot_y and not single
        checked(input, target, class_numbers)
        options: dict[str, Any] = {"activation": self.activation(channels)}
        if input.dim() == 2 and not self.batch:
            options["average"] = "micro"
        elif not self.batch:
            options["samplewise"] = True
        weight = None
        if self.ignore_index is not None and (class_numbers or single):
            options["ignore_index"] = self.ignore_index
        elif self.ignore_index is not None:
            weight = counted(target, self.ignore_index)
        if not (self.include_background or single):
            options["include_background"] = False
            channels -= 1
        return Batch(input, target, weight, channels, options)

    def scaled(self, batch: Batch, weights: Sequence[float] = ()) -> tuple[dict[str, Any], float]:
        """The options of the score, and what multiplies its loss: MONAI multiplies the losses of
        the classes by their ``weights`` and divides nothing by the sum of these."""
        options = dict(batch.options)
        if weights:
            background = batch.input.shape[1] - len(weights)
            options["class_weight"] = (*[0.0] * background, *weights)
        if options.get("average") == "micro":
            if weights:
                raise refused(
                    self, "a weight for an input without spatial dimensions", "batch=True"
                )
            return options, 1.0
        options["reduction"] = self.reduction
        if self.reduction == "none":
            options["average"] = "none"
            return options, 1.0
        whole = sum(weights) if weights else float(batch.scored)
        return options, whole / batch.scored if self.reduction == "mean" else whole

    def reduced(self, score: Any, batch: Batch, weights: Sequence[float] = ()) -> Tensor:
        """The loss of a score."""
        options, scale = self.scaled(batch, weights)
        loss = confusion_loss(score, batch.input, batch.target, batch.weight, **options)
        return loss if scale == 1 else loss * scale


def reduction_word(reduction: Any) -> str:
    """The word, of a word or of a member of MONAI's enumeration."""
    word = str(getattr(reduction, "value", reduction))
    if word not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    return word


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """Losses of groups, reduced."""
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss
