"""Batching rules: a vmapped dim tells groups apart, so one pass serves the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from customloss._backends import plain
from customloss._ops import autograd
from customloss._ops.autograd import Compound
from customloss._spec import operands, options
from customloss._spec.arguments import (
    ClassWeights,
    Data,
    Elements,
    GroupSums,
    Pointwise,
    Scoring,
)
from customloss._spec.words import TARGET, WEIGHT
from customloss.reference.sums import accumulator


def _batch_first(data: Data, in_dims: Any, size: int) -> Data:
    """All operands with the vmapped dim in front and the input's rank behind it."""
    shape, of_target = (_without(dim, each) for dim, each in zip(in_dims[:2], data[:2]))
    rank = len(shape)
    # one number for all classes of a pixel
    labels = rank > 1 and (len(of_target) < rank or of_target[1] == 1)

    def batched(operand: Tensor, dim: int | None, place: int) -> Tensor:
        of_pixels = place == WEIGHT and labels and operands.of_pixels(_without(dim, operand), shape)
        operand = operand.movedim(dim, 0) if dim is not None else operand[None]
        if of_pixels or (place == TARGET and operand.dim() == rank):
            operand = operand.unsqueeze(2)  # class numbers, or a weight in their shape
        missing = (1,) * (rank + 1 - operand.dim())
        operand = operand.reshape(operand.shape[0], *missing, *operand.shape[1:])
        return operand.expand(size, *operand.shape[1:])

    input, target, weight = (
        None if operand is None else batched(operand, dim, place)
        for place, (operand, dim) in enumerate(zip(data, in_dims))
    )
    assert input is not None and target is not None
    return Data(input, target, weight)


def _without(dim: int | None, operand: Tensor) -> tuple[int, ...]:
    """The shape of an operand for one element of the batch that is vmapped over."""
    return tuple(size for at, size in enumerate(operand.shape) if at != dim)


def _vmapped_sums(
    info: Any, in_dims: Any, data: Data, elements: Elements
) -> tuple[Tensor, Tensor | None]:
    """``[rows, batch, samples, classes]`` in one pass: the vmapped dim tells groups apart as
    samples do. Where samples are told apart too, the two dims are flattened into one; else the
    samples are summed over. The second are the sums for a pointwise loss, as of
    ``autograd.sums_for_loss``."""
    size, keep_samples = info.batch_size, elements.per_sample
    data = _batch_first(data, in_dims, size)
    samples = data.input.shape[1] if keep_samples else 1

    def folded(operand: Tensor) -> Tensor:
        if keep_samples:
            return operand.expand(size, samples, *operand.shape[2:]).flatten(0, 1)
        return operand.transpose(1, 2) if operand.dim() > 2 else operand

    weight = None if data.weight is None else folded(data.weight)
    input, target = folded(data.input), folded(data.target)
    elements = elements._replace(per_sample=True)
    checked = operands.checked(input, target, weight, elements)
    sums, settled = autograd.sums_for_loss(checked, elements)
    shape = (-1, size, samples, sums.shape[-1])
    return sums.reshape(shape), None if settled is None else settled.reshape(shape)


def ratio_rule(operator: str) -> Callable[..., tuple[Tensor, int]]:
    """The rule of ``register.ratio_operator``; the batch dim of the result is its first."""

    def rule(
        info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
        **given: Any,
    ) -> tuple[Tensor, int]:  # fmt: skip
        rank = input.dim() - (in_dims[0] is not None)
        elements, scoring = options.cached_for_operator(operator, rank, **options.hashable(given))
        sums, _ = _vmapped_sums(info, (*in_dims, None), Data(input, target, weight), elements)
        return autograd.score(sums, scoring, elements).to(accumulator(input)), 0

    return rule


def confusion_sums(
    info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    """The rule of ``register.confusion_sums``; the batch dim of the result is its second."""
    elements = options.cached_for_sums(
        input.dim() - (in_dims[0] is not None), **options.hashable(given)
    )
    return _vmapped_sums(info, (*in_dims, None), Data(input, target, weight), elements)[0], 1


def compound(
    info: Any,
    in_dims: Any,
    data: Data,
    class_weights: ClassWeights,
    elements: Elements,
    scoring: Scoring,
    pointwise: Pointwise,
) -> tuple[Tensor, int]:
    """The rule of ``register.compound``; the batch dim of the result is its first."""
    sums, settled = _vmapped_sums(info, in_dims[: len(data)], data, elements)
    table = _beside_samples(class_weights.class_weight, in_dims[len(data)])
    loss = autograd.score(sums, scoring, elements, Compound(table, pointwise), settled)
    return loss.to(accumulator(data.input)), 0


def sums_loss(
    info: Any, in_dims: Any, group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
) -> tuple[Tensor, int]:
    """The rule of ``register.sums_loss``; the batch dim of the result is its first."""
    sums_dim, table_dim = in_dims[:2]
    sums = group_sums.sums
    if sums_dim is None:
        sums = sums[:, None].expand(-1, info.batch_size, -1, -1)
    else:
        sums = sums.movedim(sums_dim, 1)
    table = _beside_samples(group_sums.class_weight, table_dim)
    group_sums = group_sums._replace(sums=sums, class_weight=table)
    return plain.loss_of_sums(group_sums, scoring, pointwise), 0


def _beside_samples(table: Tensor | None, dim: int | None) -> Tensor | None:
    """Weights of classes, if they are vmapped over, as ``[2, batch, 1, classes]``."""
    if table is None or dim is None:
        return table
    return table.movedim(dim, 1).unsqueeze(2)
