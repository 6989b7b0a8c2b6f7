"""Batches of which some classes hold what is not finite, and what may come of it: nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from cases import Sample, lay_out
from judge import differentiated
from torch import Tensor

BAD = (float("nan"), float("inf"), float("-inf"))


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
