"""The kernels of csrc/cuda/pixel*.cuh, run on the CPU, agree with the reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import build
import flat
import pytest
import torch
from emulated import library, needs_a_compiler  # noqa: F401
from judge import ARITHMETIC, ROUNDING
from selection import covering
from torch import Tensor

from customloss import reference
from customloss._spec.words import ACTIVATIONS, NAN_TARGETS, OUT_OF_RANGE
from customloss.reference import Extra

pytestmark = needs_a_compiler

EVERY = int(sum(Extra))
EXTRAS = (0, 1, 2, 4, 8, 16, 32, 33, 13, EVERY)
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
HALVES = (torch.float16, torch.bfloat16)


class How(NamedTuple):
    """The arguments of the primitives that follow the tensors, by name."""

    activation: str = "softmax"
    scale: float = 1.0
    offset: float = 0.0
    per_sample: bool = False
    per_class: bool = True
    ignore_index: int | tuple[int, ...] | None = None
    label_smoothing: float = 0.0
    extra: int = 0
    focal_gamma: float = 2.0
    focal_split: bool = False
    log_smoothing: float | None = None
    out_of_range: str = "ignore"
    nan_targets: str = "propagate"

    def arguments(self) -> tuple[Any, ...]:
        words = (OUT_OF_RANGE.index(self.out_of_range), NAN_TARGETS.index(self.nan_targets))
        return (ACTIVATIONS.index(self.activation), *self[1:-2], *words)


class Operands(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None = None

    def wide(self) -> Operands:
        """In wide dtypes for the reference, which compares class numbers with any integer."""
        input, target, weight = self
        floating = target.is_floating_point() or target.dtype == torch.bool
        target = target.double() if floating else target.long()
        return Operands(input.double(), target, None if weight is None else weight.double())


def strided(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another order of memory."""
    if layout == "last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        padded = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), 77)
        own = padded[..., 1 : 2 * tensor.shape[-1] : 2]
        return own.copy_(tensor)
    if layout == "shifted":  # vectors start off their alignment
        flat = tensor.new_empty(tensor.numel() + 1)[1:]
        return flat.view(tensor.shape).copy_(tensor)
    return tensor.contiguous()


def operands(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    target: torch.dtype | str = torch.int64,
    weight: str | None = None,
    layout: str = "contiguous",
    spread: float = 3.0,
    probabilities: bool = False,
    ignore_index: int | None = None,
    wrong: bool = True,
) -> Operands:
    """Random operands; some class numbers are ``ignore_index`` or (``wrong``) out of range."""
    x = torch.randn(shape) * spread
    if probabilities:
        x = torch.rand(shape) * 0.98 + 0.01
    x = strided(x.to(dtype), layout)
    classes, places = shape[1], (shape[0], 1, *shape[2:])
    if isinstance(target, torch.dtype):
        info = torch.iinfo(target)
        t = torch.randint(0, min(classes, info.max + 1), places).to(target)
        lost = torch.rand(places)
        if wrong:
            bad = [b for b in (-1, classes, 255, -100, info.max) if info.min <= b <= info.max]
            bad = [b for b in bad if not 0 <= b < classes]
            for i, number in enumerate(bad):
                t[(lost > 0.02 * i) & (lost < 0.02 * (i + 1))] = number
        if ignore_index is not None and info.min <= ignore_index <= info.max:
            t[lost > 0.9] = ignore_index
        t = strided(t, "sliced" if layout == "sliced" else "contiguous")
    else:
        t = torch.rand(shape) if target == "soft" else (torch.rand(shape) < 0.4).float()
        if target == "onehot":
            t = torch.zeros(shape).scatter_(1, torch.randint(0, classes, places), 1.0)
        if target == "bytes":
            t = t.to(torch.uint8)
        if ignore_index is not None:
            t[torch.rand(shape) < 0.1] = ignore_index
        t = strided(t.to(dtype) if t.is_floating_point() else t, layout)
    return Operands(x, t, weights(shape, weight, dtype))


def weights(shape: tuple[int, ...], kind: str | None, dtype: torch.dtype) -> Tensor | None:
    if kind is None:
        return None
    own = {
        "pixel": (shape[0], 1, *shape[2:]),
        "element": shape,
        "class": (shape[1], *(1 for _ in shape[2:])),
        "sample": (shape[0], *(1 for _ in shape[1:])),
        "mask": (shape[0], 1, *shape[2:]),
        "elements": shape,
    }[kind]
    w = torch.rand(own) + 0.25
    w[torch.rand(own) < 0.3] = 0.0
    return w > 0 if kind in ("mask", "elements") else w.to(dtype)


