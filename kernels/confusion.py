"""The soft confusion sums and their gradient in Triton: the twin of csrc/cuda/confusion.cu.

Forward is two launches: the pass over the data, which leaves partial sums, and their score
(score.py; two launches for many groups).  Where the pass leaves thousands of partial sums per
group, a launch in between adds most of them up (fold.py).  Backward is one launch.  No atomics:
every partial sum has its own place, and they are added in a fixed order.  Nothing here waits for
the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from customloss import reference
from customloss._spec.arguments import Data, Elements, Incoming, Scoring, Wrt
from customloss._spec.words import ABSENT, INPUT, SIGMOID, TARGET, WEIGHT

from . import pixel
from .element import groups_of, groups_of_samples, number, offsets, probability, tile_rows, weigh
from .fold import total_sums
from .group import load_sums
from .launch import ALIGNMENT_IRRELEVANT, on, strided
from .layout import Plan, inner_sizes, plan, scaled
from .score import loss_shape, score, sums_score

__all__ = ["confusion", "confusion_backward", "confusion_score", "refusal", "sums_score"]

# four warps have eight elements of a tile for each thread; enable_fp_fusion is spelt out because
# Triton's default for it changes with 3.10
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}

# Triton compiles a kernel of its own for an argument that is 1 or a multiple of 16, so that loads
# can be wide.  These arguments do not affect the width of a load, so no value of them needs that.
COUNTS = ["plane", "tiles", "pieces", "grad_sample", "grad_class"]

_INPUT, _TARGET, _WEIGHT = tl.constexpr(INPUT), tl.constexpr(TARGET), tl.constexpr(WEIGHT)


# ---- forward ---------------------------------------------------------------------------------


@triton.jit
def _tile_sums(
    tp, fp, fn, tn, x_ptr, t_ptr, w_ptr, scale, offset, x_at, t_at, w_at, inside,
    SIGMOID: tl.constexpr, AFFINE: tl.constexpr, WIDE: tl.constexpr, HARD: tl.constexpr,
    TN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds one tile to the accumulators."""
    # all loads come before any arithmetic, so that many bytes are in flight at once
    if MASKED:
        x = tl.load(x_ptr + x_at, mask=inside, other=0)
        t = tl.load(t_ptr + t_at, mask=inside, other=0)
        if w_ptr is not None:
            w = tl.load(w_ptr + w_at, mask=inside, other=0)
    else:
        x = tl.load(x_ptr + x_at)
        t = tl.load(t_ptr + t_at)
        if w_ptr is not None:
            w = tl.load(w_ptr + w_at)
    p, q = probability(number(x, WIDE), scale, offset, SIGMOID, AFFINE, WIDE)
    if w_ptr is not None:
        w = number(w, WIDE)
        p = weigh(p, w)
        q = weigh(q, w)
    elif MASKED:
        p = tl.where(inside, p, 0.0)
        q = tl.where(inside, q, 0.0)
    if HARD:
        # selecting by a hard target gives the value of the product, and is cheaper
        t = t != 0
        tp += tl.where(t, p, 0.0)
        fp += tl.where(t, 0.0, p)
        fn += tl.where(t, q, 0.0)
        if TN:
            tn += tl.where(t, 0.0, q)
    else:
        t = number(t, WIDE)
        if w_ptr is not None:
            t = tl.where(w == 0.0, 0.0, t)
        u = 1.0 - t
        tp += t * p
        fp += u * p
        fn += t * q
        if TN:
            tn += u * q
    return tp, fp, fn, tn


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def sums_kernel(
    partials, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64,
    plane, groups, classes, column_tiles, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides,
    AXES: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, ONE_SAMPLE: tl.constexpr, LONG: tl.constexpr, SIGMOID: tl.constexpr,
    AFFINE: tl.constexpr, WIDE: tl.constexpr, HARD: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """The soft confusion sums of a chunk of every group.

    Maths:  tp = Σ w t p, fp = Σ w (1-t) p, fn = Σ w t q, tn = Σ w (1-t) q (TN) with
            p = sigmoid(scale (x - offset)) or x, q = 1 - p
    Launch: one program per chunk of `per_chunk` tiles x COLS groups; neighbouring programs
            share rows of memory
    Moves:  reads input, target and weight once; writes 3 or 4 floats per chunk and group
    """
    pid = tl.program_id(0)
    groups = groups_of_samples(classes, groups, ONE_SAMPLE)
    group, sample, cls = groups_of(pid, column_tiles, classes, ONE_SAMPLE, LONG, COLS)
    chunk = pid // column_tiles
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, tiles)
    if LONG:
        first = first.to(tl.int64)
        last = last.to(tl.int64)
    DTYPE: tl.constexpr = tl.float64 if WIDE else tl.float32
    scale = tl.full([1, 1], scale, DTYPE)
    offset = tl.full([1, 1], offset, DTYPE)
    tp = tl.zeros([ROWS, COLS], DTYPE)
    fp = tl.zeros([ROWS, COLS], DTYPE)
    fn = tl.zeros([ROWS, COLS], DTYPE)
    tn = tl.zeros([ROWS, COLS], DTYPE)
    masked_from = first
    if EVEN or (AXES == 1 and COLS == 1):
        # full tiles go without a mask, because it would split their loads where the size is odd
        masked_from = last
        if not EVEN:
            masked_from = tl.maximum(first, tl.minimum(last, sizes[0] // ROWS))
        for tile in range(first, masked_from):
            row, outer, inside = tile_rows(tile, pieces, sizes, reduced, AXES, SPLIT, ROWS)
            tp, fp, fn, tn = _tile_sums(
                tp, fp, fn, tn, x_ptr, t_ptr, w_ptr, scale, offset,
                offsets(x_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(t_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(w_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                None, SIGMOID, AFFINE, WIDE, HARD, TN, False,
            )  # fmt: skip
    if not EVEN:
        for tile in range(masked_from, last):
            row, outer, inside = tile_rows(tile, pieces, sizes, reduced, AXES, SPLIT, ROWS)
            tp, fp, fn, tn = _tile_sums(
                tp, fp, fn, tn, x_ptr, t_ptr, w_ptr, scale, offset,
                offsets(x_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(t_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(w_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                inside[:, None] & (group < groups)[None, :],
                SIGMOID, AFFINE, WIDE, HARD, TN, True,
            )  # fmt: skip
    at = partials + chunk.to(tl.int64) * groups + group
    # `at` steps from plane to plane because 3 * plane may not fit in 32 bits
    tl.store(at, tl.sum(tp, 0), mask=group < groups)
    at += plane
    tl.store(at, tl.sum(fp, 0), mask=group < groups)
    at += plane
    tl.store(at, tl.sum(fn, 0), mask=group < groups)
    if TN:
        at += plane
        tl.store(at, tl.sum(tn, 0), mask=group < groups)


# ---- backward --------------------------------------------------------------------------------


@triton.jit
def _tile_gradient(
    out, x_ptr, t_ptr, w_ptr, scale, offset, out_at, x_at, t_at, w_at, inside, influence,
    a, b, c, d, WRT: tl.constexpr, SIGMOID: tl.constexpr, AFFINE: tl.constexpr, WIDE: tl.constexpr,
    HARD: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of one tile."""
    if MASKED:
        x = tl.load(x_ptr + x_at, mask=inside, other=0)
        if WRT != _TARGET:
            t = tl.load(t_ptr + t_at, mask=inside, other=0)
        if w_ptr is not None:
            w = tl.load(w_ptr + w_at, mask=inside, other=0)
    else:
        x = tl.load(x_ptr + x_at)
        if WRT != _TARGET:
            t = tl.load(t_ptr + t_at)
        if w_ptr is not None:
            w = tl.load(w_ptr + w_at)
    x = number(x, WIDE)
    if w_ptr is not None:
        w = number(w, WIDE)
    p, q = probability(x, scale, offset, SIGMOID, AFFINE, WIDE)
    if WRT != _TARGET:
        t = t != 0 if HARD else number(t, WIDE)
    if WRT == _INPUT:
        g = tl.where(t, a, b) if HARD else t * a + (1.0 - t) * b
        if SIGMOID:
            slope = p * q
            if AFFINE:
                slope = scale * slope
            g = slope * g
    elif WRT == _TARGET:
        g = p * a + q * b
    else:
        if HARD:
            g = tl.where(t, p * a + q * b, p * c + q * d)
        else:
            g = t * (p * a + q * b) + (1.0 - t) * (p * c + q * d)
    if w_ptr is not None:
        removed = (w == 0.0) & ((g - g) != 0.0)  # weight 0, and g is not finite
        g = tl.where(removed, 0.0, g) if WRT == _WEIGHT else weigh(g, w)
    g = tl.where(influence == 0.0, 0.0, g)
    if out.dtype.element_ty.primitive_bitwidth < 32:
        g = g.to(tl.float32)  # float64 has no direct conversion to bfloat16
    if MASKED:
        tl.store(out + out_at, g, mask=inside)
    else:
        tl.store(out + out_at, g)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def gradient_kernel(
    out, grad, coefficients, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64,
    grad_sample, grad_class, groups, classes, column_tiles, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides, out_strides,
    WRT: tl.constexpr, AXES: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ONE_SAMPLE: tl.constexpr, LONG: tl.constexpr,
    SIGMOID: tl.constexpr, AFFINE: tl.constexpr, WIDE: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """The gradient of every element, from the gradient by the sums of its group.

    Maths:  input   w dp/dx (t a + (1-t) b)                a = g_tp - g_fn   b = g_fp - g_tn
            target  w (p a + q b)                          a = g_tp - g_fp   b = g_fn - g_tn
            weight  t (p a + q b) + (1-t) (p c + q d)      a, b, c, d = g_tp, g_fn, g_fp, g_tn
            with g the coefficients of the group times the incoming gradient
    Launch: one program per chunk of `per_chunk` tiles x COLS groups
    Moves:  reads input, target (not for WRT target) and weight once, writes the gradient once
    """
    pid = tl.program_id(0)
    groups = groups_of_samples(classes, groups, ONE_SAMPLE)
    group, sample, cls = groups_of(pid, column_tiles, classes, ONE_SAMPLE, LONG, COLS)
    chunk = pid // column_tiles
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, tiles)
    if LONG:
        first = first.to(tl.int64)
        last = last.to(tl.int64)
    DTYPE: tl.constexpr = tl.float64 if WIDE else tl.float32
    scale = tl.full([1, 1], scale, DTYPE)
    offset = tl.full([1, 1], offset, DTYPE)

    known = group < groups
    tp, fp, fn, tn = load_sums(coefficients, groups, group, known)
    if grad is not None:
        g = tl.load(grad + sample * grad_sample + cls * grad_class, mask=known, other=0.0)
        g = g.to(tl.float64)
        tp *= g
        fp *= g
        fn *= g
        tn *= g
    if WRT == _INPUT:
        a, b = tp - fn, fp - tn
    elif WRT == _TARGET:
        a, b = tp - fp, fn - tn
    else:
        a, b = tp, fn
    a = a.to(DTYPE)[None, :]
    b = b.to(DTYPE)[None, :]
    c = fp.to(DTYPE)[None, :]
    d = tn.to(DTYPE)[None, :]
    # Where this is 0 the loss does not depend on a group, and its gradient is 0, whatever its
    # elements hold. (Triton keeps a tensor of truth values on the stack.)
    influence = tl.abs(a) + tl.abs(b)
    if WRT == _WEIGHT:
        influence += tl.abs(c) + tl.abs(d)

    masked_from = first
    if EVEN or (AXES == 1 and COLS == 1):
        masked_from = last
        if not EVEN:
            masked_from = tl.maximum(first, tl.minimum(last, sizes[0] // ROWS))
        for tile in range(first, masked_from):
            row, outer, inside = tile_rows(tile, pieces, sizes, reduced, AXES, SPLIT, ROWS)
            _tile_gradient(
                out, x_ptr, t_ptr, w_ptr, scale, offset,
                offsets(out_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(x_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(t_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(w_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                None, influence, a, b, c, d, WRT, SIGMOID, AFFINE, WIDE, HARD, False,
            )  # fmt: skip
    if not EVEN:
        for tile in range(masked_from, last):
            row, outer, inside = tile_rows(tile, pieces, sizes, reduced, AXES, SPLIT, ROWS)
            _tile_gradient(
                out, x_ptr, t_ptr, w_ptr, scale, offset,
                offsets(out_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(x_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(t_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                offsets(w_strides, sizes, sample, cls, row, outer, AXES, SPLIT),
                inside[:, None] & known[None, :],
                influence, a, b, c, d, WRT, SIGMOID, AFFINE, WIDE, HARD, True,
            )  # fmt: skip


# ---- launches --------------------------------------------------------------------------------


def refusal(device: torch.device) -> str | None:
    """Why Triton cannot run on ``device``; None if it can."""
    if not isinstance(sums_kernel, triton.JITFunction):
        return None  # the interpreter (TRITON_INTERPRET=1) runs anywhere
    if device.type in ("cuda", "xpu"):
        return None
    return (
        f'backend "triton" needs a CUDA, ROCm or XPU tensor, got one on {device} '
        "(TRITON_INTERPRET=1, set before customloss is imported, runs it on the CPU)"
    )


def _constants(plan: Plan, data: Data, elements: Elements) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {
        "AXES": len(plan.sizes),
        "SPLIT": plan.split,
        "EVEN": plan.even,
        "ROWS": plan.rows,
        "COLS": plan.cols,
        "ONE_SAMPLE": plan.samples == 1,
        "LONG": plan.long,
        "SIGMOID": elements.activation == SIGMOID,
        "AFFINE": (elements.scale, elements.offset) != (1.0, 0.0),
        "WIDE": data.input.dtype == torch.float64,
        "HARD": data.target.dtype == torch.bool,
        **OPTIONS,
    }


def _partials(data: Data, elements: Elements, with_tn: bool) -> tuple[int, int, Tensor]:
    """Runs the pass over the data: samples, classes, partial sums ``[rows, chunks, groups]``."""
    if pixel.by_pixel(data, elements):
        return pixel.partials(data, elements, with_tn)
    input, target, weight = data
    operands = (strided(input), strided(target), strided(weight))
    launch = plan(operands, elements.per_sample, elements.per_class)
    partials = input.new_empty(
        (4 if with_tn else 3, launch.chunks, launch.groups), dtype=reference.accumulator(input)
    )
    if partials.numel():
        sums_kernel[(launch.chunks * launch.column_tiles,)](
            partials, input, target, weight, elements.scale, elements.offset,
            launch.chunks * launch.groups, launch.groups, launch.classes, launch.column_tiles,
            launch.reduced, launch.tiles, launch.pieces, launch.per_chunk,
            inner_sizes(launch.sizes), *map(scaled, launch.strides),
            TN=with_tn, **_constants(launch, data, elements),
        )  # fmt: skip
    return launch.samples, launch.classes, partials


def confusion(data: Data, elements: Elements) -> Tensor:
    """See ``customloss::confusion``."""
    with on(data.input):
        samples, classes, partials = _partials(data, elements, True)
        return total_sums(partials, samples, classes)


def confusion_score(data: Data, elements: Elements, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """See ``customloss::confusion_score``."""
    with_tn = scoring.absent == ABSENT.index("penalize")  # nothing else needs tn
    with on(data.input):
        samples, classes, partials = _partials(data, elements, with_tn)
        shape = loss_shape(
            scoring,
            samples if elements.per_sample else None,
            classes if elements.per_class else None,
        )
        loss = partials.new_empty(shape, dtype=reference.accumulator(data.input))
        coefficients = score(partials, samples, classes, scoring, loss)
    return loss, coefficients


def _empty_gradient(data: Data, wrt: int) -> Tensor:
    if wrt == WEIGHT:
        return data.input.new_empty(data.input.shape, dtype=reference.accumulator(data.input))
    return torch.empty_like(data.input if wrt == INPUT else data.target)


def _strides_by_group(grad: Tensor | None, per_sample: bool) -> tuple[int, int]:
    """The strides of the incoming gradient along samples and classes, 0 for a dimension that it
    lacks."""
    if grad is None or grad.dim() == 0:
        return 0, 0
    if grad.dim() == 2:
        return grad.stride(0), grad.stride(1)
    return (grad.stride(0), 0) if per_sample else (0, grad.stride(0))


def confusion_backward(incoming: Incoming, data: Data, wrt: Wrt, elements: Elements) -> Tensor:
    """See ``customloss::confusion_backward``."""
    out = _empty_gradient(data, wrt.wrt)
    if not out.numel():
        return out
    grad, coefficients = incoming.grad, incoming.coefficients.contiguous()
    grad_strides = _strides_by_group(grad, elements.per_sample)
    with on(data.input):
        if pixel.by_pixel(data, elements):
            pixel.backward(out, grad, grad_strides, coefficients, data, wrt, elements)
            return out
        input, target, weight = data
        operands = (strided(input), strided(target), strided(weight), strided(out))
        launch = plan(operands, elements.per_sample, elements.per_class)
        gradient_kernel[(launch.chunks * launch.column_tiles,)](
            out, grad, coefficients, input, target, weight, elements.scale, elements.offset,
            *grad_strides, launch.groups, launch.classes, launch.column_tiles, launch.reduced,
            launch.tiles, launch.pieces, launch.per_chunk, inner_sizes(launch.sizes),
            *map(scaled, launch.strides), WRT=wrt.wrt, **_constants(launch, data, elements),
        )  # fmt: skip
    return out
