"""MONAI's compounds: a loss of a score and a pointwise loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from customloss.compat.drop_in import DropIn, Numbers, plain, refused
from customloss.compat.monai.focal import FocalLoss
from customloss.compat.monai.reading import Act, Weight, reduction_word
from customloss.compat.monai.scores import DiceLoss, GeneralizedDiceLoss
from customloss.losses.composed import confusion_loss
from customloss.losses.parts import compound


def _at_least_0(**weights: float) -> None:
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")


def _same_dims(input: Tensor, target: Tensor) -> None:
    fits = input.dim() == target.dim() and target.shape[1] in (1, input.shape[1])
    if not fits:
        raise ValueError(
            f"target: expected [B, 1, *spatial] or [B, C, *spatial] for an input "
            f"{list(input.shape)}, got {list(target.shape)}"
        )


def _added(
    part: Any, input: Tensor, target: Tensor, activation: str,
    pointwise: dict[str, Any], lambda_score: float, **weights: Any,
) -> Tensor:  # fmt: skip
    """The loss of a score plus a pointwise loss: one pass if both have the same activation, else
    one for each."""
    batch = part.read(input, target)
    of_classes = part.weights(batch.scored) if isinstance(part, DiceLoss) else ()
    options, scale = part.scaled(batch, of_classes)
    data = (batch.input, batch.target, batch.weight)
    if of_classes:  # they are those of the score alone
        pointwise.setdefault("pointwise_class_weight", (1.0,) * input.shape[1])
    if activation == batch.options["activation"] and part.other_act is None:
        return compound(
            part.score(), *data, {**options, **pointwise}, lambda_score * scale, **weights
        )
    score: Tensor = lambda_score * scale * confusion_loss(part.score(), *data, **options)
    given = {"activation": activation, **pointwise}
    return score + compound(None, plain(input), batch.target, None, given, 0.0, **weights)


class DiceCELoss(DropIn):
    """``lambda_dice`` times :class:`DiceLoss` plus ``lambda_ce`` times a cross-entropy: of the
    softmax, or of the sigmoid where there is one channel.

    One pass if the Dice is of the same; with ``sigmoid=True`` and several channels it is two, as
    the cross-entropy is still that of a softmax: a wart, which ``strict=False`` mends.
    ``include_background`` and ``batch`` concern the Dice alone.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, squared_pred: bool = False,
        jaccard: bool = False, reduction: str = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, weight: Tensor | None = None,
        lambda_dice: float = 1.0, lambda_ce: float = 1.0, label_smoothing: float = 0.0, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if (word := reduction_word(reduction)) == "none":
            raise ValueError("reduction: expected 'mean' or 'sum', got 'none'")
        _at_least_0(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        of_dice = weight if weight is None or include_background else weight[1:]
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard,
            word, smooth_nr, smooth_dr, batch, of_dice, strict=strict,
        )  # fmt: skip
        self.cross_entropy = nn.CrossEntropyLoss(
            weight=weight, reduction=word, label_smoothing=label_smoothing
        )
        self.binary_cross_entropy = nn.BCEWithLogitsLoss(pos_weight=weight, reduction=word)
        self.lambda_dice, self.lambda_ce, self.strict = lambda_dice, lambda_ce, strict
        self._numbers = Numbers()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and ``[B, C or 1, *spatial]``."""
        _same_dims(input, target)
        binary = input.shape[1] == 1 or (self.dice.sigmoid and not self.strict)
        dense = target.shape[1] == input.shape[1] or binary
        options: dict[str, Any] = {"pointwise_reduction": self.cross_entropy.reduction}
        if dense and self.cross_entropy.reduction == "mean":  # as torch divides it
            options["pointwise_reduction"] = "mean_all"
        if self.cross_entropy.weight is not None:
            numbers = self._numbers.of(self.cross_entropy.weight)
            if binary:
                options["pos_weight"] = numbers[0] if len(numbers) == 1 else numbers
            else:
                options["pointwise_class_weight"] = numbers
        if self.cross_entropy.label_smoothing and not binary:
            options["ce_label_smoothing"] = self.cross_entropy.label_smoothing
        return _added(
            self.dice, input, target, "sigmoid" if binary else "softmax", options,
            self.lambda_dice, cross_entropy_weight=self.lambda_ce,
        )  # fmt: skip


class _WithFocal(DropIn):
    """What the compounds with a focal loss have in common."""

    focal: FocalLoss

    def added(
        self, part: Any, input: Tensor, target: Tensor, lambda_score: float, lambda_focal: float
    ) -> Tensor:
        _same_dims(input, target)
        if self.focal.reduction == "none":
            raise refused(self, "reduction='none'", "take 'mean' or 'sum'")
        activation = "softmax" if part.softmax and not self.strict else "sigmoid"
        options, scale = self.focal.of_sigmoid(input)
        return _added(
            part, input, target, activation, options, lambda_score,
            focal_weight=lambda_focal * scale,
        )  # fmt: skip


class DiceFocalLoss(_WithFocal):
    """``lambda_dice`` times :class:`DiceLoss` plus ``lambda_focal`` times :class:`FocalLoss`.

    One pass with ``sigmoid=True``; otherwise it is two, as the focal loss is that of a sigmoid even
    beside a softmax: a wart, which ``strict=False`` mends. ``include_background`` and ``weight``
    concern both parts.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, squared_pred: bool = False,
        jaccard: bool = False, reduction: str = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, gamma: float = 2.0, weight: Weight = None,
        lambda_dice: float = 1.0, lambda_focal: float = 1.0, alpha: float | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        _at_least_0(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard,
            reduction, smooth_nr, smooth_dr, batch, weight, strict=strict,
        )  # fmt: skip
        self.focal = FocalLoss(
            include_background, to_onehot_y, gamma, alpha, weight, reduction, strict=strict
        )
        self.lambda_dice, self.lambda_focal = lambda_dice, lambda_focal
        self.to_onehot_y, self.strict = to_onehot_y, strict

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and ``[B, C or 1, *spatial]``."""
        return self.added(self.dice, input, target, self.lambda_dice, self.lambda_focal)


class GeneralizedDiceFocalLoss(_WithFocal):
    """``lambda_gdl`` times :class:`GeneralizedDiceLoss` plus ``lambda_focal`` times
    :class:`FocalLoss`; warts and passes are those of :class:`DiceFocalLoss`."""

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, w_type: Any = "square",
        reduction: Any = "mean", smooth_nr: float = 1e-5, smooth_dr: float = 1e-5,
        batch: bool = False, gamma: float = 2.0, weight: Weight = None, lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        _at_least_0(lambda_gdl=lambda_gdl, lambda_focal=lambda_focal)
        self.generalized_dice = GeneralizedDiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, other_act, w_type, reduction,
            smooth_nr, smooth_dr, batch, strict=strict,
        )  # fmt: skip
        self.focal = FocalLoss(
            include_background, to_onehot_y, gamma, None, weight, reduction, strict=strict
        )
        self.lambda_gdl, self.lambda_focal, self.strict = lambda_gdl, lambda_focal, strict

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and ``[B, C or 1, *spatial]``."""
        part = self.generalized_dice
        return self.added(part, input, target, self.lambda_gdl, self.lambda_focal)
