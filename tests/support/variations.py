"""What the variations of test_right_or_refused.py are made of, and how two ways are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawn_operands import Draw
from torch import Tensor

import customloss


def function(name: str) -> Callable[..., Tensor]:
    return getattr(customloss, f"{name}_loss")


def shape_of(draw: Draw, rank: int = 0, classes: int = 0) -> tuple[int, ...]:
    """``[N, C]`` or ``[N, C, *spatial]``."""
    rank = rank or draw.choice((2, 2, 3, 4, 4, 5))
    sizes = [draw.choice((1, 2, 3, 4, 6, 9)) for _ in range(rank)]
    return sizes[0], classes or draw.choice((2, 3, 4, 5)), *sizes[2:]


def labels_of(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return (draw.rand((shape[0], *shape[2:])) * shape[1]).long().to(dtype)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), leaf, retain_graph=True, materialize_grads=True)[0]


def same(own: Tensor, expected: Tensor, leaf: Tensor, other: Tensor | None = None) -> None:
    """Two ways to one loss: their values, and their gradients by float64 logits."""
    torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-14)
    pair = gradient(own, leaf), gradient(expected, leaf if other is None else other)
    scale = float(pair[1].abs().max()) if pair[1].numel() else 0.0
    torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11 * scale + 1e-15)


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"the message lacks {missing}: {caught.value}"


def averaging(draw: Draw, compound: bool = False) -> dict[str, Any]:
    average = draw.choice(("macro", "micro", "weighted", *(() if compound else ("none",))))
    return {"average": average, "reduction": draw.choice(("mean", "sum", "none")),
            "samplewise": draw.rarely(0.3)}  # fmt: skip
