"""Whether a score can be called with the sums that it will get; asked when a loss is made of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.compiler import is_compiling

from customloss import scores
from customloss._spec import hints
from customloss.reference.sums import ROWS

_SUMS = ("tp", "fp", "fn", "tn")
_EXPECTED = "expected a function of tp, fp, fn, tn"
# the first two arguments of losses, here and in torch
_OF_LOSSES = ("input", "target")


def check_score(score: Callable[..., Any]) -> None:
    """Raises a TypeError unless a score takes tp, fp, fn and tn, and the keywords of its
    :func:`customloss.scores.uses`; nothing is known of a callable without a signature."""
    if is_compiling():
        return
    if not callable(score):
        raise TypeError(f"score: {_EXPECTED}, got {score!r}")
    call = getattr(score, "forward", score)
    if isinstance(score, type):
        got = _loss(score) if _is_loss(call) else hints.instance_of(score)
        raise TypeError(f"score: {_EXPECTED}, got {got}")
    words = scores.used_by(score)
    further = [name for word in words for name in ROWS[word]]
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*_SUMS, **dict.fromkeys(further))
    except TypeError:
        raise TypeError(f"score {_name(score)!r}: {_unfit(score, signature, further)}") from None
    if _is_loss(call):
        raise TypeError(f"score {_name(score)!r}: {_EXPECTED}, got {_loss(score)}")


def _unfit(score: Callable[..., Any], signature: inspect.Signature, further: list[str]) -> str:
    """What is wrong with the arguments of a score, and the cure."""
    shown = signature.parameters
    if _is_loss(getattr(score, "forward", score)):
        return f"{_EXPECTED}, got {_loss(score)}"
    lost = [name for name in further if name not in shown]
    required = [name for name, each in shown.items() if _is_required(each, further)]
    undeclared = [word for word, names in ROWS.items() if {*names} & {*required}]
    if undeclared:
        words = ", ".join(f'"{word}"' for word in undeclared)
        return (
            f"{', '.join(required)} would not be given: add @customloss.scores.uses({words}), "
            "which declares further sums"
        )
    if lost and not any(each.kind is each.VAR_KEYWORD for each in shown.values()):
        words = ", ".join(f'"{word}"' for word in scores.used_by(score))
        return (
            f"expected the keywords of uses({words}), got a function without {', '.join(lost)}: "
            f"def score(tp, fp, fn, tn, *, {', '.join(further)})"
        )
    if required:
        return (
            f"{', '.join(required)} would not be given: functools.partial(score, "
            f"{required[0]}=...) gives a score its parameters"
        )
    return f"{_EXPECTED}, got one of {', '.join(shown) or 'nothing'}"


def _is_loss(call: Callable[..., Any]) -> bool:
    """Whether it takes input and target."""
    names = [name for name in inspect.signature(call).parameters if name != "self"]
    return tuple(names[:2]) == _OF_LOSSES


def _is_required(parameter: inspect.Parameter, further: list[str]) -> bool:
    """Whether a keyword has to be given, and would not be."""
    named = parameter.kind is parameter.KEYWORD_ONLY
    return named and parameter.default is parameter.empty and parameter.name not in further


def _loss(score: object) -> str:
    """A loss where a score was expected, and the score that it is made of, if it has a name."""
    from customloss._spec import unknown

    plain = unknown.plain_name(_name(score))
    ours = {unknown.plain_name(name): name for name in vars(scores) if not name.startswith("_")}
    found = ours.get(plain) or scores.OTHER_NAMES.get(plain)
    return "a loss of input and target" + (f", whose score is {found!r}" if found else "")


def _name(score: object) -> str:
    while isinstance(score, partial):
        score = score.func
    return str(getattr(score, "__name__", type(score).__name__))
