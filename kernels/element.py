"""The maths of one element, and where it lies in memory: the twin of csrc/element.h."""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


# ---- one element -----------------------------------------------------------------------------


@triton.jit
def number(value, WIDE: tl.constexpr):
    """``value`` as float32, or as float64 if WIDE."""
    bits: tl.constexpr = value.dtype.primitive_bitwidth
    if WIDE:
        result = value.to(tl.float64)
    elif value.dtype.is_int() and bits > 1 and bits < 32:
        # adding to the bits of 12582912 = 1.5 * 2^23 puts the integer into the mantissa: two cheap
        # operations, where the conversion instruction would queue up behind exp2 and the division
        shifted = value.to(tl.int32) + 0x4B400000
        result = shifted.to(tl.float32, bitcast=True) - 12582912.0
    else:
        result = value.to(tl.float32)
    return result


@triton.jit
def probability(x, scale, offset, SIGMOID: tl.constexpr, AFFINE: tl.constexpr, WIDE: tl.constexpr):
    """p and q = 1 - p, both from e = exp(-|z|): q never cancels, and ±inf gives exact 0 and 1."""
    if SIGMOID:
        z = x
        if AFFINE:
            z = scale * (x - offset)
        e = tl.exp(-tl.abs(z)) if WIDE else tl.exp2(tl.abs(z) * -_LOG2_E)
        big = 1.0 / (1.0 + e)
        small = e * big
        p = tl.where(z < 0, small, big)
        q = tl.where(z < 0, big, small)
    else:
        p = x
        q = 1.0 - x
    return p, q


@triton.jit
def weigh(value, w):
    """w * value.  Weight 0 removes the element, whatever it holds: a NaN there must not leak."""
    return tl.where(w == 0.0, 0.0, w * value)


# ---- places ----------------------------------------------------------------------------------


@triton.jit
def stride_of(strides, k: tl.constexpr):
    """One of the strides that layout.scaled made."""
    stride = strides[k]
    if strides[-1] is not None:
        stride = (stride + 15) >> 4  # 1 stays 1
    return stride


@triton.jit
def _along(index, sizes, strides, AXES: tl.constexpr):
    """The offset of a flat index over the AXES outermost reduced axes."""
    offset = index * 0
    for i in tl.static_range(AXES):
        if i == AXES - 1:
            offset += index * stride_of(strides, 2)
        else:
            offset += (index % sizes[AXES - 1 - i]) * stride_of(strides, AXES + 1 - i)
            index = index // sizes[AXES - 1 - i]
    return offset


@triton.jit
def offsets(strides, sizes, sample, cls, row, outer, AXES: tl.constexpr, SPLIT: tl.constexpr):
    """The offsets [ROWS, COLS] of a tile in one operand."""
    column = sample * stride_of(strides, 0) + cls * stride_of(strides, 1)
    if SPLIT:
        rows = row * stride_of(strides, AXES + 1) + _along(outer, sizes, strides, AXES - 1)
    else:
        rows = _along(row, sizes, strides, AXES)
    return rows[:, None] + column[None, :]


@triton.jit
def tile_rows(
    tile, pieces, sizes, reduced, AXES: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr
):
    """The rows of a tile, the run of the innermost axis that they lie in, and which rows exist.

    With SPLIT a row is an index in that run; without it, a flat index over all reduced axes.
    """
    outer = tile * 0
    piece = tile
    limit = reduced
    if SPLIT:
        limit = sizes[AXES - 1]
        if AXES > 1:
            outer = tile // pieces
            piece = tile - outer * pieces
    row = piece * ROWS + tl.arange(0, ROWS)
    return row, outer, row < limit


@triton.jit
def groups_of_samples(classes, groups, ONE_SAMPLE: tl.constexpr):
    """``groups``; the compiler sees that 16 divides it if 16 divides the classes."""
    return classes if ONE_SAMPLE else groups // classes * classes


@triton.jit
def groups_of(
    pid, column_tiles, classes, ONE_SAMPLE: tl.constexpr, LONG: tl.constexpr, COLS: tl.constexpr
):
    """The flat groups of a program, with their sample and class."""
    column_tile = pid % column_tiles
    if LONG:
        column_tile = column_tile.to(tl.int64)
    group = column_tile * COLS + tl.arange(0, COLS)
    if ONE_SAMPLE:
        sample = group * 0
        cls = group
    else:
        sample = group // classes
        cls = group % classes
    return group, sample, cls
