"""Sizes that a kernel has not seen seldom compile it again.

Triton compiles a kernel anew for every combination of arguments that are 1, or a multiple of 16,
and of the constants that a launcher derives from the shape. Here 50 shapes are drawn for each
operator and layout, the launchers run unchanged, and Triton says which variants it would compile;
none is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton_package  # noqa: E402
from compiled_triton import Variants  # noqa: E402

triton_package.load()

from customloss._spec.arguments import (  # noqa: E402
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
)
from customloss._spec.words import INPUT, SIGMOID, SOFTMAX  # noqa: E402
from customloss.kernels import confusion as kernels  # noqa: E402
from customloss.kernels import layout, pixel  # noqa: E402
from customloss.reference import Extra  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not isinstance(kernels.sums_kernel, triton.JITFunction),
        reason="TRITON_INTERPRET=1: there is nothing to compile",
    ),
]

SHAPES = 50
SOFT_F1 = Scoring(2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
DICE_AND_LOG = Pointwise(0.5, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0)
BY_CLASS = Elements(SIGMOID, 1.0, 0.0, False, True)


@pytest.fixture
def variants() -> Iterator[Variants]:
    with Variants().counted() as result:
        yield result
    # what was planned for shapes of this test would stay in their caches
    layout.plan.cache_clear()
    pixel.prepare.cache_clear()


# ---- layouts ---------------------------------------------------------------------------------


def _empty(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Tensor:
    """Memory that nothing touches."""
    if kind == "channels_last":
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    if kind == "crops":
        whole = torch.empty(*shape[:2], shape[2] + 3, shape[3] + 5, dtype=dtype)
        return whole[:, :, 2:-1, 1:-4]
    return torch.empty(shape, dtype=dtype)


def _shapes(kind: str, classes: int | None) -> Iterator[tuple[int, ...]]:
    """Always the same; with classes, batches and sides as chance has them."""
    draw = random.Random(0)
    for _ in range(SHAPES):
        c = classes or draw.randint(2, 40)
        if kind == "rows":
            yield draw.randint(1, 5000), c
        else:
            yield draw.randint(1, 16), c, draw.randint(1, 600), draw.randint(1, 600)


# ---- operators -------------------------------------------------------------------------------


def _step(input: Tensor, target: Tensor, weight: Tensor | None, elements: Elements) -> None:
    """Forward and backward of a loss that is one score."""
    data = Data(input, target, weight)
    loss, coefficients = kernels.confusion_score(data, elements, SOFT_F1)
    kernels.confusion_backward(Incoming(loss, coefficients), data, Wrt(INPUT), elements)


def _masks(shape: tuple[int, ...], kind: str, elements: Elements = BY_CLASS) -> None:
    _step(_empty(shape, torch.float32, kind), _empty(shape, torch.bool, kind), None, elements)


def _pooled_masks(shape: tuple[int, ...], kind: str) -> None:
    _masks(shape, kind, BY_CLASS._replace(per_class=False))


def _masks_by_sample(shape: tuple[int, ...], kind: str) -> None:
    _masks(shape, kind, BY_CLASS._replace(per_sample=True))


def _weighed(shape: tuple[int, ...], kind: str) -> None:
    """A target that is soft, and a weight of every pixel."""
    pixels = (shape[0], 1, *shape[2:])
    _step(
        _empty(shape, torch.bfloat16, kind), _empty(shape, torch.float32, kind),
        _empty(pixels, torch.float32, kind), BY_CLASS,
    )  # fmt: skip


def _labels(shape: tuple[int, ...], kind: str) -> None:
    elements = BY_CLASS._replace(activation=SOFTMAX, ignore_index=(255,))
    labels = torch.empty(shape[0], 1, *shape[2:], dtype=torch.int64)
    _step(_empty(shape, torch.float32, kind), labels, None, elements)


def _compound(shape: tuple[int, ...], kind: str) -> None:
    """Dice with a cross-entropy: sums, their score, and back."""
    extra = int(Extra.LOG_LOSS)
    elements = BY_CLASS._replace(activation=SOFTMAX, extra=extra)
    labels = torch.empty(shape[0], 1, *shape[2:], dtype=torch.int64)
    data = Data(_empty(shape, torch.float16, kind), labels, None)
    sums = kernels.confusion(data, elements)
    group_sums = GroupSums(sums, None, extra, False, False)
    loss, coefficients = kernels.sums_score(group_sums, SOFT_F1, DICE_AND_LOG)
    kernels.confusion_backward(Incoming(loss, coefficients), data, Wrt(INPUT), elements)


OPERATORS = (_masks, _pooled_masks, _masks_by_sample, _weighed, _labels, _compound)
Operator = Callable[[tuple[int, ...], str], None]


# ---- how many --------------------------------------------------------------------------------

# A dense layout has a variant for each combination of: loads of 16 bytes or not, one tile for a
# program or several, one sample or several, and full tiles or not. A crop has an innermost axis of
# its own, whose length is rounded to a power of two.
MOST = {"planar": 8, "channels_last": 8, "rows": 4, "crops": 20}
# The groups of every sample apart are as many as there are samples, rounded likewise.
MOST_BY_SAMPLE = 18
# Numbers of classes from 2 to 40 are rounded likewise, and are 1, 2 or 4 times odd numbers.
MOST_WITH_CLASSES = 26


@pytest.mark.parametrize("classes", [4, 21, 150])
@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.__name__.strip("_"))
def test_images_of_other_sizes(
    variants: Variants, operator: Operator, kind: str, classes: int
) -> None:
    for shape in _shapes(kind, classes):
        operator(shape, kind)
    most = MOST_BY_SAMPLE if operator is _masks_by_sample else MOST[kind]
    counts = variants.counts()
    assert counts and max(counts.values()) <= most, counts


@pytest.mark.parametrize("kind", [kind for kind in MOST if kind != "crops"])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.__name__.strip("_"))
def test_other_numbers_of_classes(variants: Variants, operator: Operator, kind: str) -> None:
    for shape in _shapes(kind, None):
        operator(shape, kind)
    counts = variants.counts()
    assert counts and max(counts.values()) <= MOST_WITH_CLASSES, counts


def test_every_variant_is_counted_once(variants: Variants) -> None:
    """And none that another test has compiled is left out."""
    for _ in range(2):
        _masks((2, 4, 64, 64), "planar")
    assert variants.counts() == {"sums_kernel": 1, "score_kernel": 1, "gradient_kernel": 1}
    _masks((2, 4, 63, 63), "planar")
    assert variants.counts()["sums_kernel"] == 2
    with Variants().counted() as again:
        _masks((2, 4, 64, 64), "planar")
    assert again.counts()["sums_kernel"] == 1
