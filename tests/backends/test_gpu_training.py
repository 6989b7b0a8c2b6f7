"""On a GPU mixed precision, memory, process groups and the number of launches are as promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
import torch.distributed as dist
from cases import INPUT_DTYPES, Case, short
from gpu import DEVICE, same_bits
from judge import differentiated, soft_f1
from measured import kept_for_backward
from pixel_cases import numbered
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import customloss
from customloss import distributed

pytestmark = [
    *gpu.MARKS,
    # said by the profiler of torch 2.11 of itself
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning"),
]

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(params=gpu.BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with gpu.backend(request.param):
        yield


# ---- mixed precision -------------------------------------------------------------------------


# the class numbers of the samples have some that are none
SOFTMAX_F1 = customloss.SoftF1Loss(activation="softmax", out_of_range="ignore")


@pytest.mark.parametrize("within", HALVES, ids=short)
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_autocast_changes_nothing(dtype: torch.dtype, within: torch.dtype) -> None:
    for function, case in (
        (customloss.soft_f1_loss, Case("x", (40, 5), target=None, weight="full")),
        (SOFTMAX_F1, numbered("x", (3, 5, 9, 7), weight="pixel")),
        (customloss.DiceCELoss(out_of_range="ignore"), numbered("x", (3, 5, 9, 7))),
    ):
        sample = case.build(dtype, DEVICE)._replace(options={})
        expected, gradients = differentiated(function, sample)
        with torch.autocast(DEVICE, dtype=within):
            loss, found = differentiated(function, sample)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert same_bits(loss, expected)
        assert all(map(same_bits, found, gradients))


@pytest.mark.parametrize("within", HALVES, ids=short)
@pytest.mark.parametrize("name", ["soft_f1", "dice_ce"])
def test_a_step_with_loss_scaling(name: str, within: torch.dtype) -> None:
    """A layer in autocast has the gradients of float64 on the CPU, up to rounding."""
    criterion = customloss.loss(name, activation="softmax")
    generator = torch.Generator().manual_seed(4)
    x, numbers = torch.randn(200, 6, generator=generator), torch.arange(200) % 5
    layer = nn.Linear(6, 5)
    wide = nn.Linear(6, 5).double()
    wide.load_state_dict(layer.state_dict())
    layer.to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with torch.autocast(DEVICE, dtype=within):
        logits = layer(x.to(DEVICE))
        assert logits.dtype == within
        logits.retain_grad()
        loss = criterion(logits, numbers.to(DEVICE))
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    assert logits.grad.dtype == within
    scaler.unscale_(optimizer)
    with customloss.backend("auto"):  # the forced one may have no CPU
        criterion(wide(x.double()), numbers).backward()
    for own, expected in zip(layer.parameters(), wide.parameters(), strict=True):
        error = (own.grad.cpu() - expected.grad).abs().max() / expected.grad.abs().max()
        assert error <= 4 * torch.finfo(within).eps
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(layer.weight, before)


def test_a_scale_that_is_too_large_is_seen_and_skipped() -> None:
    layer = nn.Linear(6, 1).to(DEVICE)
    x, target = torch.randn(4, 6).to(DEVICE), (torch.rand(4, 1) < 0.5).to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**24)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    with torch.autocast(DEVICE, dtype=torch.float16):
        loss = customloss.soft_f1_loss(layer(x), target, absent="penalize")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 2.0**23


# ---- memory ----------------------------------------------------------------------------------

# Room for partial sums of every block, which do not grow with the input, and for the allocator's
# rounding. 1024 blocks that share rows of 256 classes have the most partial sums.
FEW, FEW_OF_ROWS = 2 << 20, 9 << 20
LARGE = (8, 8, 512, 512)
MEMORY: dict[str, tuple[Callable[..., Tensor], Case]] = {
    "one long vector": (soft_f1, Case("x", (1 << 25,), target=torch.uint8)),
    "rows": (soft_f1, Case("x", (1 << 16, 512), weight="class")),
    "images": (soft_f1, Case("x", LARGE, weight="full")),
    "classes last": (soft_f1, Case("x", LARGE, layout="class_last")),
    "strided": (soft_f1, Case("x", (1 << 23,), layout="stepped")),
    "softmax": (soft_f1, numbered("x", LARGE)),
    "softmax, classes last": (soft_f1, numbered("x", LARGE, layout="class_last")),
    "dice_ce": (customloss.dice_ce_loss, numbered("x", LARGE, weight="pixel")),
    "dice_bce": (customloss.dice_bce_loss, Case("x", LARGE)),
}


def peak(function: Callable[[], object]) -> int:
    """The most memory that is allocated while it runs, beyond what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()  # noqa: F841  # held to the end
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("name", MEMORY)
def test_a_step_takes_its_gradient_and_a_few_sums(name: str, dtype: torch.dtype) -> None:
    function, case = MEMORY[name]
    x, target, weight, options = case.build(dtype, DEVICE)
    leaf = x.requires_grad_()
    size = leaf.numel() * leaf.element_size()

    def forward() -> Tensor:
        return function(leaf, target, weight, **options)

    forward()  # tensors that are kept for the next calls are not part of a step
    few = FEW_OF_ROWS if name == "rows" else FEW
    assert peak(forward) <= few
    assert size <= peak(lambda: torch.autograd.grad(forward(), leaf)) <= size + few


