"""Triton's kernels of elements and scores agree with the reference on Triton's interpreter.

test_triton_interpret.py runs this file in a process where ``TRITON_INTERPRET=1`` is set. The
interpreter runs one program after another on CPU tensors. It is slow, so the cases are small, and
it cannot show races.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import cases
import judge
import pytest
import torch
import triton_package
from cases import INPUT_DTYPES, OPTIONS, Case, short
from judge import assert_near, assert_right, differentiated, soft_f1
from selection import covering
from torch import Tensor

import customloss
from customloss import reference
from customloss._backends import plain
from customloss._spec.arguments import (
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
)
from customloss._spec.words import INPUT, SIGMOID, SOFTMAX, TARGET, WEIGHT
from customloss.reference import Extra

triton_package.load()

from customloss.kernels import confusion as kernels  # noqa: E402
from customloss.kernels import layout, rows, score  # noqa: E402

NAN, INF = float("nan"), float("inf")

pytestmark = [
    # numpy warns about inf - inf and 0 * inf, which a GPU computes silently
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
    # the interpreter of Triton 3.6 uses an array as an index
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]

# The interpreter truncates float32 to bfloat16, where a GPU rounds to nearest.
judge.ROUNDING[torch.bfloat16] = (2**-7, 0.0)

# The interpreter takes milliseconds for each program.
SMALL_SIZES = [case for case in cases.SIZES if torch.Size(case.shape).numel() <= 20000]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with customloss.backend("triton"):
        yield


@pytest.fixture
def long_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schedules as on large inputs: few programs with many tiles each."""
    monkeypatch.setattr(layout, "TILE", 128)
    monkeypatch.setattr(layout, "FEWEST_PROGRAMS", 3)
    monkeypatch.setattr(layout, "MOST_PROGRAMS", 3)
    layout.plan.cache_clear()
    yield
    layout.plan.cache_clear()


