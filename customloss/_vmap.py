"""Batching rules: a vmapped dim tells groups apart, so one pass serves the whole batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from customloss import _autograd, _checks, _options, reference
from customloss._options import Elements


def _batch_first(operands: Any, in_dims: Any, size: int) -> list[Tensor | None]:
    """All operands with the vmapped dim in front and the input's rank behind it."""
    rank = operands[0].dim() - (in_dims[0] is not None)
    found: list[Tensor | None] = []
    for operand, dim in zip(operands, in_dims):
        if operand is None:
            found.append(None)
            continue
        own = operand.movedim(dim, 0) if dim is not None else operand[None]
        own = own.reshape(own.shape[0], *(1,) * (rank + 1 - own.dim()), *own.shape[1:])
        found.append(own.expand(size, *own.shape[1:]))
    return found


def _vmapped_sums(info: Any, in_dims: Any, operands: Any, elements: Elements) -> Tensor:
    """``[4, batch, samples, classes]`` in one pass: the vmapped dim tells groups apart as samples
    do. Where samples are told apart too, both are flattened, else the sample dim is summed."""
    size = info.batch_size
    batched = _batch_first(operands, in_dims, size)
    if elements.per_sample:
        samples = batched[0].shape[1]  # type: ignore[union-attr]
        folded = [
            x if x is None else x.expand(size, samples, *x.shape[2:]).flatten(0, 1) for x in batched
        ]
    else:
        samples = 1
        folded = [x.transpose(1, 2) if x is not None and x.dim() > 2 else x for x in batched]
    _checks.tensors(*folded, True, elements.per_class)  # type: ignore[arg-type]
    sums = _autograd.sums(*folded, elements._replace(per_sample=True))  # type: ignore[arg-type]
    return sums.reshape(4, size, samples, sums.shape[-1])


def soft_f1(
    info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
    *, beta: float = 1.0, activation: str = "sigmoid", average: str = "macro",
    samplewise: bool = False, reduction: str = "mean", smooth: float = 0.0,
    absent: str = "score", link: str = "complement", gamma: float = 1.0,
    logit_scale: float = 1.0, logit_offset: float = 0.0,
) -> tuple[Tensor, int]:  # fmt: skip
    """See ``_ops.soft_f1``; the batch dim of the result is its first."""
    rank = input.dim() - (in_dims[0] is not None)
    elements = _options.elements(activation, average, samplewise, logit_scale, logit_offset, rank)
    scoring = _options.f_beta(beta, smooth, absent, link, gamma, average, reduction)
    sums = _vmapped_sums(info, (*in_dims, None), (input, target, weight), elements)
    return _autograd.score(sums, scoring, elements).to(reference.accumulator(input)), 0


def confusion_sums(
    info: Any, in_dims: Any, input: Tensor, target: Tensor, weight: Tensor | None = None,
    *, activation: str = "sigmoid", average: str = "macro", samplewise: bool = False,
    logit_scale: float = 1.0, logit_offset: float = 0.0,
) -> tuple[Tensor, int]:  # fmt: skip
    """See ``_ops.confusion_sums``; the batch dim of the result is its second."""
    rank = input.dim() - (in_dims[0] is not None)
    elements = _options.elements(activation, average, samplewise, logit_scale, logit_offset, rank)
    return _vmapped_sums(info, (*in_dims, None), (input, target, weight), elements), 1
