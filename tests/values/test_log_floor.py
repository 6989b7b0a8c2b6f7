"""A logarithm has a floor, and below it no slope: that of a probability, and that of a similarity.

``backward()`` gives the derivative of the function that is computed, so it is finite and the same
as that of ``torch.func.grad``, on every way.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from probabilities import ends, slopes
from torch import Tensor

import customloss
from customloss import scores

F64 = torch.float64


# ---- probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_slopes_at_the_ends(
    dtype: torch.dtype, parts: tuple[float, float], gamma: float, backend: str
) -> None:
    p, t = ends(dtype)
    expected = slopes(p, t, *parts, gamma) / p.numel()

    def loss(p: Tensor) -> Tensor:
        return customloss.compound_loss(
            scores.dice, p, t, activation="none", score_weight=0.0, focal_gamma=gamma,
            cross_entropy_weight=parts[0], focal_weight=parts[1],
        )  # fmt: skip

    with customloss.backend(backend):
        leaf = p.clone().requires_grad_()
        (own,) = torch.autograd.grad(loss(leaf), leaf)
        by_transform = torch.func.grad(loss)(p)
    rtol, unit = (1e-5, 1e-7) if dtype == torch.float32 else (1e-13, 1e-16)
    torch.testing.assert_close(own, expected, rtol=rtol, atol=1e-36)
    # a transform adds terms of size 1 that cancel, in the precision of the input
    torch.testing.assert_close(by_transform, expected, rtol=rtol, atol=unit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_certain_and_wrong_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0, 1.0, 0.5]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[1, 0, 1]])
    loss = customloss.dice_bce_loss(p, t, activation="none", dice_weight=0.0)
    (gradient,) = torch.autograd.grad(loss, p)
    assert float(loss.detach()) == pytest.approx((2 * math.log(1e30) + math.log(2)) / 3, rel=1e-6)
    assert gradient.tolist() == [[0.0, 0.0, pytest.approx(-2 / 3, rel=4e-3)]]


# ---- similarities --------------------------------------------------------------------------------

# losses that take a logarithm, with a similarity of tp / (tp + fn) at these targets
LOGARITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("tversky", {"fp_weight": 0.0, "fn_weight": 1.0, "link": "log"}),
    "composed": ("log_precision_recall", {"recall_weight": 1.0}),
    "power of a ratio": ("exp_log_dice", {"exponent": 1.0}),
    "after the sums": (
        "semimetric_tversky", {"fp_weight": 0.0, "fn_weight": 1.0, "link": "log"},
    ),
}  # fmt: skip


def similarity(name: str, p: Tensor) -> Tensor:
    hit, miss = p.sum(), (1 - p).sum()
    return 2 * hit / (2 * hit + miss) if name.startswith("power") else hit / (hit + miss)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", LOGARITHMS)
def test_every_loss_floors_its_similarity(name: str, backend: str) -> None:
    loss, options = LOGARITHMS[name]
    for p, floor in ((1e-31, 1e-30), (1e-29, 1e-30), (0.0, 1e-30), (0.2, 0.5), (0.8, 0.5)):
        if name == "after the sums" and p < 1e-20:
            continue  # its hits are differences
        values = torch.full((4,), p, dtype=F64, requires_grad=True)
        criterion = customloss.loss(loss, activation="none", log_floor=floor, **options)
        with customloss.backend(backend):
            own = criterion(values, torch.ones(4))
        (gradient,) = torch.autograd.grad(own, values)
        copy = values.detach().clone().requires_grad_()
        expected = -similarity(name, copy).clamp_min(floor).log()
        (wanted,) = torch.autograd.grad(expected, copy)
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)
        assert bool(gradient.any()) == (p >= floor)


def test_the_floor_is_reached_at_equality() -> None:
    """At the floor itself there is a slope, as that of ``clamp_min``."""
    p = torch.tensor([0.5, 0.5], dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.0])
    for name, more in (("tversky", {"fn_weight": 1.0}), ("fowlkes_mallows", {"recall_weight": 1})):
        loss = customloss.loss(name, activation="none", link="log", log_floor=0.5, **more)(p, t)
        (gradient,) = torch.autograd.grad(loss, p)
        assert float(loss.detach()) == pytest.approx(math.log(2), rel=1e-15)
        assert gradient.tolist() == pytest.approx([-1.0, -1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, 1e-101, math.nan, math.inf])
def test_a_floor_out_of_range_is_refused(value: float) -> None:
    for make in (
        lambda: customloss.DiceLoss(link="log", log_floor=value),
        lambda: customloss.MCCLoss(link="log", log_floor=value),
        lambda: customloss.ExpLogDiceLoss(log_floor=value),
    ):
        with pytest.raises(ValueError, match=r"^log_floor: expected a"):
            make()


def test_a_floor_without_a_logarithm_is_refused() -> None:
    x, t = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"^log_floor: expected 1e-30 unless link='log', got 0.1"):
        customloss.dice_loss(x, t, log_floor=0.1)
    with pytest.raises(ValueError, match=r"^log_floor: .* link='log' or 'log_power', got 0.1"):
        customloss.mcc_loss(x, t, log_floor=0.1, link="focal")
