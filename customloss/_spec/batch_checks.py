"""What the values of a batch say about mistakes: masks of 0 and 255, logits for probabilities, ...

Nothing else reads the data of a tensor. It happens for ``check_target=True`` and for the first
batch of a module. Every number that the checks need is one reduction on the device, without a copy
of the input's size, and all of them are brought to the host at once. Only where something seems
wrong more is read: whether weights hide it, and what to say.

A mistake is a function that returns a message, or None. ``ERRORS`` lists those that are certain,
``WARNINGS`` those that may be meant. To notice one more, write a function and list it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, isnan
from typing import NamedTuple

import torch
from torch import Tensor

from customloss._spec import hints
from customloss.reference.sums import sums_dtype


class Batch(NamedTuple):
    """What a call reads, and how. The operands may be the local parts of DTensors."""

    input: Tensor
    target: Tensor  # of the input's rank: class numbers are [N, 1, *spatial]
    weight: Tensor | None
    shape: tuple[int, ...]  # of the whole input
    labels: bool  # the target holds class numbers
    activation: str
    scale: float
    offset: float
    ignored: tuple[int, ...]
    ignores_out_of_range: bool
    ignores_nan: bool  # a NaN target is not there
    exact: bool  # False lets the rounding of averages and interpolations pass
    counted: Tensor | None = None  # [classes]: which of them any part of the loss counts; None: all

    @property
    def classes(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    def beyond(self, low: float, high: float, dtype: torch.dtype) -> bool:
        """Whether values from ``low`` to ``high`` leave [0, 1]."""
        exact = self.exact or not dtype.is_floating_point
        slack = 0.0 if exact else 16 * torch.finfo(dtype).eps
        return low < -slack or high > 1 + slack


Numbers = dict[str, float]
Mistake = Callable[[Batch, Numbers], str | None]


def found(batch: Batch) -> tuple[list[str], list[str]]:
    """The messages of what is certainly wrong with a batch, and of what may be meant."""
    hides = batch.weight is not None or batch.ignored or batch.counted is not None
    for masked in (False, True) if hides else (False,):
        numbers = _read(batch, masked)
        errors = _messages(ERRORS, batch, numbers) if numbers.get("counted", 1) else []
        warnings = _messages(WARNINGS, batch, numbers)
        if not (errors or warnings):
            break
    return errors, warnings


def _messages(mistakes: Sequence[Mistake], batch: Batch, numbers: Numbers) -> list[str]:
    return [text for mistake in mistakes if (text := mistake(batch, numbers))]


# ---- reading -------------------------------------------------------------------------------------


def _read(batch: Batch, masked: bool) -> Numbers:
    """The numbers that the mistakes look at, in one transfer. Some are there only for some calls.

    ``input_low``, ``input_high``, ``target_low``, ``target_high``, ``weight_low``: the bounds.
    ``counted``: whether anything counts. ``rows_off``, ``lines_off``: how far from 1 the sums over
    the classes, and over the last dimension, get.

    With ``masked``, elements that do not count are left out, which takes memory of the input's
    size; else ignored targets alone are.
    """
    input, target, weight = batch.input, batch.target, batch.weight
    found: dict[str, Tensor] = {}
    kept = _kept(batch, masked)
    counts = _counts(batch, kept) if masked else kept
    found["input_low"], found["input_high"] = _bounds(input, counts if masked else None)
    if weight is not None:
        found["weight_low"], high = _bounds(weight, kept if masked else None)
        found["counted"] = (found["weight_low"] != 0) | (high != 0)
    of_target = counts
    if counts is not None:
        found["counted"] = counts.any()
        of_target = counts.any(1, keepdim=True) if batch.labels else counts
    found["target_low"], found["target_high"] = _bounds(target, of_target)
    # a local part may have only some of the classes
    if not batch.labels and batch.classes > 1 and input.shape[1] == batch.classes:
        if batch.activation == "softmax":
            found["rows_off"] = _off(target, 1, counts, batch.counted if masked else None)
        if input.dim() > 2 and input.shape[1] == input.shape[-1] and counts is None:
            found["rows_off"], found["lines_off"] = _off(target, 1), _off(target, -1)
    dtype = sums_dtype(input.device)
    values = torch.stack([value.to(dtype) for value in found.values()]).tolist()
    return dict(zip(found, values))


def _counts(batch: Batch, kept: Tensor | None) -> Tensor | None:
    """Where an element counts: it is ``kept``, and weighs anything."""
    if batch.weight is None:
        return kept
    weighs = batch.weight != 0
    weighs = weighs.reshape((1,) * (batch.input.dim() - weighs.dim()) + weighs.shape)
    return weighs if kept is None else weighs & kept


def _kept(batch: Batch, masked: bool) -> Tensor | None:
    """Which elements are not ignored, and with ``masked`` of a class that counts, broadcastable to
    the input; None: all."""
    kept = None
    if masked and batch.counted is not None:
        kept = batch.counted.reshape(-1, *(1 for _ in batch.shape[2:]))[None]
    for number in batch.ignored:
        other = _comparable(batch.target) != number
        kept = other if kept is None else kept & other
    if batch.ignores_nan and batch.target.is_floating_point():
        known = ~batch.target.isnan()
        kept = known if kept is None else kept & known
    return kept


def _comparable(values: Tensor) -> Tensor:
    """In an unsigned dtype -100 would wrap to a number that may be a label."""
    return values if values.is_floating_point() else values.long()


def _bounds(values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and largest value that counts; NaN if one of them is NaN."""
    values = _reducible(values)
    if counts is None:
        return torch.aminmax(values)
    info = torch.finfo if values.is_floating_point() else torch.iinfo
    limits = info(values.dtype)
    return (
        torch.where(counts, values, limits.max).amin(),
        torch.where(counts, values, limits.min).amax(),
    )


