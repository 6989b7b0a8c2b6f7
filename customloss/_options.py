"""The options of an operator call, checked once per distinct set and turned into what the
primitives take. Their numbers are mirrored by the enums of csrc/element.h and csrc/score.h."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from customloss import _checks
from customloss._words import ABSENT, ACTIVATIONS, AVERAGES, LINKS, REDUCTIONS


class Elements(NamedTuple):
    """How an element becomes a probability, and how elements are grouped."""

    activation: int
    scale: float
    offset: float
    per_sample: bool
    per_class: bool

    def named(self) -> tuple[str, float, float, bool, bool]:
        """As the reference takes them."""
        return (ACTIVATIONS[self.activation], *self[1:])


class Scoring(NamedTuple):
    """How the sums of the groups become a loss."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float
    gamma: float
    link: int
    absent: int
    average: int
    reduction: int


@lru_cache(maxsize=1024)
def elements(
    activation: str, average: str, samplewise: bool, scale: float, offset: float, rank: int
) -> Elements:
    """How an input of this rank is read."""
    _checks.one_of("activation", activation, ACTIVATIONS)
    _checks.one_of("average", average, (*AVERAGES, "micro"))
    _checks.number("logit_scale", scale)
    _checks.number("logit_offset", offset)
    if activation == "none" and (scale, offset) != (1.0, 0.0):
        raise ValueError(
            "logit_scale, logit_offset: expected 1 and 0 with activation='none' (there is no "
            f"logit to scale), got {scale} and {offset}"
        )
    return Elements(
        ACTIVATIONS.index(activation), scale, offset, samplewise, average != "micro" and rank > 1
    )


@lru_cache(maxsize=1024)
def f_beta(
    beta: float, smooth: float, absent: str, link: str, gamma: float, average: str, reduction: str
) -> Scoring:
    """The similarity ((1+β²) tp + s) / ((1+β²) tp + fp + β² fn + s)."""
    _checks.number("beta", beta, at_least=0)
    _checks.number("smooth", smooth, at_least=0)
    _checks.number("gamma", gamma, above=0)
    _checks.one_of("absent", absent, ABSENT)
    _checks.one_of("link", link, LINKS)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    if link != "focal" and gamma != 1.0:
        raise ValueError(f"gamma: expected 1 unless link='focal', got {gamma} with link={link!r}")
    squared = beta * beta
    return Scoring(
        1.0 + squared, 1.0, squared, smooth, gamma, LINKS.index(link), ABSENT.index(absent),
        AVERAGES.index("macro" if average == "micro" else average), REDUCTIONS.index(reduction),
    )  # fmt: skip
