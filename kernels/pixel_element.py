"""The maths of elements whose class matters: the twin of csrc/pixel.h.

A pixel is one place, with a logit for every class; a tile is [pixels, classes].  What an element
adds to the sums is a tuple with an entry for each row of ``reference.rows(extra)``.  A sum that is
not asked for has no entry, and costs nothing.
"""

from __future__ import annotations

import enum

import triton
import triton.language as tl

from customloss.reference import PROBABILITY_FLOOR, Extra

from .element import weigh
from .rows import row_of


class How(enum.IntFlag):
    """What a kernel is compiled for."""

    SOFTMAX = enum.auto()
    PROBABILITIES = enum.auto()  # neither softmax nor sigmoid
    AFFINE = enum.auto()  # scale and offset are not 1 and 0
    WIDE = enum.auto()  # float64
    LABELS = enum.auto()  # the target holds class numbers
    BINARY = enum.auto()  # the target is 0 or 1, as a bool
    SMOOTH = enum.auto()
    LOG_SMOOTH = enum.auto()  # of the log-losses
    FOCAL_SPLIT = enum.auto()  # Elements.focal_split
    IGNORE = enum.auto()
    IGNORE_NAN = enum.auto()  # a dense target that is NaN does not count
    REFUSE = enum.auto()  # a class number that is neither a class nor ignored makes a NaN
    WEIGHT = enum.auto()
    EACH = enum.auto()  # the weight differs between the classes of a pixel
    KEEP = enum.auto()  # the gradient by the weight: weight 0 removes only what is not finite
    EVEN = enum.auto()  # every tile is full of pixels
    PADDED = enum.auto()  # some tiles are not full of classes
    MASKED = enum.auto()  # some elements of a tile may not count
    BARE = enum.auto()  # MASKED, and no softmax has set the p and q of those elements to 0
    POOLED = enum.auto()  # one group for all classes
    TN = enum.auto()
    SPLIT = enum.auto()  # Plan.split
    LONG = enum.auto()  # Plan.long
    FOURS = enum.auto()  # PixelPlan.aligned is 4
    PAIRS = enum.auto()  # PixelPlan.aligned is 2


SOFTMAX, PROBABILITIES = tl.constexpr(int(How.SOFTMAX)), tl.constexpr(int(How.PROBABILITIES))
AFFINE, WIDE = tl.constexpr(int(How.AFFINE)), tl.constexpr(int(How.WIDE))
LABELS, BINARY = tl.constexpr(int(How.LABELS)), tl.constexpr(int(How.BINARY))
SMOOTH, LOG_SMOOTH = tl.constexpr(int(How.SMOOTH)), tl.constexpr(int(How.LOG_SMOOTH))
IGNORE, FOCAL_SPLIT = tl.constexpr(int(How.IGNORE)), tl.constexpr(int(How.FOCAL_SPLIT))
IGNORE_NAN, REFUSE = tl.constexpr(int(How.IGNORE_NAN)), tl.constexpr(int(How.REFUSE))
WEIGHT, EACH, KEEP = (tl.constexpr(int(one)) for one in (How.WEIGHT, How.EACH, How.KEEP))
EVEN, PADDED = tl.constexpr(int(How.EVEN)), tl.constexpr(int(How.PADDED))
MASKED, BARE = tl.constexpr(int(How.MASKED)), tl.constexpr(int(How.BARE))
POOLED, TN = tl.constexpr(int(How.POOLED)), tl.constexpr(int(How.TN))
SPLIT, LONG = tl.constexpr(int(How.SPLIT)), tl.constexpr(int(How.LONG))
FOURS, PAIRS = tl.constexpr(int(How.FOURS)), tl.constexpr(int(How.PAIRS))

