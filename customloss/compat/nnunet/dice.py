"""nnU-Net's Dice losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from customloss import scores
from customloss.compat.drop_in import DropIn, at, plain, refused
from customloss.losses.composed import confusion_loss

Nonlin = Callable[[Tensor], Tensor]

_LEAST = 1e-8  # what nnU-Net divides by at least
_THEIRS = "nnunetv2.utilities.helpers.softmax_helper_dim1"


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """The softmax over the classes; as ``apply_nonlin`` it is known, and costs no pass."""
    return x.softmax(1)


def activation_of(nonlin: Nonlin | None) -> str | None:
    """Ours that is the same, or None where that is not known."""
    if nonlin is None:
        return "none"
    if type(nonlin) is nn.Sigmoid or any(nonlin is f for f in (torch.sigmoid, F.sigmoid)):
        return "sigmoid"
    if type(nonlin) is nn.Softmax:
        return "softmax" if nonlin.dim == 1 else None
    name = f"{getattr(nonlin, '__module__', '')}.{getattr(nonlin, '__qualname__', '')}"
    return "softmax" if nonlin is softmax_helper_dim1 or name == _THEIRS else None


def _floored_dice(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float, least_tp: float | None,
    floored: bool,
) -> Tensor:  # fmt: skip
    tp = tp if least_tp is None else tp.clamp_min(least_tp)
    hit, whole = 2 * tp + smooth, 2 * tp + fp + fn + smooth
    return hit / whole.clamp_min(_LEAST) if floored else scores.ratio(hit, whole)


def ranks_of(dice: Any) -> dict[str, str]:
    """The ranks that share the sums of a Dice of ours or of nnU-Net, if there are ranks at all."""
    if not (dist.is_available() and dist.is_initialized()):
        return {}
    shared = getattr(dice, "ddp", False) and getattr(dice, "batch_dice", False)
    return {"process_group": "world" if shared else "local"}


class Dice(DropIn):
    """What the two have in common, which is all: their formulas are the same."""

    clip_tp: float | None = None

    def __init__(
        self, apply_nonlin: Nonlin | None, batch_dice: bool, do_bg: bool, smooth: float, ddp: bool,
        strict: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.apply_nonlin, self.batch_dice, self.do_bg = apply_nonlin, batch_dice, do_bg
        self.smooth, self.ddp, self.strict = smooth, ddp, strict

    def score(self) -> Any:
        """The similarity, in our words."""
        smooth = float(self.smooth)
        floored = self.strict and smooth < _LEAST
        if floored or self.clip_tp is not None:
            return at(_floored_dice, smooth=smooth, least_tp=self.clip_tp, floored=floored)
        return at(scores.dice, smooth=smooth)

    def read(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Input, target and options, in our words."""
        x, y = plain(x), plain(y)
        if x.dim() < 3:
            raise refused(self, f"an input without spatial dimensions, {list(x.shape)},",
                          "customloss.dice_loss(input, target) takes it")  # fmt: skip
        activation = activation_of(self.apply_nonlin)
        if activation is None or (activation == "softmax" and x.shape[1] == 1):
            assert self.apply_nonlin is not None
            x, activation = plain(self.apply_nonlin(x)), "none"
        options: dict[str, Any] = {"activation": activation, "link": "negative"}
        if not self.batch_dice:
            options["samplewise"] = True
        if not self.do_bg:
            options["include_background"] = False
        options |= ranks_of(self)
        return x, y.unsqueeze(1) if y.dim() == x.dim() - 1 else y, options

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """The loss of ``[B, C, *spatial]``, and of class numbers ``[B, *spatial]`` or ``[B, 1,
        *spatial]``, of any dtype, or a mask for each class; ``loss_mask``: ``[B, 1, *spatial]``."""
        input, target, options = self.read(x, y)
        return confusion_loss(self.score(), input, target, plain(loss_mask), **options)


class SoftDiceLoss(Dice):
    """``-(2 tp + smooth) / (2 tp + fp + fn + smooth)``, the mean over the classes, and over the
    samples unless ``batch_dice``; ``clip_tp`` raises tp to a least value.

    Warts: see the top of the file. ``ddp=True`` works where torch.distributed is not initialised.
    """

    def __init__(
        self, apply_nonlin: Nonlin | None = None, batch_dice: bool = False, do_bg: bool = True,
        smooth: float = 1.0, ddp: bool = True, clip_tp: float | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp, strict)
        self.clip_tp = clip_tp


class MemoryEfficientSoftDiceLoss(Dice):
    """:class:`SoftDiceLoss` without ``clip_tp``; here both need the same memory."""

    def __init__(
        self, apply_nonlin: Nonlin | None = None, batch_dice: bool = False, do_bg: bool = True,
        smooth: float = 1.0, ddp: bool = True, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(apply_nonlin, batch_dice, do_bg, smooth, ddp, strict)