@pytest.mark.parametrize("name", MEMORY)
def test_only_the_callers_tensors_are_saved(name: str) -> None:
    function, case = MEMORY[name]
    x, target, weight, options = case.build(torch.bfloat16, DEVICE)
    leaf = x.requires_grad_()
    callers = {each.data_ptr() for each in (leaf, target, weight) if each is not None}
    saved = kept_for_backward(lambda: function(leaf, target, weight, **options))
    own = {each.untyped_storage() for each in saved if each.data_ptr() not in callers}
    groups = 1 if leaf.dim() == 1 else leaf.shape[1]
    # Four to seven sums of float64 per group, and a few tensors of the same size.
    assert sum(each.nbytes() for each in own) <= 8 * 32 * groups


@pytest.mark.parametrize("within", HALVES, ids=short)
@pytest.mark.parametrize("name", ["images", "softmax", "dice_ce"])
@pytest.mark.parametrize("half", [False, True])
def test_autocast_casts_no_input(name: str, within: torch.dtype, half: bool) -> None:
    function, case = MEMORY[name]
    x, target, weight, options = case.build(within if half else torch.float32, DEVICE)
    leaf = x.requires_grad_()
    with torch.autocast(DEVICE, dtype=within):
        assert peak(lambda: function(leaf, target, weight, **options)) <= FEW


# ---- launches --------------------------------------------------------------------------------


def launches(function: Callable[[], object]) -> list[str]:
    """The names of all kernels, copies and fills that the device runs for it."""
    function()  # compiled, allocated
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


SHAPE = (4, 8, 128, 128)
# The most launches of forward and of backward.
LAUNCHES: dict[str, tuple[Callable[..., Tensor], Case, int, int]] = {
    "one long vector": (customloss.soft_f1_loss, Case("x", (1 << 20,)), 2, 1),
    "rows": (customloss.dice_loss, Case("x", (1 << 14, 40), target=None), 2, 1),
    "images": (customloss.tversky_loss, Case("x", SHAPE, weight="pixel"), 2, 1),
    "samplewise": (
        customloss.dice_loss, Case("x", SHAPE, options={"samplewise": True, "absent": "skip"}), 2, 1
    ),
    "softmax": (customloss.soft_f1_loss, numbered("x", SHAPE), 2, 1),
    "105 classes": (customloss.soft_f1_loss, numbered("x", (2, 105, 40, 40)), 2, 1),
    "dice_ce": (customloss.dice_ce_loss, numbered("x", SHAPE), 4, 3),
    "dice_ce of 105 classes": (customloss.dice_ce_loss, numbered("x", (2, 105, 40, 40)), 4, 3),
    "dice_ce without background": (
        customloss.dice_ce_loss, numbered("x", SHAPE, options={"include_background": False}), 4, 3
    ),
    "dice_bce": (customloss.dice_bce_loss, Case("x", SHAPE), 4, 3),
    "dice_focal": (customloss.dice_focal_loss, Case("x", SHAPE, target=None), 4, 3),
}  # fmt: skip


