"""DTensors: every rank adds up its shard, the mesh adds these sums, and every rank scores them.

A shard is read where it lies. Along a mesh dimension that cuts the batch, a spatial dimension or
the classes, one all-reduce of ``rows x groups`` numbers makes the sums those of the whole; along
one that replicates there is nothing to do. The gradient of a shard is the gradient pass over that
shard, so it is placed as the operand is. See docs/distributed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from customloss._backends import plain
from customloss._ops import autograd, totals
from customloss._spec import operands, options
from customloss._spec.arguments import Data, Elements
from customloss._spec.words import SOFTMAX
from customloss.reference import losses
from customloss.reference.sums import accumulator, group_shape, is_class_index

Placements = tuple[Placement, ...]

# what ``_dense`` writes where a class number does not count, and then passes as ``ignore_index``
_NOTHING = 2


class _Sums(NamedTuple):
    """The sums ``[rows, samples, classes]`` of the whole batch, the same on every rank. Where mesh
    dimensions cut the samples and samples are told apart, a rank may have its own samples only."""

    local: Tensor
    mesh: DeviceMesh
    samples: list[int]  # the mesh dimensions over which ranks have samples of their own


def confusion_sums(
    input: Tensor, target: Tensor, weight: Tensor | None, given: dict[str, Any]
) -> Tensor:
    """``register.confusion_sums`` of DTensors; the sums are replicated."""
    elements = options.cached_for_sums(input.dim(), **options.hashable(given))
    sums = _sums(Data(input, target, weight), elements, keep_samples=False)
    return _replicated(sums.local, sums.mesh)


def ratio_operator(
    operator: str, input: Tensor, target: Tensor, weight: Tensor | None, given: dict[str, Any]
) -> Tensor:
    """``register.ratio_operator`` of DTensors. The loss is replicated, but losses of samples stay
    where their samples are.

    It computes with plain tensors: one operation on DTensors takes as long as a small loss.
    """
    elements, scoring = options.cached_for_operator(
        operator, input.dim(), **options.hashable(given)
    )
    sums, mesh, samples = _sums(Data(input, target, weight), elements, keep_samples=True)
    words, dtype = options.words_of(scoring), accumulator(input)
    if not samples or words.reduction == "none":
        loss = autograd.score(sums, scoring, elements).to(dtype)
        if not samples:
            return _replicated(loss, mesh)
        placements = [Shard(0) if dim in samples else Replicate() for dim in range(mesh.ndim)]
        return _wrapped(loss, mesh, tuple(placements), (input.shape[0], *loss.shape[1:]))

    def groups(sums: Tensor) -> totals.Groups:
        loss = losses.similarity_loss(
            sums, scoring.tp_weight, scoring.fp_weight, scoring.fn_weight, scoring.smooth,
            scoring.smooth_denominator, words.link, words.gamma, words.log_floor,
        )  # fmt: skip
        loss, counted = losses.with_absent(loss, sums, words.absent)
        return totals.Groups(loss, sums, counted, None)

    # the sum of the samples' losses and the number of samples may be added up over ranks
    part = totals.of_part(sums, groups, words.average, True)
    total = _Total.apply(part, mesh, samples, (), part.shape)
    loss = totals.loss(total, groups, words.average, True, words.reduction)
    return _replicated(loss.to(dtype), mesh)


def _sums(data: Data, elements: Elements, *, keep_samples: bool) -> _Sums:
    """The sums of the whole; with ``keep_samples`` the sums of a sample stay on its ranks."""
    mesh = _mesh(data)
    input, target, weight = operands.checked(*data, elements)
    assert isinstance(input, DTensor)
    placements = _input_placements(input, elements)
    shards = [_Local.apply(input, placements, placements)]
    for name, operand in (("target", target), ("weight", weight)):
        if operand is not None:
            assert isinstance(operand, DTensor)
            shards.append(_Local.apply(operand, *_like_input(name, operand, input)))
    _fit(shards)
    samples: list[int] = []
    summed: list[int] = []
    for dim, placement in enumerate(placements):
        if placement.is_replicate() or mesh.size(dim) == 1:
            continue
        own_samples = keep_samples and elements.per_sample and placement.is_shard(0)
        (samples if own_samples else summed).append(dim)
    local = shards[0]
    told_apart = (0,) * elements.per_sample + (1,) * (elements.per_class and input.dim() > 1)
    extents = {dim: _extent(input, dim, local.shape[dim]) for dim in told_apart}
    weight_shard = None if weight is None else shards[2]
    unknown = None
    if is_class_index(input, target) and any(p.is_shard(1) for p in placements):
        data = Data(local, shards[1], weight_shard)
        plain.refuse_unknown_labels(data, elements, input.shape[1])
        unknown = plain.unknown_labels(data, elements, input.shape[1])
        classes = _extent(input, 1, local.shape[1])
        shards[1], elements = _dense(shards[1], input, classes, elements)
    # an empty shard may have no group, and the kernels are not written for that
    sums_of = autograd.sums if local.numel() else _no_sums
    sums = sums_of(Data(local, shards[1], weight_shard), elements)
    if unknown is not None and local.device.type != "cpu":
        # nothing may wait for a device, so the sums of its sample become NaN
        samples_of = unknown.flatten(1).any(1)[:, None] if elements.per_sample else unknown.any()
        sums = sums.masked_fill(samples_of, torch.nan)
    if summed:
        shape = group_shape(input, elements.per_sample, elements.per_class)
        where = [extents.get(0, slice(None)), extents.get(1, slice(None))]
        if samples:
            shape, where[0] = (sums.shape[1], shape[1]), slice(None)
        sums = _Total.apply(sums, mesh, summed, where, (sums.shape[0], *shape))
    return _Sums(sums, mesh, samples)


def _no_sums(data: Data, elements: Elements) -> Tensor:
    """The sums, all 0, of a rank without elements. They are in the graph, because backward may run
    a collective that needs every rank."""
    sums = plain.confusion(data, elements._replace(per_sample=False, per_class=False))
    return sums.expand(-1, *group_shape(data.input, elements.per_sample, elements.per_class))


class _Total(torch.autograd.Function):
    """Adds the sums of all ranks along some mesh dimensions; ``where`` is this rank's place."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        mesh: DeviceMesh,
        dims: list[int],
        where: Sequence[slice],
        shape: Sequence[int],
    ) -> Tensor:
        ctx.where = (..., *where)
        total = sums.new_zeros(tuple(shape))
        total[ctx.where] = sums
        placements = [Partial() if dim in dims else Replicate() for dim in range(mesh.ndim)]
        pending = DTensor.from_local(total, mesh, placements, run_check=False)
        result: Tensor = pending.redistribute(placements=[Replicate()] * mesh.ndim).to_local()
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # every rank computes the same loss, so nothing is added up or divided
        return grad[ctx.where], None, None, None, None


