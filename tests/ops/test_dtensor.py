"""DTensors give every loss the value and the gradient of the whole tensor.

The ranks exchange a few numbers per group and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parts import assert_equal
from ranks import run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import customloss

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no c10d"),
]

SHAPE = (5, 4, 3, 6)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"average": "micro", "beta": 2.0},
    {"average": "weighted", "link": "log"},
    {"average": "none", "reduction": "none", "smooth": 1.0},
    {"absent": "skip", "logit_scale": 2.0, "logit_offset": 0.5},
    {"activation": "none", "absent": "penalize"},
]
SAMPLEWISE: list[dict[str, Any]] = [
    {"samplewise": True},
    {"samplewise": True, "average": "micro", "reduction": "none"},
    {"samplewise": True, "average": "none", "reduction": "none"},
    {"samplewise": True, "average": "none", "absent": "skip"},
    {"samplewise": True, "average": "weighted", "reduction": "sum"},
]
# The shape of the weight, and whether it is sharded like the input or whole on every rank.
WEIGHTS = [(SHAPE, True), (SHAPE, False), ((4, 1, 1), False), ((5, 1, 1, 1), True), ((3, 6), False)]
PIXELS = (5, 3, 6)  # one number per sample and place


def shard(*dims: int | None) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if dim is None else Shard(dim) for dim in dims]


def mesh_of(*shape: int) -> Any:
    return dist.init_device_mesh("cpu", shape)


def batch(options: dict[str, Any], shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Logits or probabilities, and soft labels in which one class is absent."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    target = torch.rand(shape, dtype=torch.float64)
    target[:, 1] = 0
    return (x.sigmoid() if options.get("activation") == "none" else x), target


class Collectives(TorchDispatchMode):
    """Records every collective and how many numbers it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # DTensor runs it on local tensors, which come here again
        if function.namespace in ("c10d", "_c10d_functional") and not re.match(
            "wait|_wrap", function._opname
        ):
            moved = arguments[0]
            moved = moved if isinstance(moved, (list, tuple)) else [moved]
            self.seen.append((function._opname, sum(tensor.numel() for tensor in moved)))
        return function(*arguments, **(options or {}))


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor()


def assert_as_unsharded(
    function: Callable[..., Tensor],
    mesh: Any,
    operands: list[tuple[Tensor | None, list[Any] | None]],
    most: int | None = None,
) -> Any:
    """Loss and gradients are those of whole tensors; collectives move at most ``most`` numbers."""
    from torch.distributed.tensor import distribute_tensor

    floating = [x is not None and x.is_floating_point() for x, _ in operands]
    alone = [x.clone().requires_grad_() if f else x for (x, _), f in zip(operands, floating)]
    expected = function(*alone)
    upstream = torch.linspace(0.5, 1.5, max(expected.numel(), 1), dtype=expected.dtype)
    upstream = upstream[: expected.numel()].reshape(expected.shape)
    wanted = torch.autograd.grad(expected, [x for x, f in zip(alone, floating) if f], upstream)

    cut = [x if x is None else distribute_tensor(x, mesh, placed) for x, placed in operands]
    leaves = [x.requires_grad_() for x, f in zip(cut, floating) if f]
    with Collectives() as forward:
        loss = function(*cut)
    outer = distribute_tensor(upstream, mesh, shard(*[None] * mesh.ndim))
    with Collectives() as backward:
        own = torch.autograd.grad(loss, leaves[:1], outer, retain_graph=True)
    if leaves[1:]:  # not counted: the gradient of a replicated weight needs a collective
        own += torch.autograd.grad(loss, leaves[1:], outer)
    placements = [placed for _, placed in operands]
    assert loss.dtype == expected.dtype and loss.shape == expected.shape
    assert_equal(whole(loss), expected, placements)
    for leaf, one, other in zip(leaves, own, wanted):
        assert one.placements == leaf.placements, placements
        assert one.to_local().shape == leaf.to_local().shape
        assert_equal(whole(one), other, placements)
    if most is not None:
        assert backward.seen == [], placements
        assert all(name == "all_reduce" for name, _ in forward.seen), forward.seen
        assert all(moved <= most for _, moved in forward.seen), (forward.seen, most)
        assert len(forward.seen) <= mesh.ndim, (forward.seen, placements)
    return loss


# ---- one mesh dimension ----------------------------------------------------------------------


