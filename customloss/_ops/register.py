"""The operator contract: every schema, and what autograd, transforms and fake tensors make of it.

The public, differentiable operators are the sums, and the losses that are ratios of them::

    torch.ops.customloss.confusion_sums(input, target, weight=None, *, ...) -> sums
    torch.ops.customloss.soft_f1(input, target, weight=None, *, beta=1.0, ...) -> loss
    torch.ops.customloss.tversky(input, target, weight=None, *, fp_weight=0.5, fn_weight=0.5, ...)

Their general form is ``compound``: it has weights of the classes, and a pointwise loss beside the
ratio. ``sums_loss`` makes the same loss of sums that exist already. Both take checked numbers where
the public operators take words.

They stand on primitives, which backends implement and which know nothing of autograd:
``confusion`` (the sums), ``confusion_score`` (the sums, a ratio of them and its gradient by the
sums in one call), ``sums_score`` (the loss of sums that exist already, with weights of classes and
a pointwise loss, and its gradient by the sums) and ``confusion_backward`` (the gradient, one pass).
``_spec/arguments.py`` says what each takes.

Autograd is a ``torch.autograd.Function`` at the ``Autograd`` key of the public operators.
``register_autograd`` would give zero tangents in forward mode and break ``torch.func.grad``.
Under ``torch.func`` transforms and forward-mode AD the reference is differentiated instead.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from customloss._backends import architectures, choice, libraries, plain
from customloss._ops import autograd, calls, is_dtensor, vmap
from customloss._ops.autograd import Compound
from customloss._ops.modes import transformed, wants_grad
from customloss._spec import operands, options
from customloss._spec.arguments import (
    DIFFERENTIABLE,
    PRIMITIVES,
    ClassWeights,
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
    grouped,
    on_one_device,
    schema,
)
from customloss._spec.words import AVERAGES, INPUT, REDUCTIONS, WEIGHT
from customloss.reference.sums import accumulator, group_shape, rows, sums_dtype

_LIBRARY = torch.library.Library("customloss", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_PUBLIC = "Tensor input, Tensor target, Tensor? weight=None, *"


def _define() -> None:
    """Declares every operator: those that take groups, and the public ones, which take words."""
    schemas = [
        *(schema(name, contract) for name, contract in {**PRIMITIVES, **DIFFERENTIABLE}.items()),
        f"confusion_sums({_PUBLIC}, {options.keyword_schema(options.SUMS)}) -> Tensor",
    ]
    for name, parameters in options.PARAMETERS.items():
        keywords = options.keyword_schema({**parameters, **options.LOSS})
        schemas.append(f"{name}({_PUBLIC}, {keywords}) -> Tensor")
    for each in schemas:
        _LIBRARY.define(each, tags=_TAGS)
    _LIBRARY.define("cpu_isa() -> str")
    _LIBRARY.define("cpu_huge_pages() -> bool")
    _LIBRARY.define("cpu_gradient_cache() -> (int, int)")
    _LIBRARY.define("cpu_empty_gradient_cache() -> int")


# ---- the differentiable operators ----------------------------------------------------------------


def ratio_operator(operator: str) -> Callable[..., Tensor]:
    """``torch.ops.customloss.<operator>``, one of ``options.OPERATORS``."""

    def loss(input: Tensor, target: Tensor, weight: Tensor | None = None, **given: Any) -> Tensor:
        if is_dtensor.sharded(input, target, weight):
            from customloss._ops import dtensor

            return dtensor.ratio_operator(operator, input, target, weight, given)
        elements, scoring = options.cached_for_operator(
            operator, input.dim(), **options.hashable(given)
        )
        return _loss(input, target, weight, elements, scoring, None)

    return loss


def compound(
    data: Data,
    class_weights: ClassWeights,
    elements: Elements,
    scoring: Scoring,
    pointwise: Pointwise,
) -> Tensor:
    """``torch.ops.customloss.compound``: the loss of a ratio, with its classes weighted by
    ``class_weight``, and a pointwise loss."""
    return _loss(*data, elements, scoring, Compound(class_weights.class_weight, pointwise))


def _learned(class_weight: Tensor | None) -> bool:
    """Whether the weights of the classes need a gradient, which no kernel computes."""
    return class_weight is not None and class_weight.requires_grad and torch.is_grad_enabled()


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    scoring: Scoring,
    compound: Compound | None,
) -> Tensor:
    data = operands.checked(input, target, weight, elements)
    if transformed() or (compound is not None and _learned(compound.class_weight)):
        sums, settled = autograd.sums_for_loss(data, elements)
        return autograd.score(sums, scoring, elements, compound, settled).to(accumulator(input))
    if wants_grad(*data):
        result: Tensor = autograd.LossFunction.apply(*data, elements, scoring, compound)
        return result
    primitives = choice.primitives(input)
    return autograd.scored(primitives, *data, elements, scoring, compound)[0]


def confusion_sums(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **given: Any
) -> Tensor:
    """``torch.ops.customloss.confusion_sums``: float64 ``[rows, samples, classes]``."""
    if is_dtensor.sharded(input, target, weight):
        from customloss._ops import dtensor

        return dtensor.confusion_sums(input, target, weight, given)
    elements = options.cached_for_sums(input.dim(), **options.hashable(given))
    # a shard of a batch may hold no sample
    data = operands.checked(input, target, weight, elements, no_sample=True)
    return autograd.sums(data, elements)


def sums_loss(group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise) -> Tensor:
    """``torch.ops.customloss.sums_loss``: the loss of sums, in one call."""
    if transformed() or _learned(group_sums.class_weight):
        return plain.loss_of_sums(group_sums, scoring, pointwise)
    group_sums = group_sums._replace(sums=group_sums.sums.contiguous())
    if torch.is_grad_enabled() and group_sums.sums.requires_grad:
        result: Tensor = autograd.SumsLossFunction.apply(*group_sums, scoring, pointwise)
        return result
    primitives = choice.primitives(group_sums.sums)
    return primitives.sums_score(*group_sums, *scoring, *pointwise)[0]


# ---- fake tensors --------------------------------------------------------------------------------


def _fake_confusion(data: Data, elements: Elements) -> Tensor:
    input = data.input
    shape = group_shape(input, elements.per_sample, elements.per_class)
    kinds = len(rows(elements.extra))
    return input.new_empty((kinds, *shape), dtype=sums_dtype(input.device))


def _loss_shape(scoring: Scoring, samples: int | None, classes: int | None) -> list[int]:
    """The shape of a loss; ``samples`` or ``classes`` is None where they are not told apart."""
    if REDUCTIONS[scoring.reduction] != "none":
        return []
    classes = classes if AVERAGES[scoring.average] == "none" else None
    return [size for size in (samples, classes) if size is not None]


def _fake_confusion_score(
    data: Data, elements: Elements, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    samples, classes = group_shape(data.input, elements.per_sample, elements.per_class)
    shape = _loss_shape(
        scoring, samples if elements.per_sample else None, classes if elements.per_class else None
    )
    loss = data.input.new_empty(shape, dtype=accumulator(data.input))
    return loss, _fake_confusion(data, elements)


def _fake_sums_score(
    group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
) -> tuple[Tensor, Tensor]:
    _, samples, classes = group_sums.sums.shape
    shape = _loss_shape(scoring, samples if group_sums.per_sample else None, classes)
    dtype = torch.float64 if group_sums.wide else torch.float32
    loss = group_sums.sums.new_empty(shape, dtype=dtype)
    return loss, group_sums.sums.new_empty(group_sums.sums.shape)


def _fake_confusion_backward(
    incoming: Incoming, data: Data, wrt: Wrt, elements: Elements
) -> Tensor:
    if wrt.wrt == WEIGHT:
        return data.input.new_empty(data.input.shape, dtype=accumulator(data.input))
    return torch.empty_like(data.input if wrt.wrt == INPUT else data.target)


FAKES: dict[str, Callable[..., Any]] = {
    "confusion": _fake_confusion,
    "confusion_score": _fake_confusion_score,
    "confusion_backward": _fake_confusion_backward,
    "sums_score": _fake_sums_score,
}


# ---- registration --------------------------------------------------------------------------------


def _implement_primitives() -> None:
    """The plain backend serves every device; Triton's serves GPUs if ``_C_cuda`` does not."""
    for name, function in choice.primitives_of(plain)._asdict().items():
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    if libraries.loaded("_C_cuda"):
        # When the first tensor gets there: an import may not initialise CUDA.
        torch.cuda._lazy_call(_leave_cuda_without_code)
    elif torch.version.cuda or torch.version.hip or torch.version.xpu:
        triton = _triton()
        if triton is not None:
            _implement_on_gpus(triton)


