"""What a class of weight 0 holds reaches nothing, in any kernel of csrc/cuda, run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import build
import pytest
import torch
from cases import INPUT_DTYPES, Case, short
from emulated import library, needs_a_compiler  # noqa: F401
from hidden import LOSSES, assert_hidden, every_second, loss_of_the_others
from selection import covering

from customloss._backends import choice

pytestmark = needs_a_compiler


@pytest.fixture
def emulation(
    library: build.Emulation,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[build.Emulation]:
    """Makes the public losses run on the emulated kernels."""
    monkeypatch.setattr(choice, "primitives", lambda input: library.primitives)
    library.seed(1)
    before = library.launches()
    yield library
    assert library.launches() > before, "no kernel of ours was run"


# Planes of whole vectors and with edges, short runs, folded rows with a tail, bands, columns in
# tiles, and more groups than a block scores.
SHAPES = ((2, 3, 64), (3, 2, 19), (2, 3, 700), (67, 9), (300, 8), (70, 300), (2, 1300))
LAYOUTS = ("contiguous", "class_last", "sliced", "transposed")


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES["sigmoid"])
def test_elements(
    name: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype, emulation: build.Emulation
) -> None:
    loss = loss_of_the_others(name, "sigmoid", shape[1])
    for target, weight in ((torch.bool, None), (None, "full")):
        case = Case("hidden", shape, layout=layout, target=target, weight=weight)
        assert_hidden(loss, case.build(dtype), every_second(shape[1]), layout=layout)


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("shape", [(2, 3, 19), (40, 9), (3, 40, 4)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES["softmax"])
def test_targets_of_a_softmax(
    name: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype, emulation: build.Emulation
) -> None:
    loss = loss_of_the_others(name, "softmax", shape[1])
    for weight in (None, "full"):
        case = Case("hidden", shape, layout=layout, target=None, weight=weight)
        assert_hidden(loss, case.build(dtype), every_second(shape[1]), True, layout)


def test_class_numbers(emulation: build.Emulation) -> None:
    """With a sigmoid the logits of a class are its own."""
    for shape, weight in (((2, 3, 40), None), ((2, 3, 40), "full"), ((50, 9), "class")):
        case = Case("hidden", shape, kind="numbers", target=torch.int64, weight=weight)
        for name in ("dice", "dice_bce", "dice_focal"):
            loss = loss_of_the_others(name, "sigmoid", shape[1])
            assert_hidden(loss, case.build(), every_second(shape[1]))
