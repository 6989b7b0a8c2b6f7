"""The operator contract: every schema, and what autograd, transforms and fake tensors make of it.

Two operators are public and differentiable::

    torch.ops.customloss.soft_f1(input, target, weight=None, *, ...)       -> loss
    torch.ops.customloss.confusion_sums(input, target, weight=None, *, ...) -> sums

They stand on three primitives, which backends implement and which know nothing of autograd:
``confusion`` (the sums), ``confusion_score`` (the sums, a built-in score and its gradient by the
sums in one call) and ``confusion_backward`` (the gradient, one pass).

Autograd is a ``torch.autograd.Function`` at the ``Autograd`` key of the public operators.
``register_autograd`` would give zero tangents in forward mode and break ``torch.func.grad``.
Under ``torch.func`` transforms and forward-mode AD the reference is differentiated instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from customloss import _backend, _checks, _fallback, _load, reference
from customloss._words import (
    ABSENT,
    ACTIVATIONS,
    AVERAGES,
    INPUT,
    LINKS,
    REDUCTIONS,
    TARGET,
    WEIGHT,
    WRT,
)

_LIBRARY = torch.library.Library("customloss", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)

_OPERANDS = "Tensor input, Tensor target, Tensor? weight"
_ELEMENTS = "int activation, float scale, float offset, bool per_sample, bool per_class"
_SCORING = (
    "float tp_weight, float fp_weight, float fn_weight, float smooth, float gamma, "
    "int link, int absent, int average, int reduction"
)

for _schema in (
    f"confusion({_OPERANDS}, {_ELEMENTS}) -> Tensor",
    f"confusion_score({_OPERANDS}, {_ELEMENTS}, {_SCORING}) -> (Tensor, Tensor)",
    f"confusion_backward(Tensor? grad, Tensor coefficients, {_OPERANDS}, int wrt, {_ELEMENTS})"
    " -> Tensor",
    "confusion_sums(Tensor input, Tensor target, Tensor? weight=None, *, "
    'str activation="sigmoid", str average="macro", bool samplewise=False, '
    "float logit_scale=1.0, float logit_offset=0.0) -> Tensor",
    "soft_f1(Tensor input, Tensor target, Tensor? weight=None, *, float beta=1.0, "
    'str activation="sigmoid", str average="macro", bool samplewise=False, '
    'str reduction="mean", float smooth=0.0, str absent="score", str link="complement", '
    "float gamma=1.0, float logit_scale=1.0, float logit_offset=0.0) -> Tensor",
):
    _LIBRARY.define(_schema, tags=_TAGS)
_LIBRARY.define("cpu_isa() -> str")


class Elements(NamedTuple):
    """How an element becomes a probability, and how elements are grouped."""

    activation: int
    scale: float
    offset: float
    per_sample: bool
    per_class: bool

    def named(self) -> tuple[str, float, float, bool, bool]:
        """As the reference takes them."""
        return (ACTIVATIONS[self.activation], *self[1:])


class Scoring(NamedTuple):
    """How the sums of the groups become a loss."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float
    gamma: float
    link: int
    absent: int
    average: int
    reduction: int


@lru_cache(maxsize=1024)
def _elements(
    activation: str, average: str, samplewise: bool, scale: float, offset: float, rank: int
) -> Elements:
    _checks.one_of("activation", activation, ACTIVATIONS)
    _checks.one_of("average", average, (*AVERAGES, "micro"))
    _checks.number("logit_scale", scale)
    _checks.number("logit_offset", offset)
    if activation == "none" and (scale, offset) != (1.0, 0.0):
        raise ValueError(
            "logit_scale, logit_offset: expected 1 and 0 with activation='none' (there is no "
            f"logit to scale), got {scale} and {offset}"
        )
    return Elements(
        ACTIVATIONS.index(activation), scale, offset, samplewise, average != "micro" and rank > 1
    )


@lru_cache(maxsize=1024)
def _f_beta(
    beta: float, smooth: float, absent: str, link: str, gamma: float, average: str, reduction: str
) -> Scoring:
    _checks.number("beta", beta, at_least=0)
    _checks.number("smooth", smooth, at_least=0)
    _checks.number("gamma", gamma, above=0)
    _checks.one_of("absent", absent, ABSENT)
    _checks.one_of("link", link, LINKS)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    if link != "focal" and gamma != 1.0:
        raise ValueError(f"gamma: expected 1 unless link='focal', got {gamma} with link={link!r}")
    squared = beta * beta
    return Scoring(
        1.0 + squared, 1.0, squared, smooth, gamma, LINKS.index(link), ABSENT.index(absent),
        AVERAGES.index("macro" if average == "micro" else average), REDUCTIONS.index(reduction),
    )  # fmt: skip


# ---- gradients -------------------------------------------------------------------------------


