"""Triton's kernels of pixels agree with the reference; test_triton_interpret.py runs this file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import judge
import pytest
import torch
import triton_package
from cases import INPUT_DTYPES, lay_out, short
from judge import assert_near
from selection import covering
from torch import Tensor

from customloss import reference
from customloss._backends import choice, plain
from customloss._backends.choice import Primitives
from customloss._spec.arguments import Data, Elements, Incoming, Scoring, Wrt
from customloss._spec.words import (
    IGNORE,
    INPUT,
    NONE,
    SIGMOID,
    SOFTMAX,
    TARGET,
    WEIGHT,
)
from customloss.reference import Extra

triton_package.load()

from customloss.kernels import confusion as kernels  # noqa: E402
from customloss.kernels import fold, layout, pixel  # noqa: E402

NAN, INF = float("nan"), float("inf")
EVERY = int(sum(Extra))
HALF = int(Extra.LOG_LOSS | Extra.HARD)
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

pytestmark = [
    # numpy warns about inf - inf and 0 * inf, which a GPU computes silently
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
    # the interpreter of Triton 3.6 uses an array as an index
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]

# The interpreter truncates float32 to bfloat16, where a GPU rounds to nearest.
judge.ROUNDING[torch.bfloat16] = (2**-7, 0.0)


@dataclass(frozen=True)
class Pixels:
    """A recipe for the operands of a primitive."""

    name: str
    shape: tuple[int, ...]
    target: torch.dtype | None = torch.int64  # labels of an integer dtype; None: soft targets
    dense: bool = False  # a target of the input's shape, of any dtype
    weight: str | None = None  # "full", "pixel", "class"
    activation: int = SOFTMAX
    scale: float = 1.0
    offset: float = 0.0
    per_sample: bool = False
    per_class: bool = True
    ignore: int | None = None
    smoothing: float = 0.0
    extra: int = 0
    gamma: float = 2.0
    split: bool = False
    log_smoothing: float | None = None
    layout: str = "contiguous"
    target_layout: str | None = None
    spoilt: bool = False  # puts NaN wherever elements do not count

    def __str__(self) -> str:
        return self.name

    @property
    def elements(self) -> Elements:
        return Elements(
            self.activation, self.scale, self.offset, self.per_sample, self.per_class,
            None if self.ignore is None else (self.ignore,), self.smoothing, self.extra,
            self.gamma, self.split, self.log_smoothing, IGNORE,
        )  # fmt: skip

    def build(self, dtype: torch.dtype = torch.float32) -> Data:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        classes = self.shape[1] if len(self.shape) > 1 else 1

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        input = 3 * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.activation == NONE:
            input = input.sigmoid()
        places = (self.shape[0], 1, *self.shape[2:])
        removed = torch.zeros(self.shape, dtype=torch.bool)
        if self.dense or self.target is None:
            target = uniform(*self.shape)
            if self.target is not None and not self.target.is_floating_point:
                target = (target < 0.4).double()
            if self.ignore is not None:
                removed = uniform(*self.shape) < 0.2
                target = torch.where(removed, float(self.ignore), target)
            target = target.to(self.target or dtype)
        else:
            # some are below 0 or above C - 1
            low = 0 if self.target == torch.uint8 else -2
            most = min(classes + 2, torch.iinfo(self.target).max)
            target = torch.randint(low, most, places, generator=generator)
            if self.ignore is not None:
                target = torch.where(uniform(*places) < 0.2, self.ignore, target)
            removed = ((target < 0) | (target >= classes) | (target == self.ignore)).expand(
                self.shape
            )
            target = target.to(self.target)
        weight = None
        if self.weight is not None:
            shapes = {"full": self.shape, "pixel": places, "class": (classes,)}
            shape = shapes[self.weight]
            if self.weight == "class":
                shape = (*shape, *(1 for _ in self.shape[2:]))
            weight = 2 * uniform(*shape) * (uniform(*shape) > 0.2)
            weight = weight.to(dtype)
            gone = (weight == 0).expand(self.shape)
            removed = removed | (gone.all(1, keepdim=True) if self.activation == SOFTMAX else gone)
        if self.spoilt:
            input = torch.where(removed, NAN, input)
        input = lay_out(input.to(dtype), self.layout)
        return Data(input, lay_out(target, self.target_layout or self.layout), weight)


def widened(data: Data, labels: bool) -> Data:
    input, target, weight = data
    return Data(
        input.double().contiguous(),
        target.long() if labels else target.double(),
        None if weight is None else weight.double(),
    )


def check(
    case: Pixels,
    dtype: torch.dtype = torch.float32,
    wrts: tuple[int, ...] | None = None,
    size: float = 1.0,
) -> None:
    """The sums and the gradients are those of the reference."""
    data, elements = case.build(dtype), case.elements
    input, target, weight = data
    wide = widened(data, pixel.is_labels(input, target))
    sums = kernels.confusion(data, elements)
    expected = plain.confusion(wide, elements)
    assert sums.dtype == torch.float64 and sums.is_contiguous()
    for name, own, wanted in zip(reference.rows(case.extra), sums, expected, strict=True):
        assert_near(own, wanted, dtype, f"{case} {name}")
    generator = torch.Generator().manual_seed(5)
    coefficients = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    if wrts is None:
        wrts = (INPUT,)
        wrts += (TARGET,) if target.is_floating_point() else ()
        wrts += (WEIGHT,) if weight is not None else ()
    for wrt in wrts:
        incoming = Incoming(None, coefficients)
        own = kernels.confusion_backward(incoming, data, Wrt(wrt), elements)
        wanted = plain.confusion_backward(incoming, wide, Wrt(wrt), elements)
        like = (input, target, own)[wrt]
        assert own.dtype == (like.dtype if wrt != WEIGHT else reference.accumulator(input))
        assert own.stride() == torch.empty_like(like).stride()
        largest = wanted[wanted.isfinite()].abs()
        magnitude = size * float(largest.max()) if largest.numel() else 0.0
        assert_near(own, wanted, dtype, f"{case} gradient {wrt}", magnitude)


# ---- class numbers ---------------------------------------------------------------------------

FEW = (2, 3, 4, 17)
MANY = (105, 1030)


def shape_of(classes: int) -> tuple[int, ...]:
    return (2, classes, 5, 7) if classes < 100 else (2, classes, 3)


@covering
@pytest.mark.parametrize("strides", ["contiguous", "class_last", "sliced"])
@pytest.mark.parametrize("classes", (*FEW, *MANY))
def test_softmax_of_class_numbers(classes: int, strides: str) -> None:
    case = Pixels(f"softmax-{classes}-{strides}", shape_of(classes), layout=strides, spoilt=True)
    check(case)
    check(replace(case, per_sample=True, per_class=False, weight="pixel"))


@pytest.mark.parametrize("classes", (*FEW, *MANY))
def test_rows_of_classes(classes: int) -> None:
    check(Pixels(f"rows-{classes}", (33, classes), ignore=-100, spoilt=True))


@covering
@pytest.mark.parametrize("ignore", [255, -100])
@pytest.mark.parametrize("dtype", LABELS, ids=short)
def test_label_dtypes(dtype: torch.dtype, ignore: int) -> None:
    limits = torch.iinfo(dtype)
    case = Pixels(f"labels-{dtype}", (3, 5, 11), target=dtype, spoilt=True)
    check(replace(case, ignore=ignore if limits.min <= ignore <= limits.max else 3))
    check(replace(case, activation=SIGMOID, ignore=2))


@pytest.mark.parametrize("classes", [3, 105])
def test_wild_class_numbers(classes: int) -> None:
    """A number that is a class only when truncated to fewer bits is no class, and reads nothing."""
    input = torch.randn(2, classes, 4)
    wild = torch.tensor([[2**32, 1, -(2**40), 2**63 - 1], [0, 2**33 + 1, -(2**63), 2]])
    tame = torch.tensor([[-1, 1, -1, -1], [0, -1, -1, 2]])
    elements = Elements(SOFTMAX, 1.0, 0.0, False, True, extra=EVERY, out_of_range=IGNORE)
    both = [Data(input, numbers.unsqueeze(1), None) for numbers in (wild, tame)]
    sums = [kernels.confusion(data, elements) for data in both]
    assert torch.equal(*sums)
    incoming = Incoming(None, sums[0])
    gradient = kernels.confusion_backward(incoming, both[0], Wrt(INPUT), elements)
    assert torch.equal(gradient == 0, (tame < 0).unsqueeze(1).expand(input.shape))


def test_ignored_class_is_one_of_the_classes() -> None:
    check(Pixels("ignored-0", (2, 4, 9), ignore=0, spoilt=True, extra=EVERY))


# ---- other targets, activations and weights --------------------------------------------------


@covering
@pytest.mark.parametrize("activation", [SIGMOID, NONE], ids=["sigmoid", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 35), (37, 40), (2, 9, 4, 5), (1, 2, 70)], ids=str)
def test_class_numbers_without_softmax(shape: tuple[int, ...], activation: int) -> None:
    case = Pixels(f"independent-{shape}", shape, activation=activation, spoilt=True, ignore=1)
    check(case)
    check(replace(case, weight="full", per_class=False, extra=EVERY, smoothing=0.1))


@pytest.mark.parametrize(
    "target",
    [torch.bool, torch.uint8, torch.int64, torch.uint32, torch.float16, torch.float32, None],
    ids=str,
)
def test_ignored_elements_of_dense_targets(target: torch.dtype | None) -> None:
    for shape in ((70,), (41, 1), (3, 4, 11)):
        ignore = 1 if target == torch.bool else 255
        case = Pixels(f"dense-{shape}", shape, target, True, activation=SIGMOID, ignore=ignore)
        check(replace(case, spoilt=True))
        if len(shape) > 2:
            check(replace(case, weight="full", smoothing=0.2, extra=HALF))


@covering
@pytest.mark.parametrize("classes", [2, 105])
@pytest.mark.parametrize("target", [torch.bool, torch.float64, None], ids=str)
def test_softmax_of_dense_targets(target: torch.dtype | None, classes: int) -> None:
    case = Pixels(f"soft-{classes}", shape_of(classes), target, True)
    check(case)
    check(replace(case, smoothing=0.1, per_sample=True, weight="full", spoilt=True))


@covering
@pytest.mark.parametrize("weight", ["full", "pixel", "class"])
@pytest.mark.parametrize("classes", [3, 105])
@pytest.mark.parametrize("strides", ["contiguous", "class_last"])
def test_weights(strides: str, classes: int, weight: str) -> None:
    shape = (2, classes, 21) if classes < 100 else (2, classes, 5)
    case = Pixels(f"weights-{weight}", shape, weight=weight, layout=strides, spoilt=True)
    check(case)
    if classes == 3:
        check(replace(case, extra=EVERY, per_class=False, gamma=1.5))
        check(replace(case, target=None, activation=SIGMOID, smoothing=0.1))


# ---- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [*Extra, Extra.LOG_LOSS | Extra.FOCAL, EVERY], ids=int)
def test_extra_sums(extra: int) -> None:
    base = Pixels(f"extra-{int(extra)}", (2, 5, 23), extra=int(extra))
    check(base)
    check(replace(base, shape=(2, 41, 7), smoothing=0.2))
    check(replace(base, log_smoothing=0.3, split=True))
    check(replace(base, activation=SIGMOID, target=None))
    check(replace(base, activation=SIGMOID, target=None, split=True, log_smoothing=0.1))
    check(replace(base, activation=NONE, target=torch.bool, dense=True))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_exponents(gamma: float) -> None:
    case = Pixels("focal", (3, 4, 9), target=None, extra=int(Extra.FOCAL), gamma=gamma)
    for activation in (SOFTMAX, SIGMOID, NONE):
        check(replace(case, activation=activation))
        check(replace(case, activation=activation, split=True, smoothing=0.1))


@covering
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_groups(per_class: bool, per_sample: bool) -> None:
    for shape in ((2, 5, 30), (2, 40, 6), (1, 3, 4, 5, 6)):
        case = Pixels("groups", shape, per_class=per_class, per_sample=per_sample, extra=HALF)
        check(replace(case, smoothing=0.1))
        check(replace(case, activation=SIGMOID, ignore=255, scale=1.5, offset=0.5))


@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_logit_scale(scale: float) -> None:
    for classes in (3, 41):
        check(Pixels("scaled", (2, classes, 9), scale=scale, offset=0.7, extra=EVERY))


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_input_dtypes(dtype: torch.dtype) -> None:
    for classes in (4, 40):
        case = Pixels("dtypes", (2, classes, 19), target=None, weight="full", extra=HALF)
        check(case, dtype)
        check(replace(case, target=torch.uint8, weight="pixel", layout="class_last"), dtype)
        if classes == 4:
            check(replace(case, activation=SIGMOID, ignore=9), dtype)


@pytest.mark.parametrize("strides", ["transposed", "stepped", "offset", "expanded_sample"])
def test_unlike_strides(strides: str) -> None:
    for classes in (3, 41):
        case = Pixels("unlike", (3, classes, 4, 6), layout=strides, target_layout="transposed")
        check(case)
        check(replace(case, target=None, target_layout="class_last", weight="full"))


# ---- schedules -------------------------------------------------------------------------------


@pytest.fixture
def long_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schedules as on large inputs: few programs with many tiles each, and partial sums to fold."""
    monkeypatch.setattr(layout, "PIXEL_TILE", 256)
    monkeypatch.setattr(layout, "LOOPED_TILE", 256)
    monkeypatch.setattr(layout, "CLASS_RUN", 8)
    monkeypatch.setattr(layout, "FEWEST_PROGRAMS", 3)
    monkeypatch.setattr(layout, "MOST_PROGRAMS", 3)
    monkeypatch.setattr(fold, "FOLD", 2)
    monkeypatch.setattr(fold, "MOST_PARTIALS", 4)
    pixel.prepare.cache_clear()
    yield
    pixel.prepare.cache_clear()


