"""The first half of the specification: what every element adds to the sums, and its gradients.

All functions take tensors that were already checked: ``input`` of shape ``[N]``, ``[N, C]`` or
``[N, C, *spatial]``, ``target`` of the same shape or ``[N, 1, *spatial]`` (class numbers),
``weight`` broadcastable to ``input`` or None. This module imports nothing of the package.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor

# -log(similarity) is evaluated with A tp + smooth no smaller than this.
LOG_FLOOR = 1e-30


class Extra(enum.IntFlag):
    """The sums to add up beside tp, fp, fn and tn. Their rows follow those four in this order."""

    LOG_LOSS = 1  # Σ w t (-log p), Σ w (1-t) (-log q); softmax has no second
    SQUARES = 2  # Σ w p², Σ w t², Σ w t p²
    DISTANCE = 4  # Σ w |p - t|
    FOCAL = 8  # Σ w [t q^γ (-log p) + (1-t) p^γ (-log q)]; softmax has no second term
    HARD = 16  # tp, fp, fn, tn of the decision: p > 1/2, or the largest of a softmax


EXTRA_ROWS = {
    Extra.LOG_LOSS: ("log_loss_pos", "log_loss_neg"),
    Extra.SQUARES: ("p2", "t2", "tp2"),
    Extra.DISTANCE: ("distance",),
    Extra.FOCAL: ("focal",),
    Extra.HARD: ("hard_tp", "hard_fp", "hard_fn", "hard_tn"),
}


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
    # z = 16.7 on. So only the smaller of p and q is a sigmoid, and the other its complement.
    negative = z < 0
    small = torch.sigmoid(torch.where(negative, z, -z))
    big = 1 - small
    p, q = torch.where(negative, small, big), torch.where(negative, big, small)
    return Probability(p, q, scale * (small * big))


def _softmax_terms(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(z - max), the place of the first maximum, the sum of the other terms, the whole sum."""
    top = _decision(z, "softmax")
    e = torch.exp(z - z.detach().amax(1, keepdim=True))
    zero = torch.zeros_like(e)
    rest = torch.where(top, zero, e).sum(1, keepdim=True)
    return e, top, rest, rest + torch.where(top, e, zero).sum(1, keepdim=True)


def _decision(values: Tensor, activation: str) -> Tensor:
    """Which elements are predicted positive, given z of a softmax, or else p."""
    if activation != "softmax":
        return values > 0.5
    return _class_numbers(values) == values.detach().argmax(1, keepdim=True)


def _deciding(x: Tensor, p: Tensor, activation: str, scale: float, offset: float) -> Tensor:
    """The values that :func:`_decision` takes: z of a softmax, or else p."""
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
        return -x.clamp_min(LOG_FLOOR).log(), -(1 - x).clamp_min(LOG_FLOOR).log()
    z = scale * (x - offset)
    if activation == "sigmoid":
        logsigmoid = torch.nn.functional.logsigmoid
        return -logsigmoid(z), -logsigmoid(-z)
    shifted = z - z.detach().amax(1, keepdim=True)
    _, top, rest, _ = _softmax_terms(z)
    highest = torch.where(top, shifted, torch.zeros_like(shifted)).sum(1, keepdim=True)
    # highest is 0, but its gradient is not
    return torch.log1p(rest + torch.expm1(highest)) - shifted, torch.zeros_like(z)


class Operands(NamedTuple):
    """What the sums are made of; ``target`` and ``weight`` have the dtype of ``accumulator``."""

    input: Tensor  # 0 where it is ignored, or of weight 0 and would spoil the sums
    target: Tensor  # of the input's shape; smoothed; 0 in the holes
    weight: Tensor | None
    holes: Tensor | None  # elements that add nothing to the sums


