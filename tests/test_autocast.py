"""Under autocast nothing is cast: half inputs are read as they are, the loss is float32."""

from __future__ import annotations

import pytest
import torch
from cases import INPUT_DTYPES, Case, short
from judge import soft_f1
from torch.utils._python_dispatch import TorchDispatchMode

import customloss


class Casts(TorchDispatchMode):
    """The names of what ran, to see a cast of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("within", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_the_same_value_and_gradient(dtype: torch.dtype, within: torch.dtype) -> None:
    sample = Case("x", (40, 5), target=None, weight="full").build(dtype, requires_grad=True)
    expected = soft_f1(*sample.operands)
    gradients = torch.autograd.grad(expected, sample.operands)
    with torch.autocast("cpu", dtype=within):
        for function in (soft_f1, customloss.soft_f1_loss, customloss.SoftF1Loss()):
            loss = function(*sample.operands)
            assert loss.dtype == expected.dtype
            assert torch.equal(loss, expected)
            for own, wanted in zip(torch.autograd.grad(loss, sample.operands), gradients):
                assert own.dtype == wanted.dtype
                assert torch.equal(own, wanted)


def test_nothing_is_cast() -> None:
    sample = Case("x", (40, 5), target=None, weight="full").build(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        customloss.soft_f1_loss(*sample.operands)
    assert casts.names
    assert not [name for name in casts.names if "_to_copy" in name or "clone" in name]


def test_a_model_under_autocast() -> None:
    """Logits come out of a bfloat16 layer; the gradient goes back into it as bfloat16."""
    layer = torch.nn.Linear(6, 3)
    x, target = torch.randn(50, 6), torch.rand(50, 3) < 0.4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        logits.retain_grad()
        loss = customloss.soft_f1_loss(logits, target)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    expected = customloss.reference.soft_f1(logits.detach().double(), target)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=0)


def test_mixed_operand_dtypes() -> None:
    """A float32 target or weight beside bfloat16 logits stays float32."""
    sample = Case("x", (40, 5), target=torch.float32, weight="full",
                  weight_dtype=torch.float64).build(torch.bfloat16, requires_grad=True)  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_f1(*sample.operands)
    found = torch.autograd.grad(loss, sample.operands)
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float64]
