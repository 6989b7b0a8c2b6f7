"""Small inputs and targets of which every value is known."""

from __future__ import annotations

import torch
from torch import Tensor


def logits(*shape: int) -> Tensor:
    return torch.linspace(-3, 3, torch.Size(shape).numel()).reshape(shape)


def mask(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 3 == 0


def numbers(classes: int, *shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % classes


X, T = logits(2, 1, 6), mask(2, 1, 6)
XC, Y = logits(2, 3, 6), numbers(3, 2, 6)
