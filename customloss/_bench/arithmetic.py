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
    pieces: int


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


TORCH = Arithmetic(cheap_exp, log1p, pieces=8)


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


def horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    first, second, *others = coefficients
    value = x * first + second
    for each in others:
        value = value * x + each
    return value


def polynomial_exp(x: Tensor) -> Tensor:
    """Adding to the bits of the exponent, in place of squares, is slower with half inputs."""
    largest, squares, coefficients = _EXP[x.dtype]
    # a NaN is neither below nor above
    x = torch.where(x < -largest, -largest, x)
    x = torch.where(x > largest, largest, x)
    value = horner(x * 0.5**squares, coefficients)
    for _ in range(squares):
        value = value.square()
    return value


def polynomial_log1p(x: Tensor) -> Tensor:
    """In float64 it would have more than twenty terms."""
    return x * horner(x, _LOGARITHM) if x.dtype == torch.float32 else log1p(x)


POLYNOMIAL = Arithmetic(polynomial_exp, polynomial_log1p, pieces=4)


def options() -> dict[str, Any]:
    """Of Inductor: a product and a sum become one operation, and nothing is written to memory only
    because it has many operations. The second is no option of older versions of torch."""
    from torch._inductor import config

    wanted = {
        "cpp.enable_floating_point_contract_flag": "fast", "realize_opcount_threshold": 100_000,
    }  # fmt: skip
    known = config.get_config_copy()
    return {name: value for name, value in wanted.items() if name in known}
