"""What the losses share: modules that keep options, and signatures that show them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from customloss import distributed
from customloss._backends import choice
from customloss._spec import hints
from customloss._spec import options as spec
from customloss.losses import classes

_F = TypeVar("_F", bound=Callable[..., Any])

# The losses of the package by name, as ``customloss.loss`` knows them.
LOSSES: dict[str, type[Loss]] = {}


# the types of most options, of which none is a number of numpy
_PLAIN = frozenset((type(None), bool, int, float, str, Tensor))


def _number(value: Any) -> Any:
    """A number of numpy as a number of Python, alone or in a tuple or list; anything else as it
    is."""
    if isinstance(value, (tuple, list)):
        numbers = map(_number, value)
        return tuple(numbers) if isinstance(value, tuple) else list(numbers)
    is_scalar = not isinstance(value, Tensor) and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def takes(options: type) -> Callable[[_F], _F]:
    """Spells ``**options`` out in the signature that ``help`` and ``inspect`` show, and refuses
    options that are not in it: ``dice_loss(..., beta=2.0)`` would be the loss of F2."""
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in spec.FUNCTION.items()
        if name in options.__annotations__
    ]

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        listed = list(signature.parameters.values())[:-1]
        signature = signature.replace(parameters=[*listed, *more])
        known = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        # operands may be passed by name as well
        names = frozenset(signature.parameters)

        @wraps(function)
        def checked(*operands: Any, **given: Any) -> Any:
            if given:
                if not names.issuperset(given):
                    unknown = next(name for name in given if name not in names)
                    raise hints.unknown_option(unknown, function.__name__, known)
                if not (_PLAIN.issuperset(map(type, given.values())) or is_compiling()):
                    given = {name: _number(value) for name, value in given.items()}
            return function(*operands, **given)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return cast(_F, checked)

    return decorate


class Loss(nn.Module):
    """The base of all losses: ``forward`` calls a function with options, which are attributes.

    ``class_weight`` is kept as a buffer: it moves with ``.to()``, and is not in the state dict.

    Shape:
        - input ``[N]``, ``[N, C]`` or ``[N, C, *spatial]``; target the same, or class numbers
          ``[N, *spatial]``; weight, if any, broadcastable to the input.
        - output: a scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep.
    """

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, name: str | None = None) -> None:
        """The options and their defaults are those of the function.

        ``name`` is what ``customloss.loss`` calls a loss of the package.
        """
        super().__init_subclass__()
        if name is not None:
            LOSSES[name] = cls
        if "function" not in vars(cls):
            return
        shown = inspect.signature(cls.function).parameters.values()
        options = {p.name: p for p in shown if p.kind is p.KEYWORD_ONLY}
        cls.defaults = {name: option.default for name, option in options.items()}
        # shown by help: what __init__ takes by position, then every option of the function
        _, *listed = inspect.signature(cls.__init__).parameters.values()
        listed = [p for p in listed if p.kind is p.POSITIONAL_OR_KEYWORD]
        names = {p.name for p in listed}
        more = [option for name, option in options.items() if name not in names]
        cls.__signature__ = inspect.Signature([*listed, *more])  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name not in self.defaults:
                raise hints.unknown_option(name, type(self).__name__, list(self.defaults))
        for name, value in {**self.defaults, **options}.items():
            value = _number(value)
            is_class_weight = name == "class_weight" and value is not None
            if is_class_weight or (name == "pos_weight" and isinstance(value, Sequence)):
                value = classes.as_tensor(name, value)
            if isinstance(value, Tensor) or name == "class_weight":
                # like the other options it is not in the state dict, but it moves with .to()
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        ours = type(self).function.__module__.startswith("customloss.")
        if ours and not is_compiling():
            self._try_options(type(self).function)

    def _try_options(self, function: Callable[..., Tensor]) -> None:
        """Raises what the first batch would raise about the options, on a pixel that is no data."""
        options = self.options()
        group = options.pop("process_group", None)
        if not isinstance(group, distributed.Adder):
            with suppress(ValueError):  # a rank that is no member may still make the module
                distributed.group_size(group)
        count = 2
        scored = options.get("classes")
        if isinstance(scored, Sequence) and all(isinstance(number, int) for number in scored):
            count = max([count, *(number + 1 for number in scored)])
        for name in ("class_weight", "pos_weight"):
            value = options.get(name)
            if isinstance(value, Tensor):  # it may be on a device that this check should not touch
                options[name] = [1.0] * len(value) if value.dim() else 1.0
                count = len(value) if value.dim() else count
        of_classes = options.get("activation") == "softmax"
        input = torch.zeros(1, count, device="cpu")
        target = torch.zeros((1,) if of_classes else (1, count), device="cpu", dtype=torch.uint8)
        with torch.no_grad(), choice.backend("auto"):
            function(input, target, None, **options)

    def options(self) -> dict[str, Any]:
        """The keyword arguments for the function."""
        return {name: getattr(self, name) for name in self.defaults}

    def _changed(self) -> dict[str, Any]:
        """The options that are not at their defaults: for those that are, a call has less to do."""
        return {
            name: value
            for name, default in self.defaults.items()
            if (value := getattr(self, name)) is not default
        }

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return type(self).function(input, target, weight, **self._changed())

    def added_by(self, adder: object) -> Loss:
        """A copy with ``adder`` as process group; moving its buffers leaves this loss alone."""
        twin = copy.copy(self)
        attributes = vars(twin)
        attributes["process_group"] = adder  # nn.Module would make it a submodule
        attributes["_buffers"] = dict(self._buffers)
        return twin

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        changed = []
        for name, value in self._changed().items():
            if isinstance(value, distributed.Adder):  # the module that holds this one
                continue
            if isinstance(value, Tensor):
                changed.append(f"{name}={value.tolist()}")
            elif value != self.defaults[name]:
                changed.append(f"{name}={value!r}")
        return ", ".join(changed)
