"""The specification: every operator in plain PyTorch, written to be read, not to be fast.

It judges the kernels, serves devices that have none, and is what ``torch.func`` transforms and
second derivatives differentiate. It imports nothing of this package.

All functions take tensors that were already checked: ``input`` and ``target`` of one shape
``[N]``, ``[N, C]`` or ``[N, C, *spatial]``, ``weight`` broadcastable to it or None.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# -log(similarity) is evaluated with A tp + smooth no smaller than this.
LOG_FLOOR = 1e-30


class Probability(NamedTuple):
    """``p``, its complement ``q = 1 - p`` without cancellation, and ``dp/dx``."""

    p: Tensor
    q: Tensor
    slope: Tensor | float


def accumulator(input: Tensor) -> torch.dtype:
    """Half inputs are computed with in float32, everything else as it is."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def probability(input: Tensor, activation: str, scale: float, offset: float) -> Probability:
    """``sigmoid(scale * (input - offset))``, or ``input`` itself for ``activation="none"``."""
    x = input.to(accumulator(input))
    if activation == "none":
        return Probability(x, 1 - x, 1.0)
    z = scale * (x - offset)
    # autograd of y = sigmoid(z) is y (1 - y), which is 0 in float32 from z = 16.7 on: of the two
    # only the smaller is made that way
    negative = z < 0
    small = torch.sigmoid(torch.where(negative, z, -z))
    big = 1 - small
    p, q = torch.where(negative, small, big), torch.where(negative, big, small)
    return Probability(p, q, scale * (small * big))


def _holes(input: Tensor, target: Tensor, weight: Tensor | None, activation: str) -> Tensor | None:
    """Where weight 0 removes what gives no finite number: it leaks into no sum and no gradient."""
    if weight is None:
        return None
    usable = ~input.isnan() if activation == "sigmoid" else input.isfinite()
    return (weight == 0) & ~(usable & target.isfinite())


def _filled(values: Tensor, holes: Tensor | None) -> Tensor:
    """``values`` with zeros in the holes."""
    return values if holes is None else torch.where(holes, torch.zeros_like(values), values)


def group_dims(input: Tensor, per_sample: bool, per_class: bool) -> list[int]:
    """The dimensions that are summed over."""
    kept = ([0] if per_sample else []) + ([1] if per_class else [])
    return [dim for dim in range(input.dim()) if dim not in kept]


def group_shape(input: Tensor, per_sample: bool, per_class: bool) -> tuple[int, int]:
    """Samples and classes that are told apart: the shape of one sum."""
    classes = input.shape[1] if per_class and input.dim() > 1 else 1
    return (input.shape[0] if per_sample else 1), classes


def confusion(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: str,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
) -> Tensor:
    """The soft confusion sums ``[4, samples, classes]``: tp, fp, fn, tn.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    """
    holes = _holes(input, target, weight, activation)
    p, q, _ = probability(_filled(input, holes), activation, scale, offset)
    t = _filled(target.to(p.dtype), holes)
    shares = _filled(torch.stack([t * p, (1 - t) * p, t * q, (1 - t) * q]), holes)
    if weight is not None:
        shares = shares * weight.to(p.dtype)
    dims = [1 + dim for dim in group_dims(input, per_sample, per_class)]
    sums = shares.sum(dims) if dims else shares
    return sums.reshape(4, *group_shape(input, per_sample, per_class))


def _spread(groups: Tensor, input: Tensor, per_sample: bool, per_class: bool) -> Tensor:
    """``[4, samples, classes]`` viewed so that it broadcasts against ``[4, *input.shape]``."""
    shape = [1] * input.dim()
    if per_sample:
        shape[0] = groups.shape[1]
    if per_class and input.dim() > 1:
        shape[1] = groups.shape[2]
    return groups.reshape(4, *shape)


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
) -> Tensor:
    """The gradient by ``wrt`` given the gradient by the sums, in the shape of ``input``.

    ``dL/dx = w dp/dx (t (g_tp - g_fn) + (1-t) (g_fp - g_tn))``
    ``dL/dt = w (p (g_tp - g_fp) + (1-p) (g_fn - g_tn))``
    ``dL/dw = t (p g_tp + (1-p) g_fn) + (1-t) (p g_fp + (1-p) g_tn)``
    """
    holes = _holes(input, target, weight, activation)
    p, q, slope = probability(_filled(input, holes), activation, scale, offset)
    t = _filled(target.to(p.dtype), holes)
    spread = _spread(grad_sums.to(p.dtype), input, per_sample, per_class)
    g_tp, g_fp, g_fn, g_tn = spread.unbind(0)
    if wrt == "weight":
        return _filled(t * (p * g_tp + q * g_fn) + (1 - t) * (p * g_fp + q * g_tn), holes)
    w = torch.ones((), dtype=p.dtype, device=p.device) if weight is None else weight.to(p.dtype)
    if wrt == "target":
        return (w * (p * (g_tp - g_fp) + q * (g_fn - g_tn))).to(target.dtype)
    return (w * slope * (t * (g_tp - g_fn) + (1 - t) * (g_fp - g_tn))).to(input.dtype)


