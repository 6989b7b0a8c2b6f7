"""Softmax, class numbers and the further sums have the reference's values and gradients."""

from __future__ import annotations

import pixel_cases
import pytest
import torch
from cases import INPUT_DTYPES, LAYOUTS, Case, short
from judge import assert_right, assert_sums_right, soft_f1
from pixel_cases import EXTRAS, READINGS, numbered, reading
from selection import covering

import customloss


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", pixel_cases.SIZES, ids=str)
def test_sizes(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize(
    "case", (*pixel_cases.LABELS, *pixel_cases.WEIGHTED, *pixel_cases.MIXED_LAYOUTS), ids=str
)
def test_labels_weights_and_layouts(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*pixel_cases.READ, *pixel_cases.OPTIONED), ids=str)
def test_readings_and_options(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-shares"])
def test_readings_by_layout(name: str, layout: str) -> None:
    for shape in ((5, 4), (3, 4, 70), (2, 3, 4, 5)):
        case = reading(name, shape, layout=layout, weight="full", weight_layout=layout)
        assert_right(soft_f1, case.build())
        assert_sums_right(case.build(), log_loss=True)


# ---- the further sums ----------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", READINGS)
def test_further_sums(name: str, extra: str) -> None:
    for shape, weight, layout in (
        ((23, 5), None, "contiguous"),
        ((2, 3, 5, 7), "pixel", "class_last"),
    ):
        case = reading(name, shape, weight=weight, layout=layout)
        assert_sums_right(case.build(), **EXTRAS[extra])


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("name", READINGS)
def test_further_sums_of_every_dtype(name: str, dtype: torch.dtype) -> None:
    sample = reading(name, (3, 4, 11), weight="full", layout="transposed").build(dtype)
    assert_sums_right(sample, **EXTRAS["every"])
    assert_sums_right(sample, log_loss=True)


@pytest.mark.parametrize("case", [c for c in pixel_cases.SIZES if c.shape[0] < 2000], ids=str)
def test_further_sums_of_every_size(case: Case) -> None:
    assert_sums_right(case.build(), log_loss=True)
    assert_sums_right(case.build(), log_loss=True, hard=True, squares=True)


@covering
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-smoothed", "sigmoid-ignored"])
def test_further_sums_of_some_tiles(name: str, extra: str) -> None:
    """These sizes have the runs, tiles and tails of every loop."""
    for dtype in (torch.float32, torch.bfloat16):
        assert_sums_right(reading(name, (1063, 3)).build(dtype), **EXTRAS[extra])
        assert_sums_right(reading(name, (1063, 3), weight="pixel").build(dtype), **EXTRAS[extra])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(
    "name", ["softmax-numbers", "softmax-shares", "sigmoid-ignored", "none-smoothed"]
)
def test_focal_exponents(name: str, gamma: float) -> None:
    for dtype in (torch.float32, torch.float64):
        assert_sums_right(reading(name, (40, 3)).build(dtype), focal=True, focal_gamma=gamma)


@covering
@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("name", ["softmax-numbers", "sigmoid-ignored-soft"])
def test_groups_of_further_sums(name: str, samplewise: bool, average: str) -> None:
    options = {"samplewise": samplewise, "average": average}
    for shape in ((9, 4), (3, 5, 40), (2, 3, 4, 5)):
        sample = reading(name, shape, weight="class", options=options).build()
        for extra in ({}, EXTRAS["log_loss"], EXTRAS["every"]):
            assert_sums_right(sample, **extra)


def test_further_sums_by_name() -> None:
    """The function returns by name the rows that the operator returns in order."""
    sample = numbered("x", (6, 3)).build(torch.float64)
    raw = torch.ops.customloss.confusion_sums(*sample.operands, **sample.options, **EXTRAS["every"])
    own = customloss.confusion_sums(*sample.operands, **sample.options, **EXTRAS["every"])
    names = customloss.reference.rows(63)
    assert len(names) == len(raw) == 19
    for name, row in zip(names, raw[:, 0]):
        found = getattr(own.hard, name[5:]) if name.startswith("hard_") else getattr(own, name)
        assert torch.equal(found, row)
    assert customloss.confusion_sums(*sample.operands, **sample.options, squares=True).hard is None
