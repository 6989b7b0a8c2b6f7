"""The options of a loss: their names, types and defaults in one table, checked once per distinct
set and turned into what the primitives take. The operators' schemas are made of the same table.

A loss that is a ratio of the sums is a row of ``RATIOS``. The numbers of words are mirrored by the
enums of csrc/element.h and csrc/score.h."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from customloss import _checks, scores
from customloss._words import ABSENT, ACTIVATIONS, AVERAGES, LINKS, REDUCTIONS
from customloss.reference import EXTRA_ROWS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

# how the sums are made, and how they become a loss; as the operators take them
ELEMENTS: dict[str, Any] = {
    "activation": "sigmoid", "average": "macro", "samplewise": False,
    "logit_scale": 1.0, "logit_offset": 0.0, "ignore_index": None, "label_smoothing": 0.0,
}  # fmt: skip
EXTRA: dict[str, Any] = {
    **{str(flag.name).lower(): False for flag in EXTRA_ROWS}, "focal_gamma": 2.0,
}  # fmt: skip
SUMS: dict[str, Any] = {**ELEMENTS, **EXTRA}
LOSS: dict[str, Any] = {
    **ELEMENTS, "reduction": "mean", "smooth": 0.0, "absent": "score", "link": "complement",
    "gamma": 1.0,
}  # fmt: skip
# beside these, the functions take what acts on the sums of the classes
CLASSES: dict[str, Any] = {"class_weight": None, "classes": None, "include_background": True}
FUNCTION: dict[str, Any] = {**LOSS, **CLASSES, "check_target": False, "process_group": None}
# the words of the extra sums, and the names of the rows they add
ROWS = {str(flag.name).lower(): names for flag, names in EXTRA_ROWS.items()}


class Averaging(TypedDict, total=False):
    """How the losses of the groups become one; see ``customloss.soft_f1_loss``."""

    average: str
    samplewise: bool
    reduction: str
    absent: str
    ignore_index: int | None
    label_smoothing: float
    class_weight: Tensor | Sequence[float] | None
    classes: Sequence[int] | None
    include_background: bool
    check_target: bool
    process_group: ProcessGroup | None


class Scaling(Averaging, total=False):
    """Also how logits are scaled."""

    logit_scale: float
    logit_offset: float


class Grouping(Scaling, total=False):
    """Also how an element becomes a probability."""

    activation: str


class Options(Grouping, total=False):
    """Also how a similarity becomes a loss: what every loss without a link of its own takes."""

    link: str
    gamma: float


class Linking(Scaling, total=False):
    """The same for losses with an activation of their own."""

    link: str
    gamma: float


class Reading(TypedDict, total=False):
    """How the sums are made; see ``customloss.confusion_sums``."""

    activation: str
    average: str
    samplewise: bool
    logit_scale: float
    logit_offset: float
    ignore_index: int | None
    label_smoothing: float
    dtype: torch.dtype | None
    check_target: bool


class Elements(NamedTuple):
    """How an element becomes a probability, how elements are grouped, and what is added up."""

    activation: int
    scale: float
    offset: float
    per_sample: bool
    per_class: bool
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    extra: int = 0  # bits of reference.Extra
    focal_gamma: float = 2.0

    def named(self) -> tuple[Any, ...]:
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

    def words(self) -> Composed:
        """What is not about the similarity, in words."""
        return Composed(
            LINKS[self.link], self.gamma, ABSENT[self.absent], AVERAGES[self.average],
            REDUCTIONS[self.reduction],
        )  # fmt: skip


class Pointwise(NamedTuple):
    """What stands beside the score: see ``reference.pointwise_loss``, whose factors these are."""

    score_weight: float = 1.0
    log_pos: float = 0.0
    log_neg: float = 0.0
    focal: float = 0.0
    positives: float = 0.0
    negatives: float = 0.0


SCORE_ALONE = Pointwise()


class Compound(NamedTuple):
    """What makes of a ratio loss one of classes that count differently, or of several terms."""

    class_weight: Tensor | None  # [2, classes]: of the score, of the pointwise loss
    pointwise: Pointwise


def compound_from(numbers: Sequence[Any]) -> tuple[Elements, Scoring, Pointwise]:
    """The tuples whose fields follow one another in the operator ``compound``."""
    first = len(Elements._fields)
    second = first + len(Scoring._fields)
    return (
        Elements(*numbers[:first]), Scoring(*numbers[first:second]), Pointwise(*numbers[second:]),
    )  # fmt: skip


class Composed(NamedTuple):
    """How any similarity of the groups becomes a loss, in words."""

    link: str
    gamma: float
    absent: str
    average: str
    reduction: str


class Ratio(NamedTuple):
    """A similarity ``(A tp + s) / (A tp + B fp + C fn + s)``: its parameters to ``A, B, C``."""

    defaults: dict[str, float]
    weights: Callable[..., tuple[float, float, float]]


def _f_beta(beta: float) -> tuple[float, float, float]:
    squared = beta * beta
    if squared == math.inf:
        raise ValueError(f"beta: expected a number whose square is finite, got {beta}")
    return 1.0 + squared, 1.0, squared


def _tversky(fp_weight: float, fn_weight: float) -> tuple[float, float, float]:
    return 1.0, fp_weight, fn_weight


RATIOS = {
    "soft_f1": Ratio({"beta": 1.0}, _f_beta),
    "tversky": Ratio({"fp_weight": 0.5, "fn_weight": 0.5}, _tversky),
}


def schema(defaults: Mapping[str, Any]) -> str:
    """Keyword options as an operator declares them."""

    def kind(value: Any) -> str:
        return "int?" if value is None else type(value).__name__

    return ", ".join(f"{kind(value)} {name}={value!r}" for name, value in defaults.items())


def bounded(**numbers: float) -> None:
    """The parameters of scores are within their bounds; all are >= 0."""
    for name, value in numbers.items():
        most = 1 if name == "recall_weight" else None
        _checks.number(name, value, at_least=0, at_most=most)


def extra_bits(asked: Mapping[str, Any]) -> int:
    """The bits of ``reference.Extra`` that these words ask for."""
    return int(sum(flag for flag in EXTRA_ROWS if asked.get(str(flag.name).lower())))


def _elements(
    rank: int,
    activation: str,
    average: str,
    samplewise: bool,
    logit_scale: float,
    logit_offset: float,
    ignore_index: int | None,
    label_smoothing: float,
    focal_gamma: float = 2.0,
    **extras: bool,
) -> Elements:
    """How an input of this rank is read."""
    _checks.one_of("activation", activation, ACTIVATIONS)
    _checks.one_of("average", average, (*AVERAGES, "micro"))
    _checks.number("logit_scale", logit_scale)
    _checks.number("logit_offset", logit_offset)
    if activation == "none" and (logit_scale, logit_offset) != (1.0, 0.0):
        raise ValueError(
            "logit_scale, logit_offset: expected 1 and 0 with activation='none' (there is no "
            f"logit to scale), got {logit_scale} and {logit_offset}"
        )
    _checks.number("label_smoothing", label_smoothing, at_least=0, below=1)
    _checks.number("focal_gamma", focal_gamma, at_least=0)
    if activation == "softmax" and logit_scale == 0:
        raise ValueError(
            "logit_scale: expected a number other than 0 with activation='softmax', got 0"
        )
    per_class = average != "micro" and rank > 1
    return Elements(
        ACTIVATIONS.index(activation), logit_scale, logit_offset, samplewise, per_class,
        ignore_index, label_smoothing, extra_bits(extras), focal_gamma,
    )  # fmt: skip


def _composed(
    links: Mapping[str, bool], link: str, gamma: float, absent: str, average: str, reduction: str
) -> Composed:
    """``links`` tells whether a link takes a gamma."""
    _checks.number("gamma", gamma, above=0)
    _checks.one_of("absent", absent, ABSENT)
    _checks.one_of("link", link, links)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    if not links[link] and gamma != 1.0:
        takers = " or ".join(repr(name) for name, takes in links.items() if takes)
        raise ValueError(f"gamma: expected 1 unless link={takers}, got {gamma} with link={link!r}")
    return Composed(link, gamma, absent, "macro" if average == "micro" else average, reduction)


def _pick(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names}


def for_sums(rank: int, **options: Any) -> Elements:
    """The options of ``confusion_sums``."""
    return _elements(rank, **{**SUMS, **options})


def for_score(rank: int, **options: Any) -> tuple[Elements, Composed]:
    """The options of a loss that is any score of the sums."""
    given = {**LOSS, **options}
    elements = _elements(rank, **_pick(ELEMENTS, given))
    return elements, _composed(scores.LINKS, **_pick(Composed._fields, given))


def for_ratio(name: str, rank: int, **options: Any) -> tuple[Elements, Scoring]:
    """The options of the operator ``name``, a row of ``RATIOS``."""
    ratio = RATIOS[name]
    given = {**ratio.defaults, **LOSS, **options}
    own = _pick(ratio.defaults, given)
    bounded(**own, smooth=given["smooth"])
    elements = _elements(rank, **_pick(ELEMENTS, given))
    words = _composed(_pick(LINKS, scores.LINKS), **_pick(Composed._fields, given))
    scoring = Scoring(
        *ratio.weights(**own), given["smooth"], words.gamma, LINKS.index(words.link),
        ABSENT.index(words.absent), AVERAGES.index(words.average),
        REDUCTIONS.index(words.reduction),
    )  # fmt: skip
    return elements, scoring


# for the operators alone: what runs outside of them may be compiled, and dynamo knows no caches
cached_for_sums = lru_cache(maxsize=1024)(for_sums)
cached_for_ratio = lru_cache(maxsize=1024)(for_ratio)
