"""The weight of a score, and those of classes, mean the same whichever route a call takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import customloss
from customloss import scores

F64 = torch.float64


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, dtype=F64, generator=generator)
    return x, torch.rand(50, 3, generator=generator) > 0.5


# Calls that take COMPOSED, each for another reason. The score weighs 0.25 and stands alone.
COMPOSED: dict[str, dict[str, Any]] = {
    "no ratio": {"score": scores.mcc},
    "another link": {"link": "log_cosh"},
    "a power of the logarithm": {"link": "log_power", "gamma": 0.5},
    "pooled classes": {"average": "micro", "class_weight": [1.0, 2.0, 3.0]},
    "learned weights": {"class_weight": torch.tensor([1.0, 2.0, 3.0]).requires_grad_()},
    "a ratio, fused": {},
}


@pytest.mark.parametrize("name", COMPOSED)
def test_the_weight_of_a_score_that_stands_alone(name: str) -> None:
    x, t = batch()
    options = dict(COMPOSED[name])
    score = options.pop("score", scores.dice)
    whole = customloss.confusion_loss(score, x, t, **options)
    part = customloss.compound_loss(score, x, t, score_weight=0.25, **options)
    torch.testing.assert_close(part, 0.25 * whole)
    preset = {"dice_weight": 0.25, "bce_weight": 0.0}
    if score is scores.dice:
        torch.testing.assert_close(customloss.dice_bce_loss(x, t, **preset, **options), part)


@pytest.mark.parametrize("score", [scores.dice, scores.mcc], ids=["ratio", "no ratio"])
def test_the_weight_of_a_score_over_micro_batches(score: Any) -> None:
    x, t = batch()
    for more in ({}, {"samplewise": True}):
        criterion = customloss.CompoundLoss(score, score_weight=0.25, **more)
        batches = customloss.accumulate(criterion)
        with batches:
            for part in zip(x.split(20), t.split(20)):
                batches.add(*part)
            losses = [batches.loss(*part) for part in zip(x.split(20), t.split(20))]
        torch.testing.assert_close(losses[0], criterion(x, t))
        alone = customloss.ConfusionLoss(score, **more)(x, t)
        torch.testing.assert_close(criterion(x, t), 0.25 * alone)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_one_class_is_one_class_with_or_without_its_dimension(average: str) -> None:
    """``average="micro"`` multiplies the sums by the weight, which a ``smooth`` makes visible."""
    x, t = batch()
    options: dict[str, Any] = {"smooth": 1.0, "average": average, "class_weight": [9.0]}
    flat = customloss.dice_loss(x[:, 0], t[:, 0], **options)
    torch.testing.assert_close(flat, customloss.dice_loss(x[:, :1], t[:, :1], **options))
    if average == "micro":
        tp, fp, fn, _ = (9 * each for each in customloss.confusion_sums(x[:, 0], t[:, 0]))
        torch.testing.assert_close(flat, (fp + fn) / (2 * tp + fp + fn + 1))
