"""Scores: similarities of prediction and target as functions of the soft confusion sums.

Every score takes ``tp, fp, fn, tn`` of one shape ``[samples, classes]``, one number per group, and
returns the similarity of every group: 1 is perfect. It is ordinary differentiable PyTorch, so a
score of your own is a function like these, for :class:`customloss.ConfusionLoss`. The sums are
float64, so ``1 - score`` keeps its digits. A score that needs further sums declares them with
:func:`uses`.
This module imports nothing of the package.

Where numerator and denominator are both 0, nothing was missed: the ratio is 1, its gradient 0.
``smooth`` is added to both of them, in units of elements; a pair is what is added to the numerator
and to the denominator. In formulas they are s and d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

# -log(similarity) is evaluated with a similarity no smaller than this, unless the caller says so
LOG_FLOOR = 1e-30

# what is added to both sides of a ratio, or to its numerator and its denominator
Smooth = float | tuple[float, float]

# how a similarity becomes a loss, and whether that takes a gamma
LINKS = {
    "complement": False,
    "log": False,
    "focal": True,
    "negative": False,
    "log_cosh": False,
    "log_power": True,
}
# those that take the logarithm of a similarity, with a floor
LOG_LINKS = ("log", "log_power")
# those that are defined for a similarity above 1 too
LINEAR_LINKS = ("complement", "negative")

# the sums that a score can ask for beside tp, fp, fn and tn, and the arguments it then gets
SUMS = {
    "log_loss": ("log_loss_pos", "log_loss_neg"),
    "squares": ("p2", "t2", "tp2"),
    "distance": ("common", "distance_pos", "distance_neg"),
    "focal": ("focal_pos", "focal_neg"),
    "hard": ("hard_tp", "hard_fp", "hard_fn", "hard_tn"),
    "support": ("support",),
}
# what else these similarities are called, as one word
OTHER_NAMES = {
    "f1": "dice", "softf1": "fbeta", "fscore": "fbeta", "iou": "jaccard", "sensitivity": "recall",
    "truepositiverate": "recall", "phi": "mcc", "matthewscorrelation": "mcc",
}  # fmt: skip
_S = TypeVar("_S", bound=Callable[..., Any])


def uses(*words: str) -> Callable[[_S], _S]:
    """Declares the further sums of a score, which it then gets as keyword arguments.

    ==============  ==============================================================================
    ``"log_loss"``  ``log_loss_pos`` Σ w t (-log p), ``log_loss_neg`` Σ w (1-t) (-log (1-p)); the
                    second is 0 for ``activation="softmax"``
    ``"squares"``   ``p2`` Σ w p², ``t2`` Σ w t², ``tp2`` Σ w t p²
    ``"distance"``  ``common`` Σ w min(p, t), ``distance_pos`` Σ w max(p - t, 0), ``distance_neg``
                    Σ w max(t - p, 0); the last two add up to Σ w |p - t|
    ``"focal"``     ``focal_pos`` Σ w t m^γ (-log p), ``focal_neg`` Σ w (1-t) m^γ (-log (1-p)) with
                    m = t (1-p) + (1-t) p; γ and the form of m as ``compound_loss`` has them; the
                    second is 0 for ``activation="softmax"``, whose m is 1-p
    ``"hard"``      ``hard_tp``, ``hard_fp``, ``hard_fn``, ``hard_tn`` of the decision (p > 1/2, or
                    the largest of a softmax), without gradient by the input
    ``"support"``   ``support`` Σ w t, with t before any smoothing
    ==============  ==============================================================================

    Each costs a little in the one pass that is made anyway. The decorator goes on a function, a
    class with ``__call__``, or an ``nn.Module`` class; a ``functools.partial`` of it works too.

    Raises:
        ValueError: another word.

    Example::

        @customloss.scores.uses("squares")
        def cosine(tp, fp, fn, tn, *, p2, t2, tp2):
            return tp / (p2 * t2).sqrt()

        criterion = customloss.ConfusionLoss(cosine)
    """
    for word in words:
        if word not in SUMS:
            raise ValueError(f"uses: expected one of {tuple(SUMS)}, got {word!r}")

    def decorate(score: _S) -> _S:
        score.uses_sums = words  # type: ignore[attr-defined]
        return score

    return decorate


def used_by(score: Callable[..., Any]) -> tuple[str, ...]:
    """The words that :func:`uses` put on a score."""
    while isinstance(score, partial):
        score = score.func
    words: tuple[str, ...] = getattr(score, "uses_sums", ())
    return words


class _Coefficients(NamedTuple):
    """How A, B and C follow from the parameters of a score, and the defaults of these."""

    of: Callable[..., tuple[float, float, float]]
    defaults: dict[str, Any]


# The scores that declared coefficients. A table, and not an attribute of the function, because
# functools.wraps would copy an attribute to a wrapper that computes something else.
_COEFFICIENTS: dict[Callable[..., Any], _Coefficients] = {}


def coefficients(of: Callable[..., tuple[float, float, float]]) -> Callable[[_S], _S]:
    """Declares that a score is the ratio ``(A tp + s) / (A tp + B fp + C fn + d)``.

    ``of`` takes the score's parameters except ``smooth``, which is s and d; it returns A, B and C.
    Losses of such a score take one fused operator: it knows the loss and its gradient in closed
    form.
    """

    def decorate(score: _S) -> _S:
        _COEFFICIENTS[score] = _Coefficients(of, dict(getattr(score, "__kwdefaults__", None) or {}))
        return score

    return decorate


def in_range(name: str, value: float) -> None:
    """Raises an error unless a parameter is 0, or of a size at which it is safe to multiply by it.

    A, B and C of a ratio may be as large as 1e200 and as small as 1e-200: then no product with a
    sum is infinite, and none is 0 where the sum is not.
    """
    most = 1e100 if name == "beta" else 1e200  # beta is squared
    if value and not 1 / most <= abs(value) <= most:
        raise ValueError(
            f"{name}: expected 0, or a number from {1 / most} to {most} (products with the sums "
            f"would leave the range of float64), got {value}"
        )


def sides(smooth: Any) -> tuple[float, float]:
    """What ``smooth`` adds to the numerator and to the denominator of a ratio."""
    if not isinstance(smooth, (tuple, list)):
        return smooth, smooth
    if len(smooth) != 2:
        raise ValueError(
            "smooth: expected a number, or a pair (added to the numerator, added to the "
            f"denominator), got {smooth!r}"
        )
    top, bottom = smooth
    return top, bottom


def coefficients_of(
    score: Callable[..., Any], **parameters: Any
) -> tuple[float, float, float, float, float]:
    """``A, B, C, s, d`` of a score that declared :func:`coefficients`, at these parameters."""
    of, defaults = _COEFFICIENTS[score]
    values = {**defaults, **parameters}
    smooth = values.pop("smooth")
    return *of(**values), *sides(smooth)


def ratio(hit: Tensor, whole: Tensor) -> Tensor:
    """``hit / whole``, with 0 / 0 = 1 and gradient 0 there."""
    empty = whole == 0
    safe = torch.where(empty, torch.ones_like(whole), whole)
    return torch.where(empty, torch.ones_like(hit), hit / safe)


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``, exponent >= 0. At base <= 0 it is 0 (1 for exponent 0), gradient 0."""
    if exponent == 0:
        return torch.ones_like(base)
    zero = base <= 0
    safe = torch.where(zero, torch.ones_like(base), base)
    return torch.where(zero, torch.zeros_like(base), safe**exponent)


