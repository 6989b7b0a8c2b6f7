"""With ``pointwise_group=None`` the score is that of the whole, and the pointwise loss that of each
part: of a micro-batch, and of a step of a stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import customloss

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "micro": {"average": "micro"},
    "one weight of positives": {"pos_weight": 2.0, "average": "micro"},
    "weights of positives": {"pos_weight": [1.0, 2.0, 3.0]},
    "micro and weights of positives": {"pos_weight": [1.0, 2.0, 3.0], "average": "micro"},
    "micro and weights of classes": {
        "pos_weight": [1.0, 2.0, 3.0], "average": "micro", "class_weight": [0.5, 1.0, 0.0],
    },
    "mean of all": {"pointwise_reduction": "mean_all", "average": "micro"},
}  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(7, 3, 4, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), torch.rand(7, 3, 4, generator=generator) < 0.4


def cut(*operands: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(operand.split([2, 1, 4]) for operand in operands)))


def parts_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the score, and those of the cross-entropy, each as a loss by itself."""
    options = OPTIONS[name]
    score = {n: v for n, v in options.items() if n in ("average", "class_weight")}
    pointwise = {n: v for n, v in options.items() if n in ("pos_weight", "class_weight")}
    if "pointwise_reduction" in options:
        pointwise["reduction"] = options["pointwise_reduction"]
    return score, pointwise


@pytest.mark.parametrize("name", OPTIONS)
def test_of_micro_batches(name: str) -> None:
    """Their gradients add up to those of the score and of the mean cross-entropy."""
    of_score, of_pointwise = parts_of(name)
    x, target = batch()
    own = customloss.dice_loss(x, target, **of_score)
    each = [customloss.bce_loss(*part, **of_pointwise) for part in cut(x, target)]
    (expected,) = torch.autograd.grad(own + sum(each) / 3, x, retain_graph=True)

    criterion = customloss.DiceBCELoss(pointwise_group=None, **OPTIONS[name])
    with customloss.accumulate(criterion) as whole:
        for part in cut(x.detach(), target):
            whole.add(*part)
        losses = [whole.loss(*part) for part in cut(x, target)]
    for loss, pointwise in zip(losses, each):
        torch.testing.assert_close(loss, own + pointwise)
    torch.testing.assert_close(torch.autograd.grad(sum(losses), x)[0], expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_of_a_stream(name: str) -> None:
    of_score, of_pointwise = parts_of(name)
    criterion = customloss.DiceBCELoss(pointwise_group=None, **OPTIONS[name])
    stream = customloss.StreamingLoss(criterion, 0.6)
    judge = customloss.StreamingLoss(customloss.DiceLoss(**of_score), 0.6)
    x, target = batch()
    for part in cut(x, target):
        loss = stream(*part)
        expected = judge(*part) + customloss.bce_loss(*part, **of_pointwise)
        torch.testing.assert_close(loss, expected)
        pair = (torch.autograd.grad(each, x)[0] for each in (loss, expected))
        torch.testing.assert_close(*pair)


def test_the_whole_of_a_batch_in_parts_has_no_size() -> None:
    """``mean_all`` of all parts is refused, of each part and of a whole it is not."""
    x, target = batch()
    criterion = customloss.DiceBCELoss(pointwise_reduction="mean_all")
    loss, _ = criterion.with_sums(x, target)
    torch.testing.assert_close(loss, criterion(x, target))
    for parts in (customloss.StreamingLoss(criterion), customloss.accumulate(criterion).add):
        with pytest.raises(ValueError, match=r"^pointwise_reduction: expected 'mean' or 'sum'"):
            parts(x, target)


def test_learned_weights_of_micro_batches() -> None:
    """A weight of both parts has the gradient of the score and of the mean cross-entropy."""
    weight = torch.nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    x, target = batch()
    x = x.detach()
    own = customloss.dice_loss(x, target, class_weight=weight)
    each = [customloss.bce_loss(*part, class_weight=weight) for part in cut(x, target)]
    (expected,) = torch.autograd.grad(own + sum(each) / 3, weight)
    criterion = customloss.DiceBCELoss(pointwise_group=None, class_weight=weight)
    with customloss.accumulate(criterion) as whole:
        for part in cut(x, target):
            whole.add(*part)
        losses = [whole.loss(*part) for part in cut(x, target)]
    torch.testing.assert_close(torch.autograd.grad(sum(losses), weight)[0], expected)
