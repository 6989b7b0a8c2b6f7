"""Compounds that people train with, by name: Dice or Tversky, and a cross-entropy or focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from customloss import scores
from customloss._spec.options import WithBinaryCrossEntropy, WithCrossEntropy, WithFocal
from customloss.losses.base import Loss
from customloss.losses.keywords import takes
from customloss.losses.parts import binary, compound
from customloss.scores import Smooth

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(WithCrossEntropy)
def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: Smooth = 0.0,
    activation: str = "softmax",
    **options: Unpack[WithCrossEntropy],
) -> Tensor:
    """``dice_weight · (1 - Dice) + ce_weight · cross-entropy``: what nnU-Net and MONAI train with.

    This is :func:`compound_loss` with the score of :func:`dice_loss`, of a SOFTMAX by default; they
    explain the arguments and errors. nnU-Net's loss has ``link="negative"``,
    ``include_background=False`` and, unless its ``batch_dice`` is set, ``samplewise=True``. MONAI's
    has ``samplewise=True`` unless its ``batch`` is set.
    """
    given = {"activation": activation, **options}
    return compound(
        scores.dice, input, target, weight, given, dice_weight, ce_weight,
        called=("dice_weight", "ce_weight", ""), smooth=smooth,
    )  # fmt: skip


class DiceCELoss(Loss, name="dice_ce"):
    """Dice and cross-entropy of a softmax; see :func:`customloss.dice_ce_loss`.

    Example::

        criterion = customloss.DiceCELoss(include_background=False, ignore_index=255)
        criterion(logits, class_numbers).backward()  # [N, C, H, W] and [N, H, W]
    """

    function = staticmethod(dice_ce_loss)

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        smooth: Smooth = 0.0,
        activation: str = "softmax",
        **options: Unpack[WithCrossEntropy],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "ce_weight": ce_weight, "smooth": smooth,
            "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(WithBinaryCrossEntropy)
def dice_bce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    smooth: Smooth = 0.0,
    activation: str = "sigmoid",
    **options: Unpack[WithBinaryCrossEntropy],
) -> Tensor:
    """``dice_weight · (1 - Dice) + bce_weight · binary cross-entropy``, of a sigmoid.

    This is :func:`compound_loss` with the score of :func:`dice_loss`; they explain the arguments
    and errors. ``activation`` is ``"sigmoid"``, or ``"none"`` for probabilities.

    Raises:
        ValueError: also for ``activation="softmax"``, for which there is :func:`dice_ce_loss`.
    """
    given = {"activation": binary("dice_ce_loss", activation), **options}
    return compound(
        scores.dice, input, target, weight, given, dice_weight, bce_weight,
        called=("dice_weight", "bce_weight", ""), smooth=smooth,
    )  # fmt: skip


class DiceBCELoss(Loss, name="dice_bce"):
    """Dice and binary cross-entropy of a sigmoid; see :func:`customloss.dice_bce_loss`."""

    function = staticmethod(dice_bce_loss)

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        smooth: Smooth = 0.0,
        activation: str = "sigmoid",
        **options: Unpack[WithBinaryCrossEntropy],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "bce_weight": bce_weight, "smooth": smooth,
            "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(WithFocal)
def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
    smooth: Smooth = 0.0,
    activation: str = "sigmoid",
    **options: Unpack[WithFocal],
) -> Tensor:
    """``dice_weight · (1 - Dice) + focal_weight · focal``, of a sigmoid by default.

    This is :func:`compound_loss` with the score of :func:`dice_loss`; they explain the arguments
    and errors. Both parts have the same ``activation``: with ``"softmax"`` the focal loss is that
    of the true class of a pixel (in MONAI's ``DiceFocalLoss(softmax=True)`` it is still that of a
    sigmoid).
    """
    given = {"activation": activation, **options}
    return compound(
        scores.dice, input, target, weight, given, dice_weight,
        focal_weight=focal_weight,
        called=("dice_weight", "", "focal_weight"), smooth=smooth,
    )  # fmt: skip


class DiceFocalLoss(Loss, name="dice_focal"):
    """Dice and focal loss of a sigmoid; see :func:`customloss.dice_focal_loss`."""

    function = staticmethod(dice_focal_loss)

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        smooth: Smooth = 0.0,
        activation: str = "sigmoid",
        **options: Unpack[WithFocal],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "focal_weight": focal_weight, "smooth": smooth,
            "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(WithCrossEntropy)
def tversky_ce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    tversky_weight: float = 1.0,
    ce_weight: float = 1.0,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Smooth = 0.0,
    activation: str = "softmax",
    **options: Unpack[WithCrossEntropy],
) -> Tensor:
    """``tversky_weight · (1 - Tversky) + ce_weight · cross-entropy``, of a SOFTMAX by default.

    This is :func:`compound_loss` with the score of :func:`tversky_loss`; they explain the arguments
    and errors.
    """
    given = {"activation": activation, **options}
    return compound(
        scores.tversky, input, target, weight, given, tversky_weight, ce_weight,
        called=("tversky_weight", "ce_weight", ""),
        fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth,
    )  # fmt: skip


class TverskyCELoss(Loss, name="tversky_ce"):
    """Tversky and cross-entropy of a softmax; see :func:`customloss.tversky_ce_loss`."""

    function = staticmethod(tversky_ce_loss)

    def __init__(
        self,
        *,
        tversky_weight: float = 1.0,
        ce_weight: float = 1.0,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        smooth: Smooth = 0.0,
        activation: str = "softmax",
        **options: Unpack[WithCrossEntropy],
    ) -> None:
        more: dict[str, Any] = {
            "tversky_weight": tversky_weight, "ce_weight": ce_weight, "fp_weight": fp_weight,
            "fn_weight": fn_weight, "smooth": smooth, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)