def linked(
    similarity: Tensor,
    link: str = "complement",
    gamma: float = 1.0,
    log_floor: float = LOG_FLOOR,
) -> Tensor:
    """The loss that ``link`` makes of a similarity s: 0 at s = 1, except for ``"negative"``.

    ``"complement"`` 1 - s; ``"log"`` -log s; ``"focal"`` (1 - s)^gamma; ``"negative"`` -s;
    ``"log_cosh"`` log cosh(1 - s), Jadon 2020; ``"log_power"`` (-log s)^gamma, Wong 2018. A
    logarithm is that of max(s, ``log_floor``): below the floor the loss is constant. Gradients are
    finite everywhere, and 0 at s = 1 for the powers.
    """
    if link == "negative":
        return -similarity
    if link in LOG_LINKS:
        loss = -torch.log(similarity.clamp_min(log_floor))
        return loss if link == "log" else power(loss, gamma)
    loss = 1 - similarity
    if link == "focal":
        return loss if gamma == 1 else power(loss, gamma)
    if link == "log_cosh":
        return loss + torch.nn.functional.softplus(-2 * loss) - math.log(2)
    if link != "complement":
        raise ValueError(f"link: expected one of {tuple(LINKS)}, got {link!r}")
    return loss


# ---- ratios of tp, fp and fn -------------------------------------------------------------------


def _of_weights(fp_weight: float, fn_weight: float) -> tuple[float, float, float]:
    in_range("fp_weight", fp_weight)
    in_range("fn_weight", fn_weight)
    return 1.0, fp_weight, fn_weight


@coefficients(_of_weights)
def tversky(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Smooth = 0.0,
) -> Tensor:
    """``(tp + s) / (tp + α fp + β fn + d)``, α = fp_weight, β = fn_weight. Salehi 2017."""
    top, bottom = sides(smooth)
    return ratio(tp + top, tp + fp_weight * fp + fn_weight * fn + bottom)


