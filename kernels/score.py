"""From partial sums to the loss and its gradient by the sums: the twin of csrc/score.h and
csrc/average.h, in float64, as a second launch behind the pass over the data.

Groups are seen as ``rows`` x ``width``: an average runs over the width (the classes of a sample),
the reduction over the rows.  ``average="none"`` makes every group a row of its own.  Up to
``ONE_PROGRAM`` groups take one launch; more of them take two, because every program of the last
one needs denominators that depend on all the sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from customloss._words import ABSENT, AVERAGES, LINKS, REDUCTIONS

from .layout import ceil_div, power_of_2

ONE_PROGRAM = 1024  # groups that one program scores
ONE_PROGRAM_PARTIALS = 32768  # partials of one sum that it also adds up
GROUP_TILE = 512  # groups of a program where there are more
LANES = 1024  # partials, or entries, that a program reads at once

# eight warps: four groups, in float64, are what the registers of a thread hold
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}

_LOG = tl.constexpr(LINKS.index("log"))
_FOCAL = tl.constexpr(LINKS.index("focal"))
_NEGATIVE = tl.constexpr(LINKS.index("negative"))
_SCORE = tl.constexpr(ABSENT.index("score"))
_SKIP = tl.constexpr(ABSENT.index("skip"))
_PENALIZE = tl.constexpr(ABSENT.index("penalize"))
_WEIGHTED = tl.constexpr(AVERAGES.index("weighted"))
_MEAN = tl.constexpr(REDUCTIONS.index("mean"))
_NONE = tl.constexpr(REDUCTIONS.index("none"))


class Scoring(NamedTuple):
    """The scoring arguments of ``confusion_score``, in their order."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float
    gamma: float
    link: int
    absent: int
    average: int
    reduction: int


# ---- one group -------------------------------------------------------------------------------


@triton.jit
def _log1p(y):
    # log(u) with u the rounded 1 + y, times y / (u - 1): the rounding of u cancels
    u = 1.0 + y
    exact = (u == 1.0) | (y > 1e15)
    ratio = y / tl.where(exact, 1.0, u - 1.0)
    return tl.where(u == 1.0, y, tl.where(exact, tl.log(u), tl.log(u) * ratio))


@triton.jit
def _power(base, exponent):
    zero = base == 0.0
    return tl.where(zero, 0.0, tl.exp(exponent * tl.log(tl.where(zero, 1.0, base))))


