"""PyTorch's schema, autograd and fake-tensor checks accept the element-wise operators."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import pytest
import torch
from cases import Case, Sample
from judge import soft_f1
from process import run_python
from selection import covering
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import customloss
from customloss._spec.arguments import Elements
from customloss._spec.words import REDUCTIONS

ops = torch.ops.customloss
PRIMITIVES = ("confusion", "confusion_score", "confusion_backward")
ELEMENTS = Elements(0, 1.0, 0.0, False, True)


@covering
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_opcheck_soft_f1(case: Case, requires_grad: bool) -> None:
    sample = case.build(torch.float64, requires_grad=requires_grad)
    torch.library.opcheck(ops.soft_f1.default, sample.operands, sample.options)


@covering
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["hard", "class-weight", "channels-last", "empty"])
def test_opcheck_confusion_sums(name: str, requires_grad: bool) -> None:
    (case,) = (case for case in cases.FEW if case.name == name)
    sample = case.build(torch.float64, requires_grad=requires_grad)
    options = {"samplewise": name == "hard", "average": "micro" if name == "empty" else "macro"}
    torch.library.opcheck(ops.confusion_sums.default, sample.operands, options)


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize("name", ["hard", "soft-weighted", "channels-last"])
def test_opcheck_primitives(name: str, dtype: torch.dtype) -> None:
    (case,) = (case for case in cases.FEW if case.name == name)
    operands = case.build(dtype).operands
    scoring = (2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
    torch.library.opcheck(ops.confusion.default, (*operands, *ELEMENTS))
    torch.library.opcheck(ops.confusion_score.default, (*operands, *ELEMENTS, *scoring))
    loss, coefficients = ops.confusion_score(*operands, *ELEMENTS, *scoring)
    for wrt, operand in enumerate(operands):
        if operand is None or not operand.is_floating_point():
            continue
        for grad in (None, loss):
            torch.library.opcheck(
                ops.confusion_backward.default, (grad, coefficients, *operands, wrt, *ELEMENTS)
            )


# ---- what opcheck does not see -------------------------------------------------------------------


@pytest.mark.parametrize("wrt", ["input", "target", "weight"])
@pytest.mark.parametrize("op", [ops.soft_f1, ops.confusion_sums], ids=str)
def test_a_direct_call_has_a_grad_fn(op: Any, wrt: str) -> None:
    sample = Case("x", (4, 3), target=None, weight="full").build()
    leaf = getattr(sample, wrt).requires_grad_()
    for call in (op, op.default):
        result = call(*sample.operands)
        assert result.grad_fn is not None
        result.sum().backward()
        assert leaf.grad.shape == leaf.shape
    with torch.no_grad():
        assert op(*sample.operands).grad_fn is None
    assert op(*(tensor.detach() for tensor in sample.operands)).grad_fn is None


def test_no_warning_anywhere() -> None:
    """Nothing warns, not even torch about operators without an autograd kernel, once a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = Case("x", (4, 3), target=None, weight="class").build(requires_grad=True)
        gradients = torch.autograd.grad(
            soft_f1(*sample.operands), sample.operands, create_graph=True
        )
        sum(gradient.sum() for gradient in gradients).backward()
        sums = customloss.confusion_sums(*sample.operands)
        sum(each.sum() for each in sums).backward()


def test_inference_mode() -> None:
    sample = Case("x", (4, 3), target=None, weight="full").build()
    expected = soft_f1(*sample.operands)
    with torch.inference_mode():
        assert torch.equal(soft_f1(*sample.operands), expected)
        inside = [tensor.clone() for tensor in sample.operands]
        assert torch.equal(soft_f1(*inside), expected)
        assert soft_f1(*inside).is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        soft_f1(torch.zeros(4, 3, requires_grad=True), inside[1])