class _Local(torch.autograd.Function):
    """The local shard of a DTensor, whose gradient has ``grad_placements``.

    A replicated operand may be cut to ``placements``, which moves no data.
    """

    @staticmethod
    def forward(
        ctx: Any, operand: DTensor, placements: Placements, grad_placements: Placements
    ) -> Tensor:
        ctx.mesh, ctx.shape, ctx.placements = operand.device_mesh, operand.shape, operand.placements
        ctx.grad_placements = grad_placements
        if operand.placements != placements:
            operand = operand.redistribute(placements=placements)
        local: Tensor = operand.to_local()
        return local.view_as(local)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _wrapped(grad, ctx.mesh, ctx.grad_placements, ctx.shape)
        if ctx.grad_placements != ctx.placements:
            gradient = gradient.redistribute(placements=ctx.placements)
        return gradient, None, None


def _replicated(value: Tensor, mesh: DeviceMesh) -> Tensor:
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _wrapped(
    local: Tensor, mesh: DeviceMesh, placements: Placements, shape: Sequence[int]
) -> DTensor:
    """``DTensor.from_local`` for shards that may differ in size, for which it needs the whole shape
    and strides. The strides order the dimensions as the local ones do."""
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (local.stride(dim), -dim)):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return DTensor.from_local(
        local,
        mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape) if shape else None,
        stride=tuple(strides) if shape else None,
    )


# ---- placements ------------------------------------------------------------------------------


def _mesh(data: Data) -> DeviceMesh:
    """The mesh that all operands share."""
    mesh = None
    for name, operand in data._asdict().items():
        if operand is None:
            continue
        if not isinstance(operand, DTensor):
            raise TypeError(
                f"{name}: expected a DTensor, like the others, got a {type(operand).__name__}: "
                "distribute_tensor(...) or DTensor.from_local(...) with the mesh of the others"
            )
        if mesh is not None and operand.device_mesh != mesh:
            raise ValueError(f"{name}: expected input's {mesh}, got {operand.device_mesh}")
        mesh = operand.device_mesh
    assert mesh is not None
    return mesh


def _input_placements(input: DTensor, elements: Elements) -> Placements:
    """The placements of the input, if sums can be made of its shards."""
    placements: Placements = input.placements
    for placement in placements:
        # a rank has to hold one piece of a dim that tells groups apart; a dim that is summed over
        # may be cut in any way, as strided shards are
        group_dims = (0,) * elements.per_sample + (1,) * elements.per_class
        allowed = isinstance(placement, Shard) or getattr(placement, "dim", None) not in group_dims
        if placement.is_partial() or not allowed:
            raise ValueError(
                f"input: expected placements of Shard or Replicate, got {_list(placements)}: "
                "redistribute it first"
            )
        if elements.activation == SOFTMAX and getattr(placement, "dim", None) == 1:
            raise ValueError(
                "input: expected all classes of an element on one rank with activation='softmax', "
                f"got placements {_list(placements)}: redistribute it first, best to Shard(0) (an "
                "all-to-all of the shards, where Replicate() would gather all of them)"
            )
    return placements