def _gradients(
    ctx: Any, implementation: Any, grad: Tensor | None, coefficients: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that autograd asked for, one pass each."""
    input, target, weight = ctx.saved_tensors[:3]
    backward = _ConfusionBackward.apply if torch.is_grad_enabled() else _confusion_backward
    found: list[Tensor | None] = [None, None, None]
    for wrt in (INPUT, TARGET, WEIGHT):
        if ctx.needs_input_grad[wrt]:
            found[wrt] = backward(
                grad, coefficients, input, target, weight, wrt, ctx.elements, implementation
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
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:5]
        with torch.enable_grad():
            operands = [
                tensor.detach().requires_grad_() if need else tensor
                for tensor, need in zip(saved, needed)
            ]
            result = reference.confusion_backward(
                *operands, WRT[ctx.wrt], *ctx.elements.named()
            )
            if ctx.wrt == WEIGHT:
                result = result.sum_to_size(operands[3].shape)
            found = iter(
                torch.autograd.grad(
                    result,
                    [tensor for tensor, need in zip(operands, needed) if need],
                    grad,
                    allow_unused=True,
                )
            )
        return None, *(next(found) if need else None for need in needed), None, None, None


class _Sums(torch.autograd.Function):
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
        return *_gradients(ctx, ctx.implementation, None, grad.contiguous()), None


class _Loss(torch.autograd.Function):
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
        return *_gradients(ctx, ctx.implementation, grad, ctx.saved_tensors[3]), None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """For create_graph: the coefficients must depend on the operands, so compose them anew."""
    operands = ctx.saved_tensors[:3]
    needed = ctx.needs_input_grad[:3]
    sums = _Sums.apply(*operands, ctx.elements)
    loss = score(sums, ctx.scoring, ctx.elements).to(grad.dtype)
    wanted = [tensor for tensor, need in zip(operands, needed) if need]
    found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def score(sums: Tensor, scoring: Scoring, elements: Elements) -> Tensor:
    """A built-in score composed of torch operations, from sums to the reduced loss."""
    return _fallback.score(sums, *scoring, elements.per_sample, elements.per_class)


# ---- the public operators --------------------------------------------------------------------


def _transformed() -> bool:
    """Inside torch.func transforms or forward-mode AD."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _wants_grad(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad
        or target.requires_grad
        or (weight is not None and weight.requires_grad)
    )


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
    """``torch.ops.customloss.soft_f1``; see ``customloss.soft_f1_loss`` for the arguments."""
    elements = _elements(
        activation, average, samplewise, logit_scale, logit_offset, input.dim()
    )
    scoring = _f_beta(beta, smooth, absent, link, gamma, average, reduction)
    _checks.tensors(input, target, weight, samplewise, elements.per_class)
    if _transformed():
        sums = reference.confusion(input, target, weight, *elements.named())
        return score(sums, scoring, elements)
    if _wants_grad(input, target, weight):
        loss: Tensor = _Loss.apply(input, target, weight, elements, scoring)
        return loss
    primitive = _backend.implementation(input).confusion_score
    loss, _ = primitive(input, target, weight, *elements, *scoring)
    return loss


def confusion_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    activation: str = "sigmoid",
    average: str = "macro",
    samplewise: bool = False,
    logit_scale: float = 1.0,
    logit_offset: float = 0.0,
) -> Tensor:
    """``torch.ops.customloss.confusion_sums``: float64 ``[4, samples, classes]``."""
    elements = _elements(
        activation, average, samplewise, logit_scale, logit_offset, input.dim()
    )
    _checks.tensors(input, target, weight, samplewise, elements.per_class)
    if _transformed():
        return _fallback.confusion(input, target, weight, *elements)
    if _wants_grad(input, target, weight):
        sums: Tensor = _Sums.apply(input, target, weight, elements)
        return sums
    sums = _backend.implementation(input).confusion(input, target, weight, *elements)
    return sums


# ---- fake tensors and registration -----------------------------------------------------------


def _fake_confusion(input: Tensor, target: Tensor, weight: Tensor | None, *elements: Any) -> Tensor:
    per_sample, per_class = elements[3:5]
    shape = reference.group_shape(input, per_sample, per_class)
    return input.new_empty((4, *shape), dtype=_fallback.sums_dtype(input.device))


def _fake_score(
    input: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    per_sample, per_class = options[3:5]
    average, reduction = options[12:14]
    samples, classes = reference.group_shape(input, per_sample, per_class)
    kept = []
    if reduction == REDUCTIONS.index("none"):
        kept += [samples] if per_sample else []
        kept += [classes] if per_class and average == AVERAGES.index("none") else []
    loss = input.new_empty(kept, dtype=reference.accumulator(input))
    return loss, _fake_confusion(input, target, weight, *options[:5])


def _fake_backward(
    grad: Tensor | None,
    coefficients: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    wrt: int,
    *elements: Any,
) -> Tensor:
    if wrt == WEIGHT:
        return input.new_empty(input.shape, dtype=reference.accumulator(input))
    return torch.empty_like(input if wrt == INPUT else target)


def _register() -> None:
    _load.load()
    for name in ("confusion", "confusion_score", "confusion_backward"):
        _LIBRARY.impl(name, getattr(_fallback, name), "CompositeExplicitAutograd")
    for name, function in (("soft_f1", soft_f1), ("confusion_sums", confusion_sums)):
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, function, "Autograd")
    for name, fake in (
        ("confusion", _fake_confusion),
        ("confusion_score", _fake_score),
        ("confusion_backward", _fake_backward),
    ):
        torch.library.register_fake(f"customloss::{name}", fake, lib=_LIBRARY)
    _backend.ready()
    _backend.choose_from_environment()


_register()
