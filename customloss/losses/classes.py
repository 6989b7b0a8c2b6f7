"""Which classes are scored and what they weigh.

This acts on sums that are kept per class, a few numbers, so the pass over the data knows nothing of
it. The small tensors that it needs are made once and kept, because a copy to a device waits for
that device.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from customloss._ops import is_dtensor, modes
from customloss._ops.modes import holds_values, ordinary_tensors
from customloss._spec import checks
from customloss.reference.losses import without_hidden
from customloss.reference.sums import sums_dtype

# ---- small tensors that are kept -----------------------------------------------------------------


class Recent:
    """The tensors that were asked for last, within a number of bytes and of entries.

    The last one is kept whatever its size, since a loss asks for the same one in every step.
    """

    def __init__(self, most_bytes: int = 2**24, most_entries: int = 256) -> None:
        self._most_bytes, self._most_entries = most_bytes, most_entries
        self._tensors: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """The tensor of ``key``, made if it is not there."""
        with self._lock:
            found = self._tensors.get(key)
            if found is not None:
                self._tensors.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = made
                self._bytes += _size(key, made)
            while len(self._tensors) > 1 and (
                self._bytes > self._most_bytes or len(self._tensors) > self._most_entries
            ):
                self._bytes -= _size(*self._tensors.popitem(last=False))
        return made

    def clear(self) -> None:
        with self._lock:
            self._tensors.clear()
            self._bytes = 0


def _size(key: tuple[Any, ...], tensor: Tensor) -> int:
    """The bytes of a tensor and of its key, which may hold all of its numbers once more."""
    numbers = sum(len(part) for part in key if isinstance(part, tuple))
    return tensor.nbytes + 32 * numbers  # a Python float and its place in a tuple


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps the tensors that ``make(device, *key)`` returns.

    The result is called as ``(like, *key)``, with any tensor ``like`` on the device. Once for each
    device and key it makes the tensor on the CPU and copies it to the device.

    Where a new tensor would not be an ordinary one (while compiling, under transforms and modes, in
    a CUDA graph that is being captured) it is made on the device and not kept. So ``make`` may only
    fill tensors, and copies nothing from the CPU.
    """

    recent = Recent()

    def once(device: torch.device, *key: Any) -> Tensor:
        def new() -> Tensor:
            with torch.inference_mode(False):
                return make(torch.device("cpu"), *key).to(device)

        return recent.get((device, *key), new)

    @wraps(make)
    def from_cache(like: Tensor, *key: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(like.device, *key)
        # beside a fake tensor the new one has to be fake too
        with getattr(like, "fake_mode", None) or nullcontext():
            return (
                once(like.device, *key)
                if ordinary_tensors(like.device)
                else make(like.device, *key)
            )

    from_cache.forget = recent.clear  # type: ignore[attr-defined]
    return from_cache


@kept
def numbers(device: torch.device, values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """``values`` as a tensor."""
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


# ---- the classes of a call -----------------------------------------------------------------------


_Runs = tuple[tuple[int, int], ...] | None


class Classes(NamedTuple):
    """The classes of an input that are scored."""

    weight: Tensor | None  # of every class of the input
    runs: _Runs  # [start, stop) of class numbers; None: all
    constant: bool = False  # whether nothing can be differentiated by the weights

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
            weight = self.scored(weight).to(sums.dtype)
            sums, weight = without_hidden(sums, weight, self.constant)
            sums = sums * weight if pooled else sums
        return (sums.sum(-1, keepdim=True), None) if pooled else (sums, weight)

    def learned(self) -> bool:
        """Whether the weights need a gradient."""
        return self.weight is not None and self.weight.requires_grad

    def without(self, removed: Tensor) -> Classes:
        """With a constant weight of 0 for the classes that are ``removed``."""
        if self.weight is None:
            return self
        return self._replace(
            weight=torch.where(removed, torch.zeros_like(self.weight), self.weight)
        )


ALL = Classes(None, None)


def _count(input: Tensor) -> int:
    """How many classes an input has."""
    return input.shape[1] if input.dim() > 1 else 1


def table(input: Tensor, scored: Classes | None, pointwise: Classes | None) -> Tensor | None:
    """``[2, classes]``: the weight of each class in the score, and in the pointwise loss; 0 where
    it does not count. None if all of them count alike in both."""
    if scored is None and pointwise is None:
        return None
    one = scored or ALL
    other = pointwise or Classes(one.weight, None)
    count = _count(input)
    of_rows = (one.runs, other.runs)
    plain = _chosen(input, of_rows, count, sums_dtype(input.device))
    if one.weight is other.weight is None:
        return plain
    # selected, since the weight of a class that does not count may be anything
    chosen = _chosen(input, of_rows, count, torch.bool)
    if one.weight is other.weight and one.weight is not None:
        return torch.where(chosen, one.weight.to(plain.dtype), plain)
    rows = zip(chosen.unbind(0), plain.unbind(0), (one.weight, other.weight))
    return torch.stack([
        row if weight is None else torch.where(own, weight.to(row), row)
        for own, row, weight in rows
    ])  # fmt: skip


def hidden(table: Tensor, has_score: bool, has_pointwise: bool) -> Tensor:
    """Which classes count in no part of a loss, of those that it has; ``table`` is theirs."""
    rows = zip(table.unbind(0), (has_score, has_pointwise))
    return torch.stack([row == 0 for row, has in rows if has]).all(0)


@kept
def _chosen(
    device: torch.device, of_rows: tuple[_Runs, _Runs], count: int, dtype: torch.dtype
) -> Tensor:
    """``[2, classes]``: 1 for classes in the runs of a row, else 0."""
    table = torch.zeros((2, count), dtype=dtype, device=device)
    for row, runs in zip(table.unbind(0), of_rows):
        for start, stop in ((0, count),) if runs is None else runs:
            row[start:stop].fill_(1)
    return table


def asked_for(input: Tensor, options: dict[str, Any]) -> Classes | None:
    """Takes the class options out of ``options``; None if all classes count alike."""
    weight = options.pop("class_weight", None)
    classes = options.pop("classes", None)
    background = options.pop("include_background", True)
    if weight is None and classes is None and background is True:
        return None
    count = _count(input)
    constant = not isinstance(weight, Tensor) or modes.is_constant(weight)
    if weight is not None:
        weight = per_class("class_weight", weight, input)
    return Classes(weight, _runs(classes, background, count), constant)


def of_pointwise(
    input: Tensor, class_weight: object, own_weight: object, own: object
) -> Classes | None:
    """The classes of a pointwise loss: all of them, with the weights of the score, unless it has
    weights (``own_weight``) or a choice of classes (``own``) of its own."""
    name, weight = "pointwise_class_weight", own_weight
    if weight is None:
        name, weight = "class_weight", class_weight
    count = _count(input)
    runs = _runs(own, True, count, "pointwise_classes")
    return Classes(None if weight is None else per_class(name, weight, input), runs)


def as_tensor(name: str, values: object, like: Tensor | None = None) -> Tensor:
    """One number per class, as a tensor; a sequence becomes one on the device of ``like``."""
    if isinstance(values, Tensor):
        if values.dim() != 1:
            cure = f": {name}.flatten()" if values.numel() in values.shape else ""
            raise ValueError(
                f"{name}: expected one number per class, got {list(values.shape)}{cure}"
            )
        if values.dtype == torch.bool or values.is_complex():
            raise TypeError(f"{name}: expected a float or integer dtype, got {values.dtype}")
        return values
    listed = _sequence(name, values)
    _check_weights(name, listed)
    if like is None:
        return torch.tensor(listed, dtype=torch.float64)
    return numbers(like, tuple(listed), sums_dtype(like.device))


def as_floating(weights: Tensor) -> Tensor:
    """Weights in a dtype that holds fractions, which a state dict may have: integers become what a
    list of the same numbers becomes. A parameter stays the one that was given."""
    if weights.is_floating_point() or isinstance(weights, Parameter):
        return weights
    return weights.to(sums_dtype(weights.device))


def check_values(name: str, weights: Tensor) -> None:
    """Checks the numbers of a constant tensor on the CPU, as those of a sequence are. Nothing waits
    for another device, and a tensor that is learned has other values later."""
    if (
        type(weights) is Tensor
        and weights.is_cpu
        and not weights.requires_grad
        and holds_values(weights)
    ):
        _check_weights(name, weights.flatten().tolist())


def _sequence(name: str, values: object) -> list[Any]:
    """The elements of a sequence; an array of one dimension has become one before."""
    shape = getattr(values, "shape", None)
    if isinstance(shape, tuple):
        raise ValueError(f"{name}: expected one number per class, got shape {list(shape)}")
    if isinstance(values, str) or not isinstance(values, Sequence):
        cure = ""
        if values == "balanced" and name != "pos_weight":  # scikit-learn's word
            cure = (
                ": count = torch.bincount(labels.flatten(), minlength=C) gives count.sum() / "
                "(C * count)"
            )
        raise TypeError(f"{name}: expected a Tensor or a sequence of numbers, got {values!r}{cure}")
    return list(values)


def _check_weights(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected numbers, got {value!r}")
        if not 0 <= value <= sys.float_info.max:
            raise ValueError(f"{name}: expected finite numbers >= 0, got {checks.shown(value)}")


def per_class(name: str, values: object, input: Tensor) -> Tensor:
    """One number for each class of the input, on its device."""
    tensor = is_dtensor.gathered(as_tensor(name, values, input))
    count = _count(input)
    if tensor.shape[0] != count:
        raise ValueError(
            f"{name}: expected one number for each of the {count} classes of the input, got "
            f"{tensor.shape[0]}"
        )
    if tensor.device != input.device:
        raise ValueError(f"{name}: expected device {input.device} (input's), got {tensor.device}")
    return tensor


def _runs(classes: object, background: object, count: int, name: str = "classes") -> _Runs:
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
        raise TypeError(f"{name}: expected a sequence of class numbers, got {classes!r}")
    runs: list[tuple[int, int]] = []
    seen: set[int] = set()
    for number in classes:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: expected integers, got {number!r}")
        if not 0 <= number < count:
            raise ValueError(f"{name}: expected numbers from 0 to {count - 1}, got {number}")
        if number in seen:
            raise ValueError(f"{name}: expected each class once, got {number} again")
        seen.add(number)
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    if not runs:
        raise ValueError(f"{name}: expected at least one class, got none")
    return tuple(runs)
