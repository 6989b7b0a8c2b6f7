"""The parts of a loss, a score and a pointwise loss: options of one part alone, the factors of the
pointwise loss, and the loss of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss import distributed, scores
from customloss._spec import checks
from customloss._spec.arguments import Data, Pointwise
from customloss._spec.options import PointwiseOptions, ScoringWords
from customloss.losses import classes, request, route
from customloss.losses.formula import Formula, Looks, Score, at, formula_of
from customloss.losses.named_scores import score_of
from customloss.losses.named_sums import SumsTaker
from customloss.losses.request import ExtraNumbers, Parts, Request, cached

PosWeight = Tensor | Sequence[float] | float | None

_NO_POINTWISE_OPTIONS = PointwiseOptions()
_OF_POINTWISE = frozenset(PointwiseOptions._fields)


def _taken_from(options: dict[str, Any]) -> PointwiseOptions:
    """Takes the options of the pointwise loss out of those of a call."""
    if _OF_POINTWISE.isdisjoint(options):
        return _NO_POINTWISE_OPTIONS
    given = [name for name in PointwiseOptions._fields if name in options]
    return PointwiseOptions(**{name: options.pop(name) for name in given})


def compound(
    score: Score | str | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
    score_weight: float,
    cross_entropy_weight: float = 0.0,
    focal_weight: float = 0.0,
    *,
    called: tuple[str, ...] = ("score_weight", "cross_entropy_weight", "focal_weight"),
    reduction_called: str = "pointwise_reduction",
    **parameters: Any,
) -> Tensor:
    """See :func:`compound_loss`. ``called`` and ``reduction_called`` are the caller's names for the
    weights and the reduction; ``parameters`` are those of a score of ``scores.py``."""
    of_part = _taken_from(options)
    asked = options.get("check_target", False)
    if options.get("average") == "none":
        raise ValueError(
            "average: expected 'macro', 'micro' or 'weighted' for a compound loss (a cross-entropy "
            "is one number for all classes), got 'none'; per class: sums of with_sums, of which "
            "customloss.scores.dice(*sums[:4]) is the Dice score of each, and for a softmax "
            "sums.log_loss_pos / (sums.tp + sums.fn) its cross-entropy"
        )
    if not score_weight and not parameters:
        score = None  # at weight 0 it is not computed
    score = known_score(score, score_weight)
    if focal_weight:
        _is_of_link(options)
    weights = (score_weight, cross_entropy_weight, focal_weight)
    softmax = options.get("activation") == "softmax"
    smoothed = softmax and options.get("label_smoothing", 0.0) != 0
    words = _extra_words(scores.used_by(score), called, *weights, smoothed)
    data = Data(input, target, weight)
    numbers = request.DEFAULT_NUMBERS
    if of_part is not _NO_POINTWISE_OPTIONS:
        focal = (of_part.focal_gamma, of_part.focal_alpha, of_part.focal_split)
        numbers = _numbers(of_part.ce_label_smoothing, *focal, softmax)
    own = (of_part.pointwise_class_weight, of_part.pointwise_classes)
    parts = Parts(bool(score_weight), any(weights[1:]), *own, of_part.pos_weight)
    call = request.of_score(data, options, words, numbers, parts)
    if of_part.pointwise_group != "score":
        call = _alone(call, of_part.pointwise_group)
    by_class = None if of_part.pos_weight is None else _pos_weight(of_part.pos_weight, call)
    if not any(weights[1:]):
        by_class = None
    size = _counted_size(call, of_part.pointwise_reduction, reduction_called)
    # an operator would take a symbol for a number, and the graph would be that of one size
    later = of_part.pointwise_reduction == "mean_all"
    later = later and (torch.compiler.is_compiling() or type(size) is not int)
    divisor = 1 if later else size
    factors = _factors(*weights, softmax, smoothed, of_part.focal_alpha, divisor)
    if isinstance(by_class, float):
        more = {"log_pos": factors.log_pos * by_class, "focal_pos": factors.focal_pos * by_class}
        factors, by_class = factors._replace(**more), None
    reads = (call.words, call.elements.extra)
    if parameters:
        formula = _formula_at(score, *reads, **parameters)
    else:
        formula = formula_of(score, *reads, looks=Looks(asked, call.classes))
    must_agree = ((called, weights), of_part, *formula.must_agree)
    formula = formula._replace(
        pointwise=factors, pos_weight=by_class, must_agree=must_agree,
        pointwise_size=size if later else None,
    )  # fmt: skip
    return route.loss(call, formula)


def _is_of_link(options: dict[str, Any]) -> None:
    """A ``gamma`` beside a focal loss is that of the link; where the link has none, the exponent of
    the focal loss was meant."""
    link = options.get("link", "complement")
    if "gamma" in options and isinstance(link, str) and not scores.LINKS.get(link, True):
        raise ValueError(
            f"gamma: expected none with link={link!r} (link='focal' has an exponent), got "
            f"{options['gamma']}: that of the focal loss is focal_gamma"
        )


def known_score(score: Score | str | None, score_weight: float) -> Score:
    """The score, which may be missing where it weighs 0."""
    if score is not None:
        return score_of(score)
    if score_weight:
        raise TypeError(f"score: expected a score, as score_weight is {score_weight}, got None")
    return scores.dice  # a ratio, so that the loss is fused


@cached
def _extra_words(
    used: tuple[str, ...],
    called: tuple[str, ...],
    score_weight: float,
    cross_entropy_weight: float,
    focal_weight: float,
    smoothed: bool,
) -> tuple[str, ...]:
    """The further sums of the parts, whose weights are checked; ``used`` are those of the score,
    and ``smoothed`` says that the labels of a softmax are."""
    weights = (score_weight, cross_entropy_weight, focal_weight)
    for name, value in zip(called, weights):
        if name:
            checks.number(name, value, at_least=0)
    if not any(weights):
        raise ValueError(f"{', '.join(filter(None, called))}: expected one above 0, got none")
    words = (*used, *(("log_loss",) if cross_entropy_weight else ()))
    words = (*words, *(("focal",) if focal_weight else ()))
    # tp + fn of smoothed labels is no number of pixels
    return (*words, *(("support",) if smoothed and any(weights[1:]) else ()))


@cached
def _numbers(
    ce_label_smoothing: float | None,
    focal_gamma: float,
    focal_alpha: float | None,
    focal_split: bool,
    softmax: bool,
) -> ExtraNumbers:
    """The options that the kernels need, checked together with those beside them."""
    checks.number("focal_gamma", focal_gamma, at_least=0)
    if ce_label_smoothing is not None:
        checks.number("ce_label_smoothing", ce_label_smoothing, at_least=0, below=1)
    if focal_alpha is not None:
        checks.number("focal_alpha", focal_alpha, at_least=0, at_most=1)
        if softmax:
            raise ValueError(
                "focal_alpha: expected None with activation='softmax' (class_weight, or "
                f"pointwise_class_weight, weighs its classes), got {focal_alpha}"
            )
    if not isinstance(focal_split, bool):
        raise TypeError(f"focal_split: expected True or False, got {focal_split!r}")
    return ExtraNumbers(focal_gamma, focal_split, ce_label_smoothing)


def binary(other: str, activation: str) -> str:
    """The activation of a binary cross-entropy; ``other`` is the loss for a softmax."""
    if activation == "softmax":
        raise ValueError(
            f"activation: expected 'sigmoid' or 'none' for a binary cross-entropy ({other} has "
            "that of a softmax), got 'softmax'"
        )
    checks.one_of("activation", activation, ("sigmoid", "none"))
    return activation


@cached
def _formula_at(score: Score, words: ScoringWords, extra: int, **parameters: Any) -> Formula:
    return formula_of(at(score, **parameters), words, extra)


def _alone(call: Request, group: object) -> Request:
    """The call with a pointwise loss of each rank's own part of the batch."""
    if group is not None:
        raise ValueError(
            "pointwise_group: expected 'score' (the ranks of process_group) or None (each rank its "
            f"own part), got {group!r}"
        )
    if call.sharded():
        raise ValueError(
            "pointwise_group: expected 'score' for DTensors, whose loss is that of the whole "
            "tensor, got None"
        )
    return call._replace(pointwise_alone=True)