def every_placement() -> None:
    mesh = mesh_of(2)
    for options in OPTIONS:
        for dim in (0, 1, 2, 3, None):

            def loss(*operands: Tensor, options: dict = options) -> Tensor:
                return customloss.soft_f1_loss(*operands, **options)

            x, target = batch(options)
            placed = shard(dim)
            groups = 1 if options.get("average") == "micro" else SHAPE[1]
            assert_as_unsharded(loss, mesh, [(x, placed), (target, placed)], 4 * groups)
            bits = target > 0.6
            assert_as_unsharded(loss, mesh, [(x, placed), (bits, shard(None))], 4 * groups)


def every_weight() -> None:
    mesh = mesh_of(2)
    x, target = batch({})
    numbers = target.argmax(1)
    for dim in (0, 1, 3, None):
        pixel_dim = {0: 0, 3: 2}.get(dim)  # in what has no classes
        for shape, beside in (*WEIGHTS, (PIXELS, True), (PIXELS, False)):
            own = None if dim is None else dim - (4 - len(shape))
            target_here = target, shard(dim)
            if shape == PIXELS:
                own, target_here = pixel_dim, (numbers, shard(pixel_dim))
            follows = own is not None and own >= 0 and shape[own] == SHAPE[dim]
            weight = torch.rand(shape, dtype=torch.float64)
            placed = shard(own if beside and follows else None)
            operands = [(x, shard(dim)), target_here, (weight, placed)]
            assert_as_unsharded(customloss.soft_f1_loss, mesh, operands, 16)


def every_rank_of_input() -> None:
    mesh = mesh_of(2)
    for shape, dims in (((7,), (0, None)), ((7, 3), (0, 1)), ((2, 3, 4, 2, 3), (1, 4))):
        x, target = torch.randn(shape, dtype=torch.float64), torch.rand(shape).double()
        for dim in dims:
            operands = [(x, shard(dim)), (target, shard(dim))]
            assert_as_unsharded(torch.ops.customloss.soft_f1, mesh, operands, 12)


def samples() -> None:
    mesh = mesh_of(2)
    for options in SAMPLEWISE:
        for dim in (0, 1, 2, None):

            def loss(*operands: Tensor, options: dict = options) -> Tensor:
                return customloss.soft_f1_loss(*operands, **options)

            x, target = batch(options)
            found = assert_as_unsharded(loss, mesh, [(x, shard(dim)), (target, shard(dim))])
            if options.get("reduction") == "none" and dim == 0:
                assert list(found.placements) == shard(0)
                operands = [(x, shard(dim)), (target, shard(dim))]
                assert_as_unsharded(loss, mesh, operands, 0)
            else:
                assert list(found.placements) == shard(None)


def some_ranks_without_data() -> None:
    """One sample, or one class, is shared by two ranks, so one rank has nothing."""
    mesh = mesh_of(2)
    for shape, dim in (((1, 4, 3), 0), ((3, 1, 5), 1)):
        x, target = batch({"average": "micro"}, shape) if shape[1] > 1 else (
            torch.randn(shape, dtype=torch.float64), torch.rand(shape).double()
        )  # fmt: skip
        for options in ({}, {"average": "micro"}, {"samplewise": True}):

            def loss(*operands: Tensor, options: dict = options) -> Tensor:
                return customloss.soft_f1_loss(*operands, **options)

            operands = [
                (x, shard(dim)),
                (target, shard(dim)),
                (torch.ones(()).double(), shard(None)),
            ]
            assert_as_unsharded(loss, mesh, operands)


