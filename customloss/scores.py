"""Scores: similarities of prediction and target as functions of the soft confusion sums.

Every score takes ``tp, fp, fn, tn`` of one shape ``[samples, classes]``, one number per group, and
returns the similarity of every group: 1 is perfect. It is ordinary differentiable PyTorch, so a
score of your own is a function like these, for :class:`customloss.ConfusionLoss`. The sums are
float64, so ``1 - score`` keeps its digits. A score that needs further sums declares them with
:func:`uses`.
This module imports nothing of the package.

Where numerator and denominator are both 0, nothing was missed: the ratio is 1, its gradient 0.
``smooth`` is added to both of them, in units of elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

# -log(similarity) is evaluated with a similarity no smaller than this
LOG_FLOOR = 1e-30

# how a similarity becomes a loss, and whether that takes a gamma
LINKS = {
    "complement": False,
    "log": False,
    "focal": True,
    "negative": False,
    "log_cosh": False,
    "log_power": True,
}

# the sums that a score can ask for beside tp, fp, fn and tn, and the arguments it then gets
SUMS = {
    "log_loss": ("log_loss_pos", "log_loss_neg"),
    "squares": ("p2", "t2", "tp2"),
    "distance": ("distance",),
    "focal": ("focal_pos", "focal_neg"),
    "hard": ("hard_tp", "hard_fp", "hard_fn", "hard_tn"),
    "support": ("support",),
}
_S = TypeVar("_S", bound=Callable[..., Any])


def uses(*words: str) -> Callable[[_S], _S]:
    """Declares the further sums of a score, which it then gets as keyword arguments.

    ==============  ==============================================================================
    ``"log_loss"``  ``log_loss_pos`` Σ w t (-log p), ``log_loss_neg`` Σ w (1-t) (-log (1-p)); the
                    second is 0 for ``activation="softmax"``
    ``"squares"``   ``p2`` Σ w p², ``t2`` Σ w t², ``tp2`` Σ w t p²
    ``"distance"``  ``distance`` Σ w |p - t|
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
    """Declares that a score is the ratio ``(A tp + s) / (A tp + s + B fp + C fn)``.

    ``of`` takes the score's parameters except ``smooth``, which is s; it returns A, B and C. Losses
    of such a score take one fused operator: it knows the loss and its gradient in closed form.
    """

    def decorate(score: _S) -> _S:
        _COEFFICIENTS[score] = _Coefficients(of, dict(getattr(score, "__kwdefaults__", None) or {}))
        return score

    return decorate


def coefficients_of(
    score: Callable[..., Any], **parameters: float
) -> tuple[float, float, float, float]:
    """``A, B, C, s`` of a score that declared :func:`coefficients`, at these parameters."""
    of, defaults = _COEFFICIENTS[score]
    values = {**defaults, **parameters}
    smooth = values.pop("smooth")
    tp_weight, fp_weight, fn_weight = of(**values)
    return tp_weight, fp_weight, fn_weight, smooth


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


def linked(similarity: Tensor, link: str = "complement", gamma: float = 1.0) -> Tensor:
    """The loss that ``link`` makes of a similarity s: 0 at s = 1, except for ``"negative"``.

    ``"complement"`` 1 - s; ``"log"`` -log s, with s floored at 1e-30; ``"focal"`` (1 - s)^gamma;
    ``"negative"`` -s; ``"log_cosh"`` log cosh(1 - s), Jadon 2020; ``"log_power"`` (-log s)^gamma,
    Wong 2018. Gradients are finite everywhere, and 0 at s = 1 for the powers.
    """
    if link == "negative":
        return -similarity
    if link in ("log", "log_power"):
        loss = -torch.log(similarity.clamp_min(LOG_FLOOR))
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


@coefficients(lambda fp_weight, fn_weight: (1.0, fp_weight, fn_weight))
def tversky(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: float = 0.0,
) -> Tensor:
    """``(tp + s) / (tp + α fp + β fn + s)``, α = fp_weight, β = fn_weight. Salehi 2017."""
    return ratio(tp + smooth, tp + smooth + fp_weight * fp + fn_weight * fn)


@coefficients(lambda: (1.0, 1.0, 1.0))
def jaccard(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float = 0.0) -> Tensor:
    """``(tp + s) / (tp + fp + fn + s)``: intersection over union. Jaccard 1901."""
    return tversky(tp, fp, fn, tn, fp_weight=1.0, fn_weight=1.0, smooth=smooth)


def _of_beta(beta: float) -> tuple[float, float, float]:
    squared = beta * beta
    if squared == math.inf:
        raise ValueError(f"beta: expected a number whose square is finite, got {beta}")
    return 1.0 + squared, 1.0, squared


@coefficients(_of_beta)
def fbeta(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, beta: float = 1.0, smooth: float = 0.0
) -> Tensor:
    """``((1+β²) tp + s) / ((1+β²) tp + fp + β² fn + s)``; β > 1 favours recall. Jansche 2005."""
    hit = (1 + beta**2) * tp + smooth
    return ratio(hit, hit + fp + beta**2 * fn)


