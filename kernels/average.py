"""What the kernels of score.py share: from the groups of a tile to averages and gradients.

Groups are seen as ``rows`` x ``width``: an average runs over the width (the classes of a sample),
the reduction over the rows.  ``average="none"`` makes every group a row of its own.  SUMMED says
that the caller passes finished sums, which have no chunks.  Only then may the caller also weigh
classes and ask for a POINTWISE loss beside the score; without SUMMED none of that is compiled.
"""

from __future__ import annotations

import sys

import triton
import triton.language as tl

from customloss._spec.words import REDUCTIONS

from .group import (
    WEIGHTED,
    class_weights,
    group_loss,
    load_sums,
    pointwise_weight,
    store_lost_grads,
    store_sums,
)

MEAN = tl.constexpr(REDUCTIONS.index("mean"))
NONE = tl.constexpr(REDUCTIONS.index("none"))
_LARGEST = tl.constexpr(sys.float_info.max)


@triton.jit
def add_partials(
    partials, plane, chunks, groups, group, inside,
    TN: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The four sums of every group; its chunks are added in a fixed order."""
    tp = tl.zeros([GROUPS, PARTS], tl.float64)
    fp = tl.zeros([GROUPS, PARTS], tl.float64)
    fn = tl.zeros([GROUPS, PARTS], tl.float64)
    tn = tl.zeros([GROUPS, PARTS], tl.float64)
    for first in range(0, chunks, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = inside[:, None] & (part < chunks)[None, :]
        at = partials + part.to(tl.int64)[None, :] * groups + group[:, None]
        tp += tl.load(at, mask=mask, other=0.0).to(tl.float64)
        at += plane
        fp += tl.load(at, mask=mask, other=0.0).to(tl.float64)
        at += plane
        fn += tl.load(at, mask=mask, other=0.0).to(tl.float64)
        if TN:
            at += plane
            tn += tl.load(at, mask=mask, other=0.0).to(tl.float64)
    return tl.sum(tp, 1), tl.sum(fp, 1), tl.sum(fn, 1), tl.sum(tn, 1)


@triton.jit
def sums_of(
    partials, plane, chunks, groups, group, inside,
    TN: tl.constexpr, SUMMED: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    if SUMMED:
        sums = load_sums(partials, plane, group, inside)
    else:
        sums = add_partials(partials, plane, chunks, groups, group, inside, TN, GROUPS, PARTS)
    return sums


@triton.jit
def weighed_loss(
    tp, fp, fn, tn, inside, column, class_weight,
    tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr,
):  # fmt: skip
    """Like group_loss, with class weights: a group whose class has weight 0 does not count."""
    value, g_tp, g_fp, g_fn, g_tn, counted, weight = group_loss(
        tp, fp, fn, tn, tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma,
        log_floor, LINK, ABSENT, AVERAGE,
    )  # fmt: skip
    v = class_weights(class_weight, column, inside)
    if class_weight is not None:
        counted = counted & (v != 0.0)
        weight = tl.where(counted, v * weight, 0.0)
    return value, g_tp, g_fp, g_fn, g_tn, counted, tl.where(inside, weight, 0.0), v


@triton.jit
def of_rows(values, R: tl.constexpr, W: tl.constexpr):
    return tl.sum(tl.reshape(values, [R, W]), 1)


@triton.jit
def to_groups(of_rows, R: tl.constexpr, W: tl.constexpr):
    return tl.reshape(tl.broadcast_to(of_rows[:, None], [R, W]), [R * W])


@triton.jit
def ratio(a, b):
    """a / b, and 0 where b is 0: a mean over nothing is 0."""
    nothing = b == 0.0
    return tl.where(nothing, 0.0, a / tl.where(nothing, 1.0, b))


@triton.jit
def lost_sums(numerator, divisor, REDUCTION: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """Numerator and denominator of the pointwise loss: of every row (NONE), or of all together."""
    if REDUCTION == NONE:
        sums = of_rows(numerator, R, W), of_rows(divisor, R, W)
    else:
        sums = tl.sum(numerator, 0)[None], tl.sum(divisor, 0)[None]
    return sums


@triton.jit
def compound(
    score, numerator, divisor, score_weight, SUMMED: tl.constexpr, POINTWISE: tl.constexpr
):
    """The loss from an averaged score and the pointwise sums."""
    if SUMMED:
        score = tl.where(score_weight == 0.0, 0.0, score_weight * score)
    if POINTWISE:
        score += ratio(numerator, divisor)
    return score


@triton.jit
def _score_grads(
    value, g_tp, g_fp, g_fn, g_tn, counted, weight, v, mean, total_weight, outer,
    AVERAGE: tl.constexpr,
):  # fmt: skip
    """d(score)/d(sums) of every group, given the mean and the weight of its row."""
    alive = counted & (total_weight != 0.0)
    safe = tl.where(total_weight == 0.0, 1.0, total_weight)
    inner = tl.where(alive, outer * weight / safe, 0.0)
    shift = inner * 0.0
    if AVERAGE == WEIGHTED:
        # the weight is the support tp + fn, which has a gradient too
        shift = tl.where(alive, outer * v * (value - mean) / safe, 0.0)
    g_tp = tl.where(alive, g_tp * inner + shift, 0.0)
    g_fp = tl.where(alive, g_fp * inner, 0.0)
    g_fn = tl.where(alive, g_fn * inner + shift, 0.0)
    g_tn = tl.where(alive, g_tn * inner, 0.0)
    return g_tp, g_fp, g_fn, g_tn


@triton.jit
def store_grads(
    coefficients, groups, group, column, inside, width, class_weight,
    value, g_tp, g_fp, g_fn, g_tn, counted, weight, v, mean, total, outer, numerator, divisor,
    score_weight, factors,
    AVERAGE: tl.constexpr, REDUCTION: tl.constexpr, SUMMED: tl.constexpr,
    POINTWISE: tl.constexpr, EXTRA: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Stores d(loss)/d(sums), given the mean, the weight and the pointwise sums of every row."""
    if SUMMED:
        counted = counted & (score_weight != 0.0)
        outer = outer * score_weight
    g_tp, g_fp, g_fn, g_tn = _score_grads(
        value, g_tp, g_fp, g_fn, g_tn, counted, weight, v,
        to_groups(mean, R, W), to_groups(total, R, W), outer, AVERAGE,
    )  # fmt: skip
    share = tl.zeros([R * W], tl.float64)
    count = share
    if POINTWISE:
        # An infinite loss does not change with the denominator. Infinity times the share would make
        # a NaN of every gradient by the input, which takes differences of these rows.
        pointwise = tl.where(numerator > _LARGEST, 0.0, ratio(numerator, divisor))
        share = ratio(1.0, divisor)
        if REDUCTION == NONE:
            pointwise = to_groups(pointwise, R, W)
            share = to_groups(share, R, W)
        share = share * pointwise_weight(class_weight, column, inside, width)
        count = tl.where(share == 0.0, 0.0, -share * pointwise)
        _, _, _, _, positives, negatives, _ = factors
        g_tp += positives * count
        g_fp += negatives * count
        g_fn += positives * count
        g_tn += negatives * count
    store_sums(coefficients, groups, group, inside, g_tp, g_fp, g_fn, g_tn)
    store_lost_grads(coefficients, groups, group, inside, share, count, factors, POINTWISE, EXTRA)


@triton.jit
def tile_groups(row_block, width_block, rows, width, R: tl.constexpr, W: tl.constexpr):
    """The flat index and column of the groups of a tile of R rows x W, and which groups exist."""
    lane = tl.arange(0, R * W)
    row = row_block.to(tl.int64) * R + lane // W
    column = width_block.to(tl.int64) * W + lane % W
    return row * width + column, column, (row < rows) & (column < width)
