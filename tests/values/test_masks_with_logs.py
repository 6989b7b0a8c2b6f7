"""Bool masks with a log-loss or a focal loss: float32 has loops of its own, float64 has not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import customloss

INF, NAN = float("inf"), float("nan")
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"name": "dice_bce"},
    "pos_weight": {"name": "dice_bce", "pos_weight": 3.0},
    "focal-1": {"name": "dice_focal", "focal_gamma": 1.0},
    "focal-2": {"name": "dice_focal"},
    "focal-3": {"name": "dice_focal", "focal_gamma": 3.0, "focal_alpha": 0.25},
    "focal-4": {"name": "dice_focal", "focal_gamma": 4.0},
    "focal-1.5": {"name": "dice_focal", "focal_gamma": 1.5},
    "focal-split": {"name": "dice_focal", "focal_split": True},
    "samplewise": {"name": "dice_bce", "samplewise": True, "average": "micro"},
    "smoothed": {"name": "dice_bce", "label_smoothing": 0.1},
}
SHAPES = [(1,), (15,), (16, 1), (77, 1), (3, 1, 513), (2, 3, 32, 48), (2, 3, 7, 11), (5, 2, 1024)]


def differentiated(input: Tensor, target: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()  # as a clone, it keeps its strides
    loss = customloss.loss(**options, check_target=False)(leaf, target)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def check(input: Tensor, target: Tensor, options: dict[str, Any], rtol: float = 2e-6) -> None:
    value, gradient = differentiated(input, target, options)
    right, right_gradient = differentiated(input.double(), target, options)
    torch.testing.assert_close(value.double(), right, rtol=rtol, atol=0.0, equal_nan=True)
    finite = right_gradient[right_gradient.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        gradient.double(), right_gradient, rtol=rtol, atol=rtol * largest, equal_nan=True
    )


def masks(shape: tuple[int, ...], spread: float = 3.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(len(shape) + shape[-1])
    return torch.randn(shape) * spread, torch.rand(shape) > 0.6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_it_is_what_float64_says(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    input, target = masks(shape)
    if input.dim() == 1 and options.get("samplewise"):
        pytest.skip("a sample of [N] is one element")
    check(input, target, options)


@pytest.mark.parametrize("options", [LOSSES["bce"], LOSSES["focal-2"]], ids=["bce", "focal"])
@pytest.mark.parametrize("spread", [1e-6, 0.1, 30.0, 200.0])
def test_small_and_large_logits_keep_their_digits(options: dict[str, Any], spread: float) -> None:
    input, target = masks((4, 1, 40, 41), spread)
    check(input, target, options)
    check(input.abs() * (2.0 * target - 1.0), target, options)  # all are right


@pytest.mark.parametrize("options", [LOSSES["bce"], LOSSES["focal-2"]], ids=["bce", "focal"])
@pytest.mark.parametrize("value", [0.0, -0.0, 88.0, -104.0, INF, -INF, NAN])
@pytest.mark.parametrize("answer", [True, False])
def test_a_special_logit(options: dict[str, Any], value: float, answer: bool) -> None:
    input, target = masks((1, 1, 700))
    for place in (3, 690):  # in a full register, and in the tail
        input[0, 0, place], target[0, 0, place] = value, answer
    check(input, target, options)


@pytest.mark.parametrize("options", [LOSSES["bce"], LOSSES["focal-2"]], ids=["bce", "focal"])
def test_strides_and_bytes_as_they_come(options: dict[str, Any]) -> None:
    input, target = masks((2, 3, 24, 64))
    check(input.transpose(2, 3), target.transpose(2, 3), options)
    check(input, target.transpose(2, 3).contiguous().transpose(2, 3), options)
    check(input.to(memory_format=torch.channels_last), target, options)
    check(input[..., 3:], target[..., 3:], options)
    check(input, target[:, :1].expand_as(target), options)
    raw = target.to(torch.uint8) * 7  # a bool of another byte than 1
    check(input, raw.view(torch.bool), options)
    half = input.bfloat16()
    check(half.float(), target, options)
    value, gradient = differentiated(half, target, options)
    right, right_gradient = differentiated(half.float(), target, options)
    torch.testing.assert_close(value, right)
    assert torch.equal(gradient, right_gradient.bfloat16())


def test_classes_of_weight_0_reach_no_gradient() -> None:
    input, target = masks((2, 3, 512))
    input[:, 1] = NAN
    options = {"name": "dice_bce", "class_weight": [1.0, 0.0, 2.0]}
    value, gradient = differentiated(input, target, options)
    assert value.isfinite()
    assert (gradient[:, 1] == 0).all()
    assert gradient[:, 0].abs().sum() > 0


def test_the_bits_do_not_depend_on_the_threads() -> None:
    input, target = masks((3, 2, 200, 300))
    for options in (LOSSES["bce"], LOSSES["focal-2"]):
        found = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            value, gradient = differentiated(input, target, options)
            found.add(value.numpy().tobytes() + gradient.numpy().tobytes())
        assert len(found) == 1
