"""Losses by name: those of the package, and those of every score that has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, overload

from customloss.losses import keywords, named_scores
from customloss.losses.base import LOSSES, Loss
from customloss.losses.composed import ConfusionLoss
from customloss.losses.formula import Score, score_name
from customloss.losses.named_scores import BUILT_IN
from customloss.losses.score_checks import check_score


@overload
def register_score(name: str, score: Score, *, overwrite: bool = False) -> Score: ...
@overload
def register_score(
    name: str, score: None = None, *, overwrite: bool = False
) -> Callable[[Score], Score]: ...
def register_score(
    name: str, score: Score | None = None, *, overwrite: bool = False
) -> Score | Callable[[Score], Score]:
    """Makes ``name`` that of a score: for :func:`customloss.loss`, which returns its
    :class:`customloss.ConfusionLoss`, and wherever else a score may be named.

    Args:
        name: a name that is not taken yet, or taken by this very score.
        score: ``score(tp, fp, fn, tn)``, see :func:`customloss.confusion_loss`. Without it the
            result is a decorator.
        overwrite: the name may be taken by another score, as in a notebook cell that runs again.

    Returns:
        The score.

    Example::

        @customloss.register_score("kulczynski")
        def kulczynski(tp, fp, fn, tn):
            return (tp / (tp + fp) + tp / (tp + fn)) / 2

    Raises:
        TypeError: the name is no string, the score cannot be called, or ``overwrite`` is no bool.
        ValueError: the name is taken, or empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if not name:
        raise ValueError("name: expected one by which the score is asked for, got ''")
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite: expected True or False, got {overwrite!r}")
    if score is None:
        return partial(register_score, name, overwrite=overwrite)
    check_score(score)
    if name in LOSSES or name in BUILT_IN:
        kind = "loss" if name in LOSSES else "score"
        raise ValueError(f"name: {name!r} is a {kind} of customloss")
    other = score if overwrite else named_scores.registered.get(name, score)
    if other is not score:
        raise ValueError(
            f"name: {name!r} is already registered, for the score {score_name(other)!r}; "
            "overwrite=True replaces it"
        )
    named_scores.registered[name] = score
    return score


def loss(name: str, *, score_options: Mapping[str, Any] | None = None, **options: Any) -> Loss:
    """The loss module of this name: of the package, or the :class:`customloss.ConfusionLoss` of a
    score of ``customloss.scores``, of a registered one, or of a plug-in's.

    Args:
        name: ``"soft_f1"``, ``"dice"``, ...; see :func:`loss_names`.
        score_options: the parameters of the score, if the name is that of a score. A loss of the
            package has its parameters among its options.
        options: those of the module.

    Raises:
        TypeError: ``score_options`` for a loss of the package, or not of the score.
        ValueError: no such name, or two plug-ins claim it; the message lists the names.

    Example::

        def f(tp, fp, fn, tn, *, squared=1.0):
            return (1 + squared) * tp / ((1 + squared) * tp + fp + squared * fn)


        customloss.register_score("f", f)
        criterion = customloss.loss("f", average="micro", score_options={"squared": 4.0})
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if name in LOSSES:
        if score_options is not None:
            raise TypeError(
                f"score_options: expected None for {name!r}, whose parameters are options of the "
                f"loss, got {score_options!r}; help(customloss.{LOSSES[name].__name__}) lists them"
            )
        return LOSSES[name](**options)
    score = named_scores.find(name)
    if score is None:
        raise named_scores.unknown("name", name, loss_names())
    if score_options is not None:
        score = named_scores.with_parameters(name, score, score_options)
    known = list(ConfusionLoss.defaults)
    way = 'score_options={{"{name}": {value}}}'
    keywords.check_known(options, known, ConfusionLoss, score, way=way)
    return ConfusionLoss(score, **options)


def loss_names() -> tuple[str, ...]:
    """Every name that :func:`loss` knows."""
    return tuple(sorted({*LOSSES, *named_scores.names(taken=LOSSES)}))
