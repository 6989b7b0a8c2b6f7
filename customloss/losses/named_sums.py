"""Soft confusion sums with names, and how a loss hands out those that it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from customloss import distributed
from customloss._spec.arguments import Elements
from customloss.reference.sums import ROWS, Extra, rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ConfusionSums(NamedTuple):
    """Soft confusion sums, one number per group.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    ``a + b``, and ``sum`` of a list, are the sums of both batches, and ``0.9 * a + 0.1 * b`` is
    their moving average.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def __add__(self, other: object) -> ConfusionSums:
        result: ConfusionSums = _added(self, other)
        return result

    def __radd__(self, other: object) -> ConfusionSums:
        return self + other

    def __mul__(self, factor: object) -> ConfusionSums:
        result: ConfusionSums = _scaled(self, factor)
        return result

    def __rmul__(self, factor: object) -> ConfusionSums:
        return self * factor


def _not_asked_for(sums: ConfusionSums, name: str) -> NoReturn:
    """Says how a further sum is asked for. ``name`` is set and no object, or Python would add a
    guess of its own."""
    asked = [word for word, names in ROWS.items() if name in (word, *names)]
    cure = f": pass {asked[0]}=True to confusion_sums" if asked else ""
    cure += " or with_sums" if asked == ["hard"] else ""
    raise AttributeError(f"{type(sums).__name__} has no {name!r}{cure}", name=name)


# not in the class, where type checkers would take every name for a sum
ConfusionSums.__getattr__ = _not_asked_for  # type: ignore[attr-defined]


def _added(one: Any, other: object) -> Any:
    """The sums of two batches; 0 is where ``sum`` of a list begins."""
    if isinstance(other, int) and other == 0:
        return one
    if not isinstance(other, (ConfusionSums, ExtendedSums)):
        return NotImplemented
    mine, theirs = _given(one), _given(other)
    alone = [*(mine.keys() ^ theirs.keys())]
    if alone:
        raise ValueError(
            f"sums: expected the same sums of both batches, got {', '.join(sorted(alone))} of one "
            "alone: ask confusion_sums for the same ones each time"
        )
    for name, value in mine.items():
        shapes = [list(getattr(each, "shape", ())) for each in (value, theirs[name])]
        if name != "hard" and shapes[0] != shapes[1]:
            raise ValueError(
                f"sums: expected the same groups of both batches, got {name} of shape {shapes[0]} "
                f"and {shapes[1]}: the classes have to be the same, and with samplewise=True the "
                "samples too"
            )
    return type(one)(**{name: value + theirs[name] for name, value in mine.items()})


def _scaled(one: Any, factor: object) -> Any:
    """All sums times a number. A tuple would be repeated."""
    if isinstance(factor, bool) or not isinstance(factor, (int, float, Tensor)):
        return NotImplemented
    return type(one)(**{name: value * factor for name, value in _given(one).items()})


def _given(sums: ConfusionSums | ExtendedSums) -> dict[str, Any]:
    """The sums that are there."""
    return {name: value for name, value in sums._asdict().items() if value is not None}


