"""The softmax of many classes: a program walks over the classes of its pixels in blocks.

The first walk finds the largest logit and the sum of the exponentials, which it rescales as the
largest grows.  The next, out of the caches, adds up the sums of every class or writes its gradient.

The sums of a class over a few pixels are as many bytes as the pixels.  Where that is so, what the
walk found is kept, 8 bytes a pixel, and a program adds up several tiles of a block of classes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import pixel_element as element
from .element import number, tile_rows
from .launch import ALIGNMENT_IRRELEVANT
from .pixel_tile import (
    COUNTS,
    INFINITY,
    WRT_INPUT,
    above,
    at_of,
    by_sums,
    counting,
    get,
    known_multiple,
    largest_of,
    leave,
    logits,
    logits_at,
    mixed_slopes,
    over_pixels,
    own_gradient,
    pixels_of,
    plus,
    pooled,
    program,
    put,
    sum_below_one,
    tile_of,
    zeros,
)


@triton.jit
def classes_from(start, CLASSES: tl.constexpr, HOW: tl.constexpr):
    c = (start + tl.arange(0, CLASSES))[None, :]
    if element.LONG & HOW:
        c = c.to(tl.int64)
    return c


@triton.jit
def _walk(
    x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer, exists,
    classes, ignore, scale, live,
    FIRST: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
    HOW: tl.constexpr,
):  # fmt: skip
    """Of every pixel, as [P, 1]: the largest logit and its class (FIRST), the sum `rest` of the
    exponentials of the others, 1 / (1 + rest), and whether it counts."""
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    masked: tl.constexpr = ((element.EVEN & HOW) == 0) or ((element.PADDED & HOW) != 0)
    largest = tl.full([PIXELS, 1], -INFINITY, DTYPE)
    whole = tl.full([PIXELS, 1], 0.0, DTYPE)
    others = tl.full([PIXELS, 1], 0.0, DTYPE)
    first = tl.full([PIXELS, 1], 0, tl.int32)
    weights = tl.full([PIXELS, 1], 0, tl.int32)
    for start in range(0, classes, CLASSES):
        c = classes_from(start, CLASSES, HOW)
        mask = exists & (c < classes)
        x = get(x_ptr, logits_at(x_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
        x = number(x, (element.WIDE & HOW) != 0)
        if element.BARE & HOW:
            t = get(t_ptr, at_of(t_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
            x = tl.where(counting(t, ignore, HOW), x, 0.0)
        if (element.EACH & HOW) and not (element.KEEP & HOW):
            w = get(w_ptr, at_of(w_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
            weights = tl.maximum(weights, tl.max((w != 0).to(tl.int32), 1)[:, None])
        z = logits(x, scale, c, classes, HOW)
        block_largest, block_first = largest_of(z, c, FIRST)
        higher = block_largest > largest
        new = tl.where(higher, block_largest, largest)
        base = tl.where(new == -INFINITY, 0.0, new)  # inf - inf would leave a NaN in the sums
        e = element.exponential(above(z, base, scale, HOW), HOW)
        shrunk = element.exponential(above(largest, base, scale, HOW), HOW)
        # the largest so far becomes one of the others
        others = tl.where(higher, whole, others) * shrunk + sum_below_one(e)
        whole = whole * shrunk + tl.sum(e, 1)[:, None]
        largest = new
        if FIRST:
            first = tl.where(higher, block_first, first)
    rest, inverse = element.softmax_sums(whole, others)
    if (element.EACH & HOW) and not (element.KEEP & HOW):
        live = live & (weights > 0)
    if element.MASKED & HOW:
        largest = tl.where(live, largest, 0.0)
        rest = tl.where(live, rest, 0.0)
        inverse = tl.where(live, inverse, 0.0)
    return largest, first, rest, inverse, live


@triton.jit
def _block(
    x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer, exists,
    classes, ignore, scale, smoothing, y, live, w, largest, rest, inverse,
    EXTRA: tl.constexpr, AXES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """p, q, -log p, the target, w and live for the classes c of pixels that _walk has been over."""
    x, target, w, live = tile_of(
        x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
        exists, classes, ignore, smoothing, y, live, w, AXES, False, HOW,
    )  # fmt: skip
    shifted = above(logits(x, scale, c, classes, HOW), largest, scale, HOW)
    e = element.exponential(shifted, HOW)
    p, q, positive = element.softmax_outcome(shifted, e, rest, inverse, EXTRA)
    return p, q, positive, target, w, live


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def softmax_sums_kernel(
    partials, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64, on: tl.float64,
    off: tl.float64, log_on: tl.float64, log_off: tl.float64, gamma: tl.float64, ignore, plane,
    groups, classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides,
    N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr,
    CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The N sums of a tile of the pixels of a sample, whose classes do not fit a tile.

    Maths:  as pixel_sums_kernel; max z and Σ exp(z - max z) from a first walk over the classes
    Launch: one program per sample and tile of pixels
    Moves:  reads input twice, the second time out of a cache, and target and weight once; writes N
            floats per tile and group
    """
    _c, tile, sample, _first, _last = program(1, chunks, tiles, 1, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    first_largest: tl.constexpr = (element.HARD & EXTRA) != 0
    scale = tl.full([1, 1], scale, DTYPE)
    smoothing = element.smoothing_of(on, off, log_on, log_off, HOW)
    gamma = tl.full([1, 1], gamma, DTYPE)
    row, outer, inside = tile_rows(
        tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
    )
    exists = inside[:, None]
    y, live, w = pixels_of(
        t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, exists, classes, ignore,
        AXES, HOW,
    )  # fmt: skip
    largest, first, rest, inverse, live = _walk(
        x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer, exists,
        classes, ignore, scale, live, first_largest, AXES, PIXELS, CLASSES, HOW,
    )  # fmt: skip
    sums = zeros(N, PIXELS, 1, HOW)
    for start in range(0, classes, CLASSES):
        c = classes_from(start, CLASSES, HOW)
        p, q, positive, target, own_w, own_live = _block(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            exists, classes, ignore, scale, smoothing, y, live, w, largest, rest, inverse,
            EXTRA, AXES, HOW,
        )  # fmt: skip
        share = element.shares(
            p, q, positive, positive, c == first, target, gamma, own_w, own_live, EXTRA, HOW
        )
        if element.POOLED & HOW:
            sums = plus(sums, pooled(share, c, classes, N, HOW), N)
        else:
            leave(partials, plane, groups, share, tile, sample, c, classes, N, HOW)
    if element.POOLED & HOW:
        c = tl.arange(0, 1)[None, :]
        leave(partials, plane, groups, sums, tile, sample, c, classes, N, HOW)


# ---- sums of several tiles ---------------------------------------------------------------------


@triton.jit
def _kept_at(sample, row, outer, sizes, pixels, AXES: tl.constexpr, HOW: tl.constexpr):
    """The flat index of pixels [P, 1]."""
    at = row
    if element.SPLIT & HOW:
        at += outer * sizes[AXES - 1]
    return (sample * pixels + at)[:, None]


@triton.jit
def _keep(kept, plane, at, exists, largest, first, rest, live, FIRST: tl.constexpr):
    kept += at
    tl.store(kept, largest, mask=exists)
    kept += plane
    tl.store(kept, tl.where(live, rest, -1.0), mask=exists)  # a pixel that counts has rest >= 0
    if FIRST:
        kept += plane
        tl.store(kept, first.to(largest.dtype, bitcast=largest.dtype.primitive_bitwidth == 32),
                 mask=exists)  # fmt: skip


@triton.jit
def _recall(kept, plane, at, exists, live, FIRST: tl.constexpr, HOW: tl.constexpr):
    """Loads what _walk returned."""
    kept += at
    largest = tl.load(kept, mask=exists, other=0.0)
    kept += plane
    rest = tl.load(kept, mask=exists, other=-1.0)
    inverse = 1.0 / (1.0 + rest)
    if element.MASKED & HOW:
        live = live & ~(rest < 0.0)  # a NaN counts
        inverse = tl.where(live, inverse, 0.0)
        rest = tl.where(live, rest, 0.0)
    first = tl.full(largest.shape, 0, tl.int32)
    if FIRST:
        kept += plane
        bits = tl.load(kept, mask=exists, other=0.0)
        first = bits.to(tl.int32, bitcast=largest.dtype.primitive_bitwidth == 32)
    return largest, first, rest, inverse, live


@triton.jit
def _walk_and_keep(
    kept, kept_plane, pixels, x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample,
    tile, pieces, reduced, classes, ignore, scale,
    FIRST: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
    HOW: tl.constexpr,
):  # fmt: skip
    row, outer, inside = tile_rows(
        tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
    )
    exists = inside[:, None]
    _, live, _ = pixels_of(
        t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, exists, classes, ignore,
        AXES, HOW,
    )  # fmt: skip
    largest, first, rest, _, live = _walk(
        x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer, exists,
        classes, ignore, scale, live, FIRST, AXES, PIXELS, CLASSES, HOW,
    )  # fmt: skip
    at = _kept_at(sample, row, outer, sizes, pixels, AXES, HOW)
    _keep(kept, kept_plane, at, exists, largest, first, rest, live, FIRST)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def softmax_walk_kernel(
    kept, kept_plane, pixels, x_ptr, t_ptr, w_ptr, scale: tl.float64, ignore,
    classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides,
    EXTRA: tl.constexpr, AXES: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
    HOW: tl.constexpr,
):  # fmt: skip
    """What the sums of every class need to know of a tile of pixels.

    Maths:  max z, Σ exp(z - max z) without one largest, and its class where EXTRA asks for it
    Launch: one program per sample and tile of pixels
    Moves:  reads input once; writes 2 or 3 floats per pixel
    """
    _c, tile, sample, _first, _last = program(1, chunks, tiles, 1, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    _walk_and_keep(
        kept, kept_plane, pixels, x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes,
        sample, tile, pieces, reduced, classes, ignore, tl.full([1, 1], scale, DTYPE),
        (element.HARD & EXTRA) != 0, AXES, PIXELS, CLASSES, HOW,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def softmax_kept_sums_kernel(
    partials, kept, kept_plane, pixels, x_ptr, t_ptr, w_ptr, scale: tl.float64,
    offset: tl.float64, on: tl.float64, off: tl.float64, log_on: tl.float64, log_off: tl.float64,
    gamma: tl.float64, ignore, plane, groups,
    classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides,
    WALKS: tl.constexpr, N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The N sums of a chunk of the pixels of a sample, whose classes do not fit a tile.

    Maths:  as softmax_sums_kernel
    Launch: one program per sample and chunk of `per_chunk` tiles; without WALKS also per tile of
            classes, after softmax_walk_kernel
    Moves:  reads input twice, the second time out of a cache (WALKS), target and weight once per
            block of classes, and what was kept of the pixels; writes N floats per chunk and group
    """
    _c, chunk, sample, first_tile, last_tile = program(
        class_tiles, chunks, tiles, per_chunk, CLASSES, HOW
    )
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    FIRST: tl.constexpr = (element.HARD & EXTRA) != 0
    scale = tl.full([1, 1], scale, DTYPE)
    smoothing = element.smoothing_of(on, off, log_on, log_off, HOW)
    gamma = tl.full([1, 1], gamma, DTYPE)
    begin = (tl.program_id(0) % class_tiles) * CLASSES
    end = tl.minimum(begin + CLASSES, classes)
    if WALKS:
        for tile in range(first_tile, last_tile):
            _walk_and_keep(
                kept, kept_plane, pixels, x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides,
                sizes, sample, tile, pieces, reduced, classes, ignore, scale,
                FIRST, AXES, PIXELS, CLASSES, HOW,
            )  # fmt: skip
        tl.debug_barrier()  # what one thread kept, another may recall
        end = classes
    for start in range(begin, end, CLASSES):
        c = classes_from(start, CLASSES, HOW)
        sums = zeros(N, 1, CLASSES, HOW)
        for tile in range(first_tile, last_tile):
            row, outer, inside = tile_rows(
                tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
            )
            exists = inside[:, None]
            y, live, w = pixels_of(
                t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, exists, classes,
                ignore, AXES, HOW,
            )  # fmt: skip
            at = _kept_at(sample, row, outer, sizes, pixels, AXES, HOW)
            largest, first, rest, inverse, live = _recall(
                kept, kept_plane, at, exists, live, FIRST, HOW
            )
            p, q, positive, target, own_w, own_live = _block(
                x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
                exists, classes, ignore, scale, smoothing, y, live, w, largest, rest, inverse,
                EXTRA, AXES, HOW,
            )  # fmt: skip
            share = element.shares(
                p, q, positive, positive, c == first, target, gamma, own_w, own_live, EXTRA, HOW
            )
            sums = plus(sums, over_pixels(share, N), N)
        leave(partials, plane, groups, sums, chunk, sample, c, classes, N, HOW)


# ---- gradient ----------------------------------------------------------------------------------


@triton.jit
def _slope_at(
    c, coefficients, grad, groups, grad_sample, grad_class,
    x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer, exists,
    classes, ignore, scale, smoothing, gamma, y, live, w, largest, rest, inverse,
    N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """w dL/dp of one class of each pixel."""
    if element.LONG & HOW:
        c = c.to(tl.int64)
    p, q, positive, target, w, _ = _block(
        x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
        exists, classes, ignore, scale, smoothing, y, live, w, largest, rest, inverse,
        EXTRA, AXES, HOW,
    )  # fmt: skip
    g = by_sums(
        coefficients, grad, groups, grad_sample, grad_class, sample, c, classes,
        WRT_INPUT, N, EXTRA, HOW,
    )  # fmt: skip
    u, _ = mixed_slopes(p, q, positive, target, w, gamma, g, c, classes, EXTRA, HOW)
    return u


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ALIGNMENT_IRRELEVANT)
def softmax_gradient_kernel(
    out, grad, coefficients, x_ptr, t_ptr, w_ptr, scale: tl.float64, offset: tl.float64,
    on: tl.float64, off: tl.float64, log_on: tl.float64, log_off: tl.float64, gamma: tl.float64,
    ignore, grad_sample, grad_class, groups,
    classes, class_tiles, chunks, reduced, tiles, pieces, per_chunk,
    sizes, x_strides, t_strides, w_strides, out_strides,
    WRT: tl.constexpr, N: tl.constexpr, EXTRA: tl.constexpr, AXES: tl.constexpr,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The gradient of every element of a tile of pixels, whose classes do not fit a tile.

    Maths:  as pixel_gradient_kernel; a first walk finds max z and Σ exp(z - max z), and for the
            gradient by the input a second finds Σ p_c v_c and Σ h_c
    Launch: one program per sample and tile of pixels
    Moves:  reads input, target and weight once a walk, all but the first time out of a cache;
            writes the gradient once
    """
    _c, tile, sample, _first, _last = program(1, chunks, tiles, 1, CLASSES, HOW)
    classes = known_multiple(classes, HOW)
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    first_largest: tl.constexpr = ((element.HARD & EXTRA) != 0) or (WRT == WRT_INPUT)
    scale = tl.full([1, 1], scale, DTYPE)
    smoothing = element.smoothing_of(on, off, log_on, log_off, HOW)
    gamma = tl.full([1, 1], gamma, DTYPE)
    row, outer, inside = tile_rows(
        tile, pieces, sizes, reduced, AXES, (element.SPLIT & HOW) != 0, PIXELS
    )
    exists = inside[:, None]
    y, live, w = pixels_of(
        t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, exists, classes, ignore,
        AXES, HOW,
    )  # fmt: skip
    largest, first, rest, inverse, live = _walk(
        x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer, exists,
        classes, ignore, scale, live, first_largest, AXES, PIXELS, CLASSES, HOW,
    )  # fmt: skip
    top = tl.full([PIXELS, 1], 0.0, DTYPE)
    dot = tl.full([PIXELS, 1], 0.0, DTYPE)
    logs = tl.full([PIXELS, 1], 0.0, DTYPE)
    if WRT == WRT_INPUT:
        top = _slope_at(
            first, coefficients, grad, groups, grad_sample, grad_class,
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, row, outer,
            exists, classes, ignore, scale, smoothing, gamma, y, live, w, largest, rest, inverse,
            N, EXTRA, AXES, HOW,
        )  # fmt: skip
        for start in range(0, classes, CLASSES):
            c = classes_from(start, CLASSES, HOW)
            p, q, positive, target, own_w, own_live = _block(
                x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row,
                outer, exists, classes, ignore, scale, smoothing, y, live, w, largest, rest,
                inverse, EXTRA, AXES, HOW,
            )  # fmt: skip
            g = by_sums(
                coefficients, grad, groups, grad_sample, grad_class, sample, c, classes,
                WRT, N, EXTRA, HOW,
            )  # fmt: skip
            u, h = mixed_slopes(p, q, positive, target, own_w, gamma, g, c, classes, EXTRA, HOW)
            dot += tl.sum(p * (u - top), 1)[:, None]
            if element.LOGS & EXTRA:
                logs += tl.sum(h, 1)[:, None]
    for start in range(0, classes, CLASSES):
        c = classes_from(start, CLASSES, HOW)
        p, q, positive, target, own_w, own_live = _block(
            x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer,
            exists, classes, ignore, scale, smoothing, y, live, w, largest, rest, inverse,
            EXTRA, AXES, HOW,
        )  # fmt: skip
        g = by_sums(
            coefficients, grad, groups, grad_sample, grad_class, sample, c, classes,
            WRT, N, EXTRA, HOW,
        )  # fmt: skip
        if WRT == WRT_INPUT:
            u, h = mixed_slopes(p, q, positive, target, own_w, gamma, g, c, classes, EXTRA, HOW)
            total = p * ((u - top) - dot)
            if element.LOGS & EXTRA:
                total += p * (logs - h) - q * h
            if element.AFFINE & HOW:
                total = scale * total
        else:
            total = own_gradient(
                p, q, positive, positive, c == first, target, own_w, g, scale, smoothing, gamma,
                WRT, EXTRA, HOW,
            )  # fmt: skip
        put(
            out, out_strides, sizes, sample, c, row, outer, exists, own_live, classes, total,
            AXES, HOW,
        )  # fmt: skip
