"""The values of a batch, as the few numbers that ``batch_checks.py`` judges.

Nothing else reads the data of a tensor. It happens for ``check_target=True`` and for the first
batches of a module. Every number is one reduction on the device, and all of them are brought to the
host at once: one wait. What does not count is left out: what is ignored, has a weight of 0, or
belongs to a class that counts in no part of the loss. Where nothing of that kind is asked for, no
tensor of the input's size is made. Elsewhere one may be, which is gone before the gradient of that
size is made.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor


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
    wide: torch.dtype  # of numbers: float64, where a device has it
    exact: bool  # False lets the rounding of averages and interpolations pass
    counting: Tensor | None = None  # of each class, whether it counts; None: all do
    coarse: bool = False  # a further output of a batch, at a resolution of its own
    of_classes: tuple[tuple[str, Tensor], ...] = ()  # weights of classes, by the name of the option

    @property
    def classes(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def holds_every_class(self) -> bool:
        """Whether there are several classes, and a local part has all of them."""
        return self.classes > 1 and self.input.shape[1] == self.classes

    def beyond(self, low: float, high: float, dtype: torch.dtype) -> bool:
        """Whether values from ``low`` to ``high`` leave [0, 1]."""
        exact = self.exact or not dtype.is_floating_point
        slack = 0.0 if exact else 16 * torch.finfo(dtype).eps
        return low < -slack or high > 1 + slack


Numbers = dict[str, float]


def read(batch: Batch) -> Numbers:
    """The numbers of a batch, in one transfer. Some are there only for some calls.

    ``input_low``, ``target_high``, ...: the smallest and the largest value; of the input of a
    softmax, which reads whole pixels, also those that do not count. ``counted``: how many elements
    count. ``class_sums_low``, ...: the sums of a dense target over the classes;
    ``last_dim_sums_low``, ...: those over its last dimension; ``input_class_sums_low``, ...: those
    of the input over the classes.
    ``class_weight_low``, ...: the weights of classes. ``labels_low``, ``labels_high``: where class
    numbers that are no class do not count, as if C counted, which is the last of labels from 1.
    """
    input, target, weight = batch.input, batch.target, batch.weight
    kept = _kept(batch)
    counts = _weighing(batch, kept)
    softmax = batch.activation == "softmax"
    found: dict[str, Tensor] = {}
    found["input_low"], found["input_high"] = _bounds(input, None if softmax else counts)
    if weight is not None:
        found["weight_low"], _ = _bounds(_aligned(weight, input), kept)
    of_target = counts
    if counts is not None:
        found["counted"] = counts.sum()
        of_target = counts.any(1, keepdim=True) if batch.labels else counts
    found["target_low"], found["target_high"] = _bounds(target, of_target)
    if batch.labels and batch.ignores_out_of_range:
        near = _weighing(batch, _kept(batch, behind=1))
        assert near is not None
        found["labels_low"], found["labels_high"] = _bounds(target, near.any(1, keepdim=True))
    if batch.holds_every_class:
        found |= _sums(batch, counts)
    for name, of_classes in batch.of_classes:
        found[f"{name}_low"], found[f"{name}_high"] = torch.aminmax(_reducible(of_classes))
    numbers = on_host(found, batch.wide)
    # the mask of what counts may be broadcast
    share = 1 if counts is None else input.numel() / counts.numel()
    return {**numbers, "counted": numbers.get("counted", input.numel()) * share}


def on_host(found: dict[str, Tensor], wide: torch.dtype) -> Numbers:
    """The numbers, with one wait. Integers stay integers, since a float would round those beyond
    2^53, and a message names them; floats come as the integers that have their bits."""
    of_bits, as_bits, as_float = _BITS[wide]
    values = torch.stack([
        value.to(wide).view(of_bits).long() if value.is_floating_point() else value.long()
        for value in found.values()
    ]).tolist()  # fmt: skip
    numbers = dict(zip(found, values))
    for name, value in found.items():
        if value.is_floating_point():
            (numbers[name],) = struct.unpack(as_float, struct.pack(as_bits, numbers[name]))
    return numbers


# of a dtype: the integers of its size, and the codes of both for ``struct``
_BITS = {torch.float64: (torch.int64, "<q", "<d"), torch.float32: (torch.int32, "<i", "<f")}


def _sums(batch: Batch, counts: Tensor | None) -> dict[str, Tensor]:
    """The sums over classes, and over what may be the classes."""
    input, target = batch.input, batch.target
    found: dict[str, Tensor] = {}
    if batch.activation == "softmax":
        bounds = torch.aminmax(_added(input, 1))
        found["input_class_sums_low"], found["input_class_sums_high"] = bounds
    if not batch.labels:
        found["class_sums_low"], found["class_sums_high"] = _bounds_of_class_sums(target, counts)
        if input.dim() > 2 and counts is None:
            bounds = torch.aminmax(_added(target, -1))
            found["last_dim_sums_low"], found["last_dim_sums_high"] = bounds
    return found


# ---- what counts ---------------------------------------------------------------------------------


def _kept(batch: Batch, behind: int = 0) -> Tensor | None:
    """Where an element is not ignored and its class counts, broadcastable to the input; None:
    everywhere. So many numbers ``behind`` the last class are taken for classes."""
    kept = None
    if batch.counting is not None:
        along_classes = (1, -1, *(1 for _ in batch.shape[2:]))[-len(batch.shape) :]
        kept = batch.counting.reshape(along_classes)
    for number in batch.ignored:
        if number >= 0 or batch.target.dtype != torch.uint64:  # as ``reference.operands`` reads it
            kept = _both(kept, _comparable(batch.target) != number)
    if batch.labels and batch.ignores_out_of_range:
        labels = _comparable(batch.target)
        kept = _both(kept, (labels >= 0) & (labels < batch.classes + behind))
    if batch.ignores_nan and batch.target.is_floating_point():
        kept = _both(kept, ~batch.target.isnan())
    return kept


def _weighing(batch: Batch, kept: Tensor | None) -> Tensor | None:
    """Of what is kept that which weighs something; None: everything."""
    if batch.weight is None:
        return kept
    return _both(kept, _reducible(_aligned(batch.weight, batch.input)) != 0)


def _both(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one & other


def _aligned(weight: Tensor, input: Tensor) -> Tensor:
    """The weight with as many dimensions as the input."""
    return weight.reshape((1,) * (input.dim() - weight.dim()) + weight.shape)


def _comparable(values: Tensor) -> Tensor:
    """In an unsigned dtype -100 would wrap to a number that may be a label."""
    return values if values.is_floating_point() else values.long()


# ---- reductions ----------------------------------------------------------------------------------


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
        return values.long()  # 2^63 and more become negative, which is as wrong in a target
    return values


def _added(values: Tensor, dim: int) -> Tensor:
    """The sums along ``dim``, of values in [0, 1]. Some bytes are added as bytes, which on the CPU
    is a hundred times as fast as in int64."""
    values = _reducible(values)
    few = values.dtype == torch.uint8 and values.shape[dim] < 256
    return values.sum(dim, dtype=torch.uint8 if few else None)


def _bounds_of_class_sums(target: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and the largest sum over the classes. What is hidden of a pixel may be what its
    sum lacks, and where all is hidden there is no sum: that counts as 1."""
    if counts is None:
        return torch.aminmax(_added(target, 1))
    values = _reducible(target)
    sums = _added(torch.where(counts, values, torch.zeros_like(values)), 1)
    whole = counts.expand_as(values).all(1)
    return torch.aminmax(torch.where(whole, sums, sums.clamp(min=1)))


# ---- a second look, for a message ----------------------------------------------------------------


def only(values: Tensor, *allowed: float) -> bool:
    """Whether there are no values but the ``allowed`` ones; this waits for the device again."""
    found = _reducible(values)
    fits = found == allowed[0]
    for value in allowed[1:]:
        fits = fits | (found == value)
    return bool(fits.all())


def rounding(values: Tensor) -> float:
    """How far a sum of probabilities may be from 1."""
    return 1e-3 + (4 * torch.finfo(values.dtype).eps if values.is_floating_point() else 0)
