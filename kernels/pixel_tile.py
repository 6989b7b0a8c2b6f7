"""What the kernels of pixel.py and pixel_walk.py share: reading a tile of pixels and classes, and
storing its sums or its gradient.

``HOW`` holds flags of pixel_element.How, ``EXTRA`` those of reference.Extra.
"""

from __future__ import annotations

import triton
import triton.language as tl

from customloss._spec.words import INPUT, TARGET

from . import pixel_element as element
from .element import number, offsets, stride_of, weigh
from .rows import row_of

WRT_INPUT, WRT_TARGET = tl.constexpr(INPUT), tl.constexpr(TARGET)
INFINITY = tl.constexpr(float("inf"))
_NO_CLASS = tl.constexpr(2**31 - 1)
# what stands for the class number of a pixel that does not count, and of one that is refused:
# nothing can be raised here, so that its logits become NaN
_IGNORED, _REFUSED = tl.constexpr(-1), tl.constexpr(-2)

# arguments that do not affect the width of a load, so no value of them needs a kernel of its own
# (see confusion.py); `per_chunk` is not among them, because a kernel for 1 keeps no accumulators
COUNTS = [
    "ignore", "plane", "groups", "chunks", "tiles", "pieces", "grad_sample", "grad_class",
    "kept_plane", "pixels",
]  # fmt: skip


# ---- what a tile reads -----------------------------------------------------------------------


@triton.jit
def get(pointer, at, mask, MASK: tl.constexpr):
    return tl.load(pointer + at, mask=mask, other=0) if MASK else tl.load(pointer + at)


@triton.jit
def program(class_tiles, chunks, tiles, per_chunk, CLASSES: tl.constexpr, HOW: tl.constexpr):
    """The classes, the place among the partial sums, the sample and the tiles of a program."""
    pid = tl.program_id(0)
    chunk = pid // class_tiles % chunks
    sample = pid // class_tiles // chunks
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, tiles)
    c = ((pid % class_tiles) * CLASSES + tl.arange(0, CLASSES))[None, :]
    if element.LONG & HOW:
        first, last, sample = first.to(tl.int64), last.to(tl.int64), sample.to(tl.int64)
        c = c.to(tl.int64)
    part = chunk
    if element.POOLED & HOW:
        part = chunk * class_tiles + pid % class_tiles
    return c, part, sample, first, last


@triton.jit
def at_of(strides, sizes, sample, c, row, outer, AXES: tl.constexpr, HOW: tl.constexpr):
    """The offsets of pixels and classes; c is [1, CLASSES], or [P, 1]."""
    split: tl.constexpr = (element.SPLIT & HOW) != 0
    place = offsets(strides, sizes, sample, tl.arange(0, 1), row, outer, AXES, split)
    return place + c * stride_of(strides, 1)


@triton.jit
def logits_at(strides, sizes, sample, c, row, outer, AXES: tl.constexpr, HOW: tl.constexpr):
    """Like at_of, for the input and its gradient, whose alignment may be known."""
    split: tl.constexpr = (element.SPLIT & HOW) != 0
    place = offsets(strides, sizes, sample, tl.arange(0, 1), row, outer, AXES, split)
    # the compiler does not see this where strides are no multiples of 16, and would load single
    # elements
    if element.FOURS & HOW:
        place = tl.multiple_of(place, (4, 4))
    elif element.PAIRS & HOW:
        place = tl.multiple_of(place, (2, 2))
    return place + c * stride_of(strides, 1)


@triton.jit
def known_multiple(classes, HOW: tl.constexpr):
    """The number of classes; the compiler sees what divides it, and masks whole vectors."""
    if element.FOURS & HOW:
        classes = classes // 4 * 4
    elif element.PAIRS & HOW:
        classes = classes // 2 * 2
    return classes


