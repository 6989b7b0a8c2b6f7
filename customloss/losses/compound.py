"""A score and a pointwise loss in one pass: Dice and cross-entropy, Dice and focal, others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from customloss import scores
from customloss._spec import checks
from customloss._spec.arguments import Data, Pointwise
from customloss._spec.options import Linking, Options, ScoringWords
from customloss.losses import classes, request, route
from customloss.losses.base import Loss, takes
from customloss.losses.composed import ConfusionLoss
from customloss.losses.formula import Formula, Score, at, formula_of
from customloss.losses.request import Request, once
from customloss.scores import Smooth

if TYPE_CHECKING:
    from typing_extensions import Unpack


PosWeight = Tensor | Sequence[float] | float | None


@takes(Options)
def compound_loss(
    score: Score,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    score_weight: float = 1.0,
    cross_entropy_weight: float = 0.0,
    focal_weight: float = 0.0,
    focal_gamma: float = 2.0,
    pos_weight: PosWeight = None,
    **options: Unpack[Options],
) -> Tensor:
    """``a · loss of a score + b · cross-entropy + c · focal``, one pass forward and one backward.

    The pointwise part is a mean over the whole batch: for softmax over its pixels, else over its
    elements. With w the element weights and v the class weights::

        softmax             Σ w v t (-log p)                  /  Σ w v t
        sigmoid, none       Σ w v [π t (-log p) + (1-t) (-log (1-p))]  /  Σ w v

    The first is ``F.cross_entropy`` with its ``weight``, ``ignore_index`` and ``label_smoothing``.
    The second, with π = ``pos_weight``, is ``F.binary_cross_entropy_with_logits``, except where
    there is a ``weight``: torch still divides by the number of elements. Focal puts (1-p)^γ before
    the first logarithm and p^γ before the second, as torchvision's does, without its α. With
    ``activation="none"`` the logarithms are those of max(p, 1e-30) and max(1-p, 1e-30). Below the
    floor they are constant: a probability of exactly 0 where t = 1 gets no gradient from them, so
    pass logits where you have them.

    Args:
        score: see :func:`confusion_loss`, as for all arguments that are not listed here.
        score_weight, cross_entropy_weight, focal_weight: a, b and c, >= 0. A part of weight 0 is
            not computed.
        focal_gamma: γ, >= 0.
        pos_weight: π, the weight of the positives in a binary cross-entropy: a number, or one per
            class.
        average, samplewise, reduction: these are about the score, to which the pointwise loss of
            the whole batch is added. With ``samplewise=True`` and ``reduction="none"`` each sample
            gets its own pointwise loss. ``average="none"`` is refused: a pointwise loss is one
            number for all classes.
        classes, include_background: these are about the score. The pointwise loss is about all
            classes, as in MONAI and nnU-Net.
        class_weight, ignore_index, label_smoothing, weight: these are about both parts. A batch in
            which nothing counts has a pointwise loss of 0, and gradient 0.

    Returns:
        As :func:`confusion_loss`.

    Raises:
        TypeError, ValueError: as :func:`confusion_loss`; also for ``average="none"``, for
            ``pos_weight`` with a softmax, and if no part has a weight above 0.

    Source: Taghanaki et al., "Combo loss: Handling input and output imbalance in multi-organ
    segmentation", CMIG 2019; Isensee et al., "nnU-Net", Nature Methods 2021; focal: Lin et al.,
    "Focal loss for dense object detection", ICCV 2017.

    Example::

        loss = customloss.compound_loss(
            customloss.scores.jaccard, logits, target, activation="softmax",
            score_weight=0.75, cross_entropy_weight=0.25, include_background=False,
        )
    """
    return _compound(
        score, input, target, weight, {**options}, score_weight, cross_entropy_weight,
        focal_weight, focal_gamma, pos_weight,
    )  # fmt: skip


def _compound(
    score: Score,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
    score_weight: float,
    cross_entropy_weight: float = 0.0,
    focal_weight: float = 0.0,
    focal_gamma: float = 2.0,
    pos_weight: PosWeight = None,
    *,
    called: tuple[str, ...] = ("score_weight", "cross_entropy_weight", "focal_weight"),
    **parameters: Any,
) -> Tensor:
    """See :func:`compound_loss`; ``called`` is what the caller's arguments for the weights are, and
    ``parameters`` are those of a score of ``scores.py``."""
    if options.get("average") == "none":
        raise ValueError(
            "average: expected 'macro', 'micro' or 'weighted' for a compound loss (a cross-entropy "
            "is one number for all classes), got 'none'"
        )
    if not score_weight and not parameters:
        score = scores.dice  # a ratio, so that the loss is fused; at weight 0 it is not computed
    numbers = (score_weight, cross_entropy_weight, focal_weight, focal_gamma)
    words = _words(scores.used_by(score), called, *numbers)
    call = request.of_score(Data(input, target, weight), options, words, focal_gamma)
    if pos_weight is not None and focal_weight and not cross_entropy_weight:
        raise ValueError(
            "pos_weight: expected None without a cross-entropy, whose positives it weighs, got "
            f"{pos_weight}"
        )
    by_class = None if pos_weight is None else _pos_weight(pos_weight, call)
    if not cross_entropy_weight:
        by_class = None
    beside = _pointwise(call, score_weight, cross_entropy_weight, focal_weight)
    if isinstance(by_class, float):
        beside, by_class = beside._replace(log_pos=beside.log_pos * by_class), None
    extra = call.elements.extra
    make = _formula_at if parameters else formula_of
    name, made, *_, must_agree = make(score, call.words, extra, **parameters)
    must_agree = (numbers, pos_weight, must_agree)
    return route.loss(call, Formula(name, made, beside, by_class, must_agree))


@once
def _words(
    used: tuple[str, ...],
    called: tuple[str, ...],
    score_weight: float,
    cross_entropy_weight: float,
    focal_weight: float,
    focal_gamma: float,
) -> tuple[str, ...]:
    """The further sums of the parts, whose weights are checked; ``used`` are those of the score."""
    weights = (score_weight, cross_entropy_weight, focal_weight)
    for name, value in (*zip(called, weights), ("focal_gamma", focal_gamma)):
        if name:
            checks.number(name, value, at_least=0)
    if not any(weights):
        raise ValueError(f"{', '.join(filter(None, called))}: expected one above 0, got none")
    words = (*used, *(("log_loss",) if cross_entropy_weight else ()))
    return (*words, *(("focal",) if focal_weight else ()))


@once
def _formula_at(score: Score, words: ScoringWords, extra: int, **parameters: Any) -> Formula:
    return formula_of(at(score, **parameters), words, extra)


def _pos_weight(pos_weight: PosWeight, call: Request) -> Tensor | float:
    """A number, or one per class."""
    if call.options.get("activation") == "softmax":
        raise ValueError(
            "pos_weight: expected None with activation='softmax' (class_weight weighs its classes),"
            f" got {pos_weight}"
        )
    if isinstance(pos_weight, Tensor) and pos_weight.dim() == 0:
        return pos_weight
    if isinstance(pos_weight, (int, float)):
        checks.number("pos_weight", pos_weight, at_least=0)
        return float(pos_weight)
    return classes.per_class("pos_weight", pos_weight, call.data.input)


def _pointwise(call: Request, score_weight: float, cross_entropy: float, focal: float) -> Pointwise:
    """The weight of the score and the factors of the pointwise loss."""
    shape = call.data.input.shape
    return _factors(
        score_weight, cross_entropy, focal, call.options.get("activation") == "softmax",
        # The operator refuses a softmax of an input without classes.
        call.options.get("label_smoothing", 0.0), shape[1] if len(shape) > 1 else 1,
    )  # fmt: skip


@once
def _factors(
    score_weight: float, cross_entropy: float, focal: float, softmax: bool, smoothing: float,
    classes: int,
) -> Pointwise:  # fmt: skip
    if not (cross_entropy or focal):
        return Pointwise(score_weight)
    if not softmax:
        return Pointwise(
            score_weight, log_pos=cross_entropy, log_neg=cross_entropy, focal=focal,
            positives=1.0, negatives=1.0,
        )  # fmt: skip
    # A pixel counts once, by its own class. With smoothing, tp + fn of a class holds 1 - ε + ε/K of
    # its pixels and ε/K of the others, and these two factors undo that.
    spread = smoothing / classes
    return Pointwise(
        score_weight, log_pos=cross_entropy, focal=focal,
        positives=(1 - spread) / (1 - smoothing), negatives=-spread / (1 - smoothing),
    )  # fmt: skip


class CompoundLoss(ConfusionLoss):
    """Any score with a cross-entropy or focal loss beside it; see
    :func:`customloss.compound_loss`.

    Example::

        criterion = customloss.CompoundLoss(
            customloss.scores.jaccard, cross_entropy_weight=0.5, activation="softmax"
        )
        criterion(logits, class_numbers).backward()
    """

    function = staticmethod(compound_loss)

    def __init__(
        self,
        score: Score,
        *,
        score_weight: float = 1.0,
        cross_entropy_weight: float = 0.0,
        focal_weight: float = 0.0,
        focal_gamma: float = 2.0,
        pos_weight: PosWeight = None,
        **options: Unpack[Options],
    ) -> None:
        more: dict[str, Any] = {
            "score_weight": score_weight, "cross_entropy_weight": cross_entropy_weight,
            "focal_weight": focal_weight, "focal_gamma": focal_gamma, "pos_weight": pos_weight,
        }  # fmt: skip
        super().__init__(score, **more, **options)


# ---- presets -------------------------------------------------------------------------------------


@takes(Linking)
def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: Smooth = 0.0,
    activation: str = "softmax",
    **options: Unpack[Linking],
) -> Tensor:
    """``dice_weight · (1 - Dice) + ce_weight · cross-entropy``: what nnU-Net and MONAI train with.

    This is :func:`compound_loss` with the score of :func:`dice_loss`, of a SOFTMAX by default; they
    explain the arguments and errors. nnU-Net's loss has ``link="negative"``,
    ``include_background=False`` and, unless its ``batch_dice`` is set, ``samplewise=True``. MONAI's
    has ``samplewise=True`` unless its ``batch`` is set.
    """
    given = {"activation": activation, **options}
    return _compound(
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
        **options: Unpack[Linking],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "ce_weight": ce_weight, "smooth": smooth,
            "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(Linking)
def dice_bce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    pos_weight: PosWeight = None,
    smooth: Smooth = 0.0,
    activation: str = "sigmoid",
    **options: Unpack[Linking],
) -> Tensor:
    """``dice_weight · (1 - Dice) + bce_weight · binary cross-entropy``, of a sigmoid.

    This is :func:`compound_loss` with the score of :func:`dice_loss`; they explain the arguments
    and errors. ``activation`` is ``"sigmoid"``, or ``"none"`` for probabilities.

    Raises:
        ValueError: also for ``activation="softmax"``, for which there is :func:`dice_ce_loss`.
    """
    if activation == "softmax":
        raise ValueError(
            "activation: expected 'sigmoid' or 'none' for a binary cross-entropy (dice_ce_loss has "
            "that of a softmax), got 'softmax'"
        )
    given = {"activation": activation, **options}
    return _compound(
        scores.dice, input, target, weight, given, dice_weight, bce_weight, pos_weight=pos_weight,
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
        pos_weight: PosWeight = None,
        smooth: Smooth = 0.0,
        activation: str = "sigmoid",
        **options: Unpack[Linking],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "bce_weight": bce_weight, "pos_weight": pos_weight,
            "smooth": smooth, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(Linking)
def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
    focal_gamma: float = 2.0,
    smooth: Smooth = 0.0,
    activation: str = "sigmoid",
    **options: Unpack[Linking],
) -> Tensor:
    """``dice_weight · (1 - Dice) + focal_weight · focal``, of a sigmoid by default.

    This is :func:`compound_loss` with the score of :func:`dice_loss`; they explain the arguments
    and errors. Both parts have the same ``activation``: with ``"softmax"`` the focal loss is that
    of the true class of a pixel (in MONAI's ``DiceFocalLoss(softmax=True)`` it is still that of a
    sigmoid).
    """
    given = {"activation": activation, **options}
    return _compound(
        scores.dice, input, target, weight, given, dice_weight,
        focal_weight=focal_weight, focal_gamma=focal_gamma,
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
        focal_gamma: float = 2.0,
        smooth: Smooth = 0.0,
        activation: str = "sigmoid",
        **options: Unpack[Linking],
    ) -> None:
        more: dict[str, Any] = {
            "dice_weight": dice_weight, "focal_weight": focal_weight, "focal_gamma": focal_gamma,
            "smooth": smooth, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(Linking)
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
    **options: Unpack[Linking],
) -> Tensor:
    """``tversky_weight · (1 - Tversky) + ce_weight · cross-entropy``, of a SOFTMAX by default.

    This is :func:`compound_loss` with the score of :func:`tversky_loss`; they explain the arguments
    and errors.
    """
    given = {"activation": activation, **options}
    return _compound(
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
        **options: Unpack[Linking],
    ) -> None:
        more: dict[str, Any] = {
            "tversky_weight": tversky_weight, "ce_weight": ce_weight, "fp_weight": fp_weight,
            "fn_weight": fn_weight, "smooth": smooth, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)
