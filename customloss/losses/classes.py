"""Which classes are scored and what they weigh.

This acts on sums that are kept per class, a few numbers, so the pass over the data knows nothing of
it. The small tensors that it needs are made once and kept, because a copy to a device waits for
that device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._ops import is_dtensor
from customloss._ops.modes import transformed
from customloss._spec import checks
from customloss._spec.arguments import Data
from customloss._spec.words import INPUT
from customloss.reference.losses import without_hidden
from customloss.reference.sums import sums_dtype

# ---- small tensors that are kept -----------------------------------------------------------------


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps the tensors that ``make(device, *key)`` returns.

    The result is called as ``(like, *key)``, with any tensor ``like`` on the device. Once for each
    device and key it makes the tensor on the CPU and copies it to the device.

    Where a new tensor would not be an ordinary one (while compiling, under transforms and modes, in
    a CUDA graph that is being captured) it is made on the device and not kept. So ``make`` may only
    fill tensors, and copies nothing from the CPU.
    """

    @lru_cache(maxsize=256)
    def once(device: torch.device, *key: Any) -> Tensor:
        with torch.inference_mode(False):
            return make(torch.device("cpu"), *key).to(device)

    @wraps(make)
    def from_cache(like: Tensor, *key: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(like.device, *key)
        # beside a fake tensor the new one has to be fake too
        with getattr(like, "fake_mode", None) or nullcontext():
            return (
                once(like.device, *key)
                if _makes_ordinary_tensors(like.device)
                else make(like.device, *key)
            )

    from_cache.forget = once.cache_clear  # type: ignore[attr-defined]
    return from_cache


def _makes_ordinary_tensors(device: torch.device) -> bool:
    if torch._C._len_torch_dispatch_stack() or transformed():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


@kept
def numbers(device: torch.device, values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """``values`` as a tensor."""
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


# ---- the classes of a call -----------------------------------------------------------------------


class Classes(NamedTuple):
    """The classes of an input that are scored."""

    weight: Tensor | None  # of every class of the input
    runs: tuple[tuple[int, int], ...] | None  # [start, stop) of class numbers; None: all

    def scored(self, values: Tensor) -> Tensor:
        """``values[..., classes]``, in slices: an index tensor would be copied to the device."""
        if self.runs is None:
            return values
        parts = [values[..., start:stop] for start, stop in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def of(self, sums: Tensor, pooled: bool) -> tuple[Tensor, Tensor | None]:
        """The sums that are scored, and the weights of their classes. Pooled sums are weighted
        before they are added, so that no weights are left."""
        sums = self.scored(sums)
        weight = self.weight
        if weight is not None:
            sums, weight = without_hidden(sums, self.scored(weight).to(sums.dtype))
            sums = sums * weight if pooled else sums
        return (sums.sum(-1, keepdim=True), None) if pooled else (sums, weight)

    def learned(self) -> bool:
        """Whether the weights need a gradient."""
        return self.weight is not None and self.weight.requires_grad

    def hidden(self, input: Tensor, score: bool, pointwise: bool) -> Tensor:
        """Which classes count in none of the parts that a loss has, ``[classes]``."""
        rows = [row for row, asked in zip(self.table(input), (score, pointwise)) if asked]
        return (torch.stack(rows) == 0).all(0)

    def table(self, input: Tensor) -> Tensor:
        """``[2, classes]``: the weight of each class in the score, and in the pointwise loss, which
        is about all classes."""
        count = input.shape[1] if input.dim() > 1 else 1
        scored = _scored(input, self.runs, count, sums_dtype(input.device))
        return scored if self.weight is None else self.weight.to(scored.dtype) * scored


def without_hidden_elements(
    data: Data, classes: Classes, hidden: Tensor, softmax: bool
) -> tuple[Data, Classes]:
    """The operands with 0 for what is not finite in ``hidden`` classes, for where autograd
    differentiates the reference: a gradient of 0 by a NaN, times its derivative, is a NaN. The
    weights of classes that lost an element become a constant 0, as in ``without_hidden``.

    Logits of a ``softmax`` stay, because each of them is part of every class.
    """
    shape, weight = data.input.shape, classes.weight
    along = hidden.reshape(-1, *(1 for _ in shape[2:]))
    cleared: list[Tensor | None] = []
    for place, operand in enumerate(data):
        if operand is None or not operand.is_floating_point() or (softmax and place == INPUT):
            cleared.append(operand)
            continue
        lost = along & ~operand.isfinite()
        cleared.append(torch.where(lost, torch.zeros_like(operand), operand))
        if weight is not None:
            lost = lost.expand(shape)
            lost = lost.transpose(0, 1).flatten(1).any(1) if len(shape) > 1 else lost.any()
            weight = torch.where(lost, torch.zeros_like(weight), weight)
    input, target, each = cleared
    assert input is not None and target is not None
    return Data(input, target, each), classes._replace(weight=weight)


@kept
def _scored(
    device: torch.device, runs: tuple[tuple[int, int], ...] | None, count: int, dtype: torch.dtype
) -> Tensor:
    """``[2, classes]``: 1, but in the first row 0 for classes that are not scored."""
    table = torch.ones((2, count), dtype=dtype, device=device)
    if runs is not None:
        table[0].zero_()
        for start, stop in runs:
            table[0, start:stop].fill_(1)
    return table


def asked_for(input: Tensor, options: dict[str, Any]) -> Classes | None:
    """Takes the class options out of ``options``; None if all classes count alike."""
    weight = options.pop("class_weight", None)
    classes = options.pop("classes", None)
    background = options.pop("include_background", True)
    if weight is None and classes is None and background is True:
        return None
    count = input.shape[1] if input.dim() > 1 else 1
    if weight is not None:
        weight = per_class("class_weight", weight, input)
    return Classes(weight, _runs(classes, background, count))


def as_tensor(name: str, values: object, like: Tensor | None = None) -> Tensor:
    """One number per class, as a tensor; a sequence becomes one on the device of ``like``."""
    if isinstance(values, Tensor):
        if values.dim() != 1:
            raise ValueError(f"{name}: expected one number per class, got {list(values.shape)}")
        if values.dtype == torch.bool or values.is_complex():
            raise TypeError(f"{name}: expected a float or integer dtype, got {values.dtype}")
        return values
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name}: expected a Tensor or a sequence of numbers, got {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected numbers, got {value!r}")
        if not 0 <= value <= sys.float_info.max:
            raise ValueError(f"{name}: expected finite numbers >= 0, got {checks.shown(value)}")
    if like is None:
        return torch.tensor(list(values), dtype=torch.float64)
    return numbers(like, tuple(values), sums_dtype(like.device))


def per_class(name: str, values: object, input: Tensor) -> Tensor:
    """One number for each class of the input, on its device."""
    tensor = is_dtensor.gathered(as_tensor(name, values, input))
    count = input.shape[1] if input.dim() > 1 else 1
    if tensor.shape[0] != count:
        raise ValueError(
            f"{name}: expected one number for each of the {count} classes of the input, got "
            f"{tensor.shape[0]}"
        )
    if tensor.device != input.device:
        raise ValueError(f"{name}: expected device {input.device} (input's), got {tensor.device}")
    return tensor


def _runs(classes: object, background: object, count: int) -> tuple[tuple[int, int], ...] | None:
    """The scored classes as half-open runs of consecutive numbers; None if all are scored."""
    if not isinstance(background, bool):
        raise TypeError(f"include_background: expected True or False, got {background!r}")
    if not background:
        if classes is not None:
            raise ValueError(
                f"include_background: expected True with classes={classes!r}, which says it all, "
                "got False"
            )
        if count == 1:
            raise ValueError(
                "include_background: expected True for an input with one class, got False"
            )
        return ((1, count),)
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes: expected a sequence of class numbers, got {classes!r}")
    runs: list[tuple[int, int]] = []
    seen: set[int] = set()
    for number in classes:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"classes: expected integers, got {number!r}")
        if not 0 <= number < count:
            raise ValueError(f"classes: expected numbers from 0 to {count - 1}, got {number}")
        if number in seen:
            raise ValueError(f"classes: expected each class once, got {number} again")
        seen.add(number)
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    if not runs:
        raise ValueError("classes: expected at least one class, got none")
    return tuple(runs)
