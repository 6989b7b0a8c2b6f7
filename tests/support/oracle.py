"""The sums of a batch in plain float64 torch, written from docs/losses.md and docs/design.md.

It shares nothing with the package: tests compare the losses with it, and the reference as well.
Every tensor is brought to ``[samples, classes, places]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-30  # the logarithm of a probability is that of no less


class Noise:
    """Errors of a relative size, to see what rounding may make of a result."""

    def __init__(self, size: float = 0.0, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, values: Tensor) -> Tensor:
        """``values``, each off by at most the size, relative to itself; and so is its gradient, by
        an error of its own, or a formula that does not change with a weight would still not."""
        if not self.size:
            return values
        known = values.detach()
        by_value, by_gradient = (1 + self.size * self._drawn(values) for _ in range(2))
        return known * by_value + (values - known) * by_gradient

    def near_one(self, values: Tensor) -> Tensor:
        """``values`` that were the difference of two numbers of size 1 in float64."""
        return values if not self.size else values + 1e-15 * self._drawn(values)

    def _drawn(self, values: Tensor) -> Tensor:
        drawn = torch.rand(values.shape, generator=self._generator, dtype=torch.float64)
        return 2 * drawn - 1


class Batch(NamedTuple):
    """What the sums are made of."""

    p: Tensor
    q: Tensor  # 1 - p
    log_p: Tensor
    log_q: Tensor
    t: Tensor  # smoothed
    t_of_log: Tensor  # smoothed for the log-losses
    t_given: Tensor
    decided: Tensor
    weight: Tensor
    counts: Tensor
    softmax: bool
    gamma: float
    split: bool


# ---- reading -------------------------------------------------------------------------------------


def placed(values: Tensor) -> Tensor:
    """``[N]``, ``[N, C]`` or ``[N, C, *spatial]`` as ``[samples, classes, places]``."""
    while values.dim() < 3:
        values = values.unsqueeze(-1)
    return values.flatten(2)


def holds_numbers(input: Tensor, target: Tensor) -> bool:
    """Whether the target has class numbers, and not the shape of the input."""
    return target.dim() < input.dim() or (
        input.dim() > 1 and target.shape[1] == 1 and input.shape[1] > 1
    )


def placed_weight(input: Tensor, weight: Tensor | None, numbers: bool) -> Tensor:
    """One number per element: a weight broadcasts, or has the shape of the class numbers."""
    if weight is None:
        return torch.ones_like(placed(input))
    shape = input.shape
    of_pixels = input.dim() > 2 and tuple(weight.shape) == (shape[0], *shape[2:])
    if of_pixels and (numbers or shape[1] == 1):
        weight = weight.unsqueeze(1)
    return placed(weight.expand(shape))


def _targets(input: Tensor, target: Tensor, o: Mapping[str, Any]) -> tuple[Tensor, Tensor, int]:
    """t before smoothing, what is ignored of it, and how many outcomes an element has."""
    ignored_values = o["ignore_index"]
    if not isinstance(ignored_values, (tuple, list)):
        ignored_values = () if ignored_values is None else (ignored_values,)
    classes = placed(input).shape[1]
    numbers = holds_numbers(input, target)
    if numbers and target.dim() < input.dim():
        target = target.unsqueeze(1)
    target = placed(target)
    ignored = torch.zeros_like(target, dtype=torch.bool)
    for value in ignored_values:
        ignored = ignored | (target == value)
    if not numbers:
        if o["nan_targets"] == "ignore":
            ignored = ignored | target.isnan()
        return target, ignored, classes if o["activation"] == "softmax" else 2
    if o["out_of_range"] == "ignore":
        ignored = ignored | (target < 0) | (target >= classes)
    one_hot = target == torch.arange(classes)[:, None]
    return one_hot.double(), ignored.expand(one_hot.shape), classes


def read(
    input: Tensor, target: Tensor, weight: Tensor | None, o: Mapping[str, Any], hidden: Tensor
) -> Batch:
    """The batch; ``hidden`` says which classes reach nothing. All tensors are float64, and ``o``
    has every option of the reading."""
    t, ignored, outcomes = _targets(input, target, o)
    w = placed_weight(input, weight, holds_numbers(input, target))
    x = placed(input)
    softmax = o["activation"] == "softmax"
    # what does not count may hold anything; where it is finite, its weight has a gradient
    if softmax:  # each probability depends on all logits of its pixel
        unread, usable = (w == 0).all(1, keepdim=True), x.isfinite().all(1, keepdim=True)
    else:
        unread, usable = (w == 0) | hidden[:, None], x.isfinite()
    blank = ignored | (unread & ~usable)
    counts = ~(blank | (((w == 0) | hidden[:, None]) & ~t.isfinite()))
    x = torch.where(blank, torch.zeros_like(x), x)
    t = torch.where(counts, t, torch.zeros_like(t))

    def smoothed(by: float) -> Tensor:
        return (1 - by) * t + by / outcomes

    of_log = o["label_smoothing"] if o["log_smoothing"] is None else o["log_smoothing"]
    return Batch(
        *probabilities(x, o), smoothed(o["label_smoothing"]), smoothed(of_log), t,
        decisions(x, o), w, counts, softmax, o["focal_gamma"], o["focal_split"],
    )  # fmt: skip


def probabilities(x: Tensor, o: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, 1 - p, and the logarithms of both."""
    z = o["logit_scale"] * (x - o["logit_offset"])
    if o["activation"] == "none":
        p, q = x, 1 - x
        return p, q, p.clamp_min(SMALLEST).log(), q.clamp_min(SMALLEST).log()
    if o["activation"] == "sigmoid":
        log = torch.nn.functional.logsigmoid
        return z.sigmoid(), (-z).sigmoid(), log(z), log(-z)
    log_p = z.log_softmax(1)
    p = log_p.exp()
    others = 1 - torch.eye(x.shape[1], dtype=x.dtype)
    return p, torch.einsum("ncp,cd->ndp", p, others), log_p, torch.zeros_like(p)


