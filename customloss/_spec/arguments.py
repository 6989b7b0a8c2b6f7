"""The arguments of the operators behind the losses, declared once for Python.

An operator is a function of a few groups of arguments. Schemas, fake tensors, the plain backend and
Triton's derive from these groups. At the dispatcher and in autograd the groups lie flat, one
argument behind the other. csrc/arguments.h declares the same groups for C++; a test compares names
and order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor


class Data(NamedTuple):
    """What a pass reads."""

    input: Tensor
    target: Tensor  # of the input's rank: class numbers are [N, 1, *spatial]
    weight: Tensor | None


class Elements(NamedTuple):
    """How an element becomes a probability, how elements are grouped, and what is added up."""

    activation: int
    scale: float
    offset: float
    per_sample: bool
    per_class: bool
    ignore_index: tuple[int, ...] | None = None  # the targets that do not count
    label_smoothing: float = 0.0
    extra: int = 0  # bits of reference.Extra
    focal_gamma: float = 2.0
    focal_split: bool = False  # whether p^γ and q^γ stand before the two logarithms of soft targets
    log_smoothing: float | None = None  # of the log-losses, where it is not ``label_smoothing``
    out_of_range: int = 0  # what becomes of class numbers outside of the classes
    nan_targets: int = 0  # what becomes of elements whose target is NaN


class Scoring(NamedTuple):
    """How the sums of the groups become a loss."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float  # added to the numerator
    smooth_denominator: float
    gamma: float
    log_floor: float
    link: int
    absent: int
    average: int
    reduction: int


class Pointwise(NamedTuple):
    """The weight of the score, and the factors of the pointwise loss beside it; see
    ``reference.pointwise_loss``."""

    score_weight: float = 1.0
    log_pos: float = 0.0
    log_neg: float = 0.0
    focal_pos: float = 0.0
    focal_neg: float = 0.0
    positives: float = 0.0
    negatives: float = 0.0
    support: float = 0.0

    def present(self) -> bool:
        """Whether there is a pointwise loss."""
        return any((self.log_pos, self.log_neg, self.focal_pos, self.focal_neg))


SCORE_ALONE = Pointwise()


class Incoming(NamedTuple):
    """What a backward pass starts from: the gradient by the loss, and that of the loss by the sums.

    ``grad`` has the shape of the loss: a scalar, or ``[samples]``, ``[classes]`` or
    ``[samples, classes]`` where these are kept. It multiplies the coefficients of its groups. None
    means 1.
    """

    grad: Tensor | None
    coefficients: Tensor  # in the shape of the sums


class Wrt(NamedTuple):
    """The operand that a backward pass differentiates by."""

    wrt: int


class ClassWeights(NamedTuple):
    """The weight of each class, ``[2, classes]``: in the score and in the pointwise loss."""

    class_weight: Tensor | None


class GroupSums(NamedTuple):
    """Sums ``[rows, samples, classes]`` that exist already, and how they become a loss."""

    sums: Tensor
    class_weight: Tensor | None
    extra: int
    per_sample: bool
    wide: bool  # whether the loss is float64


class Contract(NamedTuple):
    """What an operator takes and returns."""

    groups: tuple[type[tuple[Any, ...]], ...]
    returns: str


# what a backend computes; it knows nothing of autograd
PRIMITIVES = {
    "confusion": Contract((Data, Elements), "Tensor"),
    "confusion_score": Contract((Data, Elements, Scoring), "(Tensor, Tensor)"),
    "confusion_backward": Contract((Incoming, Data, Wrt, Elements), "Tensor"),
    "sums_score": Contract((GroupSums, Scoring, Pointwise), "(Tensor, Tensor)"),
}
# differentiable operators that are built on them and take checked numbers
DIFFERENTIABLE = {
    "compound": Contract((Data, ClassWeights, Elements, Scoring, Pointwise), "Tensor"),
    "sums_loss": Contract((GroupSums, Scoring, Pointwise), "Tensor"),
}

_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool",
    float | None: "float?",
    tuple[int, ...] | None: "int[1]?",  # takes a single int as well
}  # fmt: skip


def schema(name: str, contract: Contract) -> str:
    """The operator's schema, as the dispatcher reads it."""
    arguments = (
        f"{_TYPES[kind]} {field}"
        for group in contract.groups
        for field, kind in get_type_hints(group).items()
    )
    return f"{name}({', '.join(arguments)}) -> {contract.returns}"


def on_one_device(function: Callable[..., Any], contract: Contract) -> Callable[..., Any]:
    """A function of groups that first compares the devices of their tensors, as the compiled
    kernels do: a kernel would read memory that it cannot reach."""
    places = [
        (number, field)
        for number, group in enumerate(contract.groups)
        for field, kind in get_type_hints(group).items()
        if kind in (Tensor, Tensor | None)
    ]
    # what the others have to be beside
    leader = next(place for place in places if place[1] in ("input", "sums"))

    def checked(*groups: Any) -> Any:
        device = getattr(groups[leader[0]], leader[1]).device
        for number, field in places:
            tensor = getattr(groups[number], field)
            if tensor is not None and tensor.device != device:
                raise RuntimeError(
                    f"customloss: {field} must be on {device}, as {leader[1]} is, got one on "
                    f"{tensor.device}"
                )
        return function(*groups)

    return checked


def grouped(function: Callable[..., Any], contract: Contract, ahead: int = 0) -> Callable[..., Any]:
    """Makes a function of groups take one flat list of arguments, as the dispatcher passes them.

    ``ahead`` is the number of arguments before those of the groups.
    """
    lengths = (len(get_type_hints(group)) for group in contract.groups)
    spans = list(zip(contract.groups, pairwise(accumulate(lengths, initial=ahead))))

    def flat(*arguments: Any) -> Any:
        groups = (group(*arguments[start:stop]) for group, (start, stop) in spans)
        return function(*arguments[:ahead], *groups)

    return flat