LOG_LOSS, SQUARES = tl.constexpr(int(Extra.LOG_LOSS)), tl.constexpr(int(Extra.SQUARES))
DISTANCE, FOCAL = tl.constexpr(int(Extra.DISTANCE)), tl.constexpr(int(Extra.FOCAL))
HARD, SUPPORT = tl.constexpr(int(Extra.HARD)), tl.constexpr(int(Extra.SUPPORT))
LOGS = tl.constexpr(int(Extra.LOG_LOSS | Extra.FOCAL))

_LOG2_E = tl.constexpr(1.4426950408889634)
_FLOOR = tl.constexpr(PROBABILITY_FLOOR)


# ---- functions -------------------------------------------------------------------------------


@triton.jit
def exponential(z, HOW: tl.constexpr):
    return tl.exp(z) if WIDE & HOW else tl.exp2(z * _LOG2_E)


@triton.jit
def log1p(u):
    """log(1 + u) for u >= 0, with the digits of a small u."""
    y = 1.0 + u
    rounded_off = tl.where(u < 1.0, u - (y - 1.0), 1.0 - (y - u))
    return tl.log(y) + rounded_off / y


@triton.jit
def power(base, exponent, HOW: tl.constexpr):
    """base ** exponent for exponent >= 0; 0 at base 0, but 1 if the exponent is 0."""
    log = tl.log(tl.where(base > 0.0, base, 1.0))
    # base - base is 0, or NaN if base is NaN
    return tl.where((base > 0.0) | (exponent == 0.0), exponential(exponent * log, HOW), base - base)


# ---- probabilities ---------------------------------------------------------------------------


@triton.jit
def floor_of(p):
    """The least probability that has a logarithm of its own, in the dtype of p."""
    # Triton 3.6's interpreter compares a plain number as float32, whatever it is compared with
    return tl.full((), _FLOOR, p.dtype)


@triton.jit
def outcome(x, scale, offset, EXTRA: tl.constexpr, HOW: tl.constexpr):
    """p, q = 1 - p, -log p and -log q, of a sigmoid or of probabilities."""
    if PROBABILITIES & HOW:
        p = x
        q = 1.0 - x
        positive, negative = p, q
        if LOGS & EXTRA:
            floor = floor_of(p)
            positive = -tl.log(tl.where(p < floor, floor, p))
            negative = -tl.log(tl.where(q < floor, floor, q))
    else:
        z = x
        if AFFINE & HOW:
            z = scale * (x - offset)
        size = tl.abs(z)
        e = exponential(-size, HOW)
        big = 1.0 / (1.0 + e)
        small = e * big
        below = z < 0.0
        p = tl.where(below, small, big)
        q = tl.where(below, big, small)
        positive, negative = p, q
        if LOGS & EXTRA:
            log = log1p(e)
            positive = tl.where(below, log + size, log)
            negative = tl.where(below, log, log + size)
    return p, q, positive, negative


@triton.jit
def softmax_sums(whole, others):
    """`rest`, the sum of the e without one largest, and 1 / (1 + rest).

    `whole` is the sum of all e, `others` of those below 1.  Only a single largest class can be next
    to p = 1; then `rest` is `others`, and is not a difference.
    """
    rest = tl.where(whole - others > 1.5, whole - 1.0, others)
    return rest, 1.0 / (1.0 + rest)


@triton.jit
def softmax_outcome(shifted, e, rest, inverse, EXTRA: tl.constexpr):
    """p, q and -log p, given z - max z, its exponential, and softmax_sums."""
    p = e * inverse
    q = tl.where(e == 1.0, rest, 1.0 + rest - e) * inverse
    positive = p
    if LOGS & EXTRA:
        positive = log1p(rest) - shifted
    return p, q, positive


# ---- targets ---------------------------------------------------------------------------------


@triton.constexpr_function
def selects(how):
    """Whether t, smoothed, is still 0 or 1."""
    return (how & int(How.BINARY)) != 0 and (how & int(How.SMOOTH)) == 0