def test_a_lazily_negated_tensor_is_read_as_its_value() -> None:
    """``.conj().imag`` only marks its numbers as negated."""
    negated = torch.randn(6, 4, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    target = torch.rand(6, 4) < 0.4
    assert torch.equal(soft_f1(negated, target), soft_f1(negated.resolve_neg(), target))


def test_subclasses_keep_working() -> None:
    sample = Case("x", (4, 3)).build()
    parameter = torch.nn.Parameter(sample.input)
    soft_f1(parameter, sample.target).backward()
    assert parameter.grad is not None


def test_operands_are_not_changed() -> None:
    for case in cases.FEW:
        sample = case.build(torch.float64, requires_grad=True)
        copies = [None if t is None else t.detach().clone() for t in sample.operands]
        loss = soft_f1(*sample.operands, **sample.options)
        if loss.numel():
            loss.sum().backward()
        for operand, copy in zip(sample.operands, copies):
            assert operand is copy is None or torch.equal(operand.detach(), copy)


def test_one_tensor_as_every_operand() -> None:
    x = torch.rand(50, dtype=torch.float64, requires_grad=True)
    soft_f1(x, x, x).backward()
    y = x.detach().requires_grad_()
    customloss.reference.soft_f1(y, y, y).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_the_tags_and_the_schema() -> None:
    schema = str(ops.soft_f1.default._schema)
    assert schema.startswith(
        "customloss::soft_f1(Tensor input, Tensor target, Tensor? weight=None, *, float beta=1."
    )
    assert torch.Tag.pt2_compliant_tag in ops.soft_f1.default.tags
    assert not ops.soft_f1.default._schema.is_mutable


# Calls that would write or read past the end of a tensor.
REFUSED = {
    "confusion_backward": (
        "None, g, x, t, None, 1, 0, 1.0, 0.0, False, True, *rest",  # a bool target has no gradient
        "None, g[:, :, :2], x, t, None, 0, 0, 1.0, 0.0, False, True, *rest",
        "None, g.float(), x, t, None, 0, 0, 1.0, 0.0, False, True, *rest",
        "x.new_ones(2), g, x, t, None, 0, 0, 1.0, 0.0, False, True, *rest",
        "None, g, x, t, None, 7, 0, 1.0, 0.0, False, True, *rest",
        "None, g, x, n, None, 0, 2, 1.0, 0.0, False, True, None, 0.0, 1, 2.0, 0, 0",
        "None, g, x, n, None, 1, 2, 1.0, 0.0, False, True, *rest",
    ),
    "confusion": (
        "x, t[:9], None, 0, 1.0, 0.0, False, True, *rest",
        "x, t, x[:, :2], 0, 1.0, 0.0, False, True, *rest",
        "x.int(), t, None, 0, 1.0, 0.0, False, True, *rest",
        "x, t, None, 9, 1.0, 0.0, False, True, *rest",
        "x, n[:9], None, 2, 1.0, 0.0, False, True, *rest",
        "x, n.float(), None, 2, 1.0, 0.0, False, True, *rest",
        "x, n, None, 2, 1.0, 0.0, False, True, None, 0.0, 32, 2.0, 0, 0",
    ),
}


@pytest.mark.parametrize("primitive", REFUSED)
def test_primitives_raise_where_they_would_write_or_read_past_an_end(primitive: str) -> None:
    """They are private, but anyone can call them, so a bad call may not corrupt memory."""
    done = run_python(f"""
import torch, customloss
from customloss._spec.arguments import Elements
x, t = torch.randn(400, 3), torch.rand(400, 3) < 0.4
g = torch.ones(4, 1, 3, dtype=torch.float64)
n, none = torch.zeros(400, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int64)
rest = Elements(0, 1.0, 0.0, False, True)[5:]
for given in {REFUSED[primitive]}:
    print(given, flush=True)  # the last one is at fault
    for _ in range(20):
        try:
            eval(f"torch.ops.customloss.{primitive}({{given}})")
        except RuntimeError as error:
            assert "customloss" in str(error), error
        else:
            raise SystemExit("accepted")
print("all were refused")
""")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all were refused\n")


def test_why_autograd_is_not_registered_the_documented_way() -> None:
    """``register_autograd`` gives forward mode zero tangents, and ``torch.func.grad`` an error.

    When this test fails, the reason that ``_ops/register.py`` gives no longer holds.
    """
    with torch.library._scoped_library("customloss_why", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_autograd(
            "customloss_why::double", lambda ctx, grad: grad * 2, lib=library
        )
        op = torch.ops.customloss_why.double
        x = torch.ones(3)
        _, tangent = torch.func.jvp(op, (x,), (torch.ones(3),))
        assert not tangent.any()
        with pytest.raises(RuntimeError):
            torch.func.grad(lambda x: op(x).sum())(x)


# ---- fake and meta -------------------------------------------------------------------------------


def described(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.stride()


def run(sample: Sample) -> list[Tensor]:
    """The loss, the sums and all gradients."""
    loss = soft_f1(*sample.operands, **sample.options)
    sums = ops.confusion_sums(*sample.operands)
    wanted = [t for t in sample.operands if t is not None and t.requires_grad]
    found = torch.autograd.grad(loss.sum(), wanted)
    return [loss.detach(), sums.detach(), *found]


@pytest.mark.parametrize(
    "case",
    (*cases.FEW, *cases.MIXED_LAYOUTS, *(c for c in cases.SIZES if c.layout != "contiguous"),
     *cases.OPTIONED[::3]),
    ids=str,
)  # fmt: skip
def test_fake_tensors_are_shaped_as_real_ones(case: Case) -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        real = case.build(dtype, requires_grad=True)
        expected = [described(tensor) for tensor in run(real)]
        with FakeTensorMode() as mode:
            fake = [None if t is None else mode.from_tensor(t) for t in real.operands]
            found = run(Sample(*fake, real.options))
        assert [described(tensor) for tensor in found] == expected
        meta = [
            None if t is None else t.detach().to("meta").requires_grad_(t.requires_grad)
            for t in real.operands
        ]
        loss = soft_f1(*meta, **real.options)
        assert loss.is_meta
        assert described(loss) == expected[0]


@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_every_returned_shape(average: str, samplewise: bool) -> None:
    for shape in ((6,), (6, 3), (6, 3, 2)):
        sample = Case("x", shape).build()
        for reduction in REDUCTIONS:
            kept = []
            if reduction == "none":
                kept += [shape[0]] if samplewise else []
                kept += [shape[1]] if average == "none" and len(shape) > 1 else []
            options = {"average": average, "samplewise": samplewise, "reduction": reduction}
            for operands in (sample.operands[:2], [t.to("meta") for t in sample.operands[:2]]):
                loss = soft_f1(*operands, **options)
                assert list(loss.shape) == kept
                assert loss.is_contiguous()
