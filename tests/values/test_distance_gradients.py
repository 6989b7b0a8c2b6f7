"""Gradients of semimetric losses keep their digits in float32, where large terms cancel.

With few hits beside many misses the slope of |p - t| and those of fp and fn are nearly equal: what
is left of them may be a millionth. So they are put together before they are rounded.
"""

from __future__ import annotations

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
}
TARGETS = {
    "no positive": lambda shape: torch.zeros(shape),
    "rare": lambda shape: (torch.rand(shape) > 0.98).float(),
    "rare and soft": lambda shape: torch.rand(shape) * 0.01,
}


def gradients(name: str, x: Tensor, t: Tensor, **options: object) -> list[Tensor]:
    x, t = x.requires_grad_(), t.requires_grad_()
    loss = LOSSES[name](x, t, smooth=1e-5, **options)
    return [each.to(F64) for each in torch.autograd.grad(loss, (x, t))]


@covering
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("link", ["complement", "log"])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_agrees_with_float64(
    name: str, link: str, target: str, activation: str, backend: str
) -> None:
    torch.manual_seed(0)
    x, t = torch.randn(100, 3) * 3 - 4, TARGETS[target]((100, 3))
    with customloss.backend("reference"):
        wanted = gradients(name, x.to(F64), t.to(F64), link=link, activation=activation)
    with customloss.backend(backend):
        found = gradients(name, x, t, link=link, activation=activation)
    # float32 sums have a relative error of some 1e-7, which a smooth of 1e-5 beside them magnifies
    for one, other in zip(found, wanted):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


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
