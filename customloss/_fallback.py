"""The primitives' contract met by the reference: for devices that have no kernel of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss import reference
from customloss._words import ABSENT, ACTIVATIONS, AVERAGES, LINKS, REDUCTIONS, WRT


def sums_dtype(device: torch.device) -> torch.dtype:
    """Sums are float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def confusion(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: int,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | None,
    label_smoothing: float,
    extra: int,
    focal_gamma: float,
) -> Tensor:
    """See ``customloss::confusion``."""
    sums = reference.confusion(
        input, target, weight, ACTIVATIONS[activation], scale, offset, per_sample, per_class,
        ignore_index, label_smoothing, extra, focal_gamma,
    )  # fmt: skip
    return sums.to(sums_dtype(input.device))


def score(
    sums: Tensor,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    gamma: float,
    link: int,
    absent: int,
    average: int,
    reduction: int,
    per_sample: bool,
    per_class: bool,
) -> Tensor:
    """The loss of sums ``[4, samples, classes]``, in torch operations."""
    loss = reference.similarity_loss(
        sums, tp_weight, fp_weight, fn_weight, smooth, LINKS[link], gamma
    )
    loss, counted = reference.with_absent(loss, sums, ABSENT[absent])
    loss = reference.average_groups(
        loss, sums, counted, AVERAGES[average], per_sample, REDUCTIONS[reduction]
    )
    kept = AVERAGES[average] == "none" and REDUCTIONS[reduction] == "none"
    return loss[..., 0] if kept and not per_class else loss


def confusion_score(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    activation: int,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | None,
    label_smoothing: float,
    extra: int,
    focal_gamma: float,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    gamma: float,
    link: int,
    absent: int,
    average: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """See ``customloss::confusion_score``."""
    sums = confusion(
        input, target, weight, activation, scale, offset, per_sample, per_class, ignore_index,
        label_smoothing, extra, focal_gamma,
    ).detach()  # fmt: skip
    with torch.enable_grad():
        sums.requires_grad_()
        loss = score(
            sums, tp_weight, fp_weight, fn_weight, smooth, gamma, link, absent, average,
            reduction, per_sample, per_class,
        )  # fmt: skip
        (coefficients,) = torch.autograd.grad(loss.sum(), sums)
    return loss.detach().to(reference.accumulator(input)), coefficients


def sums_loss(
    sums: Tensor,
    class_weight: Tensor | None,
    extra: int,
    per_sample: bool,
    wide: bool,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    gamma: float,
    link: int,
    absent: int,
    average: int,
    reduction: int,
    score_weight: float,
    *pointwise: float,
) -> Tensor:
    """The loss of sums ``[rows, samples, classes]``, in torch operations."""
    similarity = (tp_weight, fp_weight, fn_weight, smooth, LINKS[link], gamma)
    averaging = (ABSENT[absent], AVERAGES[average], REDUCTIONS[reduction])
    log_pos, log_neg, focal, positives, negatives = pointwise
    loss = reference.sums_loss(
        sums, class_weight, extra, per_sample, similarity, averaging, score_weight,
        (log_pos, log_neg, focal, positives, negatives),
    )  # fmt: skip
    return loss.to(torch.float64 if wide else torch.float32)


def sums_score(sums: Tensor, class_weight: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    """See ``customloss::sums_score``."""
    with torch.enable_grad():
        own = sums.detach().requires_grad_()
        loss = sums_loss(own, class_weight, *options)
        if not loss.requires_grad:  # nothing was asked for
            return loss, torch.zeros_like(sums)
        found = torch.autograd.grad(loss.sum(), own, allow_unused=True, materialize_grads=True)
    return loss.detach(), found[0]


def times_outer(coefficients: Tensor, grad: Tensor, per_sample: bool) -> Tensor:
    """Coefficients ``[rows, samples, classes]`` times the gradient of what the loss kept."""
    if grad.dim() == 1:
        grad = grad[:, None] if per_sample else grad[None, :]
    return coefficients * grad


def confusion_backward(
    grad: Tensor | None,
    coefficients: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: int,
    activation: int,
    scale: float,
    offset: float,
    per_sample: bool,
    per_class: bool,
    ignore_index: int | None,
    label_smoothing: float,
    extra: int,
    focal_gamma: float,
) -> Tensor:
    """See ``customloss::confusion_backward``."""
    if grad is not None:
        coefficients = times_outer(coefficients, grad, per_sample)
    gradient = reference.confusion_backward(
        coefficients, input, target, weight, WRT[wrt], ACTIVATIONS[activation], scale, offset,
        per_sample, per_class, ignore_index, label_smoothing, extra, focal_gamma,
    )  # fmt: skip
    like = (input, target, gradient)[wrt]
    return torch.empty_like(like).copy_(gradient) if wrt != 2 else gradient.contiguous()
