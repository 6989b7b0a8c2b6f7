"""The loss and its gradient by the sums, in float64: the twin of csrc/average.h, and of finish.cuh
and score.cuh in csrc/cuda.

It starts from the partial sums that the pass over the data left, or (SUMMED) from finished sums.
Class weights and a pointwise loss beside the score come only with the latter.

Up to ``ONE_PROGRAM`` groups take one launch; more of them take two, because every program of the
last one needs denominators that depend on all the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from customloss._spec.arguments import SCORE_ALONE, GroupSums, Pointwise, Scoring
from customloss._spec.words import AVERAGES, REDUCTIONS

from .average import (
    MEAN,
    NONE,
    compound,
    lost_sums,
    of_rows,
    ratio,
    store_grads,
    sums_of,
    tile_groups,
    weighed_loss,
)
from .fold import few
from .group import group_lost, load_sums, pointwise_parts, store_sums, whole_divisor
from .launch import on
from .layout import ceil_div, power_of_2

ONE_PROGRAM = 1024  # groups that one program scores
GROUP_TILE = 512  # groups of a program where there are more
LANES = 1024  # partials, or entries, that a program reads at once

# with eight warps a thread has four groups, which is what its registers hold in float64
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}


# ---- kernels ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["plane", "chunks", "groups", "rows", "width"])
def score_kernel(
    partials, plane, chunks, groups, rows, width, coefficients, loss, class_weight,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    smooth_denominator: tl.float64, gamma: tl.float64, log_floor: tl.float64,
    score_weight: tl.float64, log_pos: tl.float64, log_neg: tl.float64, focal_pos: tl.float64,
    focal_neg: tl.float64, positives: tl.float64, negatives: tl.float64, support: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr, REDUCTION: tl.constexpr,
    TN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr,
    SUMMED: tl.constexpr, POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of every group and scores them, where all groups fit a tile.

    Maths:  loss = reduce over rows of average over width of link(sums), and d(loss)/d(sums);
            SUMMED: score_weight times that + Σ w P / Σ w Q (POINTWISE), per row or over all, with
            P = log_pos LP + log_neg LN + focal_pos FP + focal_neg FN and
            Q = positives (tp + fn) + negatives (fp + tn) + support S, or 1 if these are all 0
    Launch: one program; it holds all groups in one tile of R x W
    Moves:  reads 3 or 4 x chunks x groups floats, writes 4 x groups doubles and the loss; SUMMED:
            reads the sums that the loss needs, writes as many coefficients as there are sums
    """
    factors = (log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support)
    zero = tl.program_id(0)
    group, column, inside = tile_groups(zero, zero, rows, width, R, W)
    tp, fp, fn, tn = sums_of(
        partials, plane, chunks, groups, group, inside, TN, SUMMED, R * W, PARTS
    )
    value, g_tp, g_fp, g_fn, g_tn, counted, weight, v = weighed_loss(
        tp, fp, fn, tn, inside, column, class_weight,
        tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor,
        LINK, ABSENT, AVERAGE,
    )  # fmt: skip
    total = of_rows(weight, R, W)
    mean = ratio(of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W), total)
    outer = tl.full([1], 1.0, tl.float64)
    numerator, divisor = outer, outer
    if POINTWISE:
        numerator, divisor = group_lost(
            partials, plane, group, column, inside, width, class_weight, tp, fp, fn, tn, factors,
            POINTWISE, EXTRA,
        )  # fmt: skip
        numerator, divisor = lost_sums(numerator, divisor, REDUCTION, R, W)
        divisor = whole_divisor(divisor, POINTWISE)
    if REDUCTION == NONE:
        row = tl.arange(0, R)
        result = compound(mean, numerator, divisor, score_weight, SUMMED, POINTWISE)
        tl.store(loss + row, result, mask=row < rows)
    else:
        if REDUCTION == MEAN:
            outer = ratio(outer, tl.sum(tl.where(total != 0.0, outer, 0.0), 0)[None])
        result = tl.sum(mean, 0)[None] * outer
        result = compound(result, numerator, divisor, score_weight, SUMMED, POINTWISE)
        tl.store(loss + tl.arange(0, 1), result)
    store_grads(
        coefficients, groups, group, column, inside, width, class_weight,
        value, g_tp, g_fp, g_fn, g_tn, counted, weight, v, mean, total, outer, numerator, divisor,
        score_weight, factors,
        AVERAGE, REDUCTION, SUMMED, POINTWISE, EXTRA, R, W,
    )  # fmt: skip


