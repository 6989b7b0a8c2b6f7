"""Fits every fold of every seed at once, and scores it on the rows it has not seen.

A logit tensor is ``[models, classes, rows]``. To the loss these are samples, classes and space:
``samplewise=True`` gives each class of each model a score of its own, and the train mask is the
weight. The sum of the losses then trains hundreds of small models in one call, and none of them
influences another.

A split has a model of its whole train fold, which is the one that is tested, and a model for each
inner fold of that train fold. The logits of the rows that an inner fold holds out choose the
threshold and the strength of L2: no model, no threshold and no strength has seen a test row. There
is one of each model for every strength.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import customloss
from customloss._demo.data import Problem

AT_HALF, IN_FOLD, OUT_OF_FOLD = "at 0.5", "in fold", "out of fold"


class Method(NamedTuple):
    """A loss to train with, the threshold to decide with, and whether large weights cost."""

    loss: str
    threshold: str
    l2: bool = False

    @property
    def is_rival(self) -> bool:
        """Whether it is a form of BCE."""
        return self.loss in RIVALS

    @property
    def trained(self) -> str:
        """What was trained, in words."""
        return f"{self.loss} + L2" if self.l2 else self.loss


RIVALS = ("BCE", "weighted BCE", "root-weighted BCE")

# BCE and soft-F1 both get L2 and a threshold out of fold; the other forms are for BCE alone.
METHODS = (
    Method("BCE", AT_HALF),
    Method("BCE", IN_FOLD),
    Method("BCE", OUT_OF_FOLD),
    Method("BCE", AT_HALF, l2=True),
    Method("BCE", OUT_OF_FOLD, l2=True),
    Method("weighted BCE", AT_HALF),
    Method("weighted BCE", OUT_OF_FOLD),
    Method("weighted BCE", AT_HALF, l2=True),
    Method("weighted BCE", OUT_OF_FOLD, l2=True),
    Method("root-weighted BCE", AT_HALF),
    Method("root-weighted BCE", AT_HALF, l2=True),
    Method("soft-F1", AT_HALF),
    Method("soft-F1", OUT_OF_FOLD),
    Method("soft-F1", AT_HALF, l2=True),
    Method("soft-F1", OUT_OF_FOLD, l2=True),
    Method("-log F1", AT_HALF),
)

Scores = dict[Method, list[float]]  # test F1, one number per seed


# ---- models ----------------------------------------------------------------------------------


class Models(nn.Module):
    """Independent networks side by side, linear or with one hidden layer: one per train mask."""

    def __init__(self, problem: Problem, rows: Tensor) -> None:
        super().__init__()
        self.mean, self.spread = _moments(problem, rows)
        widths = [problem.features.shape[1], problem.target.shape[0]]
        if problem.hidden:
            widths.insert(1, problem.hidden)
        splits, models = problem.train.shape[0], rows.shape[0]
        generators = [torch.Generator().manual_seed(seed) for seed in problem.seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            size = (splits // len(generators), outputs, inputs)
            drawn = torch.cat([torch.randn(size, generator=each) for each in generators])
            # all models of a split begin alike; splits vary fastest in ``rows``
            weight = drawn.repeat(models // splits, 1, 1) / inputs**0.5
            # a linear model has a single optimum for BCE, so it can start from zero, for all losses
            self.weights.append(weight if problem.hidden else torch.zeros_like(weight))
            self.biases.append(torch.zeros(models, outputs, 1))

    def forward(self, features: Tensor) -> Tensor:
        values = features.T
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            if layer == 0:  # w·(x - mean) / spread, with features that all models share
                weight = weight / self.spread
                values = (weight @ values).add_(bias - weight @ self.mean.mT)
            else:
                values = weight @ values.relu_() + bias
        return values

    def size(self) -> Tensor:
        """Half the squares of the weights of each model, biases apart."""
        return torch.stack([w.square().sum((1, 2)) for w in self.weights]).sum(0) / 2


def _moments(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd ``[models, 1, features]`` over the rows that each model is trained on."""
    if not problem.standardise:
        plain = torch.zeros(1, 1, problem.features.shape[1])
        return plain, plain + 1
    share, values = rows.double(), problem.features.double()
    share = share / share.sum(1, keepdim=True)
    mean = share @ values
    spread = (share @ values.square() - mean.square()).clamp_min(0).sqrt()
    spread = torch.where(spread == 0, 1.0, spread)
    return mean[:, None].float(), spread[:, None].float()


# ---- losses ----------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, target and weight


