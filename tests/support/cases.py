"""The sample inputs of the tests of values, gradients, operators, compilation and others.

A :class:`Case` is a recipe with a name and a reason; :meth:`Case.build` turns it into tensors of
a dtype on a device. The values depend on the name and the seed alone, so that two devices, or two
backends, see the same numbers.

The sizes are chosen for the edges of the CPU kernel; every other kernel has similar edges. A block
is 1024 elements, a unit of work 65536; innermost axes below 64 are gathered; rows of C classes are
folded, ``1024 // C`` to a block, and cut into bands of about ``65536 / C`` rows.
The cases of softmax and class numbers are in pixel_cases.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
TARGET_DTYPES = (torch.bool, *INTEGERS, *INPUT_DTYPES)
LAYOUTS = (
    "contiguous",
    "class_last",
    "transposed",
    "sliced",
    "stepped",
    "offset",
    "expanded_sample",
    "expanded_class",
)
# Shapes of a weight, named after the dimensions that it shares with the input; "full" has them all.
WEIGHTS = ("full", "mask", "class", "sample", "pixel", "last", "scalar", "ones_rank")
# Kinds of target: "dense" has a value for every element; "numbers" [N, *spatial] and "column"
# [N, 1, *spatial] are class numbers; "onehot" is these as a dense target; the "shares" of a pixel
# add up to 1.
KINDS = ("dense", "numbers", "column", "onehot", "shares")


class Sample(NamedTuple):
    """What an operator is called with: ``op(*operands, **options)``."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    options: dict[str, Any]

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.input, self.target, self.weight

    def as_double(self) -> Sample:
        """The same numbers in contiguous float64, for the reference to judge by."""

        def widen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().double().contiguous()

        numbers = self.target.shape != self.input.shape  # class numbers stay integers
        target = self.target.contiguous() if numbers else widen(self.target)
        return Sample(widen(self.input), target, widen(self.weight), self.options)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values at other strides; where a stride is 0, the first slice is repeated.

    Memory between the elements holds NaN or a large integer, so that a wrong stride shows.
    """
    shape, rank = values.shape, values.dim()
    if layout == "contiguous" or rank == 0:
        return values.contiguous()
    if layout == "class_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if rank > 1 else values
    if layout == "transposed":
        order = tuple(reversed(range(rank)))
        return values.permute(order).contiguous().permute(order)
    if layout == "expanded_sample":
        return values[:1].contiguous().expand(shape)
    if layout == "expanded_class":
        return values[:, :1].contiguous().expand(shape) if rank > 1 else values
    if layout == "offset":
        buffer = _poisoned(values, (values.numel() + 1,))
        view = buffer[1:].view(shape)
    elif layout == "sliced":
        buffer = _poisoned(values, tuple(size + 3 for size in shape))
        view = buffer[tuple(slice(1, 1 + size) for size in shape)]
    elif layout == "stepped":
        buffer = _poisoned(values, (*shape[:-1], 2 * shape[-1] + 1))
        view = buffer[..., 1::2]
    else:
        raise ValueError(layout)
    view.copy_(values)
    return view


def _poisoned(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    dtype = values.dtype
    if dtype.is_floating_point:
        fill: float = float("nan")
    else:
        fill = 1 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**31 - 1)
    # filled in float64 and then converted, because some unsigned dtypes have no fill_
    return torch.full(shape, fill, dtype=torch.float64).to(dtype).to(values.device)


def weight_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    rank = len(shape)
    if kind in ("full", "mask") or (kind == "pixel" and rank == 1):
        return shape
    if kind == "class" and rank > 1:
        return (shape[1], *(1,) * (rank - 2))
    if kind == "sample":
        return (shape[0], *(1,) * (rank - 1))
    if kind == "pixel":
        return (shape[0], 1, *shape[2:])
    if kind == "last":
        return shape[-1:]
    if kind == "ones_rank":
        return (1,) * rank
    return ()


# losses that take probabilities whatever their options say
PROBABILITIES = ("any", "custom_f1")
# custom_f1 has few options; losses that have no score have no options of one
FEW_OPTIONS = ("custom_f1", "cross_entropy", "bce", "focal")


@dataclass(frozen=True)
class Case:
    """A recipe for a sample, and why it is worth having."""

    name: str
    shape: tuple[int, ...]
    reason: str = ""
    layout: str = "contiguous"
    target_layout: str | None = None  # None: that of the input
    target: torch.dtype | None = torch.bool  # None: soft labels in the dtype of the input
    kind: str = "dense"
    weight: str | None = None
    weight_dtype: torch.dtype | None = None  # None: that of the input
    weight_layout: str = "contiguous"
    options: dict[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def build(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        requires_grad: bool = False,
        seed: int = 0,
    ) -> Sample:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + seed)

        def uniform(shape: tuple[int, ...]) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        input = 2 * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.options.get("activation") == "none":
            input = input.sigmoid()
        target = self._target(uniform, self.target or dtype)
        weight = None
        if self.weight is not None:
            weight = 2 * uniform(weight_shape(self.weight, self.shape))
            weight = weight * (uniform(tuple(weight.shape)) > 0.2)  # a fifth are exactly 0
            if self.weight in ("scalar", "ones_rank"):
                weight = weight + 0.5  # the only weight must not be 0
            masks = self.weight == "mask"
            weight = weight != 0 if masks else weight.to(self.weight_dtype or dtype)
            weight = lay_out(weight.to(device), self.weight_layout)
        input = lay_out(input.to(device, dtype), self.layout)
        target = lay_out(target.to(device), self.target_layout or self.layout)
        if requires_grad:
            input.requires_grad_()
            for other in (target, weight):
                if other is not None and other.is_floating_point():
                    other.requires_grad_()
        return Sample(input, target, weight, {**self._strays(), **self.options})

    def _strays(self) -> dict[str, Any]:
        """The option that allows class numbers that name no class. Only a case that sets it to
        "raise" has none of them."""
        return {"out_of_range": "ignore"} if self.kind in ("numbers", "column") else {}

    def _target(self, uniform: Callable[[tuple[int, ...]], Tensor], dtype: torch.dtype) -> Tensor:
        """A part is ignored, if the options say so; some class numbers name no class."""
        shape, ignored = self.shape, self.options.get("ignore_index")
        if self.kind != "dense":
            shape = shape[:1] + shape[2:]
        if self.kind == "shares":
            target = uniform(self.shape) ** 2
            return (target / target.sum(1, keepdim=True)).to(dtype)
        if self.kind != "dense":
            target = (uniform(shape) * self.shape[1]).long()
            if self.kind == "onehot":
                return torch.nn.functional.one_hot(target, self.shape[1]).movedim(-1, 1).to(dtype)
            stray = torch.tensor([-1, self.shape[1], 2 * self.shape[1]])
            stray = stray[(uniform(shape) * 3).long()]
            some = uniform(shape) < 0.15
            if self.options.get("out_of_range") != "raise":
                target = torch.where(some, stray, target)
            target = target.unsqueeze(1) if self.kind == "column" else target
            dtype = torch.int64 if self.target in (None, torch.bool) else dtype
        elif self.target is None or self.target.is_floating_point:
            target = uniform(shape)
        else:
            # A third of the targets are positive, so that few groups have none.
            target = uniform(shape) < 0.35
        if ignored is not None:
            some = uniform(tuple(target.shape)) < 0.15
            values = torch.tensor(ignored).reshape(-1)
            which = torch.zeros(target.shape, dtype=torch.long)
            if len(values) > 1:
                which = (uniform(tuple(target.shape)) * len(values)).long()
            target = torch.where(some, values[which], target)
        if self.options.get("nan_targets") == "ignore":
            target = target.masked_fill(uniform(tuple(target.shape)) < 0.15, torch.nan)
        return target.to(dtype)


# ---- sizes: each with its reason -----------------------------------------------------------------


def _sized(shape: tuple[int, ...], reason: str, **more: Any) -> Case:
    name = "x".join(map(str, shape)) + "".join(f"-{value}" for value in more.values())
    return Case(name, shape, reason, **more)


SIZES = (
    _sized((1,), "one element, one group"),
    _sized((1, 1), "one element, a class dimension"),
    _sized((5,), "below a vector: the tail loop alone"),
    _sized((31,), "one short of the 32 lanes of float32"),
    _sized((33,), "one vector and a tail of one"),
    _sized((1023,), "one short of a block"),
    _sized((1024,), "a block"),
    _sized((1025,), "a block and one element"),
    _sized((65535,), "one short of a unit"),
    _sized((65537,), "a unit and one element"),
    _sized((131101,), "a prime above two units: threads, tail"),
    _sized((7, 3), "rows of classes, less than a fold"),
    _sized((340, 3), "one row short of a fold (1024 // 3 = 341)"),
    _sized((341, 3), "a fold of rows"),
    _sized((342, 3), "a fold and one row"),
    _sized((22166, 3), "a band (22165 rows of 3) and one row"),
    _sized((5, 512), "two rows to a block"),
    _sized((5, 513), "one row to a block, not full"),
    _sized((3, 1024), "a tile of columns"),
    _sized((3, 1025), "a tile and one column"),
    _sized((131, 2053), "primes: tiles, bands and tails at once"),
    _sized((1, 40), "one row"),
    _sized((40, 1), "one class"),
    _sized((3, 4, 5), "a short inner axis is gathered"),
    _sized((3, 2, 63), "gathered: one below the limit of 64"),
    _sized((3, 2, 64), "not gathered: the limit"),
    _sized((17, 2, 65), "runs of 65 that no block size divides"),
    _sized((1100, 2, 61), "a gathered group longer than a unit"),
    _sized((2, 3, 1, 1), "size-1 axes have any stride"),
    _sized((2, 3, 33, 37), "images with prime sides"),
    _sized((2, 2, 3, 4, 5), "volumes"),
    _sized((2, 3, 7, 5), "classes last in memory: folded rows", layout="class_last"),
    _sized((2, 65, 4, 4), "classes last, more classes than pixels", layout="class_last"),
    _sized((2, 1031, 3, 2), "classes last, a tile and a tail", layout="class_last"),
    _sized((2, 3, 2, 3, 4), "volumes, classes last", layout="class_last"),
    _sized((3, 700), "a class is a row of memory", layout="transposed"),
    _sized((700, 3), "few classes, each a row of memory", layout="transposed"),
    _sized((2, 3, 5, 7), "memory in the reverse order", layout="transposed"),
    _sized((2, 3, 5, 7), "rows with gaps, from an offset", layout="sliced"),
    _sized((50, 6), "rows of classes with gaps", layout="sliced"),
    _sized((129, 7), "every second element", layout="stepped"),
    _sized((1500,), "every second element of a long axis", layout="stepped"),
    _sized((2050,), "unaligned: starts one element late", layout="offset"),
    _sized((30, 5), "stride 0 between samples", layout="expanded_sample"),
    _sized((30, 5), "stride 0 between classes", layout="expanded_class"),
    _sized((2, 3, 6, 5), "stride 0 between classes of images", layout="expanded_class"),
)

# The target's layout keeps the axes from merging, so that the kernel gets two rows at a time. It
# adds thousands of numbers to one float32 column, which is flushed to float64 in between.
FLUSHED = Case(
    "flushed-columns",
    (9001, 4, 2),
    "columns are flushed to float64",
    layout="class_last",
    target_layout="contiguous",
)

MIXED_LAYOUTS = tuple(
    Case(f"{one}-{other}", (4, 6, 9), "operands of different layouts", one, other, weight="full",
         weight_layout=third)
    for one, other, third in (
        ("contiguous", "class_last", "transposed"),
        ("class_last", "contiguous", "sliced"),
        ("class_last", "expanded_class", "contiguous"),
        ("transposed", "stepped", "class_last"),
        ("sliced", "expanded_sample", "expanded_class"),
        ("expanded_sample", "contiguous", "offset"),
    )
)  # fmt: skip

# ---- targets, weights ----------------------------------------------------------------------------

TARGETS = tuple(
    Case(f"target-{short(dtype)}-{'x'.join(map(str, shape))}", shape, "a dtype of target",
         target=dtype)
    for dtype in TARGET_DTYPES
    for shape in ((1300,), (45, 7))
)  # fmt: skip

WEIGHTED = tuple(
    Case(f"weight-{kind}-{'x'.join(map(str, shape))}", shape, "a shape of weight", weight=kind,
         target=target)
    for kind in WEIGHTS
    for shape, target in (((1030,), torch.bool), ((45, 7), None), ((4, 5, 6, 7), torch.uint8))
) + tuple(
    Case(f"weight-{short(dtype)}", (45, 7), "a dtype of weight", weight="class",
         weight_dtype=dtype)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                  torch.uint8)
)  # fmt: skip

# ---- options -------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "beta2": {"beta": 2.0},
    "beta_half": {"beta": 0.5},
    "beta0": {"beta": 0.0},
    "micro": {"average": "micro"},
    "weighted": {"average": "weighted"},
    "none": {"average": "none", "reduction": "none"},
    "none_mean": {"average": "none"},
    "none_sum": {"average": "none", "reduction": "sum"},
    "samplewise": {"samplewise": True},
    "samplewise_none": {"samplewise": True, "reduction": "none"},
    "samplewise_micro": {"samplewise": True, "average": "micro", "reduction": "none"},
    "samplewise_micro_sum": {"samplewise": True, "average": "micro", "reduction": "sum"},
    "samplewise_weighted": {"samplewise": True, "average": "weighted"},
    "samplewise_groups": {"samplewise": True, "average": "none", "reduction": "none"},
    "samplewise_groups_skip": {
        "samplewise": True, "average": "none", "reduction": "none", "absent": "skip",
    },
    "samplewise_skip": {"samplewise": True, "absent": "skip"},
    "samplewise_penalize": {"samplewise": True, "absent": "penalize", "average": "weighted"},
    "sum": {"reduction": "sum"},
    "smooth": {"smooth": 1.0},
    "smooth_sides": {"smooth": 0.25, "smooth_denominator": 1.5},
    "skip": {"absent": "skip"},
    "penalize": {"absent": "penalize"},
    "log": {"link": "log"},
    "log_smooth": {"link": "log", "smooth": 0.5, "beta": 1.5},
    "log_floor": {"link": "log", "log_floor": 0.4},
    "focal2": {"link": "focal", "gamma": 2.0},
    "focal_half": {"link": "focal", "gamma": 0.5},
    "negative": {"link": "negative"},
    "probabilities": {"activation": "none"},
    "affine": {"logit_scale": 3.0, "logit_offset": 0.25},
    "affine_negative": {"logit_scale": -0.5, "logit_offset": -1.0},
    "everything": {
        "beta": 2.0, "average": "weighted", "samplewise": True, "reduction": "none",
        "smooth": 0.3, "absent": "penalize", "link": "focal", "gamma": 1.5,
        "logit_scale": 1.5, "logit_offset": 0.5,
    },
}  # fmt: skip


def of_function(options: dict[str, Any]) -> dict[str, Any]:
    """Options of an operator as a function or module takes them: with a pair for ``smooth``."""
    given = dict(options)
    if "smooth_denominator" in given:
        given["smooth"] = (given.get("smooth", 0.0), given.pop("smooth_denominator"))
    return given


def with_options(case: Case, name: str) -> Case:
    return replace(case, name=f"{case.name}-{name}", options=OPTIONS[name])


# About a quarter of the groups of these have no positive target, where `absent` matters.
OPTIONED = tuple(
    with_options(base, name)
    for name in OPTIONS
    for base in (
        Case("few", (3, 4, 5), target=torch.bool),
        Case("rows", (41, 7), target=None, weight="full"),
        Case("vector", (57,), target=torch.int64, weight="mask"),
    )
)

# ---- a few of everything, for checks that cost seconds each --------------------------------------

FEW = (
    Case("hard", (6, 4), "the usual call"),
    Case("soft-weighted", (6, 4), "every operand differentiable", target=None, weight="full"),
    Case("class-weight", (4, 3, 5), "a broadcast weight", target=None, weight="class"),
    Case("vector", (7,), "no class dimension", target=torch.int64),
    Case("channels-last", (2, 3, 4, 5), "strides kept", "class_last", target=None),
    Case("transposed", (5, 4), "strides kept", "transposed", weight="sample"),
    Case("sliced", (5, 4), "gaps", "sliced", target=None),
    Case("empty", (0, 4), "no elements"),
    Case("groups", (5, 4), "a loss of rank 2", options=OPTIONS["samplewise_groups"]),
    Case("classes", (5, 4), "a loss of rank 1", options=OPTIONS["none"]),
    Case("micro", (5, 4), "one group", options=OPTIONS["micro"], target=torch.uint8),
    Case("everything", (5, 4), "no option at its default", target=None, weight="full",
         options=OPTIONS["everything"]),
    Case("probabilities", (5, 4), "no activation", target=None, options=OPTIONS["probabilities"]),
)  # fmt: skip

ALL = (*SIZES, FLUSHED, *MIXED_LAYOUTS, *TARGETS, *WEIGHTED, *OPTIONED, *FEW)
