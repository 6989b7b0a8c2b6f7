"""Random calls of every loss agree with formulas that share nothing with the package.

The formulas are in support/oracle.py and support/oracle_losses.py, written from the documentation
and computed in float64. ``CUSTOMLOSS_FUZZ=10000 pytest tests/values/test_differential.py -m ""``
tries more seeds; ``CUSTOMLOSS_CPU_ISA`` chooses the instruction set. A failure prints a
program that repeats it, as small as it could be made: make a test of that, where its subject is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace

import oracle
import oracle_losses
import pytest
import torch
from drawn_calls import NAMES, Call, drawn_call, drawn_sums
from judge import ROUNDING
from oracle import Noise
from oracle_losses import SCORES
from pasteable import code, smaller
from selection import one_of_each
from torch import Tensor

import customloss

SEEDS = int(os.environ.get("CUSTOMLOSS_FUZZ", "1200"))
PARTS = 12

# The relative error of a sum: of an element in float32, whose logit is rounded before its
# exponential is taken, and of the float64 of both sides.
ERROR_OF = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.float16: 4e-6,
    torch.bfloat16: 4e-6,
}
# What is left of numbers of float64 where all of them cancel, relative to the loss: as of a
# gradient by a weight that all elements of a group share.
CANCELLED = 5e-15


# ---- what is compared ----------------------------------------------------------------------------


def leaves_of(call: Call) -> dict[str, Tensor]:
    """The tensors of the call that are differentiated, by name."""
    operands = {"input": call.input, "target": call.target, "weight": call.weight}
    named = {**operands, **call.options}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, Tensor) and value.requires_grad
    }


def in_float64(call: Call) -> Call:
    """The same numbers in float64, class numbers as int64; leaves of their own."""

    def widened(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        wide = value.detach().to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        return wide.requires_grad_(value.requires_grad)

    options = {name: widened(value) for name, value in call.options.items()}
    operands = {name: widened(getattr(call, name)) for name in ("input", "target", "weight")}
    return replace(call, options=options, **operands)


def outer(value: Tensor) -> Tensor:
    """An incoming gradient that float32 holds, with no two numbers alike."""
    drawn = torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) + 0.5
    return drawn.double()


Result = tuple[Tensor, dict[str, Tensor]]


def differentiated(value: Tensor, call: Call) -> Result:
    """The value and the gradients; a leaf that the value does not depend on has zeros."""
    leaves = leaves_of(call)
    if not value.requires_grad:
        return value, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(
        value, list(leaves.values()), outer(value).to(value.dtype), materialize_grads=True
    )
    return value.detach(), dict(zip(leaves, found, strict=True))


def by_formula(call: Call, noise: Noise) -> Result:
    wide = in_float64(call)
    value = oracle_losses.loss(
        call.name, call.score, wide.input, wide.target, wide.weight, wide.options, noise
    )
    return differentiated(value, wide)


def by_package(call: Call) -> Result:
    with warnings.catch_warnings():
        # a drawn batch may look odd, which a module says of its first one
        warnings.simplefilter("ignore", UserWarning)
        return differentiated(call.run(), call)


def sums_by_package(call: Call) -> tuple[dict[str, Tensor], Result, tuple[str, ...]]:
    """The hard counts, the other sums in rows with their gradients, and the names of these."""
    sums = customloss.confusion_sums(call.input, call.target, call.weight, **call.options)
    found = {name: value for name, value in sums._asdict().items() if value is not None}
    hard = found.pop("hard", None)
    of_hard = {} if hard is None else {f"hard_{n}": row for n, row in hard._asdict().items()}
    return of_hard, differentiated(torch.stack(list(found.values())), call), tuple(found)


# ---- how near ------------------------------------------------------------------------------------


def assert_near(
    what: str, actual: Tensor, exact: Tensor, noisy: list[Tensor], error: float, size: float = 1.0
) -> None:
    """``actual`` is ``exact`` up to what errors of its sums make of it, and one rounding.

    ``noisy`` are results of the formula whose sums have errors: where a formula cancels, they show
    how much of it is left. An element is also allowed the error of the largest one; ``size`` is
    that of the loss.
    """
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, not {exact.shape}"
    rounding, least = ROUNDING[actual.dtype]
    most = torch.finfo(actual.dtype).max
    exact = torch.where(exact.abs() > most, exact * torch.inf, exact)
    finite = exact[exact.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    allowed = (rounding + error) * exact.abs() + error * scale + least + CANCELLED * size
    for other in noisy:
        allowed = allowed + 4 * (other - exact).abs().nan_to_num(0, 0)
    actual = actual.double()
    off = ((actual - exact).abs() > allowed) | (actual.isnan() != exact.isnan())
    off = off & (actual != exact)  # two infinite numbers are equal
    if bool(off.any()):
        first = tuple(int(i) for i in off.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(off.sum())} of {actual.numel()} numbers differ, first at {first}: got "
            f"{float(actual[first])}, expected {float(exact[first])} up to {float(allowed[first])}"
        )


def judge(
    found: Result, formula: Callable[[Noise], Result], error: float, names: tuple[str, ...] = ()
) -> None:
    """Raises an error where the package and the formula disagree; ``names`` are those of rows of
    the value, each of which is judged by itself."""

    def parts(result: Result) -> dict[str, Tensor]:
        value, gradients = result
        rows = dict(zip(names, value, strict=True)) if names else {"loss": value}
        return {**rows, **{f"gradient by {name}": each for name, each in gradients.items()}}

    exactly = formula(Noise())
    own, exact = parts(found), parts(exactly)
    size = max(1.0, float(exactly[0].abs().nan_to_num(0, 0).sum()))
    noisy: list[dict[str, Tensor]] | None = None
    for name, value in own.items():
        # by a float32 weight of classes, both parts of a compound are rounded before they are added
        allowed = max(error, ERROR_OF[value.dtype]) if name.startswith("gradient") else error
        try:
            assert_near(name, value, exact[name], [], allowed, size)
        except AssertionError:
            noisy = noisy or [parts(formula(Noise(error, seed))) for seed in (1, 2)]
            others = [other[name] for other in noisy]
            assert_near(name, value, exact[name], others, allowed, size)


def compare(call: Call) -> None:
    """A loss and its gradients."""
    value, gradients = by_package(call)
    wide = torch.float64 if call.input.dtype == torch.float64 else torch.float32
    assert value.dtype == wide, f"loss: {value.dtype}"
    for name, leaf in leaves_of(call).items():
        assert gradients[name].dtype == leaf.dtype, f"gradient by {name}: {gradients[name].dtype}"
    judge((value, gradients), lambda noise: by_formula(call, noise), ERROR_OF[call.input.dtype])


def compare_sums(call: Call) -> None:
    """The same of the sums; hard counts are exact where weights are, and have no gradient."""
    hard, found, names = sums_by_package(call)

    def by_formula_of(wanted: tuple[str, ...], noise: Noise) -> Result:
        wide = in_float64(call)
        named = oracle.confusion_sums(wide.input, wide.target, wide.weight, wide.options, noise)
        return differentiated(torch.stack([named(name) for name in wanted]), wide)

    error = ERROR_OF[call.input.dtype]
    judge(found, lambda noise: by_formula_of(names, noise), error, names)
    if hard:
        counts, _ = by_formula_of(tuple(hard), Noise())
        for (name, row), expected in zip(hard.items(), counts, strict=True):
            assert row.dtype == torch.float64 and not row.requires_grad
            assert_near(name, row, expected, [], error)


def run(seed: int, drawn: Callable[[int], Call], compare: Callable[[Call], None]) -> None:
    """Compares one call; of a failure, a smaller one is printed."""
    call = drawn(seed)
    try:
        compare(call)
    except Exception as error:
        kind = type(error)

        def fails(other: Call) -> bool:
            try:
                compare(other)
            except Exception as own:
                return type(own) is kind
            return False

        small = smaller(call, fails)
        try:
            compare(small)
        except Exception as own:
            text = f"{type(own).__name__}: {own}"
        raise AssertionError(
            f"{drawn.__name__}({seed}): {kind.__name__}: {error}\n\nas small as it gets:\n"
            f"{code(small)}\n{text}"
        ) from None


# ---- tests ---------------------------------------------------------------------------------------


def test_every_loss_is_drawn() -> None:
    """A new loss needs its formula in oracle_losses.py, and a line in drawn_calls.py."""
    missing = set(customloss.loss_names()) - set(NAMES) - set(SCORES)
    assert not missing


@one_of_each(lambda part: part % 4)
@pytest.mark.parametrize("part", range(PARTS))
def test_losses(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        run(seed, drawn_call, compare)


@one_of_each(lambda part: part % 2)
@pytest.mark.parametrize("part", range(4))
def test_sums(part: int) -> None:
    for seed in range(part, max(SEEDS // 10, 1), 4):
        run(seed, drawn_sums, compare_sums)


def test_losses_of_the_reference_backend() -> None:
    """The specification in torch keeps the same contract."""
    with customloss.backend("reference"):
        for seed in range(0, SEEDS, 16):
            run(seed, drawn_call, compare)