@covering
@pytest.mark.usefixtures("long_chunks")
@pytest.mark.parametrize("strides", ["contiguous", "class_last"])
@pytest.mark.parametrize("cached", [layout.LOOPED_PIXELS, 100], ids=["cached", "apart"])
def test_long_chunks(monkeypatch: pytest.MonkeyPatch, strides: str, cached: int) -> None:
    monkeypatch.setattr(layout, "LOOPED_PIXELS", cached)
    others = ((2, 3, 66), (2, 5, 3, 31)) if cached != 100 else ()
    for shape in ((2, 40, 24), *others):
        case = Pixels("long", shape, layout=strides, extra=HALF, target_layout="sliced")
        check(replace(case, spoilt=True, per_sample=shape[1] == 5))
        if shape[1] != 40:
            check(replace(case, activation=SIGMOID, smoothing=0.1, per_class=shape[1] == 3))


def scored(case: Pixels, primitives: Primitives) -> tuple[Tensor, Tensor]:
    words = (2, 2, 1, 2)  # focal, penalize, weighted, none
    scoring = Scoring(2.0, 1.0, 1.0, 0.5, 0.75, 2.0, 1e-30, *words)
    operands = case.build(torch.float64)
    return primitives.confusion_score(*operands, *case.elements, *scoring)


