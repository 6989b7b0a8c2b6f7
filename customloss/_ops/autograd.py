"""The primitives as autograd Functions: for the sums, for a loss, for a loss of sums that exist
already, and for the gradient pass.

They save the caller's tensors and a few numbers per group. Under ``create_graph`` the gradient pass
is itself a Function, whose backward is the reference's, so derivatives of any order are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._backends import choice, plain
from customloss._backends.choice import Primitives
from customloss._ops.modes import differentiates, transformed, wants_grad
from customloss._spec.arguments import Data, Elements, GroupSums, Pointwise, Scoring
from customloss._spec.words import INPUT, TARGET, WEIGHT, WRT
from customloss.reference import gradients as reference
from customloss.reference.sums import added, sums_dtype


class Compound(NamedTuple):
    """What a compound adds to a ratio loss: weights of the classes, and a pointwise loss."""

    class_weight: Tensor | None  # [2, classes]: for the score, for the pointwise loss
    pointwise: Pointwise


# ---- the gradient pass ---------------------------------------------------------------------------


def _gradients(
    ctx: Any, grad: Tensor | None, coefficients: Tensor, operands: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that autograd asked for, one pass each."""
    input, target, weight = operands
    backward = _ConfusionBackward.apply if torch.is_grad_enabled() else _confusion_backward
    gradients: list[Tensor | None] = [None, None, None]
    for wrt in (INPUT, TARGET, WEIGHT):
        if ctx.needs_input_grad[wrt]:
            gradients[wrt] = backward(
                grad, coefficients, input, target, weight, wrt, ctx.elements, ctx.primitives
            )
    return gradients[INPUT], gradients[TARGET], gradients[WEIGHT]


def _confusion_backward(
    grad: Tensor | None,
    coefficients: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: int,
    elements: Elements,
    primitives: Primitives,
) -> Tensor:
    """The gradient by one operand, in its shape."""
    result = primitives.confusion_backward(
        grad, coefficients, input, target, weight, wrt, *elements
    )
    if wrt == WEIGHT and weight is not None:
        result = _summed_to(weight.shape, result).to(weight.dtype)
    return result


def _summed_to(shape: torch.Size, gradient: Tensor) -> Tensor:
    """``gradient.sum_to_size(shape)``, added up in float64: float32 would depend on the number of
    threads."""
    ahead = gradient.dim() - len(shape)
    dims = [*range(ahead), *(ahead + dim for dim, size in enumerate(shape) if size == 1)]
    dims = [dim for dim in dims if gradient.shape[dim] != 1]
    dtype = sums_dtype(gradient.device)
    if dims and math.prod(shape) == 1:
        gradient = added(gradient.flatten(), dtype)
    elif dims:
        gradient = gradient.sum(dims, keepdim=True, dtype=dtype)
    return gradient.reshape(shape)


class _ConfusionBackward(torch.autograd.Function):
    """The gradient pass as a differentiable function: its own backward is the reference's."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: None,
        coefficients: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        wrt: int,
        elements: Elements,
        primitives: Primitives,
    ) -> Tensor:
        ctx.save_for_backward(coefficients, input, target, weight)
        ctx.wrt, ctx.elements = wrt, elements
        return _confusion_backward(
            grad, coefficients, input, target, weight, wrt, elements, primitives
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        needed = ctx.needs_input_grad[1:5]
        with torch.enable_grad():
            operands = [
                (tensor.view_as(tensor) if create_graph else tensor.detach().requires_grad_())
                if need
                else tensor
                for tensor, need in zip(ctx.saved_tensors, needed)
            ]
            coefficients, input, target, weight = operands
            result = reference.confusion_backward(
                coefficients, input, target, weight, WRT[ctx.wrt], *plain.in_words(ctx.elements)
            )
            if ctx.wrt == WEIGHT:
                result = _summed_to(weight.shape, result).to(weight.dtype)
            wanted = [tensor for tensor, need in zip(operands, needed) if need]
            gradients = torch.autograd.grad(
                result, wanted, grad, create_graph=create_graph, allow_unused=True
            )
        return None, *_in_place(gradients, needed), None, None, None


def _in_place(
    gradients: Sequence[Tensor | None], needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    """The gradients of the operands that need one, and None for the others."""
    computed = iter(gradients)
    return (next(computed) if need else None for need in needed)


# ---- sums, and losses ----------------------------------------------------------------------------


class SumsFunction(torch.autograd.Function):
    """Saves the caller's tensors and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, elements: Elements
    ) -> Tensor:
        ctx.save_for_backward(input, target, weight)
        ctx.elements, ctx.primitives = elements, choice.primitives(input)
        sums: Tensor = ctx.primitives.confusion(input, target, weight, *elements)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, None, grad.contiguous(), ctx.saved_tensors), None