def similarity_loss(
    sums: Tensor,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    link: str,
    gamma: float,
) -> Tensor:
    """The linked similarity ``S = (A tp + s) / (A tp + s + B fp + C fn)`` of every group.

    Written with the misses ``B fp + C fn`` so that nothing cancels near a perfect score.
    An empty group that is predicted empty (0 / 0) has similarity 1 and gradient 0.
    """
    tp, fp, fn, _ = sums
    hit = tp_weight * tp + smooth
    miss = fp_weight * fp + fn_weight * fn
    empty = (hit + miss) == 0
    whole = torch.where(empty, torch.ones_like(hit), hit + miss)
    if link == "log":
        loss = torch.log1p(miss / hit.clamp_min(LOG_FLOOR))
        return torch.where(empty, torch.zeros_like(loss), loss)
    if link == "negative":
        return torch.where(empty, -torch.ones_like(hit), -hit / whole)
    # not 0 / 1, whose gradient is not 0
    complement = torch.where(empty, torch.zeros_like(miss), miss / whole)
    if link == "focal" and gamma != 1.0:
        positive = complement != 0
        base = torch.where(positive, complement, torch.ones_like(complement))
        return torch.where(positive, base**gamma, torch.zeros_like(base))
    return complement


def with_absent(loss: Tensor, sums: Tensor, absent: str) -> tuple[Tensor, Tensor]:
    """The loss of groups without a positive target, and which groups count in a mean."""
    tp, fp, fn, tn = sums
    missing = (tp + fn) == 0
    if absent == "skip":
        return torch.where(missing, torch.zeros_like(loss), loss), ~missing
    if absent == "penalize":
        negatives = fp + tn
        safe = torch.where(negatives == 0, torch.ones_like(negatives), negatives)
        rate = torch.where(negatives == 0, torch.zeros_like(fp), fp / safe)
        loss = torch.where(missing, rate, loss)
    return loss, torch.ones_like(missing)


def _mean(loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over the last dim and whether it is of something, else it is 0."""
    total = weight.sum(-1)
    # a group of weight 0 adds nothing, not even a NaN, but its weight still has a gradient
    hidden = (weight == 0) & ~torch.isfinite(loss)
    numerator = torch.where(hidden, torch.zeros_like(loss), weight * loss).sum(-1)
    safe = torch.where(total == 0, torch.ones_like(total), total)
    return torch.where(total == 0, torch.zeros_like(numerator), numerator / safe), total != 0


def average_groups(
    loss: Tensor,
    sums: Tensor,
    counted: Tensor,
    average: str,
    samplewise: bool,
    reduction: str,
) -> Tensor:
    """Losses ``[..., samples, classes]`` to what the caller asked for.

    First over the classes of a sample (``"macro"`` and ``"micro"`` a mean, ``"weighted"`` by
    support tp + fn, ``"none"`` not at all), then ``reduction`` over what is left.
    """
    weight = counted.to(loss.dtype)
    if average == "weighted":
        weight = weight * (sums[0] + sums[2])
    left = 2
    if average != "none":
        loss, counted = _mean(loss, weight)
        left = 1
    if reduction == "none":
        return loss if samplewise else loss.squeeze(-left)
    loss, counted = loss.flatten(-left), counted.flatten(-left)
    return _mean(loss, counted.to(loss.dtype))[0] if reduction == "mean" else loss.sum(-1)


def soft_f1(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    activation: str = "sigmoid",
    average: str = "macro",
    samplewise: bool = False,
    reduction: str = "mean",
    smooth: float = 0.0,
    absent: str = "score",
    link: str = "complement",
    gamma: float = 1.0,
    logit_scale: float = 1.0,
    logit_offset: float = 0.0,
) -> Tensor:
    """The soft-Fβ loss ``1 - ((1+β²) tp + s) / ((1+β²) tp + β² fn + fp + s)``."""
    per_class = average != "micro" and input.dim() > 1
    sums = confusion(
        input, target, weight, activation, logit_scale, logit_offset, samplewise, per_class
    )
    loss = similarity_loss(sums, 1 + beta**2, 1.0, beta**2, smooth, link, gamma)
    loss, counted = with_absent(loss, sums, absent)
    loss = average_groups(loss, sums, counted, average, samplewise, reduction)
    # [N] inputs have no class dimension to keep
    if average == "none" and reduction == "none" and input.dim() == 1:
        return loss[..., 0]
    return loss
