"""What of a loss adds up over parts of a batch, be they shards of ranks or micro-batches.

The confusion sums do. With ``samplewise`` every sample is scored by itself, and what adds up is the
sum of the samples' losses and their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss import reference


class Groups(NamedTuple):
    """The losses of the groups ``[samples, classes]``, before they are averaged."""

    loss: Tensor
    sums: Any  # of these groups: [rows, ...], or a sequence of the rows
    counted: Tensor | None  # which groups count; None: all
    class_weight: Tensor | None

    def averaged(self, average: str, samplewise: bool, reduction: str) -> Tensor:
        """What the caller asked for; see ``reference.average_groups``."""
        loss, sums, counted, weight = self
        kept = average == "none" and weight is not None
        if kept or counted is not None or average == "weighted":
            counted = torch.ones_like(loss, dtype=torch.bool) if counted is None else counted
            return reference.average_groups(
                loss, sums, counted, average, samplewise, reduction, weight
            )
        # the rest is the same in a few operations, which count where there are a few numbers
        if weight is not None:
            loss = _weighted_mean(loss, weight)
        elif reduction != "mean" and average != "none":
            loss = loss.mean(-1)
        if reduction == "mean":
            return loss.mean()
        if reduction == "sum":
            return loss.sum()
        return loss if samplewise else loss[0]


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Over the last dim; 0 of weights that are all 0. What has weight 0 is not seen, even a NaN."""
    total = weight.sum()
    share = weight / total.masked_fill(total == 0, 1)
    return (share * loss.masked_fill((weight == 0) & ~loss.isfinite(), 0)).sum(-1)


# sums [rows, samples, classes] to the groups
Score = Callable[[Tensor], Groups]


def totals(sums: Tensor, groups: Score, average: str, samplewise: bool) -> Tensor:
    """The numbers of this part that are to be added: ``sums``, or with samplewise ``[2]``."""
    if not samplewise:
        return sums
    found = groups(sums)
    total = found.averaged(average, True, "sum")
    # a sample counts if one of its classes does: then the average of ones is one
    ones = torch.ones_like(found.loss).detach()
    if found.counted is not None:
        ones = torch.where(found.counted, ones, torch.zeros_like(ones))
    fixed = [each.detach() for each in found.sums]
    ones_of = found._replace(loss=ones, sums=fixed)
    return torch.stack([total, ones_of.averaged(average, True, "sum")])


def loss(totals: Tensor, groups: Score, average: str, samplewise: bool, reduction: str) -> Tensor:
    """The loss of the whole from the added totals of its parts."""
    if not samplewise:
        return groups(totals).averaged(average, False, reduction)
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