@pytest.fixture
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with thousands of groups, the score takes two launches, here over tiles of 4 groups."""
    monkeypatch.setattr(score, "ONE_PROGRAM", 0)
    monkeypatch.setattr(score, "GROUP_TILE", 4)
    monkeypatch.setattr(score, "LANES", 8)


# ---- against the reference -------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL_SIZES, ids=str)
def test_sizes(case: Case) -> None:
    assert_right(soft_f1, case.build(torch.float32))


@pytest.mark.parametrize("case", (*cases.MIXED_LAYOUTS, *cases.WEIGHTED), ids=str)
def test_weights_and_layouts(case: Case) -> None:
    assert_right(soft_f1, case.build(torch.float32))


@pytest.mark.parametrize("case", cases.TARGETS, ids=str)
def test_target_dtypes(case: Case) -> None:
    assert_right(soft_f1, case.build(torch.float32 if len(case.shape) == 1 else torch.float64))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_input_dtypes(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@pytest.mark.parametrize("case", cases.OPTIONED, ids=str)
def test_options(case: Case) -> None:
    assert_right(soft_f1, case.build(torch.float64))


@covering
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("option", ["micro", "none", "samplewise_groups", "samplewise_micro"])
def test_options_by_layout(option: str, layout: str) -> None:
    for shape in ((5, 4), (3, 4, 70), (2, 3, 4, 5)):
        case = Case("x", shape, layout=layout, target=None, weight="full", weight_layout=layout)
        assert_right(soft_f1, replace(case, options=OPTIONS[option]).build())


@covering
@pytest.mark.usefixtures("long_chunks")
@pytest.mark.parametrize("option", ["default", "micro", "samplewise_groups"])
@pytest.mark.parametrize(
    "case",
    [
        Case("flat", (1403,), weight="full"),
        Case("images", (5, 3, 11, 13), target=None),
        Case("even", (4, 2, 2, 128), target=torch.uint8),
        Case("rows", (67, 40), target=None, weight="class"),
        Case("last", (3, 21, 3, 17), layout="class_last", weight="last"),
        Case("gathered", (9, 2, 20, 3), layout="sliced"),
        Case("reverse", (3, 2, 70, 5), layout="transposed"),
    ],
    ids=str,
)
def test_long_chunks(case: Case, option: str) -> None:
    assert_right(soft_f1, replace(case, options=OPTIONS[option]).build())


@pytest.mark.usefixtures("many_groups")
@pytest.mark.parametrize("option", OPTIONS)
def test_many_groups(option: str) -> None:
    for shape in ((3, 2, 5), (2, 11)):
        case = Case(f"many{shape}", shape, target=torch.bool, options=OPTIONS[option])
        assert_right(soft_f1, case.build(torch.float64))


@pytest.mark.parametrize("option", ["default", "weighted", "none", "samplewise_skip", "skip"])
def test_thousands_of_groups(option: str) -> None:
    for shape in ((2, 1030), (300, 4), (1030, 1)):
        case = Case(f"thousands{shape}", shape, options=OPTIONS[option])
        assert_right(soft_f1, case.build(torch.float64))


def test_64_bit_offsets_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (*cases.MIXED_LAYOUTS, Case("flat", (1300,)), Case("images", (3, 4, 5, 70))):
        sample = case.build(torch.float32)
        expected = differentiated(soft_f1, sample)
        with monkeypatch.context() as patch:
            patch.setattr(layout, "INT32_LIMIT", 0)
            layout.plan.cache_clear()
            actual = differentiated(soft_f1, sample)
        layout.plan.cache_clear()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# ---- against the compiled kernels ------------------------------------------------------------


@pytest.mark.parametrize("option", ["default", "micro", "everything"])
def test_agrees_with_the_cpu_kernels(option: str) -> None:
    case = Case("twins", (3, 5, 9, 7), target=None, weight="full", options=OPTIONS[option])
    sample = case.build(torch.float32)
    loss, gradients = differentiated(soft_f1, sample)
    with customloss.backend("auto"):
        expected, wanted = differentiated(soft_f1, sample)
    torch.testing.assert_close(loss, expected, rtol=4e-6, atol=0)
    for own, other in zip(gradients, wanted):
        torch.testing.assert_close(own, other, rtol=4e-6, atol=float(other.abs().max()) * 4e-6)


# ---- the primitives --------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_sums(per_class: bool, per_sample: bool) -> None:
    for case in (
        Case("rows", (33, 5), target=None, weight="class"),
        Case("images", (3, 2, 9, 7), layout="class_last", weight="full"),
        Case("vector", (1100,), target=torch.int16),
        Case("empty", (0, 4)),
    ):
        if per_sample and case.name == "empty":
            continue
        sample = case.build(torch.float32)
        elements = Elements(0, 1.5, 0.25, per_sample, per_class and sample.input.dim() > 1)
        sums = kernels.confusion(Data(*sample.operands), elements)
        expected = plain.confusion(Data(*sample.as_double().operands), elements)
        assert sums.dtype == torch.float64 and sums.is_contiguous()
        assert_near(sums, expected, torch.float32)


GRADS: dict[str, Any] = {
    "none": None,
    "scalar": torch.tensor(0.7, dtype=torch.float64),
    "sample": torch.rand(3),
    "class": torch.rand(8)[::2],
    "both": torch.rand(4, 3).T,
    "expanded": torch.tensor(0.3).expand(3, 4),
}


@covering
@pytest.mark.parametrize("wrt", range(3))
@pytest.mark.parametrize("grad", GRADS)
def test_backward(grad: str, wrt: int) -> None:
    """Gradients are those of the plain backend, for every shape of the incoming gradient."""
    per_sample = grad != "class"
    per_class = grad != "sample"
    sample = Case("b", (3, 4, 5, 6), layout="class_last", target=None, weight="full").build()
    coefficients = torch.randn(
        4, 3 if per_sample else 1, 4 if per_class else 1, dtype=torch.float64
    )
    for smoothing in (0.0, 0.2):  # kernels of elements, and of pixels
        elements = Elements(0, 2.0, 0.5, per_sample, per_class, label_smoothing=smoothing)
        incoming = Incoming(GRADS[grad], coefficients)
        groups = (incoming, Data(*sample.operands), Wrt(wrt), elements)
        own = kernels.confusion_backward(*groups)
        other = plain.confusion_backward(*groups)
        assert own.dtype == other.dtype and own.stride() == other.stride()
        torch.testing.assert_close(own, other, rtol=2e-5, atol=1e-6)


def test_nothing_depends_on_uninitialised_memory() -> None:
    torch.use_deterministic_algorithms(True)  # every allocation starts as NaN
    for case in cases.FEW:
        assert_right(soft_f1, case.build(torch.float32))


def test_same_bits_every_time() -> None:
    sample = Case("again", (5, 7, 90), target=None, weight="full").build()
    expected = differentiated(soft_f1, sample)
    for _ in range(3):
        torch.testing.assert_close(differentiated(soft_f1, sample), expected, rtol=0, atol=0)


@covering
@pytest.mark.parametrize("wrt", [INPUT, TARGET])
@pytest.mark.parametrize("per_class", [False, True])
def test_a_common_part_of_the_coefficients_cancels(per_class: bool, wrt: int) -> None:
    """It cancels before anything is rounded to float32, in which 1e7 would hide the rest."""
    for classes, activation, extra in ((4, SIGMOID, 0), (4, SIGMOID, 16), (105, SOFTMAX, EVERY)):
        data = Data(*Case("common", (2, classes, 4), target=None).build().operands)
        elements = Elements(activation, 1.0, 0.0, False, per_class, extra=extra)
        shape = (len(reference.rows(extra)), 1, classes if per_class else 1)
        coefficients = torch.randn(shape, dtype=torch.float64)
        common = coefficients.clone()
        common[:4] += 1e7
        if wrt == TARGET and extra & Extra.HARD:
            hard = reference.rows(extra).index("hard_tp")
            common[hard : hard + 4] += 1e7
        own, other = (
            kernels.confusion_backward(Incoming(None, each), data, Wrt(wrt), elements)
            for each in (common, coefficients)
        )
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


# ---- from the sums to a loss -----------------------------------------------------------------

LOGS, FOCAL, EVERY = int(Extra.LOG_LOSS), int(Extra.FOCAL | Extra.SQUARES), int(sum(Extra))
# The extras that are summed, and the pointwise loss.
COMPOUNDS = {
    "score": (EVERY, Pointwise(0.7, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
    "logs": (LOGS, Pointwise(1.0, 0.5, 2.0, 0.0, 0.0, 1.0, 0.75)),
    "softmax": (LOGS, Pointwise(0.75, 0.25, 0.0, 0.0, 0.0, 1.2, -0.02)),
    "focal": (FOCAL, Pointwise(0.5, 0.0, 0.0, 1.5, 1.125, 1.0, 1.0)),
    "support": (EVERY, Pointwise(0.5, 1.0, 0.0, 0.0, 0.5, 0.25, 0.0, 1.5)),
    "undivided": (LOGS, Pointwise(0.5, 1.0, 0.5)),
    "all": (EVERY, Pointwise(1.0, 0.5, 0.25, 2.0, 1.5, 0.5, 1.5)),
    "pointwise": (EVERY, Pointwise(0.0, 0.0, 1.0, 1.0, 0.75, 1.0, 0.0)),
}


@pytest.fixture(params=["one program", "many"])
def schedule(request: pytest.FixtureRequest) -> None:
    if request.param == "many":
        request.getfixturevalue("many_groups")


def random_sums(extra: int, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Sums of groups, some without positives or negatives or empty, and weights, some of them 0."""
    sums = 9 * torch.rand(len(reference.rows(extra)), samples, classes, dtype=torch.float64)
    sums[0::2, :, 1::4], sums[1::2, :, 2::4], sums[:, : samples // 2, 3::4] = 0, 0, 0
    weight = torch.rand(2, classes, dtype=torch.float64) + 0.5
    return sums, weight * (torch.arange(classes) % 5 != torch.tensor([[1], [4]]))


def scorings(*averages: int) -> list[Scoring]:
    """All combinations of average, reduction and absent, with the links in turn."""
    ways = enumerate(product(averages or (0, 1), range(3), range(3)))
    # some groups are below the floor; the interpreter rounds these numbers to float32
    numbers = (2.0, 1.0, 0.5, 0.25, 0.5, 1.5, 0.1875)
    return [Scoring(*numbers, i % 4, absent, *way) for i, (*way, absent) in ways]


def assert_sums_score(
    group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
) -> tuple[Tensor, Tensor]:
    """Loss and coefficients are those of the reference, and the sums are not changed."""
    sums = group_sums.sums
    before = sums.nan_to_num()
    loss, coefficients = score.sums_score(group_sums, scoring, pointwise)
    expected, wanted = plain.sums_score(group_sums, scoring, pointwise)
    assert torch.equal(sums.nan_to_num(), before) and coefficients.stride() == sums.stride()
    rtol = 1e-12 if loss.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-14)
    torch.testing.assert_close(coefficients, wanted, rtol=1e-11, atol=1e-14)
    return loss, coefficients


