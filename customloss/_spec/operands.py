"""Checks of input, target and weight before any kernel runs: types, dtypes, shapes and devices.

Only ``target_values`` reads the data of a tensor, and it runs only for ``check_target=True``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customloss._spec import checks, hints
from customloss._spec.arguments import Elements
from customloss._spec.words import IGNORE, SOFTMAX

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


def are_tensors(input: object, target: object, weight: object) -> None:
    """The three operands are tensors (``weight`` may be None)."""
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense (strided) tensor, got {value.layout}")


def checked_target(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    *,
    no_sample: bool = False,
) -> Tensor:
    """Dtypes, shapes and devices fit together, and there is a group to score. With ``no_sample`` a
    batch without samples passes, although it has no group.

    Returns the target with the rank of the input: class numbers as ``[N, 1, *spatial]``.
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
    if not _alike(target.shape, shape):
        target = _class_index(input, target)
    elif elements.ignore_index is not None and elements.activation == SOFTMAX:
        raise ValueError(
            "ignore_index: expected None for a dense target with activation='softmax' (what would "
            f"one class of a pixel say?), got {hints.listed(elements.ignore_index)}: pass class "
            "numbers, or a weight of 0"
        )
    elif elements.nan_targets == IGNORE and elements.activation == SOFTMAX:
        raise ValueError(
            "nan_targets: expected 'propagate' for a dense target with activation='softmax' (what "
            "would one class of a pixel say?), got 'ignore': pass a weight of 0 where it is NaN"
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


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are equal. The ranks are compared first: Python would compare [N, H, W]
    with [N, C, H, W] size by size, which in a trace forbids that H is C."""
    return len(one) == len(other) and one == other


def _class_index(input: Tensor, target: Tensor) -> Tensor:
    """Class numbers, one per sample and place, as ``[N, 1, *spatial]``."""
    shape, came = input.shape, target.shape
    with_class_dim = (*shape[:1], 1, *shape[2:])
    without_class_dim = (*shape[:1], *shape[2:])
    if len(shape) < 2 or not (_alike(came, with_class_dim) or _alike(came, without_class_dim)):
        expected = f"the shape of input, {list(shape)}"
        if len(shape) > 1:
            expected += f", or {list(without_class_dim)} for class numbers"
        raise ValueError(f"target: expected {expected}, got {list(came)}")
    if shape[1] == 1:
        raise ValueError(
            f"target: expected the shape of input, {list(shape)}, got {list(came)}: an input with "
            "one class has no class numbers (target.unsqueeze(1) makes it dense)"
        )
    if target.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"target: expected uint8, int8, int16, int32 or int64 for class numbers {list(came)}, "
            f"got {target.dtype}; a dense target has the shape of input, {list(shape)}"
        )
    return target if len(came) == len(shape) else target.unsqueeze(1)


def _weight(weight: Tensor, input: Tensor) -> None:
    if weight.dtype not in _TARGETS:
        raise TypeError(f"weight: expected a bool, integer or float dtype, got {weight.dtype}")
    came, shape = weight.shape, input.shape
    fits = len(came) <= len(shape) and all(
        size == 1 or size == wanted for size, wanted in zip(reversed(came), reversed(shape))
    )
    if not fits:
        raise ValueError(
            f"weight: expected a shape that broadcasts to {list(shape)} (input's), got {list(came)}"
        )
    if weight.device != input.device:
        raise ValueError(f"weight: expected device {input.device} (input's), got {weight.device}")


def target_values(
    input: Tensor,
    target: Tensor,
    ignore_index: int | Sequence[int] | None = None,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
) -> None:
    """Every target lies in [0, 1], or is one of the class numbers, or does not count. This reads
    the tensor and waits for its device."""
    if target.dtype == torch.bool or target.numel() == 0:
        return
    index_dtype = input.dim() > 1 and target.dtype in INDEX_DTYPES
    is_index = index_dtype and not _alike(target.shape, input.shape)
    for ignored in checks.ignored(ignore_index) or ():
        # compared in an unsigned dtype, -100 would wrap to a number that may be a label
        comparable = target if target.is_floating_point() else target.long()
        target = target[comparable != ignored]
        if target.numel() == 0:
            return
    if nan_targets == "ignore" and target.is_floating_point():
        target = target[~target.isnan()]
        if target.numel() == 0:
            return
    if is_index and out_of_range == "ignore":
        return
    if is_index:
        _class_numbers(target, input.shape[1], checks.ignored(ignore_index))
        return
    signed = _SIGNED.get(target.dtype)  # aminmax does not take the wide unsigned dtypes
    low, high = (bound.item() for bound in torch.aminmax(target.view(signed) if signed else target))
    if signed and low < 0:
        low, high = 0, low + 2 * torch.iinfo(signed).max + 2
    if not (low >= 0 and high <= 1):
        raise ValueError(f"target: expected values in [0, 1], got values from {low} to {high}")


def _class_numbers(target: Tensor, classes: int, ignored: tuple[int, ...] | None) -> None:
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= classes:
        raise hints.unknown_label(low if low < 0 else high, classes, ignored)
