"""Drawn option sets of the losses of peers, and the comparison with the installed peer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """A call of a loss of a peer."""

    options: dict[str, Any]
    input: Tensor
    operands: tuple[Any, ...]
    tolerance: float


class Outcome(NamedTuple):
    """What became of the drawn calls of one loss."""

    accepted: int  # by the peer, with finite numbers
    refused: int  # by us, with a reason
    differences: list[str]


def value_and_gradient(make: Callable[..., Any], drawn: Drawn) -> tuple[Tensor, Tensor, Any]:
    input = drawn.input.clone().requires_grad_()
    criterion = make(**drawn.options)
    operands = [each.clone() if isinstance(each, Tensor) else each for each in drawn.operands]
    loss = criterion(input, *operands)
    (gradient,) = torch.autograd.grad(loss.sum(), input)
    return loss.detach(), gradient, criterion


def compared(
    ours: Callable[..., Any],
    peer: Callable[..., Any],
    draw: Callable[[random.Random], Drawn],
    count: int,
    seed: int,
) -> Outcome:
    """Draws ``count`` calls that the peer accepts and compares loss, gradient, shape and state."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    accepted = refused = 0
    differences: list[str] = []
    for _ in range(20 * count):
        if accepted == count:
            break
        drawn = draw(chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected, slope, theirs = value_and_gradient(peer, drawn)
            except Exception:
                continue
            if not (expected.isfinite().all() and slope.isfinite().all()):
                continue
            assert not type(theirs).__module__.startswith("customloss."), "the peer is patched"
            accepted += 1
            try:
                loss, gradient, criterion = value_and_gradient(ours, drawn)
                assert loss.shape == expected.shape, f"{loss.shape} for {expected.shape}"
                assert set(criterion.state_dict()) == set(theirs.state_dict())
                close(loss, expected, drawn.tolerance)
                close(gradient, slope, drawn.tolerance)
            except NotImplementedError:
                refused += 1
            except Exception as error:
                shapes = [tuple(drawn.input.shape), drawn.input.dtype]
                differences.append(f"{drawn.options} {shapes}: {error}"[:600])
    return Outcome(accepted, refused, differences)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest number, or of 1."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale
    )
