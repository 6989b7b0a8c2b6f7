"""Soft confusion sums and gradients of elements whose class matters, in Triton: softmax, class
numbers, ignored targets, smoothing and the sums beside tp, fp, fn, tn.

Forward is a pass over the data, which leaves partial sums; backward is one pass.  For a softmax of
few classes a tile has all of them; for one of many classes a program walks over them
(pixel_walk.py).  No atomics: every partial sum has its own place, and they are added in a fixed
order.  Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from customloss import reference
from customloss._spec.arguments import Data, Elements, Wrt
from customloss._spec.words import IGNORE, NONE, RAISE, SOFTMAX, WEIGHT
from customloss.reference import Extra

from . import pixel_element as element
from .element import tile_rows
from .launch import ALIGNMENT_IRRELEVANT, strided
from .layout import PixelPlan, Strided, inner_sizes, pixel_plan, power_of_2, scaled, walk_plan
from .pixel_element import How
from .pixel_tile import (
    COUNTS,
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
from .pixel_walk import (
    softmax_gradient_kernel,
    softmax_kept_sums_kernel,
    softmax_sums_kernel,
    softmax_walk_kernel,
)

# enable_fp_fusion is spelt out because Triton's default for it changes with 3.10
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
_KEEPING = int(How.TN | How.KEEP)


# ---- forward ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def pixel_sums_kernel(
    partials, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64, on: tl.float64,
    off: tl.float64, log_on: tl.float64, log_off: tl.float64, gamma: tl.float64, ignore, plane,
    groups, classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides,
    N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr,
    CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The N sums of a chunk of the pixels of a sample, for the classes of a tile.

    Maths:  tp = Σ w t p, fp = Σ w (1-t) p, fn = Σ w t q, tn = Σ w (1-t) q, and those of EXTRA, with
            p = exp(z - max z) / Σ exp(z - max z) over all classes, which the tile then has, or a
            sigmoid, or x itself; t = [target = c], or the target; smoothed
    Launch: one program per sample, chunk of `per_chunk` tiles and tile of classes
    Moves:  reads input, target and weight once (a class number once per tile of classes); writes
            N floats per chunk and group
    """
    c, chunk, sample, first, last = program(class_tiles, chunks, tiles, per_chunk, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    scale, offset = tl.full([1, 1], scale, DTYPE), tl.full([1, 1], offset, DTYPE)
    smoothing = element.smoothing_of(on, off, log_on, log_off, HOW)
    gamma = tl.full([1, 1], gamma, DTYPE)
    sums = zeros(N, PIXELS, CLASSES, HOW)
    for tile in range(first, last):
        row, outer, inside = tile_rows(
            tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
        )
        y, live, w = pixels_of(
            t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, inside[:, None],
            classes, ignore, AXES, HOW,
        )  # fmt: skip
        x, target, w, live = tile_of(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            inside[:, None], classes, ignore, smoothing, y, live, w, AXES, True, HOW,
        )  # fmt: skip
        _, p, q, positive, negative, decided = outcome_of(
            x, live, c, classes, scale, offset, EXTRA, (element.HARD & EXTRA) != 0, HOW
        )
        share = element.shares(
            p, q, positive, negative, decided, target, gamma, w, live, EXTRA, HOW
        )
        sums = plus(sums, share, N)
    if element.POOLED & HOW:
        sums = pooled(sums, c, classes, N, HOW)
    leave(partials, plane, groups, sums, chunk, sample, c, classes, N, HOW)


# ---- backward --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def pixel_gradient_kernel(
    out, grad, coefficients, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64,
    on: tl.float64, off: tl.float64, log_on: tl.float64, log_off: tl.float64, gamma: tl.float64,
    ignore, grad_sample, grad_class, groups,
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
    smoothing = element.smoothing_of(on, off, log_on, log_off, HOW)
    gamma = tl.full([1, 1], gamma, DTYPE)
    first_largest: tl.constexpr = ((element.HARD & EXTRA) != 0) and (WRT != WRT_INPUT)
    g = by_sums(
        coefficients, grad, groups, grad_sample, grad_class, sample, c, classes, WRT, N, EXTRA, HOW
    )
    for tile in range(first, last):
        row, outer, inside = tile_rows(
            tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
        )
        y, live, w = pixels_of(
            t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, inside[:, None],
            classes, ignore, AXES, HOW,
        )  # fmt: skip
        x, target, w, live = tile_of(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            inside[:, None], classes, ignore, smoothing, y, live, w, AXES, True, HOW,
        )  # fmt: skip
        e, p, q, positive, negative, decided = outcome_of(
            x, live, c, classes, scale, offset, EXTRA, first_largest, HOW
        )
        if (element.SOFTMAX & HOW) and WRT == WRT_INPUT:
            v, h = mixed_slopes(p, q, positive, target, w, gamma, g, c, classes, EXTRA, HOW)
            # relative to the v of a largest class, nothing cancels next to p = 1
            v -= tl.max(tl.where(e == 1.0, v, -INFINITY), 1)[:, None]
            total = p * (v - tl.sum(p * v, 1)[:, None])
            if element.LOGS & EXTRA:
                total += p * (tl.sum(h, 1)[:, None] - h) - q * h
            if element.AFFINE & HOW:
                total = scale * total
        else:
            total = own_gradient(
                p, q, positive, negative, decided, target, w, g, scale, smoothing, gamma,
                WRT, EXTRA, HOW,
            )  # fmt: skip
        put(
            out, out_strides, sizes, sample, c, row, outer, inside[:, None], live, classes, total,
            AXES, HOW,
        )  # fmt: skip


# ---- launches --------------------------------------------------------------------------------


def is_labels(input: Tensor, target: Tensor) -> bool:
    """Whether the target holds class numbers: it has one class where the input has several."""
    return _labels(input.shape, target.shape)


def _labels(input: Sequence[int], target: Sequence[int]) -> bool:
    return len(input) > 1 and target[1] == 1 and input[1] > 1


def by_pixel(data: Data, elements: Elements) -> bool:
    """Whether a call needs the kernels of this file, and not those of confusion.py."""
    return (
        elements.activation == SOFTMAX
        or elements.ignore_index is not None
        or ignores_nan(data.input, data.target, elements)
        or elements.label_smoothing != 0
        or elements.extra != 0
        or is_labels(data.input, data.target)
    )


def ignores_nan(input: Tensor, target: Tensor, elements: Elements) -> bool:
    """Whether elements whose target is NaN do not count."""
    asked = elements.nan_targets == IGNORE and target.is_floating_point()
    return asked and not is_labels(input, target)


def hashable(elements: Elements) -> Elements:
    """The dispatcher makes a list of the ignored values."""
    if elements.ignore_index is None:
        return elements
    return elements._replace(ignore_index=tuple(elements.ignore_index))


class Launch(NamedTuple):
    """What a pass hands to its kernel."""

    plan: PixelPlan
    classes: int  # those that groups tell apart; 1 where a group has all of them
    rows: int
    numbers: tuple[Any, ...]
    walk: tuple[Any, ...]
    constants: dict[str, Any]
    before: Launch | None  # the walk, where it is a launch of its own


@lru_cache(maxsize=1024)
def prepare(
    operands: tuple[Strided, ...], dtype: torch.dtype, hard: bool, without_nan: bool, flags: int,
    elements: Elements,
) -> Launch:  # fmt: skip
    """The launch for a geometry and its options; ``hard`` says that the target is bool, and
    ``without_nan`` that its NaN do not count.

    It is cached, as it takes longer to work out than to look up.  It holds on to no tensor.
    """
    input, target, weight = operands[:3]
    assert input is not None and target is not None
    scale, offset, smoothing = elements.scale, elements.offset, elements.label_smoothing
    log_smoothing = smoothing if elements.log_smoothing is None else elements.log_smoothing
    ignored = bool(elements.ignore_index) or without_nan
    per_class = elements.per_class and len(input[0]) > 1
    softmax = elements.activation == SOFTMAX
    rows = len(reference.rows(elements.extra))
    # a forward pass may leave out tn; a backward pass always has the gradient by it
    rows -= not flags & How.TN
    plan = pixel_plan(operands, elements.per_sample, per_class, softmax, rows, dtype.itemsize)
    labels = _labels(input[0], target[0])
    masked = labels or ignored or weight is not None or not plan.even
    for flag, holds in (
        (How.SOFTMAX, softmax),
        (How.PROBABILITIES, elements.activation == NONE),
        (How.AFFINE, (scale, offset) != (1.0, 0.0)),
        (How.WIDE, dtype == torch.float64),
        (How.LABELS, labels),
        (How.BINARY, labels or hard),
        (How.SMOOTH, smoothing != 0),
        (How.LOG_SMOOTH, log_smoothing != 0),
        (How.FOCAL_SPLIT, elements.focal_split),
        (How.IGNORE, bool(elements.ignore_index)),
        (How.IGNORE_NAN, without_nan),
        (How.REFUSE, labels and elements.out_of_range == RAISE),
        (How.WEIGHT, weight is not None),
        (How.EACH, weight is not None and plan.strides[2][1] != 0),
        (How.EVEN, plan.even),
        (How.PADDED, plan.classes % plan.cols != 0),
        (How.MASKED, masked),
        (How.BARE, masked and (not softmax or (ignored and not labels))),
        (How.POOLED, not per_class),
        (How.SPLIT, plan.split),
        (How.LONG, plan.long),
        (How.FOURS, plan.aligned == 4),
        (How.PAIRS, plan.aligned == 2),
    ):
        flags |= int(flag) if holds else 0
    outcomes = plan.classes if labels or softmax else 2
    off, log_off = smoothing / max(outcomes, 1), log_smoothing / max(outcomes, 1)
    ignore = elements.ignore_index or ()
    numbers = (
        scale, offset, 1 - smoothing + off, off, 1 - log_smoothing + log_off, log_off,
        elements.focal_gamma, ignore,
    )  # fmt: skip
    classes = plan.classes if per_class else 1
    launch = _launch(plan, classes, rows, flags, elements.extra, numbers)
    if not plan.apart:
        return launch
    first = walk_plan(plan, dtype.itemsize)
    flags = flags & ~int(How.PADDED) | (int(How.PADDED) if first.classes % first.cols else 0)
    before = _launch(first, classes, rows, flags, elements.extra, (scale, ignore))
    return launch._replace(before=before)


def _launch(
    plan: PixelPlan, classes: int, rows: int, flags: int, extra: int, numbers: tuple[Any, ...]
) -> Launch:
    walk = (
        plan.classes, plan.class_tiles, plan.chunks, plan.reduced, plan.tiles, plan.pieces,
        plan.per_chunk, inner_sizes(plan.sizes), *map(scaled, plan.strides),
    )  # fmt: skip
    # small tiles get fewer warps, so that no thread is without an element
    warps = min(4, power_of_2(max(1, plan.rows * plan.cols // 128)))
    if plan.kept and not plan.apart and plan.rows * plan.cols >= 2048:
        warps = 8  # with four, a thread would spill the values of its walk and its sums
    if warps == 4 and plan.looped and not plan.kept and not flags & How.LABELS:
        warps = 8  # the same holds for the values of a dense target
    constants = {
        "EXTRA": extra,
        "AXES": len(plan.sizes),
        "PIXELS": plan.rows,
        "CLASSES": plan.cols,
        "HOW": flags,
        "num_warps": warps,
        **_OPTIONS,
    }
    return Launch(plan, classes, rows, numbers, walk, constants, None)


def partials(data: Data, elements: Elements, with_tn: bool) -> tuple[int, int, Tensor]:
    """Runs the pass over the data: samples, classes, partial sums ``[rows, chunks, groups]``."""
    input, target, weight = data
    elements = hashable(elements)
    plan, classes, rows, numbers, walk, constants, before = prepare(
        (strided(input), strided(target), strided(weight)), input.dtype,
        target.dtype == torch.bool, ignores_nan(input, target, elements),
        int(How.TN) if with_tn else 0, elements,
    )  # fmt: skip
    pooled = constants["HOW"] & How.POOLED
    chunks = plan.chunks * plan.class_tiles if pooled else plan.chunks
    groups = plan.samples * classes
    dtype = reference.accumulator(input)
    if not input.numel():
        return plan.samples, classes, input.new_empty((rows, 0, groups), dtype=dtype)
    sums = input.new_empty((rows, chunks, groups), dtype=dtype)
    operands = (input, target, weight, *numbers, chunks * groups, groups, *walk)
    if not plan.kept:
        kernel = softmax_sums_kernel if plan.looped else pixel_sums_kernel
        kernel[(plan.programs,)](sums, *operands, N=rows, **constants)
        return plan.samples, classes, sums
    pixels = plan.samples * plan.pixels
    kept = input.new_empty((3 if elements.extra & Extra.HARD else 2, pixels), dtype=dtype)
    if before is not None:
        softmax_walk_kernel[(before.plan.programs,)](
            kept, pixels, plan.pixels, input, target, weight, *before.numbers, *before.walk,
            **before.constants,
        )  # fmt: skip
    softmax_kept_sums_kernel[(plan.programs,)](
        sums, kept, pixels, plan.pixels, *operands, WALKS=before is None, N=rows, **constants
    )
    return plan.samples, classes, sums


def backward(
    out: Tensor,
    grad: Tensor | None,
    grad_strides: tuple[int, int],
    coefficients: Tensor,
    data: Data,
    wrt: Wrt,
    elements: Elements,
) -> None:
    """Writes ``out``, the gradient by one operand."""
    input, target, weight = data
    elements = hashable(elements)
    launch = prepare(
        (strided(input), strided(target), strided(weight), strided(out)), input.dtype,
        target.dtype == torch.bool, ignores_nan(input, target, elements),
        _KEEPING if wrt.wrt == WEIGHT else int(How.TN), elements,
    )  # fmt: skip
    plan = launch.plan
    kernel = softmax_gradient_kernel if plan.looped else pixel_gradient_kernel
    kernel[(plan.programs,)](
        out, grad, coefficients, input, target, weight, *launch.numbers, *grad_strides,
        plan.samples * launch.classes, *launch.walk,
        WRT=wrt.wrt, N=launch.rows, **launch.constants,
    )  # fmt: skip
