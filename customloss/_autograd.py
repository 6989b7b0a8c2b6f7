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
from customloss._options import Elements, Scoring
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
    """Saves the caller's tensors and four numbers per group."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        elements: Elements,
        scoring: Scoring,
    ) -> Tensor:
        implementation = _backend.implementation(input)
        loss, coefficients = implementation.confusion_score(
            input, target, weight, *elements, *scoring
        )
        ctx.save_for_backward(input, target, weight, coefficients)
        ctx.elements, ctx.scoring, ctx.implementation = elements, scoring, implementation
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, grad), None, None
        # read once: activation checkpoints allow no more
        *operands, coefficients = ctx.saved_tensors
        return *_gradients(ctx, grad, coefficients, operands), None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """For create_graph: the coefficients must depend on the operands, so compose them anew."""
    needed = ctx.needs_input_grad[:3]
    # views, so that a gradient by one operand does not run on into the others' own history
    operands = [
        tensor.view_as(tensor) if need else tensor
        for tensor, need in zip(ctx.saved_tensors[:3], needed)
    ]
    sums = SumsFunction.apply(*operands, ctx.elements)
    loss = score(sums, ctx.scoring, ctx.elements).to(grad.dtype)
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


def score(sums: Tensor, scoring: Scoring, elements: Elements) -> Tensor:
    """A built-in score composed of torch operations, from sums to the reduced loss."""
    return _fallback.score(sums, *scoring, elements.per_sample, elements.per_class)


def sums(input: Tensor, target: Tensor, weight: Tensor | None, elements: Elements) -> Tensor:
    """The sums ``[4, samples, classes]``, differentiable in every way."""
    if transformed():
        return _fallback.confusion(input, target, weight, *elements)
    if wants_grad(input, target, weight):
        found: Tensor = SumsFunction.apply(input, target, weight, elements)
        return found
    found = _backend.implementation(input).confusion(input, target, weight, *elements)
    return found
