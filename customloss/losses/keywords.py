"""Which keywords a function, a constructor or a call takes, and what is said of any other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.compiler import is_compiling

from customloss import scores
from customloss._spec import options as spec

_F = TypeVar("_F", bound=Callable[..., Any])

# the types of most options, of which none is a number of numpy or a truth value
_PLAIN_TYPES = frozenset((type(None), int, float, str, Tensor))


# ---- unknown ones --------------------------------------------------------------------------------


def check_known(
    given: Mapping[str, Any],
    known: Collection[str],
    owner: Callable[..., Any] | str,
    first: object = None,
    role: str = "score",
    way: str = "functools.partial({role}, {name}={value})",
) -> None:
    """Raises for the first of ``given`` that ``owner`` does not have.

    ``first`` is what ``owner`` is given in the first place, a score or a loss, whose parameter it
    may be; ``role`` is what the caller calls that, and ``way`` how its parameters are given.
    """
    for name, value in given.items():
        if name not in known:
            cure = _option_of(first, name, value)
            if not cure and (found := _parameter_of(first, role, name)):
                cure = f"{found}: {way.format(role=role, name=name, value=_shown(value))}"
            from customloss._spec import unknown

            raise unknown.keyword(name, owner, known, cure)


def known_only(function: _F) -> _F:
    """Refuses keywords that a function does not have, with the one that is meant. Of a method, as
    ``forward``, the call is also refused in the name of the class of its object, if an operand is
    missing or there is one too many: Python would name the class that defines it."""
    signature = inspect.signature(function)
    known = [name for name in signature.parameters if name != "self"]
    names = frozenset(known)
    # the first operand: of a constructor behind self, of other methods self, which has options
    first_place = 1 if function.__name__ == "__init__" else 0
    fewest, most = (0, math.inf) if first_place else _operands(signature)

    @wraps(function)
    def checked(*operands: Any, **given: Any) -> Any:
        if given and not names.issuperset(given):
            seen = len(operands) > first_place
            first = operands[first_place] if seen else given.get(known[0])
            check_known(given, known, function, first, known[0])
        if not fewest <= len(operands) <= most:
            _check_operands(function.__name__, signature, operands, given)
        return function(*operands, **given)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return cast(_F, checked)


def _operands(signature: inspect.Signature) -> tuple[int, float]:
    """How many operands a method has by position, with its object: at least and at most. Of a
    function, whose name Python says, the number is not checked."""
    if "self" not in signature.parameters:
        return 0, math.inf
    operands = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return sum(each.default is each.empty for each in operands), len(operands)


def _check_operands(
    method: str, signature: inspect.Signature, operands: tuple[Any, ...], given: Mapping[str, Any]
) -> None:
    """Raises for an operand of a method that is missing, or one too many. Those that are not there
    by position may be ``given`` by name."""
    shown = [each for each in signature.parameters.values() if each.kind is not each.KEYWORD_ONLY]
    left = [each for each in shown[len(operands) :] if each.default is each.empty]
    missing = [each.name for each in left if each.name not in given]
    if not operands or not (missing or len(operands) > len(shown)):
        return
    call = "criterion" if method == "forward" else f"criterion.{method}"
    taken = ", ".join(
        each.name if each.default is each.empty else f"{each.name}={each.default}"
        for each in shown[1:]
    )
    got = f"no {' and no '.join(missing)}" if missing else f"{len(operands) - 1} operands"
    raise TypeError(f"{type(operands[0]).__name__}: expected {call}({taken}), got {got}")


def by_name(init: _F, options: Collection[str]) -> _F:
    """A constructor that says how options are given, where one more came by position, as the
    weights of ``torch.nn.CrossEntropyLoss`` do."""
    shown = inspect.signature(init).parameters.values()
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in shown)
    most = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in shown) - 1

    @wraps(init)
    def checked(self: Any, *operands: Any, **given: Any) -> None:
        if len(operands) > most and not takes_any:
            raise _by_position(type(self).__name__, operands[most], options)
        init(self, *operands, **given)

    return cast(_F, checked)


def _by_position(owner: str, value: object, options: Collection[str]) -> TypeError:
    per_class = isinstance(value, (Tensor, list, tuple)) or len(getattr(value, "shape", ()))
    fits = "class_weight" if per_class else "activation" if isinstance(value, str) else ""
    name = fits if fits in options else next(iter(options))
    return TypeError(
        f"{owner}: expected its options by name, as in {owner}({name}=...), got {_shown(value)} by "
        "position"
    )


def _shown(value: object) -> str:
    """A value for a message, short."""
    text = type(value).__name__ if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def _option_of(module: object, name: str, value: object) -> str:
    """What to say of a keyword that is an option of a loss module, or nothing."""
    if name not in getattr(module, "defaults", ()):
        return ""
    return f"it is an option of the module: {type(module).__name__}({name}={_shown(value)})"


def _parameter_of(first: object, role: str, name: str) -> str:
    """What to say of a keyword that is a parameter of a score or a loss function, or nothing."""
    if isinstance(first, str):
        first = getattr(scores, first, None)
    if isinstance(first, Tensor) or not callable(first):
        return ""
    try:
        fits = name in inspect.signature(first).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return ""
    if not fits:
        return ""
    function, _ = scores.unwrapped(first)
    called = getattr(function, "__name__", type(function).__name__)
    return f"it is a parameter of the {role} {called!r}"


# ---- options that are spelled out ----------------------------------------------------------------


def takes(options: type) -> Callable[[_F], _F]:
    """Spells ``**options`` out in the signature that ``help`` and ``inspect`` show, and refuses
    options that are not in it: ``dice_loss(..., beta=2.0)`` would be the loss of F2."""
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in {**spec.FUNCTION, **spec.POINTWISE}.items()
        if name in options.__annotations__
    ]

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        listed = list(signature.parameters.values())[:-1]
        signature = signature.replace(parameters=[*listed, *more])
        # operands may be passed by name as well
        known = list(signature.parameters)
        names = frozenset(known)
        options_only = frozenset(p.name for p in [*listed, *more] if p.kind is p.KEYWORD_ONLY)
        numeric = frozenset(p.name for p in [*listed, *more] if type(p.default) is float)

        @wraps(function)
        def checked(*operands: Any, **given: Any) -> Any:
            if given:
                if not names.issuperset(given):
                    first = operands[0] if operands else given.get(known[0])
                    check_known(given, known, function, first, known[0])
                if not (_PLAIN_TYPES.issuperset(map(type, given.values())) or is_compiling()):
                    for name in numeric.intersection(given):
                        _no_truth(name, given[name])
                    given = {
                        name: as_plain(value) if name in options_only else value
                        for name, value in given.items()
                    }
            return function(*operands, **given)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return cast(_F, checked)

    return decorate


def _no_truth(name: str, value: object) -> None:
    """Raises for a truth value where a number is expected: the dispatcher would take True for 1."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value}")


def as_plain(value: Any) -> Any:
    """A number of numpy as a number of Python, alone or in a tuple or list, and an array of one
    dimension as a list; anything else as it is."""
    if isinstance(value, (tuple, list)):
        numbers = map(as_plain, value)
        return tuple(numbers) if isinstance(value, tuple) else list(numbers)
    shape = None if isinstance(value, Tensor) else getattr(value, "shape", None)
    is_flat = isinstance(shape, tuple) and len(shape) < 2 and hasattr(value, "tolist")
    return value.tolist() if is_flat else value