def _reducible(values: Tensor) -> Tensor:
    """The values in a dtype that torch reduces."""
    if values.dtype == torch.bool:
        return values.view(torch.uint8)
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return values.to(sums_dtype(values.device))
    return values


def _off(
    target: Tensor, dim: int, counts: Tensor | None = None, counted: Tensor | None = None
) -> Tensor:
    """How far the sums along ``dim`` get from 1, where anything counts. If only some classes are
    ``counted`` the others may be anything, so that a sum may be less."""
    values = _reducible(target)
    if counted is not None:
        kept = counted.reshape(-1, *(1 for _ in target.shape[2:]))
        values = torch.where(kept, values, torch.zeros_like(values))
    sums = values.sum(dim, dtype=sums_dtype(values.device) if values.is_floating_point() else None)
    off = (sums - 1).abs() if counted is None else (sums - 1).clamp_min(0)
    if counts is None:
        return off.amax()
    return torch.where(counts.any(dim), off, torch.zeros_like(off)).amax()


# ---- what is certainly wrong ---------------------------------------------------------------------


def _swapped(batch: Batch, numbers: Numbers) -> str | None:
    low, high = numbers["target_low"], numbers["target_high"]
    if not batch.target.is_floating_point() or not batch.beyond(low, high, batch.target.dtype):
        return None
    if (numbers["input_low"], numbers["input_high"]) != (0, 1):
        return None
    if not _two_values(batch.input, 0, 1):
        return None
    return (
        "input, target: expected logits and then their targets, got an input of 0 and 1 and a "
        f"target {_span(low, high)}: they seem to be swapped"
    )


def _no_probabilities(batch: Batch, numbers: Numbers) -> str | None:
    low, high = numbers["input_low"], numbers["input_high"]
    # beyond a slope of 1 such a sigmoid sharpens probabilities
    sharpens = batch.activation == "sigmoid" and batch.offset == 0.5 and batch.scale > 4
    if batch.activation != "none" and not sharpens:
        return None
    # a logit that overflowed, or is NaN, is for a gradient scaler to notice
    low, high = (value if isfinite(value) else 0.5 for value in (low, high))
    if not batch.beyond(low, high, batch.input.dtype):
        return None
    got = _shown(low if low < 0 else high)
    if sharpens:
        return (
            f"input: expected probabilities in [0, 1] for a sigmoid of scale {_shown(batch.scale)} "
            f"and offset 0.5, as AnyLoss has it, got {got}: are these logits? input.sigmoid()"
        )
    return (
        f"input: expected probabilities in [0, 1] with activation='none', got {got}: are these "
        "logits? activation='sigmoid', or 'softmax' for classes that exclude each other"
    )


def _label_out_of_range(batch: Batch, numbers: Numbers) -> str | None:
    if not batch.labels or batch.ignores_out_of_range:
        return None
    low, high = numbers["target_low"], numbers["target_high"]
    classes = batch.classes
    if low >= 0 and high < classes:
        return None
    return str(hints.unknown_label(int(low if low < 0 else high), classes, batch.ignored))


