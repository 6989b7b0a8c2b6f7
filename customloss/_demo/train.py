"""Fits every fold of every seed at once, and scores it on the rows it has not seen.

A logit tensor is ``[models, classes, rows]``. To the loss these are samples, classes and space:
``samplewise=True`` gives each class of each model a score of its own, and the train mask is the
weight. The sum of the losses then trains hundreds of small models in one call, and none of them
influences another.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import customloss
from customloss._demo.data import Problem

AT_HALF, TUNED = "at 0.5", "tuned on the train fold"


class Method(NamedTuple):
    """A loss to train with and the threshold to decide with."""

    loss: str
    threshold: str


METHODS = (
    Method("BCE", AT_HALF),
    Method("BCE", TUNED),
    Method("soft-F1", AT_HALF),
    Method("-log F1", AT_HALF),
)

Scores = dict[Method, list[float]]  # test F1, one number per seed


class Models(nn.Module):
    """``models`` independent networks side by side: linear, or with one hidden layer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        widths = [problem.features.shape[1], problem.target.shape[0]]
        if problem.hidden:
            widths.insert(1, problem.hidden)
        models = problem.train.shape[0]
        generator = torch.Generator().manual_seed(0)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            weight = torch.randn(models, outputs, inputs, generator=generator) / inputs**0.5
            # a linear model has a single optimum for BCE, so it can start from zero, for all losses
            self.weights.append(weight if problem.hidden else torch.zeros_like(weight))
            self.biases.append(torch.zeros(models, outputs, 1))

    def forward(self, features: Tensor) -> Tensor:
        values = features.T
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            values = weight @ (values if layer == 0 else values.relu()) + bias
        return values


def _bce(logits: Tensor, target: Tensor, train: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(
        logits, target.float(), train.float(), reduction="none"
    )
    return (each.sum(-1) / train.sum(-1)).sum()


def _f1(link: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, target: Tensor, train: Tensor) -> Tensor:
        return customloss.soft_f1_loss(
            logits, target, train, link=link, samplewise=True, average="none", reduction="sum"
        )

    return loss


LOSSES = {"BCE": _bce, "soft-F1": _f1("complement"), "-log F1": _f1("log")}


def fit(problem: Problem, loss: str, steps: int, tick: Callable[[], None]) -> Tensor:
    """Trains with Adam on the train folds, and returns the logits of all rows."""
    models = Models(problem)
    optimiser = torch.optim.Adam(models.parameters(), lr=problem.learning_rate)
    train = problem.train[:, None]  # the same rows for every class
    target = problem.target.expand(train.shape[0], -1, -1).contiguous()
    for _ in range(steps):
        optimiser.zero_grad()
        LOSSES[loss](models(problem.features), target, train).backward()
        optimiser.step()
        tick()
    with torch.no_grad():
        logits: Tensor = models(problem.features)
    return logits


# ---- scores ----------------------------------------------------------------------------------


def f1(predicted: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """Hard F1 ``[models, classes]`` on the rows of a mask; 1 if no row is positive or predicted."""
    tp = (predicted & target & rows).sum(-1)
    either = (predicted & rows).sum(-1) + (target & rows).sum(-1)
    return torch.where(either == 0, 1.0, 2 * tp / either.clamp_min(1))


def best_threshold(logits: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """The threshold ``[models, classes, 1]`` with the best hard F1 on the rows of a mask.

    Predicting the k highest logits finds the positives among them, for every k at once. The
    threshold lies half way between the last logit that is predicted positive and the next.
    """
    ordered, order = logits.masked_fill(~rows, -torch.inf).sort(-1, descending=True)
    hits = (target & rows).expand_as(logits).gather(-1, order).cumsum(-1)
    count = torch.arange(1, logits.shape[-1] + 1)
    scores = 2 * hits / (count + hits[..., -1:])
    last = scores.masked_fill(ordered == -torch.inf, -1).argmax(-1, keepdim=True)
    following = ordered.gather(-1, (last + 1).clamp_max(logits.shape[-1] - 1))
    chosen = ordered.gather(-1, last)
    return torch.where(following == -torch.inf, chosen - 1, (chosen + following) / 2)


def evaluate(problem: Problem, logits: Tensor, threshold: str) -> list[float]:
    """Test F1 of every seed: the mean over classes, then over folds."""
    train = problem.train[:, None]
    cut = best_threshold(logits, problem.target, train) if threshold == TUNED else 0.0
    scores = f1(logits > cut, problem.target, ~train)
    per_seed: list[float] = scores.mean(1).reshape(problem.seeds, -1).mean(1).tolist()
    return per_seed


def run(
    problem: Problem, steps: int | None = None, tick: Callable[[], None] = lambda: None
) -> Scores:
    """Trains the three losses and scores the four methods."""
    logits = {loss: fit(problem, loss, steps or problem.steps, tick) for loss in LOSSES}
    return {method: evaluate(problem, logits[method.loss], method.threshold) for method in METHODS}
