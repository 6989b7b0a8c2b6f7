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
    "bits": arithmetic.BITS,
    "rational": arithmetic.RATIONAL,
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
    exp = arithmetic.exp_by_bits
    assert (exp(large[1:]) > 1e37).all() and exp(large).isfinite().all()
    assert (exp(-large[1:]) < 1e-37).all() and (exp(-large) > 0).all()
    assert exp(ends * math.nan).isnan().all()


_SIGMOID_ERROR = {torch.float32: 1e-6, torch.float64: 2.5e-9}


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("name", _ALL)
def test_a_sigmoid_is_right_and_stays_so_beyond_its_range(name: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-50, 50, 100_001, dtype=dtype), torch.tensor([math.inf])])
    found = _ALL[name].sigmoid(x.to(dtype)).double()
    assert float((found - x.double().sigmoid()).abs().max()) < _SIGMOID_ERROR[dtype]
    found = _ALL[name].sigmoid(-x.to(dtype)).double()
    assert float((found - (-x.double()).sigmoid()).abs().max()) < _SIGMOID_ERROR[dtype]
    assert _ALL[name].sigmoid(torch.tensor([math.nan], dtype=dtype)).isnan().all()


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
