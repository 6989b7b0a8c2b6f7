"""torch.compile and torch.export make one graph for all shapes, with the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import cases
import pytest
import torch
from cases import OPTIONS, Case, Sample
from judge import differentiated, soft_f1
from measured import allocated
from selection import covering
from torch import Tensor, nn

import customloss

# This backend starts no C++ compiler, as inductor does, so it takes milliseconds.
EAGER = "aot_eager"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    # Caches on disk know operators by name only, so changed schemas need another key.
    schemas = sorted(
        map(str, torch._C._jit_get_schemas_for_operator("customloss::confusion_score"))
    )
    with torch.compiler.config.patch(cache_key_tag="".join(schemas)):
        yield
    torch._dynamo.reset()


def assert_same(compiled: Any, eager: Any, sample: Sample) -> None:
    """Both run the same kernels, so the bits have to be equal."""
    loss, gradients = differentiated(compiled, sample)
    expected_loss, expected = differentiated(eager, sample)
    assert torch.equal(loss, expected_loss)
    assert loss.stride() == expected_loss.stride()
    for own, wanted in zip(gradients, expected, strict=True):
        assert torch.equal(own, wanted)
        assert own.dtype == wanted.dtype


@pytest.mark.parametrize("case", [c for c in cases.FEW if c.name != "empty"], ids=str)
def test_fullgraph(case: Case) -> None:
    for function in (soft_f1, customloss.soft_f1_loss):
        compiled = torch.compile(function, fullgraph=True, backend=EAGER)
        assert_same(compiled, function, case.build())


@pytest.mark.parametrize("option", ["none", "samplewise_groups", "focal2", "skip", "probabilities"])
def test_options(option: str) -> None:
    case = Case("x", (6, 4), target=None, weight="class", options=OPTIONS[option])
    compiled = torch.compile(customloss.soft_f1_loss, fullgraph=True, backend=EAGER)
    assert_same(compiled, customloss.soft_f1_loss, case.build())


@pytest.mark.parametrize("dtype", cases.INPUT_DTYPES, ids=cases.short)
def test_dtypes(dtype: torch.dtype) -> None:
    compiled = torch.compile(soft_f1, fullgraph=True, backend=EAGER)
    assert_same(compiled, soft_f1, Case("x", (6, 4), target=None, weight="full").build(dtype))


def sized(*shape: int, **more: Any) -> Sample:
    return Case("x", shape, target=None, weight="class", **more).build()


@covering
@pytest.mark.parametrize(
    "shapes",
    [((6, 4), (9, 4), (9, 7)), ((2, 3, 4, 5), (3, 5, 6, 4), (7, 3, 9, 9)), ((10,), (1025,))],
    ids=["rows", "images", "vectors"],
)
@pytest.mark.parametrize("option", ["default", "samplewise_groups", "micro"])
def test_dynamic_shapes_compile_once(option: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    compiled = torch.compile(soft_f1, fullgraph=True, dynamic=True, backend=EAGER)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in shapes:
            assert_same(compiled, soft_f1, sized(*shape, options=OPTIONS[option]))


def test_a_second_value_of_an_option_recompiles_and_is_right() -> None:
    compiled = torch.compile(customloss.soft_f1_loss, fullgraph=True, backend=EAGER)
    for beta in (1.0, 2.0, 0.5):
        case = Case("x", (6, 4), options={"beta": beta})
        assert_same(compiled, customloss.soft_f1_loss, case.build())


def test_the_module_compiles() -> None:
    module = customloss.SoftF1Loss(beta=2.0, average="none", reduction="none")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=EAGER)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((6, 4), (9, 4), (9, 7)):
            assert_same(compiled, module, sized(*shape))


def test_confusion_sums_compile() -> None:
    def loss(*operands: Tensor) -> Tensor:
        tp, fp, fn, _ = customloss.confusion_sums(*operands)
        return (1 - 2 * tp / (2 * tp + fp + fn)).mean()

    sample = Case("x", (6, 4), target=None).build()
    own, gradients = differentiated(torch.compile(loss, fullgraph=True, backend=EAGER), sample)
    expected, wanted = differentiated(loss, sample)
    torch.testing.assert_close(own, expected)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's, at its first import
def test_inductor_end_to_end() -> None:
    """A layer, the loss and its gradient, with the default compiler."""
    torch.manual_seed(1)
    layer = nn.Linear(8, 4)
    x, target = torch.randn(32, 8), torch.rand(32, 4) < 0.4

    def step(x: Tensor, target: Tensor) -> Tensor:
        return customloss.soft_f1_loss(layer(x).mul(2), target)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (32, 20):
            found = []
            for function in (step, compiled):
                layer.zero_grad()
                loss = function(x[:rows].clone(), target[:rows].clone())
                loss.backward()
                found.append((loss.detach(), layer.weight.grad.clone()))
            torch.testing.assert_close(found[0], found[1])


def test_the_graph_holds_the_operator_and_not_its_parts() -> None:
    """The graph has our operator, and no tensor operation on the whole input."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(soft_f1, fullgraph=True, backend=backend)(*sized(6, 4).operands)
    assert len(seen) == 1
    assert "soft_f1" in seen[0]