@pytest.mark.usefixtures("long_chunks")
@pytest.mark.parametrize("per_sample", [False, True])
def test_scores(per_sample: bool) -> None:
    triton, reference = map(choice.primitives_of, (kernels, plain))
    for shape in ((2, 3, 37), (2, 40, 12)):
        case = Pixels("scores", shape, ignore=1, per_sample=per_sample)
        for one in (case, replace(case, per_class=False, activation=SIGMOID)):
            for own, other in zip(scored(one, triton), scored(one, reference), strict=True):
                torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)


def both(case: Pixels) -> tuple[Tensor, Tensor]:
    data, elements = case.build(), case.elements
    sums = kernels.confusion(data, elements)
    incoming = Incoming(None, sums)
    return sums, kernels.confusion_backward(incoming, data, Wrt(INPUT), elements)


def test_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are the same every time, and with 64-bit offsets."""
    for classes in (3, 41):
        case = Pixels("bits", (2, classes, 4, 9), layout="class_last", extra=EVERY, ignore=1)
        expected = both(case)
        torch.testing.assert_close(both(case), expected, rtol=0, atol=0)
        with monkeypatch.context() as patch:
            patch.setattr(layout, "INT32_LIMIT", 0)
            pixel.prepare.cache_clear()
            actual = both(case)
        pixel.prepare.cache_clear()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_nothing_depends_on_uninitialised_memory() -> None:
    torch.use_deterministic_algorithms(True)  # every allocation starts as NaN
    check(Pixels("fresh", (2, 5, 11), extra=EVERY))
    check(Pixels("fresh", (2, 41, 11), extra=EVERY, weight="full"))
    torch.use_deterministic_algorithms(False)


def test_empty() -> None:
    for shape in ((0, 4, 3), (3, 4, 0)):
        target = torch.zeros(shape[0], 1, shape[2], dtype=torch.uint8)
        data = Data(torch.zeros(shape), target, None)
        elements = Elements(SOFTMAX, 1.0, 0.0, False, True, extra=EVERY)
        sums = kernels.confusion(data, elements)
        assert torch.equal(sums, torch.zeros(len(reference.rows(EVERY)), 1, 4, dtype=torch.float64))
        gradient = kernels.confusion_backward(Incoming(None, sums), data, Wrt(INPUT), elements)
        assert gradient.shape == shape
