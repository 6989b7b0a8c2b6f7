"""Sums of groups and options for ``sums_score``, and its judge, the reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import flat
import torch
from judge import assert_near
from torch import Tensor

from customloss import reference
from customloss._spec.arguments import Pointwise, Scoring
from customloss._spec.words import ABSENT, AVERAGES, FUSED_LINKS, REDUCTIONS
from customloss.reference import Extra

LOGS, FOCAL, EVERY = int(Extra.LOG_LOSS), int(Extra.FOCAL), (1 << len(Extra)) - 1
# Every kind of pointwise loss: with all extras, with only those that it reads, without a score.
POINTWISE = {
    "alone": (0, Pointwise()),
    "scaled": (int(Extra.SQUARES), Pointwise(0.3)),
    "cross-entropy": (LOGS, Pointwise(0.7, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "binary": (EVERY, Pointwise(1.0, 2.5, 0.5, 0.0, 0.0, 1.0, 1.0)),
    "focal": (FOCAL, Pointwise(1.0, 0.0, 0.0, 0.25, 0.1875, 0.5, 0.5)),
    "both": (LOGS | FOCAL, Pointwise(-2.0, 0.5, 0.0, 3.0, 2.25, 1.0, 0.0)),
    "support": (LOGS | int(Extra.SUPPORT), Pointwise(0.7, 1.0, support=1.5)),
    "undivided": (FOCAL, Pointwise(0.7, focal_neg=0.5)),
    "no-score": (EVERY, Pointwise(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
}
CLASS_WEIGHTS = ("none", "some", "first", "nothing")


class How(NamedTuple):
    """What ``sums_score`` takes, in words."""

    link: str = "complement"
    absent: str = "score"
    average: str = "macro"
    reduction: str = "mean"
    per_sample: bool = True
    pointwise: str = "alone"
    weights: str = "none"
    wide: bool = True

    def arguments(self) -> tuple[Any, ...]:
        extra, pointwise = POINTWISE[self.pointwise]
        smooth = (0.25, 0.75) if self.link == "focal" else (0.0, 0.0)
        # many groups are below 0.2, the floor of a logarithm
        ratio = (1.25, 1.0, 0.5, *smooth, 1.5, 0.2)
        words = (
            FUSED_LINKS.index(self.link), ABSENT.index(self.absent), AVERAGES.index(self.average),
            REDUCTIONS.index(self.reduction),
        )  # fmt: skip
        return (extra, self.per_sample, self.wide, *Scoring(*ratio, *words), *pointwise)

    def sums(self, shape: tuple[int, int]) -> Tensor:
        """Sums of groups, among them absent, empty and perfect ones."""
        extra, _ = POINTWISE[self.pointwise]
        found = torch.rand((len(reference.rows(extra)), *shape), dtype=torch.float64) * 9 + 0.5
        kind = torch.rand(shape)
        found[0][kind < 0.15] = 0
        found[2][kind < 0.15] = 0
        found[:, kind < 0.05] = 0
        found[1][kind > 0.9] = 0
        found[2][kind > 0.9] = 0
        return found

    def class_weight(self, classes: int) -> Tensor | None:
        if self.weights == "none":
            return None
        found = torch.rand((2, classes), dtype=torch.float64) + 0.1
        if self.weights == "some":
            found[torch.rand((2, classes)) < 0.3] = 0
        elif self.weights == "first":
            found[:, 0] = 0
        else:
            found.zero_()
        return found


def every(weights: str, pointwise: str) -> Iterator[How]:
    """All combinations of the words."""
    single = weights != "none" or POINTWISE[pointwise][1][1:5] != (0.0,) * 4
    averages = [word for word in AVERAGES if not (single and word == "none")]
    for words in product(FUSED_LINKS, ABSENT, averages, REDUCTIONS, (False, True)):
        yield How(*words, pointwise, weights)


def assert_right(primitive: Any, how: How, shape: tuple[int, int]) -> None:
    sums, weight = how.sums(shape), how.class_weight(shape[1])
    before = sums.clone()
    loss, coefficients = primitive(sums, weight, *how.arguments())
    assert torch.equal(sums, before), "the sums were changed"
    wide = how._replace(wide=True)
    expected, by_sums = flat.sums_score(sums, weight, *wide.arguments())
    assert loss.dtype == (torch.float64 if how.wide else torch.float32)
    assert coefficients.is_contiguous()
    parts = parts_of(sums, weight, wide)
    assert_near(loss, expected, torch.float64, f"{how} loss", parts)
    assert_near(coefficients, by_sums, torch.float64, f"{how} coefficients")


def parts_of(sums: Tensor, weight: Tensor | None, how: How) -> Tensor:
    """The size of the score's part and of the pointwise part, which may cancel in a loss."""
    _, pointwise = POINTWISE[how.pointwise]
    options = how.arguments()[: -len(pointwise)]
    parts = (Pointwise(pointwise.score_weight), pointwise._replace(score_weight=0.0))
    losses = [flat.sums_score(sums, weight, *options, *part)[0] for part in parts]
    return losses[0].abs() + losses[1].abs()
