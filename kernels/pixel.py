"""Soft confusion sums and gradients of elements whose class matters, in Triton: softmax, class
numbers, removed targets, smoothing and the sums beside tp, fp, fn, tn.

Forward is a pass over the data, and where it leaves many partial sums, one that adds most of them
up; backward is one pass.  A softmax of few classes has all of them in a tile; one of many walks
over them (pixel_walk.py).  No atomics: every partial sum has its own place, and they are added in a
fixed order.  Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from customloss import reference
from customloss._words import NONE, SOFTMAX, WEIGHT

from . import pixel_element as element
from .element import tile_rows
from .layout import PixelPlan, Strided, ceil_div, pixel_plan, power_of_2
from .pixel_element import How
from .pixel_tile import (
    INFINITY,
    WRT_INPUT,
    by_sums,
    known_multiple,
    leave,
    mixed_slopes,
    outcome_of,
    own_gradient,
    pixels_of,
    plus,
    pooled,
    program,
    put,
    tile_of,
    zeros,
)
from .pixel_walk import softmax_gradient_kernel, softmax_sums_kernel

FOLD = 64  # partials of a group that one program of the fold adds up
FOLD_GROUPS = 128  # groups of such a program
MOST_PARTIALS = 32768  # of one sum, that the next pass may be left with

# enable_fp_fusion is spelt out because Triton's default for it changes with 3.10
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


# ---- forward ---------------------------------------------------------------------------------


@triton.jit
def pixel_sums_kernel(
    partials, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64, on: tl.float64,
    off: tl.float64, gamma: tl.float64, ignore, plane, groups, classes, class_tiles, chunks,
    reduced, tiles, pieces, per_chunk, sizes, x_strides, t_strides, w_strides,
    N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr,
    CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The N sums of a chunk of the pixels of a sample, of the classes of a tile.

    Maths:  tp = Σ w t p, fp = Σ w (1-t) p, fn = Σ w t q, tn = Σ w (1-t) q, and those of EXTRA, with
            p = exp(z - max z) / Σ exp(z - max z) over the classes of the tile, which are all there
            are, or a sigmoid, or x itself; t = [target = c], or the target; smoothed
    Launch: one program per sample, chunk of `per_chunk` tiles and tile of classes
    Moves:  reads input, target and weight once (a class number once per tile of classes); writes
            N floats per chunk and group
    """
    c, chunk, sample, first, last = program(class_tiles, chunks, tiles, per_chunk, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    scale, offset = tl.full([1, 1], scale, DTYPE), tl.full([1, 1], offset, DTYPE)
    on, off = tl.full([1, 1], on, DTYPE), tl.full([1, 1], off, DTYPE)
    gamma = tl.full([1, 1], gamma, DTYPE)
    found = zeros(N, PIXELS, CLASSES, HOW)
    for tile in range(first, last):
        row, outer, inside = tile_rows(
            tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
        )
        y, live, w = pixels_of(
            t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, inside[:, None],
            classes, ignore, AXES, HOW,
        )  # fmt: skip
        x, t, w, live = tile_of(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            inside[:, None], classes, ignore, on, off, y, live, w, AXES, True, HOW,
        )  # fmt: skip
        _, p, q, positive, negative, decided = outcome_of(
            x, live, c, classes, scale, offset, EXTRA, (element.HARD & EXTRA) != 0, HOW
        )
        own = element.shares(p, q, positive, negative, decided, t, gamma, w, live, EXTRA, HOW)
        found = plus(found, own, N)
    if element.POOLED & HOW:
        found = pooled(found, c, classes, N, HOW)
    leave(partials, plane, groups, found, chunk, sample, c, classes, N, HOW)


@triton.jit
def fold_kernel(
    partials, out, chunks, groups, left, group_tiles,
    GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds up most of the partial sums.

    Maths:  out[s, i, g] = Σ over the i-th of `left` stretches of chunks of partials[s, chunk, g],
            in float64 and in a fixed order
    Launch: one program per sum, stretch and GROUPS groups
    Moves:  reads the partials once (cached: just written), writes `left` doubles per sum and group
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


# ---- backward --------------------------------------------------------------------------------


@triton.jit
def pixel_gradient_kernel(
    out, grad, coefficients, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64,
    on: tl.float64, off: tl.float64, gamma: tl.float64, ignore, grad_sample, grad_class, groups,
    classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides, out_strides,
    WRT: tl.constexpr, N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The gradient of every element of a chunk, from the gradient g by the sums of its group.

    Maths:  u = dL/dp, h = -dL/d(log p), k = -dL/d(log q), all of them times w
            sigmoid  dL/dx = p q u - q h + p k
            softmax  dL/dx_k = p_k (v_k - Σ p_c v_c) + p_k Σ_{c≠k} h_c - q_k h_k, v = u - u_largest
            and as reference.confusion_backward has it by target and weight
    Launch: one program per sample, chunk of `per_chunk` tiles and tile of classes
    Moves:  reads input, target and weight once, writes the gradient once
    """
    c, _, sample, first, last = program(class_tiles, chunks, tiles, per_chunk, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    scale, offset = tl.full([1, 1], scale, DTYPE), tl.full([1, 1], offset, DTYPE)
    on, off = tl.full([1, 1], on, DTYPE), tl.full([1, 1], off, DTYPE)
    gamma = tl.full([1, 1], gamma, DTYPE)
    first_largest: tl.constexpr = ((element.HARD & EXTRA) != 0) and (WRT != WRT_INPUT)
    g = by_sums(
        coefficients, grad, groups, grad_sample, grad_class, sample, c, classes, N, HOW
    )  # fmt: skip
    for tile in range(first, last):
        row, outer, inside = tile_rows(
            tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
        )
        y, live, w = pixels_of(
            t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, inside[:, None],
            classes, ignore, AXES, HOW,
        )  # fmt: skip
        x, t, w, live = tile_of(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            inside[:, None], classes, ignore, on, off, y, live, w, AXES, True, HOW,
        )  # fmt: skip
        e, p, q, positive, negative, decided = outcome_of(
            x, live, c, classes, scale, offset, EXTRA, first_largest, HOW
        )
        if (element.SOFTMAX & HOW) and WRT == WRT_INPUT:
            v, h = mixed_slopes(p, q, positive, t, w, gamma, g, c, classes, EXTRA, HOW)
            # taken from that of a largest, nothing cancels next to p = 1
            v -= tl.max(tl.where(e == 1.0, v, -INFINITY), 1)[:, None]
            total = p * (v - tl.sum(p * v, 1)[:, None])
            if element.LOGS & EXTRA:
                total += p * (tl.sum(h, 1)[:, None] - h) - q * h
            if element.AFFINE & HOW:
                total = scale * total
        else:
            total = own_gradient(
                p, q, positive, negative, decided, t, w, g, scale, on - off, gamma,
                WRT, EXTRA, HOW,
            )  # fmt: skip
        put(
            out, out_strides, sizes, sample, c, row, outer, inside[:, None], live, classes, total,
            AXES, HOW,
        )  # fmt: skip


# ---- launches --------------------------------------------------------------------------------


def is_labels(input: Tensor, target: Tensor) -> bool:
    """The target holds class numbers: one class where the input has several."""
    return input.dim() > 1 and target.shape[1] == 1 and input.shape[1] > 1


def by_pixel(
    input: Tensor,
    target: Tensor,
    activation: int,
    ignore_index: int | None,
    label_smoothing: float,
    extra: int,
) -> bool:
    """Whether these kernels are the ones to run."""
    return (
        activation == SOFTMAX
        or ignore_index is not None
        or label_smoothing != 0
        or extra != 0
        or is_labels(input, target)
    )


def _strided(tensor: Tensor | None) -> Strided:
    return None if tensor is None else (tensor.shape, tensor.stride())


class _Launch:
    """What both passes tell their kernels."""

    def __init__(
        self,
        operands: tuple[Tensor | None, ...],
        activation: int,
        scale: float,
        offset: float,
        per_sample: bool,
        per_class: bool,
        ignore_index: int | None,
        label_smoothing: float,
        extra: int,
        focal_gamma: float,
        sums: int,
        flags: How,
    ) -> None:
        input, target, weight = operands[:3]
        assert input is not None and target is not None
        softmax = activation == SOFTMAX
        layout = tuple(_strided(operand) for operand in operands)
        size = input.element_size()
        self.plan: PixelPlan = pixel_plan(layout, per_sample, softmax, sums, size)
        plan = self.plan
        labels = is_labels(input, target)
        padded = plan.classes % plan.cols != 0
        element_ignored = ignore_index is not None and not labels
        masked = labels or ignore_index is not None or weight is not None or not plan.even
        for flag, holds in (
            (How.SOFTMAX, softmax),
            (How.PROBABILITIES, activation == NONE),
            (How.AFFINE, (scale, offset) != (1.0, 0.0)),
            (How.WIDE, input.dtype == torch.float64),
            (How.LABELS, labels),
            (How.BINARY, label_smoothing == 0 and (labels or target.dtype == torch.bool)),
            (How.SMOOTH, label_smoothing != 0),
            (How.IGNORE, ignore_index is not None),
            (How.WEIGHT, weight is not None),
            (How.EACH, weight is not None and plan.strides[2][1] != 0),
            (How.EVEN, plan.even),
            (How.PADDED, padded),
            (How.MASKED, masked),
            (How.BARE, masked and (not softmax or element_ignored)),
            (How.POOLED, not per_class),
            (How.SPLIT, plan.split),
            (How.LONG, plan.long),
            (How.FOURS, plan.aligned == 4),
            (How.PAIRS, plan.aligned == 2),
        ):
            flags |= flag if holds else How(0)
        outcomes = plan.classes if labels or softmax else 2
        off = label_smoothing / max(outcomes, 1)
        self.numbers = (
            scale, offset, 1 - label_smoothing + off, off, focal_gamma,
            0 if ignore_index is None else ignore_index,
        )  # fmt: skip
        self.walk = (
            plan.classes, plan.class_tiles, plan.chunks, plan.reduced, plan.tiles, plan.pieces,
            plan.per_chunk, plan.sizes, *plan.strides,
        )  # fmt: skip
        # small tiles leave no thread of a warp without an element
        warps = min(4, power_of_2(max(1, plan.rows * plan.cols // 128)))
        self.constants: dict[str, Any] = {
            "EXTRA": extra,
            "AXES": len(plan.sizes),
            "PIXELS": plan.rows,
            "CLASSES": plan.cols,
            "HOW": int(flags),
            "num_warps": warps,
            **_OPTIONS,
        }


def partials(
    input: Tensor, target: Tensor, weight: Tensor | None, with_tn: bool, *elements: Any
) -> tuple[int, int, Tensor]:
    """The pass over the data: samples, classes, and partial sums ``[rows, chunks, groups]``."""
    per_class, extra = elements[4], elements[7]
    sums = len(reference.rows(extra)) - (not with_tn)
    flags = How.TN if with_tn else How(0)
    launch = _Launch((input, target, weight), *elements, sums, flags)
    plan = launch.plan
    classes = plan.classes if per_class else 1
    chunks = plan.chunks if per_class else plan.chunks * plan.class_tiles
    groups = plan.samples * classes
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if not input.numel():
        return plan.samples, classes, input.new_empty((sums, 0, groups), dtype=dtype)
    found = input.new_empty((sums, chunks, groups), dtype=dtype)
    kernel = softmax_sums_kernel if plan.looped else pixel_sums_kernel
    kernel[(plan.programs,)](
        found, input, target, weight, *launch.numbers, chunks * groups, groups, *launch.walk,
        N=sums, **launch.constants,
    )  # fmt: skip
    if chunks > FOLD and chunks * groups > MOST_PARTIALS:
        found = fold(found, FOLD)
    return plan.samples, classes, found


def fold(partials: Tensor, left: int) -> Tensor:
    """Partial sums ``[rows, chunks, groups]`` to ``left`` of them per group, in float64."""
    sums, chunks, groups = partials.shape
    out = partials.new_empty((sums, left, groups), dtype=torch.float64)
    if groups:
        tile = min(power_of_2(groups), FOLD_GROUPS)
        group_tiles = ceil_div(groups, tile)
        fold_kernel[(sums * left * group_tiles,)](
            partials, out, chunks, groups, left, group_tiles,
            GROUPS=tile, PARTS=1024 // tile, num_warps=4, **_OPTIONS,
        )  # fmt: skip
    return out


def confusion(input: Tensor, target: Tensor, weight: Tensor | None, *elements: Any) -> Tensor:
    """See ``customloss::confusion``."""
    samples, classes, found = partials(input, target, weight, True, *elements)
    return fold(found, 1).view(-1, samples, classes)


def backward(
    out: Tensor,
    grad: Tensor | None,
    grad_strides: tuple[int, int],
    coefficients: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: int,
    *elements: Any,
) -> None:
    """Writes ``out``, the gradient by one operand."""
    per_class, extra = elements[4], elements[7]
    flags = How.TN | (How.KEEP if wrt == WEIGHT else How(0))
    rows = len(reference.rows(extra))
    launch = _Launch((input, target, weight, out), *elements, rows, flags)
    plan = launch.plan
    groups = plan.samples * (plan.classes if per_class else 1)
    kernel = softmax_gradient_kernel if plan.looped else pixel_gradient_kernel
    kernel[(plan.programs,)](
        out, grad, coefficients, input, target, weight, *launch.numbers, *grad_strides, groups,
        *launch.walk, WRT=wrt, N=rows, **launch.constants,
    )  # fmt: skip
