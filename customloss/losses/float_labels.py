"""Class numbers that came as floats, as MONAI loads and resizes labels: ``[N, 1, *spatial]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss._ops import is_dtensor
from customloss._ops.modes import transformed
from customloss._spec import checks, operands
from customloss._spec.arguments import Data

_LOWEST = torch.iinfo(torch.int32).min
# labels that no class has: of a number that is none, and of a NaN that does not count
_NO_LABEL, _MISSING = _LOWEST, _LOWEST + 1


def read(data: Data, given: dict[str, Any]) -> Data:
    """The batch as kernels read it: float class numbers become integers.

    The shape says what they are, since a dense target of several classes has the shape of the
    input. Numbers that are not whole are no labels. Where the pixel has a weight of 0 they do not
    count. Elsewhere they raise on the CPU; where nothing may wait they become a label that no class
    has. With ``nan_targets="ignore"`` a NaN becomes an ignored label; if there is none in the
    options, ``given``, one is added to them.
    """
    input, target, weight = data
    if not _are_labels(input, target):
        return data
    numbers = target.to(torch.int32)
    whole = numbers == target
    if given.get("nan_targets") == "ignore":
        missing = target.isnan()
        numbers = torch.where(missing, _ignored_label(given), numbers)
        whole = whole | missing
    if not _may_look(data):
        return data._replace(target=torch.where(whole, numbers, _NO_LABEL))
    if bool(whole.all()):
        return data._replace(target=numbers)
    wrong = ~whole
    if isinstance(weight, Tensor):
        wrong = wrong & _counts(weight, input)
    if bool(wrong.any()):
        raise ValueError(
            "target: expected whole class numbers in a float target of shape "
            f"{list(target.shape)}, got {target[wrong][0].item()}: labels are resized with "
            "mode='nearest', and a dense target has the shape of input"
        )
    return data._replace(target=torch.where(whole, numbers, _NO_LABEL))


def _are_labels(input: object, target: object) -> bool:
    """Whether a float target holds class numbers. What is no tensor is for others to refuse."""
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.requires_grad:
        return False
    if not isinstance(input, Tensor) or not input.dim() == target.dim() > 2:
        return False
    return target.shape[1] == 1 != input.shape[1] and target.shape[2:] == input.shape[2:]


def _ignored_label(given: dict[str, Any]) -> int:
    """A label that the options ignore, which int32 holds."""
    ignored = checks.ignored(given.get("ignore_index")) or ()
    for label in ignored:
        if abs(label) < 2**31:
            return label
    given["ignore_index"] = (*ignored, _MISSING)
    return _MISSING


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
