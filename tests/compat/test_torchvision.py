"""The drop-in for torchvision's focal loss, against torchvision's own where it is installed, and
against the formula."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from customloss.compat import torchvision


def formula(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """torchvision's loss, in its words."""
    targets = targets.to(inputs.dtype)
    p = inputs.sigmoid()
    wrong = p * (1 - targets) + (1 - p) * targets
    loss = wrong**gamma * F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def drawn(draw: random.Random) -> tuple[Tensor, Tensor, dict[str, Any]]:
    dtype = draw.choice([torch.float32, torch.float64])
    shape = draw.choice([(), (7,), (4, 3), (2, 3, 5), (2, 1, 4, 3), (2, 3, 2, 3, 4)])
    targets = torch.rand(shape, dtype=dtype)
    if draw.random() < 0.6:
        targets = targets.round()
    options = {
        "alpha": draw.choice([0.25, 0.25, -1, 0, 0.5, 0.9, 1]),
        "gamma": draw.choice([2, 2.0, 1, 0, 3.5]), "reduction": draw.choice(["mean", "sum"]),
    }  # fmt: skip
    return 3 * torch.randn(shape, dtype=dtype), targets, options


def same(peer: Any, x: Tensor, targets: Tensor, options: dict[str, Any]) -> None:
    results = []
    for loss in (torchvision.sigmoid_focal_loss, peer):
        input = x.clone().requires_grad_()
        value = loss(input, targets, **options)
        results.append((value, *torch.autograd.grad(value, input)))
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def all_same(peer: Any, seed: int, trials: int) -> None:
    draw = random.Random(seed)
    for _ in range(trials):
        same(peer, *drawn(draw))


def test_agrees_with_the_formula() -> None:
    all_same(formula, seed=0, trials=300)


def test_agrees_with_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    all_same(ops.sigmoid_focal_loss, seed=1, trials=300)


@pytest.mark.more
@pytest.mark.parametrize("seed", range(2, 5))
def test_agrees_in_thousands(seed: int) -> None:
    all_same(formula, seed, trials=1000)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_targets_of_other_dtypes(dtype: torch.dtype) -> None:
    x, targets = torch.randn(4, 3, dtype=torch.float64), (torch.rand(4, 3) < 0.5).to(dtype)
    own = torchvision.sigmoid_focal_loss(x, targets, reduction="mean")
    torch.testing.assert_close(own, formula(x, targets, reduction="mean"), rtol=1e-10, atol=0)


def test_wart_alpha_weighs_soft_targets_as_a_whole() -> None:
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    kept = torchvision.sigmoid_focal_loss(x, t, reduction="sum")
    torch.testing.assert_close(kept, formula(x, t, reduction="sum"))
    p, wrong = x.sigmoid(), t * (1 - x.sigmoid()) + (1 - t) * x.sigmoid()
    expected = -(wrong**2 * (0.25 * t * p.log() + 0.75 * (1 - t) * (1 - p).log())).sum()
    mended = torchvision.sigmoid_focal_loss(x, t, reduction="sum", strict=False)
    torch.testing.assert_close(mended, expected)
    assert (kept - mended).abs() > 1e-2
    hard = t.round()
    torch.testing.assert_close(
        torchvision.sigmoid_focal_loss(x, hard, reduction="sum", strict=False),
        formula(x, hard, reduction="sum"),
    )


def test_half_precision_and_nothing() -> None:
    """torchvision rounds to float16, and the mean of nothing is NaN there."""
    x, targets = torch.randn(64, 64).half(), (torch.rand(64, 64) < 0.5).half()
    own = torchvision.sigmoid_focal_loss(x, targets, reduction="sum")
    expected = formula(x.double(), targets.double(), reduction="sum").float()
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=0)
    assert own.dtype == torch.float32
    nothing = torch.randn(0, 3, requires_grad=True)
    assert torchvision.sigmoid_focal_loss(nothing, torch.zeros(0, 3), reduction="mean") == 0


def test_the_default_reduction_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"every element.*take 'mean', or 'sum'"):
        torchvision.sigmoid_focal_loss(torch.randn(3), torch.ones(3))


@pytest.mark.parametrize("given", [{"alpha": 2.0}, {"alpha": -0.5}, {"reduction": "all"}])
def test_values_that_torchvision_refuses(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        torchvision.sigmoid_focal_loss(
            torch.randn(3), torch.ones(3), **{"reduction": "sum", **given}
        )


def test_two_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape of inputs \[3, 1\], got \[3\]"):
        torchvision.sigmoid_focal_loss(torch.randn(3, 1), torch.ones(3), reduction="sum")


def test_compiles_whole() -> None:
    x, targets = torch.randn(4, 3), torch.ones(4, 3)
    compiled = torch.compile(torchvision.sigmoid_focal_loss, backend="eager", fullgraph=True)
    own = torchvision.sigmoid_focal_loss(x, targets, reduction="sum")
    torch.testing.assert_close(compiled(x, targets, reduction="sum"), own)
