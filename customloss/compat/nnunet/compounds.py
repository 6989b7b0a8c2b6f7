"""nnU-Net's compounds: a Dice and a cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from customloss.compat.drop_in import DropIn, Numbers, plain, refused
from customloss.compat.nnunet.dice import (
    Dice,
    MemoryEfficientSoftDiceLoss,
    Nonlin,
    SoftDiceLoss,
    activation_of,
    ranks_of,
    softmax_helper_dim1,
)  # fmt: skip
from customloss.losses.parts import compound


class RobustCrossEntropyLoss(nn.CrossEntropyLoss):
    """torch's cross-entropy of class numbers ``[B, *spatial]`` or ``[B, 1, *spatial]`` of any
    dtype."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy, by torch."""
        if target.dim() == input.dim():
            target = target.squeeze(1)
        return super().forward(input, target.long())


class _Compound(DropIn):
    """What the compounds have in common: ``weight_dice`` times ``dc`` plus ``weight_ce`` times
    ``ce``, in one pass if ``dc`` is a Dice of ours, also behind torch.compile."""

    dc: Any
    ce: Any

    def __init__(
        self, dice_class: Callable[..., Any], nonlin: Nonlin, soft_dice_kwargs: dict[str, Any],
        weight_ce: float, weight_dice: float, strict: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight_dice, self.weight_ce, self.strict = weight_dice, weight_ce, strict
        self.dc = dice_class(apply_nonlin=nonlin, **soft_dice_kwargs)
        if isinstance(self.dc, DropIn):
            self.dc.strict = strict
        self._numbers = Numbers()

    def dice(self) -> Any:
        """``dc``, also if it was compiled."""
        return getattr(self.dc, "_orig_mod", self.dc)

    def fused(self, activation: str, channels: int) -> Dice | None:
        """The Dice of one pass with a cross-entropy of this activation."""
        dc = self.dice()
        if not isinstance(dc, Dice) or type(dc).forward is not Dice.forward:
            return None
        one = activation_of(dc.apply_nonlin) == activation
        return dc if one and (channels > 1 or activation == "sigmoid") else None

    def added(
        self, dice: Dice, input: Tensor, target: Tensor, weight: Tensor | None,
        pointwise: dict[str, Any], weight_ce: float,
    ) -> Tensor:  # fmt: skip
        """The loss, in one pass."""
        input, target, options = dice.read(input, target)
        if self.strict and options.get("process_group") == "world":
            pointwise = {**pointwise, "pointwise_group": None}
        return self._of(dice.score(), input, target, weight, {**options, **pointwise},
                        self.weight_dice, weight_ce)  # fmt: skip

    def alone(
        self, input: Tensor, target: Tensor, weight: Tensor | None, pointwise: dict[str, Any],
        weight_ce: float,
    ) -> Tensor:  # fmt: skip
        """The cross-entropy, as a pass of its own."""
        ranks = ranks_of(None if self.strict else self.dice())
        pointwise = {**pointwise, **ranks}
        return self._of(None, plain(input), plain(target), weight, pointwise, 0.0, weight_ce)

    def _of(self, score: Any, *given: Any) -> Tensor:
        return compound(score, *given, called=("weight_dice", "weight_ce", ""))


class DC_and_CE_loss(_Compound):
    """``weight_dice`` times a Dice plus ``weight_ce`` times a cross-entropy of the softmax.

    One pass; two if the ``dice_class`` is not one of this file, or if ``ce_kwargs`` have an
    ``ignore_index`` that is a class, which the cross-entropy alone ignores. Pixels of
    ``ignore_label`` count in neither part. Warts: see the top of the file. A target with a mask for
    each class is refused: nnU-Net takes the first of these for class numbers.
    """

    def __init__(
        self, soft_dice_kwargs: dict[str, Any], ce_kwargs: dict[str, Any], weight_ce: float = 1,
        weight_dice: float = 1, ignore_label: int | None = None,
        dice_class: Callable[..., Any] = SoftDiceLoss, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            dice_class, softmax_helper_dim1, soft_dice_kwargs, weight_ce, weight_dice, strict
        )
        self.ignore_label = ignore_label
        ignored = {} if ignore_label is None else {"ignore_index": ignore_label}
        self.ce = RobustCrossEntropyLoss(**{**ce_kwargs, **ignored})

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and class numbers ``[B, 1, *spatial]``."""
        if target.dim() != net_output.dim() or target.shape[1] != 1:
            raise ValueError(
                f"target: expected class numbers [B, 1, *spatial] for an input "
                f"{list(net_output.shape)}, got {list(target.shape)}"
            )
        channels, ignored = net_output.shape[1], self.ce.ignore_index
        options: dict[str, Any] = {"pointwise_reduction": self.ce.reduction}
        if self.ce.reduction == "none":
            raise refused(self, "a cross-entropy for every pixel", "take 'mean' or 'sum'")
        if self.ce.weight is not None:
            options["pointwise_class_weight"] = self._numbers.of(self.ce.weight)
        if self.ce.label_smoothing:
            options["ce_label_smoothing"] = self.ce.label_smoothing
        own = self.ignore_label is None and 0 <= ignored < channels  # ignored by this part alone
        if self.ignore_label is not None or own or not self.weight_dice:
            options["ignore_index"] = ignored
        dice = None if own or not self.weight_dice else self.fused("softmax", channels)
        if dice is not None:
            return self.added(dice, net_output, target, None, options, self.weight_ce)
        loss: Any = 0
        if self.weight_dice:
            mask, cleared = None, target
            if self.ignore_label is not None:
                mask = target != self.ignore_label
                cleared = torch.where(mask, target, 0)
            loss = self.weight_dice * self.dc(net_output, cleared, loss_mask=mask)
        if self.weight_ce:
            options["activation"] = "softmax"
            loss = loss + self.alone(net_output, target, None, options, self.weight_ce)
        result: Tensor = loss
        return result


class DC_and_BCE_loss(_Compound):
    """``weight_dice`` times a Dice plus ``weight_ce`` times a binary cross-entropy, of sigmoids.

    One pass; two if the ``dice_class`` is not one of this file. With ``use_ignore_label`` the last
    channel of the target says which pixels do not count. Warts: see the top of the file.
    """

    def __init__(
        self, bce_kwargs: dict[str, Any], soft_dice_kwargs: dict[str, Any], weight_ce: float = 1,
        weight_dice: float = 1, use_ignore_label: bool = False,
        dice_class: Callable[..., Any] = MemoryEfficientSoftDiceLoss, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            dice_class, torch.sigmoid, soft_dice_kwargs, weight_ce, weight_dice, strict
        )
        self.use_ignore_label = use_ignore_label
        whole = {"reduction": "none"} if use_ignore_label else {}
        self.ce = nn.BCEWithLogitsLoss(**{**bce_kwargs, **whole})

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and masks ``[B, C, *spatial]``, or with an ignore
        label ``[B, C + 1, *spatial]``."""
        channels, mask, weight_ce = net_output.shape[1], None, self.weight_ce
        if target.dim() != net_output.dim() or target.shape[1] != channels + self.use_ignore_label:
            raise ValueError(
                f"target: expected {channels + self.use_ignore_label} channels for an input "
                f"{list(net_output.shape)} with use_ignore_label={self.use_ignore_label}, got "
                f"{list(target.shape)}"
            )
        if self.use_ignore_label:
            last = plain(target)[:, -1:]
            mask = ~last if last.dtype == torch.bool else last != 1
            target = plain(target)[:, :-1]
            weight_ce = weight_ce * channels if self.strict else weight_ce
        options = self._of_ce(net_output)
        dice = self.fused("sigmoid", channels)
        if dice is not None:
            return self.added(dice, net_output, target, mask, options, weight_ce)
        loss: Tensor = self.weight_dice * self.dc(net_output, target, loss_mask=mask)
        if not weight_ce:
            return loss
        options["activation"] = "sigmoid"
        return loss + self.alone(net_output, target, mask, options, weight_ce)

    def _of_ce(self, input: Tensor) -> dict[str, Any]:
        """The options of the cross-entropy."""
        if self.ce.weight is not None:
            raise refused(self, "the weight of bce_kwargs", "weight_ce, or pos_weight, is")
        reduction = "mean" if self.use_ignore_label else self.ce.reduction
        if reduction == "none":
            raise refused(self, "a cross-entropy for every pixel", "take 'mean' or 'sum'")
        options: dict[str, Any] = {"pointwise_reduction": reduction}
        given = self.ce.pos_weight
        if given is not None:
            numbers = self._numbers.of(given)
            shape = (*[1] * (input.dim() - given.dim()), *given.shape)
            if len(numbers) > 1 and shape != (1, input.shape[1], *[1] * (input.dim() - 2)):
                raise refused(self, f"a pos_weight of shape {list(given.shape)} that is not one "
                              "number for each class", "take the shape [C, 1, 1], or [C, 1, 1, 1] "
                              "for volumes")  # fmt: skip
            options["pos_weight"] = numbers[0] if len(numbers) == 1 else numbers
        return options


class DC_and_topk_loss(DropIn):
    """Refused: the largest losses of a batch are not known before all of them are."""

    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise refused("DC_and_topk_loss", "a cross-entropy of the worst pixels",
                      "customloss.CompoundLoss('dice', focal_weight=1, activation='softmax') also "
                      "favours them")  # fmt: skip
