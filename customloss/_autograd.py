"""What autograd makes of the primitives: two Functions, and the gradient pass as a third.

They save the caller's tensors and four numbers per group. Under ``create_graph`` the gradient pass
is itself a Function, whose backward is the reference's; so derivatives of any order are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss import _backend, _fallback, reference
from customloss._options import Compound, Elements, Scoring
from customloss._words import INPUT, TARGET, WEIGHT, WRT


def _gradients(
    ctx: Any, grad: Tensor | None, coefficients: Tensor, operands: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that autograd asked for, one pass each."""
    input, target, weight = operands
    backward = _ConfusionBackward.apply if torch.is_grad_enabled() else _confusion_backward
    found: list[Tensor | None] = [None, None, None]
    for wrt in (INPUT, TARGET, WEIGHT):
        if ctx.needs_input_grad[wrt]:
            found[wrt] = backward(
                grad, coefficients, input, target, weight, wrt, ctx.elements, ctx.implementation
            )
    return found[0], found[1], found[2]


def _confusion_backward(
    grad: Tensor | None,
    coefficients: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: int,
    elements: Elements,
    implementation: Any,
) -> Tensor:
    result: Tensor = implementation.confusion_backward(
        grad, coefficients, input, target, weight, wrt, *elements
    )
    if wrt == WEIGHT and weight is not None:
        result = result.sum_to_size(weight.shape).to(weight.dtype)
    return result


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
        implementation: Any,
    ) -> Tensor:
        ctx.save_for_backward(coefficients, input, target, weight)
        ctx.wrt, ctx.elements = wrt, elements
        return _confusion_backward(
            grad, coefficients, input, target, weight, wrt, elements, implementation
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
                coefficients, input, target, weight, WRT[ctx.wrt], *ctx.elements.named()
            )
            if ctx.wrt == WEIGHT:
                result = result.sum_to_size(weight.shape)
            wanted = [tensor for tensor, need in zip(operands, needed) if need]
            found = iter(
                torch.autograd.grad(
                    result, wanted, grad, create_graph=create_graph, allow_unused=True
                )
            )
        return None, *(next(found) if need else None for need in needed), None, None, None


class SumsFunction(torch.autograd.Function):
    """Saves the caller's tensors and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, elements: Elements
    ) -> Tensor:
        ctx.save_for_backward(input, target, weight)
        ctx.elements, ctx.implementation = elements, _backend.implementation(input)
        sums: Tensor = ctx.implementation.confusion(input, target, weight, *elements)
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
        implementation = _backend.implementation(input)
        loss, coefficients = scored(
            implementation, input, target, weight, elements, scoring, compound
        )
        ctx.save_for_backward(input, target, weight, coefficients)
        ctx.elements, ctx.scoring, ctx.implementation = elements, scoring, implementation
        ctx.compound = compound
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, grad), None, None, None
        # read once: activation checkpoints allow no more
        *operands, coefficients = ctx.saved_tensors
        return *_gradients(ctx, grad, coefficients, operands), None, None, None


class SumsLossFunction(torch.autograd.Function):
    """Saves the gradient by the sums, a few numbers, beside the sums."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, class_weight: Tensor | None, how: Any) -> Tensor:
        primitive = _backend.implementation(sums).sums_score
        loss, coefficients = primitive(sums, class_weight, *how)
        ctx.save_for_backward(sums, class_weight, coefficients)
        ctx.how = how
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, class_weight, coefficients = ctx.saved_tensors
        if torch.is_grad_enabled():
            own = sums.view_as(sums)
            loss = _fallback.sums_loss(own, class_weight, *ctx.how)
            found = torch.autograd.grad(loss, own, grad, create_graph=True, allow_unused=True)
            return found[0], None, None
        return _fallback.times_outer(coefficients, grad, per_sample=ctx.how[1]), None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """For create_graph: the coefficients must depend on the operands, so compose them anew."""
    needed = ctx.needs_input_grad[:3]
    # views, so that a gradient by one operand does not run on into the others' own history
    operands = [
        tensor.view_as(tensor) if need else tensor
        for tensor, need in zip(ctx.saved_tensors[:3], needed)
    ]
    sums = SumsFunction.apply(*operands, ctx.elements)
    loss = score(sums, ctx.scoring, ctx.elements, ctx.compound).to(grad.dtype)
    wanted = [tensor for tensor, need in zip(operands, needed) if need]
    found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def transformed() -> bool:
    """Inside torch.func transforms or forward-mode AD."""
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def wants_grad(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether autograd has to hear of this call."""
    return torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    )


def scored(
    implementation: Any,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    scoring: Scoring,
    compound: Compound | None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the sums: one primitive for a plain ratio, else two."""
    if compound is None:
        found: tuple[Tensor, Tensor] = implementation.confusion_score(
            input, target, weight, *elements, *scoring
        )
        return found
    sums = implementation.confusion(input, target, weight, *elements)
    wide = reference.accumulator(input) == torch.float64
    found = implementation.sums_score(
        sums, compound.class_weight, elements.extra, elements.per_sample, wide, *scoring,
        *compound.pointwise,
    )  # fmt: skip
    return found


def score(
    sums: Tensor, scoring: Scoring, elements: Elements, compound: Compound | None = None
) -> Tensor:
    """The same from sums, composed of torch operations; in float64."""
    if compound is None:
        return _fallback.score(sums, *scoring, elements.per_sample, elements.per_class)
    return _fallback.sums_loss(
        sums, compound.class_weight, elements.extra, elements.per_sample, True, *scoring,
        *compound.pointwise,
    )  # fmt: skip


def sums(input: Tensor, target: Tensor, weight: Tensor | None, elements: Elements) -> Tensor:
    """The sums ``[4, samples, classes]``, differentiable in every way."""
    if transformed():
        return _fallback.confusion(input, target, weight, *elements)
    if wants_grad(input, target, weight):
        found: Tensor = SumsFunction.apply(input, target, weight, elements)
        return found
    found = _backend.implementation(input).confusion(input, target, weight, *elements)
    return found