def test_rows_are_those_of_the_reference() -> None:
    for extra in range(2 * max(Extra)):
        names = reference.rows(extra)
        assert rows.rows_of(extra) == len(names)
        for one in Extra:
            if extra & one:
                assert names[rows.row_of(extra, int(one))] == reference.EXTRA_ROWS[one][0]


@covering
@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("name", COMPOUNDS)
def test_sums_score(name: str) -> None:
    extra, pointwise = COMPOUNDS[name]
    ways = product(((1, 9), (17, 2), (3, 9)), (False, True))
    for turn, ((samples, classes), weighted) in enumerate(ways, len(name)):
        sums, weight = random_sums(extra, samples, classes)
        # The step of 5 is no multiple of 3, so every absent meets every reduction in some turn.
        group_sums = GroupSums(sums, weight if weighted else None, extra, samples > 1, True)
        for scoring in scorings()[turn % 5 :: 5]:
            assert_sums_score(group_sums, scoring, pointwise)


@pytest.mark.parametrize(
    "shape", [(1, 1030), (300, 4), (2, 1030), (1030, 1), (0, 4), (3, 0), (1, 0)], ids=str
)
def test_sums_score_of_thousands_of_groups_and_of_none(shape: tuple[int, int]) -> None:
    extra, pointwise = COMPOUNDS["all"]
    torch.use_deterministic_algorithms(True)  # every allocation starts as NaN
    for scoring in scorings()[::4]:
        sums, weight = random_sums(extra, *shape)
        assert_sums_score(GroupSums(sums, weight, extra, shape[0] != 1, False), scoring, pointwise)


