"""The kernels of csrc/cuda, run on the CPU, make a NaN of class numbers that are none, and leave
out several values and NaN."""

from __future__ import annotations

import build
import flat
import pytest
import torch
from emulated import library, needs_a_compiler  # noqa: F401
from selection import covering
from test_emulated_pixel import EVERY, How, check, emulation, operands  # noqa: F401

pytestmark = needs_a_compiler

REFUSED = {
    "few": ((2, 3, 40), "softmax"),
    "few-rows": ((50, 4), "softmax"),
    "tile": ((2, 12, 40), "softmax"),
    "rows": ((60, 20), "softmax"),
    "any": ((2, 300, 3), "softmax"),
    "sigmoid": ((2, 5, 40), "sigmoid"),
}


@covering
@pytest.mark.parametrize("extra", [0, 1, EVERY])
@pytest.mark.parametrize("weight", [None, "pixel", "element"])
@pytest.mark.parametrize("kernel", REFUSED)
def test_a_class_number_that_is_none_makes_a_nan(
    kernel: str,
    weight: str | None,
    extra: int,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    """Of every sum of its sample, and of the gradient at its pixel, unless it weighs nothing."""
    shape, activation = REFUSED[kernel]
    given = operands(shape, weight=weight, wrong=False, ignore_index=-7)
    given.target[0, 0, ...] = 0
    given.target.reshape(-1)[0], given.target.reshape(-1)[1] = -7, 777
    how = How(
        activation, per_sample=True, ignore_index=(-7, 778), extra=extra, out_of_range="raise"
    )
    first = (0, 0, 1) if len(shape) == 3 else (1, 0)
    for weighs in (True, False) if weight else (True,):
        w = None
        if given.weight is not None:
            w = given.weight.clone()
            at = (first[0], slice(None), *first[2:])
            w[at] = 0.5 if weighs else 0.0
        found = emulation.confusion(given.input, given.target, w, *how.arguments())
        wide = given._replace(weight=w).wide()
        wanted = flat.confusion(*wide, *how._replace(out_of_range="ignore").arguments())
        lost = torch.zeros(shape[0], dtype=torch.bool)
        lost[first[0]] = weighs
        assert found[:, lost].isnan().all()
        torch.testing.assert_close(found[:, ~lost], wanted[:, ~lost], rtol=1e-5, atol=1e-5)
        # Each row another: of equal ones the gradient of an element is 0, and hides a NaN.
        by_sums = torch.arange(1.0, len(found) + 1, dtype=found.dtype)[:, None, None]
        by_sums = by_sums.expand_as(found).contiguous()
        by = emulation.confusion_backward(
            None, by_sums, given.input, given.target, w, 0, *how.arguments()
        )
        spoiled = torch.zeros(shape, dtype=torch.bool)
        spoiled[(first[0], slice(None), *first[2:])] = weighs
        assert torch.equal(by.isnan(), spoiled)


@covering
@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 12, 40), (60, 20), (2, 300, 3)], ids=str)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_several_class_numbers_are_ignored(
    shape: tuple[int, ...],
    activation: str,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    given = operands(shape, weight="pixel", wrong=True)
    for extra in (0, EVERY):
        check(emulation, given, How(activation, ignore_index=(1, 255, 2), extra=extra))


@covering
@pytest.mark.parametrize("shape", [(2, 3, 5, 33), (70, 8), (1, 1, 1500)], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("extra", [0, 1, EVERY])
@pytest.mark.parametrize("weight", [None, "element"])
def test_nan_and_several_values_of_a_dense_target_are_ignored(
    shape: tuple[int, ...],
    activation: str,
    extra: int,
    weight: str | None,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    given = operands(shape, target="soft", weight=weight, probabilities=activation == "none")
    which = torch.rand(shape)
    for number, value in enumerate((float("nan"), 7.0, -1.0)):
        place = (which > 0.1 * number) & (which < 0.1 * number + 0.1)
        given.target[place] = value
    for ignored in ((7, -1), (7, -1, 7)):
        how = How(activation, ignore_index=ignored, extra=extra, nan_targets="ignore")
        check(emulation, given, how)
