"""The functions that compiled rivals compute with are as right as they say, everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from customloss._bench import arithmetic

_DTYPES = (torch.float32, torch.float64)
_ALL = {
    "torch": arithmetic.TORCH,
    "polynomial": arithmetic.POLYNOMIAL,
}
_EXP_ERROR = {torch.float32: 2.5e-5, torch.float64: 6e-11}


def _largest(dtype: torch.dtype) -> float:
    return arithmetic._EXP[dtype].largest


def _error(found: Tensor, right: Tensor) -> float:
    return float(((found.double() - right.double()) / right.double()).abs().max())


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("name", _ALL)
def test_an_exponential_is_right(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-_largest(dtype), _largest(dtype), 100_001, dtype=dtype)
    assert _error(_ALL[name].exp(x), x.double().exp()) < _EXP_ERROR[dtype]


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_beyond_its_range_an_exponential_stays_the_same(dtype: torch.dtype) -> None:
    large = torch.tensor([100.0, 3e38, math.inf], dtype=dtype)
    ends = torch.tensor([_largest(dtype)], dtype=dtype)
    exp = arithmetic.polynomial_exp
    assert torch.equal(exp(large), exp(ends).expand(3))
    assert torch.equal(exp(-large), exp(-ends).expand(3))
    assert exp(ends * math.nan).isnan().all()


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("name", _ALL)
def test_a_logarithm_is_right(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(0, 1, 10_001, dtype=dtype)
    error = (_ALL[name].log1p(x).double() - x.double().log1p()).abs().max()
    assert float(error) < (2e-7 if dtype == torch.float32 else 1e-15)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's, at its first import
def test_options_are_those_of_this_torch() -> None:
    torch.compile(lambda x: x, options=arithmetic.options())  # refuses an unknown name
    assert "cpp.enable_floating_point_contract_flag" in arithmetic.options()
