"""Random operands of a loss: shapes, targets of every kind, weights, and inputs."""

from __future__ import annotations

import random
from typing import Any

import torch
from cases import TARGET_DTYPES, weight_shape
from oracle import holds_numbers, placed_weight
from torch import Tensor

SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 64, 65)
DTYPES = (torch.float64, torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class Draw(random.Random):
    """What a call is drawn with."""

    def rarely(self, chance: float) -> bool:
        return self.random() < chance

    def tensors(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.randrange(2**31))

    def rand(self, shape: Any) -> Tensor:
        return torch.rand(tuple(shape), generator=self.tensors(), dtype=torch.float64)

    def randn(self, shape: Any) -> Tensor:
        return torch.randn(tuple(shape), generator=self.tensors(), dtype=torch.float64)


def drawn_shape(draw: Draw, softmax: bool) -> list[int]:
    rank = draw.choice((2, 2, 3, 4, 4, 5) if softmax else (1, 2, 2, 3, 4, 4, 5))
    shape = [draw.choice(SIZES) for _ in range(rank)]
    if rank > 1:
        shape[1] = draw.choice((2, 2, 3, 3, 4, 5, 7, 17, 33) + (() if softmax else (1, 1)))
    if draw.rarely(0.15):
        place = draw.choice([i for i in range(rank) if i != 1])
        shape[place] = draw.choice((257, 521, 1031))
    most = draw.choice((60, 600, 3000, 3000, 20_000))
    while torch.Size(shape).numel() > most:
        place = max((i for i in range(rank) if i != 1), key=lambda i: shape[i])
        if shape[place] == 1:
            break
        shape[place] = max(shape[place] // 2, 1)
    if draw.rarely(0.02):
        shape[draw.choice([i for i in range(rank) if i != 1])] = 0
    return shape


def labels(draw: Draw, shape: list[int], options: dict[str, Any]) -> Tensor:
    """Class numbers of any dtype, some of them ignored or of no class."""
    classes, places = shape[1], (shape[0], *shape[2:])
    present = draw.randint(1, classes)  # the others are absent
    numbers = (draw.rand(places) * present).long()
    floats = len(shape) > 2 and draw.rarely(0.1)
    dtype = draw.choice((torch.float32, torch.float64)) if floats else draw.choice(LABELS)
    others = [classes, 120] + ([255] if dtype != torch.int8 else [])
    others += [-1, -100] if dtype != torch.uint8 else []
    if draw.rarely(0.5):
        ignored = draw.sample([*others, draw.randrange(classes)], draw.choice((1, 1, 2, 3)))
        options["ignore_index"] = ignored[0] if len(ignored) == 1 else tuple(ignored)
        for value in ignored:
            numbers[draw.rand(places) < 0.15] = value
    if draw.rarely(0.15):
        options["out_of_range"] = "ignore"
        numbers[draw.rand(places) < 0.1] = draw.choice(others)
    if floats or draw.rarely(0.2):
        numbers = numbers.unsqueeze(1)
    return numbers.to(dtype)


def dense(draw: Draw, shape: list[int], activation: str, options: dict[str, Any]) -> Tensor:
    """A target in the shape of the input: hard or soft, some of it ignored or missing."""
    soft = draw.rarely(0.4)
    if activation == "softmax":
        if soft:
            return draw.randn(shape).mul(2).softmax(1).to(draw.choice(DTYPES))
        of_class = draw.rand((shape[0], 1, *shape[2:])) * draw.randint(1, shape[1])
        numbers = torch.arange(shape[1]).reshape(-1, *(1 for _ in shape[2:]))
        return (of_class.long() == numbers).to(draw.choice((torch.bool, *LABELS, *DTYPES)))
    positives = draw.choice((0.5, 0.5, 0.1, 0.9))
    target = (draw.rand(shape) < positives).double()
    if len(shape) > 1 and draw.rarely(0.3):
        target[:, draw.randrange(shape[1])] = 0  # an absent class
    if soft:
        target = draw.rand(shape)
    dtype = draw.choice(DTYPES) if soft else draw.choice((torch.bool, torch.bool, *TARGET_DTYPES))
    floating = dtype.is_floating_point
    if dtype != torch.bool and dtype not in UNSIGNED and draw.rarely(0.3):
        values = [0, 1, 2, 120] + ([-1] if dtype != torch.uint8 else [])
        ignored = draw.sample(values, draw.choice((1, 1, 2)))
        options["ignore_index"] = ignored[0] if len(ignored) == 1 else list(ignored)
        for value in ignored:
            target[draw.rand(shape) < 0.15] = value
    if floating and draw.rarely(0.2):
        options["nan_targets"] = "ignore"
        target[draw.rand(shape) < 0.2] = float("nan")
    return target.to(dtype)


def drawn_weight(draw: Draw, shape: list[int], numbers: bool) -> Tensor | None:
    kind = draw.choice((None, None, None, "full", "full", "mask", "class", "sample", "pixel",
                        "last", "scalar", "ones_rank", "numbers"))  # fmt: skip
    if kind is None:
        return None
    if kind == "numbers" and (len(shape) < 3 or not (numbers or shape[1] == 1)):
        kind = "full"
    own = (shape[0], *shape[2:]) if kind == "numbers" else weight_shape(kind, tuple(shape))
    weight = draw.rand(own) + 0.1
    if kind == "mask" or draw.rarely(0.3):
        weight = weight * (draw.rand(own) > 0.4)
    dtype = draw.choice((torch.float64, torch.float32, torch.float32, torch.float16,
                         torch.bfloat16, torch.bool, torch.uint8, torch.int64))  # fmt: skip
    return (weight if dtype.is_floating_point else (3 * weight).round()).to(dtype)


def drawn_input(draw: Draw, shape: list[int], target: Tensor, unit: bool, hard: bool) -> Tensor:
    """Logits, some of them of a nearly perfect model; or probabilities."""
    if unit:
        input = 0.02 + 0.96 * draw.rand(shape)
        if hard and draw.rarely(0.3):  # a log-loss of these is that of the floor
            input[draw.rand(shape) < 0.1] = float(draw.randrange(2))
        return input
    if target.shape == torch.Size(shape) and draw.rarely(0.15):
        known = target.double().nan_to_num(0).clamp(0, 1)
        return (2 * known - 1) * draw.randn(shape).abs() * 6
    shift = draw.choice((-9.0, 9.0)) if draw.rarely(0.1) else 0.0  # few hits beside many misses
    return draw.randn(shape) * draw.choice((1.0, 1.0, 3.0, 0.1)) + shift


def with_junk(
    draw: Draw, input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any],
    softmax: bool,
) -> Tensor:  # fmt: skip
    """The input, with NaN where it does not count: ignored, missing, of weight 0."""
    ignored = options.get("ignore_index")
    ignored = () if ignored is None else ignored
    numbers = holds_numbers(input, target)
    own = target if target.dim() == input.dim() else target.unsqueeze(1)
    own = own.long() if own.dtype in UNSIGNED else own
    gone = torch.zeros(own.shape, dtype=torch.bool)
    for value in (ignored,) if isinstance(ignored, int) else ignored:
        gone = gone | (own == value)
    if options.get("nan_targets") == "ignore" and not numbers:
        gone = gone | own.isnan()
    gone = gone.expand(input.shape)
    if weight is not None:
        nothing = placed_weight(input, weight, numbers).reshape(input.shape) == 0
        gone = gone | (nothing.all(1, keepdim=True) if softmax else nothing)
    return input.masked_fill(gone & (draw.rand(input.shape) < 0.5), float("nan"))
