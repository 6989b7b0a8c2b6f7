"""Ranks that share a batch have the loss and the gradients of one process with all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parts import CLASSES, FEATURES, TOLERANCE, assert_equal, network
from ranks import run
from selection import one_of_each
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import customloss
from customloss.distributed import global_sums

pytestmark = pytest.mark.distributed

SAMPLES = 9
# How many samples each rank has: even and uneven cuts, some ranks without any.
CUTS = {2: [(5, 4), (8, 1), (0, 9)], 3: [(3, 3, 3), (5, 1, 3), (4, 0, 5), (0, 9, 0)]}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"average": "micro", "beta": 2.0},
    {"average": "weighted", "link": "log"},
    {"average": "none", "reduction": "sum", "smooth": 1.0},
    {"absent": "skip"},
    {"absent": "penalize", "average": "none", "reduction": "mean"},
]
SAMPLEWISE: list[dict[str, Any]] = [
    {"samplewise": True},
    {"samplewise": True, "average": "micro", "link": "log"},
    {"samplewise": True, "average": "weighted"},
    {"samplewise": True, "absent": "skip"},
    {"samplewise": True, "average": "none", "absent": "skip"},
    {"samplewise": True, "reduction": "sum"},
]


def shards(cut: tuple[int, ...]) -> slice:
    """The part of a batch that this rank has."""
    start = sum(cut[: dist.get_rank()])
    return slice(start, start + cut[dist.get_rank()])


def batch(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits or features, targets in which a class is absent, weights; equal on every rank."""
    torch.manual_seed(1)
    target = torch.rand(SAMPLES, CLASSES, *shape) < 0.4
    target[:, 1] = False
    features = torch.randn(SAMPLES, CLASSES if shape else FEATURES, *shape, dtype=dtype)
    return features, target, torch.rand(SAMPLES, CLASSES, *shape, dtype=dtype)


