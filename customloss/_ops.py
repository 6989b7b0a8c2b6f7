"""The operator contract: every schema, and what autograd, transforms and fake tensors make of it.

The public, differentiable operators are the sums, and the losses that are ratios of them::

    torch.ops.customloss.confusion_sums(input, target, weight=None, *, ...) -> sums
    torch.ops.customloss.soft_f1(input, target, weight=None, *, beta=1.0, ...) -> loss
    torch.ops.customloss.tversky(input, target, weight=None, *, fp_weight=0.5, fn_weight=0.5, ...)

Their general form, with weights of the classes and a pointwise loss beside the ratio, is
``compound``; it takes checked numbers for words, and so does ``sums_loss``, the same of sums that
were made before.

They stand on primitives, which backends implement and which know nothing of autograd:
``confusion`` (the sums), ``confusion_score`` (the sums, a built-in score and its gradient by the
sums in one call), ``sums_score`` (that of sums which were made before, of classes that do not all
count alike, and with a pointwise loss beside the score) and ``confusion_backward`` (the gradient,
one pass).

Autograd is a ``torch.autograd.Function`` at the ``Autograd`` key of the public operators.
``register_autograd`` would give zero tangents in forward mode and break ``torch.func.grad``.
Under ``torch.func`` transforms and forward-mode AD the reference is differentiated instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from customloss import (
    _autograd,
    _backend,
    _checks,
    _fallback,
    _load,
    _options,
    _sharding,
    _vmap,
    reference,
)
from customloss._options import Compound, Elements, Pointwise, Scoring
from customloss._words import AVERAGES, INPUT, REDUCTIONS, WEIGHT

_LIBRARY = torch.library.Library("customloss", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)

_OPERANDS = "Tensor input, Tensor target, Tensor? weight"
_PUBLIC = "Tensor input, Tensor target, Tensor? weight=None, *"
_ELEMENTS = (
    "int activation, float scale, float offset, bool per_sample, bool per_class, "
    "int? ignore_index, float label_smoothing, int extra, float focal_gamma"
)
_SCORING = (
    "float tp_weight, float fp_weight, float fn_weight, float smooth, float gamma, "
    "int link, int absent, int average, int reduction"
)

_SUMS = "Tensor sums, Tensor? class_weight, int extra, bool per_sample, bool wide"
_POINTWISE = ", ".join(f"float {_name}" for _name in Pointwise._fields)
PRIMITIVES = _backend.Implementation._fields

for _schema in (
    f"confusion({_OPERANDS}, {_ELEMENTS}) -> Tensor",
    f"confusion_score({_OPERANDS}, {_ELEMENTS}, {_SCORING}) -> (Tensor, Tensor)",
    f"confusion_backward(Tensor? grad, Tensor coefficients, {_OPERANDS}, int wrt, {_ELEMENTS})"
    " -> Tensor",
    f"sums_score({_SUMS}, {_SCORING}, {_POINTWISE}) -> (Tensor, Tensor)",
    f"compound({_OPERANDS}, Tensor? class_weight, {_ELEMENTS}, {_SCORING}, {_POINTWISE}) -> Tensor",
    f"sums_loss({_SUMS}, {_SCORING}, {_POINTWISE}) -> Tensor",
    f"confusion_sums({_PUBLIC}, {_options.schema(_options.SUMS)}) -> Tensor",
    *(
        f"{_name}({_PUBLIC}, {_options.schema({**_ratio.defaults, **_options.LOSS})}) -> Tensor"
        for _name, _ratio in _options.RATIOS.items()
    ),
):
    _LIBRARY.define(_schema, tags=_TAGS)
_LIBRARY.define("cpu_isa() -> str")


def ratio_loss(name: str) -> Callable[..., Tensor]:
    """``torch.ops.customloss.<name>``, of a row of ``_options.RATIOS``."""

    def loss(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        if _sharding.sharded(input, target, weight):
            return _sharding.ratio_loss(name, input, target, weight, options)
        elements, scoring = _options.cached_for_ratio(name, input.dim(), **options)
        return _loss(input, target, weight, elements, scoring, None)

    return loss


def compound(
    input: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, *numbers: Any
) -> Tensor:
    """``torch.ops.customloss.compound``: the loss of a ratio of the sums whose classes count
    ``class_weight``, and a pointwise loss; the numbers are those of the three tuples, in order."""
    elements, scoring, pointwise = _options.compound_from(numbers)
    return _loss(input, target, weight, elements, scoring, Compound(class_weight, pointwise))


def _learned(class_weight: Tensor | None) -> bool:
    """Whether somebody differentiates by the weights of the classes, which no kernel does."""
    return class_weight is not None and class_weight.requires_grad and torch.is_grad_enabled()


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    scoring: Scoring,
    compound: Compound | None,
) -> Tensor:
    target = _checks.tensors(input, target, weight, elements)
    if _autograd.transformed() or (compound is not None and _learned(compound.class_weight)):
        sums = _autograd.sums(input, target, weight, elements)
        loss = _autograd.score(sums, scoring, elements, compound)
        return loss.to(reference.accumulator(input))
    if _autograd.wants_grad(input, target, weight):
        found: Tensor = _autograd.LossFunction.apply(
            input, target, weight, elements, scoring, compound
        )
        return found
    implementation = _backend.implementation(input)
    return _autograd.scored(implementation, input, target, weight, elements, scoring, compound)[0]


def confusion_sums(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> Tensor:
    """``torch.ops.customloss.confusion_sums``: float64 ``[rows, samples, classes]``."""
    if _sharding.sharded(input, target, weight):
        return _sharding.confusion_sums(input, target, weight, options)
    elements = _options.cached_for_sums(input.dim(), **options)
    # a shard of a batch may hold no sample
    target = _checks.tensors(input, target, weight, elements, no_sample=True)
    return _autograd.sums(input, target, weight, elements)


def sums_loss(sums: Tensor, class_weight: Tensor | None, *how: Any) -> Tensor:
    """The loss of sums, in one call; ``how`` is what ``sums_score`` takes."""
    if _autograd.transformed() or _learned(class_weight):
        return _fallback.sums_loss(sums, class_weight, *how)
    sums = sums.contiguous()
    if torch.is_grad_enabled() and sums.requires_grad:
        found: Tensor = _autograd.SumsLossFunction.apply(sums, class_weight, how)
        return found
    found, _ = _backend.implementation(sums).sums_score(sums, class_weight, *how)
    return found


# ---- fake tensors and registration -----------------------------------------------------------


def _fake_confusion(input: Tensor, target: Tensor, weight: Tensor | None, *elements: Any) -> Tensor:
    how = Elements(*elements)
    shape = reference.group_shape(input, how.per_sample, how.per_class)
    rows = len(reference.rows(how.extra))
    return input.new_empty((rows, *shape), dtype=_fallback.sums_dtype(input.device))


def _fake_score(
    input: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    elements = options[: len(Elements._fields)]
    per_sample, per_class = elements[3:5]
    average, reduction = options[-2:]
    samples, classes = reference.group_shape(input, per_sample, per_class)
    kept = []
    if reduction == REDUCTIONS.index("none"):
        kept += [samples] if per_sample else []
        kept += [classes] if per_class and average == AVERAGES.index("none") else []
    loss = input.new_empty(kept, dtype=reference.accumulator(input))
    return loss, _fake_confusion(input, target, weight, *elements)


def _fake_sums_score(
    sums: Tensor, class_weight: Tensor | None, extra: int, per_sample: bool, wide: bool, *how: Any
) -> tuple[Tensor, Tensor]:
    average, reduction = how[len(Scoring._fields) - 2 : len(Scoring._fields)]
    kept = []
    if reduction == REDUCTIONS.index("none"):
        kept += [sums.shape[1]] if per_sample else []
        kept += [sums.shape[2]] if average == AVERAGES.index("none") else []
    loss = sums.new_empty(kept, dtype=torch.float64 if wide else torch.float32)
    return loss, sums.new_empty(sums.shape)


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


def _register_triton() -> None:
    """GPUs that have no compiled library of ours get the Triton twins."""
    if _load.loaded("_C_cuda") or not (
        torch.version.cuda or torch.version.hip or torch.version.xpu
    ):
        return
    try:
        from customloss.kernels import confusion as triton_confusion
    except ImportError:
        return
    triton_confusion.register(_LIBRARY)


def _register() -> None:
    _load.load()
    _register_triton()
    for name in PRIMITIVES:
        _LIBRARY.impl(name, getattr(_fallback, name), "CompositeExplicitAutograd")
    differentiable: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
        *((name, ratio_loss(name), _vmap.ratio_loss(name)) for name in _options.RATIOS),
        ("compound", compound, _vmap.compound),
        ("confusion_sums", confusion_sums, _vmap.confusion_sums),
        ("sums_loss", sums_loss, _vmap.sums_loss),
    ]
    for name, function, vmap in differentiable:
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, function, "Autograd")
        torch.library.register_vmap(f"customloss::{name}", vmap, lib=_LIBRARY)
    for name, fake in (
        ("confusion", _fake_confusion),
        ("confusion_score", _fake_score),
        ("confusion_backward", _fake_backward),
        ("sums_score", _fake_sums_score),
    ):
        torch.library.register_fake(f"customloss::{name}", fake, lib=_LIBRARY)
    _backend.ready()
    _backend.choose_from_environment()
    _sharding.register()


_register()
