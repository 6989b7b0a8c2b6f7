"""The maths of one group, in float64: its loss, the gradient by its sums, and what it adds to a
pointwise loss.  The twin of csrc/score.h.
"""

from __future__ import annotations

import enum

import triton
import triton.language as tl

from customloss._spec.arguments import Pointwise
from customloss._spec.words import ABSENT, AVERAGES, FUSED_LINKS
from customloss.reference import Extra

from . import rows

_LOG = tl.constexpr(FUSED_LINKS.index("log"))
_FOCAL = tl.constexpr(FUSED_LINKS.index("focal"))
_NEGATIVE = tl.constexpr(FUSED_LINKS.index("negative"))
_SCORE = tl.constexpr(ABSENT.index("score"))
_SKIP = tl.constexpr(ABSENT.index("skip"))
_PENALIZE = tl.constexpr(ABSENT.index("penalize"))
WEIGHTED = tl.constexpr(AVERAGES.index("weighted"))

_FOCAL_SUMS, _SUPPORT = tl.constexpr(int(Extra.FOCAL)), tl.constexpr(int(Extra.SUPPORT))


class Part(enum.IntFlag):
    """What a kernel is compiled for: the terms of a pointwise loss, and what it is divided by."""

    LOG_POS = enum.auto()
    LOG_NEG = enum.auto()
    FOCAL_POS = enum.auto()
    FOCAL_NEG = enum.auto()
    SUPPORT = enum.auto()  # a term of the divisor
    DIVIDED = enum.auto()  # by sums, and not by 1


_LOG_POS, _LOG_NEG = tl.constexpr(int(Part.LOG_POS)), tl.constexpr(int(Part.LOG_NEG))
_FOCAL_POS, _FOCAL_NEG = tl.constexpr(int(Part.FOCAL_POS)), tl.constexpr(int(Part.FOCAL_NEG))
_BY_SUPPORT, _DIVIDED = tl.constexpr(int(Part.SUPPORT)), tl.constexpr(int(Part.DIVIDED))


def pointwise_parts(pointwise: Pointwise, extra: int) -> int:
    """The flags of a loss, 0 if there is none; a factor whose sum is not among ``extra`` adds
    nothing."""
    parts = 0
    for name, of, part in (
        ("log_pos", Extra.LOG_LOSS, Part.LOG_POS),
        ("log_neg", Extra.LOG_LOSS, Part.LOG_NEG),
        ("focal_pos", Extra.FOCAL, Part.FOCAL_POS),
        ("focal_neg", Extra.FOCAL, Part.FOCAL_NEG),
    ):
        parts |= int(part) if extra & of and getattr(pointwise, name) != 0 else 0
    if not parts:
        return 0
    parts |= int(Part.SUPPORT) if extra & Extra.SUPPORT and pointwise.support != 0 else 0
    divided = any((pointwise.positives, pointwise.negatives, pointwise.support))
    return parts | int(Part.DIVIDED) * divided


# ---- the score -------------------------------------------------------------------------------


@triton.jit
def _log1p(y):
    # with u the rounded 1 + y, log(1 + y) is log(u) y / (u - 1): the rounding of u cancels
    u = 1.0 + y
    exact = (u == 1.0) | (y > 1e15)
    ratio = y / tl.where(exact, 1.0, u - 1.0)
    return tl.where(u == 1.0, y, tl.where(exact, tl.log(u), tl.log(u) * ratio))


@triton.jit
def _power(base, exponent):
    zero = base == 0.0
    return tl.where(zero, 0.0, tl.exp(exponent * tl.log(tl.where(zero, 1.0, base))))


@triton.jit
def group_loss(
    tp, fp, fn, tn,
    tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr,
):  # fmt: skip
    """The loss of a group, its gradient by the four sums, whether it counts, and its weight."""
    true_hit = tp_weight * tp
    wrong = fp_weight * fp + fn_weight * fn
    hit = true_hit + smooth
    miss = wrong + (smooth_denominator - smooth)
    whole = true_hit + wrong + smooth_denominator
    empty = whole == 0.0
    whole = tl.where(empty, 1.0, whole)
    similarity = hit / whole
    g_tn = tp * 0.0
    if LINK == _LOG:
        low = similarity < log_floor
        # -log(floor) is log1p((1 - floor) / floor): a second logarithm would spill registers
        rest = tl.where(low, 1.0 - log_floor, miss) / tl.where(low, log_floor, hit)
        value = tl.where(empty, 0.0, _log1p(rest))
        g_tp = tl.where(low, 0.0, -rest * tp_weight / whole)
        g_fp = tl.where(low, 0.0, fp_weight / whole)
        g_fn = tl.where(low, 0.0, fn_weight / whole)
    else:
        complement = miss / whole
        value = complement
        slope = tl.full(complement.shape, 1.0, tl.float64)
        if LINK == _NEGATIVE:
            value = tl.where(empty, -1.0, -similarity)
        if LINK == _FOCAL:
            plain = gamma == 1.0
            value = tl.where(plain, complement, _power(complement, gamma))
            # a perfect group gets slope 0; gamma < 1 would make its slope infinite
            slope = tl.where(plain, 1.0, gamma * _power(complement, gamma - 1.0))
        g_tp = -(slope * complement) * tp_weight / whole
        g_fp = slope * (similarity * fp_weight / whole)
        g_fn = slope * (similarity * fn_weight / whole)
    g_tp = tl.where(empty, 0.0, g_tp)
    g_fp = tl.where(empty, 0.0, g_fp)
    g_fn = tl.where(empty, 0.0, g_fn)

    support = tp + fn
    missing = (support == 0.0) & (fp == fp)  # a NaN is no absent class and has to reach the loss
    counted = missing | True
    if ABSENT == _SKIP:
        counted = ~missing
        value = tl.where(missing, 0.0, value)
    if ABSENT == _PENALIZE:
        negatives = fp + tn
        none = negatives == 0.0
        safe = tl.where(none, 1.0, negatives)
        rate = tl.where(none, 0.0, fp / safe)
        value = tl.where(missing, rate, value)
        g_fp = tl.where(missing, tl.where(none, 0.0, (tn / safe) / safe), g_fp)
        g_tn = tl.where(missing, -rate / safe, 0.0)
    if ABSENT != _SCORE:
        g_tp = tl.where(missing, 0.0, g_tp)
        g_fn = tl.where(missing, 0.0, g_fn)
        if ABSENT == _SKIP:
            g_fp = tl.where(missing, 0.0, g_fp)
    weight = tl.where(counted, 1.0, tp * 0.0)
    if AVERAGE == WEIGHTED:
        weight = tl.where(counted, support, 0.0)
    return value, g_tp, g_fp, g_fn, g_tn, counted, weight