@coefficients(lambda: (1.0, 1.0, 1.0))
def jaccard(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: Smooth = 0.0) -> Tensor:
    """``(tp + s) / (tp + fp + fn + d)``: intersection over union. Jaccard 1901."""
    return tversky(tp, fp, fn, tn, fp_weight=1.0, fn_weight=1.0, smooth=smooth)


def _of_beta(beta: float) -> tuple[float, float, float]:
    in_range("beta", beta)
    squared = beta * beta
    return 1.0 + squared, 1.0, squared


@coefficients(_of_beta)
def fbeta(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, beta: float = 1.0, smooth: Smooth = 0.0
) -> Tensor:
    """``((1+β²) tp + s) / ((1+β²) tp + fp + β² fn + d)``; β > 1 favours recall. Jansche 2005."""
    top, bottom = sides(smooth)
    hit = (1 + beta**2) * tp
    return ratio(hit + top, hit + fp + beta**2 * fn + bottom)


@coefficients(lambda: (2.0, 1.0, 1.0))
def dice(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: Smooth = 0.0) -> Tensor:
    """``(2 tp + s) / (2 tp + fp + fn + d)``, which is F1; no squares as in Milletari 2016."""
    return fbeta(tp, fp, fn, tn, smooth=smooth)


@coefficients(lambda: (1.0, 1.0, 0.0))
def precision(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: Smooth = 0.0) -> Tensor:
    """``(tp + s) / (tp + fp + d)``."""
    top, bottom = sides(smooth)
    return ratio(tp + top, tp + fp + bottom)


@coefficients(lambda: (1.0, 0.0, 1.0))
def recall(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: Smooth = 0.0) -> Tensor:
    """``(tp + s) / (tp + fn + d)``, the true positive rate."""
    top, bottom = sides(smooth)
    return ratio(tp + top, tp + fn + bottom)


def specificity(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: Smooth = 0.0) -> Tensor:
    """``(tn + s) / (tn + fp + d)``, the true negative rate: the recall of the negatives."""
    return recall(tn, fn, fp, tp, smooth=smooth)


def as_ratio(score: Callable[..., Any]) -> tuple[float, ...] | None:
    """``A, B, C, s, d`` of a score that declared :func:`coefficients`, or of a
    ``functools.partial`` of one; None for any other score, and for parameters that are not plain
    numbers."""
    given: dict[str, Any] = {}
    while isinstance(score, partial) and not score.args:
        given, score = {**score.keywords, **given}, score.func
    known = isinstance(score, FunctionType) and score in _COEFFICIENTS
    if not known:
        return None
    try:
        values = {**given, "smooth": sides(given.get("smooth", 0.0))}
        numbers = [*values.pop("smooth"), *values.values()]
        if not all(type(value) in (int, float) for value in numbers):
            return None
        return tuple(map(float, coefficients_of(score, **given)))
    except TypeError:  # not a parameter of this score, which will say so itself when it is called
        return None


# ---- ratios of other sums ------------------------------------------------------------------------


@uses("squares")
def squared_dice(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    p2: Tensor,
    t2: Tensor,
    tp2: Tensor,
    smooth: Smooth = 0.0,
) -> Tensor:
    """``(2 tp + s) / (Σp² + Σt² + d)``: V-Net's Dice, 1 at p = t also if soft. Milletari 2016."""
    top, bottom = sides(smooth)
    return ratio(2 * tp + top, p2 + t2 + bottom)


@uses("distance")
def semimetric_tversky(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    common: Tensor,
    distance_pos: Tensor,
    distance_neg: Tensor,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Smooth = 0.0,
) -> Tensor:
    """:func:`tversky` of ``tp' = Σ min(p, t)``, ``fp' = Σ max(p - t, 0)`` and ``fn' = Σ max(t - p,
    0)``: 1 at p = t also for soft labels, and the same for hard ones. Wang 2023."""
    weights = {"fp_weight": fp_weight, "fn_weight": fn_weight}
    return tversky(common, distance_pos, distance_neg, tn, **weights, smooth=smooth)


@uses("distance")
def semimetric_jaccard(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    common: Tensor,
    distance_pos: Tensor,
    distance_neg: Tensor,
    smooth: Smooth = 0.0,
) -> Tensor:
    """``(P + T - A + 2s) / (P + T + A + 2d)``: the Jaccard metric, for soft labels. P = Σp, T = Σt,
    A = Σ |p - t|; it is :func:`jaccard` of the sums of :func:`semimetric_tversky`. Wang 2023."""
    return jaccard(common, distance_pos, distance_neg, tn, smooth=smooth)


