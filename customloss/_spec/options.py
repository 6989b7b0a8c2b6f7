"""The options of a loss: their names, types and defaults, and the numbers that they become.

The schemas of the public operators and the signatures of the functions are made of the tables of
defaults. Each distinct set of options is checked once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from customloss import scores
from customloss._spec import checks
from customloss._spec.arguments import Elements, Scoring
from customloss._spec.words import (
    ABSENT,
    ACTIVATIONS,
    AVERAGES,
    LINKS,
    NAN_TARGETS,
    OUT_OF_RANGE,
    REDUCTIONS,
)
from customloss.reference.sums import ROWS, Extra

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

# how the sums are made
ELEMENTS: dict[str, Any] = {
    "activation": "sigmoid", "average": "macro", "samplewise": False,
    "logit_scale": 1.0, "logit_offset": 0.0, "ignore_index": None, "label_smoothing": 0.0,
    "out_of_range": "raise", "nan_targets": "propagate",
}  # fmt: skip
EXTRA: dict[str, Any] = {
    **dict.fromkeys(ROWS, False), "focal_gamma": 2.0,
    "focal_split": False, "log_smoothing": None,
}  # fmt: skip
SUMS: dict[str, Any] = {**ELEMENTS, **EXTRA}
# and how they become a loss
LOSS: dict[str, Any] = {
    **ELEMENTS, "reduction": "mean", "smooth": 0.0, "smooth_denominator": None,
    "absent": "score", "link": "complement", "gamma": 1.0, "log_floor": scores.LOG_FLOOR,
}  # fmt: skip
# the operators do not know these: they act on the sums of the classes
CLASSES: dict[str, Any] = {"class_weight": None, "classes": None, "include_background": True}
FUNCTION: dict[str, Any] = {**LOSS, **CLASSES, "check_target": False, "process_group": None}
del FUNCTION["smooth_denominator"]  # functions take a pair of numbers for smooth
# the pointwise loss beside a score
POINTWISE: dict[str, Any] = {
    "pos_weight": None, "ce_label_smoothing": None, "focal_gamma": 2.0, "focal_alpha": None,
    "focal_split": False, "pointwise_class_weight": None, "pointwise_classes": None,
    "pointwise_reduction": "mean", "pointwise_group": "score",
}  # fmt: skip


# "once" is what modules have by default: they check the first batch that they see
CheckTarget = bool | Literal["once"]


class Averaging(TypedDict, total=False):
    """How the losses of the groups become one; see ``customloss.soft_f1_loss``."""

    average: str
    samplewise: bool
    reduction: str
    absent: str
    ignore_index: int | Sequence[int] | None
    label_smoothing: float
    out_of_range: str
    nan_targets: str
    class_weight: Tensor | Sequence[float] | None
    classes: Sequence[int] | None
    include_background: bool
    check_target: CheckTarget
    process_group: ProcessGroup | str | None


class Scaling(Averaging, total=False):
    """Also how logits are scaled."""

    logit_scale: float
    logit_offset: float


class Grouping(Scaling, total=False):
    """Also how an element becomes a probability."""

    activation: str


class Options(Grouping, total=False):
    """Also how a similarity becomes a loss: for every loss that does not set the link itself."""

    link: str
    gamma: float
    log_floor: float


class Linking(Scaling, total=False):
    """``Options`` without the activation, for losses that have another default for it."""

    link: str
    gamma: float
    log_floor: float


class Pointwise(TypedDict, total=False):
    """What a cross-entropy and a focal loss have in common; see ``customloss.compound_loss``."""

    pointwise_class_weight: Tensor | Sequence[float] | None
    pointwise_classes: Sequence[int] | None
    pointwise_reduction: str
    pointwise_group: ProcessGroup | str | None


class CrossEntropy(Pointwise, total=False):
    """Also the options of a cross-entropy."""

    ce_label_smoothing: float | None


class BinaryCrossEntropy(CrossEntropy, total=False):
    """Also that of a binary one."""

    pos_weight: Tensor | Sequence[float] | float | None


class Focal(Pointwise, total=False):
    """Also the options of a focal loss."""

    pos_weight: Tensor | Sequence[float] | float | None
    focal_gamma: float
    focal_alpha: float | None
    focal_split: bool


class Compound(Options, BinaryCrossEntropy, Focal, total=False):
    """Every option of a score and of the losses beside it."""


class WithCrossEntropy(Linking, CrossEntropy, total=False):
    """A score and a cross-entropy."""


class WithBinaryCrossEntropy(Linking, BinaryCrossEntropy, total=False):
    """A score and a binary cross-entropy."""


class WithFocal(Linking, Focal, total=False):
    """A score and a focal loss."""


class PointwiseAlone(TypedDict, total=False):
    """A pointwise loss without a score."""

    logit_scale: float
    logit_offset: float
    ignore_index: int | Sequence[int] | None
    label_smoothing: float
    out_of_range: str
    nan_targets: str
    class_weight: Tensor | Sequence[float] | None
    check_target: CheckTarget
    process_group: ProcessGroup | str | None


class Reading(TypedDict, total=False):
    """How the sums are made; see ``customloss.confusion_sums``."""

    activation: str
    average: str
    samplewise: bool
    logit_scale: float
    logit_offset: float
    ignore_index: int | Sequence[int] | None
    label_smoothing: float
    out_of_range: str
    nan_targets: str
    dtype: torch.dtype | None
    check_target: bool


class Ratio(NamedTuple):
    """The similarity ``(A tp + s) / (A tp + B fp + C fn + d)``: the first fields of ``Scoring``."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float
    smooth_denominator: float


