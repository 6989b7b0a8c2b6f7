"""Every returned element is written: results are right even if all memory starts as NaN."""

from __future__ import annotations

from collections.abc import Iterator

import cases
import pixel_cases
import pytest
import torch
from cases import Case
from judge import assert_right, assert_sums_right, soft_f1


@pytest.fixture(autouse=True)
def _filled() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def test_memory_is_filled() -> None:
    assert torch.empty(3).isnan().all()
    # C++ allocates the sums, and has to write them even if there is nothing to add.
    sums = torch.ops.customloss.confusion_sums(torch.zeros(0, 3), torch.zeros(0, 3))
    assert not sums.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize(
    "case",
    (*cases.SIZES, cases.FLUSHED, *cases.MIXED_LAYOUTS, *cases.WEIGHTED, *cases.OPTIONED),
    ids=str,
)
def test_everything_is_written(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize(
    "case",
    (*pixel_cases.SIZES, *pixel_cases.MIXED_LAYOUTS, *pixel_cases.READ, *pixel_cases.WEIGHTED),
    ids=str,
)
def test_everything_is_written_of_pixels(case: Case, dtype: torch.dtype) -> None:
    sample = case.build(dtype)
    assert_right(soft_f1, sample)
    if sample.input.numel() < 5000:
        assert_sums_right(sample, log_loss=True, distance=True)


def test_gradients_of_gaps_are_dense() -> None:
    """The gradient of a sliced operand is dense, so it has no gaps that nobody writes."""
    for layout in ("sliced", "stepped", "expanded_class"):
        sample = Case("x", (6, 4), layout=layout, target=None).build(requires_grad=True)
        for gradient in torch.autograd.grad(
            soft_f1(*sample.operands), (sample.input, sample.target)
        ):
            assert gradient.untyped_storage().nbytes() == gradient.nbytes