# ---- class weights and the pointwise loss ----------------------------------------------------


@triton.jit
def class_weights(weights, column, inside):
    """The class weight of every group, 1 if there are none."""
    v = tl.full(column.shape, 1.0, tl.float64)
    if weights is not None:
        v = tl.load(weights + column, mask=inside, other=0.0)
    return v


@triton.jit
def pointwise_weight(weights, column, inside, width):
    """The class weight in the pointwise loss, which is the second row of the weights."""
    return class_weights(weights if weights is None else weights + width, column, inside)


@triton.jit
def row_of(sums, plane, group, ROW: tl.constexpr):
    """Pointers to the groups in a row.

    `at` steps because ROW * plane may not fit in 32 bits.
    """
    at = sums + group
    for _ in tl.static_range(ROW):
        at += plane
    return at


@triton.jit
def group_lost(
    sums, plane, group, column, inside, width, class_weight, tp, fp, fn, tn, factors,
    POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """What a group adds to the numerator and the denominator of the pointwise loss; ``factors``
    are those of ``Pointwise`` after the weight of the score."""
    F: tl.constexpr = rows.row_of(EXTRA, _FOCAL_SUMS)
    S: tl.constexpr = rows.row_of(EXTRA, _SUPPORT)
    log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support = factors
    numerator = tl.zeros(tp.shape, tl.float64)
    if _LOG_POS & POINTWISE:
        numerator += log_pos * tl.load(row_of(sums, plane, group, 4), mask=inside, other=0.0)
    if _LOG_NEG & POINTWISE:
        numerator += log_neg * tl.load(row_of(sums, plane, group, 5), mask=inside, other=0.0)
    if _FOCAL_POS & POINTWISE:
        numerator += focal_pos * tl.load(row_of(sums, plane, group, F), mask=inside, other=0.0)
    if _FOCAL_NEG & POINTWISE:
        numerator += focal_neg * tl.load(row_of(sums, plane, group, F + 1), mask=inside, other=0.0)
    w = pointwise_weight(class_weight, column, inside, width)
    divisor = positives * (tp + fn) + negatives * (fp + tn)
    if _BY_SUPPORT & POINTWISE:
        divisor += support * tl.load(row_of(sums, plane, group, S), mask=inside, other=0.0)
    # a group of weight 0 adds nothing, not even a NaN
    return tl.where(w == 0.0, 0.0, w * numerator), tl.where(w == 0.0, 0.0, w * divisor)


@triton.jit
def whole_divisor(divisor, POINTWISE: tl.constexpr):
    """The denominator of the pointwise loss from the sum over its groups."""
    if not (_DIVIDED & POINTWISE):
        divisor = divisor * 0.0 + 1.0
    return divisor


@triton.jit
def store_lost_grads(
    grads, plane, group, inside, share, count, factors,
    POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Stores the gradient by the rows after the first four: 0 for those not in the pointwise
    loss. ``share`` is its derivative by the numerator, ``count`` that by the denominator."""
    F: tl.constexpr = rows.row_of(EXTRA, _FOCAL_SUMS)
    S: tl.constexpr = rows.row_of(EXTRA, _SUPPORT)
    log_pos, log_neg, focal_pos, focal_neg, _, _, support = factors
    ROWS: tl.constexpr = rows.rows_of(EXTRA)
    at = row_of(grads, plane, group, 4)
    for row in tl.static_range(4, ROWS):
        g = tl.zeros(group.shape, tl.float64)
        if row == 4 and (_LOG_POS & POINTWISE):
            g += log_pos * share
        if row == 5 and (_LOG_NEG & POINTWISE):
            g += log_neg * share
        if row == F and (_FOCAL_POS & POINTWISE):
            g += focal_pos * share
        if row == F + 1 and (_FOCAL_NEG & POINTWISE):
            g += focal_neg * share
        if row == S and (_BY_SUPPORT & POINTWISE):
            g += support * count
        tl.store(at, g, mask=inside)
        at += plane


# ---- sums of groups --------------------------------------------------------------------------


@triton.jit
def load_sums(sums, plane, group, inside):
    """Four numbers per group, `plane` apart.

    `at` steps because 3 * plane may not fit in 32 bits.
    """
    at = sums + group
    tp = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    at += plane
    fp = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    at += plane
    fn = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    at += plane
    tn = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    return tp, fp, fn, tn


@triton.jit
def store_sums(sums, plane, group, inside, tp, fp, fn, tn):
    at = sums + group
    tl.store(at, tp, mask=inside)
    at += plane
    tl.store(at, fp, mask=inside)
    at += plane
    tl.store(at, fn, mask=inside)
    at += plane
    tl.store(at, tn, mask=inside)