@pytest.mark.usefixtures("schedule")
def test_sums_score_of_every_group_by_itself() -> None:
    for samples, scoring in product((1, 3), scorings(2)):
        sums, weight = random_sums(EVERY, samples, 5)
        group_sums = GroupSums(sums, None, EVERY, samples > 1, True)
        assert_sums_score(group_sums, scoring, Pointwise(0.7))
    for weights, log in ((weight, 0.0), (None, 1.0)):
        weighted = group_sums._replace(class_weight=weights)
        with pytest.raises(RuntimeError, match="average"):
            score.sums_score(weighted, scoring, Pointwise(0.7, log_pos=log))


@pytest.mark.usefixtures("schedule")
def test_a_class_without_weight_is_not_there_not_even_its_nan() -> None:
    for spoilt, scoring in product((slice(0, 1), slice(1, 2), slice(0, 4)), scorings()[::5]):
        sums, weight = random_sums(0, 3, 7)
        sums[spoilt, :, [1, 6]] = NAN
        group_sums = GroupSums(sums, weight, 0, True, True)
        _, coefficients = assert_sums_score(group_sums, scoring, Pointwise(0.5))
        assert bool((coefficients[..., [1, 6]] == 0).all())


@pytest.mark.usefixtures("schedule")
def test_a_compound_of_nothing() -> None:
    """A score of weight 0 leaves no NaN behind, and a pointwise loss of nothing is 0."""
    extra, pointwise = COMPOUNDS["all"]
    for scoring, nothing in product(scorings()[::5], (False, True)):
        sums, _ = random_sums(extra, 5, 3)
        # Where each sample has its own loss, some samples keep their elements.
        sums[:4, 2 if scoring.reduction == 2 else 0 :] *= not nothing
        scoring = scoring if nothing else scoring._replace(smooth=NAN)
        weighed = pointwise._replace(score_weight=float(nothing))
        assert_sums_score(GroupSums(sums, None, extra, True, True), scoring, weighed)