def decisions(x: Tensor, o: Mapping[str, Any]) -> Tensor:
    """p > 1/2, or the (first) largest class of a softmax."""
    z = o["logit_scale"] * (x.detach() - o["logit_offset"])
    if o["activation"] == "softmax":
        return (torch.arange(x.shape[1])[:, None] == z.argmax(1, keepdim=True)).double()
    return (z > (0.5 if o["activation"] == "none" else 0.0)).double()


# ---- the sums ------------------------------------------------------------------------------------


def _focal_base(b: Batch, positive: bool) -> Tensor:
    if b.softmax or b.split:
        return b.q if positive else b.p
    return b.t * b.q + (1 - b.t) * b.p


def _far(b: Batch) -> Tensor:
    """p - t, exact where p is close to a hard target."""
    return (1 - b.t) * b.p - b.t * b.q


def _above_0(values: Tensor) -> Tensor:
    """max(values, 0), whose slope at 0 is the mean of that of both sides."""
    return torch.where(values > 0, values, torch.where(values == 0, values / 2, 0 * values))


# what an element adds to each sum at weight 1
TERMS: dict[str, Callable[[Batch], Tensor]] = {
    "tp": lambda b: b.t * b.p,
    "fp": lambda b: (1 - b.t) * b.p,
    "fn": lambda b: b.t * b.q,
    "tn": lambda b: (1 - b.t) * b.q,
    "whole": lambda b: torch.ones_like(b.t),
    "positives": lambda b: b.t,
    "support": lambda b: b.t_given,
    "log_loss_pos": lambda b: -b.t_of_log * b.log_p,
    "log_loss_neg": lambda b: -(1 - b.t_of_log) * b.log_q,
    "p2": lambda b: b.p**2,
    "t2": lambda b: b.t**2,
    "tp2": lambda b: b.t * b.p**2,
    "distance": lambda b: _far(b).abs(),
    "common": lambda b: torch.minimum(b.p, b.t),
    "distance_pos": lambda b: _above_0(_far(b)),
    "distance_neg": lambda b: _above_0(-_far(b)),
    "focal_pos": lambda b: -b.t * _focal_base(b, True) ** b.gamma * b.log_p,
    "focal_neg": lambda b: -(1 - b.t) * _focal_base(b, False) ** b.gamma * b.log_q,
    # decisions are counted with the target before any smoothing
    "hard_tp": lambda b: b.t_given * b.decided,
    "hard_fp": lambda b: (1 - b.t_given) * b.decided,
    "hard_fn": lambda b: b.t_given * (1 - b.decided),
    "hard_tn": lambda b: (1 - b.t_given) * (1 - b.decided),
}  # fmt: skip


class Sums:
    """Sums ``[samples, classes]`` by name, each made when it is asked for."""

    def __init__(self, batch: Batch, samplewise: bool, noise: Noise) -> None:
        self.batch, self.samplewise, self.noise = batch, samplewise, noise
        self._found: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            b = self.batch
            terms = self.noise(b.weight * TERMS[name](b))
            terms = torch.where(b.counts, terms, torch.zeros_like(terms))
            own = terms.sum((2,) if self.samplewise else (0, 2))
            self._found[name] = self.noise(own if self.samplewise else own[None])
        return self._found[name]


class ChosenSums:
    """Sums of the classes that are scored; pooled, they are weighted and added up."""

    def __init__(self, sums: Sums, classes: Sequence[int], pooled_by: Tensor | None = None) -> None:
        self._sums, self._classes, self._pooled_by = sums, list(classes), pooled_by
        self.noise = sums.noise

    def __getitem__(self, name: str) -> Tensor:
        own = self._sums[name][:, self._classes]
        return own if self._pooled_by is None else (own * self._pooled_by).sum(1, keepdim=True)


READING: dict[str, Any] = {
    "activation": "sigmoid", "logit_scale": 1.0, "logit_offset": 0.0, "ignore_index": None,
    "out_of_range": "raise", "nan_targets": "propagate", "label_smoothing": 0.0,
    "log_smoothing": None, "focal_gamma": 2.0, "focal_split": False,
}  # fmt: skip


def confusion_sums(
    input: Tensor, target: Tensor, weight: Tensor | None, options: Mapping[str, Any],
    noise: Noise,
) -> Callable[[str], Tensor]:  # fmt: skip
    """The sums that ``customloss.confusion_sums`` returns, by name."""
    o = {**READING, "average": "macro", "samplewise": False, **options}
    batch = read(input, target, weight, o, torch.zeros(placed(input).shape[1], dtype=torch.bool))
    sums = Sums(batch, o["samplewise"], noise)

    def named(name: str) -> Tensor:
        own = sums[name]
        own = own.sum(1) if o["average"] == "micro" or input.dim() == 1 else own
        return own if o["samplewise"] else own[0]

    return named
