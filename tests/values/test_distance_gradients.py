"""Semimetric losses and their gradients keep their digits in float32, however few the hits are.

They are ratios of Σ min(p, t), Σ max(p - t, 0) and Σ max(t - p, 0), which are summed themselves. As
differences of tp, fp, fn and Σ |p - t| they would lose what is small beside these.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from selection import covering
from torch import Tensor

import customloss

F64 = torch.float64
LOSSES = {
    "dice": customloss.semimetric_dice_loss,
    "jaccard": customloss.semimetric_jaccard_loss,
    "tversky": customloss.semimetric_tversky_loss,
    "recall": partial(customloss.semimetric_tversky_loss, fp_weight=0.01, fn_weight=1.0),
}
SHAPE = (100, 3)


def beside(p: Tensor) -> Tensor:
    """Soft targets a few percent from p, on both sides."""
    return (p * (1 + 0.05 * (torch.rand(SHAPE) > 0.5) - 0.025)).clamp_max(1)


# the mean of the logits, and targets given p; of the last two the hits are 1e-8 of the misses
DATA = {
    "random": (0.0, lambda p: torch.rand(SHAPE)),
    "hard": (0.0, lambda p: (torch.rand(SHAPE) > 0.5).float()),
    "beside": (0.0, beside),
    "no positive": (-4.0, lambda p: torch.zeros(SHAPE)),
    "rare": (-4.0, lambda p: (torch.rand(SHAPE) > 0.9).float()),
    "rare and soft": (-4.0, lambda p: torch.rand(SHAPE) * 0.01),
    "tiny targets": (4.0, lambda p: torch.rand(SHAPE) * 1e-8),
    "tiny hits": (-22.0, lambda p: torch.rand(SHAPE)),
}


def differentiated(name: str, x: Tensor, t: Tensor, **options: object) -> list[Tensor]:
    """The loss, and its gradients by input and target."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    loss = LOSSES[name](x, t, **options)
    return [each.detach().to(F64) for each in (loss, *torch.autograd.grad(loss, (x, t)))]


@covering
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("smooth", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("link", ["complement", "log"])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_agrees_with_float64(
    name: str, link: str, smooth: float, data: str, activation: str, backend: str
) -> None:
    torch.manual_seed(0)
    mean, target = DATA[data]
    # of a softmax the first class has what the mean takes from the others
    shift = torch.tensor([0.0, mean, mean]) if activation == "softmax" else mean
    x = torch.randn(SHAPE) * 3 + shift
    t = target(x.softmax(1) if activation == "softmax" else x.sigmoid())
    options = {"link": link, "smooth": smooth, "activation": activation}
    with customloss.backend("reference"):
        wanted = differentiated(name, x.to(F64), t.to(F64), **options)
    with customloss.backend(backend):
        found = differentiated(name, x, t, **options)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    for one, other in zip(found[1:], wanted[1:]):
        error, size, most = (one - other).abs(), other.abs(), other.abs().max()
        assert error.max() <= 1e-6 * most
        # an element of a softmax is a difference of its classes' terms, which float32 rounds
        plain = size > (0.1 if activation == "softmax" else 1e-3) * most
        assert (error[plain] <= 1e-5 * size[plain]).all()


def gradients(name: str, x: Tensor, t: Tensor, **options: object) -> list[Tensor]:
    return differentiated(name, x, t, smooth=1e-5, **options)[1:]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_an_absent_class_under_a_small_smooth(name: str, backend: str) -> None:
    """The gradient by the input, element by element."""
    torch.manual_seed(0)
    x, t = torch.randn(100), torch.zeros(100)
    with customloss.backend("reference"):
        wanted = gradients(name, x.to(F64), t.to(F64), link="log")[0]
    with customloss.backend(backend):
        found = gradients(name, x, t, link="log")[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_a_hole_of_a_softmax_is_one_element() -> None:
    """An element of weight 0 with a NaN target is part of the probabilities of its pixel."""
    torch.manual_seed(0)
    x, t = torch.randn(4, 3, dtype=F64), torch.rand(4, 3, dtype=F64)
    w = torch.ones(4, 3, dtype=F64)
    w[1, 2] = 0
    found = []
    for value in (0.3, float("nan")):
        t[1, 2] = value
        for backend in ("auto", "reference"):
            with customloss.backend(backend):
                z = x.clone().requires_grad_()
                loss = customloss.dice_loss(z, t, w, activation="softmax")
                found.append(torch.autograd.grad(loss, z)[0])
    assert found[0][1, 2] != 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_what_equals_its_target_is_no_distance(name: str, dtype: torch.dtype, backend: str) -> None:
    """The loss is 0, and the gradient at the kink is the mean of those on its sides."""
    torch.manual_seed(0)
    t = torch.rand(64, 3, dtype=dtype)
    with customloss.backend(backend):
        assert differentiated(name, t, t, activation="none")[0] == 0
        x = torch.where(torch.rand(64, 3) > 0.5, t, torch.rand(64, 3, dtype=dtype))
        found = differentiated(name, x, t, activation="none")[1]
        sides = [
            differentiated(name, torch.where(x == t, x + step, x), t, activation="none")[1]
            for step in (-1e-6, 1e-6)
        ]
    torch.testing.assert_close(found, (sides[0] + sides[1]) / 2, rtol=1e-3, atol=1e-6)
