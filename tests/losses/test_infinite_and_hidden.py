"""An infinite log-loss spoils no gradient, and a class of weight 0 no pointwise loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import customloss

INF, NAN = float("inf"), float("nan")
BACKENDS = ["auto", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_on_a_masked_class(backend: str) -> None:
    """As in torch, the loss is infinite and the gradients are finite."""
    x = torch.tensor([[1.0, 2.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    y = torch.tensor([2, 1])
    expected = F.cross_entropy(x, y)
    (wanted,) = torch.autograd.grad(expected, x)
    assert wanted.isfinite().all()
    with customloss.backend(backend):
        loss = customloss.dice_ce_loss(x, y, dice_weight=0.0)
        (gradient,) = torch.autograd.grad(loss, x)
    assert loss == expected == INF
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_binary_target_that_was_impossible(backend: str) -> None:
    x = torch.tensor([[-INF, 0.5], [1.0, 2.0]], requires_grad=True)
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with customloss.backend(backend):
        loss = customloss.dice_bce_loss(x, t, dice_weight=0.0)
        (gradient,) = torch.autograd.grad(loss, x)
    assert loss == INF
    torch.testing.assert_close(gradient, (x.detach().sigmoid() - t) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["dice_bce", "dice_focal"])
def test_a_class_of_weight_0_in_the_value(name: str, backend: str) -> None:
    x, t = torch.randn(6, 3), torch.rand(6, 3) > 0.5
    criterion = customloss.loss(name, class_weight=[0.0, 1.0, 1.0])
    hurt = x.clone()
    hurt[:, 0] = NAN
    with customloss.backend(backend):
        torch.testing.assert_close(criterion(hurt, t), criterion(x, t))
        z = hurt.requires_grad_()  # the route with a gradient is another
        torch.testing.assert_close(criterion(z, t).detach(), criterion(x, t))
