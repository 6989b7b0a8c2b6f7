"""The plain backend: the primitives computed by the reference, for devices without a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss._spec import hints
from customloss._spec.arguments import (
    SCORE_ALONE,
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
)
from customloss._spec.words import (
    ABSENT,
    ACTIVATIONS,
    AVERAGES,
    FUSED_LINKS,
    INPUT,
    NAN_TARGETS,
    OUT_OF_RANGE,
    RAISE,
    REDUCTIONS,
    WEIGHT,
    WRT,
)
from customloss.reference import differentiable, gradients, losses
from customloss.reference import sums as reference


def in_words(elements: Elements) -> tuple[Any, ...]:
    """``elements`` as the reference takes them: with words in place of their numbers."""
    words: dict[str, Any] = {
        "activation": ACTIVATIONS[elements.activation],
        "out_of_range": OUT_OF_RANGE[elements.out_of_range],
        "nan_targets": NAN_TARGETS[elements.nan_targets],
    }
    return elements._replace(**words)


def confusion(data: Data, elements: Elements) -> Tensor:
    """See ``customloss::confusion``. On the CPU it refuses what the compiled kernel refuses."""
    refuse_unknown_labels(data, elements)
    return traceable_confusion(data, elements)


def refuse_unknown_labels(data: Data, elements: Elements, classes: int | None = None) -> None:
    """Raises for the first class number that :func:`unknown_labels` finds, if it may be looked at:
    on another device that would wait for it, and in a trace there are no numbers. The sums become
    NaN there.
    """
    if data.target.device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return
    unknown = unknown_labels(data, elements, classes)
    if unknown is not None and unknown.any():
        first = int(data.target[unknown][0])
        raise hints.unknown_label(first, classes or data.input.shape[1], elements.ignore_index)


def unknown_labels(data: Data, elements: Elements, classes: int | None = None) -> Tensor | None:
    """Where a class number is neither a class nor ignored, and weighs; None if that is allowed.

    ``classes`` is their number, if it is not that of the input.
    """
    input, target, weight = data
    numbers = classes is not None or reference.is_class_index(input, target)
    if elements.out_of_range != RAISE or not numbers:
        return None
    labels = target.long()  # in a narrow dtype -100 or 300 would wrap to another number
    unknown = (labels < 0) | (labels >= (classes or input.shape[1]))
    for ignored in elements.ignore_index or ():
        unknown &= labels != ignored
    if weight is not None:
        unknown &= (weight != 0).expand(input.shape).any(1, keepdim=True)
    return unknown


def traceable_confusion(data: Data, elements: Elements) -> Tensor:
    """The sums, differentiable and under transforms; NaN where a class number is refused."""
    sums = reference.confusion(*data, *in_words(elements))
    return sums.to(reference.sums_dtype(data.input.device))


def differentiable_confusion(data: Data, elements: Elements) -> tuple[Tensor, Tensor]:
    """The sums for a transform that differentiates them, and the same with tp, fp, fn and tn
    constant in the input."""
    return differentiable.differentiable_confusion(*data, *in_words(elements))


def loss_of_sums(
    group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise, settled: Tensor | None = None
) -> Tensor:
    """The loss of sums ``[rows, samples, classes]``, in torch operations. A pointwise loss is that
    of ``settled``, if these sums are given."""
    loss = losses.sums_loss(
        group_sums.sums,
        group_sums.class_weight,
        group_sums.extra,
        group_sums.per_sample,
        similarity=(
            scoring.tp_weight, scoring.fp_weight, scoring.fn_weight, scoring.smooth,
            scoring.smooth_denominator, FUSED_LINKS[scoring.link], scoring.gamma, scoring.log_floor,
        ),
        averaging=(
            ABSENT[scoring.absent], AVERAGES[scoring.average], REDUCTIONS[scoring.reduction],
        ),
        score_weight=pointwise.score_weight,
        pointwise=tuple(pointwise)[1:],
        settled=settled,
    )  # fmt: skip
    return loss.to(torch.float64 if group_sums.wide else torch.float32)


def loss_of_groups(sums: Tensor, elements: Elements, scoring: Scoring) -> Tensor:
    """The loss that ``confusion_score`` makes of sums, in their dtype."""
    wide = sums.dtype == torch.float64
    group_sums = GroupSums(sums, None, elements.extra, elements.per_sample, wide)
    return without_classes(loss_of_sums(group_sums, scoring, SCORE_ALONE), elements, scoring)


def without_classes(loss: Tensor, elements: Elements, scoring: Scoring) -> Tensor:
    """Drops the class dimension of a loss that is kept per group, if the input has no classes."""
    kept = (AVERAGES[scoring.average], REDUCTIONS[scoring.reduction])
    return losses.without_class_dim(loss, *kept, elements.per_class)


def sums_score(
    group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
) -> tuple[Tensor, Tensor]:
    """See ``customloss::sums_score``."""
    with torch.enable_grad():
        sums = group_sums.sums.detach().requires_grad_()
        loss = loss_of_sums(group_sums._replace(sums=sums), scoring, pointwise)
        if not loss.requires_grad:  # every part of the loss has weight 0
            return loss, torch.zeros_like(sums)
        (coefficients,) = torch.autograd.grad(
            loss.sum(), sums, allow_unused=True, materialize_grads=True
        )
    return loss.detach(), coefficients


def times_outer(coefficients: Tensor, grad: Tensor, per_sample: bool) -> Tensor:
    """Coefficients ``[rows, samples, classes]`` times the gradient by the loss, which has the
    dimensions that the loss keeps."""
    if grad.dim() == 1:
        grad = grad[:, None] if per_sample else grad[None, :]
    return coefficients * grad


def confusion_backward(incoming: Incoming, data: Data, wrt: Wrt, elements: Elements) -> Tensor:
    """See ``customloss::confusion_backward``."""
    grad, coefficients = incoming
    if grad is not None:
        coefficients = times_outer(coefficients, grad, elements.per_sample)
    gradient = gradients.confusion_backward(coefficients, *data, WRT[wrt.wrt], *in_words(elements))
    if wrt.wrt == WEIGHT:
        return gradient.contiguous()
    return torch.empty_like(data.input if wrt.wrt == INPUT else data.target).copy_(gradient)
