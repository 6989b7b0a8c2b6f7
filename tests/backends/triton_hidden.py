"""What a class of weight 0 holds reaches nothing in Triton's kernels; test_triton_interpret.py runs
this on Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton_package
from cases import Case
from hidden import LOSSES, assert_hidden, every_second, loss_of_the_others
from selection import covering

import customloss

triton_package.load()

# numpy warns about inf - inf and 0 * inf, which a GPU computes silently
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]

LAYOUTS = ("contiguous", "class_last")
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with customloss.backend("triton"):
        yield


@covering
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 19), (20, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES["sigmoid"])
def test_elements(name: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    loss = loss_of_the_others(name, "sigmoid", shape[1])
    for target, weight in ((torch.bool, None), (None, "full")):
        case = Case("hidden", shape, layout=layout, target=target, weight=weight)
        assert_hidden(loss, case.build(dtype), every_second(shape[1]), layout=layout)


# The classes of the last do not fit a tile, so that a program walks over them.
@covering
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7), (9, 5), (2, 2500)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES["softmax"])
def test_targets_of_a_softmax(
    name: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    loss = loss_of_the_others(name, "softmax", shape[1])
    for target, weight in ((None, None), (None, "full"), (torch.int64, "full")):
        kind = "dense" if target is None else "numbers"
        case = Case("hidden", shape, layout=layout, target=target, kind=kind, weight=weight)
        sample = case.build(dtype)
        assert_hidden(loss, sample, every_second(shape[1]), True, layout)


def test_a_nan_is_no_absent_class() -> None:
    x, t = torch.randn(6, 3), torch.zeros(6, 3, dtype=torch.bool)
    t[0, 1:] = True
    assert customloss.dice_loss(x, t, absent="skip").isfinite()
    x[2, 0] = float("nan")
    assert customloss.dice_loss(x, t, absent="skip").isnan()
    assert customloss.dice_loss(x, t, absent="penalize").isnan()
