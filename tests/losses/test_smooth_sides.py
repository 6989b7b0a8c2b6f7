"""``smooth=(numerator, denominator)`` of every loss that has a ratio, on every way it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import customloss
from customloss import scores
from customloss.losses import registry

F64 = torch.float64
N, D = 0.25, 1.5


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(12, 3, dtype=F64, generator=generator, requires_grad=True)
    t = (torch.rand(12, 3, generator=generator) < 0.4).to(F64)
    w = torch.rand(12, 1, dtype=F64, generator=generator) + 0.1
    return x, t, w


class Sums:
    """What the formulas are made of: one number per class."""

    def __init__(self, p: Tensor, t: Tensor, w: Tensor) -> None:
        def total(values: Tensor) -> Tensor:
            return (w * values).sum(0)

        self.P, self.T, self.tp, self.p2 = total(p), total(t), total(p * t), total(p * p)
        self.fp, self.fn, self.A = self.P - self.tp, self.T - self.tp, total((p - t).abs())


def dice(s: Sums) -> Tensor:
    return (2 * s.tp + N) / (s.P + s.T + D)


def tversky(s: Sums, fp_weight: float = 0.5, fn_weight: float = 0.5) -> Tensor:
    return (s.tp + N) / (s.tp + fp_weight * s.fp + fn_weight * s.fn + D)


def mallows(s: Sums) -> Tensor:
    return ((s.tp + N) / (s.P + D) * (s.tp + N) / (s.T + D)).sqrt()


def generalized(s: Sums) -> Tensor:
    w = s.T.detach() ** -2
    return (2 * (w * s.tp).sum() + N) / ((w * (s.P + s.T)).sum() + D)


# the loss, its options, and the textbook formula of the losses of the classes
LOSSES: dict[str, tuple[dict[str, Any], Callable[[Sums], Tensor]]] = {
    "soft_f1": (
        {"beta": 2.0},
        lambda s: 1 - (5 * s.tp + N) / (5 * s.tp + s.fp + 4 * s.fn + D),
    ),
    "dice": ({}, lambda s: 1 - dice(s)),
    "tversky": ({"fp_weight": 0.3, "fn_weight": 1.2}, lambda s: 1 - tversky(s, 0.3, 1.2)),
    "jaccard": ({}, lambda s: 1 - tversky(s, 1, 1)),
    "focal_tversky": ({}, lambda s: (1 - tversky(s, 0.3, 0.7)) ** 0.75),
    "log_cosh_dice": ({}, lambda s: (1 - dice(s)).cosh().log()),
    "exp_log_dice": ({}, lambda s: (-dice(s).log()) ** 0.3),
    "fowlkes_mallows": ({}, lambda s: 1 - mallows(s)),
    "log_precision_recall": ({}, lambda s: -mallows(s).log()),
    "generalized_dice": ({}, lambda s: 1 - generalized(s)),
    "squared_dice": ({}, lambda s: 1 - (2 * s.tp + N) / (s.p2 + s.T + D)),
    "semimetric_dice": ({}, lambda s: 1 - (s.P + s.T - s.A + N) / (s.P + s.T + D)),
    "semimetric_jaccard": (
        {}, lambda s: 1 - (s.P + s.T - s.A + 2 * N) / (s.P + s.T + s.A + 2 * D),
    ),
    "semimetric_tversky": (
        {}, lambda s: 1 - ((s.P + s.T - s.A) / 2 + N) / ((s.P + s.T) / 2 + D),
    ),
    "dice_ce": ({"ce_weight": 0.0, "activation": "sigmoid"}, lambda s: 1 - dice(s)),
    "dice_bce": ({"bce_weight": 0.0}, lambda s: 1 - dice(s)),
    "dice_focal": ({"focal_weight": 0.0}, lambda s: 1 - dice(s)),
    "tversky_ce": ({"ce_weight": 0.0, "activation": "sigmoid"}, lambda s: 1 - tversky(s)),
}  # fmt: skip


def test_every_loss_with_smooth_is_here() -> None:
    assert set(LOSSES) == {
        name for name, each in registry.LOSSES.items() if "smooth" in each.defaults
    }


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_both_sides_of_every_loss(name: str, backend: str) -> None:
    options, formula = LOSSES[name]
    x, t, w = batch()
    expected = formula(Sums(x.sigmoid(), t, w)).mean()
    (wanted,) = torch.autograd.grad(expected, x, retain_graph=True)
    for smooth in ((N, D), [N, D], (np.float32(N), np.float64(D))):
        with customloss.backend(backend):
            loss = customloss.loss(name, smooth=smooth, **options)(x, t, w)
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-14)
    function = getattr(customloss, f"{name}_loss")
    with customloss.backend(backend):
        assert torch.equal(function(x, t, w, smooth=(N, D), **options), loss)
        both = function(x, t, w, smooth=(D, D), **options)
        assert torch.equal(both, function(x, t, w, smooth=D, **options))


@pytest.mark.parametrize("link", ["complement", "log", "focal", "negative", "log_cosh"])
@pytest.mark.parametrize("score", [scores.dice, scores.fowlkes_mallows], ids=["ratio", "composed"])
def test_every_link(score: Any, link: str) -> None:
    x, t, w = batch()
    gamma = 1.5 if link == "focal" else 1.0
    loss = customloss.confusion_loss(
        customloss.losses.formula.at(score, smooth=(N, D)), x, t, w, link=link, gamma=gamma
    )
    similarity = (dice if score is scores.dice else mallows)(Sums(x.sigmoid(), t, w))
    expected = scores.linked(similarity, link, gamma).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


def test_as_others_have_it() -> None:
    """MONAI's smooth_nr and smooth_dr; nnU-Net's one smooth; kornia's eps of the denominator."""
    x, t, _ = batch()
    p = x.sigmoid()
    hit, whole = (p * t).sum(0), p.sum(0) + t.sum(0)
    for smooth, expected in (
        ((0.0, 1e-6), 1 - 2 * hit / (whole + 1e-6)),
        ((1.0, 1e-5), 1 - (2 * hit + 1) / (whole + 1e-5)),
        (1e-5, 1 - (2 * hit + 1e-5) / (whole + 1e-5)),
    ):
        torch.testing.assert_close(customloss.dice_loss(x, t, smooth=smooth), expected.mean())