@triton.jit
def smoothing_of(on, off, log_on, log_off, HOW: tl.constexpr):
    """The four numbers of ``Smoothing`` in csrc/pixel.h, in the type of the computation."""
    DTYPE: tl.constexpr = tl.float64 if WIDE & HOW else tl.float32
    on, off = tl.full([1, 1], on, DTYPE), tl.full([1, 1], off, DTYPE)
    log_on, log_off = tl.full([1, 1], log_on, DTYPE), tl.full([1, 1], log_off, DTYPE)
    return on, off, log_on, log_off


@triton.jit
def _smoothed(given, on, off, HOW: tl.constexpr):
    return tl.where(given, on, off) if BINARY & HOW else given * (on - off) + off


@triton.jit
def target_of(given, smoothing, HOW: tl.constexpr):
    """The target as it is given, smoothed, and smoothed for the log-losses."""
    t, log_t = given, given
    if SMOOTH & HOW:
        t = _smoothed(given, smoothing[0], smoothing[1], HOW)
    if LOG_SMOOTH & HOW:
        log_t = _smoothed(given, smoothing[2], smoothing[3], HOW)
    return given, t, log_t


# ---- shares and gradients --------------------------------------------------------------------


@triton.jit
def _focal_bases(p, q, t, HOW: tl.constexpr):
    """What is raised to gamma before -log p and before -log q, and the slopes of these by p."""
    if (SOFTMAX | FOCAL_SPLIT) & HOW:
        one, other, by_one, by_other = q, p, -1.0, 1.0
    else:
        one = t * q + (1.0 - t) * p
        other, by_one = one, 1.0 - 2.0 * t
        by_other = by_one
    return one, other, by_one, by_other


@triton.jit
def _focal_power(base, gamma, HOW: tl.constexpr):
    """base ** gamma, and its derivative by the base."""
    raised = power(base, gamma, HOW)
    positive = base > 0.0
    return raised, gamma * tl.where(positive, raised / tl.where(positive, base, 1.0), 0.0)


@triton.jit
def _counted(value, w, live, BY: tl.constexpr, HOW: tl.constexpr):
    """w * value; where HOW has the flag BY, 0 for elements that do not count."""
    if WEIGHT & HOW:
        value = weigh(value, w)
    if BY & HOW:
        value = tl.where(live, value, 0.0)
    return value


@triton.jit
def _times(factor, value):
    """factor * value. A factor of 0 removes even an infinite value: 0 log 0 is 0."""
    return tl.where(factor == 0.0, 0.0, factor * value)


@triton.jit
def _excess(p, q, t):
    """p - t, which keeps its digits where p is close to a hard target. It is a difference and not
    one of products, which the compiler may fuse: then it would not be 0 at p = t."""
    return tl.where(p < 0.5, p - t, (1.0 - t) - q)