def near(actual: Tensor, expected: Tensor, size: Tensor | float, arithmetic: torch.dtype) -> None:
    """Asserts equality up to arithmetic on terms of this size, and one rounding."""
    relative = ARITHMETIC[arithmetic]
    rounding, least = ROUNDING[actual.dtype]
    assert actual.shape == expected.shape
    allowed = relative * size + (relative + rounding) * expected.abs() + least
    wrong = ~((actual.double() - expected).abs() <= allowed)
    wrong &= ~(actual.double() == expected)  # infinities
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()}, first at {wrong.nonzero()[0].tolist()}: "
        f"{actual[wrong][0].item()} for {expected[wrong][0].item()}"
    )


def gradient_size(given: Operands, how: How, by_sums: Tensor, wrt: str) -> Tensor:
    """The size of the terms whose sum is an element of a gradient."""
    input, target, weight = given
    measured = (
        how.activation, how.scale, how.offset, how.extra, how.focal_gamma, how.focal_split,
    )  # fmt: skip
    x, smoothed, w, holes = reference.operands(
        input, target, weight, measured, how.ignore_index, how.label_smoothing, how.log_smoothing
    )
    t = torch.maximum(smoothed.smoothed, smoothed.log)
    p, q, _ = reference.probability(x, how.activation, how.scale, how.offset)
    most = by_sums.abs().sum(0).max()
    logs = how.extra & (Extra.LOG_LOSS | Extra.FOCAL)
    if wrt == "input":
        size = 6 * p * q if how.activation != "none" else 4.0 + 0 * p
        if logs:
            others = t.sum(1, keepdim=True) - t if how.activation == "softmax" else 1.0
            more = (1 + how.focal_gamma) * (p * others + q * t)
            size = size + (more if how.activation != "none" else (1 + how.focal_gamma) / (p * q))
        size = abs(how.scale) * size
        heaviest = 1.0 if w is None else w.abs().expand(x.shape).amax(1, keepdim=True)
    else:
        positive, negative = reference.log_losses(x, how.activation, how.scale, how.offset)
        size = 4 + (positive + negative if logs else 0) + 0 * p
        heaviest = w.abs() if wrt == "target" and w is not None else 1.0
    size = most * size * heaviest
    return size if holes is None else torch.where(holes, torch.zeros_like(size), size)


def check(emulation: build.Emulation, given: Operands, how: How) -> None:
    """Sums, and the gradients by all operands that have one, are those of the reference."""
    wide, arithmetic = given.wide(), given.input.dtype
    expected = flat.confusion(*wide, *how.arguments())
    actual = emulation.confusion(*given, *how.arguments())
    assert actual.dtype == torch.float64
    largest = expected.flatten(1).abs().amax(1)[:, None, None] if expected.numel() else 0.0
    near(actual, expected, 0.1 * largest, arithmetic)

    by_sums = torch.randn(expected.shape, dtype=torch.float64)
    kept = (["samples"] if how.per_sample else []) + (["classes"] if how.per_class else [])
    shape = expected.shape[1:] if len(kept) == 2 else [s for s in expected.shape[1:] if s > 1][:1]
    grad = (torch.rand(shape if len(kept) == len(shape) else ()) + 0.5).float()
    for wrt in (0, 1, 2):
        if wrt == 1 and not given.target.is_floating_point():
            continue
        incoming = None if wrt == 1 else grad
        found = emulation.confusion_backward(incoming, by_sums, *given, wrt, *how.arguments())
        wanted = flat.confusion_backward(
            None if incoming is None else incoming.double(), by_sums, *wide, wrt, *how.arguments()
        )
        scaled = by_sums if incoming is None else by_sums * 1.5
        size = gradient_size(wide, how, scaled, ("input", "target", "weight")[wrt])
        near(found, wanted, size, arithmetic)
        if wrt < 2:
            assert found.stride() == torch.empty_like(given[wrt]).stride()


@pytest.fixture
def emulation(library: build.Emulation) -> Iterator[build.Emulation]:  # noqa: F811
    library.seed(1)
    before = library.launches()
    yield library
    library.wide_index(False)
    assert library.launches() > before, "no kernel of ours was run"


