"""Weights of a ratio that are far from 1 give the right loss, or are refused by name.

Judged by fractions, which are exact, at sums from 1e-30 to 1e12.
"""

from __future__ import annotations

import math
from fractions import Fraction as F

import pytest
import torch
from torch import Tensor

import customloss
from customloss import scores
from customloss._backends import choice, plain
from customloss._spec.arguments import SCORE_ALONE, Scoring
from customloss._spec.words import FUSED_LINKS

F64 = torch.float64
# tp, fp, fn, tn of a group
SUMS = (
    (1e12, 1e12, 1e12, 1.0), (1e12, 1e-3, 0.0, 1.0), (1e12, 0.0, 1e-3, 1.0),
    (1e-30, 1e12, 1e12, 1.0), (1e-30, 1e-30, 1e-30, 1.0), (0.0, 1e12, 0.5, 1.0),
    (3.0, 2.0, 0.0, 1.0), (0.0, 0.0, 5.0, 1.0), (0.0, 5.0, 0.0, 1.0), (7.0, 0.0, 0.0, 1.0),
)  # fmt: skip
BETAS = (1e100, 1e77, 1e8, 1e-8, 1e-100, 0.0)
WEIGHTS = {
    **{f"beta={beta}": scores.coefficients_of(scores.fbeta, beta=beta) for beta in BETAS},
    **{
        f"weights={pair}": scores.coefficients_of(
            scores.tversky, fp_weight=pair[0], fn_weight=pair[1]
        )
        for pair in ((1e200, 1e200), (1e-200, 1e200), (1e200, 0.0), (1e-200, 1e-200))
    },
}


def exact(
    ratio: tuple[float, ...], link: str, sums: tuple[float, ...]
) -> tuple[float, list[float]]:
    """The loss of a group and its gradient by tp, fp, fn and tn."""
    a, b, c = map(F, ratio[:3])
    tp, fp, fn = map(F, sums[:3])
    hit, miss = a * tp, b * fp + c * fn
    whole = hit + miss
    if not whole:
        return (-1.0 if link == "negative" else 0.0), [0.0] * 4
    if link == "log":
        if hit < F(1e-30) * whole:
            return 30 * math.log(10), [0.0] * 4
        slopes = [-a * miss / hit / whole, b / whole, c / whole]
        return math.log1p(miss / hit), [*map(float, slopes), 0.0]
    slopes = [-a * miss / whole**2, b * hit / whole**2, c * hit / whole**2]
    if link == "focal":  # (1 - S)², so that the exact power is a fraction
        slopes = [2 * (miss / whole) * slope for slope in slopes]
        return float((miss / whole) ** 2), [*map(float, slopes), 0.0]
    return float(-hit / whole if link == "negative" else miss / whole), [*map(float, slopes), 0.0]


@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_right_at_every_size(weights: str, link: str) -> None:
    ratio = WEIGHTS[weights]
    gamma = 2.0 if link == "focal" else 1.0
    scoring = Scoring(*ratio, gamma, 1e-30, FUSED_LINKS.index(link), 0, 2, 2)
    sums = torch.tensor(SUMS, dtype=F64).t().contiguous()[:, None]
    expected = [exact(ratio, link, each) for each in SUMS]
    losses = torch.tensor([value for value, _ in expected], dtype=F64)
    slopes = torch.tensor([slope for _, slope in expected], dtype=F64).t()[:, None]
    given = (sums, None, 0, False, True, *scoring, *SCORE_ALONE)
    loss, gradient = torch.ops.customloss.sums_score(*given)
    torch.testing.assert_close(loss.flatten(), losses, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, slopes, rtol=1e-13, atol=1e-280)
    loss, gradient = choice.primitives_of(plain).sums_score(*given)
    torch.testing.assert_close(loss.flatten(), losses, rtol=1e-13, atol=0)
    assert gradient.isfinite().all()
    # autograd adds up terms as large as these, which cancel where a similarity is near 0 or 1
    a, b, c = ratio[:3]
    wholes = (a * sums[0] + b * sums[1] + c * sums[2]).clamp_min(1e-150)
    terms = max(ratio) / wholes
    torch.testing.assert_close(gradient / terms, slopes / terms, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("link", FUSED_LINKS)
def test_a_whole_call(link: str) -> None:
    """F-beta at the largest beta is recall, and its gradient is finite in float32."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    t = torch.rand(50, 2, generator=torch.Generator().manual_seed(2)) < 0.5
    for loss, other in (
        (customloss.SoftF1Loss(beta=1e100, link=link), scores.recall),
        (customloss.SoftF1Loss(beta=1e-100, link=link), scores.precision),
    ):
        own, expected = loss(x, t), customloss.confusion_loss(other, x, t, link=link)
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=0)
        pair = [torch.autograd.grad(each, x)[0] for each in (own, expected)]
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("beta", [1.1e100, 1e154, 1e300, 1e-101, 5e-324])
def test_another_beta_is_refused(beta: float) -> None:
    x, t = torch.zeros(3, 2), torch.ones(3, 2)
    for call in (
        lambda: customloss.SoftF1Loss(beta=beta),
        lambda: customloss.soft_f1_loss(x, t, beta=beta, process_group=None, classes=[0]),
        lambda: torch.ops.customloss.soft_f1(x, t, beta=beta),
        lambda: customloss.confusion_loss(
            customloss.losses.formula.partial(scores.fbeta, beta=beta), x, t
        ),
    ):
        with pytest.raises(ValueError, match=r"^beta: expected 0, or a number from 1e-100"):
            call()


@pytest.mark.parametrize("weight", [1.1e200, 1e308, 1e-201, 5e-324])
@pytest.mark.parametrize("name", ["fp_weight", "fn_weight"])
@pytest.mark.parametrize("loss", ["tversky", "focal_tversky", "tversky_ce", "semimetric_tversky"])
def test_another_weight_is_refused(loss: str, name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected 0, or a number from 1e-200 to"):
        customloss.loss(loss, **{name: weight})


def test_composed_losses_at_the_largest_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 2, dtype=F64, generator=generator, requires_grad=True)
    t = torch.rand(30, 2, dtype=F64, generator=generator)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, x)[0]

    large = customloss.semimetric_tversky_loss(x, t, fp_weight=1e200, fn_weight=1e200)
    assert float(large.detach()) == 1.0  # to the last digit of float64
    assert gradient(large).isfinite().all()
