"""Sums with the same bits for any number of threads, and operands whose gradients are such sums.

Torch cuts a long sum among its threads if a single number is left of it, and does not if there are
two. The gradient of what is broadcast is such a sum, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# from this size on torch may cut a sum among its threads
_LONG = 32768


def added(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum over the last dim, with the same bits for any number of threads."""
    single = values.shape[-1] == values.numel()
    if torch.compiler.is_compiling() or not single or values.numel() < _LONG:
        return values.sum(-1, dtype=dtype)
    half = values.numel() // 2
    first, second = values.flatten()[: 2 * half].view(2, half).sum(-1, dtype=dtype).unbind(0)
    rest = values[..., 2 * half :].sum(-1, dtype=dtype)  # the last one, if the number is odd
    return rest + (first + second)


def mean(values: Tensor) -> Tensor:
    """The mean over the last dim; see :func:`added`."""
    if torch.compiler.is_compiling() or values.numel() < _LONG:
        return values.mean(-1)
    return added(values) / values.shape[-1]


def spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """``values`` for broadcasting to ``shape``: of a single number a view in that shape, whose
    gradient is added up in two halves, so that it has the same bits for any number of threads."""
    if torch.compiler.is_compiling() or values.numel() != 1 or math.prod(shape) < _LONG:
        return values
    count = math.prod(shape)
    halves = values.reshape(1, 1).expand(2, 1).expand(2, (count + 1) // 2)
    return halves.flatten()[:count].view(shape)


def over_classes(values: Tensor) -> Tensor:
    """The sum over dim 1, for broadcasting to the shape of ``values``: see :func:`spread`."""
    if torch.compiler.is_compiling() or values.shape[1] != values.numel():
        return values.sum(1, keepdim=True)
    total = added(values.flatten()).reshape([1] * values.dim())
    return spread(total, values.shape)
