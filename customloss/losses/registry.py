"""Losses by name: those of the package, scores that a program registers, scores of plug-ins.

A plug-in is a package with an entry point::

    [project.entry-points."customloss.scores"]
    recall_at_90 = "customloss_recall_at:recall_at_90"

after whose installation ``customloss.loss("recall_at_90")`` works; see examples/.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from customloss.losses.base import LOSSES, Loss
from customloss.losses.composed import ConfusionLoss
from customloss.losses.formula import Score, score_name

ENTRY_POINTS = "customloss.scores"

_registered: dict[str, Score] = {}


def register_score(name: str, score: Score) -> Score:
    """Makes ``customloss.loss(name)`` the :class:`customloss.ConfusionLoss` of a score.

    Args:
        name: a name that is not taken yet, or taken by this very score.
        score: ``score(tp, fp, fn, tn)``, see :func:`customloss.confusion_loss`.

    Returns:
        The score.

    Raises:
        TypeError: the name is no string, or the score cannot be called.
        ValueError: the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if not callable(score):
        raise TypeError(f"score: expected a function of tp, fp, fn, tn, got {score!r}")
    if name in LOSSES:
        raise ValueError(f"name: {name!r} is a loss of customloss")
    if _registered.setdefault(name, score) is not score:
        other = score_name(_registered[name])
        raise ValueError(f"name: {name!r} is already registered, for the score {other!r}")
    return score


def loss(name: str, **options: Any) -> Loss:
    """The loss module of this name: of the package, a registered score, or a plug-in's.

    Args:
        name: ``"soft_f1"``, ``"dice"``, ...; see :func:`loss_names`.
        options: those of the module.

    Raises:
        ValueError: no such name, or two plug-ins claim it; the message lists the names.

    Example::

        customloss.register_score("f2", lambda tp, fp, fn, tn: 5 * tp / (5 * tp + fp + 4 * fn))
        criterion = customloss.loss("f2", average="micro")
    """
    if name in LOSSES:
        return LOSSES[name](**options)
    score = _registered.get(name) or _of_a_plugin(name)
    return ConfusionLoss(score, **options)


def loss_names() -> tuple[str, ...]:
    """Every name that :func:`loss` knows."""
    plugins = (point.name for point in entry_points(group=ENTRY_POINTS))
    return tuple(sorted({*LOSSES, *_registered, *plugins}))


def _of_a_plugin(name: str) -> Score:
    """The score that an entry point names; it is then registered, so it is loaded once."""
    points = {point.value: point for point in entry_points(group=ENTRY_POINTS, name=name)}
    if not points:
        raise ValueError(f"name: expected one of {loss_names()}, got {name!r}")
    if len(points) > 1:
        raise ValueError(f"name: {name!r} is claimed by several plug-ins: {', '.join(points)}")
    (point,) = points.values()
    return register_score(name, point.load())
