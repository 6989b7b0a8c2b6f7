"""Gradients by input, target and weight agree with the reference and with finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import INPUT_DTYPES, OPTIONS, Case, short
from judge import assert_right, soft_f1
from selection import covering
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import customloss
from customloss import reference

# The options that make gradcheck strict.
STRICT = {"check_forward_ad": True, "check_undefined_grad": True, "check_grad_dtypes": True}


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*cases.SIZES, cases.FLUSHED), ids=str)
def test_sizes(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*cases.MIXED_LAYOUTS, *cases.WEIGHTED), ids=str)
def test_weights_and_layouts(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@pytest.mark.parametrize("case", cases.TARGETS, ids=str)
def test_target_dtypes(case: Case) -> None:
    assert_right(soft_f1, case.build(torch.float32))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.OPTIONED, ids=str)
def test_options(case: Case, dtype: torch.dtype) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("option", ["micro", "samplewise_groups", "samplewise_micro"])
def test_options_by_layout(option: str, layout: str) -> None:
    for shape in ((5, 4), (3, 4, 70), (2, 3, 4, 5)):
        case = Case("x", shape, layout=layout, target=None, weight="full", weight_layout=layout)
        assert_right(soft_f1, replace(case, options=OPTIONS[option]).build())


@pytest.mark.parametrize("size", [1, 1024, 1025, 70001])
@pytest.mark.parametrize("wrt", ["input", "target", "weight"])
def test_each_operand_alone(wrt: str, size: int) -> None:
    """A gradient is computed only if it is asked for, and the others do not change its bits."""
    sample = Case("one", (size,), target=None, weight="full").build()
    together = sample._replace(
        **{name: getattr(sample, name).detach().requires_grad_() for name in sample._fields[:3]}
    )
    alone = sample._replace(**{wrt: getattr(sample, wrt).detach().requires_grad_()})
    soft_f1(*together.operands).backward()
    soft_f1(*alone.operands).backward()
    for name in sample._fields[:3]:
        if name == wrt:
            assert torch.equal(getattr(alone, name).grad, getattr(together, name).grad)
        else:
            assert getattr(alone, name).grad is None


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_gradients_have_the_strides_of_their_operand(shape: tuple[int, ...], layout: str) -> None:
    """The strides are those of empty_like: dense operands keep theirs, others become dense."""
    sample = Case("x", shape, layout=layout, target=None).build(requires_grad=True)
    for operand in (sample.input, sample.target):
        (gradient,) = torch.autograd.grad(soft_f1(sample.input, sample.target), operand)
        assert gradient.stride() == torch.empty_like(operand).stride()
        assert gradient.dtype == operand.dtype


# ---- the incoming gradient -----------------------------------------------------------------------

RETURNS = {
    "scalar": {},
    "samples": {"samplewise": True, "reduction": "none"},
    "classes": {"average": "none", "reduction": "none"},
    "both": {"samplewise": True, "average": "none", "reduction": "none"},
}


def incoming(loss: Tensor, kind: str) -> Tensor:
    values = torch.arange(1, loss.numel() + 1, dtype=loss.dtype).reshape(loss.shape)
    if kind == "dense":
        return values
    if kind == "expanded":
        return loss.new_tensor(0.7).expand(loss.shape)
    if kind == "expanded-row":
        return values[..., :1].expand(loss.shape) if loss.dim() else values
    if kind == "transposed":
        return values.mT.contiguous().mT if loss.dim() == 2 else values
    if kind == "stepped":
        return torch.stack([values, values * 0 + 99], -1)[..., 0]
    return torch.zeros_like(values)


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=short)
@pytest.mark.parametrize(
    "kind", ["dense", "expanded", "expanded-row", "transposed", "stepped", "zero"]
)
@pytest.mark.parametrize("returns", RETURNS)
@pytest.mark.parametrize("layout", ["contiguous", "class_last", "transposed"])
def test_incoming_gradients(layout: str, returns: str, kind: str, dtype: torch.dtype) -> None:
    case = Case("x", (4, 3, 5), layout=layout, target=None, weight="class")
    sample = replace(case, options=RETURNS[returns]).build(dtype)
    shape = soft_f1(*sample.operands, **sample.options)
    assert_right(soft_f1, sample, incoming(shape, kind))


def test_the_loss_inside_a_graph() -> None:
    """Gradients add up when the loss is scaled and the same input is used by two losses."""
    sample = Case("x", (6, 4), target=None).build(torch.float64)
    x = sample.input.requires_grad_()
    once = torch.autograd.grad(soft_f1(x, sample.target), x)[0]
    loss = 3 * soft_f1(x, sample.target) + soft_f1(x * 1, sample.target).exp()
    (gradient,) = torch.autograd.grad(loss, x)
    outer = 3 + soft_f1(x, sample.target).exp()
    torch.testing.assert_close(gradient, (outer * once).detach())


@pytest.mark.parametrize("create_graph", [False, True])
def test_operands_that_depend_on_one_another(create_graph: bool) -> None:
    """The gradient by the input must not include what comes by way of the target and the weight.

    Autograd adds that by itself. Examples are self-distillation and weights of confidence.
    """
    start = torch.randn(6, 4, dtype=torch.float64)
    found = []
    for op in (soft_f1, reference.soft_f1):
        x = start.clone().requires_grad_()
        loss = op(x, torch.sigmoid(2 * x), torch.sigmoid(x))
        (first,) = torch.autograd.grad(loss, x, create_graph=create_graph)
        found.append([first.detach()])
        if create_graph:
            found[-1] += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("create_graph", [False, True])
def test_confusion_sums_of_operands_that_depend_on_one_another(create_graph: bool) -> None:
    start = torch.randn(6, 4, dtype=torch.float64)
    factors = torch.randn(4, 1, 4, dtype=torch.float64)
    found = []
    for sums in (
        torch.ops.customloss.confusion_sums,
        lambda *given: reference.confusion(*given, "sigmoid", 1.0, 0.0, False, True),
    ):
        x = start.clone().requires_grad_()
        total = (factors * sums(x, torch.sigmoid(2 * x), torch.sigmoid(x)).square()).sum()
        (first,) = torch.autograd.grad(total, x, create_graph=create_graph)
        found.append([first.detach()])
        if create_graph:
            found[-1] += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(found[0], found[1])


def test_retain_graph_and_accumulation() -> None:
    sample = Case("x", (6, 4)).build()
    x = sample.input.requires_grad_()
    loss = soft_f1(x, sample.target)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_in_place_change_of_a_saved_operand_is_noticed() -> None:
    sample = Case("x", (6, 4), target=None).build()
    x = sample.input.requires_grad_()
    loss = soft_f1(x, sample.target)
    sample.target.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_confusion_sums_gradients() -> None:
    for options in ({}, {"average": "micro"}, {"samplewise": True}):
        sample = Case("x", (5, 3, 4), target=None, weight="full").build(
            torch.float64, requires_grad=True
        )

        def sums(*operands: Tensor, options: dict = options) -> Tensor:
            found = customloss.confusion_sums(*operands, **options)
            return found.tp + 2 * found.fp + 3 * found.fn + 5 * found.tn

        assert gradcheck(sums, sample.operands, **STRICT)
        assert gradgradcheck(sums, sample.operands)


# ---- numerical -----------------------------------------------------------------------------------


def of_leaves(case: Case) -> tuple:
    """A function that brings dense leaves into the layout of the case, and those leaves.

    gradcheck changes the elements of a leaf one by one, which is impossible with a stride of 0.
    """
    dense = replace(case, layout="contiguous", weight_layout="contiguous", target_layout=None)
    sample = dense.build(torch.float64, requires_grad=True)
    if sample.weight is not None and sample.weight.requires_grad:
        # A group of weight 0 is 0 / 0, where there is no derivative.
        sample = sample._replace(weight=(sample.weight.detach() + 0.1).requires_grad_())
    leaves = [t for t in sample.operands if t is not None and t.requires_grad]

    def view(tensor: Tensor, layout: str) -> Tensor:
        if layout == "contiguous":
            return tensor
        if layout == "permuted":
            return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == "expanded":
            return tensor[:1].expand(tensor.shape)
        return torch.nn.functional.pad(tensor, (1, 2))[..., 1:-2]  # sliced out of a larger tensor

    def function(*given: Tensor) -> Tensor:
        left = iter(given)
        operands = [
            None if t is None else next(left) if t.requires_grad else t for t in sample.operands
        ]
        operands[:2] = [view(operand, case.layout) for operand in operands[:2]]
        return soft_f1(*operands, **case.options)

    return function, leaves


@covering
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "expanded", "sliced"])
@pytest.mark.parametrize(
    ("target", "weight"), [(torch.bool, None), (None, None), (None, "full"), (torch.uint8, "class")]
)
def test_gradcheck_layouts(target: torch.dtype | None, weight: str | None, layout: str) -> None:
    for shape in ((3, 4), (2, 3, 2)):
        function, leaves = of_leaves(Case("x", shape, layout=layout, target=target, weight=weight))
        assert gradcheck(function, leaves, nondet_tol=0.0, **STRICT)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradcheck_options(option: str) -> None:
    function, leaves = of_leaves(
        Case("x", (3, 4), target=None, weight="full", options=OPTIONS[option])
    )
    assert gradcheck(function, leaves, nondet_tol=0.0, **STRICT)


@pytest.mark.parametrize("weight", cases.WEIGHTS)
def test_gradcheck_weights(weight: str) -> None:
    function, leaves = of_leaves(Case("x", (3, 2, 2), target=None, weight=weight))
    assert gradcheck(function, leaves, nondet_tol=0.0, **STRICT)


@covering
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "expanded", "sliced"])
@pytest.mark.parametrize(("target", "weight"), [(torch.bool, None), (None, "class")])
def test_gradgradcheck_layouts(target: torch.dtype | None, weight: str | None, layout: str) -> None:
    function, leaves = of_leaves(Case("x", (2, 3, 2), layout=layout, target=target, weight=weight))
    assert gradgradcheck(function, leaves, nondet_tol=0.0, check_grad_dtypes=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradgradcheck_options(option: str) -> None:
    function, leaves = of_leaves(
        Case("x", (2, 3), target=None, weight="full", options=OPTIONS[option])
    )
    assert gradgradcheck(function, leaves, nondet_tol=0.0, check_grad_dtypes=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=short)
def test_second_derivatives_in_lower_precision(dtype: torch.dtype) -> None:
    """A gradient penalty works in any dtype; each gradient has the dtype of its operand."""
    sample = Case("x", (6, 4), target=None, weight="sample").build(dtype, requires_grad=True)
    gradients = torch.autograd.grad(soft_f1(*sample.operands), sample.operands, create_graph=True)
    penalty = sum(gradient.float().square().sum() for gradient in gradients)
    wide = [tensor.requires_grad_() for tensor in sample.as_double().operands]
    judged = torch.autograd.grad(reference.soft_f1(*wide), wide, create_graph=True)
    expected = torch.autograd.grad(sum(gradient.square().sum() for gradient in judged), wide)
    tolerance = 10 * torch.finfo(dtype).eps
    for operand, wanted, own in zip(
        sample.operands, expected, torch.autograd.grad(penalty, sample.operands)
    ):
        assert own.dtype == operand.dtype
        scale = float(wanted.abs().max())
        torch.testing.assert_close(own.double(), wanted, rtol=tolerance, atol=tolerance * scale)


def test_second_derivatives_do_not_depend_on_weights_that_want_none() -> None:
    sample = Case("x", (6, 4), target=None, weight="class").build(torch.float64)
    x = sample.input.requires_grad_()
    (gradient,) = torch.autograd.grad(
        soft_f1(x, sample.target, sample.weight), x, create_graph=True
    )
    (own,) = torch.autograd.grad(gradient.square().sum(), x)
    y = x.detach().requires_grad_()
    (judged,) = torch.autograd.grad(
        reference.soft_f1(y, sample.target, sample.weight), y, create_graph=True
    )
    (wanted,) = torch.autograd.grad(judged.square().sum(), y)
    torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("outer", ["square", "linear"])
@pytest.mark.parametrize("wrt", ["input", "target", "weight"])
def test_third_order(wrt: str, outer: str) -> None:
    """The third derivative is exact.

    It could not be refused instead: ``torch.autograd.grad`` visits only nodes that lead to its
    inputs. A node elsewhere that refuses, as that of once_differentiable does, is never reached,
    and its term would be missing.
    """
    sample = Case("x", (6, 4), target=None, weight="full").build(torch.float64)

    def third(op: Any) -> Tensor:
        leaf = getattr(sample, wrt).detach().requires_grad_()
        loss = op(*sample._replace(**{wrt: leaf}).operands)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        first = first.square() if outer == "square" else first[:, :2]
        (second,) = torch.autograd.grad(first.sum(), leaf, create_graph=True)
        return torch.autograd.grad(second.square().sum(), leaf)[0]

    torch.testing.assert_close(third(soft_f1), third(reference.soft_f1))
