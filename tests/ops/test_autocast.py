"""Under autocast nothing is cast: half inputs are read as they are, and the loss is float32."""

from __future__ import annotations

import sys

import pytest
import torch
from cases import INPUT_DTYPES, Case, short
from judge import soft_f1
from measured import allocated
from paths import ROOT
from selection import covering
from torch.utils._python_dispatch import TorchDispatchMode

import customloss

sys.path.insert(0, str(ROOT / "docs"))
import underflow


class Casts(TorchDispatchMode):
    """Records the names of the operators that ran, among which a cast would be."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@covering
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
    """Logits of a bfloat16 layer have a bfloat16 gradient, and the loss is float32."""
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


# ---- what a step with loss scaling does --------------------------------------------------------

WITHIN = pytest.mark.parametrize("within", [torch.bfloat16, torch.float16], ids=short)


@WITHIN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("criterion", [
    customloss.SoftF1Loss(check_target=False),  # which would read the first batch apart
    customloss.MCCLoss(check_target=False),
], ids=str)  # fmt: skip
def test_nothing_of_the_size_of_the_input_is_taken(
    criterion: torch.nn.Module, dtype: torch.dtype, within: torch.dtype
) -> None:
    sample = Case("x", (4, 6, 60, 70), target=None, weight="full").build(dtype)
    x = sample.input.requires_grad_()
    few = 8192
    with torch.autocast("cpu", dtype=within):
        forward = allocated(lambda: criterion(*sample.operands))
        loss = criterion(*sample.operands)
    assert loss.dtype == torch.float32
    assert sum(forward) <= few, forward
    backward = allocated(lambda: torch.autograd.grad(loss, x))
    assert sum(backward) <= x.numel() * x.element_size() + few, backward


@WITHIN
def test_scaled_gradients_are_the_gradients(within: torch.dtype) -> None:
    """A layer in autocast under a GradScaler has the gradients of float64, up to rounding."""
    layer = torch.nn.Linear(6, 3)
    x, target = torch.randn(50, 6), torch.rand(50, 3) < 0.4
    scaler = torch.amp.GradScaler(device="cpu")
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype=within):
        loss = customloss.soft_f1_loss(layer(x), target)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    wide = torch.nn.Linear(6, 3).double()
    wide.load_state_dict(layer.state_dict())
    customloss.soft_f1_loss(wide(x.double()), target).backward()
    rounding = 2 * torch.finfo(within).eps
    for own, expected in zip(layer.parameters(), wide.parameters(), strict=True):
        error = (own.grad - expected.grad).abs().max() / expected.grad.abs().max()
        assert error <= rounding
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(layer.weight, before)


def test_a_scale_that_is_too_large_is_seen_and_skipped() -> None:
    layer = torch.nn.Linear(6, 1)
    x, target = torch.randn(4, 6), torch.rand(4, 1) < 0.5
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**24)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = customloss.soft_f1_loss(layer(x), target, absent="penalize")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 2.0**23


def test_the_page_tells_what_half_gradients_lose() -> None:
    """docs/mixed_precision.md has the numbers that docs/underflow.py computes."""
    assert underflow.table() in underflow.PAGE.read_text()
    assert underflow.error(2**22, torch.float16) > 0.1
    assert underflow.error(2**22, torch.float16, 2.0**16) < 2**-11
    assert underflow.error(2**22, torch.bfloat16) < 2**-8