@triton.jit
def pixels_of(
    t_ptr, w_ptr, t_strides, w_strides, sizes, sample, row, outer, exists, classes, ignore,
    AXES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Of every pixel, as [P, 1]: its class number, whether it counts, and its weight. A pixel whose
    class number is refused counts."""
    none = tl.arange(0, 1)
    masked: tl.constexpr = not (element.EVEN & HOW)
    live = exists
    y = exists
    w = exists
    if element.LABELS & HOW:
        label = get(
            t_ptr, at_of(t_strides, sizes, sample, none, row, outer, AXES, HOW), exists, masked
        )
        if label.dtype.primitive_bitwidth < 32:
            label = label.to(tl.int32)
        known = live & (label >= 0) & (label < classes)
        if element.IGNORE & HOW:
            for k in tl.static_range(len(ignore)):
                known = known & (label != ignore[k])
        other = tl.full(known.shape, _IGNORED, tl.int32)
        if element.REFUSE & HOW:
            refused = live & ((label < 0) | (label >= classes))
            if element.IGNORE & HOW:
                for k in tl.static_range(len(ignore)):
                    refused = refused & (label != ignore[k])
            other = tl.where(refused, _REFUSED, other)
            live = known | refused
        else:
            live = known
        # narrowed after the comparisons: a wide number that is cut off must not become a class
        y = tl.where(known, label.to(tl.int32), other)
    if (element.WEIGHT & HOW) and not (element.EACH & HOW):
        w = get(w_ptr, at_of(w_strides, sizes, sample, none, row, outer, AXES, HOW), exists, masked)
        w = number(w, (element.WIDE & HOW) != 0)
        if not (element.KEEP & HOW):
            live = live & (w != 0.0)
    return y, live, w


@triton.jit
def counting(t, ignore, HOW: tl.constexpr):
    """Whether a dense target is neither ignored nor, with IGNORE_NAN, NaN."""
    unsigned: tl.constexpr = t.dtype.is_uint64()
    if t.dtype.is_floating():
        t = number(t, (element.WIDE & HOW) != 0)
    elif t.dtype.primitive_bitwidth < 32:
        t = t.to(tl.int32)
    else:
        t = t.to(tl.int64)
    result = t == t
    if not (element.IGNORE_NAN & HOW):
        result = result | True
    for k in tl.static_range(len(ignore)):
        other = t != ignore[k]
        if unsigned:  # numbers from 2^63 on became negative, which none of them is
            other = other | (ignore[k] < 0)
        result = result & other
    return result


@triton.jit
def some_weight(w):
    """Whether any class of a pixel has weight."""
    return (tl.max((w != 0.0).to(tl.int32), 1) > 0)[:, None]


@triton.jit
def tile_of(
    x_ptr, t_ptr, w_ptr, x_strides, t_strides, w_strides, sizes, sample, c, row, outer, exists,
    classes, ignore, smoothing, y, live, w,
    AXES: tl.constexpr, READ: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """x, the target, w and which elements count; the others hold zeros.

    READ says that the tile has all classes of its pixels.  Then it is found out here whether any of
    them has weight; otherwise a walk has done that before.
    """
    masked: tl.constexpr = ((element.EVEN & HOW) == 0) or ((element.PADDED & HOW) != 0)
    wide: tl.constexpr = (element.WIDE & HOW) != 0
    mask = exists & (c < classes)
    # all loads come before any arithmetic, so that many bytes are in flight at once
    x = get(x_ptr, logits_at(x_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
    if element.LABELS & HOW:
        t = c == y
    else:
        t = get(t_ptr, at_of(t_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
    if element.EACH & HOW:
        w = get(w_ptr, at_of(w_strides, sizes, sample, c, row, outer, AXES, HOW), mask, masked)
        w = number(w, wide)
        if not (element.KEEP & HOW):
            if not (element.SOFTMAX & HOW):
                live = live & (w != 0.0)
            elif READ:
                live = live & some_weight(w)
    x = number(x, wide)
    if not (element.LABELS & HOW):
        if (element.IGNORE | element.IGNORE_NAN) & HOW:
            live = live & counting(t, ignore, HOW)
        if element.BINARY & HOW:
            t = t != 0
        else:
            t = number(t, wide)
            if element.MASKED & HOW:
                t = tl.where(live, t, 0.0)
    if (element.REFUSE & HOW) and not (element.KEEP & HOW):
        x += tl.where(y == _REFUSED, float("nan"), 0.0)
    if element.MASKED & HOW:
        x = tl.where(live, x, 0.0)
    return x, element.target_of(t, smoothing, HOW), w, live


@triton.jit
def logits(x, scale, c, classes, HOW: tl.constexpr):
    """x with the sign of the scale. All classes have the same offset, which a softmax cancels."""
    z = x
    if element.AFFINE & HOW:
        z = tl.where(scale < 0.0, -x, x)
    if element.PADDED & HOW:
        z = tl.where((c < classes), z, -INFINITY)
    return z


@triton.jit
def above(z, largest, scale, HOW: tl.constexpr):
    """How far scale * x lies above that of the largest: 0 for the largest, else less.

    The scale is multiplied last. In scale * x - largest the compiler fuses the product and the
    difference, so that the product is not rounded as `largest` was, and the largest is not 0.
    """
    result = z - largest
    if element.AFFINE & HOW:
        result = tl.abs(scale) * result
    return result


@triton.jit
def largest_of(z, c, FIRST: tl.constexpr):
    """The largest logit of every pixel, and (FIRST) the first class that has it."""
    if FIRST:
        z = tl.where(z != z, INFINITY, z)  # a NaN is the largest, as for torch.argmax
    largest = tl.max(z, 1)[:, None]
    first = tl.full(largest.shape, 0, tl.int32)
    if FIRST:
        which = tl.where(z == largest, c.to(tl.int32), _NO_CLASS)
        first = tl.min(which, 1)[:, None]
    return largest, first


@triton.jit
def sum_below_one(e):
    return tl.sum(tl.where(e == 1.0, 0.0, e), 1)[:, None]


@triton.jit
def outcome_of(
    x, live, c, classes, scale, offset, EXTRA: tl.constexpr, FIRST: tl.constexpr, HOW: tl.constexpr
):
    """exp(z - max z), p, q, -log p, -log q and the decision, of a tile with all its classes."""
    if element.SOFTMAX & HOW:
        z = logits(x, scale, c, classes, HOW)
        largest, first = largest_of(z, c, FIRST)
        shifted = above(z, largest, scale, HOW)
        e = element.exponential(shifted, HOW)
        rest, inverse = element.softmax_sums(tl.sum(e, 1)[:, None], sum_below_one(e))
        if (element.MASKED & HOW) and not (element.BARE & HOW):
            inverse = tl.where(live, inverse, 0.0)
        p, q, positive = element.softmax_outcome(shifted, e, rest, inverse, EXTRA)
        negative = positive
        decided = c == first
    else:
        p, q, positive, negative = element.outcome(x, scale, offset, EXTRA, HOW)
        e = p
        decided = p > 0.5
    return e, p, q, positive, negative, decided


# ---- what a tile leaves: sums ----------------------------------------------------------------


@triton.jit
def zeros(N: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, HOW: tl.constexpr):
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    result = (tl.zeros([PIXELS, CLASSES], DTYPE),)
    for _ in tl.static_range(1, N):
        result += (tl.zeros([PIXELS, CLASSES], DTYPE),)
    return result


@triton.jit
def plus(a, b, N: tl.constexpr):
    result = (a[0] + b[0],)
    for row in tl.static_range(1, N):
        result += (a[row] + b[row],)
    return result


@triton.jit
def pooled(values, c, classes, N: tl.constexpr, HOW: tl.constexpr):
    """The sums over the classes of a tile: [P, 1]."""
    result = ()
    for row in tl.static_range(N):
        value = values[row]
        if element.PADDED & HOW:
            value = tl.where((c < classes), value, 0.0)
        result += (tl.sum(value, 1)[:, None],)
    return result


@triton.jit
def over_pixels(values, N: tl.constexpr):
    """The sums over the pixels of a tile: [1, C]."""
    result = (tl.sum(values[0], 0)[None, :],)
    for row in tl.static_range(1, N):
        result += (tl.sum(values[row], 0)[None, :],)
    return result


@triton.jit
def leave(
    partials, plane, groups, values, chunk, sample, c, classes, N: tl.constexpr, HOW: tl.constexpr
):
    """Stores the sums over the pixels of a tile."""
    if element.POOLED & HOW:
        at = partials + chunk.to(tl.int64) * groups + sample + tl.arange(0, 1)[None, :]
        mask = tl.arange(0, 1)[None, :] == 0
    else:
        at = partials + chunk.to(tl.int64) * groups + sample * classes + c
        mask = c < classes
    false = tl.sum(values[1], 0)[None, :]  # the sum fp
    for row in tl.static_range(N):
        total = tl.sum(values[row], 0)[None, :]
        if element.REFUSE & HOW:
            # A refused pixel is a false positive of every class, so fp is NaN for all of them; the
            # other sums take the NaN from there.
            total = tl.where(false == false, total, false)
        tl.store(at, total, mask=mask)
        at += plane  # a step, as row * plane may not fit in 32 bits


# ---- what a tile leaves: a gradient ------------------------------------------------------------


@triton.jit
def by_sums(
    coefficients, grad, groups, grad_sample, grad_class, sample, c, classes,
    WRT: tl.constexpr, N: tl.constexpr, EXTRA: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The gradient by the N sums of every class, in the shape of c.

    For a gradient by the weight that is all. For one by the input or the target the first four
    rows are those of combine_grads() in csrc/pixel.h: the factor of t (or of p) and that of 1 - t
    (or of q), each with the slope of the distance where p is above t, and where it is below. Of the
    hard counts, the rows of tp and fn hold the differences to those of fp and tn.
    """
    DTYPE: tl.constexpr = tl.float64 if element.WIDE & HOW else tl.float32
    cls = c * 0 if element.POOLED & HOW else c
    at = coefficients + (sample if element.POOLED & HOW else sample * classes) + cls
    known = c < classes
    outer = tl.full(c.shape, 1.0, tl.float64)
    if grad is not None:
        outer = tl.load(grad + sample * grad_sample + cls * grad_class, mask=known, other=0.0)
        outer = outer.to(tl.float64)
    H: tl.constexpr = row_of(EXTRA, element.HARD)
    HARD_ROWS: tl.constexpr = 4 if element.HARD & EXTRA else 0
    D: tl.constexpr = row_of(EXTRA, element.DISTANCE)
    whole = ()
    for _ in tl.static_range(N):
        whole += (tl.load(at, mask=known, other=0.0),)
        at += groups
    result = ()
    for row in tl.static_range(N):
        g = whole[row]
        # Combined before rounding: what both terms have in common may be all that float32 keeps.
        if WRT == WRT_INPUT and row < 4:
            g = whole[row % 2] - whole[row % 2 + 2]
            if element.DISTANCE & EXTRA:
                g += whole[D + 1] if row < 2 else whole[D] - whole[D + 2]
        if WRT == WRT_TARGET and row < 4:
            g = whole[row % 2 * 2] - whole[row % 2 * 2 + 1]
            if element.DISTANCE & EXTRA:
                g += whole[D] - whole[D + 1] if row < 2 else whole[D + 2]
        if WRT == WRT_TARGET and row >= H and row < H + HARD_ROWS and (row - H) % 2 == 0:
            g -= whole[row + 1]
        result += ((g * outer).to(DTYPE),)
    return result


@triton.jit
def _has_influence(g):
    """Whether the loss depends on a sum of a group. If not, the gradient of its elements is 0,
    whatever they hold."""
    result = g[0] != 0.0
    for row in tl.static_range(1, len(g)):
        result = result | (g[row] != 0.0)
    return result


@triton.jit
def own_gradient(
    p, q, positive, negative, decided, target, w, g, scale, smoothing, gamma,
    WRT: tl.constexpr, EXTRA: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The gradient of elements that does not depend on other classes of their pixel."""
    if WRT == WRT_INPUT:
        by_p, h, k, by_bases = element.slopes(
            p, q, positive, negative, target, gamma, g, EXTRA, HOW
        )
        total = element.input_gradient(p, q, by_p, h, k, by_bases, scale, EXTRA, HOW)
        if element.WEIGHT & HOW:
            total = weigh(total, w)
    elif WRT == WRT_TARGET:
        total = element.target_gradient(
            p, q, positive, negative, decided, target, smoothing, gamma, g, EXTRA, HOW
        )
        if element.WEIGHT & HOW:
            total = weigh(total, w)
    else:
        plain: tl.constexpr = ~(element.WEIGHT | element.MASKED | element.BARE) & HOW
        share = element.shares(p, q, positive, negative, decided, target, gamma, w, w, EXTRA, plain)
        total = element.weight_gradient(share, g)
        if element.WEIGHT & HOW:
            # weight 0 removes what is not finite
            total = tl.where((w == 0.0) & ((total - total) != 0.0), 0.0, total)
    return tl.where(_has_influence(g), total, 0.0)


@triton.jit
def mixed_slopes(
    p, q, positive, target, w, gamma, g, c, classes, EXTRA: tl.constexpr, HOW: tl.constexpr
):
    """u = w dL/dp and h = -w dL/d(log p) of the elements of a softmax."""
    u, h, _, _ = element.slopes(p, q, positive, positive, target, gamma, g, EXTRA, HOW)
    if element.WEIGHT & HOW:
        u = weigh(u, w)
        h = weigh(h, w)
    if (element.EACH & HOW) or not (element.LABELS & HOW):  # class numbers are finite
        influence = _has_influence(g)
        u = tl.where(influence, u, 0.0)
        h = tl.where(influence, h, 0.0)
    if element.PADDED & HOW:
        h = tl.where((c < classes), h, 0.0)
    return u, h


@triton.jit
def put(
    out, out_strides, sizes, sample, c, row, outer, exists, live, classes, total,
    AXES: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of a tile, and 0 for elements that do not count."""
    if element.MASKED & HOW:
        total = tl.where(live, total, 0.0)
    if out.dtype.element_ty.primitive_bitwidth < 32:
        total = total.to(tl.float32)  # float64 has no direct conversion to bfloat16
    at = out + logits_at(out_strides, sizes, sample, c, row, outer, AXES, HOW)
    if (element.EVEN & HOW) and not (element.PADDED & HOW):
        tl.store(at, total)
    else:
        tl.store(at, total, mask=exists & (c < classes))