def _pos_weight(pos_weight: PosWeight, call: Request) -> Tensor | float:
    """A number, or one per class."""
    if call.options.get("activation") == "softmax":
        raise ValueError(
            "pos_weight: expected None with activation='softmax' (class_weight weighs its classes),"
            f" got {pos_weight}"
        )
    if isinstance(pos_weight, Tensor) and pos_weight.dim() == 0:
        return pos_weight
    if isinstance(pos_weight, (int, float)):
        checks.number("pos_weight", pos_weight, at_least=0)
        return float(pos_weight)
    return classes.per_class("pos_weight", pos_weight, call.data.input)


def _in_parts(call: Request) -> bool:
    """Whether the pointwise loss is that of a batch of which the call has a part."""
    ranks = call.ranks
    if isinstance(ranks, SumsTaker) and distributed.group_size(ranks.process_group) == 1:
        ranks = None  # it hands out the sums, and adds nothing
    return call.sharded() or (ranks is not None and not call.pointwise_alone)


def _counted_size(call: Request, reduction: str, called: str) -> int | None:
    """How many pixels or elements the pointwise loss is divided by, whatever they weigh: 1 for a
    sum. None: by the sum of their weights. While compiling it may be a symbol."""
    if reduction == "mean":
        return None
    checks.one_of(called, reduction, ("mean", "mean_all", "sum"))
    if reduction == "sum":
        return 1
    if _in_parts(call):
        raise ValueError(
            f"{called}: expected 'mean' or 'sum' for a batch in parts (each part knows "
            "the size of its own alone), got 'mean_all'"
        )
    softmax = call.options.get("activation") == "softmax"
    each = call.elements.per_sample and call.words.reduction == "none"
    left_out = (0,) * each + (1,) * softmax
    shape = call.data.input.shape
    lengths = [length for dim, length in enumerate(shape) if dim not in left_out]
    size: int = torch.sym_max(math.prod(lengths), 1)
    return size


@cached
def _factors(
    score_weight: float, cross_entropy: float, focal: float, softmax: bool, smoothed: bool,
    alpha: float | None, divisor: int | None,
) -> Pointwise:  # fmt: skip
    """The weight of the score and the factors of the pointwise loss."""
    if not (cross_entropy or focal):
        return Pointwise(score_weight)
    scale = 1.0 if divisor is None else 1.0 / divisor
    focal_pos = scale * focal * (1.0 if alpha is None else alpha)
    if softmax:
        # a pixel counts once, by its own class
        numerator = {"log_pos": scale * cross_entropy, "focal_pos": focal_pos}
        divided_by = {"support": 1.0} if smoothed else {"positives": 1.0}
    else:
        focal_neg = scale * focal * (1.0 if alpha is None else 1 - alpha)
        numerator = {"log_pos": scale * cross_entropy, "log_neg": scale * cross_entropy}
        numerator |= {"focal_pos": focal_pos, "focal_neg": focal_neg}
        divided_by = {"positives": 1.0, "negatives": 1.0}
    return Pointwise(score_weight, **numerator, **(divided_by if divisor is None else {}))