# 2, 3 and 4 classes have their own kernels, and 5 to 8 share one. 16 and 17, 32 and 33, 256 and 300
# are edges of the next ones. Two threads share a pixel from 33 on, four from 65, eight from 129.
CLASSES = (2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 105, 130, 256, 300)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@covering
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("classes", CLASSES)
def test_classes(classes: int, extra: int, emulation: build.Emulation) -> None:
    """Planes, rows and channels_last, with every dtype of input and of class numbers."""
    places = (5, 13) if classes < 100 else (3, 4)
    layouts = ("contiguous", "last", "rows", "shifted", "sliced")
    for index, (dtype, layout) in enumerate(itertools.product(DTYPES, layouts)):
        if (index + extra) % 2:
            continue
        shape = (37, classes) if layout in ("rows", "shifted") else (2, classes, *places)
        label = LABELS[(index + classes) % len(LABELS)]
        how = How(extra=extra, per_sample=index % 3 == 1, per_class=index % 4 != 2)
        check(emulation, operands(shape, dtype=dtype, target=label, layout=layout), how)


@covering
@pytest.mark.parametrize("label", LABELS, ids=str)
@pytest.mark.parametrize("ignored", [None, 255, -100, 1])
def test_class_numbers(label: torch.dtype, ignored: int | None, emulation: build.Emulation) -> None:
    for classes, layout in ((3, "contiguous"), (5, "sliced"), (19, "last"), (130, "contiguous")):
        given = operands((2, classes, 4, 11), target=label, layout=layout, ignore_index=ignored)
        how = How(ignore_index=ignored, extra=EVERY if classes == 5 else 0)
        check(emulation, given, how)


@covering
@pytest.mark.parametrize("layout", ["contiguous", "last", "sliced", "shifted"])
@pytest.mark.parametrize("weight", [None, "pixel", "mask", "class", "sample", "element"])
def test_weights_and_layouts(layout: str, weight: str | None, emulation: build.Emulation) -> None:
    for dtype, classes, samplewise, smoothing in (
        (torch.float32, 4, False, 0.0),
        (torch.bfloat16, 7, True, 0.1),
        (torch.float16, 20, False, 0.1),
        (torch.float64, 4, True, 0.0),
    ):
        given = operands((2, classes, 5, 9), dtype=dtype, layout=layout, weight=weight)
        for extra, per_class in ((0, True), (1, False)):
            how = How(extra=extra, per_sample=samplewise, per_class=per_class,
                      label_smoothing=smoothing, scale=-1.5 if classes == 7 else 0.75)  # fmt: skip
            check(emulation, given, how)