class ScoringWords(NamedTuple):
    """The options of a score beside the parameters of its similarity, in words."""

    link: str
    gamma: float
    log_floor: float
    absent: str
    average: str
    reduction: str

    def scoring(self, ratio: Ratio) -> Scoring:
        """The numbers that the primitives take; the link has to be one of theirs."""
        return Scoring(
            *ratio,
            gamma=self.gamma,
            log_floor=self.log_floor,
            link=LINKS.index(self.link),
            absent=ABSENT.index(self.absent),
            average=AVERAGES.index(self.average),
            reduction=REDUCTIONS.index(self.reduction),
        )


def words_of(scoring: Scoring) -> ScoringWords:
    """The inverse of ``ScoringWords.scoring``."""
    return ScoringWords(
        LINKS[scoring.link], scoring.gamma, scoring.log_floor, ABSENT[scoring.absent],
        AVERAGES[scoring.average], REDUCTIONS[scoring.reduction],
    )  # fmt: skip


def ratio_of(score: Callable[..., Any]) -> Ratio | None:
    """The coefficients of a score that is a ratio of tp, fp and fn, else None."""
    coefficients = scores.as_ratio(score)
    return None if coefficients is None else Ratio(*coefficients)


# the public operators of one fused pass, and the scores whose losses they are
OPERATORS: dict[str, Callable[..., Any]] = {"soft_f1": scores.fbeta, "tversky": scores.tversky}


def parameters(operator: str) -> dict[str, float]:
    """The parameters of the operator's score, and their defaults; ``smooth`` is in ``LOSS``."""
    shown = inspect.signature(OPERATORS[operator]).parameters.values()
    return {p.name: p.default for p in shown if p.kind is p.KEYWORD_ONLY and p.name != "smooth"}


PARAMETERS = {operator: parameters(operator) for operator in OPERATORS}


def schema(defaults: Mapping[str, Any]) -> str:
    """Keyword options as an operator declares them."""

    def kind(name: str, value: Any) -> str:
        if value is None:  # ignore_index takes an int or several
            return "float?" if name in checks.NUMBERS_OR_NONE else "int[1]?"
        return type(value).__name__

    return ", ".join(f"{kind(name, value)} {name}={value!r}" for name, value in defaults.items())


def bounded(**parameters: Any) -> None:
    """The parameters of scores are within their bounds; all are >= 0."""
    for name, value in parameters.items():
        numbers = scores.sides(value) if name == "smooth" else (value,)
        for number in numbers:
            checks.number(name, number, at_least=0, at_most=1 if name == "recall_weight" else None)
            if name != "recall_weight":
                scores.in_range(name, number)
        if name == "smooth" and numbers[0] and not numbers[-1]:
            raise ValueError(
                "smooth: expected a denominator above 0 where the numerator is above 0 (the "
                f"similarity of an empty group would be infinite), got {numbers}"
            )
    if parameters.get("fp_weight", 1) == parameters.get("fn_weight", 1) == 0:
        raise ValueError(
            "fp_weight, fn_weight: expected one above 0 (a similarity that counts no misses has "
            "nothing to learn from), got none"
        )


def smooth_fits(smooth: scores.Smooth, link: str) -> None:
    """A similarity above 1, which more in the numerator than in the denominator can make, has only
    links that are linear."""
    top, bottom = scores.sides(smooth)
    if top > bottom and link not in scores.LINEAR_LINKS:
        raise ValueError(
            f"smooth: expected no more in the numerator than in the denominator with link={link!r} "
            f"(it takes a similarity of at most 1), got {(top, bottom)}"
        )


def extra_bits(asked: Mapping[str, Any]) -> int:
    """The bits of ``reference.Extra`` that these words ask for."""
    return int(sum(Extra[word.upper()] for word in ROWS if asked.get(word)))


