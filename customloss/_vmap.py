"""Batching rules: a vmapped dim tells groups apart, so one pass serves the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from customloss import _autograd, _checks, _fallback, _options, reference
from customloss._options import Compound, Elements
from customloss._words import TARGET


def _batch_first(operands: Any, in_dims: Any, size: int) -> list[Tensor | None]:
    """All operands with the vmapped dim in front and the input's rank behind it."""
    rank = operands[0].dim() - (in_dims[0] is not None)
    found: list[Tensor | None] = []
    for operand, dim in zip(operands, in_dims):
        if operand is None:
            found.append(None)
            continue
        own = operand.movedim(dim, 0) if dim is not None else operand[None]
        if len(found) == TARGET and own.dim() == rank:
            own = own.unsqueeze(2)  # class numbers
        own = own.reshape(own.shape[0], *(1,) * (rank + 1 - own.dim()), *own.shape[1:])
        found.append(own.expand(size, *own.shape[1:]))
    return found


def _vmapped_sums(info: Any, in_dims: Any, operands: Any, elements: Elements) -> Tensor:
    """``[rows, batch, samples, classes]`` in one pass: the vmapped dim tells groups apart as
    samples do. Where samples are told apart too, both are flattened, else they are summed."""
    size = info.batch_size
    batched = _batch_first(operands, in_dims, size)
    if elements.per_sample:
        samples = batched[0].shape[1]  # type: ignore[union-attr]
        folded = [
            x if x is None else x.expand(size, samples, *x.shape[2:]).flatten(0, 1) for x in batched
        ]
    else:
        samples = 1
        folded = [x.transpose(1, 2) if x is not None and x.dim() > 2 else x for x in batched]
    input, target, weight = folded
    assert input is not None and target is not None
    elements = elements._replace(per_sample=True)
    target = _checks.tensors(input, target, weight, elements)
    sums = _autograd.sums(input, target, weight, elements)
    return sums.reshape(-1, size, samples, sums.shape[-1])


def ratio_loss(name: str) -> Callable[..., tuple[Tensor, int]]:
    """See ``_ops.ratio_loss``; the batch dim of the result is its first."""

    def rule(
        info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, int]:  # fmt: skip
        rank = input.dim() - (in_dims[0] is not None)
        elements, scoring = _options.cached_for_ratio(name, rank, **options)
        sums = _vmapped_sums(info, (*in_dims, None), (input, target, weight), elements)
        return _autograd.score(sums, scoring, elements).to(reference.accumulator(input)), 0

    return rule


def confusion_sums(
    info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    """See ``_ops.confusion_sums``; the batch dim of the result is its second."""
    elements = _options.cached_for_sums(input.dim() - (in_dims[0] is not None), **options)
    return _vmapped_sums(info, (*in_dims, None), (input, target, weight), elements), 1


def compound(
    info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None,
    class_weight: Tensor | None, *numbers: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    """See ``_ops.compound``; the batch dim of the result is its first."""
    elements, scoring, pointwise = _options.compound_from(numbers)
    sums = _vmapped_sums(info, in_dims[:3], (input, target, weight), elements)
    if class_weight is not None and in_dims[3] is not None:
        class_weight = class_weight.movedim(in_dims[3], 1).unsqueeze(2)
    loss = _autograd.score(sums, scoring, elements, Compound(class_weight, pointwise))
    return loss.to(reference.accumulator(input)), 0


def sums_loss(
    info: Any, in_dims: Any, sums: Tensor, class_weight: Tensor | None, *how: Any
) -> tuple[Tensor, int]:
    """See ``_ops.sums_loss``; the batch dim of the result is its first."""
    sums_dim, weight_dim = in_dims[:2]
    if sums_dim is None:
        sums = sums[:, None].expand(-1, info.batch_size, -1, -1)
    else:
        sums = sums.movedim(sums_dim, 1)
    if class_weight is not None and weight_dim is not None:
        class_weight = class_weight.movedim(weight_dim, 1).unsqueeze(2)
    return _fallback.sums_loss(sums, class_weight, *how), 0
