"""A small model and a tolerance, shared by the tests that split a batch into parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 5, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def network(dtype: torch.dtype) -> nn.Sequential:
    """Logits ``[N, CLASSES]`` of features ``[N, FEATURES]``; the same weights at every call."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(FEATURES, 4, dtype=dtype), nn.Tanh(), nn.Linear(4, CLASSES, dtype=dtype)
    )


def assert_equal(own: Tensor, expected: Tensor, what: object = "") -> None:
    """Equal up to the rounding that another order of additions causes."""
    error = (own - expected).abs().max() / expected.abs().max().clamp_min(1e-2)
    assert error <= TOLERANCE[own.dtype], f"{what}: off by {error:.1e}"