@covering
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("target", [torch.int32, "soft", "onehot", "bytes"], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_sum(
    activation: str, target: torch.dtype | str, extra: int, emulation: build.Emulation
) -> None:
    for dtype, weight, smoothing, gamma, split, logs in (
        (torch.float32, None, 0.0, 2.0, False, None),
        (torch.float32, None, 0.0, 2.0, True, 0.2),
        (torch.float64, "element", 0.1, 1.5, False, 0.0),
        (torch.bfloat16, "elements", 0.1, 2.0, True, None),
    ):
        given = operands((2, 5, 3, 7), dtype=dtype, target=target, weight=weight,
                         probabilities=activation == "none")  # fmt: skip
        scale = 1.0 if activation == "none" else 1.25
        how = How(activation, scale, 0.0, weight is None, True, None, smoothing, extra, gamma,
                  split, logs)  # fmt: skip
        check(emulation, given, how)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_dense_targets_that_do_not_count(activation: str, emulation: build.Emulation) -> None:
    for target, ignored in (("soft", 255), ("bytes", 255), ("onehot", -100)):
        for shape in ((2, 3, 4, 5), (30, 6), (2, 1, 9)):
            given = operands(shape, target=target, ignore_index=ignored, weight="element",
                             probabilities=activation == "none")  # fmt: skip
            how = How(activation, ignore_index=ignored, extra=EVERY, label_smoothing=0.05)
            check(emulation, given, how)


def test_a_single_dimension(emulation: build.Emulation) -> None:
    x, t = torch.randn(50), torch.rand(50)
    how = How("sigmoid", extra=EVERY, label_smoothing=0.1, per_class=False)
    actual = emulation.confusion(x, t, None, *how.arguments())
    wanted = flat.confusion(x.double(), t.double(), None, *how.arguments())
    torch.testing.assert_close(actual, wanted, rtol=2e-6, atol=0)


# ---- what must not leak, and what must not be lost ---------------------------------------------


@covering
@pytest.mark.parametrize("shape", [(2, 4, 5, 8), (2, 7, 33), (2, 40, 9), (30, 12), (2, 300, 3)])
@pytest.mark.parametrize("extra", [0, 1, EVERY])
def test_nothing_leaks_from_what_does_not_count(
    shape: tuple[int, ...], extra: int, emulation: build.Emulation
) -> None:
    for activation, weight in (("softmax", None), ("softmax", "mask"), ("sigmoid", "mask")):
        given = operands(shape, weight=weight, ignore_index=1, wrong=True)
        how = How(activation, ignore_index=1, extra=extra)
        gone = ~((given.target >= 0) & (given.target < shape[1]) & (given.target != 1))
        if given.weight is not None:
            gone |= ~given.weight
        gone = gone.expand(shape)
        for value in (float("nan"), float("inf")):
            spoiled = given._replace(input=given.input.masked_fill(gone, value))
            sums = emulation.confusion(*spoiled, *how.arguments())
            clean = emulation.confusion(*given, *how.arguments())
            assert torch.equal(sums, clean)
            # With a sigmoid the weight of an infinite logit has an infinite gradient.
            for wrt in (0, 2) if activation == "softmax" or value != torch.inf else (0,):
                by = emulation.confusion_backward(None, clean, *spoiled, wrt, *how.arguments())
                assert torch.isfinite(by).all()
                if wrt == 0:
                    assert (by[gone] == 0).all()


@pytest.mark.parametrize("shape", [(1, 3, 64), (1, 12, 64), (1, 40, 9), (40, 6), (1, 300, 3)])
def test_certain_predictions_keep_their_digits(
    shape: tuple[int, ...], emulation: build.Emulation
) -> None:
    """Near p = 1, 1 - p is the sum of the other probabilities; sums and slopes keep its digits."""
    classes = shape[1]
    top = torch.randint(0, classes, (shape[0], 1, *shape[2:]))
    x = torch.randn(shape).scatter_add(1, top, torch.full(top.shape, 24.0))
    for target in (top, torch.zeros(shape).scatter_(1, top, 1.0)):
        for extra in (0, 1, EVERY & ~Extra.DISTANCE):  # |p - t| itself cancels here
            how = How(extra=extra, per_class=False)
            wide = (x.double(), target.double() if target.is_floating_point() else target, None)
            actual = emulation.confusion(x, target, None, *how.arguments())
            wanted = flat.confusion(*wide, *how.arguments())
            torch.testing.assert_close(actual, wanted, rtol=4e-6, atol=1e-300)
            by_sums = torch.zeros_like(wanted)
            by_sums[:4, 0, 0] = torch.tensor([-0.75, 0.5, 0.25, 0.125])
            found = emulation.confusion_backward(
                None, by_sums, x, target, None, 0, *how.arguments()
            )
            wanted = flat.confusion_backward(None, by_sums, *wide, 0, *how.arguments())
            torch.testing.assert_close(found.double(), wanted, rtol=4e-6, atol=1e-30)


def test_ties_and_infinite_logits(emulation: build.Emulation) -> None:
    for shape in ((1, 3, 40), (1, 12, 20), (1, 70, 3), (20, 6)):
        for extra in (1, EVERY):
            given = operands(shape, spread=1.0, wrong=False)
            # Few distinct values, so that several classes are largest.
            check(
                emulation, given._replace(input=given.input.round().clamp(-1, 1)), How(extra=extra)
            )
            check(emulation, given._replace(input=torch.zeros(shape)), How(extra=extra))
        lost = given.input.clone()
        lost[:, 1] = -torch.inf
        sums = emulation.confusion(lost, given.target, None, *How().arguments())
        assert torch.isfinite(sums).all() and (sums[0, 0, 1] == 0)


def test_a_nan_that_counts_is_told(emulation: build.Emulation) -> None:
    for shape in ((2, 3, 40), (2, 12, 40), (40, 6), (2, 300, 3)):
        given = operands(shape, wrong=False)
        given.input[1, 2] = float("nan")
        sums = emulation.confusion(*given, *How(per_class=False).arguments())
        assert torch.isnan(sums[:4]).any(), "a NaN vanished"
        by = emulation.confusion_backward(None, torch.ones_like(sums), *given, 0,
                                          *How(per_class=False).arguments())  # fmt: skip
        assert torch.isnan(by[1]).any()


# ---- scores, determinism, indices, launches ------------------------------------------------------

SCORING = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e-30, 0, 0)  # dice, smoothed