@coefficients(lambda: (2.0, 1.0, 1.0))
def dice(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float = 0.0) -> Tensor:
    """``(2 tp + s) / (2 tp + fp + fn + s)``, which is F1; no squares as in Milletari 2016."""
    return fbeta(tp, fp, fn, tn, smooth=smooth)


@coefficients(lambda: (1.0, 1.0, 0.0))
def precision(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float = 0.0) -> Tensor:
    """``(tp + s) / (tp + fp + s)``."""
    return ratio(tp + smooth, tp + fp + smooth)


@coefficients(lambda: (1.0, 0.0, 1.0))
def recall(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float = 0.0) -> Tensor:
    """``(tp + s) / (tp + fn + s)``, the true positive rate."""
    return ratio(tp + smooth, tp + fn + smooth)


def specificity(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: float = 0.0) -> Tensor:
    """``(tn + s) / (tn + fp + s)``, the true negative rate: the recall of the negatives."""
    return recall(tn, fn, fp, tp, smooth=smooth)


def as_ratio(score: Callable[..., Any]) -> tuple[float, float, float, float] | None:
    """``A, B, C, s`` of a score that declared :func:`coefficients`, or of a ``functools.partial``
    of one; None for any other score, and for parameters that are not plain numbers."""
    given: dict[str, Any] = {}
    while isinstance(score, partial) and not score.args:
        given, score = {**score.keywords, **given}, score.func
    known = isinstance(score, FunctionType) and score in _COEFFICIENTS
    if not known or not all(type(value) in (int, float) for value in given.values()):
        return None
    try:
        tp_weight, fp_weight, fn_weight, smooth = map(float, coefficients_of(score, **given))
    except TypeError:  # not a parameter of this score, which will say so itself when it is called
        return None
    return tp_weight, fp_weight, fn_weight, smooth


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
    smooth: float = 0.0,
) -> Tensor:
    """``(2 tp + s) / (Σp² + Σt² + s)``: V-Net's Dice, 1 at p = t also if soft. Milletari 2016."""
    return ratio(2 * tp + smooth, p2 + t2 + smooth)


def _with_value(of: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``of``."""
    return of + (value - of.detach())


@uses("distance")
def semimetric_tversky(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    distance: Tensor,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: float = 0.0,
) -> Tensor:
    """Tversky of ``tp' = (P + T - A) / 2``, ``fp' = P - tp'``, ``fn' = T - tp'``: 1 at p = t also
    for soft labels, and :func:`tversky` for hard ones. P = Σp, T = Σt, A = Σ |p - t|. Wang 2023.

    For p and t in [0, 1], tp' = Σ min(p, t), fp' = Σ max(p - t, 0) and fn' = Σ max(t - p, 0).
    """
    # tp' >= tp and |fp' - fn'| <= A: what rounding adds beyond is cut off. The gradient is that of
    # the formula: with hard targets, where both are equal, a cut would follow the rounding's sign.
    more = fp + fn - distance
    hit = tp + 0.5 * _with_value(more, more.detach().clamp_min(0)) + smooth
    miss = 0.5 * (fp_weight + fn_weight) * distance  # fp' + fn' = A, without cancellation
    if fp_weight != fn_weight:
        skew, most = fp - fn, distance.detach()
        skew = _with_value(skew, torch.minimum(torch.maximum(skew.detach(), -most), most))
        miss = miss + 0.5 * (fp_weight - fn_weight) * skew
    return ratio(hit, hit + miss)


@uses("distance")
def semimetric_jaccard(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, distance: Tensor, smooth: float = 0.0
) -> Tensor:
    """``(P + T - A + 2s) / (P + T + A + 2s)``: the Jaccard metric, for soft labels. Wang 2023."""
    return semimetric_tversky(
        tp, fp, fn, tn, distance=distance, fp_weight=1.0, fn_weight=1.0, smooth=smooth
    )


@uses("distance")
def semimetric_dice(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, distance: Tensor, smooth: float = 0.0
) -> Tensor:
    """``(P + T - A + s) / (P + T + s)``: the Dice semimetric, for soft labels. Wang 2023."""
    return semimetric_tversky(tp, fp, fn, tn, distance=distance, smooth=smooth / 2)


# ---- means of ratios -----------------------------------------------------------------------------


def fowlkes_mallows(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    recall_weight: float = 0.5,
    smooth: float = 0.0,
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


def generalized_dice(
    tp: Tensor,
    fp: Tensor,
    fn: Tensor,
    tn: Tensor,
    *,
    weighting: str = "square",
    smooth: float = 0.0,
) -> Tensor:
    """``(2 Σ w tp + s) / (Σ w (2 tp + fp + fn) + s)`` over the classes: ``[samples, 1]``.

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
    hit = 2 * (w * tp).sum(-1, keepdim=True) + smooth
    return ratio(hit, hit + (w * (fp + fn)).sum(-1, keepdim=True))
