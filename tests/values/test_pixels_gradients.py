"""Gradients of softmax, class numbers and extras agree with finite differences and autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pixel_cases
import pytest
import torch
from cases import Case
from judge import assert_right, confusion_sums, elements_of, judging, soft_f1
from pixel_cases import EXTRAS, OUTCOMES, READINGS, numbered, reading
from selection import covering
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from customloss import reference

STRICT: dict[str, Any] = {
    "check_forward_ad": True, "check_undefined_grad": True, "check_grad_dtypes": True,
    "nondet_tol": 0.0,
}  # fmt: skip


def of_leaves(case: Case, op: Any = soft_f1, **more: Any) -> tuple:
    """A function that brings dense leaves into the layout of the case, and those leaves."""
    sample = replace(case, layout="contiguous").build(torch.float64, requires_grad=True)
    if sample.options.get("ignore_index") is not None and sample.target.requires_grad:
        sample.target.requires_grad_(False)  # a changed target would not be ignored
    if sample.weight is not None:
        # A group of weight 0 is 0 / 0, where there is no derivative.
        sample = sample._replace(weight=(sample.weight.detach() + 0.1).requires_grad_())
    leaves = [t for t in sample.operands if t is not None and t.requires_grad]
    layout = case.layout

    def function(*given: Tensor) -> Tensor:
        left = iter(given)
        x, t, w = (
            None if t is None else next(left) if t.requires_grad else t for t in sample.operands
        )
        if layout == "class_last":
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == "sliced":
            x = torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
        if layout == "expanded_sample":
            x = x[:1].expand(x.shape)
        return op(x, t, w, **sample.options, **more)

    return function, leaves


@pytest.mark.parametrize("name", READINGS)
def test_gradcheck_readings(name: str) -> None:
    for shape, weight in (((4, 3), None), ((2, 3, 2), "pixel")):
        function, leaves = of_leaves(reading(name, shape, weight=weight))
        assert gradcheck(function, leaves, **STRICT)


@covering
@pytest.mark.parametrize("layout", ["class_last", "sliced", "expanded_sample"])
@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-shares"])
def test_gradcheck_layouts(name: str, layout: str) -> None:
    function, leaves = of_leaves(reading(name, (2, 3, 2), layout=layout, weight="full"))
    assert gradcheck(function, leaves, **STRICT)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_gradcheck_outcomes(outcome: str) -> None:
    for name in ("softmax-numbers", "softmax-shares"):
        function, leaves = of_leaves(reading(name, (3, 4), options=OUTCOMES[outcome]))
        assert gradcheck(function, leaves, **STRICT)


@covering
@pytest.mark.parametrize("extra", ["log_loss", "squares", "focal", "hard", "every"])
@pytest.mark.parametrize(
    "name", ["softmax-shares", "softmax-smoothed", "sigmoid-smoothed", "none-ignored"]
)
def test_gradcheck_further_sums(name: str, extra: str) -> None:
    function, leaves = of_leaves(
        reading(name, (3, 4), weight="class"), confusion_sums, **EXTRAS[extra]
    )
    assert gradcheck(function, leaves, **STRICT)


@pytest.mark.parametrize("name", READINGS)
def test_gradgradcheck_readings(name: str) -> None:
    function, leaves = of_leaves(reading(name, (3, 3), weight="pixel"))
    assert gradgradcheck(function, leaves, nondet_tol=0.0, check_grad_dtypes=True)


@covering
@pytest.mark.parametrize("extra", ["log_loss", "squares", "focal", "every"])
@pytest.mark.parametrize("name", ["softmax-shares", "sigmoid-smoothed", "none-numbers"])
def test_gradgradcheck_further_sums(name: str, extra: str) -> None:
    function, leaves = of_leaves(reading(name, (3, 3)), confusion_sums, **EXTRAS[extra])
    assert gradgradcheck(function, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("outcome", ["weighted", "samplewise_groups", "log", "focal"])
def test_gradgradcheck_outcomes(outcome: str) -> None:
    case = reading("softmax-shares", (2, 3, 2), weight="class", options=OUTCOMES[outcome])
    function, leaves = of_leaves(case)
    assert gradgradcheck(function, leaves, nondet_tol=0.0)


@covering
@pytest.mark.parametrize("extra", [{}, *EXTRAS.values()], ids=str)
@pytest.mark.parametrize("name", READINGS)
def test_the_gradient_formulas_are_the_derivatives(name: str, extra: dict) -> None:
    """The reference's ``confusion_backward`` is what autograd derives from its ``confusion``."""
    for samplewise, average in ((False, "macro"), (True, "micro")):
        case = reading(name, (3, 4, 2), weight="full",
                       options={"samplewise": samplewise, "average": average, **extra})  # fmt: skip
        sample = judging(case.build(torch.float64))
        elements = elements_of(sample)
        operands = [t.clone().requires_grad_(t.is_floating_point()) for t in sample.operands]
        sums = reference.confusion(*operands, *elements)
        grad = torch.randn_like(sums)
        wanted = [t for t in operands if t.requires_grad]
        expected = iter(torch.autograd.grad(sums, wanted, grad))
        for wrt, operand in zip(("input", "target", "weight"), operands):
            if operand.requires_grad:
                own = reference.confusion_backward(grad, *sample.operands, wrt, *elements)
                torch.testing.assert_close(own, next(expected))


@pytest.mark.parametrize("layout", ["contiguous", "class_last", "transposed"])
@pytest.mark.parametrize("returns", ["none", "samplewise_groups", "samplewise_micro"])
def test_incoming_gradients(returns: str, layout: str) -> None:
    case = numbered("x", (4, 3, 5), layout=layout, weight="class", options=OUTCOMES[returns])
    sample = case.build()
    loss = soft_f1(*sample.operands, **sample.options)
    dense = torch.arange(1, loss.numel() + 1.0).reshape(loss.shape)
    for grad in (dense, dense.new_tensor(0.7).expand(loss.shape), torch.zeros_like(dense),
                 torch.stack([dense, dense * 0 + 99], -1)[..., 0]):  # fmt: skip
        assert_right(soft_f1, sample, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_operand_alone(dtype: torch.dtype) -> None:
    """Each gradient has the same bits, alone or together with the others."""
    for shape in ((70, 4), (2, 5, 40)):
        sample = reading("softmax-smoothed-shares", shape, weight="full").build(dtype)
        leaves = [t.clone().requires_grad_() for t in sample.operands]
        together = torch.autograd.grad(soft_f1(*leaves, **sample.options), leaves)
        for wrt, expected in enumerate(together):
            alone = [t.clone().requires_grad_(i == wrt) for i, t in enumerate(sample.operands)]
            (own,) = torch.autograd.grad(soft_f1(*alone, **sample.options), alone[wrt])
            assert torch.equal(own, expected)


def test_a_logit_of_one_pixel_moves_no_other() -> None:
    sample = numbered("x", (2, 4, 30)).build(torch.float64)
    x = sample.input.requires_grad_()
    sums = confusion_sums(x, sample.target, **sample.options, samplewise=True)
    (gradient,) = torch.autograd.grad(sums[:, 0].sum() + sums[0, 0].sum(), x)
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("case", pixel_cases.FEW, ids=str)
def test_logits_have_no_level_of_their_own(case: Case) -> None:
    """Adding a number to all logits of a pixel changes nothing, so their gradients add up to 0."""
    sample = case.build(torch.float64)
    if sample.options.get("activation") != "softmax":
        return
    x = sample.input.requires_grad_()
    loss = soft_f1(*sample.operands, **sample.options).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert float(gradient.sum(1).abs().sum()) <= 1e-14
