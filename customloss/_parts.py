"""What of a loss adds up over parts of a batch, be they shards of ranks or micro-batches.

The confusion sums do. With ``samplewise`` every sample is scored by itself, and what adds up is the
sum of the samples' losses and their number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from customloss import reference

# sums [4, samples, classes] to the loss of every group and whether the group counts
Groups = Callable[[Tensor], tuple[Tensor, Tensor]]


def totals(sums: Tensor, groups: Groups, average: str, samplewise: bool) -> Tensor:
    """The numbers of this part that are to be added: ``sums``, or with samplewise ``[2]``."""
    if not samplewise:
        return sums
    loss, counted = groups(sums)
    total = reference.average_groups(loss, sums, counted, average, True, "sum")
    # a sample counts if one of its classes does: then the average of ones is one
    ones = torch.ones_like(loss).detach()
    ones = torch.where(counted, ones, torch.zeros_like(ones))
    count = reference.average_groups(ones, sums.detach(), counted, average, True, "sum")
    return torch.stack([total, count])


def loss(totals: Tensor, groups: Groups, average: str, samplewise: bool, reduction: str) -> Tensor:
    """The loss of the whole from the added totals of its parts."""
    if not samplewise:
        losses, counted = groups(totals)
        return reference.average_groups(losses, totals, counted, average, False, reduction)
    if reduction == "none":
        raise ValueError(
            "reduction: expected 'mean' or 'sum' for a batch in parts with samplewise=True (each "
            "part holds the losses of its own samples only), got 'none'"
        )
    total, count = totals.unbind(0)
    if reduction == "sum":
        return total
    empty = count == 0
    safe = torch.where(empty, torch.ones_like(count), count)
    return torch.where(empty, torch.zeros_like(total), total / safe)
