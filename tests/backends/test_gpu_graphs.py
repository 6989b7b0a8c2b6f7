"""On a GPU a step can be captured as a CUDA graph, by hand and by torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import gpu
import pytest
import torch
from gpu import DEVICE, same_bits
from torch import Tensor, nn

import customloss

pytestmark = gpu.MARKS

CLASSES = 4
WEIGHT = (0.5, 2.0, 0.0, 1.5)
SOFTMAX = {"activation": "softmax"}
# Usual losses: fused, compound, with class options, composed; class numbers and dense targets.
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "soft_f1": customloss.SoftF1Loss,
    "soft_f1 of a softmax": lambda: customloss.SoftF1Loss(**SOFTMAX),
    "samplewise": lambda: customloss.DiceLoss(samplewise=True, absent="skip"),
    "without background": lambda: customloss.DiceLoss(include_background=False, **SOFTMAX),
    "dice_ce": customloss.DiceCELoss,
    "dice_ce without background": lambda: customloss.DiceCELoss(include_background=False),
    "dice_ce by class": lambda: customloss.DiceCELoss(class_weight=WEIGHT, label_smoothing=0.1),
    "dice_bce": lambda: customloss.DiceBCELoss(pos_weight=3.0),
    "dice_focal": customloss.DiceFocalLoss,
    "mcc": customloss.MCCLoss,
}


@pytest.fixture(params=gpu.BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with gpu.backend(request.param):
        yield


def criterion_of(name: str) -> Any:
    return CRITERIA[name]().to(DEVICE)


def batch(criterion: Any, seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Logits and their target; in every second batch a class is absent."""
    generator = torch.Generator().manual_seed(seed)
    samples, *places = shape
    x = 2 * torch.randn(samples, CLASSES, *places, generator=generator)
    numbers = torch.randint(seed % 2, CLASSES, (samples, *places), generator=generator)
    if criterion.activation == "softmax":
        return x.to(DEVICE), numbers.to(DEVICE)
    dense = nn.functional.one_hot(numbers, CLASSES).movedim(-1, 1) > 0
    return x.to(DEVICE), dense.to(DEVICE)


# ---- captured by hand ------------------------------------------------------------------------


