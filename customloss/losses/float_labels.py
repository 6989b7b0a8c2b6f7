"""Class numbers that came as floats, as MONAI loads and resizes labels: ``[N, 1, *spatial]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss._ops import is_dtensor
from customloss._ops.modes import transformed
from customloss._spec import checks, hints, operands
from customloss._spec.arguments import Data
from customloss._spec.hints import MISSING, NO_LABEL


def read(data: Data, given: dict[str, Any]) -> Data:
    """The batch as kernels read it: float class numbers become integers, of 64 bits where it is not
    known that 32 will do, since what is ignored may be large.

    The shape says what they are, since a dense target of several classes has the shape of the
    input. Numbers that are not whole are no labels. Where the pixel has a weight of 0 they do not
    count. Elsewhere they raise on the CPU; where nothing may wait they become a label that no class
    has. With ``nan_targets="ignore"`` a NaN becomes an ignored label; if there is none in the
    options, ``given``, one is added to them.
    """
    input, target, _ = data
    if not _are_labels(input, target):
        return data
    looks = _may_look(data)
    if looks and (narrow := _narrow(target)) is not None:
        return data._replace(target=narrow)
    numbers = target.to(torch.int64)
    # an infinite number becomes a finite one, which in a small dtype is infinite again
    whole = (numbers == target) & (target.abs() < 2.0**63)
    if given.get("nan_targets") == "ignore":
        missing = target.isnan()
        if not looks or bool(missing.any()):
            numbers = torch.where(missing, _ignored_label(given), numbers)
            whole = whole | missing
    read = data._replace(target=torch.where(whole, numbers, NO_LABEL))
    if looks:
        _refuse(read, target, whole, given)
    return read


def _narrow(target: Tensor) -> Tensor | None:
    """The labels in int32, which takes a third of the time, if all of them are whole and in its
    range; else None. An infinite number becomes one end of that range, which is left out."""
    if target.numel() == 0:
        return None
    numbers = target.to(torch.int32)
    low, high = (int(end) for end in torch.aminmax(numbers))
    inside = low > -(2**31) and high < 2**31 - 1
    return numbers if inside and bool((numbers == target).all()) else None


def _refuse(read: Data, target: Tensor, whole: Tensor, given: dict[str, Any]) -> None:
    """Raises for a number that is not whole and counts. The kernels refuse whole numbers that are
    no class, but for a batch with a label that the caller has not: they would show it."""
    input, numbers, weight = read
    wrong = ~whole
    if given.get("ignore_index") == (MISSING,) and given.get("out_of_range", "raise") == "raise":
        wrong = (numbers < 0) | (numbers >= input.shape[1])
        wrong = wrong & (numbers != MISSING)
    if not bool(wrong.any()):
        return
    if isinstance(weight, Tensor):
        wrong = wrong & _counts(weight, input)
    not_whole = wrong & ~whole
    if bool(not_whole.any()):
        raise ValueError(
            "target: expected whole class numbers of 64 bits in a float target of shape "
            f"{list(target.shape)}, got {target[not_whole][0].item()}: labels are resized with "
            "mode='nearest', and a dense target has the shape of input"
        )
    if bool(wrong.any()):
        raise hints.unknown_label(int(numbers[wrong][0]), input.shape[1], None)


def _are_labels(input: object, target: object) -> bool:
    """Whether a float target holds class numbers. What is no tensor is for others to refuse."""
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.requires_grad:
        return False
    if not isinstance(input, Tensor) or not input.dim() == target.dim() > 2:
        return False
    return target.shape[1] == 1 != input.shape[1] and target.shape[2:] == input.shape[2:]


def _ignored_label(given: dict[str, Any]) -> int:
    """A label that the options ignore."""
    ignored = checks.ignored(given.get("ignore_index"))
    if ignored is None:
        given["ignore_index"] = ignored = (MISSING,)
    return ignored[0]


def _may_look(data: Data) -> bool:
    """Whether Python may branch on the values: nothing waits, and the tensors are ordinary ones."""
    if torch.compiler.is_compiling() or transformed():
        return False
    if not all(not isinstance(each, Tensor) or each.is_cpu for each in data):
        return False
    return not (torch._C._len_torch_dispatch_stack() or is_dtensor.sharded(*data))


def _counts(weight: Tensor, input: Tensor) -> Tensor:
    """Where a pixel counts for any of its classes, ``[N, 1, *spatial]``."""
    if operands.of_pixels(weight.shape, input.shape):
        return weight.unsqueeze(1) != 0
    if not operands.broadcasts(weight.shape, input.shape):
        return torch.ones_like(input[:, :1], dtype=torch.bool)  # its shape is refused elsewhere
    return (weight.expand(input.shape) != 0).any(1, keepdim=True)
