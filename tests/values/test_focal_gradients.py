"""First and second derivatives of a focal loss are finite, and those of float64, at extreme logits.

A power of a focal base that is nearly 0 has derivatives that overflow, though their products with
the loss, which is as small, are nearly 0.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from selection import covering
from torch import Tensor

import customloss

GAMMAS = (0.0, 0.01, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)
SIZES = (0.3, 5.0, 17.0, 30.0, 45.0, 51.0, 60.0, 71.0, 80.0, 87.0, 88.0, 90.0, 103.0, 110.0, 1000.0)
LOGITS = torch.tensor([sign * size for size in SIZES for sign in (1, -1)])


def batch(activation: str) -> tuple[Tensor, Tensor]:
    """Each logit with targets that are hard, wrong and soft."""
    if activation == "sigmoid":
        return LOGITS.repeat(4), torch.tensor([0.0, 1.0, 0.5, 0.1]).repeat_interleave(len(LOGITS))
    others = torch.tensor([0.0, 0.2]).expand(len(LOGITS), 2)
    targets = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]])
    x = torch.cat([LOGITS[:, None], others], dim=1)
    return x.repeat(3, 1), targets.repeat_interleave(len(LOGITS), 0)


def twice(loss: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The gradient, and a product with the second derivatives, by autograd and by transforms."""
    leaf = x.clone().requires_grad_()
    direction = torch.linspace(0.5, 1.7, x.numel(), dtype=x.dtype).view_as(x)
    (once,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (again,) = torch.autograd.grad(once, leaf, direction)
    forward = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))
    return [once.detach(), again, *forward]


def focal(gamma: float, split: bool, activation: str, t: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        return customloss.focal_loss(
            x, t.to(x.dtype), activation=activation, focal_gamma=gamma, focal_split=split,
            reduction="sum",
        )  # fmt: skip

    return loss


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("activation", ["sigmoid", "sigmoid, split", "softmax"])
def test_derivatives_at_extreme_logits_are_those_of_float64(activation: str, gamma: float) -> None:
    activation, _, split = activation.partition(", ")
    x, t = batch(activation)
    loss = focal(gamma, bool(split), activation, t)
    own, expected = twice(loss, x), twice(loss, x.double())
    # The transforms add the terms of a pixel in float32, which are as large as γ times the largest
    # loss, 1000: their sum is off by as much as one rounding of these.
    largest = 1000 * max(gamma, 1) * torch.finfo(torch.float32).eps
    for mine, right, atol in zip(own, expected, (1e-6, 1e-6, largest, largest), strict=True):
        assert right.isfinite().all()
        torch.testing.assert_close(mine.double(), right, rtol=2e-5, atol=atol)


def test_a_small_second_derivative_keeps_its_digits() -> None:
    """That of -(1-t) p^γ log(1-p) is (1+γ)² p^(1+γ) next to p = 0."""
    for gamma in (0.0, 0.25, 0.5):
        x = torch.tensor([-20.0, -30.0, -45.0], requires_grad=True)
        loss = focal(gamma, False, "sigmoid", torch.zeros(3))
        (once,) = torch.autograd.grad(loss(x), x, create_graph=True)
        (again,) = torch.autograd.grad(once.sum(), x)
        right = (1 + gamma) ** 2 * x.detach().double().sigmoid() ** (1 + gamma)
        torch.testing.assert_close(again.double(), right, rtol=1e-5, atol=0)


@covering
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivatives_by_small_probabilities_are_finite(
    dtype: torch.dtype, gamma: float, split: bool
) -> None:
    smallest = torch.finfo(dtype).tiny
    p = torch.tensor([0, smallest / 4, smallest, 1e-35, 1e-20, 1e-10, 1e-5, 0.5], dtype=dtype)
    for t in (torch.zeros_like(p), torch.full_like(p, 1.0)):
        x = p if t[0] == 0 else 1 - p
        for each in twice(focal(gamma, split, "none", t), x):
            assert each.isfinite().all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_gamma_0_is_the_cross_entropy_twice(activation: str) -> None:
    x, t = batch(activation)
    name = "bce_loss" if activation == "sigmoid" else "cross_entropy_loss"

    def cross_entropy(x: Tensor) -> Tensor:
        result: Tensor = getattr(customloss, name)(x, t.to(x.dtype), reduction="sum")
        return result

    own, expected = twice(focal(0.0, False, activation, t), x), twice(cross_entropy, x)
    for mine, right in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_derivatives_by_the_target_are_those_of_float64(gamma: float, split: bool) -> None:
    """Up to where float32 has a normal number for p: beyond, what is raised to γ becomes 0."""
    x, t = batch("sigmoid")
    x, t = x[x.abs() < 87], t[x.abs() < 87]
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [each.to(dtype).requires_grad_() for each in (x, t)]
        loss = customloss.focal_loss(*leaves, focal_gamma=gamma, focal_split=split, reduction="sum")
        once = torch.autograd.grad(loss, leaves, create_graph=True)
        again = torch.autograd.grad(sum(each.sum() for each in once), leaves)
        found.append([each.detach().double() for each in (*once, *again)])
    for mine, right in zip(*found, strict=True):
        assert right.isfinite().all()
        torch.testing.assert_close(mine, right, rtol=5e-5, atol=1e-5)
