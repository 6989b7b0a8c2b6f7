"""The sums for where they are differentiated: what moves two of them is summed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from customloss.reference.sums import (
    confusion_shares,
    filled,
    moved,
    operands,
    probability,
    shares,
    summed,
    sums_dtype,
)


def differentiable_confusion(
    input: Tensor, target: Tensor, weight: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """``sums.confusion`` in the dtype of sums, for where it is differentiated, and the same with
    tp, fp, fn and tn constant in the input.

    The input moves fn by as much as tp, and tn by as much as fp, in the other direction; a target
    moves fp against tp, and tn against fn. Each of these is one sum here, so what the gradients by
    two of the four have in common, as the denominator of a cross-entropy, cancels before it is
    rounded to the dtype of the input.
    """
    activation, scale, offset, per_sample, per_class, ignore_index, smoothing, *rest = arguments
    extra, gamma, split, log_smoothing, out_of_range, nan_targets = rest
    reading = (ignore_index, smoothing, log_smoothing, out_of_range, nan_targets)
    measured = (activation, scale, offset, extra, gamma, split)
    x, t, w, holes = operands(input, target, weight, measured, *reading)
    p, q, _ = probability(x, activation, scale, offset)
    labels, settled = t.smoothed, (p.detach(), q.detach())
    by_input, by_target = moved(p, q), labels - labels.detach()
    own = (
        *confusion_shares(*settled, labels.detach()),
        *(by_target * each for each in settled),
        *(labels * by_input, (1 - labels) * by_input),
    )
    others = shares(x, t, *measured)[4:]
    terms = filled(torch.cat([torch.stack(torch.broadcast_tensors(*own)), others]), holes)
    sums = summed(terms if w is None else terms * w, input, per_sample, per_class)
    found, moves, others = sums.to(sums_dtype(input.device)).split([4, 4, len(others)])
    of_p, of_q, hits, alarms = moves.unbind(0)
    constant = found + torch.stack([of_p, -of_p, of_q, -of_q])
    whole = constant + torch.stack([hits, alarms, -hits, -alarms])
    return torch.cat([whole, others]), torch.cat([constant, others])
