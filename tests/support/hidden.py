"""Batches of which some classes hold what is not finite, and what may come of it: nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from cases import Sample, lay_out
from judge import differentiated
from torch import Tensor

import customloss

# Losses that reach every kernel, for each activation.
LOSSES: dict[str, dict[str, dict[str, Any]]] = {
    "sigmoid": {
        "dice": {},
        "jaccard": {"average": "micro", "smooth": 1.0},
        "mcc": {"average": "none", "reduction": "none"},
        "dice_bce": {},
        "dice_focal": {"label_smoothing": 0.1},
        "squared_dice": {"average": "weighted"},
        "semimetric_dice": {"ignore_index": -1, "samplewise": True},
    },
    "softmax": {
        "dice": {},
        "dice_ce": {"label_smoothing": 0.1},
        "dice_focal": {"samplewise": True},
        "semimetric_dice": {"average": "none"},
    },
}
BAD = (float("nan"), float("inf"), float("-inf"))


def every_second(classes: int) -> range:
    """The classes that :func:`loss_of_the_others` hides."""
    return range(0, classes, 2)


def loss_of_the_others(name: str, activation: str, classes: int) -> Callable[..., Tensor]:
    """A loss of ``LOSSES`` in which every second class weighs 0, the first of them too."""
    function = getattr(customloss, f"{name}_loss")
    weight = [float(c % 2) for c in range(classes)]
    return partial(function, class_weight=weight, activation=activation, **LOSSES[activation][name])


def spoiled(
    sample: Sample, hidden: Sequence[int], softmax: bool = False, layout: str = "contiguous"
) -> Sample:
    """``sample`` with NaN and infinities in the classes ``hidden`` of every operand that has
    classes; ``layout`` is that of input and target. Logits of a ``softmax`` stay: each is part of
    every class."""

    def spoil(operand: Tensor | None) -> Tensor | None:
        whole = operand is not None and operand.shape[1:2] == sample.input.shape[1:2]
        if not whole or not operand.is_floating_point():
            return operand
        if softmax and operand is sample.input:
            return operand
        result = operand.clone(memory_format=torch.contiguous_format)
        for cls in hidden:
            own = result[:, cls]
            bad = torch.tensor(BAD, dtype=own.dtype).repeat(own.numel() // len(BAD) + 1)
            own.copy_(bad[: own.numel()].view(own.shape))
        return result if operand is sample.weight else lay_out(result, layout)

    input, target, weight, options = sample
    return Sample(spoil(input), spoil(target), spoil(weight), options)


def assert_hidden(
    loss: Callable[..., Tensor],
    sample: Sample,
    hidden: Sequence[int],
    softmax: bool = False,
    layout: str = "contiguous",
) -> None:
    """What the hidden classes hold changes no bit of the loss and of the other classes' gradients,
    and their own gradients are exactly 0, except by the logits of a softmax."""
    clean, wanted = differentiated(loss, sample)
    value, found = differentiated(loss, spoiled(sample, hidden, softmax, layout))
    assert clean.isfinite().all() and torch.equal(value, clean)
    for place, (own, other) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(own, other), f"the gradient by operand {place}"
        if own.dim() > 1 and own.shape[1] > 1 and not (softmax and place == 0):
            assert not own[:, list(hidden)].any()