def test_launches_are_seen() -> None:
    x = torch.ones(1000, device=DEVICE)
    seen = launches(lambda: (x + 1).mul_(2))
    if not seen:
        pytest.skip("the profiler of this machine sees no kernels; CUPTI may lack permission")
    assert len(seen) == 2


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str) -> None:
    function, case, forward, backward = LAUNCHES[name]
    x, target, weight, options = case.build(torch.float32, DEVICE)
    leaf = x.requires_grad_()
    upstream = torch.tensor(0.5, device=DEVICE)
    if not launches(lambda: x.detach() + 1):
        pytest.skip("the profiler of this machine sees no kernels; CUPTI may lack permission")

    def evaluate() -> Tensor:
        with torch.no_grad():
            return function(x.detach(), target, weight, **options)

    def record() -> Tensor:
        return function(leaf, target, weight, **options)

    for run in (evaluate, record):
        seen = launches(run)
        assert 1 <= len(seen) <= forward, seen
    loss = record()
    seen = launches(lambda: torch.autograd.grad(loss, leaf, upstream, retain_graph=True))
    assert 1 <= len(seen) <= backward, seen


# ---- a process group -------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A group of this process only."""
    if not (dist.is_available() and dist.is_backend_available(gpu.COMMUNICATION)):
        pytest.skip(f"this torch has no {gpu.COMMUNICATION}")
    with gpu.process_group(0, 1, f"file://{tmp_path}/store"):
        yield dist.group.WORLD


@pytest.mark.distributed
def test_a_group_of_one_rank(alone: Any) -> None:
    sample = numbered("x", (3, 5, 9, 7), weight="pixel").build(torch.float64, DEVICE)
    for function in (customloss.soft_f1_loss, customloss.dice_ce_loss, customloss.mcc_loss):
        if function is customloss.mcc_loss:
            sample = Case("x", (3, 5, 9, 7), weight="pixel").build(torch.float64, DEVICE)
        expected, gradients = differentiated(function, sample)
        more = {**sample.options, "process_group": alone}
        loss, found = differentiated(function, sample._replace(options=more))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(found, gradients)


@pytest.mark.distributed
def test_the_collective(alone: Any) -> None:
    """A group of one rank skips the collective of larger groups, so it is called directly."""
    x = torch.rand(4, 1, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    total = distributed._GlobalSums.apply(x, alone, 1)
    assert same_bits(total, x)
    (gradient,) = torch.autograd.grad(total, x, x.detach())
    assert same_bits(gradient, x)


@pytest.mark.distributed
def test_dtensors(alone: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = dist.init_device_mesh(DEVICE, (1,))
    for function, case, placed in (
        (customloss.soft_f1_loss, Case("x", (3, 5, 9, 7)), Shard(1)),
        (customloss.dice_ce_loss, numbered("x", (3, 5, 9, 7)), Shard(0)),
        (customloss.dice_ce_loss, numbered("x", (3, 5, 9, 7)), Replicate()),
    ):
        x, target, _, options = case.build(torch.float64, DEVICE)
        leaf = x.detach().requires_grad_()
        expected = function(leaf, target, **options)
        (wanted,) = torch.autograd.grad(expected, leaf)
        cut, beside = (distribute_tensor(each, mesh, [placed]) for each in (x, target))
        loss = function(cut.requires_grad_(), beside, **options)
        loss.backward()
        torch.testing.assert_close(loss.full_tensor(), expected)
        torch.testing.assert_close(cut.grad.full_tensor(), wanted)


def halves() -> None:
    """Each of two GPUs has half of the batch, and the loss is that of the whole."""
    rank = dist.get_rank()
    sample = numbered("x", (4, 5, 9, 7)).build(torch.float64, DEVICE)
    expected, (wanted, *_) = differentiated(customloss.dice_ce_loss, sample)
    part = slice(2 * rank, 2 * rank + 2)
    options = {**sample.options, "process_group": dist.group.WORLD}
    own = sample._replace(input=sample.input[part], target=sample.target[part], options=options)
    loss, (gradient, *_) = differentiated(customloss.dice_ce_loss, own)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, 2 * wanted[part])


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: there is no second rank")
def test_two_ranks() -> None:
    gpu.run_ranks(2, halves)
