"""How tensors of any rank and strides become the loops of a kernel: the twin of csrc/layout.h.

A kernel sees *groups* (the flattened sample x class pairs) times a *reduced* index over a few
nested axes, and reaches an element of each operand by that operand's own strides.  Nothing is
copied, and a broadcast weight has stride 0.  A kernel works in tiles of ``rows`` reduced indices by
``cols`` groups, and whichever of the two is contiguous in memory gets the long side.

Everything here depends on shapes and strides alone, so it is computed once per geometry, and the
order in which numbers are added never depends on the device or on what else is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

TILE = 1024  # elements of a tile: eight for each of 128 threads, 16 bytes of float16
MOST_COLUMNS = 512  # each has four sums in float64, and a thread holds the sums of four columns
CLASS_RUN = 32  # neighbouring classes of an interleaved tile: 128 bytes of float32
SHORT_AXIS = 64  # an innermost axis shorter than this is walked together with the others
MOST_PARTIALS = 32768  # the most floats of one sum that all programs together leave behind
FEWEST_PROGRAMS, MOST_PROGRAMS = 1024, 4096  # where the input is large enough for them
MOST_TILES = 256  # that a program adds up: as many float32 additions per accumulator
INT32_LIMIT = 2**31 - 2**16

PIXEL_TILE = 2048  # elements of a tile whose classes are read together, sixteen for each thread
LOOPED_TILE = 4096  # elements of a tile that is walked over, and so keeps no accumulators
MOST_CLASSES = 32  # the most classes of a softmax whose pixels fit in registers
PLANES = 4  # classes of a planar tile without a softmax, which need not have them all
LOOPED_PLANES = 8  # classes of a planar tile that is walked over
LOOPED_PIXELS = 128 * 1024  # bytes of logits that a walk leaves in the caches for the next one
FEWEST_PIXELS = 16  # of a tile whose sums are stored: a sum costs as much as one or two elements
WALKED_PIXELS = 4  # of a tile in a launch that stores no sums (walk_plan)

# shape and strides of an operand, None where it is absent
Strided = tuple[Sequence[int], Sequence[int]] | None


class Axis(NamedTuple):
    """One loop: its size, and its stride in elements of every operand."""

    size: int
    strides: tuple[int, ...]


class Layout(NamedTuple):
    """The group axes, and the axes that are summed over, outermost first (at least one)."""

    sample: Axis
    cls: Axis
    reduced: tuple[Axis, ...]

    @property
    def interleaved(self) -> bool:
        """The classes lie next to each other in memory: ``[N, C]`` rows and channels_last."""
        return self.cls.size > 1 and self.cls.strides[0] == 1 and self.reduced[-1].strides[0] != 1


class Plan(NamedTuple):
    """What a launch needs to know; ``strides`` are (sample, class, *reduced) of each operand."""

    samples: int
    classes: int
    sizes: tuple[int, ...]
    reduced: int  # product of sizes; 0 where `split`, which does not read it: see `inner_sizes`
    strides: tuple[tuple[int, ...], ...]
    rows: int
    cols: int
    split: bool  # a tile stays inside one run of the innermost axis
    even: bool  # every tile is full
    long: bool  # offsets need 64 bits
    tiles: int  # along the reduced index
    pieces: int  # tiles per run of the innermost axis, where `split`
    per_chunk: int  # tiles that one program adds up
    column_tiles: int

    @property
    def groups(self) -> int:
        return self.samples * self.classes

    @property
    def chunks(self) -> int:
        """Partial sums per group."""
        return ceil_div(self.tiles, self.per_chunk)


def inner_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """``sizes`` as the kernels take them.

    No kernel reads the outermost of several sizes, usually that of the batch.  It becomes 0,
    because Triton would compile a kernel of its own for a size divisible by 16.
    """
    return (0, *sizes[1:]) if len(sizes) > 1 else sizes


def scaled(strides: tuple[int, ...]) -> tuple[int | None, ...]:
    """``strides`` of an operand as the kernels take them (element.stride_of).

    Triton compiles a kernel of its own for every set of numbers of a tuple that are 1 or multiples
    of 16, so that it can make loads wide.  They can be if all the strides are, and it makes no
    difference which of them are where some are not.  These are therefore multiplied by 16, and so
    look alike; the last element says whether they were.
    """
    if all(stride == 1 or stride % 16 == 0 for stride in strides):
        return (*strides, None)
    return (*(stride if stride == 1 else 16 * stride for stride in strides), 16)


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def _stride(operand: Strided, dim: int, rank: int) -> int:
    if operand is None:
        return 0
    shape, strides = operand
    own_dim = dim - (rank - len(shape))
    return 0 if own_dim < 0 or shape[own_dim] == 1 else strides[own_dim]


def _mergeable(outer: Axis, inner: Axis) -> bool:
    return all(a == b * inner.size for a, b in zip(outer.strides, inner.strides))


def make_layout(operands: Sequence[Strided], per_sample: bool, per_class: bool) -> Layout:
    """The layout of ``operands``, of which the first is the input."""
    assert operands[0] is not None
    shape = operands[0][0]
    one = Axis(1, (0,) * len(operands))
    sample = cls = one
    axes = []
    for dim, size in enumerate(shape):
        axis = Axis(size, tuple(_stride(operand, dim, len(shape)) for operand in operands))
        if dim == 0 and per_sample:
            sample = axis
        elif dim == 1 and per_class:
            cls = axis
        elif size != 1:
            axes.append(axis)
    axes.sort(key=lambda axis: -axis.strides[0])
    merged: list[Axis] = []
    for axis in axes:
        if merged and _mergeable(merged[-1], axis):
            axis = Axis(merged.pop().size * axis.size, axis.strides)
        merged.append(axis)
    return Layout(sample, cls, tuple(merged) or (one,))


def _tile(layout: Layout, groups: int, extent: int) -> tuple[int, int]:
    """Rows and columns of a tile, for ``extent`` reduced indices that can share a tile."""
    if layout.interleaved:
        cols = min(power_of_2(groups), CLASS_RUN)
        if ceil_div(groups, cols) * cols > 1.25 * groups and cols > 16:
            cols = 16
        rows = min(power_of_2(extent), TILE // cols)
        cols = max(cols, min(power_of_2(groups), TILE // rows, MOST_COLUMNS))
    else:
        rows = min(power_of_2(extent), TILE)
        cols = min(power_of_2(groups), TILE // rows, MOST_COLUMNS)
    return max(rows, 128 // cols), cols


@lru_cache(maxsize=1024)
def plan(operands: tuple[Strided, ...], per_sample: bool, per_class: bool) -> Plan:
    """How to run over ``operands``, of which the first is the input."""
    layout = make_layout(operands, per_sample, per_class)
    axes = layout.reduced
    groups = layout.sample.size * layout.cls.size
    reduced, inner = prod(axis.size for axis in axes), axes[-1].size
    rows, cols = _tile(layout, groups, inner)
    split = len(axes) == 1 or (inner >= SHORT_AXIS and 2 * rows * cols >= TILE)
    if split:
        pieces = ceil_div(inner, rows)
        tiles = reduced // inner * pieces if inner else 0
    else:
        rows, cols = _tile(layout, groups, reduced)
        pieces, tiles = 1, ceil_div(reduced, rows)
    column_tiles = ceil_div(groups, cols)
    programs = min(max(MOST_PARTIALS // cols, FEWEST_PROGRAMS), MOST_PROGRAMS)
    per_chunk = min(max(1, ceil_div(tiles * column_tiles, programs)), MOST_TILES)
    every = (layout.sample, layout.cls, *axes)
    span = max(
        sum(max(axis.size - 1, 0) * axis.strides[k] for axis in every) for k in range(len(operands))
    )
    return Plan(
        samples=layout.sample.size,
        classes=layout.cls.size,
        sizes=tuple(axis.size for axis in axes),
        reduced=0 if split else reduced,
        strides=tuple(tuple(axis.strides[k] for axis in every) for k in range(len(operands))),
        rows=rows,
        cols=cols,
        split=split,
        even=(inner if split else reduced) % rows == 0 and groups % cols == 0,
        long=max(span, groups * reduced) >= INT32_LIMIT,
        tiles=tiles,
        pieces=pieces,
        per_chunk=per_chunk,
        column_tiles=column_tiles,
    )


class PixelPlan(NamedTuple):
    """Like Plan, for kernels that read the classes of a pixel together.

    A tile is ``rows`` pixels x ``cols`` classes of one sample.
    """

    samples: int
    classes: int
    sizes: tuple[int, ...]
    reduced: int
    strides: tuple[tuple[int, ...], ...]
    rows: int
    cols: int
    split: bool
    even: bool  # every tile is full of pixels
    long: bool
    tiles: int  # of a sample
    pieces: int
    per_chunk: int
    class_tiles: int
    looped: bool  # the classes do not fit a tile, so a program walks over them
    kept: bool  # what the walk finds out about a pixel is kept in memory
    apart: bool  # the walk is a launch of its own, see walk_plan
    aligned: int  # pixels start at multiples of so many elements, see _alignment

    @property
    def chunks(self) -> int:
        """Programs that share a class of a sample."""
        return ceil_div(self.tiles, self.per_chunk)

    @property
    def programs(self) -> int:
        return self.samples * self.chunks * self.class_tiles

    @property
    def pixels(self) -> int:
        """Pixels of a sample."""
        return prod(self.sizes)


def _pixel_tile(
    layout: Layout, extent: int, softmax: bool, sums: int, size: int
) -> tuple[int, int, bool]:
    """Pixels and classes of a tile, for ``extent`` pixels that can share a tile, and whether a
    program walks over the classes."""
    most = power_of_2(extent)
    classes = power_of_2(layout.cls.size)
    wide = size > 4
    if softmax and classes > MOST_CLASSES // (2 if wide else 1):
        cols = 2 * CLASS_RUN if layout.interleaved else LOOPED_PLANES
        # fewer where reductions cross threads, or there are more sums: registers would spill
        elements = LOOPED_TILE // (2 if wide else 1)
        elements = elements // (2 if layout.interleaved else 1) // (4 if sums > 4 else 1)
        cached = max(LOOPED_PIXELS // (layout.cls.size * size), FEWEST_PIXELS)
        rows = min(elements // cols, 1 << (cached.bit_length() - 1), most)
        return rows, min(classes, elements // rows, MOST_COLUMNS), True
    elements = PIXEL_TILE // (1 if sums <= 4 else 2 if sums <= 8 else 4) // (2 if wide else 1)
    if layout.interleaved and classes < 4:
        elements //= 2  # there are more addresses for each element
    if not softmax:
        cols = min(classes, CLASS_RUN if layout.interleaved else PLANES)
        return min(elements // cols, most), cols, False
    # with at least 128 pixels a thread has all classes of its pixels, and exchanges nothing
    least = 128 if sums <= 4 and not layout.interleaved else 1
    return min(max(elements // classes, least), most), classes, False


def _alignment(classes: int, pitches: list[int]) -> int:
    """The alignment to tell the compiler, or 1; it sees for itself only multiples of 16."""
    if all(pitch % 16 == 0 for pitch in pitches):
        return 1
    return gcd(4, classes, *pitches)


def _kept_plan(plan: PixelPlan, size: int) -> PixelPlan:
    """The plan where a program adds up several tiles of a block of classes, if there are enough.

    Storing the sums of every tile would move as many bytes as reading it.  A program takes the
    tiles out of the caches after its own walk; where not even one tile fits there, the walk is a
    launch before (``apart``).
    """
    cached = LOOPED_PIXELS // (plan.classes * size)
    tiles = plan.samples * plan.tiles
    if cached < plan.rows:
        class_tiles = ceil_div(plan.classes, plan.cols)
        per_chunk = min(ceil_div(tiles * class_tiles, FEWEST_PROGRAMS), MOST_TILES, plan.tiles)
        if per_chunk <= 1:
            return plan
        return plan._replace(kept=True, apart=True, class_tiles=class_tiles, per_chunk=per_chunk)
    per_chunk = min(cached // plan.rows, tiles // FEWEST_PROGRAMS, MOST_TILES, plan.tiles)
    return plan._replace(kept=True, per_chunk=per_chunk) if per_chunk > 1 else plan


def walk_plan(plan: PixelPlan, size: int) -> PixelPlan:
    """The plan of a walk that is a launch of its own: fewer pixels in a tile, so more programs."""
    elements = LOOPED_TILE // (4 if size > 4 else 2)
    inner = plan.sizes[-1] if plan.split else plan.pixels
    rows = plan.rows if plan.strides[0][1] != 1 else min(plan.rows, WALKED_PIXELS)
    pieces = ceil_div(inner, rows)
    cols = min(power_of_2(plan.classes), elements // rows, MOST_COLUMNS)
    return plan._replace(
        rows=rows, cols=cols, pieces=pieces, tiles=plan.pixels // inner * pieces,
        per_chunk=1, class_tiles=1,
    )  # fmt: skip


def pixel_plan(
    operands: tuple[Strided, ...], per_sample: bool, per_class: bool, softmax: bool, sums: int,
    size: int,
) -> PixelPlan:  # fmt: skip
    """How to run over ``operands``: input, target, weight and, in a backward pass, the gradient.

    An element of the input has ``size`` bytes, an element of a tile has ``sums`` accumulators.
    """
    layout = make_layout(operands, per_sample, True)
    axes = layout.reduced
    reduced, inner = prod(axis.size for axis in axes), axes[-1].size
    samples, classes = layout.sample.size, layout.cls.size
    split = len(axes) == 1 or inner >= SHORT_AXIS
    extent = inner if split else reduced
    rows, cols, looped = _pixel_tile(layout, extent, softmax, sums, size)
    pieces = ceil_div(extent, rows)
    tiles = reduced // inner * pieces if split and inner else pieces
    class_tiles = 1 if softmax else ceil_div(classes, cols)
    programs = min(max(MOST_PARTIALS // cols, FEWEST_PROGRAMS), MOST_PROGRAMS)
    per_chunk = min(max(1, ceil_div(samples * tiles * class_tiles, programs)), MOST_TILES)
    every = (layout.sample, layout.cls, *axes)
    span = max(
        sum(max(axis.size - 1, 0) * abs(axis.strides[k]) for axis in every)
        for k in range(len(operands))
    )
    written = (0, 3) if len(operands) > 3 else (0,)
    pitches = [axis.strides[k] for axis in (layout.sample, *axes) for k in written]
    together = all(layout.cls.strides[k] == 1 for k in written)
    plan = PixelPlan(
        samples=samples,
        classes=classes,
        sizes=tuple(axis.size for axis in axes),
        reduced=0 if split else reduced,
        strides=tuple(tuple(axis.strides[k] for axis in every) for k in range(len(operands))),
        rows=rows,
        cols=cols,
        split=split,
        even=extent % rows == 0,
        long=max(span, samples * reduced * (classes + cols)) >= INT32_LIMIT,
        tiles=tiles,
        pieces=pieces,
        per_chunk=1 if looped else per_chunk,
        class_tiles=class_tiles,
        looped=looped,
        kept=False,
        apart=False,
        aligned=_alignment(classes, pitches) if layout.interleaved and together else 1,
    )
    sums_by_class = looped and per_class and len(operands) == 3
    return _kept_plan(plan, size) if sums_by_class and tiles else plan