def _outside(batch: Batch, numbers: Numbers) -> str | None:
    if batch.labels:
        return None
    low, high = numbers["target_low"], numbers["target_high"]
    inside = not batch.beyond(low, high, batch.target.dtype)
    if inside and not isnan(low):
        return None
    expected = "[0, 1]"
    if batch.classes > 1 and not batch.target.is_floating_point():
        expected += " (or class numbers, without a dimension of classes)"
    got, cure = _span(low, high), ""
    if low == high:
        got = f"{_shown(low)} everywhere"
    elif _two_values(batch.target, low, high):
        got = f"values {_shown(low)} and {_shown(high)}"
        cure = ": target - 1" if (low, high) == (1, 2) else ""
        cure = f": divide by {_shown(high)} or compare with 0" if low == 0 else cure
    if high == 255:
        cure = ": divide by 255 or compare with 0"
    elif low == -1 and high <= 1:
        cure = ": (target + 1) / 2, or target > 0"
    return f"target: expected values in {expected}, got {got}{cure}"


# ---- what may be meant ---------------------------------------------------------------------------


def _labels_from_one(batch: Batch, numbers: Numbers) -> str | None:
    classes = batch.classes
    if not (batch.labels and batch.ignores_out_of_range) or not _from_one(numbers, classes):
        return None
    return (
        f"target: expected class numbers from 0 to {classes - 1}, got some from 1 to {classes}, "
        "so that the last class falls out: target - 1"
    )


def _nothing_counts(batch: Batch, numbers: Numbers) -> str | None:
    if numbers.get("counted", 1):
        return None
    what = "is ignored or has a weight of 0" if batch.ignored else "has a weight of 0"
    name = "target" if batch.weight is None else "weight"
    return f"{name}: expected something that counts, but every element {what}, so nothing is learnt"


def _negative_weight(batch: Batch, numbers: Numbers) -> str | None:
    low = numbers.get("weight_low", 0)
    if not low < 0:
        return None
    return (
        f"weight: expected numbers >= 0, got {_shown(low)}: a boundary loss means it, but the sums "
        "may become negative and the loss leave its range"
    )


def _classes_last(batch: Batch, numbers: Numbers) -> str | None:
    shape = list(batch.shape)
    if _lines_sum_to_one(batch, numbers):
        return (
            f"target: expected the classes in dim 1 of {shape}, but its last dim adds up to 1, as "
            "if it held the classes: target.movedim(-1, 1), and input alike"
        )
    return None


def _rows_off(batch: Batch, numbers: Numbers) -> str | None:
    if batch.activation != "softmax" or _lines_sum_to_one(batch, numbers):
        return None
    off = numbers.get("rows_off", 0)
    if not off > _rounding(batch.target):
        return None
    return (
        "target: expected classes that add up to 1 in every pixel with activation='softmax', got "
        f"sums that are off by {_shown(off)}: activation='sigmoid' judges every class by itself, "
        "and a pixel without a class is left out by class numbers with ignore_index"
    )


def _two_readings(batch: Batch, numbers: Numbers) -> str | None:
    shape = list(batch.shape)
    if not batch.labels or len(shape) < 3:
        return None
    came = [shape[0], *shape[2:]]
    if came != shape[:-1]:
        return None
    return (
        f"target: expected class numbers whose shape can be read in one way, got {came} for an "
        f"input {shape}: the classes are taken to be dim 1; if they are the last one, pass "
        "input.movedim(-1, 1)"
    )


ERRORS: tuple[Mistake, ...] = (_swapped, _no_probabilities, _label_out_of_range, _outside)
WARNINGS: tuple[Mistake, ...] = (
    _labels_from_one, _nothing_counts, _negative_weight, _classes_last, _rows_off, _two_readings,
)  # fmt: skip


# ---- steps ---------------------------------------------------------------------------------------


def _from_one(numbers: Numbers, classes: int) -> bool:
    """Whether labels run from 1 to the number of classes, where 0 to one less was meant."""
    return numbers["target_low"] == 1 and numbers["target_high"] == classes


def _lines_sum_to_one(batch: Batch, numbers: Numbers) -> bool:
    """Whether the sums along the last dim are 1, and those along the classes are not."""
    rounding = _rounding(batch.target)
    return numbers.get("lines_off", 1) <= rounding < numbers.get("rows_off", 0)


def _rounding(target: Tensor) -> float:
    """How far a sum of probabilities may be from 1."""
    return 1e-3 + (4 * torch.finfo(target.dtype).eps if target.is_floating_point() else 0)


def _two_values(values: Tensor, one: float, other: float) -> bool:
    """Whether there are no values but these two; this waits for the device again."""
    found = _reducible(values)
    return bool(((found == one) | (found == other)).all())


def _span(low: float, high: float) -> str:
    return f"values from {_shown(low)} to {_shown(high)}"


def _shown(value: float) -> str:
    """An integer as one; of other numbers as many digits as tell them from 0 and 1."""
    if float(value).is_integer():
        return str(int(value))
    short = f"{value:.6g}"
    return str(value) if float(short).is_integer() else short