@uses("distance")
def semimetric_dice(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    common: Tensor,
    distance_pos: Tensor,
    distance_neg: Tensor,
    smooth: Smooth = 0.0,
) -> Tensor:
    """``(P + T - A + s) / (P + T + d)``: the Dice semimetric, for soft labels. P = Σp, T = Σt,
    A = Σ |p - t|; it is :func:`dice` of the sums of :func:`semimetric_tversky`. Wang 2023."""
    return dice(common, distance_pos, distance_neg, tn, smooth=smooth)


# ---- means of ratios -----------------------------------------------------------------------------


def fowlkes_mallows(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    recall_weight: float = 0.5,
    smooth: Smooth = 0.0,
) -> Tensor:
    """``precision^(1-w) recall^w``, w = recall_weight. w = 1/2: Fowlkes & Mallows 1983."""
    w = recall_weight
    exact = power(precision(tp, fp, fn, tn, smooth=smooth), 1 - w)
    return exact * power(recall(tp, fp, fn, tn, smooth=smooth), w)


def balanced_accuracy(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """``(recall + specificity) / 2``. Brodersen 2010."""
    return (recall(tp, fp, fn, tn) + specificity(tp, fp, fn, tn)) / 2


def g_mean(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """``sqrt(recall specificity)``. Kubat & Matwin 1997."""
    return power(recall(tp, fp, fn, tn) * specificity(tp, fp, fn, tn), 0.5)


def mcc(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """Matthews' correlation ``(tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn))``, in [-1, 1].

    0 where a factor under the root is 0, as scikit-learn has it. Matthews 1975.
    """
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    undefined = product == 0
    root = torch.where(undefined, torch.ones_like(product), product).sqrt()
    return torch.where(undefined, torch.zeros_like(root), (tp * tn - fp * fn) / root)


# ---- over the classes of a sample ----------------------------------------------------------------


def _over_classes(*values: Tensor) -> tuple[Tensor, ...]:
    """The sums over the classes, ``[samples, 1]``; together, since a long sum of which a single
    number is left would depend on the number of threads."""
    return torch.stack(values).sum(-1, keepdim=True).unbind(0)


def generalized_dice(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    weighting: str = "square",
    smooth: Smooth = 0.0,
) -> Tensor:
    """``(2 Σ w tp + s) / (Σ w (2 tp + fp + fn) + d)`` over the classes: ``[samples, 1]``.

    w is 1 / T² (``"square"``), 1 / T (``"simple"``) or 1 (``"uniform"``) of a class with
    T = tp + fn, without gradient; a class without positives gets the largest weight of the others,
    or 1 if there are none. Sudre 2017.
    """
    powers = {"square": 2, "simple": 1, "uniform": 0}
    if weighting not in powers:
        raise ValueError(f"weighting: expected one of {tuple(powers)}, got {weighting!r}")
    support = (tp + fn).detach()
    present = support != 0
    w = torch.where(present, support, torch.ones_like(support)) ** -powers[weighting]
    most = torch.where(present, w, torch.zeros_like(w)).amax(-1, keepdim=True)
    w = torch.where(present, w, torch.where(most == 0, torch.ones_like(most), most))
    hit, miss = _over_classes(2 * w * tp, w * (fp + fn))
    top, bottom = sides(smooth)
    return ratio(hit + top, hit + miss + bottom)


def multiclass_mcc(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """R_K, Matthews' correlation of several classes, in [-1, 1]: ``[samples, 1]``.

    With P = tp + fp and T = tp + fn of each class, s the elements of a class and Σ over classes::

        R_K = (s Σ tp - Σ P T) / sqrt((s² - Σ P²) (s² - Σ T²))
            = Σ (tp tn - fp fn) / sqrt(Σ P (fn + tn)  Σ T (fp + tn))

    in the second form, whose sums cancel nothing. It is 0 where the root is 0, as scikit-learn has
    it. Gorodkin 2004.
    """
    covariance, predicted, actual = _over_classes(
        tp * tn - fp * fn, (tp + fp) * (fn + tn), (tp + fn) * (fp + tn)
    )
    product = predicted * actual
    undefined = product == 0
    root = torch.where(undefined, torch.ones_like(product), product).sqrt()
    return torch.where(undefined, torch.zeros_like(root), covariance / root)


if not TYPE_CHECKING:  # a type checker would take every name for one of this module

    def __getattr__(name: str) -> NoReturn:
        """Says what a similarity is called here. ``name`` is set and no object, or Python would
        add a guess of its own."""
        meant = OTHER_NAMES.get(name.replace("_", "").lower())
        cure = f"; here it is {meant}" if meant else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{cure}", name=name)
