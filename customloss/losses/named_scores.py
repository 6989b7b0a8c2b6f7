"""Scores by name: those of ``customloss.scores``, those that a program registers, and plug-ins'.

A plug-in is a package with an entry point::

    [project.entry-points."customloss.scores"]
    recall_at_90 = "customloss_recall_at:recall_at_90"

after whose installation ``customloss.loss("recall_at_90")`` works; see examples/. A name of the
package cannot be taken.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from customloss import scores
from customloss._spec import options as spec
from customloss.losses.formula import Score
from customloss.reference.sums import ROWS

ENTRY_POINTS = "customloss.scores"


def _is_score(value: object) -> bool:
    if not inspect.isfunction(value) or value.__name__.startswith("_"):
        return False
    return list(inspect.signature(value).parameters)[:4] == ["tp", "fp", "fn", "tn"]


BUILT_IN: dict[str, Score] = {
    name: value for name, value in vars(scores).items() if _is_score(value)
}
registered: dict[str, Score] = {}
# What an argument names, and where these names are listed.
_LISTED = {
    "name": ("the name of a loss or score", "customloss.loss_names()"),
    "score": ("a score or its name", "help(customloss.scores)"),
}


# ---- from a name to a score ----------------------------------------------------------------------


def score_of(score: Score | str) -> Score:
    """The score itself, or the one of this name."""
    if isinstance(score, str):
        found = find(score)
        if found is None:
            raise unknown("score", score, names())
        return found
    if not callable(score):
        raise TypeError(
            f"score: expected a function of tp, fp, fn, tn, or the name of a score, got {score!r}"
        )
    return score


def find(name: str) -> Score | None:
    """The score of this name, if there is one."""
    score = BUILT_IN.get(name) or registered.get(name)
    return _of_a_plugin(name) if score is None else score


def names(taken: Collection[str] = ()) -> tuple[str, ...]:
    """The names of all scores; plug-ins may not have those of ``taken`` either."""
    plugins = set()
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in BUILT_IN or point.name in taken:
            warnings.warn(
                f"the plug-in {_origin(point)} is refused: {point.name!r} is a name of customloss",
                stacklevel=3,
            )
        else:
            plugins.add(point.name)
    return tuple(sorted({*BUILT_IN, *registered, *plugins}))


def unknown(argument: str, name: str, known: tuple[str, ...]) -> ValueError:
    """The error for a name of nothing, with the name that may be meant."""
    # the names of functions and modules, "dice_loss" and "DiceLoss", mean "dice"
    from customloss._spec import unknown as words

    short = re.sub(r"_?loss$", "", name, flags=re.IGNORECASE).lower()
    plain = words.plain_name(name)
    others = (words.loss_name(plain), scores.OTHER_NAMES.get(plain, ""))
    meant = next((other for other in others if other in known), short)
    hint = words.did_you_mean(meant, known)
    if not hint:
        return ValueError(f"{argument}: expected one of {known}, got {name!r}")
    kind, listed = _LISTED[argument]
    return ValueError(f"{argument}: expected {kind}, got {name!r}{hint} {listed} lists all of them")


def with_parameters(name: str, score: Score, parameters: Mapping[str, Any]) -> Score:
    """The score of this name at these parameters, which are the ``score_options`` of a loss."""
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f"score_options: expected a dict of parameters of the score {name!r}, got "
            f"{type(parameters).__name__}"
        )
    known = _parameters(score)
    for given in parameters:
        if known is not None and given not in known:
            from customloss._spec import unknown as words

            raise words.keyword(given, f"the score {name!r}", known)
    if score is BUILT_IN.get(name):
        numbers = {key: value for key, value in parameters.items() if not isinstance(value, str)}
        spec.bounded(**numbers)
    return partial(score, **parameters)


def _parameters(score: Score) -> list[str] | None:
    """The parameters of a score beside its sums; None if it takes any, or does not tell."""
    try:
        shown = inspect.signature(score).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return None
    if any(each.kind is each.VAR_KEYWORD for each in shown):
        return None
    sums = {name for word in scores.used_by(score) for name in ROWS[word]}
    more = [each for i, each in enumerate(shown) if i > 3 or each.kind is each.KEYWORD_ONLY]
    return [each.name for each in more if each.name not in sums]


# ---- plug-ins ------------------------------------------------------------------------------------


def _of_a_plugin(name: str) -> Score | None:
    """The score that an entry point names; it is then registered, so it is loaded once."""
    points = {point.value: point for point in entry_points(group=ENTRY_POINTS, name=name)}
    if not points:
        return None
    if len(points) > 1:
        raise ValueError(f"name: {name!r} is claimed by several plug-ins: {', '.join(points)}")
    (point,) = points.values()
    try:
        score: Any = point.load()
    except Exception as error:
        raise ImportError(
            f"name: the plug-in of {name!r}, {_origin(point)}, cannot be loaded: {error}"
        ) from error
    if not callable(score):
        raise TypeError(
            f"name: the plug-in of {name!r}, {_origin(point)}, is no function of tp, fp, fn, tn, "
            f"but {score!r}"
        )
    registered[name] = score
    return registered[name]


def _origin(point: EntryPoint) -> str:
    """Where an entry point comes from, for messages."""
    package = f" of the package {point.dist.name}" if point.dist is not None else ""
    return f"{point.value!r}{package}"
