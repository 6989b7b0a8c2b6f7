"""Inputs without elements, classes or samples, or with one element, give the documented value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import INPUT_DTYPES, Case, short
from judge import soft_f1
from selection import covering

import customloss
from customloss import reference

# Every way of having no elements that leaves a group to score.
EMPTY = ((0,), (0, 1), (0, 3), (3, 2, 0), (0, 2, 5), (2, 1, 4, 0), (0, 3, 0, 0))


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    return [x, torch.zeros(shape, dtype=torch.float64, requires_grad=True)]


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_nothing_has_loss_0_and_an_empty_gradient(
    shape: tuple[int, ...], average: str, dtype: torch.dtype
) -> None:
    """0 / 0 is a similarity of 1; with ``link="negative"`` the loss is then -1."""
    for link, value in (("complement", 0), ("log", 0), ("focal", 0), ("negative", -1)):
        if average == "weighted":
            value = 0  # a mean over no support is 0
        for reduction in ("mean", "none"):
            x, t = empty(shape, dtype)
            loss = soft_f1(x, t, average=average, link=link, reduction=reduction)
            assert torch.equal(loss, torch.full_like(loss, value))
            for operand, gradient in zip((x, t), torch.autograd.grad(loss.sum(), (x, t))):
                assert gradient.shape == operand.shape
                assert gradient.dtype == operand.dtype


@pytest.mark.parametrize("absent", ["score", "skip", "penalize"])
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 0), (1, 1, 0)], ids=str)
def test_samples_of_nothing(shape: tuple[int, ...], samplewise: bool, absent: str) -> None:
    x, t = empty(shape)
    for average in ("macro", "micro", "weighted", "none"):
        for reduction in ("mean", "sum", "none"):
            options: dict[str, Any] = {
                "average": average, "samplewise": samplewise, "absent": absent,
                "reduction": reduction,
            }  # fmt: skip
            loss = soft_f1(x, t, **options)
            assert torch.equal(loss, torch.zeros_like(loss))
            assert loss.shape == reference.soft_f1(x, t, **options).shape
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            assert gradient.shape == x.shape


@pytest.mark.parametrize("weight", [(0, 3), (3,), (1, 1), ()])
def test_the_weight_of_nothing(weight: tuple[int, ...]) -> None:
    x, t = empty((0, 3))
    w = torch.ones(weight, requires_grad=True)
    loss = soft_f1(x, t, w)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, w)
    assert torch.equal(gradient, torch.zeros(weight))


def test_the_sums_of_nothing() -> None:
    for shape in EMPTY:
        for average in ("macro", "micro"):
            x, t = empty(shape)
            for each in customloss.confusion_sums(x, t, average=average):
                assert torch.equal(each, torch.zeros_like(each))
                (gradient,) = torch.autograd.grad(each.sum(), x, retain_graph=True)
                assert gradient.shape == x.shape


def test_no_classes_at_all_in_one_group() -> None:
    """``average="micro"`` has its one group even without any class."""
    x, t = empty((4, 0))
    assert soft_f1(x, t, average="micro") == 0
    assert soft_f1(x, t, average="micro", samplewise=True, reduction="none").tolist() == [0] * 4


def test_second_derivatives_of_nothing() -> None:
    x, t = empty((0, 3), torch.float64)
    (first,) = torch.autograd.grad(soft_f1(x, t), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.shape == (0, 3)


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)], ids=str)
def test_one_element(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """p = sigmoid(0) = 1/2. A positive has loss q / (2 p + q) = 1/3, a negative 1."""
    for target, value in ((1, 1 / 3), (0, 1.0)):
        x = torch.zeros(shape, dtype=dtype, requires_grad=True)
        loss = soft_f1(x, torch.full(shape, target))
        assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, x)
        # d/dx q / (1 + p) = -(p q) (1 + p + q) / (1 + p)^2 = -(1/4) 2 / (9/4)
        wanted = -2 / 9 if target else 0.0
        assert gradient.item() == pytest.approx(wanted, rel=5e-3 if dtype.itemsize == 2 else 1e-6)


def test_what_absent_means() -> None:
    """A class without a positive, predicted with p = 1/2 twice, beside a class of loss 1/3."""
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[1, 0], [1, 0]])
    for absent, value, missing in (
        ("score", (1 / 3 + 1) / 2, 1.0),
        ("skip", 1 / 3, 0.0),
        ("penalize", (1 / 3 + 1 / 2) / 2, 0.5),
    ):
        loss = soft_f1(x, t, absent=absent)
        assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
        per_class = soft_f1(x, t, absent=absent, average="none", reduction="none")
        assert per_class[1].item() == pytest.approx(missing)
        (gradient,) = torch.autograd.grad(loss, x)
        # Only "penalize" gives an absent class a gradient, which lowers its predictions.
        assert (gradient[:, 1] != 0).all() == (absent == "penalize")


def test_all_classes_absent() -> None:
    x = torch.zeros(4, 3, requires_grad=True)
    t = torch.zeros(4, 3)
    for absent, value in (("score", 1.0), ("skip", 0.0), ("penalize", 0.5)):
        loss = soft_f1(x, t, absent=absent)
        assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_a_weight_of_all_zeros_is_nothing() -> None:
    sample = Case("x", (5, 3), target=None).build(requires_grad=True)
    for weight in (torch.zeros(5, 3), torch.zeros(()), torch.zeros(3)):
        loss = soft_f1(sample.input, sample.target, weight.requires_grad_())
        assert loss == 0
        for gradient in torch.autograd.grad(loss, (sample.input, sample.target, weight)):
            assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_logarithm_of_a_very_small_similarity(dtype: torch.dtype) -> None:
    """S = e^-40: its logarithm and the power of that are right, and so are their gradients."""
    x = torch.full((4, 1), -40.0, dtype=dtype, requires_grad=True)
    t = torch.ones(4, 1)
    log = 40.0 - torch.tensor(2.0, dtype=torch.float64).log()  # S = 2 tp / (2 tp + fn), tp = 4 p
    for loss, value, slope in (
        (customloss.dice_loss(x, t, link="log"), log, 1.0),
        (customloss.exp_log_dice_loss(x, t), log**0.3, 0.3 * log**-0.7),
    ):
        torch.testing.assert_close(loss.double(), value, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(
            gradient.double(), torch.full((4, 1), -0.25 * slope, dtype=torch.float64),
            rtol=1e-5, atol=0,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_sums_of_no_sample(name: str) -> None:
    with customloss.backend(name):
        sums = customloss.confusion_sums(torch.zeros(0, 3), torch.zeros(0, 3), samplewise=True)
    assert all(each.shape == (0, 3) for each in sums)
