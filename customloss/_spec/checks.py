"""Checks of options: words, numbers and types.

A message names the argument as the caller wrote it, what was expected and what came.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import torch

from customloss._spec import hints


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """``value`` is one of the words ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, one of {allowed}, got {value!r}")
    if value not in allowed:
        hint = hints.did_you_mean(value, allowed)
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}{hint}")


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
    if at_least is not None and value < at_least:
        raise ValueError(f"{name}: expected a number >= {at_least}, got {value}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name}: expected a number <= {at_most}, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name}: expected a number > {above}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name}: expected a number < {below}, got {value}")


def sums_dtype(dtype: object) -> None:
    """``dtype`` is None or a real floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating torch.dtype or None, got {dtype!r}")


# options that are a number or None; any other that may be None is an integer
NUMBERS_OR_NONE = frozenset(("smooth_denominator",))
_KINDS = {str: "a string", float: "a number", bool: "True or False"}


def option_types(options: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Every option is known and of the type of its default.

    For an operator it is called after the dispatcher has refused the call. The dispatcher looks at
    the types before any code of this package runs, and its message is about schemas."""
    for name, value in options.items():
        if name not in defaults:
            raise TypeError(f"{name}: no such option; there are {', '.join(sorted(defaults))}")
        if name in NUMBERS_OR_NONE:
            if value is not None and type(value) not in (int, float):
                raise TypeError(f"{name}: expected a number or None, got {value!r}")
            continue
        if defaults[name] is None:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name}: expected an integer or None, got {value!r}")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}: expected an integer of 64 bits, got {value}")
            continue
        kind = type(defaults[name])
        fits = isinstance(value, (int, float) if kind is float else kind)
        if kind in _KINDS and not (fits and (kind is bool or not isinstance(value, bool))):
            raise TypeError(f"{name}: expected {_KINDS[kind]}, got {value!r}")