def _bce(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
    return each.sum(-1) / weight.sum(-1)


def _f1(link: str) -> Loss:
    return partial(
        customloss.soft_f1_loss, link=link, samplewise=True, average="none", reduction="none"
    )


# a value for each model and class
LOSSES: dict[str, Loss] = {
    "BCE": _bce,
    "weighted BCE": _bce,
    "root-weighted BCE": _bce,
    "soft-F1": _f1("complement"),
    "-log F1": _f1("log"),
}

POWERS = {"weighted BCE": 1.0, "root-weighted BCE": 0.5}


def weights(loss: str, target: Tensor, rows: Tensor) -> Tensor:
    """What each row counts ``[models, 1 or classes, rows]``: 1 if it is trained on, else 0.

    With the weighted BCE a positive row counts ``pos_weight``, the ratio of negative to positive
    rows among those that the model is trained on; with the root-weighted one, the root of that.
    """
    rows = rows[:, None]
    if loss not in POWERS:
        return rows.float()
    positive, negative = (target & rows).sum(-1, True), (~target & rows).sum(-1, True)
    pos_weight = (negative / positive.clamp_min(1)) ** POWERS[loss]
    return rows * torch.where(target, pos_weight, 1.0)


# ---- fits ------------------------------------------------------------------------------------


class Fits(NamedTuple):
    """Logits ``[strengths, splits, classes, rows]``."""

    whole: Tensor  # of the model of the whole train fold, for all rows
    held_out: Tensor  # for each train row, of the inner model that was not trained on it


def fit(problem: Problem, loss: str, steps: int, tick: Callable[[], None]) -> Fits:
    """Trains a model for every strength of L2, every split, and every inner fold of the split.

    A loss whose methods need neither inner folds nor strengths gets none.
    """
    alone = all(m.threshold == AT_HALF and not m.l2 for m in METHODS if m.loss == loss)
    strengths = torch.tensor(problem.strengths[: 1 if alone else None])
    folds = problem.train[None]  # [whole and inner folds, splits, rows]
    if not alone:
        folds = torch.cat([folds, problem.inner.transpose(0, 1)])
    size = (len(strengths), *folds.shape[:2])
    rows = folds.expand(*size, -1).flatten(0, 2)
    strength = strengths[:, None, None].expand(size).flatten()
    logits = _trained(problem, loss, rows, strength, steps, tick).unflatten(0, size)
    held_out = (folds[0] & ~folds[1:])[..., None, :]  # each train row by one fold
    return Fits(logits[:, 0], (logits[:, 1:] * held_out).sum(1))


def _trained(
    problem: Problem,
    loss: str,
    rows: Tensor,
    strength: Tensor,
    steps: int,
    tick: Callable[[], None],
) -> Tensor:
    """The logits of all rows ``[models, classes, rows]`` after Adam."""
    models = Models(problem, rows)
    optimiser = torch.optim.Adam(models.parameters(), lr=problem.learning_rate)
    weight = weights(loss, problem.target, rows)
    target = problem.target.expand(len(rows), -1, -1).float()
    for _ in range(steps):
        optimiser.zero_grad()
        value = LOSSES[loss](models(problem.features), target, weight).sum()
        (value + (strength * models.size()).sum()).backward()
        optimiser.step()
        tick()
    with torch.no_grad():
        logits: Tensor = models(problem.features)
    return logits


# ---- scores ----------------------------------------------------------------------------------


def f1(predicted: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """Hard F1 ``[..., models, classes]`` on the rows of a mask; 1 if none is positive or found."""
    tp = (predicted & target & rows).sum(-1)
    either = (predicted & rows).sum(-1) + (target & rows).sum(-1)
    return torch.where(either == 0, 1.0, 2 * tp / either.clamp_min(1))


def best_threshold(logits: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """The threshold ``[..., models, classes, 1]`` with the best hard F1 on the rows of a mask.

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


class Choice(NamedTuple):
    """What the train rows of each split say."""

    strength: Tensor  # [splits], a place in the strengths of the problem
    cut: Tensor  # [splits, classes, 1], the logit above which the decision is positive


def choose(problem: Problem, method: Method, fits: Fits) -> Choice:
    """Chooses the threshold by F1, and the strength of L2 by the rows that were held out.

    At 0.5 the best strength is that of the highest F1. Where the threshold is chosen as well, it is
    that of the lowest loss, because the highest F1 over many thresholds is noisy.
    """
    whole, held_out = (logits if method.l2 else logits[:1] for logits in fits)
    train = problem.train[:, None]
    cut = torch.zeros(*whole.shape[:-1], 1)
    if method.threshold != AT_HALF:
        logits = whole if method.threshold == IN_FOLD else held_out
        cut = best_threshold(logits, problem.target, train)
    if method.threshold == AT_HALF:
        merit = f1(held_out > cut, problem.target, train)
    else:
        weight = weights(method.loss, problem.target, problem.train)
        target = problem.target.float().expand_as(whole[0])
        merit = -torch.stack([LOSSES[method.loss](each, target, weight) for each in held_out])
    strength = merit.mean(-1).argmax(0)
    return Choice(strength, cut[strength, torch.arange(len(strength))])


def evaluate(problem: Problem, method: Method, fits: Fits) -> list[float]:
    """Test F1 of every seed: the mean over classes, then over folds."""
    strength, cut = choose(problem, method, fits)
    logits = fits.whole[strength, torch.arange(len(strength))]
    scores = f1(logits > cut, problem.target, ~problem.train[:, None])
    per_seed: list[float] = scores.mean(1).reshape(len(problem.seeds), -1).mean(1).tolist()
    return per_seed


def run(
    problem: Problem, steps: int | None = None, tick: Callable[[], None] = lambda: None
) -> Scores:
    """Trains with every loss and scores every method."""
    fits = {loss: fit(problem, loss, steps or problem.steps, tick) for loss in LOSSES}
    return {method: evaluate(problem, method, fits[method.loss]) for method in METHODS}
