"""What becomes of the sums: a ratio or any other score, and a pointwise loss beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from customloss import scores
from customloss._ops.modes import holds_values
from customloss._spec import options
from customloss._spec.arguments import SCORE_ALONE, Pointwise
from customloss._spec.options import Ratio, ScoringWords
from customloss.losses.first_batch import FirstBatch, warn_caller
from customloss.losses.score_checks import check_score
from customloss.reference import sums as reference

Score = Callable[..., Tensor]
# from the rows of the sums to the losses of the groups
LossOfRows = Callable[[Sequence[Tensor]], Tensor]
# values with names: a NamedTuple of options, a dict, or the names and the values
Named = Any


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
    score: Score, words: ScoringWords, extra: int, *, looks: object = False, **more: Any
) -> Formula:
    """The formula of a score of the user's or of ``scores.py``, which may be a ratio. ``looks`` is
    the option ``check_target``: whether what the score returns is looked at."""
    _, parameters = scores.unwrapped(score)
    if "smooth" in parameters:
        options.smooth_fits(parameters["smooth"], words.link)
    ratio = options.ratio_of(score)
    made = ratio if ratio is not None else _linked(score, words, extra, looks)
    return Formula(score_name(score), made, must_agree=(words, parameters), **more)


def _linked(score: Score, words: ScoringWords, extra: int, looks: object) -> LossOfRows:
    """The linked score as a function of the rows; ``extra`` says which rows there are."""
    names = reference.rows(extra)
    wanted = [name for word in scores.used_by(score) for name in reference.ROWS[word]]

    def loss_of_rows(rows: Sequence[Tensor]) -> Tensor:
        further = {name: rows[names.index(name)] for name in wanted}
        similarity = _similarity(score, rows[:4], further)
        if looks is not False and words.link not in scores.LINEAR_LINKS:
            _check_at_most_1(score, similarity, words.link, looks)
        return scores.linked(similarity, words.link, words.gamma, words.log_floor)

    return loss_of_rows


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


def _check_at_most_1(score: Score, similarity: Tensor, link: str, looks: object) -> None:
    """Warns of a similarity above 1, which only a link that is linear gives a meaning: the
    logarithm of a sum is no loss, and a power of 1 - s is 0 there, without a gradient."""
    warned = looks.warned if isinstance(looks, FirstBatch) else set()
    if "similarity" in warned or not holds_values(similarity):
        return
    most = float(similarity.detach().amax()) if similarity.numel() else 0.0
    if most > 1 + 1e-6:  # beyond rounding
        warned.add("similarity")
        warn_caller(
            f"score {score_name(score)!r}: expected a similarity of at most 1 with link={link!r}, "
            f"got {most:.6g} (check_target=False turns the checks off)"
        )


def at(score: Score, **parameters: Any) -> Score:
    """A score at these parameters, which have to be within their bounds."""
    options.bounded(**parameters)
    return partial(score, **parameters)


def score_name(score: object) -> str:
    """The name of a score in messages."""
    function, _ = scores.unwrapped(score)
    return str(getattr(function, "__name__", type(function).__name__))
