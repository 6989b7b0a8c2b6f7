"""The gradients of the sums by input, target and weight, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.reference.sums import (
    EXTRA_ROWS,
    PROBABILITY_FLOOR,
    Extra,
    Target,
    confusion_shares,
    deciding,
    decision,
    excess,
    filled,
    focal_bases,
    log_losses,
    moved,
    on_side,
    operands,
    over,
    over_classes,
    power,
    probability,
    rows,
    shares,
    spread,
    times,
    usable,
)


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
    ignore_index: int | Sequence[int] | None = None,
    label_smoothing: float = 0.0,
    extra: int = 0,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
    log_smoothing: float | None = None,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
) -> Tensor:
    """The gradient by ``wrt`` given the gradient by the sums, in the shape of ``input``.

    ``dL/dx = w dp/dx (t (g_tp - g_fn) + (1-t) (g_fp - g_tn))``
    ``dL/dt = w (p (g_tp - g_fp) + (1-p) (g_fn - g_tn))``
    ``dL/dw = t (p g_tp + (1-p) g_fn) + (1-t) (p g_fp + (1-p) g_tn)``

    and the terms of the extra sums. For a softmax, with u = dL/dp and h = -dL/d(log p), both of
    them times w,

    ``dL/dx_k = p_k (u_k - Σ_c p_c u_c) + p_k Σ_{c≠k} h_c - q_k h_k``
    """
    reading = (ignore_index, label_smoothing, log_smoothing, out_of_range, nan_targets)
    options = (activation, scale, offset, extra, focal_gamma, focal_split)
    x, t, w, holes = operands(input, target, weight, options, *reading)
    by_sums = _spread(grad_sums, input, per_sample, per_class)
    hidden = _hidden(by_sums, x, t.given, w, activation)
    left_out = hidden if holes is None else holes | hidden
    t = Target(*(filled(each, hidden) for each in t))
    w = None if w is None else filled(w.expand(x.shape), hidden)
    if activation != "softmax":  # whose logits are part of other classes, which may count
        x = filled(x, hidden)
    exact = dict(zip(rows(extra), by_sums.unbind(0)))
    if wrt != "weight":
        exact.update(_combined(exact, wrt))
    g = {name: spread(row.to(t.given.dtype), x.shape) for name, row in exact.items()}
    if wrt == "weight":
        return filled(_by_weight(x, t, exact, g, *options), left_out)
    if wrt == "target":
        log_smoothing = label_smoothing if log_smoothing is None else log_smoothing
        keep = (1 - label_smoothing, 1 - log_smoothing)
        total, like = _by_target(x, t, g, keep, *options), target
    elif activation == "softmax":
        # an element of weight 0 is still part of the other classes' probabilities
        whole = None if holes is None else holes.all(1, keepdim=True)
        return filled(_by_logit(x, t, w, g, *options), whole).to(input.dtype)
    else:
        p, q, slope = probability(x, activation, scale, offset)
        u, h, k, by_bases = _slopes(x, t, g, *options)
        if activation == "sigmoid":
            total = slope * u - scale * (q * h - p * k - by_bases)
        else:
            total = u - _log_slope(h, p) + _log_slope(k, q)
        like = input
    total = filled(total, left_out)
    return (total if w is None else w * total).to(like.dtype)


def _hidden(by_sums: Tensor, x: Tensor, t: Tensor, w: Tensor | None, activation: str) -> Tensor:
    """Which elements are not finite, in groups on whose sums the loss does not depend: their
    gradient is 0. That of finite ones comes out as 0, and may have a derivative."""
    finite = x.isfinite() & t.isfinite() & usable(x, activation)
    return (by_sums == 0).all(0) & ~(finite if w is None else finite & w.isfinite())


def _combined(g: dict[str, Tensor], wrt: str) -> dict[str, Tensor]:
    """The factors of t and 1 - t in dL/dp, or of p and 1 - p in dL/dt, with the slope of the
    distance where p is above t, and below. The terms may have all but their last digits in common,
    so they are put together before anything is rounded. "mixed" is the factor of dp in dL/dt."""
    common, pos, neg = (g.get(name, 0) for name in EXTRA_ROWS[Extra.DISTANCE])
    # The smaller of p and t is in common; a distance grows with the larger one.
    if wrt == "input":
        first, second, above, below = g["tp"] - g["fn"], g["fp"] - g["tn"], pos, common - neg
    else:
        first, second, above, below = g["tp"] - g["fp"], g["fn"] - g["tn"], common - pos, neg
    return {
        "first_above": first + above, "second_above": second + above,
        "first_below": first + below, "second_below": second + below,
        "mixed": (g["tp"] - g["fn"]) - (g["fp"] - g["tn"]),
    }  # fmt: skip


def _by_side(g: dict[str, Tensor], x: Tensor, y: Tensor, off: Tensor | None) -> Tensor:
    """``x first + y second``; ``off`` is p - t, and None if no distance is summed."""
    above = x * g["first_above"] + y * g["second_above"]
    if off is None:
        return above
    return on_side(off, above, x * g["first_below"] + y * g["second_below"])


def _by_weight(
    x: Tensor, t: Target, exact: dict[str, Tensor], g: dict[str, Tensor], activation: str,
    scale: float, offset: float, *rest: Any,
) -> Tensor:  # fmt: skip
    """dL/dw; ``exact`` are the gradients by the sums before they are rounded to those of ``g``.

    In its derivative by x, too, what the gradients by tp and fn have in common has to cancel before
    it is rounded: see ``differentiable_confusion``.
    """
    p, q, _ = probability(x, activation, scale, offset)
    by_p = (exact["tp"] - exact["fn"], exact["fp"] - exact["tn"])
    first, second = (spread(each.to(p.dtype), x.shape) for each in by_p)
    settled = confusion_shares(p.detach(), q.detach(), t.smoothed)
    others = shares(x, t, activation, scale, offset, *rest).unbind(0)[4:]
    parts = [times(by, term) for by, term in zip(g.values(), (*settled, *others), strict=True)]
    by_change = t.smoothed * first + (1 - t.smoothed) * second
    return torch.stack([*parts, by_change * moved(p, q)]).sum(0)


def _by_target(
    x: Tensor,
    target: Target,
    g: dict[str, Tensor],
    keep: tuple[float, float],
    activation: str,
    scale: float,
    offset: float,
    extra: int,
    gamma: float,
    split: bool,
) -> Tensor:
    """dL/dt at weight 1; ``keep`` are the slopes of the smoothed targets by the given one."""
    p, q, _ = probability(x, activation, scale, offset)
    t = target.smoothed
    off = excess(p, q, t) if extra & Extra.DISTANCE else None
    total = _by_side(g, p.detach(), q.detach(), off) + moved(p, q) * g["mixed"]
    if extra & Extra.FOCAL:
        total = total + _focal_by_target(x, t, g, activation, scale, offset, gamma, split)
    if extra & Extra.SQUARES:
        total = total + 2 * t * g["t2"] + p * p * g["tp2"]
    total = keep[0] * total
    if extra & Extra.LOG_LOSS:
        positive, negative = log_losses(x, activation, scale, offset)
        by_logs = times(g["log_loss_pos"], positive) - times(g["log_loss_neg"], negative)
        total = total + keep[1] * by_logs
    if extra & Extra.HARD:
        decided = decision(deciding(x, p, activation, scale, offset), activation)
        hit, miss = g["hard_tp"] - g["hard_fp"], g["hard_fn"] - g["hard_tn"]
        total = total + torch.where(decided, hit, miss)
    return total + g["support"] if extra & Extra.SUPPORT else total


def _log_slope(factor: Tensor, p: Tensor) -> Tensor:
    """The derivative of ``factor * log(max(p, floor))``: 0 below the floor, as of ``clamp_min``."""
    below = p < PROBABILITY_FLOOR
    slope = factor / torch.where(below, torch.ones_like(p), p)
    return torch.where(below, torch.zeros_like(slope), slope)


def _focal_by_target(
    x: Tensor,
    t: Tensor,
    g: dict[str, Tensor],
    activation: str,
    scale: float,
    offset: float,
    gamma: float,
    split: bool,
) -> Tensor:
    """The part of dL/dt that comes from the focal sums."""
    p, q, _ = probability(x, activation, scale, offset)
    positive, negative = log_losses(x, activation, scale, offset)
    one, other = focal_bases(p, q, t, activation, split)
    total = times(g["focal_pos"], times(power(one, gamma), positive))
    total = total - times(g["focal_neg"], times(power(other, gamma), negative))
    if split or activation == "softmax" or gamma == 0:
        return total
    lost = times(g["focal_pos"], times(t, positive))
    lost = lost + times(g["focal_neg"], times(1 - t, negative))
    return total + gamma * (q - p) * power(one, gamma) * over(lost, one)


def _slopes(
    x: Tensor,
    target: Target,
    g: dict[str, Tensor],
    activation: str,
    scale: float,
    offset: float,
    extra: int,
    gamma: float,
    split: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u = dL/dp, h = -dL/d(log p), k = -dL/d(log q), and dL/dx by the focal bases of a sigmoid, at
    weight 1 and scale 1. Of probabilities these are part of u, and of a softmax of h."""
    p, q, _ = probability(x, activation, scale, offset)
    t = target.smoothed
    u = _by_side(g, t, 1 - t, excess(p, q, t) if extra & Extra.DISTANCE else None)
    if extra & Extra.SQUARES:
        u = u + 2 * p * (g["p2"] + t * g["tp2"])
    h = k = by_bases = torch.zeros_like(u)
    if extra & Extra.LOG_LOSS:
        h, k = g["log_loss_pos"] * target.log, g["log_loss_neg"] * (1 - target.log)
    if extra & Extra.FOCAL:
        positive, negative = log_losses(x, activation, scale, offset)
        one, other = focal_bases(p, q, t, activation, split)
        joint = not split and activation != "softmax"
        # the slopes of the bases by p
        by_one, by_other = (1 - 2 * t, 1 - 2 * t) if joint else (-1, 1)
        # p (-log p) and q (-log q) go to 0 where the logarithm grows without bound
        near, far_off = (t, 1 - t) if activation == "none" else (t * p, (1 - t) * q)
        damping, other_damping = power(one, gamma), power(other, gamma)
        hits = gamma * by_one * damping * (g["focal_pos"] * over(times(near, positive), one))
        h = h + g["focal_pos"] * (t * damping)
        if activation == "softmax":  # as part of h nothing cancels next to p = 1
            return u, h - hits, k, by_bases
        misses = g["focal_neg"] * over(times(far_off, negative), other)
        misses = gamma * by_other * other_damping * misses
        k = k + g["focal_neg"] * ((1 - t) * other_damping)
        if activation == "none":
            u = u + hits + misses
        else:
            by_bases = q * hits + p * misses
    return u, h, k, by_bases


def _by_logit(
    x: Tensor, target: Target, w: Tensor | None, g: dict[str, Tensor], activation: str,
    scale: float, offset: float, extra: int, gamma: float, split: bool,
) -> Tensor:  # fmt: skip
    """dL/dx of a softmax."""
    p, q, _ = probability(x, activation, scale, offset)
    u, h, *_ = _slopes(x, target, g, activation, scale, offset, extra, gamma, split)
    if w is not None:
        u, h = w * u, w * h
    # the u of the largest class is subtracted, so that nothing cancels next to p = 1
    top = decision(deciding(x, p, activation, scale, offset), activation)
    u = u - over_classes(filled(u, ~top))
    total = p * (u - over_classes(p * u))
    if extra & (Extra.LOG_LOSS | Extra.FOCAL):
        total = total + p * (over_classes(h) - h) - q * h
    return scale * total