def operands(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: str,
    ignore_index: int | None,
    label_smoothing: float,
) -> Operands:
    """Class numbers become one-hot, targets are smoothed, and holes are filled with 0.

    A hole is an element that is ignored, or one of weight 0 whose terms would not be finite.
    """
    dtype = accumulator(input)
    counts = None  # where the target is not ignored
    if not (target.is_floating_point() or target.dtype == torch.bool):
        target = target.long()  # in a narrow dtype -100 or 300 would wrap to another number
    if ignore_index is not None:
        counts = target != ignore_index
    if is_class_index(input, target):
        known = (target >= 0) & (target < input.shape[1])
        counts = known if counts is None else counts & known
        t = (target == _class_numbers(input)).to(dtype)
        outcomes = input.shape[1]
    else:
        t = target.to(dtype)
        outcomes = input.shape[1] if activation == "softmax" else 2
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / outcomes
    holes = blanks = None if counts is None else ~counts.expand(input.shape)
    w = None if weight is None else weight.to(dtype)
    if w is not None:
        unweighted = (w == 0).expand(input.shape)
        softmax = activation == "softmax"
        unread = unweighted.all(1, keepdim=True) if softmax else unweighted
        spoiled = (unread & ~_usable(input, activation)).expand(input.shape)
        blanks = spoiled if blanks is None else blanks | spoiled
        holes = blanks | (unweighted & ~t.isfinite())
    if holes is None:
        return Operands(input, t, w, None)
    return Operands(_filled(input, blanks), _filled(t, holes), w, holes)


def _usable(input: Tensor, activation: str) -> Tensor:
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


def _filled(values: Tensor, holes: Tensor | None) -> Tensor:
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


def _times(t: Tensor, log: Tensor) -> Tensor:
    """``t log``, which is 0 where ``t`` is 0, even if the logarithm (or focal term) is infinite."""
    return t * torch.where((t == 0) & log.isinf(), torch.zeros_like(log), log)


