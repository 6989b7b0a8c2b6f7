"""The first half of the specification: what every element adds to the sums.

All functions take tensors that were already checked: ``input`` of shape ``[N]``, ``[N, C]`` or
``[N, C, *spatial]``, ``target`` of the same shape or ``[N, 1, *spatial]`` (class numbers),
``weight`` broadcastable to ``input`` or None. This module imports nothing of the package.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A probability that is given as such is raised to this before its logarithm is taken.
PROBABILITY_FLOOR = 1e-30


class Extra(enum.IntFlag):
    """The sums to add up beside tp, fp, fn and tn. Their rows follow those four in this order."""

    LOG_LOSS = 1  # Σ w t (-log p), Σ w (1-t) (-log q); softmax has no second
    SQUARES = 2  # Σ w p², Σ w t², Σ w t p²
    DISTANCE = 4  # Σ w min(p, t), Σ w max(p - t, 0), Σ w max(t - p, 0)
    FOCAL = 8  # Σ w t m^γ (-log p), Σ w (1-t) m^γ (-log q), m = t q + (1-t) p; see ``focal_bases``
    HARD = 16  # tp, fp, fn, tn of p > 1/2, or of the largest of a softmax; t before smoothing
    SUPPORT = 32  # Σ w t with t before smoothing: what the cross-entropy of a softmax is divided by


EXTRA_ROWS = {
    Extra.LOG_LOSS: ("log_loss_pos", "log_loss_neg"),
    Extra.SQUARES: ("p2", "t2", "tp2"),
    Extra.DISTANCE: ("common", "distance_pos", "distance_neg"),
    Extra.FOCAL: ("focal_pos", "focal_neg"),
    Extra.HARD: ("hard_tp", "hard_fp", "hard_fn", "hard_tn"),
    Extra.SUPPORT: ("support",),
}


# the same by the words of the extra sums: those of ``customloss.scores.uses``
ROWS = {str(flag.name).lower(): names for flag, names in EXTRA_ROWS.items()}


def rows(extra: int) -> tuple[str, ...]:
    """The names of all sums, in order."""
    more = (name for flag, names in EXTRA_ROWS.items() if extra & flag for name in names)
    return ("tp", "fp", "fn", "tn", *more)


class Probability(NamedTuple):
    """``p``, its complement ``q = 1 - p`` without cancellation, and ``dp/dx`` (for a softmax by the
    logit of the same class, which is ``p q``; that by another class is ``-p_c p_k``)."""

    p: Tensor
    q: Tensor
    slope: Tensor | float


def accumulator(input: Tensor) -> torch.dtype:
    """The dtype of all computations: float64 for float64 inputs, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


# from this size on torch may cut a sum among its threads
_LONG = 32768