def test_export_keeps_one_node() -> None:
    class Loss(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return soft_f1(input, target, beta=2.0)

    sample = Case("x", (6, 4), target=None).build()
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        Loss(), (sample.input, sample.target), dynamic_shapes=({0: rows}, {0: rows})
    )
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [name for name in called if "customloss" in name] == ["customloss.soft_f1.default"]
    larger = Case("y", (11, 4), target=None).build()
    own = program.module()(larger.input, larger.target)
    assert torch.equal(own, soft_f1(larger.input, larger.target, beta=2.0))


# ---- a whole training step ---------------------------------------------------------------------

INDUCTOR = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, at its first import


class Step(nn.Module):
    """A model from images to the loss of their pixels."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1))
        self.criterion = customloss.SoftF1Loss(activation=activation)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.model(x), target)


def labelled(activation: str, samples: int, side: int, classes: int = 4) -> Tensor:
    if activation == "softmax":
        return torch.randint(0, classes, (samples, side, side))
    return torch.rand(samples, classes, side, side) < 0.4


@INDUCTOR
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_training_step_is_one_graph_for_all_batch_sizes(activation: str) -> None:
    step = Step(activation)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (5, 3):
            x, target = torch.randn(samples, 3, 8, 8), labelled(activation, samples, 8)
            found = []
            for function in (step, compiled):
                step.zero_grad()
                loss = function(x, target)
                loss.backward()
                found.append([loss.detach(), *(each.grad.clone() for each in step.parameters())])
            torch.testing.assert_close(found[0], found[1])


@covering
@INDUCTOR
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_inductor_makes_no_copies(format: torch.memory_format, activation: str) -> None:
    """Channels_last inputs and slices are not copied either, as in eager code."""

    def loss(x: Tensor, target: Tensor) -> Tensor:
        cut = x[..., 1:, ::2], target[..., 1:, ::2]
        return sum(
            customloss.soft_f1_loss(*operands, activation=activation)
            for operands in ((x, target), cut)
        )

    x = torch.randn(2, 4, 60, 70).to(memory_format=format)
    target = torch.randint(0, 4, (2, 60, 70))
    if activation == "sigmoid":
        target = (torch.rand_like(x) < 0.4).to(memory_format=format)
    compiled = torch.compile(loss, fullgraph=True)
    compiled(x, target)
    eager, own = (sum(allocated(lambda f=f: f(x, target))) for f in (loss, compiled))
    few = 4096  # room for sums and losses
    assert own <= eager + few
    if activation == "sigmoid":
        assert own <= few
    x.requires_grad_()
    compiled(x, target)
    kept = compiled(x, target)
    backward = sum(allocated(lambda: torch.autograd.grad(kept, x)))
    # the gradients of both views, and of x
    assert backward <= 3 * x.numel() * x.element_size() + few


@INDUCTOR
@pytest.mark.slow
def test_a_compiled_step_is_not_slower() -> None:
    """A compiled step is compared with eager code, and with the loss outside a compiled model."""
    layers = (nn.Linear(16, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh())
    model = nn.Sequential(*layers, nn.LayerNorm(64), nn.Linear(64, 8))
    x, target = torch.randn(16384, 16), torch.rand(16384, 8) < 0.4
    inner = torch.compile(model, fullgraph=True)

    def step(x: Tensor, target: Tensor) -> Tensor:
        return customloss.soft_f1_loss(model(x), target)

    def apart(x: Tensor, target: Tensor) -> Tensor:
        return customloss.soft_f1_loss(inner(x), target)

    def seconds(function: Any) -> float:
        begin = perf_counter()
        function(x, target).backward()
        return perf_counter() - begin

    torch.set_num_threads(1)
    functions = (torch.compile(step, fullgraph=True), step, apart)
    for function in functions:
        seconds(function)
    rounds = [[seconds(function) for function in functions] for _ in range(25)]
    own, *others = (min(each) for each in zip(*rounds))
    assert own <= 1.1 * max(others), (own, others)


SIZED = {
    "softmax": {"score": "dice", "activation": "softmax", "cross_entropy_weight": 1.0},
    "sigmoid": {"score": "mcc", "cross_entropy_weight": 0.5, "focal_weight": 2.0},
    "alone": {"score": None, "score_weight": 0.0, "focal_weight": 1.0},
    "samples": {
        "score": "dice", "cross_entropy_weight": 1.0, "samplewise": True, "reduction": "none",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIZED)
def test_the_number_of_elements_stays_a_symbol(name: str) -> None:
    """``mean_all`` divides by it: one graph for all sizes, and no size in a program."""
    criterion = customloss.CompoundLoss(**SIZED[name], pointwise_reduction="mean_all")
    compiled = torch.compile(criterion, fullgraph=True, dynamic=True, backend=EAGER)

    def batch(samples: int, height: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(samples, 4, height, 7, dtype=torch.float64).requires_grad_()
        return x, torch.randint(0, 4, (samples, height, 7))

    program = None
    for samples, height in ((3, 8), (2, 11), (5, 9)):
        x, target = batch(samples, height)
        if program is None:
            n, h = torch.export.Dim("n", min=2, max=64), torch.export.Dim("h", min=2, max=64)
            shapes = ({0: n, 2: h}, {0: n, 1: h})
            program = torch.export.export(criterion, (x, target), dynamic_shapes=shapes).module()
        expected = criterion(x, target)
        (gradient,) = torch.autograd.grad(expected.sum(), x)
        for other in (compiled, program):
            with torch._dynamo.config.patch(error_on_recompile=True):
                loss = other(x, target)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(torch.autograd.grad(loss.sum(), x)[0], gradient)
