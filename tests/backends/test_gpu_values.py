"""On a GPU every value and gradient is right, with the same bits every time."""

from __future__ import annotations

import copy
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cases
import gpu
import judge
import pixel_cases
import pytest
import torch
from cases import INPUT_DTYPES, OPTIONS, Case, Sample
from gpu import DEVICE, moved, on_device, same_bits
from hidden import LOSSES, assert_hidden, every_second, loss_of_the_others
from judge import assert_near, assert_right, assert_sums_right, differentiated, soft_f1
from pixel_cases import EXTRAS, READINGS, numbered, reading
from test_determinism import LARGE
from torch import Tensor

import customloss
from customloss import reference

pytestmark = gpu.MARKS


@pytest.fixture(params=gpu.BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with gpu.backend(request.param):
        yield


def dtypes(case: Case) -> tuple[torch.dtype, ...]:
    """All dtypes; for Triton, which compiles each case for a second, one chosen by the name."""
    if gpu.insists():
        return (INPUT_DTYPES[zlib.crc32(case.name.encode()) % len(INPUT_DTYPES)],)
    return INPUT_DTYPES


# ---- against the reference -------------------------------------------------------------------


@pytest.mark.parametrize("case", (*cases.FEW, *pixel_cases.FEW), ids=str)
def test_a_few_of_everything(case: Case) -> None:
    for dtype in INPUT_DTYPES:
        assert_right(on_device(soft_f1), case.build(dtype))


@pytest.mark.parametrize("case", [c for c in cases.ALL if c not in cases.FEW], ids=str)
def test_elements(case: Case) -> None:
    for dtype in dtypes(case):
        assert_right(on_device(soft_f1), case.build(dtype))


@pytest.mark.parametrize("case", pixel_cases.ALL, ids=str)
def test_pixels(case: Case) -> None:
    for dtype in dtypes(case):
        assert_right(on_device(soft_f1), case.build(dtype))


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", READINGS)
def test_further_sums(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "confusion_sums", on_device(judge.confusion_sums))
    for shape, weight, layout in (
        ((23, 5), None, "contiguous"),
        ((2, 3, 5, 7), "pixel", "class_last"),
        ((2, 70, 5, 4), "full", "sliced"),
    ):
        case = reading(name, shape, weight=weight, layout=layout)
        assert_sums_right(case.build(), **EXTRAS[extra])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_equals_its_target_is_no_distance(dtype: torch.dtype) -> None:
    """A difference of products would not be 0, where the compiler fuses it with one of them."""
    t = torch.rand(64, 3, dtype=dtype, device=DEVICE)
    x = t.clone().requires_grad_()
    loss = customloss.semimetric_dice_loss(x, t, activation="none")
    assert loss == 0
    # 0 is the mean of the gradients on both sides
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-8


@pytest.mark.parametrize("option", OPTIONS)
def test_many_groups(option: str) -> None:
    """There are more groups than one block can score."""
    for shape in ((3, 5003), (1500, 4, 2)):
        case = Case("many", shape, target=None, weight="full", options=OPTIONS[option])
        assert_right(on_device(soft_f1), case.build(torch.float64))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_a_gradient_has_the_strides_that_torch_gives_it(layout: str) -> None:
    for case in (
        Case("x", (3, 4, 6, 5), target=None, layout=layout),
        numbered("y", (3, 4, 6, 5), layout=layout),
    ):
        x, t, _, options = case.build()
        x, t = moved(x).requires_grad_(), moved(t)
        (gradient,) = torch.autograd.grad(soft_f1(x, t, **options), x)
        assert gradient.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize(
    "activation, name", [(each, name) for each in LOSSES for name in LOSSES[each]]
)
def test_what_a_class_of_weight_0_holds_reaches_nothing(activation: str, name: str) -> None:
    for shape, layout in (
        ((2, 3, 700), "contiguous"),
        ((67, 9), "contiguous"),
        ((2, 40, 5, 4), "class_last"),
        ((3, 5, 19), "sliced"),
    ):
        loss = on_device(loss_of_the_others(name, activation, shape[1]))
        for target, weight in ((torch.bool, None), (None, "full")):
            case = Case("hidden", shape, layout=layout, target=target, weight=weight)
            softmax = activation == "softmax"
            assert_hidden(loss, case.build(), every_second(shape[1]), softmax, layout)


def test_the_kernels_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run, and not the reference, which would be right as well."""

    def unwanted(*_: Any) -> None:
        raise AssertionError("the reference ran")

    monkeypatch.setattr(reference.sums, "confusion", unwanted)
    monkeypatch.setattr(reference.gradients, "confusion_backward", unwanted)
    for case in (Case("x", (9, 4), target=None, weight="full"), numbered("y", (9, 4))):
        x, t, w, options = case.build()
        x, t, w = moved(x).requires_grad_(), moved(t), moved(w)
        torch.autograd.grad(soft_f1(x, t, w, **options), x)
        customloss.confusion_sums(x, t, w, **options)


# ---- every loss ------------------------------------------------------------------------------

CLASSES = 4
CLASS_WEIGHT = (0.5, 2.0, 0.0, 1.5)
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"samplewise": True, "absent": "skip"},
    {"average": "micro", "include_background": False},
    {"average": "weighted", "class_weight": CLASS_WEIGHT},
    {"classes": (3, 0, 1), "class_weight": CLASS_WEIGHT, "absent": "penalize"},
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize("name", customloss.loss_names())
def test_every_loss(name: str, dtype: torch.dtype) -> None:
    """Every loss is that of the CPU, computed from the same numbers in float64."""
    for options in CHOICES:
        if name in ("generalized_dice", "multiclass_mcc") and "class_weight" in options:
            continue  # it makes one score of all classes
        try:
            criterion = customloss.loss(name, **options, check_target=False)
        except TypeError:  # this loss has no such option
            assert options
            continue
        there = on_device(copy.deepcopy(criterion).to(DEVICE))
        softmax = getattr(criterion, "activation", "sigmoid") == "softmax"
        kind: dict[str, Any] = {"kind": "numbers", "target": torch.int64} if softmax else {}
        x, t, w, _ = Case(name, (3, CLASSES, 9, 7), weight="pixel", **kind).build(dtype)
        loss, (own, *_) = differentiated(there, Sample(x, t, w, {}))
        wide = Sample(x.double(), t, w.double(), {})
        upstream = judge.outer_gradient(loss).double()
        expected, (wanted, *_) = differentiated(criterion, wide, upstream)
        assert_near(loss, expected, dtype, f"{name} {options}")
        # A softmax adds terms of all classes, each of which may be as large as the largest element.
        largest = float(wanted.abs().max())
        assert_near(own, wanted, dtype, f"{name} {options}", CLASSES * largest)


# ---- the same bits ---------------------------------------------------------------------------

PIXELS = (
    numbered("planes", (3, 5, 120, 121)),
    numbered("classes-last", (2, 33, 60, 61), layout="class_last", weight="pixel"),
    numbered("many-classes", (1, 105, 40, 41)),
    numbered("more-classes-than-pixels", (97, 1031)),
)


def outcome(sample: Sample) -> list[Tensor]:
    """Loss, gradients and sums, left on the device."""
    loss, gradients = differentiated(soft_f1, sample)
    further = {"log_loss": True} if "activation" in sample.options else {}
    own = {name: value for name, value in sample.options.items() if name in ("activation",)}
    return [loss, *gradients, judge.confusion_sums(*sample.operands, **own, **further)]


@pytest.mark.parametrize("case", (*LARGE, *PIXELS), ids=str)
def test_the_same_bits_over_20_runs_and_on_every_stream(case: Case) -> None:
    """Passes on several streams at once may not share their workspace."""
    sample = case.build(device=DEVICE)
    expected = outcome(sample)
    for _ in range(19):
        assert all(map(same_bits, outcome(sample), expected))
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found: list[list[list[Tensor]]] = [[] for _ in streams]
    for _ in range(5):
        for stream, results in zip(streams, found):
            with torch.cuda.stream(stream):
                results.append(outcome(sample))
    torch.cuda.synchronize()
    for results in itertools.chain(*found):
        assert all(map(same_bits, results, expected))


def test_allowed_where_determinism_is_demanded() -> None:
    """In this mode memory starts as NaN, so an element that nobody writes is noticed."""
    torch.use_deterministic_algorithms(True)
    for case in (*cases.FEW, *pixel_cases.FEW):
        assert_right(on_device(soft_f1), case.build())


# ---- transforms ------------------------------------------------------------------------------


def transformed(op: Callable[..., Tensor], x: Tensor, t: Tensor, w: Tensor) -> dict[str, Any]:
    """The results of all transforms, for a batch of three."""

    def one(*operands: Tensor) -> Tensor:
        return op(*operands, beta=2.0, samplewise=True)

    tangents = (torch.ones_like(x[0]), torch.ones_like(t[0]), w[0])
    return {
        "grad": torch.func.grad(one, (0, 1, 2))(x[0], t[0], w[0]),
        "jvp": torch.func.jvp(one, (x[0], t[0], w[0]), tangents),
        "vmap": torch.vmap(one)(x, t, w),
        "vmap of one operand": torch.vmap(one, (1, None, None))(x.movedim(0, 1), t[0], w[0]),
        "vmap of grad": torch.vmap(torch.func.grad(one))(x, t, w),
        "hessian": torch.func.hessian(one)(x[0], t[0], w[0]),
    }


def test_transforms() -> None:
    generator = torch.Generator().manual_seed(11)
    x, t, w = (torch.rand(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = transformed(reference.soft_f1, 4 * x - 2, t, w)
    own = transformed(soft_f1, *(each.to(DEVICE) for each in (4 * x - 2, t, w)))
    for name, wanted in expected.items():
        for mine, theirs in zip(tensors(own[name]), tensors(wanted), strict=True):
            assert mine.device.type == torch.device(DEVICE).type
            torch.testing.assert_close(mine.cpu(), theirs, msg=lambda text, n=name: f"{n}: {text}")


def tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


# ---- more elements than 32 bits count --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2])
def test_more_elements_than_32_bits_count(samples: int) -> None:
    """The sums are those of smaller parts, added up; the gradient is right at both ends."""
    count = (1 << 31) // samples + 17
    needed = samples * count * 8  # logits, targets, gradient, and parts of them
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed + (1 << 30):
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    x = torch.randn(samples, count, dtype=torch.bfloat16, device=DEVICE).requires_grad_()
    t = torch.empty(samples, count, dtype=torch.bool, device=DEVICE).bernoulli_(0.3)
    options = {"average": "micro"}
    sums = judge.confusion_sums(x.detach(), t, **options)
    parts = zip(x.detach().flatten().split(1 << 28), t.flatten().split(1 << 28))
    expected = sum(judge.confusion_sums(*part) for part in parts)
    assert_near(sums.cpu(), expected.cpu(), torch.bfloat16, "sums")
    (gradient,) = torch.autograd.grad(soft_f1(x, t, **options), x)
    tp, fp, fn = (float(row) for row in sums[:3].flatten())
    whole = 2 * tp + fp + fn
    hit, miss = -2 * (fp + fn) / whole**2, 2 * tp / whole**2
    for end in (slice(1000), slice(-1000, None)):
        logits, positive = x.detach()[:, end].cpu().double(), t[:, end].cpu()
        slope = logits.sigmoid() * (-logits).sigmoid()
        wanted = slope * torch.where(positive, hit - miss, miss)
        assert_near(gradient[:, end].cpu(), wanted, torch.bfloat16, "gradient")