class LossFunction(torch.autograd.Function):
    """Saves the caller's tensors and a few numbers per group."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        elements: Elements,
        scoring: Scoring,
        compound: Compound | None = None,
    ) -> Tensor:
        primitives = choice.primitives(input)
        loss, coefficients = scored(primitives, input, target, weight, elements, scoring, compound)
        ctx.save_for_backward(input, target, weight, coefficients)
        ctx.elements, ctx.scoring, ctx.primitives = elements, scoring, primitives
        ctx.compound = compound
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, grad), None, None, None
        # read once: a second read raises under activation checkpointing
        *operands, coefficients = ctx.saved_tensors
        return *_gradients(ctx, grad, coefficients, operands), None, None, None


class SumsLossFunction(torch.autograd.Function):
    """Saves the sums and the gradient by them, a few numbers each."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        class_weight: Tensor | None,
        extra: int,
        per_sample: bool,
        wide: bool,
        scoring: Scoring,
        pointwise: Pointwise,
    ) -> Tensor:
        loss, coefficients = choice.primitives(sums).sums_score(
            sums, class_weight, extra, per_sample, wide, *scoring, *pointwise
        )
        ctx.save_for_backward(sums, class_weight, coefficients)
        ctx.extra, ctx.per_sample, ctx.wide = extra, per_sample, wide
        ctx.scoring, ctx.pointwise = scoring, pointwise
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, class_weight, coefficients = ctx.saved_tensors
        if torch.is_grad_enabled():
            leaf = sums.view_as(sums)
            group_sums = GroupSums(leaf, class_weight, ctx.extra, ctx.per_sample, ctx.wide)
            loss = plain.loss_of_sums(group_sums, ctx.scoring, ctx.pointwise)
            (by_sums,) = torch.autograd.grad(loss, leaf, grad, create_graph=True, allow_unused=True)
        else:
            by_sums = plain.times_outer(coefficients, grad, ctx.per_sample)
        return by_sums, None, None, None, None, None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> Iterator[Tensor | None]:
    """For create_graph: the coefficients have to depend on the operands, so they are made anew."""
    needed = ctx.needs_input_grad[:3]
    # views, because autograd.grad stops at them: one operand may have been computed from another
    operands = [
        tensor.view_as(tensor) if need else tensor
        for tensor, need in zip(ctx.saved_tensors[:3], needed)
    ]
    sums = SumsFunction.apply(*operands, ctx.elements)
    loss = score(sums, ctx.scoring, ctx.elements, ctx.compound).to(grad.dtype)
    wanted = [tensor for tensor, need in zip(operands, needed) if need]
    return _in_place(torch.autograd.grad(loss, wanted, grad, create_graph=True), needed)


# ---- without a graph -----------------------------------------------------------------------------


def sums(data: Data, elements: Elements) -> Tensor:
    """The sums ``[rows, samples, classes]``, differentiable by autograd and under transforms."""
    return sums_for_loss(data, elements)[0]


def sums_for_loss(data: Data, elements: Elements) -> tuple[Tensor, Tensor | None]:
    """The sums, and those that a pointwise loss takes instead, if there are any: see
    ``reference.sums_loss``."""
    if transformed():
        if differentiates() or wants_grad(*data):
            return plain.differentiable_confusion(data, elements)
        return plain.traceable_confusion(data, elements), None
    if wants_grad(*data):
        return SumsFunction.apply(*data, elements), None
    return choice.primitives(data.input).confusion(*data, *elements), None


def scored(
    primitives: Primitives,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    scoring: Scoring,
    compound: Compound | None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the sums: one primitive for a plain ratio, else two."""
    if compound is None:
        return primitives.confusion_score(input, target, weight, *elements, *scoring)
    sums = primitives.confusion(input, target, weight, *elements)
    wide = input.dtype == torch.float64
    group_sums = _group_sums(sums, elements, compound)._replace(wide=wide)
    return primitives.sums_score(*group_sums, *scoring, *compound.pointwise)


def score(
    sums: Tensor,
    scoring: Scoring,
    elements: Elements,
    compound: Compound | None = None,
    settled: Tensor | None = None,
) -> Tensor:
    """The same loss from sums, composed of torch operations; in the precision of the sums."""
    if compound is None:
        return plain.loss_of_groups(sums, elements, scoring)
    group_sums = _group_sums(sums, elements, compound)
    return plain.loss_of_sums(group_sums, scoring, compound.pointwise, settled)


def _group_sums(sums: Tensor, elements: Elements, compound: Compound) -> GroupSums:
    wide = sums.dtype == torch.float64
    return GroupSums(sums, compound.class_weight, elements.extra, elements.per_sample, wide)