class Captured:
    """A function captured as a CUDA graph; a call copies new values into the captured tensors."""

    def __init__(self, function: Callable[..., list[Tensor]], *places: Tensor) -> None:
        self.places = places
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*places)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function(*places)

    def __call__(self, *values: Tensor) -> list[Tensor]:
        with torch.no_grad():
            for place, value in zip(self.places, values, strict=True):
                place.copy_(value)
        self.graph.replay()
        return [each.clone() for each in self.results]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_replay_has_the_bits_of_eager_code(name: str) -> None:
    criterion = criterion_of(name)

    def step(x: Tensor, target: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        loss = criterion(leaf, target)
        return [loss.detach(), *torch.autograd.grad(loss, leaf)]

    captured = Captured(step, *batch(criterion, 0, 3, 33, 31))
    seen = []
    for seed in (1, 2, 3):
        given = batch(criterion, seed, 3, 33, 31)
        own, expected = captured(*given), step(*given)
        assert all(map(same_bits, own, expected))
        seen.append(float(own[0]))
    assert len(set(seen)) == 3  # the new values were read


def test_forward_alone_and_sums() -> None:
    criterion = criterion_of("dice_ce")

    def evaluate(x: Tensor, target: Tensor) -> list[Tensor]:
        with torch.no_grad():
            sums = customloss.confusion_sums(x, target, **SOFTMAX)
            return [criterion(x, target), *sums]

    captured = Captured(evaluate, *batch(criterion, 0, 5, 40))
    for seed in (1, 2):
        given = batch(criterion, seed, 5, 40)
        assert all(map(same_bits, captured(*given), evaluate(*given)))


@pytest.mark.parametrize("name", ["dice", "dice_ce"])
def test_what_is_kept_for_the_next_call_is_not_the_graphs(name: str) -> None:
    """Classes that are first chosen during a capture leave nothing of the graph in the cache.

    Eager code that chooses them next must not depend on a replay.
    """
    # No other test has as many classes, so nothing is cached for them.
    classes = (37 if gpu.insists() else 31) + (name == "dice_ce")
    x, numbers = torch.randn(50, classes), torch.randint(0, classes, (50,))
    first, second = (
        customloss.loss(name, activation="softmax", classes=range(start, classes))
        for start in (1, 2)
    )
    with customloss.backend("auto"):  # the forced one may have no CPU
        expected = second(x, numbers)
    given = x.to(DEVICE), numbers.to(DEVICE)
    with torch.no_grad():
        first(*given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = second(*given)
        torch.testing.assert_close(second(*given).cpu(), expected)
        graph.replay()
        torch.testing.assert_close(captured.cpu(), expected)
        del graph, captured
        torch.cuda.empty_cache()
        torch.testing.assert_close(second(*given).cpu(), expected)


def test_two_losses_in_one_graph() -> None:
    """Two losses in one graph share no memory."""
    one, other = criterion_of("dice_ce"), criterion_of("soft_f1 of a softmax")

    def step(x: Tensor, target: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        losses = [one(leaf, target), other(leaf, target), one(leaf.flip(0), target)]
        return [*torch.autograd.grad(sum(losses), leaf), *(each.detach() for each in losses)]

    captured = Captured(step, *batch(one, 0, 3, 33, 31))
    for seed in (1, 2):
        given = batch(one, seed, 3, 33, 31)
        assert all(map(same_bits, captured(*given), step(*given)))


class Step(nn.Module):
    """A model from features to the loss of their logits."""

    def __init__(self, criterion: nn.Module, features: int = 16) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(
            nn.Linear(features, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, CLASSES)
        )
        self.criterion = criterion

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.model(features), target)

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters()]


def features(criterion: Any, seed: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    _, target = batch(criterion, seed, rows)
    return torch.randn(rows, 16, generator=generator).to(DEVICE), target


def test_a_training_step_in_a_graph() -> None:
    """The graph has a model, its loss and ``.backward()``."""
    module = Step(criterion_of("dice_ce without background")).to(DEVICE)

    def step(x: Tensor, target: Tensor) -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        loss = module(x, target)
        loss.backward()
        return [loss.detach(), *module.gradients()]

    captured = Captured(step, *features(module.criterion, 0, 512))
    for seed in (1, 2, 3):
        given = features(module.criterion, seed, 512)
        for own, expected in zip(captured(*given), step(*given), strict=True):
            torch.testing.assert_close(own, expected)


# ---- captured by torch.compile ---------------------------------------------------------------

# Inductor warns at its first import, and about float32 products.
INDUCTOR = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:TensorFloat32 tensor cores:UserWarning",
    # torch captures an empty graph to make the memory pool of those that follow
    "ignore:The CUDA Graph is empty:UserWarning",
)


@pytest.fixture
def inductor() -> Iterator[Any]:
    """Yields inductor's counters; compiled code always takes the dispatcher's kernels."""
    if gpu.insists():
        pytest.skip("compiled code takes the dispatcher's kernels: build with CUSTOMLOSS_CUDA=0")
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    # Caches on disk know operators by name only, so changed schemas need another key.
    known = [each for each in torch._C._dispatch_get_all_op_names() if "customloss" in each]
    schemas = [torch._C._jit_get_schemas_for_operator(name.partition(".")[0]) for name in known]
    with torch.compiler.config.patch(cache_key_tag="".join(sorted(map(str, schemas)))):
        yield counters["inductor"]
    torch._dynamo.reset()


def recorded() -> int:
    """How many CUDA graphs inductor holds, for forward and backward together."""
    from torch._inductor.cudagraph_trees import get_manager

    def count(children: Any) -> int:
        return sum(1 + count(node.children) for nodes in children.values() for node in nodes)

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    return 0 if manager is None else count(manager.roots)


def milliseconds(function: Callable[[], object], steps: int = 50) -> float:
    torch.cuda.synchronize()
    begin = perf_counter()
    for _ in range(steps):
        function()
    torch.cuda.synchronize()
    return 1e3 * (perf_counter() - begin) / steps


@INDUCTOR
@pytest.mark.parametrize("name", CRITERIA)
def test_reduce_overhead(
    name: str, inductor: Any, record_property: Callable[[str, object], None]
) -> None:
    """Model and loss are one graph, captured and replayed.

    Times are printed but not judged, which is the benchmark's task.
    """
    step = Step(criterion_of(name)).to(DEVICE)
    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)

    def run(function: Any, *given: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        step.zero_grad(set_to_none=True)
        loss = function(*given)
        loss.backward()
        return [loss.detach(), *step.gradients()]

    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(6):  # a warm-up, a capture, and replays
            given = features(step.criterion, seed, 512)
            # The next replay overwrites the tensors that this one returned.
            own = [each.clone() for each in run(compiled, *given)]
            for one, other in zip(own, run(step, *given), strict=True):
                torch.testing.assert_close(one, other)
        assert inductor["cudagraph_skips"] == 0
        assert recorded() >= 2
        eager, own_time = (milliseconds(lambda f=f: run(f, *given)) for f in (step, compiled))
    record_property("eager ms", eager)
    record_property("reduce-overhead ms", own_time)
    print(f"{name}: {own_time:.3f} ms a step, eager {eager:.3f} ms: {eager / own_time:.2f}x")


@INDUCTOR
@pytest.mark.usefixtures("inductor")
@pytest.mark.parametrize("name", CRITERIA)
def test_one_compilation_for_all_batch_sizes(name: str) -> None:
    criterion = criterion_of(name)
    compiled = torch.compile(criterion, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, samples in enumerate((5, 3, 8)):
            x, target = batch(criterion, seed, samples, 9, 11)
            found = []
            for function in (criterion, compiled):
                leaf = x.clone().requires_grad_()
                loss = function(leaf, target)
                found.append([loss.detach(), *torch.autograd.grad(loss, leaf)])
            torch.testing.assert_close(found[1], found[0])
