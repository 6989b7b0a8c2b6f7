"""The drop-ins for transformers' mask losses, against its own where it is installed, and against
the formulas."""

from __future__ import annotations

import importlib
import inspect
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from customloss.compat import torchvision, transformers
from customloss.compat.patching.peers import PEERS


def dice(inputs: Tensor, targets: Tensor, num_boxes: float) -> Tensor:
    p = inputs.sigmoid().flatten(1)
    score = (2 * (p * targets).sum(1) + 1) / (p.sum(1) + targets.sum(1) + 1)
    return (1 - score).sum() / num_boxes


def cross_entropy(inputs: Tensor, targets: Tensor, num_boxes: float) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    return loss.mean(1).sum() / num_boxes


def focal(
    inputs: Tensor, targets: Tensor, num_boxes: float, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    p = inputs.sigmoid()
    wrong = p * (1 - targets) + (1 - p) * targets
    loss = wrong**gamma * F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean(1).sum() / num_boxes


FORMULAS = {
    "dice_loss": dice, "sigmoid_focal_loss": focal, "sigmoid_cross_entropy_loss": cross_entropy,
}  # fmt: skip


def agree(name: str, peer: Any, seed: int, trials: int) -> None:
    """Draws calls in the words of the peer."""
    draw = random.Random(f"{name} {seed}")
    words = list(inspect.signature(peer).parameters)
    for _ in range(trials):
        dtype = draw.choice([torch.float32, torch.float64])
        shape = draw.choice([(0, 6), (1, 6), (3, 1), (5, 40), (2, 7, 4)])
        if name == "dice_loss":
            shape = draw.choice([shape[:2], (3, 4, 5)])
        targets = torch.rand(shape, dtype=dtype)
        targets = targets.round() if draw.random() < 0.7 else targets
        if name == "dice_loss":
            targets = targets.flatten(1)
        count = draw.choice([1, 3, 2.5, torch.tensor(4.0)])
        more = {}
        if name == "sigmoid_focal_loss":
            more = {"alpha": draw.choice([0.25, -1, 0.5, 1]), "gamma": draw.choice([2, 0, 1.5])}
        x, results = 3 * torch.randn(shape, dtype=dtype), []
        for loss in (getattr(transformers, name), peer):
            input = x.clone().requires_grad_()
            if draw.random() < 0.5:
                value = loss(input, targets, count, **more)
            else:
                value = loss(**dict(zip(words, (input, targets, count))), **more)
            results.append((value, *torch.autograd.grad(value, input)))
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_the_formula(name: str) -> None:
    agree(name, FORMULAS[name], seed=0, trials=100)


@pytest.mark.more
@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_in_thousands(name: str) -> None:
    agree(name, FORMULAS[name], seed=1, trials=1000)


@pytest.mark.parametrize(("module", "names"), PEERS["transformers"].names.items())
def test_agrees_with_transformers(module: str, names: tuple[str, ...]) -> None:
    pytest.importorskip("transformers")
    peer = importlib.import_module(module)
    for name in names:
        agree(name, getattr(peer, name), seed=2, trials=100)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_words_of_segmentation(name: str) -> None:
    x, labels = torch.randn(3, 6), torch.rand(3, 6).round()
    own = getattr(transformers, name)
    torch.testing.assert_close(own(x, labels=labels, num_masks=2), own(x, labels, 2))
    with pytest.raises(TypeError, match="labels"):
        own(x, targets=labels, labels=labels, num_masks=2)
    with pytest.raises(TypeError, match="num_boxes"):
        own(x, labels)


@pytest.mark.parametrize("name", FORMULAS)
def test_two_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=r"\[3, 6\], got \[3, 5\]"):
        getattr(transformers, name)(torch.randn(3, 6), torch.ones(3, 5), 3)


def test_strict_is_that_of_the_focal_loss() -> None:
    x, soft = torch.randn(3, 6), torch.rand(3, 6)
    own = transformers.sigmoid_focal_loss(x, soft, 2, strict=False)
    mended = torchvision.sigmoid_focal_loss(x, soft, reduction="sum", strict=False)
    torch.testing.assert_close(own, mended / 6 / 2)
    assert (own - focal(x, soft, 2)).abs() > 1e-3


def test_half_precision() -> None:
    """transformers' sums overflow in float16."""
    x, targets = torch.full((2, 100_000), 5.0).half(), torch.ones(2, 100_000).half()
    own, expected = transformers.dice_loss(x, targets, 2), dice(x.double(), targets.double(), 2)
    torch.testing.assert_close(own, expected.float(), rtol=1e-3, atol=0)
    assert not dice(x, targets, 2).isfinite()


@pytest.mark.parametrize("name", FORMULAS)
def test_compiles_whole(name: str) -> None:
    x, targets, own = torch.randn(3, 6), torch.ones(3, 6), getattr(transformers, name)
    compiled = torch.compile(own, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, targets, 2), own(x, targets, 2))