@triton.jit
def shares(
    p, q, positive, negative, decided, target, gamma, w, live,
    EXTRA: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """What an element adds to every sum; ``target`` comes from target_of."""
    given, t, log_t = target
    pw = _counted(p, w, live, BARE, HOW)
    qw = _counted(q, w, live, BARE, HOW)
    if selects(HOW):
        # selecting by a hard target gives the value of the product, and is cheaper
        result = (tl.where(t, pw, 0.0), tl.where(t, 0.0, pw), tl.where(t, qw, 0.0))
        if TN & HOW:
            result += (tl.where(t, 0.0, qw),)
    else:
        result = (t * pw, (1.0 - t) * pw, t * qw)
        if TN & HOW:
            result += ((1.0 - t) * qw,)
    if EXTRA:
        t = t.to(p.dtype)
        u = 1.0 - t
        if LOG_LOSS & EXTRA:
            log_t = log_t.to(p.dtype)
            negative_loss = p * 0.0 if SOFTMAX & HOW else _times(1.0 - log_t, negative)
            result += (
                _counted(_times(log_t, positive), w, live, MASKED, HOW),
                _counted(negative_loss, w, live, MASKED, HOW),
            )
        if SQUARES & EXTRA:
            result += (
                _counted(p * p, w, live, MASKED, HOW),
                _counted(t * t, w, live, MASKED, HOW),
                _counted(t * (p * p), w, live, MASKED, HOW),
            )
        if DISTANCE & EXTRA:
            excess = _excess(p, q, t)
            # a NaN, of p or of t, is one in each of them
            result += (
                _counted(tl.where(excess > 0.0, t, p + (t - t)), w, live, MASKED, HOW),
                _counted(tl.where(excess < 0.0, 0.0, excess), w, live, MASKED, HOW),
                _counted(tl.where(excess > 0.0, 0.0, -excess), w, live, MASKED, HOW),
            )
        if FOCAL & EXTRA:
            one, other, _, _ = _focal_bases(p, q, t, HOW)
            raised = power(one, gamma, HOW)
            positive_loss = _times(t, positive) * raised
            negative_loss = p * 0.0
            if not (SOFTMAX & HOW):
                if FOCAL_SPLIT & HOW:
                    raised = power(other, gamma, HOW)
                negative_loss = _times(u, negative) * raised
            result += (
                _counted(positive_loss, w, live, MASKED, HOW),
                _counted(negative_loss, w, live, MASKED, HOW),
            )
        if HARD & EXTRA:
            # with the target before smoothing, so that they are counts
            tw = _counted(given.to(p.dtype), w, live, MASKED, HOW)
            uw = _counted(1.0 - given.to(p.dtype), w, live, MASKED, HOW)
            result += (
                tl.where(decided, tw, 0.0),
                tl.where(decided, uw, 0.0),
                tl.where(decided, 0.0, tw),
                tl.where(decided, 0.0, uw),
            )
        if SUPPORT & EXTRA:
            result += (_counted(given.to(p.dtype), w, live, MASKED, HOW),)
    return result


@triton.jit
def _side(above, below, p, q, t):
    """`above` where p is above t, `below` where it is below, and their mean at p = t."""
    excess = _excess(p, q, t)
    return tl.where(excess > 0.0, above, tl.where(excess < 0.0, below, 0.5 * (above + below)))


@triton.jit
def _log_slope(factor, p):
    """The derivative of factor * log(floored p): 0 below the floor, where it is constant."""
    below = p < floor_of(p)
    return tl.where(below, 0.0, factor / tl.where(below, 1.0, p))


@triton.jit
def slopes(p, q, positive, negative, target, gamma, g, EXTRA: tl.constexpr, HOW: tl.constexpr):
    """dL/dp, -dL/d(log p), -dL/d(log q), and dL/dx by the focal bases of a sigmoid, at weight 1;
    `g` comes from pixel_tile.by_sums."""
    S: tl.constexpr = row_of(EXTRA, SQUARES)
    F: tl.constexpr = row_of(EXTRA, FOCAL)
    _, t, log_t = target
    by_p = tl.where(t, g[0], g[1]) if selects(HOW) else t * g[0] + (1.0 - t) * g[1]
    h, k, by_bases = by_p, by_p, by_p
    if DISTANCE & EXTRA:
        below = tl.where(t, g[2], g[3]) if selects(HOW) else t * g[2] + (1.0 - t) * g[3]
    if (FOCAL | SQUARES | DISTANCE) & EXTRA:
        t = t.to(p.dtype)
    if DISTANCE & EXTRA:
        by_p = _side(by_p, below, p, q, t)
    if SQUARES & EXTRA:
        by_p += 2.0 * p * (g[S] + t * g[S + 2])
    if LOGS & EXTRA:
        h = p * 0.0
        k = h
        by_bases = h
    if LOG_LOSS & EXTRA:
        log_t = log_t.to(p.dtype)
        h += g[4] * log_t
        if not (SOFTMAX & HOW):
            k += g[5] * (1.0 - log_t)
    if FOCAL & EXTRA:
        u = 1.0 - t
        one, other, by_one, by_other = _focal_bases(p, q, t, HOW)
        raised, steep = _focal_power(one, gamma, HOW)
        h += g[F] * (t * raised)
        if SOFTMAX & HOW:
            h += g[F] * (steep * _times(t * p, positive))
        else:
            other_steep = steep
            if FOCAL_SPLIT & HOW:
                raised, other_steep = _focal_power(other, gamma, HOW)
            k += g[F + 1] * (u * raised)
            if PROBABILITIES & HOW:
                by_p += steep * by_one * (g[F] * _times(t, positive))
                by_p += other_steep * by_other * (g[F + 1] * _times(u, negative))
            else:
                # in by_p these would be divided by p q, which may be 0
                by_bases = steep * by_one * q * (g[F] * _times(t * p, positive))
                by_bases += other_steep * by_other * p * (g[F + 1] * _times(u * q, negative))
    return by_p, h, k, by_bases


@triton.jit
def input_gradient(p, q, by_p, h, k, by_bases, scale, EXTRA: tl.constexpr, HOW: tl.constexpr):
    """dL/dx of an element of a sigmoid or of probabilities, at weight 1."""
    if PROBABILITIES & HOW:
        g = by_p
        if LOGS & EXTRA:
            g += _log_slope(k, q) - _log_slope(h, p)
    else:
        g = (p * q) * by_p
        if LOGS & EXTRA:
            g += p * k - q * h
        if FOCAL & EXTRA:
            g += by_bases
        g = scale * g
    return g


@triton.jit
def _focal_by_target(p, q, positive, negative, t, gamma, g, EXTRA: tl.constexpr, HOW: tl.constexpr):
    """The part of dL/dt that comes from the focal sums."""
    F: tl.constexpr = row_of(EXTRA, FOCAL)
    one, other, _, _ = _focal_bases(p, q, t, HOW)
    raised, steep = _focal_power(one, gamma, HOW)
    total = _times(g[F], _times(raised, positive))
    if not (SOFTMAX & HOW):
        if FOCAL_SPLIT & HOW:
            total -= _times(g[F + 1], _times(power(other, gamma, HOW), negative))
        else:
            total -= _times(g[F + 1], _times(raised, negative))
            lost = _times(g[F], _times(t, positive))
            lost += _times(g[F + 1], _times(1.0 - t, negative))
            total += steep * (q - p) * lost
    return total


@triton.jit
def target_gradient(
    p, q, positive, negative, decided, target, smoothing, gamma, g,
    EXTRA: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """dL/dt of an element, at weight 1."""
    S: tl.constexpr = row_of(EXTRA, SQUARES)
    H: tl.constexpr = row_of(EXTRA, HARD)
    _, t, _ = target
    total = p * g[0] + q * g[1]
    if (FOCAL | SQUARES | DISTANCE) & EXTRA:
        t = t.to(p.dtype)
    if DISTANCE & EXTRA:
        total = _side(total, p * g[2] + q * g[3], p, q, t)
    if SQUARES & EXTRA:
        total += 2.0 * t * g[S + 1] + p * p * g[S + 2]
    if FOCAL & EXTRA:
        total += _focal_by_target(p, q, positive, negative, t, gamma, g, EXTRA, HOW)
    if SMOOTH & HOW:
        total = (smoothing[0] - smoothing[1]) * total
    if LOG_LOSS & EXTRA:
        by_log = _times(g[4], positive)
        if not (SOFTMAX & HOW):
            by_log -= _times(g[5], negative)
        if LOG_SMOOTH & HOW:
            by_log = (smoothing[2] - smoothing[3]) * by_log
        total += by_log
    if HARD & EXTRA:
        total += tl.where(decided, g[H], g[H + 2])
    if SUPPORT & EXTRA:
        total += g[row_of(EXTRA, SUPPORT)]
    return total


@triton.jit
def weight_gradient(share, g):
    """dL/dw: the shares of an element times the gradient by the sums."""
    total = _times(g[0], share[0])
    for row in tl.static_range(1, len(share)):
        total += _times(g[row], share[row])
    return total
