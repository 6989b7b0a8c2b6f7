"""Exponentials and logarithms, as torch has them or from few operations.

Inductor calls a function of a library for ``exp``, ``exp2`` and ``log`` of a vector, around which
every register is saved. A polynomial becomes part of the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Arithmetic(NamedTuple):
    """What a compiled form computes with, and how many elements it best adds up side by side."""

    exp: Callable[[Tensor], Tensor]
    log1p: Callable[[Tensor], Tensor]  # log(1 + x) for 0 <= x <= 1
    sigmoid: Callable[[Tensor], Tensor]
    pieces: int


def sigmoid_by(exp: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: 1 / (1 + exp(-x))


# ---- torch's own -----------------------------------------------------------------------------


def cheap_exp(x: Tensor) -> Tensor:
    """exp(x) as a power of two.

    On the CPU Inductor writes results of ``exp`` and ``sigmoid`` to memory where two reductions
    need them. Those of ``exp2`` it computes where they are needed.
    """
    return torch.exp2(x * math.log2(math.e))


def log1p(x: Tensor) -> Tensor:
    """A term below 6e-8 becomes 0 in float32: ``torch.log1p``, which keeps it, takes longer."""
    return (1 + x).log()


TORCH = Arithmetic(cheap_exp, log1p, sigmoid_by(cheap_exp), pieces=8)


# ---- polynomials -----------------------------------------------------------------------------


class _Exp(NamedTuple):
    """exp(x) as a polynomial of x / 2^squares, which is squared that many times.

    Beyond ``largest`` and -``largest`` the polynomial is no good, so the result stays as it is
    there: negligible beside 1, or so large that 1 is negligible beside it.
    ``coefficients`` begin with the highest power. What they are off by grows with the squares.
    """

    largest: float
    squares: int
    coefficients: tuple[float, ...]


_EXP = {
    # off by 2.5e-5 of the result at most
    torch.float32: _Exp(22.0, 5, (
        0.001409538686488669, 0.008498803187567195, 0.041661776936415276, 0.1666274653543015,
        0.5000002890844161, 1.00000231798774, 1.0,
    )),
    # off by 6e-11 of the result at most
    torch.float64: _Exp(44.0, 6, (
        2.782991302233076e-07, 2.7884679825158636e-06, 2.4800296988527507e-05,
        0.0001983971991535438, 0.0013888891558882172, 0.008333336540891172,
        0.041666666644123634, 0.1666666663958342, 0.5000000000005328, 1.0000000000064015, 1.0,
    )),
}  # fmt: skip
# log(1 + x) / x for 0 <= x <= 1, with an error below 4e-8
_LOGARITHM = (
    0.005126102140966913, -0.0290740646774942, 0.07751608674036942, -0.13602247622479405,
    0.19076880735747795, -0.24835398988515545, 0.3331812170753319, -0.49999444976340096, 1.0,
)  # fmt: skip


def within(x: Tensor, largest: float) -> Tensor:
    """Numbers from -``largest`` to ``largest``; a NaN, which is neither below nor above, stays."""
    x = torch.where(x < -largest, float(-largest), x)
    return torch.where(x > largest, float(largest), x)


def horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    first, second, *others = coefficients
    value = x * first + second
    for each in others:
        value = value * x + each
    return value


def polynomial_exp(x: Tensor) -> Tensor:
    """Of the squares of a polynomial; see also ``exp_by_bits``."""
    largest, squares, coefficients = _EXP[x.dtype]
    x = within(x, largest)
    value = horner(x * 0.5**squares, coefficients)
    for _ in range(squares):
        value = value.square()
    return value


def polynomial_log1p(x: Tensor) -> Tensor:
    """In float64 it would have more than twenty terms."""
    return x * horner(x, _LOGARITHM) if x.dtype == torch.float32 else log1p(x)


_polynomial_sigmoid = sigmoid_by(polynomial_exp)
POLYNOMIAL = Arithmetic(polynomial_exp, polynomial_log1p, _polynomial_sigmoid, pieces=4)


# ---- a power of two whose exponent is added as bits --------------------------------------------


class _Bits(NamedTuple):
    """2^n is a number whose bits hold n from the place ``mantissa`` on, above ``bias``.

    ``coefficients`` are those of 2^f for -1/2 <= f <= 1/2.
    """

    integer: torch.dtype
    mantissa: int
    least: int  # an n whose 2^n is no subnormal number
    coefficients: tuple[float, ...]


_BITS = {
    # off by 2.6e-6 of the result at most
    torch.float32: _Bits(torch.int32, 23, -126, (
        0.009570101434054734, 0.055917860281970676, 0.24024744839645962, 0.6931218147436673,
        0.9999992614421657,
    )),
    # off by 4.1e-11 of the result at most
    torch.float64: _Bits(torch.int64, 52, -1022, (
        1.520192112245463e-05, 0.0001546929114168219, 0.0013333922565571636, 0.00961802725366745,
        0.05550410353445436, 0.24022651198157685, 0.6931471807284483, 0.9999999999616815,
    )),
}  # fmt: skip


def exp_by_bits(x: Tensor) -> Tensor:
    """Adding n to the bits of the exponent multiplies by 2^n."""
    bits = _BITS[x.dtype]
    y = x * math.log2(math.e)
    y = within(y, -bits.least)
    n = y.round()
    value = horner(y - n, bits.coefficients)
    shifted = n.to(bits.integer) << bits.mantissa
    return (value.view(bits.integer) + shifted).view(x.dtype)


BITS = Arithmetic(exp_by_bits, polynomial_log1p, sigmoid_by(exp_by_bits), pieces=4)


# ---- a sigmoid without an exponential ----------------------------------------------------------


class _Rational(NamedTuple):
    """sigmoid(x) - 1/2 is x above(x^2) / below(x^2) for -largest <= x <= largest."""

    largest: float
    above: tuple[float, ...]
    below: tuple[float, ...]


_SIGMOID = {
    # off by 7e-7 at most
    torch.float32: _Rational(
        14.0,
        (1.5351730921958108e-08, 3.557825622933406e-05, 0.0076888845619074685, 0.2499989258175165),
        (2.22425429045519e-06, 0.0013170184734856225, 0.114085168643618, 1.0),
    ),
    # off by 2.2e-9 at most, for the largest, and by 6.1e-11 for others
    torch.float64: _Rational(
        20.0,
        (7.855587462893916e-15, 1.0115142990204892e-10, 1.5984494693544082e-07,
         6.832628030654825e-05, 0.008787043059698607, 0.24999999983631344),
        (2.6115730376513927e-12, 9.684772297133633e-09, 7.666663450463901e-06,
         0.0018134307678324617, 0.11848150482993006, 1.0),
    ),
}  # fmt: skip


def rational_sigmoid(x: Tensor) -> Tensor:
    """Of small absolute error. A probability near 0 has few digits that are right."""
    largest, above, below = _SIGMOID[x.dtype]
    x = within(x, largest)
    square = x * x
    return x * horner(square, above) / horner(square, below) + 0.5


RATIONAL = Arithmetic(polynomial_exp, polynomial_log1p, rational_sigmoid, pieces=4)


def options() -> dict[str, Any]:
    """Of Inductor: a product and a sum become one operation, and nothing is written to memory only
    because it has many operations. The second is no option of older versions of torch."""
    from torch._inductor import config

    wanted = {
        "cpp.enable_floating_point_contract_flag": "fast", "realize_opcount_threshold": 100_000,
    }  # fmt: skip
    known = config.get_config_copy()
    return {name: value for name, value in wanted.items() if name in known}
