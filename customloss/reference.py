"""The specification: every operator in plain PyTorch, written to be read, not to be fast.

It judges the kernels, serves devices that have none, and is what ``torch.func`` transforms and
second derivatives differentiate. It imports nothing of this package but its own first half, the
sums of elements (``_reference_sums.py``); here they become losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from customloss._reference_sums import (
    EXTRA_ROWS as EXTRA_ROWS,
)
from customloss._reference_sums import (
    LOG_FLOOR as LOG_FLOOR,
)
from customloss._reference_sums import (
    Extra as Extra,
)
from customloss._reference_sums import (
    Operands as Operands,
)
from customloss._reference_sums import (
    Probability as Probability,
)
from customloss._reference_sums import (
    accumulator as accumulator,
)
from customloss._reference_sums import (
    confusion as confusion,
)
from customloss._reference_sums import (
    confusion_backward as confusion_backward,
)
from customloss._reference_sums import (
    group_dims as group_dims,
)
from customloss._reference_sums import (
    group_shape as group_shape,
)
from customloss._reference_sums import (
    is_class_index as is_class_index,
)
from customloss._reference_sums import (
    log_losses as log_losses,
)
from customloss._reference_sums import (
    operands as operands,
)
from customloss._reference_sums import (
    power as power,
)
from customloss._reference_sums import (
    probability as probability,
)
from customloss._reference_sums import (
    rows as rows,
)
from customloss._reference_sums import (
    shares as shares,
)


def similarity_loss(
    sums: Tensor,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    link: str,
    gamma: float,
) -> Tensor:
    """The linked similarity ``S = (A tp + s) / (A tp + s + B fp + C fn)`` of every group.

    Written with the misses ``B fp + C fn`` so that nothing cancels near a perfect score.
    An empty group that is predicted empty (0 / 0) has similarity 1 and gradient 0.
    """
    tp, fp, fn = sums[:3]
    hit = tp_weight * tp + smooth
    miss = fp_weight * fp + fn_weight * fn
    empty = (hit + miss) == 0
    whole = torch.where(empty, torch.ones_like(hit), hit + miss)
    if link == "log":
        loss = torch.log1p(miss / hit.clamp_min(LOG_FLOOR))
        return torch.where(empty, torch.zeros_like(loss), loss)
    if link == "negative":
        return torch.where(empty, -torch.ones_like(hit), -hit / whole)
    # not 0 / 1, whose gradient is not 0
    complement = torch.where(empty, torch.zeros_like(miss), miss / whole)
    if link == "focal" and gamma != 1.0:
        positive = complement != 0
        base = torch.where(positive, complement, torch.ones_like(complement))
        return torch.where(positive, base**gamma, torch.zeros_like(base))
    return complement


def with_absent(loss: Tensor, sums: Tensor, absent: str) -> tuple[Tensor, Tensor]:
    """The loss of groups without a positive target, and which groups count in a mean."""
    tp, fp, fn, tn = sums[:4]
    missing = (tp + fn) == 0
    if absent == "skip":
        return torch.where(missing, torch.zeros_like(loss), loss), ~missing
    if absent == "penalize":
        negatives = fp + tn
        safe = torch.where(negatives == 0, torch.ones_like(negatives), negatives)
        rate = torch.where(negatives == 0, torch.zeros_like(fp), fp / safe)
        loss = torch.where(missing, rate, loss)
    return loss, torch.ones_like(missing)


def _mean(loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over the last dim and whether it is of something, else it is 0."""
    total = weight.sum(-1)
    # a group of weight 0 adds nothing, not even a NaN, but its weight still has a gradient
    hidden = (weight == 0) & ~torch.isfinite(loss)
    numerator = torch.where(hidden, torch.zeros_like(loss), weight * loss).sum(-1)
    safe = torch.where(total == 0, torch.ones_like(total), total)
    return torch.where(total == 0, torch.zeros_like(numerator), numerator / safe), total != 0


def average_groups(
    loss: Tensor,
    sums: Tensor,
    counted: Tensor,
    average: str,
    samplewise: bool,
    reduction: str,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Losses ``[..., samples, classes]`` to what the caller asked for.

    First over the classes of a sample (``"macro"`` and ``"micro"`` a mean, ``"weighted"`` by
    support tp + fn, ``"none"`` not at all), then ``reduction`` over what is left. Means are
    weighted by ``class_weight``, and so are losses that are kept or added up.
    """
    weight = counted.to(loss.dtype)
    if class_weight is not None:
        weight = weight * class_weight
    if average == "weighted":
        weight = weight * (sums[0] + sums[2])
    left = 2
    if average != "none":
        loss, counted = _mean(loss, weight)
        left = 1
    elif class_weight is not None and reduction == "mean":
        return _mean(loss.flatten(-2), weight.expand(loss.shape).flatten(-2))[0]
    elif class_weight is not None:
        loss = loss * class_weight
    if reduction == "none":
        return loss if samplewise else loss.squeeze(-left)
    loss, counted = loss.flatten(-left), counted.flatten(-left)
    return _mean(loss, counted.to(loss.dtype))[0] if reduction == "mean" else loss.sum(-1)


def soft_f1(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    activation: str = "sigmoid",
    average: str = "macro",
    samplewise: bool = False,
    reduction: str = "mean",
    smooth: float = 0.0,
    absent: str = "score",
    link: str = "complement",
    gamma: float = 1.0,
    logit_scale: float = 1.0,
    logit_offset: float = 0.0,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The soft-Fβ loss ``1 - ((1+β²) tp + s) / ((1+β²) tp + β² fn + fp + s)``."""
    per_class = average != "micro" and input.dim() > 1
    if target.dim() < input.dim():  # class numbers
        target = target.unsqueeze(1)
    sums = confusion(
        input, target, weight, activation, logit_scale, logit_offset, samplewise, per_class,
        ignore_index, label_smoothing,
    )  # fmt: skip
    loss = similarity_loss(sums, 1 + beta**2, 1.0, beta**2, smooth, link, gamma)
    loss, counted = with_absent(loss, sums, absent)
    loss = average_groups(loss, sums, counted, average, samplewise, reduction)
    # [N] inputs have no class dimension to keep
    if average == "none" and reduction == "none" and input.dim() == 1:
        return loss[..., 0]
    return loss
