"""Adds partial sums up to fewer of them, or to the sums, in float64.

A pass can leave thousands of partial sums per group.  A single program that read them one after the
other would wait for memory each time, so many programs of this kernel first add up most of them.
The order of the additions depends on the shape alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import ceil_div, power_of_2

FOLD = 64  # the most partial sums per group that a first fold leaves
FOLD_GROUPS = 128  # the most groups of a program
LANES = 1024  # partials that a program reads at once
MOST_PARTIALS = 4096  # that a program adds up of one sum: more would be a long chain of reads

# enable_fp_fusion is spelt out because Triton's default for it changes with 3.10
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["chunks", "groups", "left", "group_tiles"])
def fold_kernel(
    partials, out, chunks, groups, left, group_tiles,
    GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds up the partial sums of every group, to `left` of them.

    Maths:  out[s, i, g] = Σ partials[s, chunk, g] over the i-th of `left` stretches of the chunks,
            in float64 and in a fixed order
    Launch: one program per sum, stretch and GROUPS groups
    Moves:  reads the partials once (cached, as they were just written), writes `left` doubles per
            sum and group
    """
    pid = tl.program_id(0)
    group = (pid % group_tiles).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    stretch = pid // group_tiles % left
    which = (pid // group_tiles // left).to(tl.int64)
    length = (chunks + left - 1) // left
    last = tl.minimum(stretch * length + length, chunks)
    total = tl.zeros([PARTS, GROUPS], tl.float64)
    for first in range(stretch * length, last, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < last)[:, None] & (group < groups)[None, :]
        at = (which * chunks + part)[:, None] * groups + group[None, :]
        total += tl.load(partials + at, mask=mask, other=0.0).to(tl.float64)
    at = out + (which * left + stretch) * groups + group
    tl.store(at, tl.sum(total, 0), mask=group < groups)


def fold(partials: Tensor, left: int) -> Tensor:
    """Adds partial sums ``[rows, chunks, groups]`` up to ``left`` of them per group, in float64."""
    sums, chunks, groups = partials.shape
    out = partials.new_empty((sums, left, groups), dtype=torch.float64)
    if groups:
        tile = min(power_of_2(groups), FOLD_GROUPS)
        group_tiles = ceil_div(groups, tile)
        fold_kernel[(sums * left * group_tiles,)](
            partials, out, chunks, groups, left, group_tiles,
            GROUPS=tile, PARTS=LANES // tile, **_OPTIONS,
        )  # fmt: skip
    return out


def few(partials: Tensor, tile: int) -> Tensor:
    """``partials``, folded if they are more than a program of ``tile`` groups should add up."""
    most = max(1, MOST_PARTIALS // tile)
    return fold(partials, min(FOLD, most)) if partials.shape[1] > most else partials


def total_sums(partials: Tensor, samples: int, classes: int) -> Tensor:
    """Adds partials ``[rows, chunks, groups]`` up to float64 sums ``[rows, samples, classes]``."""
    folded = few(partials, min(power_of_2(partials.shape[2]), FOLD_GROUPS))
    return fold(folded, 1).view(-1, samples, classes)
