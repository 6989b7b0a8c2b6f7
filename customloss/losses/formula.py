"""What becomes of the sums: a ratio or any other score, and a pointwise loss beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss import scores
from customloss._ops.modes import holds_values
from customloss._spec import options
from customloss._spec.arguments import SCORE_ALONE, Pointwise
from customloss._spec.options import Ratio, ScoringWords
from customloss.losses import first_batch, score_values
from customloss.losses.classes import ALL, Classes
from customloss.losses.score_checks import check_score
from customloss.reference import sums as reference

Score = Callable[..., Tensor]
# from the rows of the sums to the losses of the groups
LossOfRows = Callable[[Sequence[Tensor]], Tensor]
# values with names: a NamedTuple of options, a dict, or the names and the values
Named = Any


class Looks(NamedTuple):
    """Whether what a score returns is looked at, and of which classes it is."""

    asked: object = False  # the option ``check_target``
    classes: Classes | None = None  # those that are scored; None: all of them alike


NEVER = Looks()


class Formula(NamedTuple):
    """A loss as a function of the sums."""

    name: str  # of the score, for messages
    score: Ratio | LossOfRows
    pointwise: Pointwise = SCORE_ALONE
    pos_weight: Tensor | None = None  # how often the pointwise loss counts positives
    must_agree: tuple[Named, ...] = ()  # beside the options, what has to be equal on every rank
    # what the pointwise loss is divided by at last, where it is no number yet
    pointwise_size: int | None = None


def formula_of(
    score: Score, words: ScoringWords, extra: int, *, looks: Looks = NEVER, **more: Any
) -> Formula:
    """The formula of a score of the user's or of ``scores.py``, which may be a ratio. ``looks``
    says whether what the score returns is looked at."""
    _, parameters = scores.unwrapped(score)
    if "smooth" in parameters:
        options.smooth_fits(parameters["smooth"], words.link)
    ratio = options.ratio_of(score)
    made = ratio if ratio is not None else _linked(score, words, extra, looks)
    return Formula(score_name(score), made, must_agree=(words, parameters), **more)


def _linked(score: Score, words: ScoringWords, extra: int, looks: Looks) -> LossOfRows:
    """The linked score as a function of the rows; ``extra`` says which rows there are."""
    names = reference.rows(extra)
    wanted = [name for word in scores.used_by(score) for name in reference.ROWS[word]]

    def loss_of_rows(rows: Sequence[Tensor]) -> Tensor:
        further = {name: rows[names.index(name)] for name in wanted}
        similarity = _similarity(score, rows[:4], further)
        if looks.asked is not False:
            _look(score, similarity, rows, words, looks)
        return scores.linked(similarity, words.link, words.gamma, words.log_floor)

    return loss_of_rows


def _look(
    score: Score, similarity: Tensor, rows: Sequence[Tensor], words: ScoringWords, looks: Looks
) -> None:
    """Warns of what is no similarity."""
    if not holds_values(similarity) or not similarity.numel():
        return
    of = looks.classes or ALL
    by_support = words.absent != "score" or words.average == "weighted"
    with torch.no_grad():
        weight = None if of.weight is None else of.scored(of.weight)
        counting = score_values.counting(similarity, rows, weight, by_support)
        found = score_values.mistakes(similarity, counting, words.link, of.runs)
    named = {each: f"score {score_name(score)!r}: {text}" for each, text in found.items()}
    first_batch.warn_of(named, looks.asked)


def _similarity(score: Score, sums: Sequence[Tensor], further: dict[str, Tensor]) -> Tensor:
    """The score of the sums, checked to be a similarity of every group."""
    try:
        value: Any = score(*sums, **further)
    except TypeError:
        check_score(score)  # says what is wrong with its arguments, if it is that
        raise
    samples, classes = sums[0].shape
    if not isinstance(value, Tensor):
        got: object = f"{type(value).__name__} {value!r}"
    elif tuple(value.shape) not in ((samples, classes), (samples, 1)):
        got = f"one of shape {list(value.shape)}"
    elif not value.is_floating_point():
        got = f"one of {value.dtype}"
    elif sums[0].requires_grad and not value.requires_grad:
        got = "one without a gradient: it left the graph of torch operations"
    else:
        return value
    kind = ValueError if isinstance(value, Tensor) else TypeError
    raise kind(
        f"score {score_name(score)!r}: expected a floating tensor [{samples}, {classes}], one "
        f"similarity per sample and class, or [{samples}, 1], computed from the sums, got {got}"
    )


def at(score: Score, **parameters: Any) -> Score:
    """A score at these parameters, which have to be within their bounds."""
    options.bounded(**parameters)
    return partial(score, **parameters)


def score_name(score: object) -> str:
    """The name of a score in messages."""
    function, _ = scores.unwrapped(score)
    return str(getattr(function, "__name__", type(function).__name__))