def _far(p: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """``p - t``, which keeps its digits where p is close to a hard target."""
    return (1 - t) * p - t * q


def shares(
    input: Tensor,
    t: Tensor,
    activation: str,
    scale: float,
    offset: float,
    extra: int = 0,
    focal_gamma: float = 2.0,
) -> Tensor:
    """What every element adds to each of the sums at weight 1: ``[rows, *input.shape]``."""
    p, q, _ = probability(input, activation, scale, offset)
    found = [t * p, (1 - t) * p, t * q, (1 - t) * q]
    if extra & (Extra.LOG_LOSS | Extra.FOCAL):
        positive, negative = log_losses(input, activation, scale, offset)
        if extra & Extra.LOG_LOSS:
            found += [_times(t, positive), _times(1 - t, negative)]
    if extra & Extra.SQUARES:
        found += [p * p, t * t, t * p * p]
    if extra & Extra.DISTANCE:
        found += [_far(p, q, t).abs()]
    if extra & Extra.FOCAL:
        missed = _times(t, positive) * power(q, focal_gamma)
        found += [missed + _times(1 - t, negative) * power(p, focal_gamma)]
    if extra & Extra.HARD:
        decided = _decision(_deciding(input, p, activation, scale, offset), activation).to(t.dtype)
        found += [t * decided, (1 - t) * decided, t * (1 - decided), (1 - t) * (1 - decided)]
    return torch.stack(torch.broadcast_tensors(*found))


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``, exponent >= 0. At base <= 0 it is 0 (1 for exponent 0), gradient 0."""
    if exponent == 0:
        return torch.ones_like(base)
    zero = base <= 0
    safe = torch.where(zero, torch.ones_like(base), base)
    return torch.where(zero, torch.zeros_like(base), safe**exponent)


def confusion(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: str,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    extra: int = 0,
    focal_gamma: float = 2.0,
) -> Tensor:
    """The soft confusion sums ``[rows, samples, classes]``: tp, fp, fn, tn, and those of ``extra``.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    A target with one class where the input has several holds class numbers: t = [target = c],
    and what lies outside of 0..C-1, or is ``ignore_index``, does not count. Smoothing makes t
    ``(1-ε) t + ε/K``, with K = C for class numbers and for a softmax, else 2.
    """
    x, t, w, holes = operands(input, target, weight, activation, ignore_index, label_smoothing)
    terms = _filled(shares(x, t, activation, scale, offset, extra, focal_gamma), holes)
    if w is not None:
        terms = terms * w
    dims = [1 + dim for dim in group_dims(input, per_sample, per_class)]
    sums = terms.sum(dims) if dims else terms
    return sums.reshape(terms.shape[0], *group_shape(input, per_sample, per_class))


def _spread(groups: Tensor, input: Tensor, per_sample: bool, per_class: bool) -> Tensor:
    """``[rows, samples, classes]`` so that it broadcasts against ``[rows, *input.shape]``."""
    shape = [1] * input.dim()
    if per_sample:
        shape[0] = groups.shape[1]
    if per_class and input.dim() > 1:
        shape[1] = groups.shape[2]
    return groups.reshape(groups.shape[0], *shape)


def confusion_backward(
    grad_sums: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: str,
    activation: str,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    extra: int = 0,
    focal_gamma: float = 2.0,
) -> Tensor:
    """The gradient by ``wrt`` given the gradient by the sums, in the shape of ``input``.

    ``dL/dx = w dp/dx (t (g_tp - g_fn) + (1-t) (g_fp - g_tn))``
    ``dL/dt = w (p (g_tp - g_fp) + (1-p) (g_fn - g_tn))``
    ``dL/dw = t (p g_tp + (1-p) g_fn) + (1-t) (p g_fp + (1-p) g_tn)``

    and the terms of the extra sums. For a softmax, with u = dL/dp and h = -dL/d(log p), both of
    them times w,

    ``dL/dx_k = p_k (u_k - Σ_c p_c u_c) + p_k Σ_{c≠k} h_c - q_k h_k``
    """
    x, t, w, holes = operands(input, target, weight, activation, ignore_index, label_smoothing)
    by_sums = _spread(grad_sums, input, per_sample, per_class)
    blanks, hidden = holes, _hidden(by_sums, x, t, w, activation)
    holes = hidden if holes is None else holes | hidden
    t, w = _filled(t, hidden), None if w is None else _filled(w.expand(x.shape), hidden)
    if activation != "softmax":  # whose logits are part of other classes, which may count
        x = _filled(x, hidden)
    exact = dict(zip(rows(extra), by_sums.unbind(0)))
    if wrt != "weight":
        exact.update(_combined(exact, wrt))
    g = {name: row.to(t.dtype) for name, row in exact.items()}
    options = (activation, scale, offset, extra, focal_gamma)
    if wrt == "weight":
        terms = shares(x, t, *options).unbind(0)
        total = torch.stack([_times(by, term) for term, by in zip(terms, g.values())]).sum(0)
        return _filled(total, holes)
    if wrt == "target":
        total, like = (1 - label_smoothing) * _by_target(x, t, g, *options), target
    elif activation == "softmax":
        # an element of weight 0 is still part of the other classes' probabilities
        whole = None if blanks is None else blanks.all(1, keepdim=True)
        return _filled(_by_logit(x, t, w, g, *options), whole).to(input.dtype)
    else:
        p, q, slope = probability(x, activation, scale, offset)
        u, h, k = _slopes(x, t, g, *options)
        if activation == "sigmoid":
            total = slope * u - scale * (q * h - p * k)
        else:
            total = u - h / p.clamp_min(LOG_FLOOR) + k / q.clamp_min(LOG_FLOOR)
        like = input
    total = _filled(total, holes)
    return (total if w is None else w * total).to(like.dtype)


def _hidden(by_sums: Tensor, x: Tensor, t: Tensor, w: Tensor | None, activation: str) -> Tensor:
    """Which elements are not finite, in groups on whose sums the loss does not depend: their
    gradient is 0. That of finite ones comes out as 0, and may have a derivative."""
    finite = x.isfinite() & t.isfinite() & _usable(x, activation)
    return (by_sums == 0).all(0) & ~(finite if w is None else finite & w.isfinite())


def _combined(g: dict[str, Tensor], wrt: str) -> dict[str, Tensor]:
    """The factors of t and 1 - t in dL/dp, or of p and 1 - p in dL/dt, with the slope of |p - t|
    where p is above t, and below. The terms may have all but their last digits in common, so they
    are put together before anything is rounded."""
    if wrt == "input":
        first, second, distance = g["tp"] - g["fn"], g["fp"] - g["tn"], g.get("distance", 0)
    else:
        first, second, distance = g["tp"] - g["fp"], g["fn"] - g["tn"], -g.get("distance", 0)
    return {
        "first_above": first + distance, "second_above": second + distance,
        "first_below": first - distance, "second_below": second - distance,
    }  # fmt: skip


def _beside(g: dict[str, Tensor], x: Tensor, y: Tensor, far: Tensor | None) -> Tensor:
    """``x first + y second``; ``far`` is p - t, and None if no distance is summed."""
    above = x * g["first_above"] + y * g["second_above"]
    if far is None:
        return above
    below = x * g["first_below"] + y * g["second_below"]
    return torch.where(far > 0, above, torch.where(far < 0, below, (above + below) / 2))


def _by_target(
    x: Tensor,
    t: Tensor,
    g: dict[str, Tensor],
    activation: str,
    scale: float,
    offset: float,
    extra: int,
    gamma: float,
) -> Tensor:
    """dL/dt at weight 1."""
    p, q, _ = probability(x, activation, scale, offset)
    total = _beside(g, p, q, _far(p, q, t) if extra & Extra.DISTANCE else None)
    if extra & (Extra.LOG_LOSS | Extra.FOCAL):
        positive, negative = log_losses(x, activation, scale, offset)
        if extra & Extra.LOG_LOSS:
            total = total + _times(g["log_loss_pos"], positive)
            total = total - _times(g["log_loss_neg"], negative)
        if extra & Extra.FOCAL:
            missed, alarm = positive * power(q, gamma), negative * power(p, gamma)
            total = total + _times(g["focal"], missed - alarm)
    if extra & Extra.SQUARES:
        total = total + 2 * t * g["t2"] + p * p * g["tp2"]
    if extra & Extra.HARD:
        decided = _decision(_deciding(x, p, activation, scale, offset), activation)
        hit, miss = g["hard_tp"] - g["hard_fp"], g["hard_fn"] - g["hard_tn"]
        total = total + torch.where(decided, hit, miss)
    return total


def _slopes(
    x: Tensor,
    t: Tensor,
    g: dict[str, Tensor],
    activation: str,
    scale: float,
    offset: float,
    extra: int,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """u = dL/dp, h = -dL/d(log p) and k = -dL/d(log q) at weight 1."""
    p, q, _ = probability(x, activation, scale, offset)
    u = _beside(g, t, 1 - t, _far(p, q, t) if extra & Extra.DISTANCE else None)
    if extra & Extra.SQUARES:
        u = u + 2 * p * (g["p2"] + t * g["tp2"])
    h = k = torch.zeros_like(u)
    if extra & Extra.LOG_LOSS:
        h, k = g["log_loss_pos"] * t, g["log_loss_neg"] * (1 - t)
    if extra & Extra.FOCAL:
        positive, negative = log_losses(x, activation, scale, offset)
        more = gamma * p * _times(t, positive) * power(q, gamma - 1)
        h = h + g["focal"] * (t * power(q, gamma) + more)
        more = gamma * q * _times(1 - t, negative) * power(p, gamma - 1)
        k = k + g["focal"] * ((1 - t) * power(p, gamma) + more)
    return u, h, k


def _by_logit(
    x: Tensor, t: Tensor, w: Tensor | None, g: dict[str, Tensor], activation: str, scale: float,
    offset: float, extra: int, gamma: float,
) -> Tensor:  # fmt: skip
    """dL/dx of a softmax."""
    p, q, _ = probability(x, activation, scale, offset)
    u, h, _ = _slopes(x, t, g, activation, scale, offset, extra, gamma)
    if w is not None:
        u, h = w * u, w * h
    # the u of the largest class is subtracted, so that nothing cancels next to p = 1
    top = _decision(_deciding(x, p, activation, scale, offset), activation)
    u = u - _filled(u, ~top).sum(1, keepdim=True)
    total = p * (u - (p * u).sum(1, keepdim=True))
    if extra & (Extra.LOG_LOSS | Extra.FOCAL):
        total = total + p * (h.sum(1, keepdim=True) - h) - q * h
    return scale * total