class ExtendedSums(NamedTuple):
    """The sums that were asked for, one number per group; None where they were not.

    ``log_loss_pos = Σ w t (-log p)``, ``log_loss_neg = Σ w (1-t) (-log (1-p))`` (0 for softmax),
    ``p2 = Σ w p²``, ``t2 = Σ w t²``, ``tp2 = Σ w t p²``, ``common = Σ w min(p, t)``,
    ``distance_pos = Σ w max(p - t, 0)``, ``distance_neg = Σ w max(t - p, 0)``; ``distance``, their
    sum, is Σ w |p - t|.
    ``focal_pos = Σ w t m^γ (-log p)``, ``focal_neg = Σ w (1-t) m^γ (-log (1-p))`` with
    ``m = t (1-p) + (1-t) p`` (of a softmax m is 1-p, and the second is 0); ``focal`` is their sum.
    ``support = Σ w t``, with t before smoothing. ``hard`` counts decisions, p > 1/2 or the largest
    of a softmax, with t before smoothing too, in float64 and without a gradient, so that they can
    be added up over an epoch. A score takes the first four sums: ``scores.dice(*sums[:4])``, or
    ``scores.dice(*sums.hard)`` of the decisions. ``a + b``, and ``sum`` of a list, are the
    sums of both batches; ``0.9 * a + 0.1 * b`` is a moving average.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor
    log_loss_pos: Tensor | None = None
    log_loss_neg: Tensor | None = None
    p2: Tensor | None = None
    t2: Tensor | None = None
    tp2: Tensor | None = None
    common: Tensor | None = None
    distance_pos: Tensor | None = None
    distance_neg: Tensor | None = None
    focal_pos: Tensor | None = None
    focal_neg: Tensor | None = None
    hard: ConfusionSums | None = None  # of the decisions: p > 1/2, or the largest of a softmax
    support: Tensor | None = None

    @property
    def distance(self) -> Tensor | None:
        """Σ w |p - t|, the sum of the distances of both signs."""
        if self.distance_pos is None or self.distance_neg is None:
            return None
        return self.distance_pos + self.distance_neg

    @property
    def focal(self) -> Tensor | None:
        """The sum of both focal terms."""
        if self.focal_pos is None or self.focal_neg is None:
            return None
        return self.focal_pos + self.focal_neg

    def __add__(self, other: object) -> ExtendedSums:
        result: ExtendedSums = _added(self, other)
        return result

    def __radd__(self, other: object) -> ExtendedSums:
        return self + other

    def __mul__(self, factor: object) -> ExtendedSums:
        result: ExtendedSums = _scaled(self, factor)
        return result

    def __rmul__(self, factor: object) -> ExtendedSums:
        return self * factor


def named(
    sums: Tensor, extra: int, samplewise: bool, one_group: bool, dtype: torch.dtype | None = None
) -> ConfusionSums | ExtendedSums:
    """``sums``, ``[rows, samples, classes]``, by name; ``extra`` says which rows there are.

    Samples and classes stay dimensions where they are told apart. Hard counts keep their dtype:
    float32 would lose a count beyond 2^24.
    """
    if one_group:
        sums = sums[:, :, 0]
    if not samplewise:
        sums = sums[:, 0]
    exact, sums = sums, sums if dtype is None else sums.to(dtype)
    by_name: dict[str, Any] = dict(zip(rows(extra), sums.unbind(0)))
    if not extra:
        return ConfusionSums(**by_name)
    if extra & Extra.HARD:
        first = rows(extra).index("hard_tp")
        by_name = {name: row for name, row in by_name.items() if not name.startswith("hard_")}
        by_name["hard"] = ConfusionSums(*exact[first : first + 4].detach().unbind(0))
    return ExtendedSums(**by_name)


class SumsTaker(distributed.Adder):
    """Stands in for the process group of a call, and keeps the sums that its loss is made of."""

    def __init__(self, process_group: ProcessGroup | str | None, hard: bool) -> None:
        self.process_group = process_group
        self.hard = hard
        self._taken: tuple[Tensor, Elements, bool] | None = None

    def take(self, sums: Tensor, elements: Elements, one_group: bool) -> None:
        """Called with the sums of this rank; classes that are told apart although they are one
        group are added up."""
        pooled = one_group and sums.shape[-1] > 1
        self._taken = sums.sum(-1, keepdim=True) if pooled else sums, elements, one_group

    def total(self, sums: Tensor, options: object) -> Tensor:
        """Called with what the ranks have to add up: the sums, unless samples are told apart."""
        total = distributed.global_sums(sums, self.process_group, options=options)
        assert self._taken is not None
        _, elements, one_group = self._taken
        if not elements.per_sample:
            self.take(total, elements, one_group)
        return total

    def named(self) -> ConfusionSums | ExtendedSums:
        """The sums, without a gradient."""
        assert self._taken is not None
        sums, elements, one_group = self._taken
        return named(sums.detach(), elements.extra, elements.per_sample, one_group)