@covering
@pytest.mark.parametrize("average", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 90), (3, 12, 40), (60, 6), (2, 40, 7)], ids=str)
def test_scores(shape: tuple[int, ...], average: int, emulation: build.Emulation) -> None:
    given = operands(shape, weight="pixel")
    for per_sample, reduction in itertools.product((False, True), (0, 1, 2)):
        how = How(per_sample=per_sample, per_class=average != 0 or reduction != 1,
                  label_smoothing=0.1)  # fmt: skip
        call = (*how.arguments(), *SCORING, average, reduction)
        loss, coefficients = emulation.confusion_score(*given, *call)
        wanted, wanted_coefficients = flat.confusion_score(*given.wide(), *call)
        torch.testing.assert_close(loss.double(), wanted, rtol=4e-6, atol=1e-7)
        size = float(wanted_coefficients.abs().max())
        torch.testing.assert_close(coefficients, wanted_coefficients, rtol=1e-5, atol=1e-6 * size)


def test_a_score_is_of_four_sums(emulation: build.Emulation) -> None:
    given = operands((3, 4, 9))
    emulation.confusion(*given, *How().arguments())
    with pytest.raises(RuntimeError, match="four sums"):
        emulation.confusion_score(*given, *How(extra=1).arguments(), *SCORING, 0, 0)


CUTS = {
    "few": ((2, 3, 3000), How()),
    "few-log": ((1, 8, 2500), How(extra=1)),
    "tile": ((1, 40, 700), How(extra=1)),
    "rows": ((700, 20), How()),
    "any": ((2, 4, 1500), How(extra=EVERY)),
    "any-rows": ((400, 9), How("sigmoid", label_smoothing=0.1)),
    "many": ((2, 300, 20), How(per_class=False)),
}


@pytest.mark.parametrize("name", CUTS)
def test_same_bits_in_any_order_and_with_wide_indices(
    name: str, emulation: build.Emulation
) -> None:
    shape, how = CUTS[name]
    given = operands(shape, weight="pixel")
    check(emulation, given, how)
    found = []
    for seed in range(1, 5):
        emulation.seed(seed)
        emulation.wide_index(seed == 4)
        torch.use_deterministic_algorithms(seed == 3)  # fills what is allocated with NaN
        sums = emulation.confusion(*given, *how.arguments())
        by = emulation.confusion_backward(None, sums, *given, 0, *how.arguments())
        found.append((sums, by))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4)], ids=str)
def test_no_pixels(shape: tuple[int, ...], emulation: build.Emulation) -> None:
    x, t = torch.empty(shape), torch.empty((shape[0], 1, *shape[2:]), dtype=torch.int64)
    for how in (How(), How(extra=EVERY), How("sigmoid", per_class=False)):
        sums = emulation.confusion(x, t, None, *how.arguments())
        assert torch.equal(sums, flat.confusion(x, t, None, *how.arguments()))
        by = emulation.confusion_backward(None, sums, x, t, None, 0, *how.arguments())
        assert by.shape == x.shape


@pytest.mark.parametrize("name, forward, backward", [
    ("few", 2, 1), ("tile", 2, 1), ("rows", 2, 1), ("any", 3, 2), ("any-rows", 2, 1),
])  # fmt: skip
def test_launches(name: str, forward: int, backward: int, emulation: build.Emulation) -> None:
    shape, how = CUTS[name]
    given = operands(shape)
    before = emulation.launches()
    sums = emulation.confusion(*given, *how.arguments())
    assert emulation.launches() - before == forward
    before = emulation.launches()
    emulation.confusion_backward(None, sums, *given, 0, *how.arguments())
    assert emulation.launches() - before == backward


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("classes", CLASSES)
def test_all_of_it(
    classes: int, extra: int, dtype: torch.dtype, emulation: build.Emulation
) -> None:
    kinds = itertools.cycle(itertools.product((None, "pixel", "class"), (*LABELS, "soft")))
    for layout, smoothing in itertools.product(("contiguous", "last", "sliced"), (0.0, 0.1)):
        weight, target = next(kinds)
        given = operands((2, classes, 3, 11), dtype=dtype, target=target, weight=weight,
                         layout=layout, spread=8.0)  # fmt: skip
        check(emulation, given, How(extra=extra, label_smoothing=smoothing))