@triton.jit(do_not_specialize=["plane", "chunks", "groups", "rows", "width", "width_blocks"])
def entry_kernel(
    partials, plane, chunks, groups, rows, width, sums, entries, width_blocks, class_weight,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    smooth_denominator: tl.float64, gamma: tl.float64, log_floor: tl.float64,
    log_pos: tl.float64, log_neg: tl.float64, focal_pos: tl.float64,
    focal_neg: tl.float64, positives: tl.float64, negatives: tl.float64, support: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr,
    TN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
    SUMMED: tl.constexpr, POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of every group, and stores what its tile adds to the averages.

    Maths:  entries = (Σ means, number of means) of the tile's rows, or, for rows wider than a
            tile (WIDE), the share (Σ w loss, Σ w) of this stretch of its row; and (Σ w P, Σ w Q)
            of a pointwise loss
    Launch: one program per tile of R rows x W of their groups
    Moves:  reads 3 or 4 x chunks x groups floats, writes 4 x groups doubles, 2 per program; SUMMED:
            reads the sums that the loss needs, writes 2 or 4 doubles per program
    """
    factors = (log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support)
    pid = tl.program_id(0)
    group, column, inside = tile_groups(pid // width_blocks, pid % width_blocks, rows, width, R, W)
    tp, fp, fn, tn = sums_of(
        partials, plane, chunks, groups, group, inside, TN, SUMMED, R * W, PARTS
    )
    if not SUMMED:
        store_sums(sums, groups, group, inside, tp, fp, fn, tn)
    value, _, _, _, _, _, weight, _ = weighed_loss(
        tp, fp, fn, tn, inside, column, class_weight,
        tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor,
        LINK, ABSENT, AVERAGE,
    )  # fmt: skip
    total = of_rows(weight, R, W)
    first = of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W)
    if not WIDE:
        first = ratio(first, total)
        total = tl.where(total != 0.0, 1.0, total)
    programs = tl.num_programs(0)
    at = entries + pid
    tl.store(at, tl.sum(first, 0))
    at += programs
    tl.store(at, tl.sum(total, 0))
    if POINTWISE:
        numerator, divisor = group_lost(
            partials, plane, group, column, inside, width, class_weight, tp, fp, fn, tn, factors,
            POINTWISE, EXTRA,
        )  # fmt: skip
        at += programs
        tl.store(at, tl.sum(numerator, 0))
        at += programs
        tl.store(at, tl.sum(divisor, 0))


@triton.jit
def _own_entries(entries, in_row):
    """The entry of a row that is wider than a tile: the sum over its stretches."""
    return tl.sum(tl.load(entries, mask=in_row, other=0.0), 0)[None]


@triton.jit
def _all_entries(
    entries, programs, width_blocks,
    WIDE: tl.constexpr, POINTWISE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Over all rows: the sum of the means, their number, and the pointwise sums, each as [1]."""
    part = tl.arange(0, COLS)
    means = tl.zeros([ROWS], tl.float64)
    count = tl.zeros([ROWS], tl.float64)
    numerator = tl.zeros([ROWS], tl.float64)
    divisor = tl.zeros([ROWS], tl.float64)
    # a row of this walk is one entry, or the entries of one wide row
    for first in range(0, programs // width_blocks, ROWS):
        entry_row = first + tl.arange(0, ROWS)
        at = entries + entry_row[:, None] * width_blocks + part[None, :]
        mask = (entry_row < programs // width_blocks)[:, None] & (part < width_blocks)[None, :]
        a = tl.sum(tl.load(at, mask=mask, other=0.0), 1)
        at += programs
        b = tl.sum(tl.load(at, mask=mask, other=0.0), 1)
        if WIDE:
            means += ratio(a, b)
            count += tl.where(b != 0.0, 1.0, b)
        else:
            means += a
            count += b
        if POINTWISE:
            at += programs
            numerator += tl.sum(tl.load(at, mask=mask, other=0.0), 1)
            at += programs
            divisor += tl.sum(tl.load(at, mask=mask, other=0.0), 1)
    return (
        tl.sum(means, 0)[None], tl.sum(count, 0)[None], tl.sum(numerator, 0)[None],
        tl.sum(divisor, 0)[None],
    )  # fmt: skip


@triton.jit(do_not_specialize=["groups", "rows", "width", "width_blocks"])
def finish_kernel(
    sums, entries, groups, rows, width, width_blocks, coefficients, loss, class_weight,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    smooth_denominator: tl.float64, gamma: tl.float64, log_floor: tl.float64,
    score_weight: tl.float64, log_pos: tl.float64, log_neg: tl.float64, focal_pos: tl.float64,
    focal_neg: tl.float64, positives: tl.float64, negatives: tl.float64, support: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr, REDUCTION: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    SUMMED: tl.constexpr, POINTWISE: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Scores the groups of a tile, now that every tile's entry is known.

    Maths:  as score_kernel
    Launch: as entry_kernel; every program adds up all entries, in the same order
    Moves:  reads 4 x groups doubles, and 2 or 4 x programs doubles per program; writes 4 x groups
            doubles and the loss; SUMMED: writes as many coefficients as there are sums
    """
    factors = (log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support)
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    row_block = pid // width_blocks
    group, column, inside = tile_groups(row_block, pid % width_blocks, rows, width, R, W)
    tp, fp, fn, tn = load_sums(sums, groups, group, inside)
    value, g_tp, g_fp, g_fn, g_tn, counted, weight, v = weighed_loss(
        tp, fp, fn, tn, inside, column, class_weight,
        tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor,
        LINK, ABSENT, AVERAGE,
    )  # fmt: skip
    part = tl.arange(0, COLS)
    entry = entries + row_block * width_blocks + part
    in_row = part < width_blocks
    if WIDE:
        total = _own_entries(entry + programs, in_row)
        mean = ratio(_own_entries(entry, in_row), total)
    else:
        total = of_rows(weight, R, W)
        mean = ratio(of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W), total)

    outer = tl.full([1], 1.0, tl.float64)
    numerator, divisor = outer, outer
    if REDUCTION == NONE:
        if POINTWISE and WIDE:
            entry += programs
            numerator = _own_entries(entry + programs, in_row)
            entry += programs
            divisor = _own_entries(entry + programs, in_row)
        elif POINTWISE:
            numerator, divisor = group_lost(
                sums, groups, group, column, inside, width, class_weight, tp, fp, fn, tn, factors,
                POINTWISE, EXTRA,
            )  # fmt: skip
            numerator, divisor = lost_sums(numerator, divisor, REDUCTION, R, W)
        divisor = whole_divisor(divisor, POINTWISE)
        row = row_block.to(tl.int64) * R + tl.arange(0, R)
        result = compound(mean, numerator, divisor, score_weight, SUMMED, POINTWISE)
        # the first of the programs that share a row writes it
        tl.store(loss + row, result, mask=row + (pid % width_blocks).to(tl.int64) * rows < rows)
    else:
        means, count, numerator, divisor = _all_entries(
            entries, programs, width_blocks, WIDE, POINTWISE, ROWS, COLS
        )
        divisor = whole_divisor(divisor, POINTWISE)
        if REDUCTION == MEAN:
            outer = ratio(outer, count)
        lane = tl.arange(0, 1)
        result = compound(means * outer, numerator, divisor, score_weight, SUMMED, POINTWISE)
        tl.store(loss + lane, result, mask=lane + pid == 0)
    store_grads(
        coefficients, groups, group, column, inside, width, class_weight,
        value, g_tp, g_fp, g_fn, g_tn, counted, weight, v, mean, total, outer, numerator, divisor,
        score_weight, factors,
        AVERAGE, REDUCTION, SUMMED, POINTWISE, EXTRA, R, W,
    )  # fmt: skip


# ---- launches --------------------------------------------------------------------------------


def loss_shape(scoring: Scoring, samples: int | None, classes: int | None) -> list[int]:
    """The shape of a loss; ``samples`` or ``classes`` is None where groups do not tell it apart."""
    if scoring.reduction != REDUCTIONS.index("none"):
        return []
    if scoring.average != AVERAGES.index("none"):
        classes = None
    return [size for size in (samples, classes) if size is not None]


def _similarity(scoring: Scoring) -> tuple[float, ...]:
    """The numbers of a score, in the order of the kernels; its words are compiled into these."""
    return (
        scoring.tp_weight, scoring.fp_weight, scoring.fn_weight, scoring.smooth,
        scoring.smooth_denominator, scoring.gamma, scoring.log_floor,
    )  # fmt: skip


def _factors(pointwise: Pointwise) -> tuple[float, ...]:
    """The factors of a pointwise loss in the order of the kernels."""
    return tuple(pointwise)[1:]


def score(
    partials: Tensor,
    samples: int,
    classes: int,
    scoring: Scoring,
    loss: Tensor,
) -> Tensor:
    """Writes ``loss`` from partials ``[3 or 4, chunks, groups]``, and returns d(loss)/d(sums)."""
    coefficients = partials.new_empty((4, samples, classes), dtype=torch.float64)
    constants = {"TN": partials.shape[0] == 4, "SUMMED": False, "POINTWISE": 0, "EXTRA": 0}
    _finish(partials, coefficients, scoring, SCORE_ALONE, None, loss, constants)
    return coefficients


def sums_score(
    group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
) -> tuple[Tensor, Tensor]:
    """See ``customloss::sums_score``."""
    sums, class_weight, extra, per_sample, wide = group_sums
    parts = pointwise_parts(pointwise, extra)
    if scoring.average == AVERAGES.index("none") and (class_weight is not None or parts):
        raise RuntimeError(
            "sums_score: an average of none has no place for class weights or a pointwise loss"
        )
    _, samples, classes = sums.shape
    shape = loss_shape(scoring, samples if per_sample else None, classes)
    loss = sums.new_empty(shape, dtype=torch.float64 if wide else torch.float32)
    coefficients = torch.empty_like(sums)
    constants = {"TN": True, "SUMMED": True, "POINTWISE": parts, "EXTRA": extra}
    with on(sums):
        _finish(sums, coefficients, scoring, pointwise, class_weight, loss, constants)
    return loss, coefficients


def _finish(
    partials: Tensor,
    coefficients: Tensor,
    scoring: Scoring,
    pointwise: Pointwise,
    class_weight: Tensor | None,
    loss: Tensor,
    constants: dict[str, Any],
) -> None:
    """Writes ``coefficients`` and ``loss``; with SUMMED, ``partials`` are finished sums."""
    samples, classes = coefficients.shape[1:]
    groups = samples * classes
    alone = scoring.average == AVERAGES.index("none")
    rows, width = (groups, 1) if alone else (samples, classes)
    tile_rows, tile_width = power_of_2(rows), power_of_2(width)
    one_program = tile_rows * tile_width <= ONE_PROGRAM
    if not one_program:
        tile_width = min(tile_width, GROUP_TILE)
        tile_rows = min(tile_rows, GROUP_TILE // tile_width)
    summed = constants["SUMMED"]
    if not summed:
        partials = few(partials, tile_rows * tile_width)
    chunks = 1 if summed else partials.shape[1]
    has_tn = constants.pop("TN")
    counts = (partials, chunks * groups, chunks, groups, rows, width)
    options = {
        "LINK": scoring.link, "ABSENT": scoring.absent, "AVERAGE": scoring.average,
        "R": tile_rows, "W": tile_width, **constants, **OPTIONS,
    }  # fmt: skip
    parts = _parts(chunks, tile_rows * tile_width)
    similarity, factors = _similarity(scoring), _factors(pointwise)
    if one_program:
        score_kernel[(1,)](
            *counts, coefficients, loss, class_weight,
            *similarity, pointwise.score_weight, *factors,
            REDUCTION=scoring.reduction, TN=has_tn, PARTS=parts, **options,
        )  # fmt: skip
        return

    width_blocks = ceil_div(width, tile_width)
    programs = ceil_div(rows, tile_rows) * width_blocks
    sums = partials if summed else torch.empty_like(coefficients)
    entries = partials.new_empty(
        (4 if constants["POINTWISE"] else 2, programs), dtype=torch.float64
    )
    options["WIDE"] = width_blocks > 1
    entry_kernel[(programs,)](
        *counts, sums, entries, width_blocks, class_weight, *similarity, *factors,
        TN=has_tn, PARTS=parts, **options,
    )  # fmt: skip
    entry_columns = power_of_2(width_blocks)
    entry_rows = _parts(programs // width_blocks, entry_columns)
    finish_kernel[(programs,)](
        sums, entries, groups, rows, width, width_blocks, coefficients, loss, class_weight,
        *similarity, pointwise.score_weight, *factors,
        REDUCTION=scoring.reduction, ROWS=entry_rows, COLS=entry_columns, **options,
    )  # fmt: skip


def _parts(count: int, width: int) -> int:
    """How many of the ``count`` numbers of each of ``width`` sums are read at once; three cases, as
    each compiles a kernel."""
    most = max(1, LANES // width)
    return 1 if count == 1 else most if count > 16 else min(16, most)
