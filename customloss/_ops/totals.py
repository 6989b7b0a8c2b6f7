"""The numbers that may be summed over ranks or micro-batches, and the loss of their totals.

Without ``samplewise`` they are the confusion sums. With it every sample is scored by itself, and
they are the sum of the samples' losses and the number of samples that count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss.reference import losses
from customloss.reference.sums import added, mean, spread


class Groups(NamedTuple):
    """The losses of the groups ``[samples, classes]``, before they are averaged."""

    loss: Tensor
    sums: Any  # of these groups: [rows, ...], or a sequence of the rows
    counted: Tensor | None  # which groups count; None: all
    class_weight: Tensor | None

    def averaged(self, average: str, samplewise: bool, reduction: str) -> Tensor:
        """The loss that the caller asked for; see ``reference.average_groups``."""
        loss, sums, counted, weight = self
        weighs_kept = average == "none" and weight is not None
        if weighs_kept or counted is not None or average == "weighted":
            counted = torch.ones_like(loss, dtype=torch.bool) if counted is None else counted
            return losses.average_groups(
                loss, sums, counted, average, samplewise, reduction, weight
            )
        # the same in fewer operations: with so few numbers the time is the number of operations
        if weight is not None:
            loss = _weighted_mean(loss, weight)
        elif reduction != "mean" and average != "none":
            loss = mean(loss)
        if reduction == "mean":
            return mean(loss.flatten())
        if reduction == "sum":
            return added(loss.flatten())
        return loss if samplewise else loss[0]


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """The mean over the last dim, 0 without a gradient where all weights are 0. A loss of weight 0
    does not count, even if it is NaN."""
    total = spread(added(weight).unsqueeze(-1), weight.shape)
    nothing = total == 0
    share = (weight / total.masked_fill(nothing, 1)).masked_fill(nothing, 0)
    return added(share * loss.masked_fill((weight == 0) & ~loss.isfinite(), 0))


# from sums [rows, samples, classes] to the losses of the groups
GroupsOf = Callable[[Tensor], Groups]


def of_part(sums: Tensor, groups_of: GroupsOf, average: str, samplewise: bool) -> Tensor:
    """The numbers of this part that are to be added: ``sums``, or two with ``samplewise``."""
    if not samplewise:
        return sums
    groups = groups_of(sums)
    total = groups.averaged(average, True, "sum")
    # a sample counts if one of its classes counts: then its average of ones is 1, else 0
    ones = torch.ones_like(groups.loss).detach()
    if groups.counted is not None:
        ones = torch.where(groups.counted, ones, torch.zeros_like(ones))
    constants = [each.detach() for each in groups.sums]
    counts = groups._replace(loss=ones, sums=constants)
    return torch.stack([total, counts.averaged(average, True, "sum")])


def loss(
    totals: Tensor, groups_of: GroupsOf, average: str, samplewise: bool, reduction: str
) -> Tensor:
    """The loss of the whole from the added totals of its parts."""
    if not samplewise:
        return groups_of(totals).averaged(average, False, reduction)
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