def test_near_a_perfect_score_no_digit_is_lost() -> None:
    """1 - S is (fp + fn + d - n) / whole, and not a difference of large terms."""
    x = torch.full((1000, 1), 40.0, dtype=F64)
    t = torch.ones(1000, 1)
    miss = 1000 * math.exp(-40.0) + 1e-9
    loss = customloss.dice_loss(x, t, smooth=(0.0, 1e-9))
    assert float(loss) == pytest.approx(miss / (2000 + miss), rel=1e-12)


def test_an_empty_group() -> None:
    p, t = torch.zeros(4, 1, dtype=F64, requires_grad=True), torch.zeros(4, 1)
    for smooth, value in (((0.0, 0.0), 0.0), ((0.0, 2.0), 1.0), ((0.5, 2.0), 0.75)):
        for make in (customloss.DiceLoss, customloss.SemimetricDiceLoss):
            loss = make(smooth=smooth, activation="none")(p, t)
            assert float(loss.detach()) == value
            assert torch.autograd.grad(loss, p)[0].isfinite().all()


@pytest.mark.parametrize("name", ["dice", "semimetric_dice", "dice_bce", "generalized_dice"])
def test_what_is_refused(name: str) -> None:
    make = registry.LOSSES[name]
    for smooth, words in (
        ((0.5,), "a pair"), ((1, 2, 3), "a pair"), ((1.0, 0.0), "a denominator above 0"),
        ((-1.0, 1.0), ">= 0"), ((0.0, -1.0), ">= 0"), ((0.0, math.inf), "finite"),
        ((math.nan, 1.0), "finite"), ((1.0, 1e201), "from 1e-200 to 1e\\+200"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^smooth: .*{words}"):
            make(smooth=smooth)
    for wrong in (("a", 1.0), (True, 1.0), (None, 1.0), "ab", (torch.tensor(1.0), 1.0)):
        with pytest.raises(TypeError, match=r"^smooth: expected"):
            make(smooth=wrong)
    for link in ("log", "focal"):
        with pytest.raises(ValueError, match=rf"^smooth: expected no more .* link='{link}'"):
            make(smooth=(2.0, 1.0), link=link)
    for link in ("complement", "negative"):
        make(smooth=(2.0, 1.0), link=link)


def test_the_operator_has_two_numbers() -> None:
    x, t, w = batch()
    operator = torch.ops.customloss.soft_f1
    expected = customloss.dice_loss(x, t, w, smooth=(N, D))
    assert torch.equal(operator(x, t, w, smooth=N, smooth_denominator=D), expected)
    assert torch.equal(operator(x, t, w, smooth=N), customloss.dice_loss(x, t, w, smooth=N))
    with pytest.raises(ValueError, match=r"^smooth: expected a number >= 0"):
        operator(x, t, w, smooth_denominator=-1.0)
    with pytest.raises(TypeError, match=r"^smooth_denominator: no option of dice_loss"):
        customloss.dice_loss(x, t, w, smooth_denominator=1.0)