def every_loss() -> None:
    """Every named loss, and a score of the user's own."""
    mesh = mesh_of(2)
    for name in customloss.loss_names():
        criterion = customloss.loss(name, check_target=False)
        default = "softmax" if name == "cross_entropy" else "sigmoid"  # of what has no such option
        activation = getattr(criterion, "activation", default)
        x, target = batch({"activation": activation})
        for dim in (0, 1):
            operands = [(x, shard(dim)), (target, shard(dim))]
            if activation == "softmax" and dim == 1:
                continue
            # A loss that asks for all sums has 15 rows.
            assert_as_unsharded(criterion, mesh, operands, 15 * SHAPE[1])

    def f2(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return 5 * tp / (5 * tp + fp + 4 * fn)

    criterion = customloss.ConfusionLoss(f2, link="log", samplewise=True, check_target=False)
    x, target = batch({})
    assert_as_unsharded(criterion, mesh, [(x, shard(0)), (target + 0.01, shard(0))])


def sums() -> None:
    mesh = mesh_of(2)
    x, target = batch({})
    for dim in (0, 1, 2):
        operands = [(x, shard(dim)), (target, shard(dim))]
        found = assert_as_unsharded(torch.ops.customloss.confusion_sums, mesh, operands, 16)
        assert list(found.placements) == shard(None)


def test_every_placement() -> None:
    run(2, every_placement, every_weight, every_rank_of_input, samples, some_ranks_without_data)


def test_every_loss() -> None:
    run(2, every_loss, sums)


# ---- what is refused, and what is not -------------------------------------------------------


def refusals() -> None:
    from torch.distributed.tensor import DTensor, Partial, distribute_tensor

    mesh, loss = mesh_of(2), customloss.soft_f1_loss
    values, labels = batch({})

    def cut(tensor: Tensor, dim: int | None) -> Tensor:
        return distribute_tensor(tensor, mesh, shard(dim))

    x, target = cut(values, 0), cut(labels, 0)
    with pytest.raises(ValueError, match=r"all classes .* got placements \(Shard\(dim=1\)\)"):
        loss(cut(values, 1), cut(labels, 1), activation="softmax")
    with pytest.raises(TypeError, match=r"target: expected a DTensor.* got a Tensor"):
        loss(x, labels)
    with pytest.raises(TypeError, match=r"input: expected a DTensor.* got a Tensor"):
        loss(values, target)
    with pytest.raises(TypeError, match=r"weight: expected a DTensor.* got a Tensor"):
        loss(x, target, torch.ones(()))
    with pytest.raises(ValueError, match=r"target: expected placements \(Shard\(dim=0\)\)"):
        loss(x, cut(labels, 1))
    with pytest.raises(ValueError, match=r"target: expected placements \(Replicate\(\)\)"):
        loss(cut(values, None), target)
    with pytest.raises(ValueError, match="target: expected input's DeviceMesh"):
        loss(x, distribute_tensor(labels, mesh_of(1, 2), shard(None, 0)))
    with pytest.raises(ValueError, match=r"input: expected placements .* got \(Partial\(sum\)\)"):
        loss(DTensor.from_local(values, mesh, [Partial()]), cut(labels, None))
    for criterion in (loss, customloss.jaccard_loss, customloss.mcc_loss):
        with pytest.raises(ValueError, match=r"process_group: expected None for DTensors"):
            criterion(x, target, process_group=dist.group.WORLD)
    own = slice(0, 1) if dist.get_rank() == 0 else slice(1, 5)
    odd = [DTensor.from_local(each[own], mesh, shard(0)) for each in (values, labels)]
    wanted = loss(values, labels)
    assert_equal(whole(loss(*odd)), wanted)  # groups span all samples, so uneven shards are fine
    # A second derivative would need another collective, which is refused.
    (gradient,) = torch.autograd.grad(loss(x.requires_grad_(), target), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def without_autograd() -> None:
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2)
    values, labels = batch({})
    x, target = (distribute_tensor(each, mesh, shard(0)) for each in (values, labels))
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            assert_equal(
                whole(customloss.soft_f1_loss(x, target)), customloss.soft_f1_loss(values, labels)
            )
            own = torch.ops.customloss.tversky(x, target, weight=target, average="micro")
            alone = torch.ops.customloss.tversky(values, labels, labels, average="micro")
            assert_equal(whole(own), alone)
            assert_equal(whole(customloss.mcc_loss(x, target)), customloss.mcc_loss(values, labels))


def keeps_layouts() -> None:
    """Shards in channels_last have gradients in channels_last."""
    from torch.distributed.tensor import DTensor

    mesh = mesh_of(2)
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    target = torch.rand(2, 4, 3, 5) < 0.4
    x, target = (DTensor.from_local(each, mesh, shard(0)) for each in (x, target))
    (own,) = torch.autograd.grad(customloss.soft_f1_loss(x.requires_grad_(), target), x)
    assert own.shape == x.shape
    assert own.to_local().stride() == x.to_local().stride()
    assert own.stride() == x.stride()


def other_terms() -> None:
    """The loss can be added to another loss of DTensors, and accumulated over micro-batches."""
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2)
    values, labels = batch({})

    def loss(x: Tensor, target: Tensor) -> Tensor:
        more = torch.nn.functional.binary_cross_entropy_with_logits(x, target)
        return customloss.soft_f1_loss(x, target) + more

    even = slice(0, 4)  # torch's mean of uneven shards is not exact
    assert_as_unsharded(loss, mesh, [(values[even], shard(0)), (labels[even], shard(0))])
    parts = [
        [distribute_tensor(each[slice(*part)], mesh, shard(0)) for each in (values, labels)]
        for part in ((0, 2), (2, 5))
    ]
    for criterion in (customloss.SoftF1Loss(), customloss.MCCLoss()):
        with customloss.accumulate(criterion) as accumulated:
            for part in parts:
                accumulated.add(*part)
            for part in parts:
                assert_equal(whole(accumulated.loss(*part)), criterion(values, labels))