def _elements(
    rank: int,
    activation: str,
    average: str,
    samplewise: bool,
    logit_scale: float,
    logit_offset: float,
    ignore_index: int | Sequence[int] | None,
    label_smoothing: float,
    out_of_range: str,
    nan_targets: str,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
    log_smoothing: float | None = None,
    **extras: bool,
) -> Elements:
    """How an input of this rank is read."""
    checks.one_of("activation", activation, ACTIVATIONS)
    checks.one_of("average", average, (*AVERAGES, "micro"))
    checks.number("logit_scale", logit_scale)
    checks.number("logit_offset", logit_offset)
    if activation == "none" and (logit_scale, logit_offset) != (1.0, 0.0):
        raise ValueError(
            "logit_scale, logit_offset: expected 1 and 0 with activation='none' (there is no "
            f"logit to scale), got {logit_scale} and {logit_offset}"
        )
    checks.number("label_smoothing", label_smoothing, at_least=0, below=1)
    checks.one_of("out_of_range", out_of_range, OUT_OF_RANGE)
    checks.one_of("nan_targets", nan_targets, NAN_TARGETS)
    checks.number("focal_gamma", focal_gamma, at_least=0)
    if log_smoothing is not None:
        checks.number("log_smoothing", log_smoothing, at_least=0, below=1)
    if logit_scale == 0:
        raise ValueError(
            "logit_scale: expected a number other than 0 (with 0 all probabilities are alike, "
            "whatever the input), got 0"
        )
    per_class = average != "micro" and rank > 1
    return Elements(
        activation=ACTIVATIONS.index(activation),
        scale=logit_scale,
        offset=logit_offset,
        per_sample=samplewise,
        per_class=per_class,
        ignore_index=checks.ignored(ignore_index),
        label_smoothing=label_smoothing,
        extra=extra_bits(extras),
        focal_gamma=focal_gamma,
        focal_split=focal_split,
        log_smoothing=log_smoothing,
        out_of_range=OUT_OF_RANGE.index(out_of_range),
        nan_targets=NAN_TARGETS.index(nan_targets),
    )


def _words(
    links: Mapping[str, bool],
    link: str,
    gamma: float,
    log_floor: float,
    absent: str,
    average: str,
    reduction: str,
) -> ScoringWords:
    """The words, checked; ``links`` are those allowed, and whether each takes a gamma."""
    checks.number("gamma", gamma, above=0)
    checks.one_of("absent", absent, ABSENT)
    checks.one_of("link", link, links)
    checks.one_of("reduction", reduction, REDUCTIONS)
    if not links[link] and gamma != 1.0:
        takers = " or ".join(repr(name) for name, takes in links.items() if takes)
        raise ValueError(f"gamma: expected 1 unless link={takers}, got {gamma} with link={link!r}")
    checks.number("log_floor", log_floor, at_least=1e-100, below=1)
    if link not in scores.LOG_LINKS and log_floor != scores.LOG_FLOOR:
        takers = " or ".join(repr(name) for name in scores.LOG_LINKS if name in links)
        raise ValueError(
            f"log_floor: expected {scores.LOG_FLOOR} unless link={takers}, got {log_floor} with "
            f"link={link!r}"
        )
    average = "macro" if average == "micro" else average
    return ScoringWords(link, gamma, log_floor, absent, average, reduction)


def _pick(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names}


def for_sums(rank: int, **options: Any) -> Elements:
    """The options of ``confusion_sums``."""
    return _elements(rank, **{**SUMS, **options})


def for_score(rank: int, **options: Any) -> tuple[Elements, ScoringWords]:
    """The options of a loss that is any score of the sums."""
    given = {**LOSS, **options}
    elements = _elements(rank, **_pick(ELEMENTS, given))
    return elements, _words(scores.LINKS, **_pick(ScoringWords._fields, given))


def for_ratio(operator: str, rank: int, **options: Any) -> tuple[Elements, Ratio, ScoringWords]:
    """The options of an operator of ``OPERATORS``."""
    given = {**PARAMETERS[operator], **LOSS, **options}
    at = _pick((*PARAMETERS[operator], "smooth"), given)
    if given["smooth_denominator"] is not None:
        at["smooth"] = (given["smooth"], given["smooth_denominator"])
    bounded(**at)
    elements = _elements(rank, **_pick(ELEMENTS, given))
    words = _words(_pick(LINKS, scores.LINKS), **_pick(ScoringWords._fields, given))
    smooth_fits(at["smooth"], words.link)
    return elements, Ratio(*scores.coefficients_of(OPERATORS[operator], **at)), words


def for_operator(operator: str, rank: int, **options: Any) -> tuple[Elements, Scoring]:
    """The same options, in the numbers that the primitives take."""
    elements, ratio, words = for_ratio(operator, rank, **options)
    return elements, words.scoring(ratio)


def hashable(given: dict[str, Any]) -> dict[str, Any]:
    """Options as the dispatcher passes them: it makes a list of ``ignore_index``."""
    if given.get("ignore_index") is not None:
        given["ignore_index"] = tuple(given["ignore_index"])
    return given


# For use inside the operators only: other code may be compiled, and dynamo does not trace through a
# cache.
cached_for_sums = lru_cache(maxsize=1024)(for_sums)
cached_for_operator = lru_cache(maxsize=1024)(for_operator)
