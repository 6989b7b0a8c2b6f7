"""What is measured: shapes, dtypes, the inputs made of them and the bytes they must move."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PASSES = ("forward", "backward", "forward+backward")
BOTH = PASSES[2]


@dataclass(frozen=True)
class Case:
    """One tensor problem: logits of ``shape`` and ``dtype``, and a target.

    Without ``labels`` the target has that shape and the dtype ``mask``, and p is a sigmoid. With it
    the target is class numbers of that dtype, and p is a softmax. The loss is soft-F1 (which is
    Dice) with a group per class (dim 1), and with ``samplewise`` per sample and class; it is
    averaged over the groups. ``beside`` names a mean loss that is added: ``"cross_entropy"`` or
    ``"focal"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    passes: tuple[str, ...] = PASSES
    channels_last: bool = False
    latency: bool = False  # memory does not matter: many calls are timed, and there is no roof
    labels: torch.dtype | None = None
    mask: torch.dtype = torch.bool
    samplewise: bool = False  # with labels only
    beside: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def read_bytes(self) -> int:
        """Logits and target once, which both passes have to read."""
        target = self.elements * self.mask.itemsize
        if self.labels is not None:
            target = self.elements // self.shape[1] * self.labels.itemsize
        return self.elements * self.dtype.itemsize + target

    @property
    def written_bytes(self) -> int:
        """The gradient, which the backward pass has to write."""
        return self.elements * self.dtype.itemsize

    def moved_bytes(self, which: str) -> int:
        """The least that a two-pass implementation can move in the pass ``which``."""
        backward = self.read_bytes + self.written_bytes
        return {"forward": self.read_bytes, "backward": backward}.get(
            which, self.read_bytes + backward
        )


class Inputs(NamedTuple):
    """``scale`` multiplies the loss, as a gradient scaler would: float16 needs it."""

    input: Tensor
    target: Tensor
    scale: float


_IMAGE = (16, 1, 1024, 1024)
_BRAIN, _ORGANS = (2, 4, 128, 128, 128), (1, 105, 64, 64, 64)

FULL = (
    Case("image float32", _IMAGE, torch.float32),
    Case("image bfloat16", _IMAGE, torch.bfloat16),
    Case("image float16", _IMAGE, torch.float16),
    Case("image float64", _IMAGE, torch.float64),
    Case("image float32, float target", _IMAGE, torch.float32, mask=torch.float32),
    Case("classes float32", (8192, 1000), torch.float32, ("forward", BOTH)),
    Case("channels_last float32", (16, 4, 512, 512), torch.float32, channels_last=True),
    Case("4 labels float32", _BRAIN, torch.float32, labels=torch.int64),
    Case("4 labels bfloat16", _BRAIN, torch.bfloat16, ("forward", BOTH), labels=torch.uint8),
    Case("4 labels Dice+CE", _BRAIN, torch.float32, labels=torch.int64, beside="cross_entropy"),
    Case(
        "105 labels Dice+CE", _ORGANS, torch.float32, (BOTH,), labels=torch.int64,
        beside="cross_entropy",
    ),
    Case(
        "21 labels samplewise", (8, 21, 256, 256), torch.float32, ("forward", BOTH),
        labels=torch.int64, samplewise=True,
    ),
    Case("image Dice+BCE", _IMAGE, torch.float32, ("forward", BOTH), beside="cross_entropy"),
    Case("image Dice+focal", _IMAGE, torch.float32, ("forward", BOTH), beside="focal"),
    Case("rows of 32 labels", (8192, 32), torch.float32, ("forward", BOTH), labels=torch.int64),
    Case(
        "small Dice+CE", (8, 4, 16, 16), torch.float32, (BOTH,), latency=True, labels=torch.int64,
        beside="cross_entropy",
    ),
    Case("64 logits", (64,), torch.float32, (BOTH,), latency=True),
)  # fmt: skip
_NAMED = {case.name: case for case in FULL}

QUICK = (
    _NAMED["image float32"],
    replace(_NAMED["image bfloat16"], passes=(BOTH,)),
    replace(_NAMED["classes float32"], passes=(BOTH,)),
    replace(_NAMED["4 labels float32"], passes=("forward", BOTH)),
    replace(_NAMED["4 labels Dice+CE"], passes=(BOTH,)),
    _NAMED["64 logits"],
)

# every kind of case, so small that it only shows whether the benchmark itself works
SMOKE = (
    Case("image float32", (2, 1, 32, 32), torch.float32),
    Case("channels_last float16", (2, 4, 16, 16), torch.float16, (BOTH,), channels_last=True),
    Case("image float32, float target", (2, 1, 32, 32), torch.float32, mask=torch.float32),
    Case("labels float32", (2, 3, 16, 16), torch.float32, labels=torch.int64),
    Case(
        "labels samplewise", (2, 3, 16, 16), torch.float32, (BOTH,), labels=torch.int64,
        samplewise=True,
    ),
    Case(
        "labels Dice+CE", (2, 3, 16, 16), torch.float32, (BOTH,), labels=torch.uint8,
        beside="cross_entropy",
    ),
    Case("image Dice+BCE", (2, 1, 32, 32), torch.float32, (BOTH,), beside="cross_entropy"),
    Case("image Dice+focal", (2, 1, 32, 32), torch.float32, (BOTH,), beside="focal"),
    Case("64 logits", (64,), torch.float32, (BOTH,), latency=True),
)  # fmt: skip

SUITES = {"quick": QUICK, "full": FULL, "smoke": SMOKE}


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Logits N(0, 3²), and a target that is likelier where the logit is high.

    It has one positive in ten, or class numbers.
    """
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.randn(case.shape, generator=generator, device=device)
    logits = 3 * torch.randn(case.shape, generator=generator, device=device)
    if case.labels is None:
        target = ((logits / 3 + noise) > 1.8).to(case.mask)
    else:
        target = (logits / 3 + noise).argmax(1).to(case.labels)
    logits = logits.to(case.dtype)
    if case.channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
        if case.labels is None:
            target = target.contiguous(memory_format=torch.channels_last)
    # without a scale most gradients of 16 M elements are 0 in float16, where 2**16 is inf
    scale = 2.0**15 if case.dtype == torch.float16 else 1.0
    return Inputs(logits.requires_grad_(), target, scale)


def copies(inputs: Inputs, count: int) -> list[Inputs]:
    """The same numbers in other places: where they take turns, no cache holds the next one."""
    fresh = [
        Inputs(inputs.input.detach().clone().requires_grad_(), inputs.target.clone(), inputs.scale)
        for _ in range(count - 1)
    ]
    return [inputs, *fresh]


# of an input when its turn comes: out of every cache, read a moment ago, or in a cache
Temperature = Literal["cold", "after forward", "warm"]

CACHES_FILLED = 3
_COPY_BYTES, _COPIES = 4 << 30, 1024  # at most


def copies_needed(case: Case, cache_bytes: int) -> int:
    """How many copies fill the last-level cache three times, as far as is practical.

    A latency is measured on one, which stays in the cache.
    """
    if case.latency:
        return 1
    wanted = math.ceil(CACHES_FILLED * cache_bytes / case.read_bytes)
    return max(2, min(wanted, _COPIES, _COPY_BYTES // case.read_bytes))


def temperature(case: Case, which: str, copies: int, cache_bytes: int) -> Temperature:
    """What a pass finds when its turn comes, if the copy that was used longest ago is next."""
    if copies * case.read_bytes < CACHES_FILLED * cache_bytes:
        return "warm"
    return "after forward" if which == "backward" else "cold"
