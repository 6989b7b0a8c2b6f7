"""Sums of groups that are empty, absent, perfect or usual, and the formulas of their loss.

The formulas are written out here once more, group by group in NumPy; nothing is taken from the
reference. Derivatives are complex steps, because f(x + ih).imag / h has no cancellation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from customloss import reference
from customloss._spec.arguments import Pointwise, Scoring
from customloss._spec.words import ABSENT, AVERAGES, FUSED_LINKS, REDUCTIONS

F64 = torch.float64
# The extras that are summed, and the factors of their rows, some of which are 0.
BESIDE: dict[str, tuple[int, Pointwise]] = {
    "alone": (0, Pointwise()),
    "scaled": (0, Pointwise(0.3)),
    "unread": (63, Pointwise(2.0)),
    "binary": (1, Pointwise(1.0, 0.7, 1.3, 0.0, 0.0, 1.0, 1.0)),
    "softmax": (1, Pointwise(0.3, 1.0, 0.0, 0.0, 0.0, 1.1, -0.05)),
    "negatives": (1, Pointwise(1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0)),
    "focal": (8, Pointwise(1.0, 0.0, 0.0, 0.5, 0.375, 1.0, 1.0)),
    "both": (9, Pointwise(0.3, 1.0, 0.5, 0.25, 0.1875, 1.0, 1.0)),
    "every": (63, Pointwise(1.0, 1.0, 1.0, 2.0, 1.5, 1.0, 0.5)),
    "no score": (9, Pointwise(0.0, 1.0, 0.5, 0.25, 0.1875, 1.0, 1.0)),
    "support": (33, Pointwise(0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)),
    "every and support": (63, Pointwise(1.0, 1.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.25)),
    "undivided": (1, Pointwise(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)),
}
WITHOUT = ("alone", "scaled", "unread")
RATIOS = {
    "dice": (2.0, 1.0, 1.0, 0.0, 0.0), "f2": (5.0, 1.0, 4.0, 0.0, 0.0),
    "tversky": (1.0, 0.3, 0.7, 0.5, 0.75),
}  # fmt: skip


class Case(NamedTuple):
    """What ``sums_score`` takes."""

    sums: Tensor  # [rows, samples, classes]
    class_weight: Tensor | None  # [2, classes]
    extra: int
    per_sample: bool
    scoring: Scoring
    pointwise: Pointwise

    def how(self, wide: bool = True) -> tuple[Any, ...]:
        return (self.extra, self.per_sample, wide, *self.scoring, *self.pointwise)

    def arguments(self, wide: bool = True) -> tuple[Any, ...]:
        return (self.sums, self.class_weight, *self.how(wide))


def scoring(
    ratio: str = "dice",
    link: str = "complement",
    absent: str = "score",
    average: str = "macro",
    reduction: str = "mean",
    gamma: float | None = None,
    log_floor: float = 1e-30,
) -> Scoring:
    if gamma is None:
        gamma = 1.5 if link == "focal" else 1.0
    return Scoring(
        *RATIOS[ratio], gamma, log_floor, FUSED_LINKS.index(link), ABSENT.index(absent),
        AVERAGES.index(average), REDUCTIONS.index(reduction),
    )  # fmt: skip


def sums_of(
    extra: int = 0, samples: int = 3, classes: int = 4, special: bool = True, seed: int = 0
) -> Tensor:
    """Sums of several magnitudes, with some groups empty and some without a positive target."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(reference.rows(extra)), samples, classes)
    sums = (4 * torch.rand(shape, generator=generator, dtype=F64) - 2).exp()
    if special and samples * classes > 1:
        sums[:3, 0, 0] = 0  # nothing there, nothing predicted
        sums[[0, 2], -1, -1] = 0
        sums[[1, 2], 0, -1] = 0  # perfect
    if special and samples > 2:
        sums[[0, 2], 1] = 0  # a sample without any positive
    return sums