class Collectives(TorchDispatchMode):
    """Records every collective and how many numbers it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        if function.namespace == "c10d":
            moved = arguments[0]
            self.seen.append((function._opname, sum(tensor.numel() for tensor in moved)))
        return function(*arguments, **(options or {}))


# ---- the same numbers ------------------------------------------------------------------------


def logits_agree() -> None:
    world = dist.get_world_size()
    for dtype in TOLERANCE:
        logits, target, weight = batch(dtype, 4, 2)
        for options in OPTIONS + SAMPLEWISE:
            whole = logits.clone().requires_grad_()
            expected = customloss.soft_f1_loss(whole, target, weight, **options)
            expected.backward()
            for cut in CUTS[world]:
                part = shards(cut)
                x = logits[part].clone().requires_grad_()
                loss = customloss.soft_f1_loss(
                    x, target[part], weight[part], process_group=dist.group.WORLD, **options
                )
                loss.backward()
                assert_equal(loss, expected, (options, cut))
                if len(x):
                    assert_equal(x.grad, world * whole.grad[part], (options, cut))


def readings(target: Tensor) -> list[tuple[dict[str, Any], Tensor]]:
    """Options and targets: dense for sigmoids, class numbers (some ignored) for a softmax."""
    numbers = target.to(torch.uint8).argmax(1)
    numbers[::4] = 255
    softmax = {"activation": "softmax", "ignore_index": 255}
    return [({}, target), (softmax, numbers), ({**softmax, "average": "micro"}, numbers)]


def numbers_agree() -> None:
    """Class numbers of a softmax, with and without a cross-entropy."""
    world = dist.get_world_size()
    for dtype in TOLERANCE:
        logits, target, _ = batch(dtype, 4, 2)
        _, numbers = readings(target)[1]
        for function in (partial(customloss.soft_f1_loss, activation="softmax"),
                         customloss.dice_ce_loss):  # fmt: skip
            for more in ({}, {"samplewise": True}, {"average": "micro"}):
                options = {"ignore_index": 255, **more}
                whole = logits.clone().requires_grad_()
                expected = function(whole, numbers, **options)
                expected.backward()
                for cut in CUTS[world]:
                    part = shards(cut)
                    x = logits[part].clone().requires_grad_()
                    loss = function(x, numbers[part], process_group=dist.group.WORLD, **options)
                    loss.backward()
                    assert_equal(loss, expected, (options, cut))
                    if len(x):
                        assert_equal(x.grad, world * whole.grad[part], (options, cut))


def parameters_agree() -> None:
    """Gradients of parameters agree under DistributedDataParallel."""
    for dtype in TOLERANCE:
        x, target, _ = batch(dtype)
        for options, known in readings(target):
            _parameters_agree(dtype, x, known, options)


def _parameters_agree(dtype: torch.dtype, x: Tensor, target: Tensor, options: Any) -> None:
    criterion = customloss.SoftF1Loss(process_group=dist.group.WORLD, **options)
    alone = network(dtype)
    expected = customloss.soft_f1_loss(alone(x), target, **options)
    expected.backward()
    for cut in CUTS[dist.get_world_size()]:
        part = shards(cut)
        model = DistributedDataParallel(network(dtype))
        loss = criterion(model(x[part]), target[part])
        loss.backward()
        assert_equal(loss, expected, cut)
        for own, other in zip(model.parameters(), alone.parameters(), strict=True):
            assert_equal(own.grad, other.grad, cut)


def shards_of_parameters_agree() -> None:
    """Gradients of parameters agree under fully_shard (FSDP2)."""
    world = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (world,))
    for dtype in TOLERANCE:
        x, target, _ = batch(dtype)
        options, target = readings(target)[1]
        criterion = customloss.SoftF1Loss(process_group=mesh.get_group(), **options)
        alone = network(dtype)
        expected = customloss.soft_f1_loss(alone(x), target, **options)
        expected.backward()
        for cut in CUTS[world]:
            part = shards(cut)
            model = network(dtype)
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh)
            loss = criterion(model(x[part]), target[part])
            loss.backward()
            assert_equal(loss, expected, cut)
            for own, other in zip(model.parameters(), alone.parameters(), strict=True):
                assert_equal(own.grad.full_tensor(), other.grad, cut)


@one_of_each()
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int) -> None:
    run(world, logits_agree, numbers_agree, parameters_agree, shards_of_parameters_agree)


# ---- what it costs ---------------------------------------------------------------------------


def one_collective() -> None:
    logits, target, _ = batch(torch.float32, 4, 2)
    part = shards((5, 4))
    x = logits[part].clone().requires_grad_()
    criterion = customloss.SoftF1Loss(process_group=dist.group.WORLD)
    with Collectives() as forward:
        loss = criterion(x, target[part])
    with Collectives() as backward:
        loss.backward()
    assert forward.seen == [("allreduce_", 4 * CLASSES)]
    assert backward.seen == []
    with Collectives() as forward:
        customloss.SoftF1Loss(samplewise=True, process_group=dist.group.WORLD)(x, target[part])
    assert forward.seen == [("allreduce_", 2)]


def compiles() -> None:
    logits, target, _ = batch(torch.float64, 4, 2)
    part = shards((5, 4))
    criterion = customloss.SoftF1Loss(process_group=dist.group.WORLD)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    found = []
    for function in (criterion, compiled):
        x = logits[part].clone().requires_grad_()
        loss = function(x, target[part])
        loss.backward()
        found.append((loss.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def sums_of_any_shape() -> None:
    """``global_sums`` takes any float dtype and any strides, and adds in float64."""
    rank = dist.get_rank()
    sums = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    total = global_sums(sums * (rank + 1), dist.group.WORLD)
    torch.testing.assert_close(total, 3 * sums, rtol=0, atol=0)
    total.sum().backward()
    torch.testing.assert_close(sums.grad, torch.full((3, 2), 2.0 * (rank + 1)))
    big = torch.tensor([1.0, 2.0**-30][rank])
    assert global_sums(big.double(), dist.group.WORLD) == 1 + 2.0**-30


def no_second_derivative() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = customloss.soft_f1_loss(x, torch.rand(4, 3) < 0.4, process_group=dist.group.WORLD)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def test_what_it_takes() -> None:
    run(2, one_collective, sums_of_any_shape, no_second_derivative)


def test_compiled() -> None:
    run(2, compiles)


# ---- groups and errors -----------------------------------------------------------------------


def groups() -> None:
    """Groups of some ranks, of a single rank, and groups that a rank is not in."""
    logits, target, _ = batch(torch.float64, 4, 2)
    rank = dist.get_rank()
    pair, single = dist.new_group([0, 2]), dist.new_group([1])
    part = shards((3, 2, 4))
    x = logits[part].clone().requires_grad_()
    own = single if rank == 1 else pair
    loss = customloss.soft_f1_loss(x, target[part], process_group=own)
    seen = [3, 4] if rank == 1 else [0, 1, 2, 5, 6, 7, 8]
    assert_equal(loss, customloss.soft_f1_loss(logits[seen], target[seen]), rank)
    with pytest.raises(ValueError, match=f"rank {rank} is not in the group"):
        customloss.soft_f1_loss(x, target[part], process_group=pair if rank == 1 else single)
    if rank == 1:
        with Collectives() as collectives:
            global_sums(x, single)
        assert collectives.seen == []


def test_groups() -> None:
    run(3, groups)


def disagreements() -> None:
    rank, world = dist.get_rank(), dist.group.WORLD
    x, target = torch.randn(4, 3 + rank // 2), torch.rand(4, 3 + rank // 2) < 0.4
    with pytest.raises(ValueError, match=r"ranks \[2\] disagree with rank 0(.|\n)*rank 1: "):
        customloss.soft_f1_loss(x, target, process_group=world)
    x, target = x[:, :3], target[:, :3]
    # what differs is shown by name, and nothing else
    with pytest.raises(ValueError, match=r"ranks \[1, 2\] disagree") as caught:
        customloss.soft_f1_loss(
            x, target, link="log" if rank else "complement", process_group=world
        )
    lines = ["rank 0: link='complement'", "rank 1: link='log'", "rank 2: link='log'"]
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == lines
    with pytest.raises(ValueError, match=r"ranks \[1\] disagree(.|\n)*float32"):
        global_sums(x.sum(0).to(torch.float32 if rank == 1 else torch.float64), world)
    customloss.soft_f1_loss(x, target, process_group=world)
    # parameters of composed scores, and weights that a repr would shorten
    off = rank == 1
    many = torch.ones(2000).index_fill(0, torch.tensor([1500]), 6.0 if off else 1.0)
    wide, wide_target = torch.randn(4, 2000), torch.rand(4, 2000) < 0.4
    close = [1.0, 1.00001 if off else 1.00004, 1.0]
    for loss in (
        lambda: customloss.fowlkes_mallows_loss(
            x, target, recall_weight=0.6 if off else 0.5, process_group=world
        ),
        lambda: customloss.generalized_dice_loss(
            x, target, weighting="simple" if off else "square", process_group=world
        ),
        lambda: customloss.squared_dice_loss(
            x, target, smooth=1.0 if off else 0.0, process_group=world
        ),
        lambda: customloss.dice_bce_loss(x, target, smooth=float(off), process_group=world),
        lambda: customloss.dice_loss(x, target, class_weight=close, process_group=world),
        lambda: customloss.dice_loss(wide, wide_target, class_weight=many, process_group=world),
    ):
        with pytest.raises(ValueError, match=r"ranks \[1\] disagree") as caught:
            loss()
        assert re.search(r"rank 1: (recall_weight|weighting|smooth|class_weight)=[^=]+$",
                         str(caught.value), re.MULTILINE)  # fmt: skip


def test_debug_mode_names_ranks_that_disagree() -> None:
    run(3, disagreements, CUSTOMLOSS_DEBUG="1")


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_single_rank_communicates_nothing(alone: dist.ProcessGroup) -> None:
    sums = torch.ones(4, 1, 3)
    with Collectives() as collectives:
        assert global_sums(sums, alone) is sums
    assert collectives.seen == []


def test_losses_of_single_samples_are_no_business_of_other_ranks() -> None:
    class Others(customloss.distributed.Adder):
        def total(self, sums: Tensor, options: object) -> Tensor:
            return sums

    x, target = torch.randn(4, 3), torch.rand(4, 3) < 0.4
    with pytest.raises(ValueError, match=r"reduction: .*'none'"):
        customloss.soft_f1_loss(
            x, target, samplewise=True, reduction="none", process_group=Others()
        )


def test_a_rank_alone_pays_nothing(alone: dist.ProcessGroup) -> None:
    """A group of one rank takes the fused operator, with the same bits and no collective."""
    x, target = torch.randn(4, 3), torch.rand(4, 3) < 0.4
    own = customloss.soft_f1_loss(x, target, process_group=alone)
    torch.testing.assert_close(own, customloss.soft_f1_loss(x, target), rtol=0, atol=0)


def test_no_group() -> None:
    sums = torch.ones(4, 1, 3)
    assert global_sums(sums, None) is sums
    with pytest.raises(TypeError, match=r"process_group: expected .* got int"):
        global_sums(sums, 3)  # type: ignore[arg-type]
