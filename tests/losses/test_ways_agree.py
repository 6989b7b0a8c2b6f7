"""A loss takes the fused or the composed route as it should, and both give the same loss.

"At once" means by ``sums_score``. It serves a ratio with class options or with a pointwise loss
(both are the operator ``compound``), and a ratio over ranks or micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from functorch.compile import make_boxed_func
from selection import covering
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import customloss
from customloss import scores
from customloss.losses import classes
from customloss.losses import route as routes
from customloss.losses.route import Route

F64 = torch.float64
K = 4
LIST = [0.5, 2.0, 0.0, 1.5]
V = torch.tensor(LIST)
BACKGROUND: dict[str, Any] = {"include_background": False}
# Ratios of the sums, without and with a pointwise loss.
RATIOS = ("soft_f1", "dice", "jaccard", "tversky", "focal_tversky", "sigmoid_f1", "any")
COMPOUNDS = ("dice_ce", "dice_bce", "dice_focal", "tversky_ce")
OWN: dict[str, dict[str, Any]] = {
    "soft_f1": {"beta": 2.0}, "jaccard": {"smooth": 1.0},
    "tversky": {"fp_weight": 0.3, "fn_weight": 0.7},
    "dice_ce": {"label_smoothing": 0.1, "ce_weight": 0.3}, "dice_bce": {"pos_weight": 2.5},
    "dice_focal": {"focal_gamma": 1.5, "dice_weight": 0.4}, "tversky_ce": {"fn_weight": 0.8},
}  # fmt: skip


def pixels(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, class numbers and soft labels (both lack a class in the second sample), weights."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, K, 6, generator=generator).to(dtype)
    y = torch.randint(0, K, (3, 6), generator=generator)
    y[1][y[1] == 3] = 0
    t = torch.rand(3, K, 6, generator=generator).to(dtype)
    t[1, 3] = 0
    w = torch.rand(3, 1, 6, generator=generator).to(dtype)
    return x, y, t, w


# ---- operators that are called -------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Records the operators that compute: no views, and not the 1 that a gradient starts from."""

    NONE = ("aten.unsqueeze", "aten.lift_fresh", "aten.expand", "aten.detach", "aten.ones_like")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        self.names += [] if name in self.NONE else [name]
        return func(*args, **(kwargs or {}))


def called(step: Callable[[], Tensor], *wanted: Tensor) -> tuple[list[str], list[str]]:
    """The operators that a step calls, forward and backward, after a first step."""
    step()
    # Under a dispatch mode no tensors of options are kept, but they are in a training step.
    with patch.object(classes, "ordinary_tensors", lambda device: True):
        with Calls() as forward:
            loss = step()
        with Calls() as backward:
            torch.autograd.grad(loss, wanted)
    return forward.names, backward.names