def weights(kind: str, classes: int = 4, seed: int = 1) -> Tensor | None:
    """Class weights ``[2, classes]``: those of the score, and those of the pointwise loss."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 + 2 * torch.rand(2, classes, generator=generator, dtype=F64)
    if kind == "some are 0":
        weight[0, :: max(2, classes - 1)] = 0  # the first and, of four, the last
        weight[1, classes // 2] = 0
    if kind == "all are 0":
        weight.zero_()
    return weight


WEIGHTS = ("none", "any", "some are 0", "all are 0")


def product(average: str, reduction: str, link: str) -> Iterator[tuple[str, Case]]:
    """All combinations of the other choices with these three, each with its name."""
    kinds = WEIGHTS[:1] if average == "none" else WEIGHTS
    names = WITHOUT if average == "none" else tuple(BESIDE)
    ratios = itertools.cycle(RATIOS)
    for absent, per_sample, kind, name in itertools.product(ABSENT, (False, True), kinds, names):
        extra, pointwise = BESIDE[name]
        how = scoring(next(ratios), link, absent, average, reduction)
        sums = sums_of(extra, 3 if per_sample else 1)
        case = Case(sums, weights(kind), extra, per_sample, how, pointwise)
        yield f"{absent}, {'samples' if per_sample else 'batch'}, weights {kind}, {name}", case


def case_of(
    beside: str = "both",
    weighted: str = "any",
    samples: int | None = 3,
    classes: int = 4,
    special: bool = True,
    seed: int = 0,
    **how: Any,
) -> Case:
    """``samples=None`` keeps no samples apart: the whole batch is one row of groups."""
    extra, pointwise = BESIDE[beside]
    sums = sums_of(extra, 1 if samples is None else samples, classes, special, seed)
    per_sample = samples is not None
    return Case(sums, weights(weighted, classes), extra, per_sample, scoring(**how), pointwise)


# ---- the formulas --------------------------------------------------------------------------------


class _Group(NamedTuple):
    loss: Any
    support: Any
    counted: bool


def _group(how: Scoring, tp: Any, fp: Any, fn: Any, tn: Any) -> _Group:
    """The loss of one group; branches look at the real part, which no complex step changes."""
    hit = how.tp_weight * tp + how.smooth
    miss = how.fp_weight * fp + how.fn_weight * fn + (how.smooth_denominator - how.smooth)
    link, absent, support = FUSED_LINKS[how.link], ABSENT[how.absent], tp + fn
    if support.real == 0 and absent == "skip":
        return _Group(0.0, support, False)
    if support.real == 0 and absent == "penalize":
        return _Group(fp / (fp + tn) if (fp + tn).real != 0 else 0.0, support, True)
    if (hit + miss).real == 0:
        return _Group(-1.0 if link == "negative" else 0.0, support, True)
    if link == "log":
        if (hit / (hit + miss)).real < how.log_floor:
            return _Group(-np.log(how.log_floor), support, True)
        return _Group(np.log1p(miss / hit), support, True)
    if link == "negative":
        return _Group(-hit / (hit + miss), support, True)
    missing = miss / (hit + miss)
    if link == "complement" or how.gamma == 1:
        return _Group(missing, support, True)
    return _Group(missing**how.gamma if missing.real > 0 else 0.0, support, True)


def _score(case: Case, sums: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The loss of the score, from sums ``[rows, samples, classes]`` and class weights ``v``."""
    how = case.scoring
    average, reduction = AVERAGES[how.average], REDUCTIONS[how.reduction]
    samples, classes = sums.shape[1:]
    rows, v = sums[:4].tolist(), v.tolist()  # Python's numbers are quicker than NumPy's
    losses, seen = [], []
    for s in range(samples):
        groups = [_group(how, *(row[s][c] for row in rows)) for c in range(classes)]
        if average == "none":
            losses += [group.loss for group in groups]
            seen += [group.counted for group in groups]
            continue
        share = [
            v[c] * (group.support if average == "weighted" else 1.0)
            if group.counted and v[c] != 0
            else 0.0
            for c, group in enumerate(groups)
        ]
        total = sum(share, 0.0)
        seen.append(total.real != 0)
        parts = [each * group.loss for each, group in zip(share, groups) if each != 0]
        losses.append(sum(parts, 0.0) / total if seen[-1] else 0.0)
    if reduction == "none":
        shape = ([samples] if case.per_sample else []) + ([classes] if average == "none" else [])
        return np.array(losses).reshape(shape)
    total = sum((each for each, counts in zip(losses, seen) if counts), 0.0)
    return np.asarray(total if reduction == "sum" else total / max(sum(seen), 1))


def _pointwise(case: Case, sums: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The pointwise loss: one for all groups, or one for each sample."""
    names, factors = reference.rows(case.extra), case.pointwise
    lost, counted = 0.0, 0.0
    for name, factor in (
        ("log_loss_pos", factors.log_pos), ("log_loss_neg", factors.log_neg),
        ("focal_pos", factors.focal_pos), ("focal_neg", factors.focal_neg),
    ):  # fmt: skip
        if factor != 0:
            lost = lost + factor * w * sums[names.index(name)]
    counted = w * factors.positives * (sums[0] + sums[2])
    counted = counted + w * factors.negatives * (sums[1] + sums[3])
    if factors.support != 0:
        counted = counted + w * factors.support * sums[names.index("support")]
    each = case.per_sample and REDUCTIONS[case.scoring.reduction] == "none"
    axes = 1 if each else (0, 1)
    lost, counted = np.sum(lost, axes), np.sum(counted, axes)
    if not any(factors[5:]):
        return lost
    empty = counted.real == 0
    return np.where(empty, 0.0, lost / np.where(empty, 1.0, counted))


def loss_by_formula(case: Case, sums: np.ndarray) -> np.ndarray:
    ones = np.ones((2, sums.shape[2]))
    v, w = ones if case.class_weight is None else case.class_weight.numpy()
    factors = case.pointwise
    loss = np.zeros(())
    if factors.score_weight != 0:
        loss = factors.score_weight * _score(case, sums, v)
    if any(factors[1:5]):
        loss = loss + _pointwise(case, sums, w)
    return loss


def coefficients_by_formula(case: Case) -> np.ndarray:
    """The gradient of the sum of all losses, by a complex step of every sum."""
    sums, step = case.sums.numpy(), 1e-40
    found = np.zeros_like(sums)
    for index in np.ndindex(*sums.shape):
        moved = sums.astype(complex)
        moved[index] += 1j * step
        found[index] = loss_by_formula(case, moved).sum().imag / step
    return found
