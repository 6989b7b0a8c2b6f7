"""The loss in plain PyTorch: every way to write it that may be the fastest somewhere.

A form is a function from a case to a loss, and raises ``Unavailable`` where it does not apply.
Every loss is ``mean over groups of 1 - 2 tp / (Σp + Σt)``, plus the mean cross-entropy or focal
loss where the case has one beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from customloss._bench.arithmetic import TORCH, Arithmetic, cheap_exp
from customloss._bench.cases import Case

Loss = Callable[[Tensor, Tensor], Tensor]
Form = Callable[[Case], Loss]

FEW_CLASSES = 24  # up to here a loop over the classes is unrolled


class Unavailable(Exception):
    """Raised where a rival is not in the race, with the reason."""


MASKS_ONLY = "masks only"
LABELS_ONLY = "class numbers only"
ONE_GROUP_ONLY = "one group only"
BOOL_ONLY = "bool targets only"
HALF_ONLY = "half dtypes only"
ALONE_ONLY = "without a loss beside only"
BESIDE_ONLY = "with a loss beside only"
FEW_CLASSES_ONLY = "few classes in planes only"
PLANES_ONLY = "classes in planes only"
INNER_CLASSES_ONLY = "several classes, innermost, only"
LATENCY_ONLY = "for latencies only"
REASONS = frozenset({
    MASKS_ONLY, LABELS_ONLY, ONE_GROUP_ONLY, BOOL_ONLY, HALF_ONLY, BESIDE_ONLY, ALONE_ONLY,
    FEW_CLASSES_ONLY, PLANES_ONLY, INNER_CLASSES_ONLY, LATENCY_ONLY,
})  # fmt: skip


def require(applies: bool, reason: str) -> None:
    if not applies:
        raise Unavailable(reason)


# ---- parts -----------------------------------------------------------------------------------


def accumulator(input: Tensor) -> torch.dtype:
    """Half dtypes are added up in float32, else float16 overflows."""
    return torch.promote_types(input.dtype, torch.float32)


def group_dims(input: Tensor, samplewise: bool = False) -> list[int]:
    """The dims to sum over: all but the classes in dim 1, and the samples if they are groups."""
    return [dim for dim in range(input.dim()) if dim != 1 and not (samplewise and dim == 0)]


def dice(tp: Tensor, total: Tensor) -> Tensor:
    return (1 - 2 * tp / total).mean()


def one_hot(target: Tensor, input: Tensor) -> Tensor:
    """As a comparison, which a compiler fuses, and which is a byte per element where none does."""
    numbers = torch.arange(input.shape[1], device=input.device, dtype=target.dtype)
    return target.unsqueeze(1) == numbers.reshape(-1, *(1 for _ in input.shape[2:]))


def narrow(labels: Tensor) -> Tensor:
    """Class numbers as int32, in vectors as long as those of float32.

    Inductor does not vectorise a loop that compares int64, or uint8, beside them as well.
    """
    return labels.to(torch.int32)


def as_bytes(target: Tensor) -> Tensor:
    """A bool mask as bytes, in the same memory.

    Inductor does not vectorise a loop that reads bools beside floats as well as one that reads
    bytes, and a view that it takes itself is worse than both.
    """
    return target.view(torch.uint8) if target.dtype == torch.bool else target


def cheap_sigmoid(input: Tensor) -> Tensor:
    return 1 / (1 + cheap_exp(-input))


def cheap_softmax(input: Tensor) -> Tensor:
    exponentials = cheap_exp(input - input.amax(1, keepdim=True))
    return exponentials / exponentials.sum(1, keepdim=True)


# ---- masks -----------------------------------------------------------------------------------


def formula_sums(input: Tensor, target: Tensor) -> Tensor:
    """A product and sums."""
    dims, dtype = group_dims(input), accumulator(input)
    p = input.sigmoid()
    tp = (p * target).sum(dims, dtype=dtype)
    return dice(tp, p.sum(dims, dtype=dtype) + target.sum(dims))


def formula_where(input: Tensor, target: Tensor) -> Tensor:
    """A mask in place of the product."""
    dims, dtype = group_dims(input), accumulator(input)
    p = input.sigmoid()
    tp = torch.where(target, p, 0).sum(dims, dtype=dtype)
    return dice(tp, p.sum(dims, dtype=dtype) + target.sum(dims))


def formula_dot(input: Tensor, target: Tensor) -> Tensor:
    """A dot product, which saves a pass; one group only."""
    p = input.to(accumulator(input)).sigmoid().flatten()
    tp = torch.dot(p, target.flatten().to(p.dtype))
    return dice(tp, p.sum() + torch.count_nonzero(target))


def binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(input, target.to(input.dtype))


def binary_focal(input: Tensor, target: Tensor) -> Tensor:
    """γ = 2, without α."""
    t = target.to(input.dtype)
    missed = functional.binary_cross_entropy_with_logits(input, t, reduction="none")
    return (missed * (input.sigmoid() - t) ** 2).mean()


def _of_masks(formula: Loss, *, one_group: bool = False, bools: bool = False) -> Form:
    def build(case: Case) -> Loss:
        require(case.labels is None, MASKS_ONLY)
        several = len(case.shape) > 1 and case.shape[1] > 1
        require(not (one_group and several), ONE_GROUP_ONLY)
        require(not bools or case.mask == torch.bool, BOOL_ONLY)
        return with_beside(formula, case)

    return build


sums_form = _of_masks(formula_sums)
where_form = _of_masks(formula_where, bools=True)
dot_form = _of_masks(formula_dot, one_group=True)


# ---- a softmax and class numbers -------------------------------------------------------------


def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(input, target.long())


def _compared_dice(p: Tensor, target: Tensor, samplewise: bool) -> Tensor:
    dims, dtype = group_dims(p, samplewise), accumulator(p)
    t = one_hot(target, p)
    tp = torch.where(t, p, 0).sum(dims, dtype=dtype)
    return dice(tp, p.sum(dims, dtype=dtype) + t.sum(dims))


def _gathered_dice(p: Tensor, target: Tensor, samplewise: bool) -> Tensor:
    """The probabilities of the true classes, added up class by class.

    That is one running sum per class, in float64, because a float32 one stops growing.
    """
    samples, classes = p.shape[:2]
    bins = target = target.long()
    shape = [classes]
    if samplewise:
        first = torch.arange(0, samples * classes, classes, device=p.device)
        bins = target + first.reshape(-1, *(1 for _ in target.shape[1:]))
        shape = [samples, classes]
    count = math.prod(shape)
    hit = p.gather(1, target.unsqueeze(1)).flatten().double()
    zero = torch.zeros(count, dtype=torch.float64, device=p.device)
    tp = zero.index_add(0, bins.flatten(), hit).reshape(shape)
    support = torch.bincount(bins.flatten(), minlength=count).reshape(shape)
    dtype = accumulator(p)
    total = p.sum(group_dims(p, samplewise), dtype=dtype) + support
    return dice(tp.to(dtype), total)


def _of_labels(formula: Callable[[Tensor, Tensor, bool], Tensor], *, logs: bool = False) -> Form:
    """Dice of a softmax. With ``logs`` the cross-entropy and p come from the same log-softmax."""

    def build(case: Case) -> Loss:
        require(case.labels is not None, LABELS_ONLY)
        require(bool(case.beside) or not logs, BESIDE_ONLY)

        def separate(input: Tensor, target: Tensor) -> Tensor:
            return formula(input.softmax(1), target, case.samplewise)

        def shared(input: Tensor, target: Tensor) -> Tensor:
            log_p = input.log_softmax(1)
            log_loss = functional.nll_loss(log_p, target.long())
            return formula(log_p.exp(), target, case.samplewise) + log_loss

        return shared if logs else with_beside(separate, case)

    return build


compared_form = _of_labels(_compared_dice)
compared_logs_form = _of_labels(_compared_dice, logs=True)
gathered_form = _of_labels(_gathered_dice)
gathered_logs_form = _of_labels(_gathered_dice, logs=True)


class Planes(NamedTuple):
    """A softmax of few classes, as one tensor per class, each without the dim of the classes."""

    logits: list[Tensor]
    p: list[Tensor]
    log_total: Tensor  # the logarithm of Σ exp(logit)

    @staticmethod
    def of(input: Tensor, maths: Arithmetic = TORCH) -> Planes:
        logits = list(input.to(accumulator(input)).unbind(1))
        largest = logits[0]
        for logit in logits[1:]:
            largest = torch.maximum(largest, logit)
        exponentials = [maths.exp(logit - largest) for logit in logits]
        total = exponentials[0]
        for exponential in exponentials[1:]:
            total = total + exponential
        share = 1 / total
        return Planes(logits, [each * share for each in exponentials], largest + total.log())

    def sums(self, target: Tensor, samplewise: bool) -> tuple[Tensor, Tensor]:
        """tp and Σp + Σt of every group, ``[classes]`` or ``[samples, classes]``."""
        dims = list(range(1 if samplewise else 0, target.dim()))
        tp, total = [], []
        for number, p in enumerate(self.p):
            hit = target == number
            tp.append(torch.where(hit, p, 0).sum(dims))
            total.append((p + hit).sum(dims))
        return torch.stack(tp, -1), torch.stack(total, -1)

    def cross_entropy(self, target: Tensor) -> Tensor:
        true = self.logits[0]
        for number, logit in enumerate(self.logits[1:], 1):
            true = torch.where(target == number, logit, true)
        return (self.log_total - true).mean()


def few_classes(case: Case) -> bool:
    """Whether unrolling pays. With classes innermost every plane would be strided."""
    return len(case.shape) > 2 and not case.channels_last and case.shape[1] <= FEW_CLASSES


def unrolled_form(case: Case) -> Loss:
    """A loop over the classes, written out: all sums are taken in one pass once it is compiled."""
    require(case.labels is not None, LABELS_ONLY)
    require(few_classes(case), FEW_CLASSES_ONLY)

    def loss(input: Tensor, target: Tensor) -> Tensor:
        planes, target = Planes.of(input), narrow(target)
        value = dice(*planes.sums(target, case.samplewise))
        return value + planes.cross_entropy(target) if case.beside else value

    return loss


def with_beside(formula: Loss, case: Case) -> Loss:
    """A formula plus the loss that the case has beside it."""
    if not case.beside:
        return formula
    beside = binary_focal if case.beside == "focal" else binary_cross_entropy
    if case.labels is not None:
        beside = cross_entropy
    return lambda input, target: formula(input, target) + beside(input, target)
