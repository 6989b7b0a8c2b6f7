"""The maths of one group, in float64: its loss, the gradient by its sums, and what it adds to a
pointwise loss.  The twin of csrc/score.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from customloss._spec.arguments import Pointwise
from customloss._spec.words import ABSENT, AVERAGES, LINKS
from customloss.reference import Extra

from . import rows

_LOG = tl.constexpr(LINKS.index("log"))
_FOCAL = tl.constexpr(LINKS.index("focal"))
_NEGATIVE = tl.constexpr(LINKS.index("negative"))
_SCORE = tl.constexpr(ABSENT.index("score"))
_SKIP = tl.constexpr(ABSENT.index("skip"))
_PENALIZE = tl.constexpr(ABSENT.index("penalize"))
WEIGHTED = tl.constexpr(AVERAGES.index("weighted"))

_FOCAL_SUM = tl.constexpr(int(Extra.FOCAL))

# flags: the terms of a pointwise loss that a kernel is compiled for
_LOG_POS, _LOG_NEG, _FOCUSED = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)


def pointwise_parts(pointwise: Pointwise, extra: int) -> int:
    """Flags of the terms to add up; a factor whose sum is not among ``extra`` adds nothing."""
    parts = 0
    if extra & Extra.LOG_LOSS:
        parts += (pointwise.log_pos != 0) + 2 * (pointwise.log_neg != 0)
    if extra & Extra.FOCAL and pointwise.focal != 0:
        parts += 4
    return parts


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
    tp, fp, fn, tn, tp_weight, fp_weight, fn_weight, smooth, gamma,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr,
):  # fmt: skip
    """The loss of a group, its gradient by the four sums, whether it counts, and its weight."""
    hit = tp_weight * tp + smooth
    miss = fp_weight * fp + fn_weight * fn
    empty = (hit + miss) == 0.0
    whole = tl.where(empty, 1.0, hit + miss)
    g_tn = tp * 0.0
    if LINK == _LOG:
        low = hit < 1e-30
        floored = tl.where(low, 1e-30, hit)
        value = _log1p(miss / floored)
        g_tp = tl.where(low, 0.0, -tp_weight * (miss / floored) / whole)
        g_fp = fp_weight / (floored + miss)
        g_fn = fn_weight / (floored + miss)
    else:
        complement, similarity = miss / whole, hit / whole
        value = complement
        slope = tl.full(complement.shape, 1.0, tl.float64)
        if LINK == _NEGATIVE:
            value = tl.where(empty, -1.0, -similarity)
        if LINK == _FOCAL:
            plain = gamma == 1.0
            value = tl.where(plain, complement, _power(complement, gamma))
            # a perfect group gets slope 0; gamma < 1 would make its slope infinite
            slope = tl.where(plain, 1.0, gamma * _power(complement, gamma - 1.0))
        g_tp = -slope * tp_weight * complement / whole
        g_fp = slope * fp_weight * similarity / whole
        g_fn = slope * fn_weight * similarity / whole
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
    sums, plane, group, column, inside, width, class_weight, tp, fp, fn, tn,
    log_pos, log_neg, focal, positives, negatives,
    POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """What a group adds to the numerator and the denominator of the pointwise loss."""
    F: tl.constexpr = rows.row_of(EXTRA, _FOCAL_SUM)
    lost = tl.zeros(tp.shape, tl.float64)
    if _LOG_POS & POINTWISE:
        lost += log_pos * tl.load(row_of(sums, plane, group, 4), mask=inside, other=0.0)
    if _LOG_NEG & POINTWISE:
        lost += log_neg * tl.load(row_of(sums, plane, group, 5), mask=inside, other=0.0)
    if _FOCUSED & POINTWISE:
        lost += focal * tl.load(row_of(sums, plane, group, F), mask=inside, other=0.0)
    w = pointwise_weight(class_weight, column, inside, width)
    counted = positives * (tp + fn) + negatives * (fp + tn)
    # a group of weight 0 adds nothing, not even a NaN
    return tl.where(w == 0.0, 0.0, w * lost), tl.where(w == 0.0, 0.0, w * counted)


@triton.jit
def store_lost_grads(
    grads, plane, group, inside, share, log_pos, log_neg, focal,
    POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Stores the gradient by the rows after the first four: 0 for those not in the numerator."""
    F: tl.constexpr = rows.row_of(EXTRA, _FOCAL_SUM)
    ROWS: tl.constexpr = rows.rows_of(EXTRA)
    at = row_of(grads, plane, group, 4)
    for row in tl.static_range(4, ROWS):
        g = tl.zeros(group.shape, tl.float64)
        if row == 4 and (_LOG_POS & POINTWISE):
            g += log_pos * share
        if row == 5 and (_LOG_NEG & POINTWISE):
            g += log_neg * share
        if row == F and (_FOCUSED & POINTWISE):
            g += focal * share
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
