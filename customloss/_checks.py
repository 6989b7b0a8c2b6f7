"""What a user can get wrong, said before any kernel runs: the argument, what was expected and
what came. Nothing here reads tensor data, except ``target_values``, which is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customloss._words import SOFTMAX

if TYPE_CHECKING:
    from customloss._options import Elements

INPUT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGET_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32,
    torch.uint64, torch.int64, *INPUT_DTYPES,
)  # fmt: skip
_TARGETS = frozenset(TARGET_DTYPES)
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


_SIGNED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """``value`` is one of the words ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, one of {allowed}, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")


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
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name}: expected a number >= {at_least}, got {value}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name}: expected a number <= {at_most}, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name}: expected a number > {above}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name}: expected a number < {below}, got {value}")


def are_tensors(input: object, target: object, weight: object) -> None:
    """The three operands are tensors (``weight`` may be None)."""
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense (strided) tensor, got {value.layout}")


def tensors(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    *,
    no_sample: bool = False,
) -> Tensor:
    """Dtypes, shapes and devices fit together, and there is a group, or ``no_sample`` to score.

    Returns the target, of the rank of the input: class numbers as ``[N, 1, *spatial]``.
    """
    shape = input.shape
    if input.dtype not in INPUT_DTYPES:
        raise TypeError(f"input: expected float32, float64, float16 or bfloat16, got {input.dtype}")
    if not shape:
        raise ValueError("input: expected [N], [N, C] or [N, C, *spatial], got a scalar")
    if target.dtype not in _TARGETS:
        raise TypeError(f"target: expected a bool, integer or float dtype, got {target.dtype}")
    if elements.activation == SOFTMAX and (len(shape) < 2 or shape[1] == 1):
        raise ValueError(
            "activation: expected 'sigmoid' (or two classes) for an input without a choice of "
            f"classes, {list(shape)}, got 'softmax'"
        )
    if target.shape != shape:
        target = _class_index(input, target)
    elif elements.ignore_index is not None and elements.activation == SOFTMAX:
        raise ValueError(
            "ignore_index: expected None for a dense target with activation='softmax' (what would "
            f"one class of a pixel say?), got {elements.ignore_index}: pass class numbers, or a "
            "weight of 0"
        )
    if target.device != input.device:
        raise ValueError(f"target: expected device {input.device} (input's), got {target.device}")
    if weight is not None:
        _weight(weight, input)
    no_class = len(shape) > 1 and shape[1] == 0
    empty = elements.per_sample and shape[0] == 0 and not no_sample
    if empty or (elements.per_class and no_class):
        raise ValueError(f"input: there is no group to score in shape {list(shape)}")
    return target


def _class_index(input: Tensor, target: Tensor) -> Tensor:
    """Class numbers, one per sample and place, as ``[N, 1, *spatial]``."""
    shape, own = input.shape, target.shape
    kept = (*shape[:1], 1, *shape[2:])
    if len(shape) < 2 or own not in (kept, shape[:1] + shape[2:]):
        expected = f"the shape of input, {list(shape)}"
        if len(shape) > 1:
            expected += f", or {list(shape[:1] + shape[2:])} for class numbers"
        raise ValueError(f"target: expected {expected}, got {list(own)}")
    if shape[1] == 1:
        raise ValueError(
            f"target: expected the shape of input, {list(shape)}, got {list(own)}: an input with "
            "one class has no class numbers (target.unsqueeze(1) makes it dense)"
        )
    if target.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"target: expected uint8, int8, int16, int32 or int64 for class numbers {list(own)}, "
            f"got {target.dtype}; a dense target has the shape of input, {list(shape)}"
        )
    return target if own == kept else target.unsqueeze(1)


def _weight(weight: Tensor, input: Tensor) -> None:
    if weight.dtype not in _TARGETS:
        raise TypeError(f"weight: expected a bool, integer or float dtype, got {weight.dtype}")
    own, shape = weight.shape, input.shape
    fits = len(own) <= len(shape) and all(
        mine == 1 or mine == theirs for mine, theirs in zip(reversed(own), reversed(shape))
    )
    if not fits:
        raise ValueError(
            f"weight: expected a shape that broadcasts to {list(shape)} (input's), got {list(own)}"
        )
    if weight.device != input.device:
        raise ValueError(f"weight: expected device {input.device} (input's), got {weight.device}")


def sums_dtype(dtype: object) -> None:
    """``dtype`` is None or a real floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating torch.dtype or None, got {dtype!r}")


_KINDS = {str: "a string", float: "a number", bool: "True or False"}


def option_types(options: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Every option is known and of the type of its default. Asked after the dispatcher refused a
    call, whose message is about schemas and comes before any code of ours runs."""
    for name, value in options.items():
        if name not in defaults:
            raise TypeError(f"{name}: no such option; there are {', '.join(sorted(defaults))}")
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


def target_values(input: Tensor, target: Tensor, ignore_index: int | None = None) -> None:
    """Every target lies in [0, 1], or is one of the class numbers, or ``ignore_index``. Reads the
    tensor, and waits for its device."""
    if target.dtype == torch.bool or target.numel() == 0:
        return
    numbers = input.dim() > 1 and target.dtype in INDEX_DTYPES and target.shape != input.shape
    if ignore_index is not None:
        # an unsigned dtype would take -100 for the number it wraps to
        own = target if target.is_floating_point() else target.long()
        target = target[own != ignore_index]
        if target.numel() == 0:
            return
    if numbers:
        _class_numbers(target, input.shape[1], ignore_index)
        return
    signed = _SIGNED.get(target.dtype)  # aminmax knows no wide unsigned types
    low, high = (bound.item() for bound in torch.aminmax(target.view(signed) if signed else target))
    if signed and low < 0:
        low, high = 0, low + 2 * torch.iinfo(signed).max + 2
    if not (low >= 0 and high <= 1):
        raise ValueError(f"target: expected values in [0, 1], got values from {low} to {high}")


def _class_numbers(target: Tensor, classes: int, ignore_index: int | None) -> None:
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low >= 0 and high < classes:
        return
    other = "" if ignore_index is None else f", or {ignore_index} (ignore_index)"
    hint = "" if ignore_index is not None else "; ignore_index leaves a value out"
    raise ValueError(
        f"target: expected class numbers from 0 to {classes - 1}{other}, got "
        f"{low if low < 0 else high}{hint}"
    )