def _like_input(name: str, operand: DTensor, input: DTensor) -> tuple[Placements, Placements]:
    """The placements of an operand beside the input's shards, and those of its gradient."""
    offset = input.dim() - operand.dim()
    wanted: list[Placement] = []
    grad_placements: list[Placement] = []
    for placement in input.placements:
        dim = getattr(placement, "dim", None)
        if dim is None:
            wanted.append(placement)
            grad_placements.append(placement)
        elif dim < offset or operand.shape[dim - offset] != input.shape[dim]:
            # broadcast: every rank needs it whole, and adds its part of the gradient
            wanted.append(Replicate())
            grad_placements.append(Partial())
        elif isinstance(placement, Shard):
            wanted.append(Shard(dim - offset))
            grad_placements.append(Shard(dim - offset))
        else:
            wanted.append(placement)
            grad_placements.append(placement)
    for own, other in zip(operand.placements, wanted):
        cuttable = own.is_replicate() and isinstance(other, Shard)
        if own != other and not cuttable:
            raise ValueError(
                f"{name}: expected placements {_list(wanted)} (input's are "
                f"{_list(input.placements)}) or Replicate, got {_list(operand.placements)}: "
                "redistribute it first"
            )
    return tuple(wanted), tuple(grad_placements)


def _list(placements: Sequence[Placement]) -> str:
    return f"({', '.join(map(repr, placements))})"


def _fit(shards: list[Tensor]) -> None:
    """Checks that the shards fit together: DTensors of one shape may be cut in different ways."""
    shape = shards[0].shape
    for name, shard in zip(("target", "weight"), shards[1:]):
        offset = len(shape) - shard.dim()
        if any(size not in (1, shape[offset + dim]) for dim, size in enumerate(shard.shape)):
            raise ValueError(
                f"{name}: expected a local shard that broadcasts to {list(shape)} (input's), got "
                f"{list(shard.shape)}"
            )


def _extent(input: DTensor, dim: int, length: int) -> slice:
    """Where this rank's part of a dimension lies, if it is cut as ``torch.chunk`` does."""
    start, size = 0, input.shape[dim]
    coordinate = input.device_mesh.get_coordinate()
    assert coordinate is not None
    for mesh_dim, placement in enumerate(input.placements):
        if placement.is_shard(dim):
            chunk = -(-size // input.device_mesh.size(mesh_dim))
            first = min(coordinate[mesh_dim] * chunk, size)
            start, size = start + first, min(chunk, size - first)
    if size != length:
        raise ValueError(
            f"input: expected shards of dim {dim} as torch.chunk cuts it, {size} on this rank, got "
            f"{length}: groups are told apart along it"
        )
    return slice(start, start + size)


def _dense(
    target: Tensor, input: DTensor, classes: slice, elements: Elements
) -> tuple[Tensor, Elements]:
    """A dense target for a rank that has only some of the classes. There the number of a class on
    another rank is a 0 for each of its classes, and not ignored."""
    # A small dtype may hold neither the number of classes nor ignore_index.
    target = target.long()
    numbers = torch.arange(classes.start, classes.stop, device=target.device)
    dense = target == numbers.reshape(-1, *(1 for _ in input.shape[2:]))
    known = (target >= 0) & (target < input.shape[1])
    for ignored in elements.ignore_index or ():
        known = known & (target != ignored)
    smoothing = elements.label_smoothing
    if elements.log_smoothing not in (None, smoothing):
        raise ValueError(
            "ce_label_smoothing: expected None for DTensors that are sharded along their classes "
            f"(there is one smoothed target for both parts), got {elements.log_smoothing}"
        )
    values = dense.to(torch.uint8)
    if smoothing:
        values = dense.to(accumulator(input)) * (1 - smoothing)
        values = values + smoothing / input.shape[1]
    values = torch.where(known, values, torch.full_like(values, _NOTHING))
    return values, elements._replace(ignore_index=(_NOTHING,), label_smoothing=0.0)


# ---- inference mode --------------------------------------------------------------------------


def _register() -> None:
    """DTensors of inference mode have no autograd key, so they do not reach the functions of
    ``register.py``; they reach these rules."""

    def rule(function: Any) -> Any:
        def dispatched(
            kind: Any, op: Any, types: Any, args: tuple[Any, ...], keywords: dict[str, Any]
        ) -> Tensor:
            input, target, weight = (*args, None)[:3]
            given = {**(keywords or {})}
            weight = given.pop("weight", weight)
            result: Tensor = function(input, target, weight, given)
            return result

        return dispatched

    for name in options.OPERATORS:
        ratio = rule(partial(ratio_operator, name))
        torch.library.register_torch_dispatch(f"customloss::{name}", DTensor, ratio)
    torch.library.register_torch_dispatch(
        "customloss::confusion_sums", DTensor, rule(confusion_sums)
    )


_register()
