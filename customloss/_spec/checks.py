"""Checks of options: words, numbers and types.

A message names the argument as the caller wrote it, what was expected and what came.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """``value`` is one of the words ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str):
        cure = _cure(name, value, allowed)
        raise TypeError(f"{name}: expected a string, one of {allowed}, got {value!r}{cure}")
    if value not in allowed:
        cure = _cure(name, value, allowed)
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}{cure}")


def _cure(name: str, value: object, allowed: Iterable[str] = ()) -> str:
    """What to say of a word that an option does not know."""
    from customloss._spec import unknown

    return unknown.value_cure(name, value, tuple(allowed))


def shown(value: float) -> object:
    """A refused number in a message: hundreds of digits would say no more."""
    beyond = isinstance(value, int) and abs(value) > sys.float_info.max
    return "an integer beyond float64" if beyond else value


def number(
    name: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """``value`` is a finite number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a finite number, got {shown(value)}")
    if (
        (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        allowed = _range(at_least, at_most, above, below)
        raise ValueError(f"{name}: expected a number {allowed}, got {value}")


def _range(
    at_least: float | None, at_most: float | None, above: float | None, below: float | None
) -> str:
    """The bounds of a number, both of them where there are two."""
    low = at_least if above is None else above
    high = at_most if below is None else below
    if high is None:
        return f"{'>=' if above is None else '>'} {low}"
    if low is None:
        return f"{'<=' if below is None else '<'} {high}"
    return f"in {'[' if above is None else '('}{low}, {high}{']' if below is None else ')'}"


MOST_IGNORED = 8  # csrc/pixel.h has the same


def ignored(value: object) -> tuple[int, ...] | None:
    """``ignore_index`` as the primitives take it: without repetitions, and None for nothing."""
    if value is None:
        return None
    several = isinstance(value, Sequence) and not isinstance(value, str)
    numbers: tuple[Any, ...] = tuple(cast(Any, value)) if several else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(
                f"ignore_index: expected an integer, a sequence of integers or None, got {value!r}"
            )
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"ignore_index: expected integers of 64 bits, got {shown(number)}")
    distinct = tuple(dict.fromkeys(numbers))
    if len(distinct) > MOST_IGNORED:
        raise ValueError(
            f"ignore_index: expected at most {MOST_IGNORED} values, got {len(distinct)}: give all "
            "of them one value in the target, or a weight of 0"
        )
    return distinct or None


def sums_dtype(dtype: object) -> None:
    """``dtype`` is None or a real floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating torch.dtype or None, got {dtype!r}")


# options that are a number or None; any other that may be None is ignore_index
NUMBERS_OR_NONE = frozenset(("smooth_denominator", "log_smoothing"))
_KINDS = {str: "a string", float: "a number", bool: "True or False"}


def option_types(options: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Every option is known and of the type of its default.

    For an operator it is called after the dispatcher has refused the call. The dispatcher looks at
    the types before any code of this package runs, and its message is about schemas."""
    for name, value in options.items():
        if name not in defaults:
            raise TypeError(f"{name}: no such option; there are {', '.join(sorted(defaults))}")
        if name == "ignore_index":
            ignored(value)
            continue
        if name in NUMBERS_OR_NONE:
            if value is not None and type(value) not in (int, float):
                raise TypeError(f"{name}: expected a number or None, got {value!r}")
            continue
        kind = type(defaults[name])
        fits = isinstance(value, (int, float) if kind is float else kind)
        if kind in _KINDS and not (fits and (kind is bool or not isinstance(value, bool))):
            cure = _cure(name, value) if value is None else ""
            raise TypeError(f"{name}: expected {_KINDS[kind]}, got {value!r}{cure}")