# ---- values that are not finite, and values that are absent ----------------------------------


def backward_of(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Any:
    leaf = input.detach().requires_grad_()
    loss = soft_f1(leaf, target, weight, reduction="none", average="none", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("target", [torch.bool, torch.float32], ids=short)
def test_infinite_logits_are_exact(target: torch.dtype) -> None:
    input = torch.tensor([[INF, -INF], [-INF, INF], [INF, INF]]).repeat(50, 1)
    truth = (input > 0).to(target)
    loss, gradient = backward_of(input, truth)
    assert loss.tolist() == [0.0, 0.0]
    assert torch.equal(gradient, torch.zeros_like(input))
    loss, _ = backward_of(input, 1 - truth.float())
    assert loss.tolist() == [1.0, 1.0]


def test_no_cancellation_near_a_perfect_score() -> None:
    input = torch.full((400, 1), 40.0)
    loss, gradient = backward_of(input, torch.ones(400, 1, dtype=torch.bool))
    # 1 - p = exp(-40) in every element, and loss = fn / (2 tp + fn)
    q = torch.tensor(-40.0, dtype=torch.float64).exp()
    torch.testing.assert_close(loss[0].double(), q / 2, rtol=4e-6, atol=0)
    torch.testing.assert_close(gradient.double(), (-q / 800).expand(400, 1), rtol=8e-6, atol=0)


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_nan_spoils_its_own_group_only(dtype: torch.dtype) -> None:
    for at in (0, 1):
        sample = Case("nan", (40, 5), target=None).build(dtype)
        sample.operands[at][7, 2] = NAN
        loss, _ = backward_of(*sample.operands)
        assert loss.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("target", [torch.bool, torch.int64, torch.float32], ids=short)
def test_weight_0_removes_a_nan(target: torch.dtype) -> None:
    sample = Case("removed", (6, 5, 33), target=target, weight="full").build()
    input, truth, weight = sample.operands
    assert weight is not None
    removed = weight == 0
    expected = backward_of(*sample.operands)
    for bad in (NAN, INF, -INF):
        spoilt = torch.where(removed, bad, input)
        fouled = torch.where(removed, bad, truth) if truth.is_floating_point() else truth
        actual = backward_of(spoilt, fouled, weight)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert bool((actual[1][removed] == 0).all())
        for wrt in (INPUT, WEIGHT):
            elements = Elements(0, 1.0, 0.0, False, True)
            coefficients = torch.rand(4, 1, 5, dtype=torch.float64)
            incoming, data = Incoming(None, coefficients), Data(spoilt, fouled, weight)
            groups = (incoming, data, Wrt(wrt), elements)
            own = kernels.confusion_backward(*groups)
            torch.testing.assert_close(own, plain.confusion_backward(*groups))


@covering
@pytest.mark.parametrize("absent", ["score", "skip", "penalize"])
@pytest.mark.parametrize("link", ["complement", "log", "focal", "negative"])
def test_groups_without_positives(link: str, absent: str) -> None:
    """Groups without positives, without weight, and with nothing but positives."""
    input = torch.randn(4, 3, 6, dtype=torch.float64)
    truth = torch.rand(4, 3, 6) < 0.4
    truth[:, 0], truth[1], truth[2] = False, False, True
    weight = torch.ones(4, 1, 1, dtype=torch.float64)
    weight[3] = 0
    for average in ("macro", "none"):
        for samplewise in (False, True):
            options = {"link": link, "absent": absent, "average": average, "gamma": 1.0}
            options |= {"samplewise": samplewise, "gamma": 2.0 if link == "focal" else 1.0}
            leaf = input.clone().requires_grad_()
            found = []
            for backend in ("triton", "reference"):
                with customloss.backend(backend):
                    loss = soft_f1(leaf, truth, weight, **options)
                    found.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
            torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_empty() -> None:
    for shape in ((0, 4), (0,), (3, 2, 0)):
        for reduction in ("mean", "none"):
            leaf = torch.zeros(shape, requires_grad=True)
            loss = soft_f1(leaf, torch.zeros(shape), reduction=reduction)
            assert loss.tolist() == 0.0
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            assert gradient.shape == torch.Size(shape)