def compiled() -> None:
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2)
    values, labels = batch({})
    for criterion in (customloss.SoftF1Loss(), customloss.MCCLoss()):
        found = []
        for function in (criterion, torch.compile(criterion, fullgraph=True, backend="aot_eager")):
            x, target = (distribute_tensor(each, mesh, shard(0)) for each in (values, labels))
            loss = function(x.requires_grad_(), target)
            loss.backward()
            found.append((whole(loss.detach()), whole(x.grad)))
        torch.testing.assert_close(found[0], found[1])


# ---- meshes and models -----------------------------------------------------------------------


def two_dimensions() -> None:
    mesh = mesh_of(2, 2)
    x, target = batch({})
    weight = torch.rand(4, 1, 1, dtype=torch.float64)
    for first, second in ((0, None), (None, 0), (0, 2), (2, 0), (0, 1), (1, 3), (0, 0), (1, 1)):
        for options in ({}, {"average": "micro"}, {"samplewise": True}):

            def loss(*operands: Tensor, options: dict = options) -> Tensor:
                return customloss.soft_f1_loss(*operands, **options)

            placed = shard(first, second)
            operands = [(x, placed), (target, placed), (weight, shard(None, None))]
            most = 16 * SHAPE[0] if options.get("samplewise") else 16
            assert_as_unsharded(loss, mesh, operands, most)


class Head(nn.Module):
    """Features to logits of 6 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(5, 8, dtype=torch.float64)
        self.head = nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    return [whole(each) if hasattr(each, "full_tensor") else each for each in found]


def features() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 5, dtype=torch.float64), torch.rand(8, 6) < 0.4


def in_tensor_parallel(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"head": ColwiseParallel(use_local_output=False)})


def tensor_parallel() -> None:
    """The logits of a column-wise head, Shard(-1), are never gathered."""
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2)
    x, target = features()
    for criterion in (customloss.SoftF1Loss(), customloss.MCCLoss(average="micro")):
        alone = Head()
        expected = criterion(alone(x), target)
        expected.backward()
        model = in_tensor_parallel(Head(), mesh)
        logits = model(x)
        assert list(logits.placements) == shard(1)
        labels = distribute_tensor(target, mesh, shard(None))
        with Collectives() as collectives:
            loss = criterion(logits, labels)
        assert max(moved for _, moved in collectives.seen) <= 4 * 6
        loss.backward()
        assert_equal(whole(loss), expected)
        for own, other in zip(gradients(model), gradients(alone), strict=True):
            assert_equal(own, other)


def sharded_both_ways() -> None:
    """fully_shard over one dimension of the mesh, tensor parallelism over the other.

    Each data-parallel rank has its own part of the batch, and its loss is that of the whole.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    (x, target), alone = features(), Head()
    expected = customloss.soft_f1_loss(alone(x), target)
    expected.backward()
    model = fully_shard(in_tensor_parallel(Head(), mesh["tp"]), mesh=mesh["dp"])
    part = slice(4 * mesh["dp"].get_local_rank(), 4 * mesh["dp"].get_local_rank() + 4)
    logits = model(x[part])
    placed = shard(0, 1)
    logits = DTensor.from_local(logits.to_local(), mesh, placed)
    own = target[part].chunk(2, 1)[mesh["tp"].get_local_rank()]
    labels = DTensor.from_local(own, mesh, placed)
    loss = customloss.soft_f1_loss(logits, labels)
    (2 * loss).backward()  # FSDP takes the mean over its ranks
    assert_equal(whole(loss), expected)
    for own, other in zip(gradients(model), gradients(alone), strict=True):
        assert_equal(own, other)


def test_what_is_refused_and_what_is_not() -> None:
    run(2, without_autograd, refusals, keeps_layouts, other_terms, tensor_parallel, compiled)


@pytest.mark.slow
def test_meshes_of_two_dimensions() -> None:
    run(4, two_dimensions, sharded_both_ways)