def _triton() -> choice.Primitives | None:
    """Triton's primitives, or None where Triton is not installed."""
    try:
        return choice.BACKENDS["triton"].load()
    except RuntimeError:
        return None


def _implement_on_gpus(primitives: choice.Primitives) -> None:
    for key in ("CUDA", "XPU"):
        for name, function in primitives._asdict().items():
            _LIBRARY.impl(name, function, key)


def _leave_cuda_without_code() -> None:
    """Takes Triton's kernels, or else the reference, if ``_C_cuda`` has no code for a GPU."""
    reason = architectures.without_code(libraries.build_record().get("cuda_archs"))
    if reason is None:
        return
    libraries.status["_C_cuda"] = reason
    triton = _triton()
    warnings.warn(
        f"customloss computes CUDA losses with {'Triton' if triton else 'its slow reference'}, and "
        f"not with _C_cuda: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    _implement_on_gpus(triton or choice.primitives_of(plain))


def _implement_differentiable() -> None:
    rules: dict[str, Callable[..., Any]] = {"compound": vmap.compound, "sums_loss": vmap.sums_loss}
    calls.functions.update(compound=compound, sums_loss=sums_loss)
    for name, contract in DIFFERENTIABLE.items():
        flat = grouped(calls.functions[name], contract)
        _implement(name, flat, grouped(rules[name], contract, ahead=2))
    for name in options.OPERATORS:
        _implement(name, ratio_operator(name), vmap.ratio_rule(name))
    _implement("confusion_sums", confusion_sums, vmap.confusion_sums)


def _implement(name: str, function: Callable[..., Any], rule: Callable[..., Any]) -> None:
    """A differentiable operator: its function itself decides whether autograd records the call."""
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, function, "Autograd")
    torch.library.register_vmap(f"customloss::{name}", rule, lib=_LIBRARY)


def _load_dtensor_rules() -> None:
    from customloss._ops import dtensor as _dtensor  # noqa: F401


def _register() -> None:
    _define()
    libraries.load()
    _implement_primitives()
    _implement_differentiable()
    for name, fake in FAKES.items():
        flat = grouped(on_one_device(fake, PRIMITIVES[name]), PRIMITIVES[name])
        torch.library.register_fake(f"customloss::{name}", flat, lib=_LIBRARY)
    choice.ready()
    is_dtensor.load_rules = _load_dtensor_rules
    if "torch.distributed.tensor" in sys.modules:
        _load_dtensor_rules()


_register()