FORWARD, BACKWARD = (
    ["customloss.confusion", "customloss.sums_score"],
    ["customloss.confusion_backward"],
)
STEPS: dict[str, tuple[customloss.DiceLoss, list[str]]] = {
    "dice_ce": (customloss.DiceCELoss(), []),
    "dice_focal": (customloss.DiceFocalLoss(), []),
    "tversky_ce": (customloss.TverskyCELoss(link="log"), []),
    "dice_bce": (customloss.DiceBCELoss(pos_weight=2.0, average="micro"), []),
    "soft_f1 of weighted classes": (customloss.SoftF1Loss(class_weight=LIST), ["aten.where"]),
    "soft_f1 without background": (customloss.SoftF1Loss(**BACKGROUND), []),
    "some classes": (customloss.DiceCELoss(classes=(3, 0), average="weighted"), []),
    "a tensor of weights": (
        customloss.DiceCELoss(class_weight=V, **BACKGROUND), ["aten._to_copy", "aten.where"],
    ),
    "samples": (customloss.DiceCELoss(samplewise=True, absent="skip", **BACKGROUND), []),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_pass_and_a_score_and_a_pass(name: str) -> None:
    criterion, more = STEPS[name]
    x, y, _, _ = pixels()
    x.requires_grad_()
    forward, backward = called(lambda: criterion(x, y), x)
    assert forward == [*more, *FORWARD]
    assert backward == BACKWARD


COMPOSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # the loss, options that are composed, and options for the same loss at once
    "learned weights": ("dice_ce", {"class_weight": V.clone().requires_grad_()},
                        {"class_weight": V}),
    "weights of positives": ("dice_bce", {"pos_weight": [2.0] * K}, {"pos_weight": 2.0}),
    "a tensor of positives": ("dice_bce", {"pos_weight": torch.tensor(2.0)}, {"pos_weight": 2.0}),
    "kept classes": ("dice", {"average": "none", "class_weight": V}, {"class_weight": V}),
    "pooled classes": ("dice_ce", {"average": "micro", "class_weight": [3.0] * K},
                       {"average": "micro"}),
    "chosen and pooled": ("dice_ce", {"average": "micro", "classes": range(K)},
                          {"average": "micro"}),
    "a link of its own": ("dice_ce", {"link": "log_power", "gamma": 1.0}, {"link": "log"}),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_what_is_composed_is_the_same(name: str) -> None:
    loss, composed, at_once = COMPOSED[name]
    x, y, _, _ = pixels(F64)
    x.requires_grad_()
    found = []
    for options, whether in ((composed, False), (at_once, True)):
        criterion = getattr(customloss, f"{loss}_loss")
        forward, _ = called(lambda c=criterion, o=options: c(x, y, **o), x)
        assert ("customloss.sums_score" in forward) == whether
        value = criterion(x, y, **options)
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_learned_weights_have_a_gradient() -> None:
    x, y, _, _ = pixels(F64)
    weight = (V + 0.1).to(F64).requires_grad_()
    for loss in (customloss.dice_ce_loss, customloss.soft_f1_loss):
        assert torch.autograd.gradcheck(lambda v, f=loss: f(x, y, class_weight=v), weight)


# ---- both ways are one loss ----------------------------------------------------------------------


@contextmanager
def way(at_once: bool) -> Iterator[None]:
    """Forces one of the two routes, and checks that the loss has both."""
    true_route, taken = routes.route, []

    def answer(*call: Any) -> Route:
        taken.append(true_route(*call))
        return taken[-1] if at_once else Route.COMPOSED

    with patch.object(routes, "route", answer):
        yield
    assert taken and Route.COMPOSED not in taken, "this loss has only one route"


CHOICES: tuple[dict[str, Any], ...] = (
    {}, {"class_weight": V}, BACKGROUND, {"classes": (3, 1)},
    {"class_weight": LIST, "classes": (2, 0, 1)},
)  # fmt: skip
AVERAGES: tuple[dict[str, Any], ...] = (
    {}, {"samplewise": True}, {"samplewise": True, "reduction": "none", "absent": "penalize"},
    {"average": "weighted", "absent": "skip"}, {"reduction": "sum", "absent": "penalize"},
    {"average": "weighted", "samplewise": True, "reduction": "sum"},
    {"samplewise": True, "absent": "skip"},
)  # fmt: skip
ROUNDING = {F64: 1e-12, torch.float32: 5e-7, torch.bfloat16: 2**-7}


def gradients(criterion: nn.Module, operands: Any, at_once: bool) -> list[Tensor]:
    """The loss, and its gradients by all floating operands for an incoming gradient."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in operands]
    with way(at_once):
        loss = criterion(*leaves)
    above = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted, above)]


@covering
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", RATIOS + COMPOUNDS)
def test_both_ways_are_one_loss(name: str, dtype: torch.dtype) -> None:
    """Loss and gradients by input, soft labels and weights agree; some cases have class numbers."""
    x, y, t, w = pixels(dtype)
    x = x.sigmoid() if name == "any" else x
    for number, (choice, average) in enumerate(itertools.product(CHOICES, AVERAGES)):
        if name in RATIOS and not choice:
            continue  # this is a single operator, with no composed twin here
        options = {**OWN.get(name, {}), **choice, **average}
        criterion = customloss.loss(name, check_target=False, **options)
        for operands in ((x, t, w), (x, y))[: 1 + number % 2]:
            found, expected = (gradients(criterion, operands, each) for each in (True, False))
            for own, wanted in zip(found, expected, strict=True):
                assert own.dtype == wanted.dtype and own.isfinite().all()
                rounding = ROUNDING[own.dtype]
                least = min(rounding, 1e-6) * float(wanted.abs().max())
                torch.testing.assert_close(
                    own, wanted, rtol=rounding, atol=least,
                    msg=lambda text, options=options: f"{options}: {text}",
                )  # fmt: skip


@pytest.mark.parametrize("link", ["log", "focal", "negative"])
@pytest.mark.parametrize("name", ["dice", "tversky", *COMPOUNDS])
def test_both_ways_of_every_link(name: str, link: str) -> None:
    x, y, t, w = pixels(F64)
    gamma = {"gamma": 1.5} if link == "focal" else {}
    for options, operands in itertools.product(
        ({"class_weight": V, "average": "weighted"}, {**BACKGROUND, "samplewise": True}),
        ((x, t, w), (x, y), (x[:, 0, 0], t[:, 0, 0])),
    ):
        if operands[0].dim() == 1:
            options = {"class_weight": [2.0]}  # a vector has one class
        softmax = operands[0].dim() > 1 and name in ("dice_ce", "tversky_ce")
        activation = "softmax" if softmax else "sigmoid"
        options = {"link": link, "activation": activation, **gamma, **options}
        criterion = customloss.loss(name, check_target=False, **options)
        pair = [gradients(criterion, operands, at_once) for at_once in (True, False)]
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-14)


def test_second_derivatives_of_both_ways() -> None:
    x, _, t, w = pixels(F64)
    for name, options in (("dice_ce", {"class_weight": V}), ("soft_f1", BACKGROUND)):
        found = []
        for at_once in (True, False):
            leaves = [each.clone().requires_grad_() for each in (x, t, w)]
            with way(at_once):
                loss = customloss.loss(name, check_target=False, **options)(*leaves)
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            total = sum((each.sin() * each).sum() for each in first)
            found.append(torch.autograd.grad(total, leaves))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


def test_nothing_counts() -> None:
    """With class weights of 0, or without samples, the loss and its gradient are 0."""
    x, y, _, _ = pixels()
    x.requires_grad_()
    for name in ("dice", *COMPOUNDS):
        with pytest.warns(
            UserWarning, match="^target: .* every element belongs to a class of weight 0"
        ):
            loss = customloss.loss(name, class_weight=[0.0] * K)(x, y)
        assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()
        assert customloss.loss(name, **BACKGROUND)(x[:0], y[:0]) == 0


# ---- tensors made of options are kept between steps ----------------------------------------------


def step(x: Tensor, y: Tensor) -> Tensor:
    return customloss.dice_ce_loss(x, y, class_weight=LIST, **BACKGROUND)


def in_forward_mode(x: Tensor, y: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        step(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), y)


def within(context: Callable[[], Any]) -> Callable[[Tensor, Tensor], None]:
    def first(x: Tensor, y: Tensor) -> None:
        with context():
            step(x, y)

    return first


def of_fakes(inside: bool) -> Callable[[Tensor, Tensor], None]:
    def first(x: Tensor, y: Tensor) -> None:
        mode = FakeTensorMode()
        fake = mode.from_tensor(x), mode.from_tensor(y)
        with mode if inside else nullcontext():
            assert customloss.dice_ce_loss(*fake, **BACKGROUND).shape == ()

    return first


FIRST: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "inference mode": within(torch.inference_mode),
    "no grad": within(torch.no_grad),
    "a dispatch mode": within(Calls),
    "another default device": within(lambda: torch.device("meta")),
    "fake tensors": of_fakes(inside=True),
    "fake tensors outside of their mode": of_fakes(inside=False),
    "meta tensors": lambda x, y: step(x.to("meta"), y.to("meta")),
    "grad": lambda x, y: torch.func.grad(step)(x, y),
    "vmap": lambda x, y: torch.vmap(step)(x[:, None], y[:, None]),
    "jvp": lambda x, y: torch.func.jvp(lambda x: step(x, y), (x,), (x,)),
    "hessian": lambda x, y: torch.func.hessian(lambda x: step(x, y))(x),
    "forward mode": in_forward_mode,
    "compiled": lambda x, y: torch.compile(step, fullgraph=True, backend="aot_eager")(x, y),
    "traced": lambda x, y: make_fx(step, tracing_mode="fake")(x, y),
}


@pytest.mark.parametrize("name", FIRST)
def test_no_first_call_spoils_what_is_kept(name: str) -> None:
    x, y, _, _ = pixels()
    torch._dynamo.reset()
    with way(False):
        leaf = x.clone().requires_grad_()
        expected = step(leaf, y)
        (by_x,) = torch.autograd.grad(expected, leaf)
    classes._chosen.forget()
    classes.numbers.forget()
    FIRST[name](x, y)
    model = nn.Conv1d(K, K, 1)
    with torch.no_grad():
        model.weight.copy_(torch.eye(K)[..., None])
        model.bias.zero_()
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        loss = step(model(leaf), y)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(leaf.grad, by_x)
    table = classes._chosen(x, (((1, K),), None), K, F64)
    assert table.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    numbers = classes.numbers(x, tuple(LIST), F64)
    assert numbers.tolist() == LIST
    for kept in (table, numbers):
        assert type(kept) is Tensor and not kept.is_inference() and not kept.requires_grad
    assert classes._chosen(x, (((1, K),), None), K, F64) is table


def test_transforms_of_a_model() -> None:
    """Gradients per sample, by vmap over the class weights too."""
    x, y, _, _ = pixels(F64)
    model = nn.Conv1d(K, K, 1, dtype=F64)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (x[None],))
        return customloss.dice_ce_loss(logits, y[None], class_weight=v, **BACKGROUND)

    many = torch.stack([V.to(F64), V.to(F64) + 1, 2 * V.to(F64) + 0.5])
    found = torch.vmap(torch.func.grad(loss), (None, 0, 0, 0))(parameters, x, y, many)
    for i in range(3):
        model.zero_grad()
        loss(parameters, x[i], y[i], many[i]).backward()
        torch.testing.assert_close(found["weight"][i], model.weight.grad)


# ---- compiled and exported -----------------------------------------------------------------------

COMPILED: dict[str, dict[str, Any]] = {
    "without background": BACKGROUND,
    "weights": {"class_weight": V},
    "both": {"class_weight": V, "samplewise": True, "reduction": "none", **BACKGROUND},
}


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def after(graph: torch.fx.Graph, name: str) -> list[str]:
    """The operators that depend on the result of this operator, in order."""
    (source,) = (node for node in graph.nodes if str(node.target).startswith(name))
    found, seen = [], {source}
    for node in graph.nodes:
        if node.op != "output" and seen.intersection(node.all_input_nodes):
            seen.add(node)
            found.append(str(node.target))
    return found


def names_of(calls: list[str]) -> list[str]:
    """Operators that compute: none that unpacks a tuple, asserts, or converts to the same dtype."""
    kept = [name for name in calls if "getitem" not in name and "_assert_" not in name]
    return [".".join(name.split(".")[:2]) for name in kept if name not in ("to", "aten.to.dtype")]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", COMPILED)
def test_between_the_sums_and_the_loss_is_one_node(name: str) -> None:
    """One graph serves all batch sizes, and has one node between the passes."""
    graphs: list[torch.fx.Graph] = []
    passes: list[torch.fx.Graph] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        passes.append(module.graph)
        return make_boxed_func(module.forward)

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(module.graph)
        return aot_autograd(fw_compiler=keep)(module, inputs)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return customloss.dice_ce_loss(x, y, **COMPILED[name])

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    x, y, _, _ = pixels()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (3, 3, 2):
            pair = []
            for function in (loss, compiled):
                leaf = x[:samples].clone().requires_grad_()
                value = function(leaf, y[:samples].clone())
                pair.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
            torch.testing.assert_close(*pair, rtol=0, atol=0)
    # Dynamo may trace twice; an attempt that it gives up is not compiled to passes.
    forward, backward = passes
    assert not names_of(after(graphs[-1], "customloss.compound"))
    assert names_of(after(forward, "customloss.confusion")) == ["customloss.sums_score"]
    calls = names_of([str(n.target) for n in backward.nodes if n.op == "call_function"])
    assert calls == BACKWARD


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_exported(name: str) -> None:
    x, y, _, _ = pixels()

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = customloss.DiceCELoss(**COMPILED[name])

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.criterion(x, y)

    module = Scored()
    program = torch.export.export(module, (x, y))
    assert not names_of(after(program.graph, "customloss.compound"))
    torch.testing.assert_close(program.module()(x, y), module(x, y), rtol=0, atol=0)
    program = program.run_decompositions()
    assert names_of(after(program.graph, "customloss.confusion")) == ["customloss.sums_score"]
    torch.testing.assert_close(program.module()(x, y), module(x, y), rtol=0, atol=0)


# ---- parts of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "options", [BACKGROUND, {"class_weight": V, "average": "weighted"}, {"link": "log"}], ids=str
)
def test_micro_batches(options: dict[str, Any], count: int) -> None:
    """Micro-batches, scored at once, have the loss and the gradients of the whole batch."""
    x, y, _, w = pixels(F64)
    criterion = customloss.DiceCELoss(**options)
    whole, parts = x.clone().requires_grad_(), x.clone().requires_grad_()
    with way(True):
        expected = criterion(whole, y, w)
    expected.backward()
    cut = list(zip(*(each.chunk(count) for each in (parts, y, w)), strict=True))
    with way(True), customloss.accumulate(criterion) as batch:
        for part in cut:
            batch.add(*part)
        for part in cut:
            loss = batch.loss(*part)
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
            loss.backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-11, atol=1e-15)


def test_a_score_of_yours_is_composed() -> None:
    """A user's score is composed, and equals the package's loss, which is not composed."""
    x, y, _, _ = pixels(F64)
    x.requires_grad_()
    options: dict[str, Any] = {"activation": "softmax", "class_weight": V}
    own = customloss.compound_loss(scores.dice, x, y, cross_entropy_weight=1.0, **options)
    expected = customloss.dice_ce_loss(x, y, class_weight=V)
    torch.testing.assert_close(own, expected, rtol=1e-13, atol=0)
    pair = [torch.autograd.grad(each, x)[0] for each in (own, expected)]
    torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-14)