@triton.jit
def _group_loss(
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
            # a perfect group has slope 0: gamma < 1 would make it infinite
            slope = tl.where(plain, 1.0, gamma * _power(complement, gamma - 1.0))
        g_tp = -slope * tp_weight * complement / whole
        g_fp = slope * fp_weight * similarity / whole
        g_fn = slope * fn_weight * similarity / whole
    g_tp = tl.where(empty, 0.0, g_tp)
    g_fp = tl.where(empty, 0.0, g_fp)
    g_fn = tl.where(empty, 0.0, g_fn)

    support = tp + fn
    missing = support == 0.0
    counted = missing | True
    if ABSENT == _SKIP:
        counted = support != 0.0
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
    if AVERAGE == _WEIGHTED:
        weight = tl.where(counted, support, 0.0)
    return value, g_tp, g_fp, g_fn, g_tn, counted, weight


# ---- averages --------------------------------------------------------------------------------


@triton.jit
def _add_partials(
    partials, plane, chunks, groups, group, inside,
    TN: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The four sums of every group, its chunks added in a fixed order."""
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
def _of_rows(values, R: tl.constexpr, W: tl.constexpr):
    return tl.sum(tl.reshape(values, [R, W]), 1)


@triton.jit
def _to_groups(of_rows, R: tl.constexpr, W: tl.constexpr):
    return tl.reshape(tl.broadcast_to(of_rows[:, None], [R, W]), [R * W])


@triton.jit
def _ratio(a, b):
    """A mean over nothing is 0."""
    nothing = b == 0.0
    return tl.where(nothing, 0.0, a / tl.where(nothing, 1.0, b))


@triton.jit
def load_sums(sums, plane, group, inside):
    """Four numbers per group, `plane` apart; stepping, as 3 * plane may not fit 32 bits."""
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
def _store_sums(sums, plane, group, inside, tp, fp, fn, tn):
    at = sums + group
    tl.store(at, tp, mask=inside)
    at += plane
    tl.store(at, fp, mask=inside)
    at += plane
    tl.store(at, fn, mask=inside)
    at += plane
    tl.store(at, tn, mask=inside)


@triton.jit
def _store_grads(
    coefficients, groups, group, inside, value, g_tp, g_fp, g_fn, g_tn, counted, weight, mean,
    total_weight, outer, AVERAGE: tl.constexpr,
):  # fmt: skip
    """d(loss)/d(sums) of every group, given the mean and the weight of its row."""
    alive = counted & (total_weight != 0.0)
    safe = tl.where(total_weight == 0.0, 1.0, total_weight)
    inner = tl.where(alive, outer * weight / safe, 0.0)
    shift = inner * 0.0
    if AVERAGE == _WEIGHTED:
        # the support tp + fn moves the average too
        shift = tl.where(alive, outer * (value - mean) / safe, 0.0)
    g_tp = tl.where(alive, g_tp * inner + shift, 0.0)
    g_fp = tl.where(alive, g_fp * inner, 0.0)
    g_fn = tl.where(alive, g_fn * inner + shift, 0.0)
    g_tn = tl.where(alive, g_tn * inner, 0.0)
    _store_sums(coefficients, groups, group, inside, g_tp, g_fp, g_fn, g_tn)


@triton.jit
def _tile_groups(row_block, width_block, rows, width, R: tl.constexpr, W: tl.constexpr):
    """The flat groups of a tile of R rows by W of their groups, and which of them exist."""
    lane = tl.arange(0, R * W)
    row = row_block.to(tl.int64) * R + lane // W
    column = width_block.to(tl.int64) * W + lane % W
    return row * width + column, (row < rows) & (column < width)


@triton.jit
def combine_kernel(
    partials, plane, chunks, groups, sums,
    TN: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of every group.

    Maths:  sums[s, g] = Σ over chunks of partials[s, chunk, g], in float64 and in chunk order
    Launch: one program per GROUPS groups
    Moves:  reads 4 x chunks x groups floats (cached: just written), writes 4 x groups doubles
    """
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    inside = group < groups
    tp, fp, fn, tn = _add_partials(
        partials, plane, chunks, groups, group, inside, TN, GROUPS, PARTS
    )
    _store_sums(sums, groups, group, inside, tp, fp, fn, tn)


@triton.jit
def score_kernel(
    partials, plane, chunks, groups, rows, width, coefficients, loss,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    gamma: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr, REDUCTION: tl.constexpr,
    TN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of every group and scores them, where few groups are enough.

    Maths:  loss = reduce over rows of average over width of link(sums), and d(loss)/d(sums)
    Launch: one program; it holds all groups in one tile of R x W
    Moves:  reads 3 or 4 x chunks x groups floats, writes 4 x groups doubles and the loss
    """
    zero = tl.program_id(0)
    group, inside = _tile_groups(zero, zero, rows, width, R, W)
    tp, fp, fn, tn = _add_partials(partials, plane, chunks, groups, group, inside, TN, R * W, PARTS)
    value, g_tp, g_fp, g_fn, g_tn, counted, weight = _group_loss(
        tp, fp, fn, tn, tp_weight, fp_weight, fn_weight, smooth, gamma, LINK, ABSENT, AVERAGE
    )
    weight = tl.where(inside, weight, 0.0)
    total = _of_rows(weight, R, W)
    mean = _ratio(_of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W), total)
    row = tl.arange(0, R)
    if REDUCTION == _NONE:
        outer = tl.full([1], 1.0, tl.float64)
        tl.store(loss + row, mean, mask=row < rows)
    else:
        outer = tl.full([1], 1.0, tl.float64)
        if REDUCTION == _MEAN:
            outer = _ratio(outer, tl.sum(tl.where(total != 0.0, outer, 0.0), 0)[None])
        tl.store(loss + tl.arange(0, 1), tl.sum(mean, 0)[None] * outer)
    _store_grads(
        coefficients, groups, group, inside, value, g_tp, g_fp, g_fn, g_tn, counted, weight,
        _to_groups(mean, R, W), _to_groups(total, R, W), outer, AVERAGE,
    )  # fmt: skip


@triton.jit
def entry_kernel(
    partials, plane, chunks, groups, rows, width, sums, entries, width_blocks,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    gamma: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr,
    TN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of every group, and what its tile knows of the averages.

    Maths:  entries = (Σ means, number of means) of the tile's rows, or, for rows wider than a
            tile (WIDE), the share (Σ w loss, Σ w) of this stretch of its row
    Launch: one program per tile of R rows x W of their groups
    Moves:  reads 3 or 4 x chunks x groups floats, writes 4 x groups doubles, 2 per program
    """
    pid = tl.program_id(0)
    group, inside = _tile_groups(pid // width_blocks, pid % width_blocks, rows, width, R, W)
    tp, fp, fn, tn = _add_partials(partials, plane, chunks, groups, group, inside, TN, R * W, PARTS)
    _store_sums(sums, groups, group, inside, tp, fp, fn, tn)
    value, _, _, _, _, _, weight = _group_loss(
        tp, fp, fn, tn, tp_weight, fp_weight, fn_weight, smooth, gamma, LINK, ABSENT, AVERAGE
    )
    weight = tl.where(inside, weight, 0.0)
    total = _of_rows(weight, R, W)
    first = _of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W)
    if not WIDE:
        first = _ratio(first, total)
        total = tl.where(total != 0.0, 1.0, total)
    tl.store(entries + pid, tl.sum(first, 0))
    tl.store(entries + tl.num_programs(0) + pid, tl.sum(total, 0))


@triton.jit
def finish_kernel(
    sums, entries, groups, rows, width, width_blocks, coefficients, loss,
    tp_weight: tl.float64, fp_weight: tl.float64, fn_weight: tl.float64, smooth: tl.float64,
    gamma: tl.float64,
    LINK: tl.constexpr, ABSENT: tl.constexpr, AVERAGE: tl.constexpr, REDUCTION: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Scores the groups of a tile, now that every tile's entry is known.

    Maths:  loss = reduce over rows of average over width of link(sums), and d(loss)/d(sums)
    Launch: as entry_kernel; every program adds up all entries, in the same order
    Moves:  reads 4 x groups doubles, and 2 x programs doubles per program; writes 4 x groups
            doubles and the loss
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    row_block = pid // width_blocks
    group, inside = _tile_groups(row_block, pid % width_blocks, rows, width, R, W)
    tp, fp, fn, tn = load_sums(sums, groups, group, inside)
    value, g_tp, g_fp, g_fn, g_tn, counted, weight = _group_loss(
        tp, fp, fn, tn, tp_weight, fp_weight, fn_weight, smooth, gamma, LINK, ABSENT, AVERAGE
    )
    weight = tl.where(inside, weight, 0.0)
    part = tl.arange(0, COLS)
    if WIDE:
        own = entries + row_block * width_blocks + part
        here = part < width_blocks
        total = tl.sum(tl.load(own + programs, mask=here, other=0.0), 0)[None]
        mean = _ratio(tl.sum(tl.load(own, mask=here, other=0.0), 0)[None], total)
    else:
        total = _of_rows(weight, R, W)
        mean = _ratio(_of_rows(tl.where(weight == 0.0, 0.0, weight * value), R, W), total)

    outer = tl.full([1], 1.0, tl.float64)
    if REDUCTION == _NONE:
        row = row_block.to(tl.int64) * R + tl.arange(0, R)
        # the first of the programs that share a row writes it
        tl.store(loss + row, mean, mask=row + (pid % width_blocks).to(tl.int64) * rows < rows)
    else:
        means = tl.zeros([ROWS], tl.float64)
        count = tl.zeros([ROWS], tl.float64)
        # a row of this walk is one entry, or the entries of one wide row
        for first in range(0, programs // width_blocks, ROWS):
            entry_row = first + tl.arange(0, ROWS)
            at = entries + entry_row[:, None] * width_blocks + part[None, :]
            mask = (entry_row < programs // width_blocks)[:, None] & (part < width_blocks)[None, :]
            a = tl.sum(tl.load(at, mask=mask, other=0.0), 1)
            b = tl.sum(tl.load(at + programs, mask=mask, other=0.0), 1)
            if WIDE:
                means += _ratio(a, b)
                count += tl.where(b != 0.0, 1.0, b)
            else:
                means += a
                count += b
        if REDUCTION == _MEAN:
            outer = _ratio(outer, tl.sum(count, 0)[None])
        lane = tl.arange(0, 1)
        tl.store(loss + lane, tl.sum(means, 0)[None] * outer, mask=lane + pid == 0)
    _store_grads(
        coefficients, groups, group, inside, value, g_tp, g_fp, g_fn, g_tn, counted, weight,
        _to_groups(mean, R, W), _to_groups(total, R, W), outer, AVERAGE,
    )  # fmt: skip


# ---- launches --------------------------------------------------------------------------------


def combine(partials: Tensor, samples: int, classes: int) -> Tensor:
    """Partials ``[4, chunks, groups]`` to float64 sums ``[4, samples, classes]``."""
    groups, chunks = samples * classes, partials.shape[1]
    sums = partials.new_empty((4, samples, classes), dtype=torch.float64)
    tile = min(power_of_2(groups), GROUP_TILE)
    if groups:
        combine_kernel[(ceil_div(groups, tile),)](
            partials, chunks * groups, chunks, groups, sums,
            TN=True, GROUPS=tile, PARTS=_parts(chunks, tile), **OPTIONS,
        )  # fmt: skip
    return sums


def score(
    partials: Tensor,
    samples: int,
    classes: int,
    scoring: Scoring,
    loss: Tensor,
) -> Tensor:
    """Partials ``[3 or 4, chunks, groups]`` to ``loss``, which is written, and d(loss)/d(sums)."""
    groups, chunks = samples * classes, partials.shape[1]
    coefficients = partials.new_empty((4, samples, classes), dtype=torch.float64)
    alone = scoring.average == AVERAGES.index("none")
    rows, width = (groups, 1) if alone else (samples, classes)
    tile_rows, tile_width = power_of_2(rows), power_of_2(width)
    options = {
        "LINK": scoring.link,
        "ABSENT": scoring.absent,
        "AVERAGE": scoring.average,
        **OPTIONS,
    }
    counts = (partials, chunks * groups, chunks, groups, rows, width)
    has_tn = partials.shape[0] == 4
    if tile_rows * tile_width <= ONE_PROGRAM and groups * chunks <= ONE_PROGRAM_PARTIALS:
        score_kernel[(1,)](
            *counts, coefficients, loss, *scoring[:5],
            REDUCTION=scoring.reduction, TN=has_tn, R=tile_rows, W=tile_width,
            PARTS=_parts(chunks, tile_rows * tile_width), **options,
        )  # fmt: skip
        return coefficients

    tile_width = min(tile_width, GROUP_TILE)
    tile_rows = min(tile_rows, GROUP_TILE // tile_width)
    width_blocks = ceil_div(width, tile_width)
    programs = ceil_div(rows, tile_rows) * width_blocks
    sums = torch.empty_like(coefficients)
    entries = partials.new_empty((2, programs), dtype=torch.float64)
    options |= {"R": tile_rows, "W": tile_width, "WIDE": width_blocks > 1}
    entry_kernel[(programs,)](
        *counts, sums, entries, width_blocks, *scoring[:5],
        TN=has_tn, PARTS=_parts(chunks, tile_rows * tile_width), **options,
    )  # fmt: skip
    entry_columns = power_of_2(width_blocks)
    entry_rows = min(max(1, LANES // entry_columns), power_of_2(programs // width_blocks))
    finish_kernel[(programs,)](
        sums, entries, groups, rows, width, width_blocks, coefficients, loss, *scoring[:5],
        REDUCTION=scoring.reduction, ROWS=entry_rows, COLS=entry_columns, **options,
    )  # fmt: skip
    return coefficients


def _parts(chunks: int, groups: int) -> int:
    """How many partials of each of ``groups`` are read at once."""
    return min(power_of_2(chunks), max(1, LANES // groups))
