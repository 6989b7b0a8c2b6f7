"""Losses by name: those of the package, scores that a program registers, scores of plug-ins.

A plug-in is a package with an entry point::

    [project.entry-points."customloss.scores"]
    recall_at_90 = "customloss_recall_at:recall_at_90"

after whose installation ``customloss.loss("recall_at_90")`` works; see examples/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, overload

from customloss._spec import hints
from customloss.losses.base import LOSSES, Loss
from customloss.losses.composed import ConfusionLoss
from customloss.losses.formula import Score, score_name

ENTRY_POINTS = "customloss.scores"

_registered: dict[str, Score] = {}


@overload
def register_score(name: str, score: Score, *, overwrite: bool = False) -> Score: ...
@overload
def register_score(
    name: str, score: None = None, *, overwrite: bool = False
) -> Callable[[Score], Score]: ...
def register_score(
    name: str, score: Score | None = None, *, overwrite: bool = False
) -> Score | Callable[[Score], Score]:
    """Makes ``customloss.loss(name)`` the :class:`customloss.ConfusionLoss` of a score.

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
        TypeError: the name is no string, or the score cannot be called.
        ValueError: the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if score is None:
        return partial(register_score, name, overwrite=overwrite)
    if not callable(score):
        raise TypeError(f"score: expected a function of tp, fp, fn, tn, got {score!r}")
    if name in LOSSES:
        raise ValueError(f"name: {name!r} is a loss of customloss")
    other = score if overwrite else _registered.get(name, score)
    if other is not score:
        raise ValueError(
            f"name: {name!r} is already registered, for the score {score_name(other)!r}; "
            "overwrite=True replaces it"
        )
    _registered[name] = score
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
        # the names of functions and modules, "dice_loss" and "DiceLoss", mean "dice"
        short = re.sub(r"_?loss$", "", name, flags=re.IGNORECASE).lower()
        hint = hints.did_you_mean(short, loss_names())
        raise ValueError(f"name: expected one of {loss_names()}, got {name!r}{hint}")
    if len(points) > 1:
        raise ValueError(f"name: {name!r} is claimed by several plug-ins: {', '.join(points)}")
    (point,) = points.values()
    try:
        score = point.load()
    except Exception as error:
        raise ImportError(
            f"name: the plug-in of {name!r}, {_origin(point)}, cannot be loaded: {error}"
        ) from error
    if not callable(score):
        raise TypeError(
            f"name: the plug-in of {name!r}, {_origin(point)}, is no function of tp, fp, fn, tn, "
            f"but {score!r}"
        )
    return register_score(name, score)


def _origin(point: EntryPoint) -> str:
    """Where an entry point comes from, for messages."""
    package = f" of the package {point.dist.name}" if point.dist is not None else ""
    return f"{point.value!r}{package}"