def added(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum over the last dim, with the same bits for any number of threads.

    Torch cuts a long sum among its threads if a single number is left of it, and does not if there
    are two. The gradient of what is broadcast is such a sum, too: see :func:`spread`.
    """
    single = values.shape[-1] == values.numel()
    if torch.compiler.is_compiling() or not single or values.numel() < _LONG:
        return values.sum(-1, dtype=dtype)
    half = values.numel() // 2
    first, second = values.flatten()[: 2 * half].view(2, half).sum(-1, dtype=dtype).unbind(0)
    rest = values[..., 2 * half :].sum(-1, dtype=dtype)  # the last one, if the number is odd
    return rest + (first + second)


def mean(values: Tensor) -> Tensor:
    """The mean over the last dim; see :func:`added`."""
    if torch.compiler.is_compiling() or values.numel() < _LONG:
        return values.mean(-1)
    return added(values) / values.shape[-1]


def spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """``values`` for broadcasting to ``shape``: of a single number a view in that shape, whose
    gradient is added up in two halves, so that it has the same bits for any number of threads."""
    if torch.compiler.is_compiling() or values.numel() != 1 or math.prod(shape) < _LONG:
        return values
    count = math.prod(shape)
    halves = values.reshape(1, 1).expand(2, 1).expand(2, (count + 1) // 2)
    return halves.flatten()[:count].view(shape)


def over_classes(values: Tensor) -> Tensor:
    """The sum over dim 1, for broadcasting to the shape of ``values``: see :func:`spread`."""
    if torch.compiler.is_compiling() or values.shape[1] != values.numel():
        return values.sum(1, keepdim=True)
    total = added(values.flatten()).reshape([1] * values.dim())
    return spread(total, values.shape)


def sums_dtype(device: torch.device) -> torch.dtype:
    """Sums are float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def probability(input: Tensor, activation: str, scale: float, offset: float) -> Probability:
    """``sigmoid(z)``, ``softmax(z)`` over dim 1, z = ``scale * (input - offset)``; or ``input``
    itself for ``activation="none"``."""
    x = input.to(accumulator(input))
    if activation == "none":
        return Probability(x, 1 - x, 1.0)
    z = scale * (x - offset)
    if activation == "softmax":
        e, top, rest, whole = _softmax_terms(z)
        # the complement of the largest p is made of the other terms, so that nothing cancels
        p, q = e / whole, torch.where(top, rest, whole - e) / whole
        return Probability(p, q, scale * (p * q))
    # The derivative that autograd takes of y = sigmoid(z) is y (1 - y), which is 0 in float32 from
    # z = 16.7 on. So only the smaller of p and q is computed, and the other its complement. It is
    # not ``torch.sigmoid``, whose last bits depend on where torch cuts a tensor among its threads.
    negative = z < 0
    e = torch.exp(torch.where(negative, z, -z))
    small = e / (1 + e)
    big = 1 - small
    p, q = torch.where(negative, small, big), torch.where(negative, big, small)
    return Probability(p, q, scale * (small * big))


def _softmax_terms(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(z - max), the place of the first maximum, the sum of the other terms, the whole sum."""
    top = decision(z, "softmax")
    e = torch.exp(z - z.detach().amax(1, keepdim=True))
    zero = torch.zeros_like(e)
    rest = over_classes(torch.where(top, zero, e))
    return e, top, rest, rest + over_classes(torch.where(top, e, zero))


def decision(values: Tensor, activation: str) -> Tensor:
    """Which elements are predicted positive, given z of a softmax, or else p."""
    if activation != "softmax":
        return values > 0.5
    return _class_numbers(values) == values.detach().argmax(1, keepdim=True)


def deciding(x: Tensor, p: Tensor, activation: str, scale: float, offset: float) -> Tensor:
    """The values that :func:`decision` takes: z of a softmax, or else p."""
    return scale * (x.to(p.dtype) - offset) if activation == "softmax" else p


def _class_numbers(input: Tensor) -> Tensor:
    """0 .. C-1 along dim 1."""
    numbers = torch.arange(input.shape[1], device=input.device)
    return numbers.reshape(-1, *(1 for _ in input.shape[2:]))


def log_losses(
    input: Tensor, activation: str, scale: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``-log p`` and ``-log q`` of every element, from logits where there are any.

    For probabilities the logarithms are floored at log 1e-30. For a softmax the second is 0.
    """
    x = input.to(accumulator(input))
    if activation == "none":
        return -x.clamp_min(PROBABILITY_FLOOR).log(), -(1 - x).clamp_min(PROBABILITY_FLOOR).log()
    z = scale * (x - offset)
    if activation == "sigmoid":
        logsigmoid = torch.nn.functional.logsigmoid
        return -logsigmoid(z), -logsigmoid(-z)
    shifted = z - z.detach().amax(1, keepdim=True)
    _, top, rest, _ = _softmax_terms(z)
    highest = over_classes(torch.where(top, shifted, torch.zeros_like(shifted)))
    # highest is 0, but its gradient is not; that of the largest class is -rest / (1 + rest), in
    # which nothing cancels
    below = torch.where(top, torch.zeros_like(shifted), highest - shifted)
    return torch.log1p(rest * torch.exp(-highest)) + below, torch.zeros_like(z)


class Target(NamedTuple):
    """A target of the input's shape, in the dtype of ``accumulator``."""

    given: Tensor
    smoothed: Tensor
    log: Tensor  # smoothed for the log-losses


class Operands(NamedTuple):
    """What the sums are made of; ``weight`` has the dtype of ``accumulator``."""

    input: Tensor  # 0 in the holes; for a softmax where all classes of a pixel are holes
    target: Target  # 0 in the holes
    weight: Tensor | None  # 0 in the holes, NaN where a class number is refused
    holes: Tensor | None  # elements that add nothing to the sums


# what ``shares`` takes behind the operands: activation, scale, offset, extra, γ and focal_split
Measured = tuple[str, float, float, int, float, bool]


def operands(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    measured: Measured,
    ignore_index: int | Sequence[int] | None,
    label_smoothing: float,
    log_smoothing: float | None = None,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
) -> Operands:
    """Class numbers become one-hot, targets are smoothed, and holes are filled with 0.

    A hole is an element that is ignored, or one of weight 0 whose terms are not finite. All
    operands are blanked there before anything is computed of them: a product with 0, and the
    derivative of one, would be NaN. Other elements of weight 0 have a gradient by the weight. A
    class number outside of 0..C-1 is a hole with ``out_of_range="ignore"``. Else its weight becomes
    NaN unless it is 0: a kernel of the CPU raises an error there.
    """
    dtype, activation = accumulator(input), measured[0]
    counts = None  # where the target is not ignored
    refused = None  # where a class number is no class, and not ignored
    given = target
    if not (target.is_floating_point() or target.dtype == torch.bool):
        target = target.long()  # in a narrow dtype -100 or 300 would wrap to another number
    for ignored in (ignore_index,) if isinstance(ignore_index, int) else ignore_index or ():
        if ignored < 0 and given.dtype == torch.uint64:
            continue  # it holds no such number; from 2^63 on its own are negative by now
        counts = target != ignored if counts is None else counts & (target != ignored)
    if is_class_index(input, target):
        known = (target >= 0) & (target < input.shape[1])
        if out_of_range == "ignore":
            counts = known if counts is None else counts & known
        else:
            refused = ~known if counts is None else ~known & counts
        t = (target == _class_numbers(input)).to(dtype)
        outcomes = input.shape[1]
    else:
        if nan_targets == "ignore" and target.is_floating_point():
            counts = ~target.isnan() if counts is None else counts & ~target.isnan()
        t = given.to(dtype)
        outcomes = input.shape[1] if activation == "softmax" else 2
    holes = None if counts is None else ~counts.expand(input.shape)
    w = None if weight is None else spread(weight.to(dtype), input.shape)
    each = (0.0, label_smoothing, label_smoothing if log_smoothing is None else log_smoothing)
    targets = Target(*(t * (1 - off) + off / outcomes if off else t for off in each))
    if w is not None:
        unweighted = (w == 0).expand(input.shape)
        lost = unweighted & ~finite(input, targets, measured)
        if activation == "softmax":  # of a pixel that counts, no class can be told from the others
            lost = lost & (usable(input, activation) | unweighted.all(1, keepdim=True))
        holes = lost if holes is None else holes | lost
    if refused is not None:
        w = _spoiled(w, refused, dtype)
    if holes is None:
        return Operands(input, targets, w, None)
    input_holes = holes.all(1, keepdim=True) if activation == "softmax" else holes
    targets = Target(*(filled(each, holes) for each in targets))
    w = None if w is None else filled(w.expand(input.shape), holes)
    return Operands(filled(input, input_holes), targets, w, holes)


def spoiled(found: Operands, measured: Measured) -> Tensor:
    """Which elements add what is not finite to their sums."""
    spoils = ~finite(found.input, found.target, measured)
    if found.weight is not None:
        spoils = spoils | ~found.weight.isfinite()
    return spoils if found.holes is None else spoils & ~found.holes


def finite(input: Tensor, target: Target, measured: Measured) -> Tensor:
    """Which elements have finite terms in every sum."""
    target = Target(*(each.detach() for each in target))
    return shares(input.detach(), target, *measured).isfinite().all(0)


def _spoiled(weight: Tensor | None, refused: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight, NaN where it is not 0 and a class number is refused."""
    if weight is not None:
        refused = refused & (weight != 0)
    factor = torch.ones_like(refused, dtype=dtype).masked_fill(refused, torch.nan)
    return factor if weight is None else weight * factor


def usable(input: Tensor, activation: str) -> Tensor:
    """Which elements have a probability, given all that it depends on."""
    if activation == "none":
        return input.isfinite()
    if activation != "softmax":
        return ~input.isnan()
    # every probability of a pixel depends on all of its logits
    known = (~input.isnan() & (input != torch.inf)).all(1, keepdim=True)
    return known & (input != -torch.inf).any(1, keepdim=True)


def is_class_index(input: Tensor, target: Tensor) -> bool:
    """Whether the target holds class numbers: dim 1 of size 1, where the input has classes."""
    return input.dim() > 1 and target.shape[1] == 1 and input.shape[1] > 1


def filled(values: Tensor, holes: Tensor | None) -> Tensor:
    """``values`` with zeros in the holes."""
    return values if holes is None else torch.where(holes, torch.zeros_like(values), values)


def group_dims(input: Tensor, per_sample: bool, per_class: bool) -> list[int]:
    """The dimensions that are summed over."""
    kept = ([0] if per_sample else []) + ([1] if per_class else [])
    return [dim for dim in range(input.dim()) if dim not in kept]


def group_shape(input: Tensor, per_sample: bool, per_class: bool) -> tuple[int, int]:
    """How many samples and classes are told apart: the shape of one sum."""
    classes = input.shape[1] if per_class and input.dim() > 1 else 1
    return (input.shape[0] if per_sample else 1), classes


def times(t: Tensor, log: Tensor) -> Tensor:
    """``t log``, which is 0 where ``t`` is 0, even if the logarithm (or focal term) is infinite."""
    return t * torch.where((t == 0) & log.isinf(), torch.zeros_like(log), log)


def damped(lost: Tensor, by: Tensor) -> Tensor:
    """``lost * by``, a focal term. Beside an infinite loss ``by`` has no derivative: it goes to 0
    faster than the loss grows, but as a product with infinity it would be NaN."""
    return lost * torch.where(lost.isinf(), by.detach(), by)


def excess(p: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """``p - t``, which keeps its digits where p is close to a hard target.

    It is a difference and not one of products, which a compiler may fuse: then it would not be 0 at
    p = t.
    """
    return torch.where(p < 0.5, p - t, (1 - t) - q)


def on_side(off: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """``above`` where p is above t, ``below`` where it is below, and their mean at p = t; ``off``
    is p - t. A NaN becomes one, if both depend on what is NaN."""
    return torch.where(off > 0, above, torch.where(off < 0, below, (above + below) / 2))


def focal_bases(
    p: Tensor, q: Tensor, t: Tensor, activation: str, split: bool
) -> tuple[Tensor, Tensor]:
    """What is raised to γ before -log p, and before -log q.

    Of a sigmoid or of probabilities it is m = t q + (1-t) p for both, how far the prediction is off
    (1 - p_t in the paper). With ``split``, and for a softmax, it is q, and p; that is the same for
    hard targets.
    """
    if split or activation == "softmax":
        return q, p
    m = t * q + (1 - t) * p
    return m, m


def confusion_shares(p: Tensor, q: Tensor, t: Tensor) -> list[Tensor]:
    """What every element adds to tp, fp, fn and tn."""
    return [t * p, (1 - t) * p, t * q, (1 - t) * q]


def moved(p: Tensor, q: Tensor) -> Tensor:
    """0, with the derivatives of p. They are those of -q where q is the smaller of the two, since
    nothing cancels in these."""
    return torch.where(p < 0.5, p - p.detach(), q.detach() - q)


def shares(
    input: Tensor,
    target: Target,
    activation: str,
    scale: float,
    offset: float,
    extra: int = 0,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
) -> Tensor:
    """What every element adds to each of the sums at weight 1: ``[rows, *input.shape]``."""
    p, q, _ = probability(input, activation, scale, offset)
    t = target.smoothed
    found = confusion_shares(p, q, t)
    if extra & (Extra.LOG_LOSS | Extra.FOCAL):
        positive, negative = log_losses(input, activation, scale, offset)
        if extra & Extra.LOG_LOSS:
            found += [times(target.log, positive), times(1 - target.log, negative)]
    if extra & Extra.SQUARES:
        found += [p * p, t * t, t * p * p]
    if extra & Extra.DISTANCE:
        off, zero = excess(p, q, t), torch.zeros_like(p)
        found += [on_side(off, t, p), on_side(off, off, zero), on_side(off, zero, -off)]
    if extra & Extra.FOCAL:
        one, other = focal_bases(p, q, t, activation, focal_split)
        found += [damped(times(t, positive), power(one, focal_gamma))]
        found += [damped(times(1 - t, negative), power(other, focal_gamma))]
    if extra & Extra.HARD:
        decided = decision(deciding(input, p, activation, scale, offset), activation).to(t.dtype)
        one, other, rest = target.given, 1 - target.given, 1 - decided
        found += [one * decided, other * decided, one * rest, other * rest]
    if extra & Extra.SUPPORT:
        found += [target.given]
    return torch.stack(torch.broadcast_tensors(*found))


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``, exponent >= 0. At base <= 0 it is 0 (1 for exponent 0), gradient 0."""
    if exponent == 0:
        return torch.ones_like(base)
    zero = base <= 0
    safe = torch.where(zero, torch.ones_like(base), base)
    if exponent >= 2:
        return torch.where(zero, torch.zeros_like(base), safe**exponent)
    # The second derivative of this power holds base^(exponent - 2), which overflows where its
    # product with a small loss does not. So the value is a constant times exp(0) = 1, whose
    # derivatives divide by the base once for each order.
    log = torch.where(subnormal(base), torch.ones_like(base), base).log()
    grown = torch.exp(exponent * (log - log.detach()))
    return torch.where(zero, torch.zeros_like(base), safe.detach() ** exponent * grown)


def subnormal(base: Tensor) -> Tensor:
    """Where the reciprocal of ``base`` may not be finite: there nothing is differentiated by it."""
    return base < torch.finfo(base.dtype).tiny


def over(lost: Tensor, base: Tensor) -> Tensor:
    """``lost / base``, of a loss that goes to 0 with its focal base; 0 at base <= 0, and constant
    where the base is subnormal."""
    small = subnormal(base)
    ratio = lost / torch.where(small, torch.ones_like(base), base)
    zero = base <= 0
    settled = lost.detach() / torch.where(zero, torch.ones_like(base), base.detach())
    settled = torch.where(zero, torch.zeros_like(settled), settled)
    return torch.where(small, settled, ratio)


def confusion(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: str,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | Sequence[int] | None = None,
    label_smoothing: float = 0.0,
    extra: int = 0,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
    log_smoothing: float | None = None,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
) -> Tensor:
    """The soft confusion sums ``[rows, samples, classes]``: tp, fp, fn, tn, and those of ``extra``.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    A target with one class where the input has several holds class numbers: t = [target = c],
    and what is ``ignore_index`` does not count. Smoothing makes t ``(1-ε) t + ε/K``, with K = C for
    class numbers and for a softmax, else 2. The log-losses take ``log_smoothing`` as ε if it is not
    None.
    """
    reading = (ignore_index, label_smoothing, log_smoothing, out_of_range, nan_targets)
    measured = (activation, scale, offset, extra, focal_gamma, focal_split)
    x, t, w, holes = operands(input, target, weight, measured, *reading)
    terms = filled(shares(x, t, *measured), holes)
    return summed(terms if w is None else terms * w, input, per_sample, per_class)


def summed(terms: Tensor, input: Tensor, per_sample: bool, per_class: bool) -> Tensor:
    """``[rows, *input.shape]`` added up to ``[rows, samples, classes]``."""
    dims = [1 + dim for dim in group_dims(input, per_sample, per_class)]
    sums = terms.sum(dims) if dims else terms
    return sums.reshape(terms.shape[0], *group_shape(input, per_sample, per_class))
