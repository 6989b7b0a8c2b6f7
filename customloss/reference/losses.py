"""The second half of the specification: from sums to similarities, losses and averages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from customloss.reference.sums import added, confusion, rows

# A similarity is raised to this before its logarithm is taken, unless the caller says so.
SIMILARITY_FLOOR = 1e-30


def similarity_loss(
    sums: Tensor,
    tp_weight: float,
    fp_weight: float,
    fn_weight: float,
    smooth: float,
    smooth_denominator: float,
    link: str,
    gamma: float,
    log_floor: float = SIMILARITY_FLOOR,
) -> Tensor:
    """The linked similarity ``S = (A tp + s) / (A tp + B fp + C fn + d)`` of every group.

    Written with the misses ``B fp + C fn + (d - s)`` so that nothing cancels near a perfect score.
    An empty group that is predicted empty (0 / 0) has similarity 1 and gradient 0. The logarithm is
    that of max(S, ``log_floor``).
    """
    tp, fp, fn = sums[:3]
    true_hit = tp_weight * tp
    wrong = fp_weight * fp + fn_weight * fn
    hit = true_hit + smooth
    miss = wrong + (smooth_denominator - smooth)
    whole = true_hit + wrong + smooth_denominator
    empty = whole == 0
    whole = torch.where(empty, torch.ones_like(whole), whole)
    if link == "log":
        low = hit / whole < log_floor
        loss = torch.log1p(miss / torch.where(low, torch.ones_like(hit), hit))
        loss = torch.where(low, torch.full_like(loss, -math.log(log_floor)), loss)
        return torch.where(empty, torch.zeros_like(loss), loss)
    if link == "negative":
        return torch.where(empty, -torch.ones_like(hit), -hit / whole)
    # a constant 0 for an empty group: the gradient of 0 / 1 would not be 0
    complement = torch.where(empty, torch.zeros_like(miss), miss / whole)
    if link == "focal" and gamma != 1.0:
        positive = complement != 0
        base = torch.where(positive, complement, torch.ones_like(complement))
        return torch.where(positive, base**gamma, torch.zeros_like(base))
    return complement


def with_absent(loss: Tensor, sums: Tensor, absent: str) -> tuple[Tensor, Tensor]:
    """The loss of groups without a positive target, and which groups count in a mean."""
    tp, fp, fn, tn = sums[:4]
    # a NaN is no absent class: it has to reach the loss
    missing = ((tp + fn) == 0) & ~fp.isnan()
    if absent == "skip":
        return torch.where(missing, torch.zeros_like(loss), loss), ~missing
    if absent == "penalize":
        negatives = fp + tn
        safe = torch.where(negatives == 0, torch.ones_like(negatives), negatives)
        rate = torch.where(negatives == 0, torch.zeros_like(fp), fp / safe)
        loss = torch.where(missing, rate, loss)
    return loss, torch.ones_like(missing)


def without_hidden(
    sums: Tensor, class_weight: Tensor, constant: bool = False
) -> tuple[Tensor, Tensor]:
    """``sums`` ``[rows, ..., classes]``, and the weights of their classes, with hidden groups
    replaced: groups of weight 0 whose sums are not all finite.

    Such a group may not reach a loss or a gradient, but 0 times a NaN is a NaN. So its sums become
    ones, where every score and its derivatives are finite, and its weight a constant 0. Groups
    with finite sums stay as they are, because a learned weight that is 0 has a gradient. Where the
    weights are ``constant`` these are replaced as well: a score may be 0 / 0 there.
    """
    hidden = class_weight == 0
    if not constant:
        hidden = hidden & ~sums.isfinite().all(0)
    kept = torch.where(hidden, torch.ones_like(sums), sums)
    return kept, torch.where(hidden, torch.zeros_like(class_weight), class_weight)


def _mean(loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over the last dim, and whether any weight counts; it is 0 if none does."""
    total = added(weight)
    # a group of weight 0, as one without support, adds nothing, not even a NaN
    loss = loss.masked_fill((weight == 0) & ~torch.isfinite(loss), 0)
    numerator = added(weight * loss)
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
    """From losses ``[..., samples, classes]`` to what the caller asked for.

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
    return _mean(loss, counted.to(loss.dtype))[0] if reduction == "mean" else added(loss)


def _times(factor: float | Tensor, row: Tensor) -> Tensor:
    """``factor * row``; where a factor is 0, what is not finite adds nothing."""
    if isinstance(factor, Tensor):
        row = row.masked_fill((factor == 0) & ~row.isfinite(), 0)
    return factor * row


def _of_scored(factor: float | Tensor, class_weight: Tensor) -> float | Tensor:
    """A factor of every class, 0 where it is not finite and the class does not count."""
    if not isinstance(factor, Tensor):
        return factor
    hidden = (class_weight == 0) & ~factor.isfinite()
    return torch.where(hidden, torch.zeros_like(factor), factor)


def pointwise_loss(
    sums: Sequence[Tensor],
    extra: int,
    factors: Sequence[float | Tensor],
    class_weight: Tensor | None = None,
    keep_samples: bool = False,
) -> Tensor:
    """``Σ v (a LP + b LN + c FP + d FN) / Σ v (m (tp + fn) + n (fp + tn) + l S)``: a cross-entropy,
    a focal loss.

    LP, LN, FP, FN and S are the rows of the log-losses, of focal and of the support; ``factors``
    are (a, b, c, d, m, n, l); v is ``class_weight``. The sums are over all groups, or with
    ``keep_samples`` over those of each sample. Where nothing counts the loss is 0. If m, n and l
    are all 0 it is divided by nothing.
    """
    names = rows(extra)
    *lost_by, positives, negatives, support = factors
    if class_weight is not None:
        lost_by = [_of_scored(factor, class_weight) for factor in lost_by]
        stacked, class_weight = without_hidden(torch.stack(tuple(sums)), class_weight)
        sums = stacked.unbind(0)
    terms = ("log_loss_pos", "log_loss_neg", "focal_pos", "focal_neg")
    parts = [
        _times(factor, sums[names.index(name)])
        for name, factor in zip(terms, lost_by)
        if isinstance(factor, Tensor) or factor
    ]
    numerator = parts[0]
    for part in parts[1:]:
        numerator = numerator + part
    tp, fp, fn, tn = sums[:4]
    divided = bool(positives or negatives or support)
    divisor = positives * (tp + fn) if divided else torch.zeros_like(tp)
    if negatives:
        divisor = divisor + negatives * (fp + tn)
    if support:
        divisor = divisor + support * sums[names.index("support")]
    if class_weight is not None:
        numerator, divisor = numerator * class_weight, divisor * class_weight
    if not keep_samples:
        numerator, divisor = numerator.flatten(-2), divisor.flatten(-2)
    numerator, divisor = added(numerator), added(divisor)
    if not divided:
        return numerator
    return quotient(numerator, divisor)


def quotient(numerator: Tensor, divisor: Tensor) -> Tensor:
    """``numerator / divisor``, and 0 without a gradient where the divisor is 0.

    An infinite numerator does not change with the divisor: its derivative would be infinite, and
    differences of it would make a NaN of every gradient."""
    divisor = torch.where(numerator.isinf(), divisor.detach(), divisor)
    empty = divisor == 0
    return numerator * divisor.masked_fill(empty, 1).reciprocal().masked_fill(empty, 0)


def without_class_dim(loss: Tensor, average: str, reduction: str, has_classes: bool) -> Tensor:
    """Drops the class dimension of a loss that is kept per group, if the input has no classes."""
    return loss[..., 0] if average == reduction == "none" and not has_classes else loss


def sums_loss(
    sums: Tensor,
    class_weight: Tensor | None,
    extra: int,
    samplewise: bool,
    similarity: tuple[float, float, float, float, float, str, float, float],
    averaging: tuple[str, str, str],
    score_weight: float,
    pointwise: tuple[float, ...],
    settled: Tensor | None = None,
) -> Tensor:
    """``score_weight`` times the loss of a similarity, plus a pointwise loss, from sums
    ``[rows, ..., samples, classes]``.

    ``similarity`` holds the arguments of :func:`similarity_loss` behind the sums; ``averaging`` the
    words of ``absent``, ``average`` and ``reduction``; ``pointwise`` the factors of
    :func:`pointwise_loss`, of which the first four are 0 if there is no such loss.
    ``class_weight`` is ``[2, classes]``: the first row is for the score, where a class of weight 0
    is left out, and the second for the pointwise loss. ``settled`` are the same sums with tp, fp,
    fn and tn constant in the input: a pointwise loss is divided by them, and what it is divided by
    does not depend on the input.
    """
    absent, average, reduction = averaging
    loss = sums.new_zeros(())
    of_score, of_pointwise = (None, None) if class_weight is None else class_weight.unbind(0)
    if score_weight:
        scored = sums
        if of_score is not None:
            scored, of_score = without_hidden(sums, of_score)
        loss = similarity_loss(scored, *similarity)
        loss, counted = with_absent(loss, scored, absent)
        loss = score_weight * average_groups(
            loss, scored, counted, average, samplewise, reduction, of_score
        )
    elif reduction == "none":
        groups = sums[0] if samplewise else sums[0, ..., 0, :]
        loss = torch.zeros_like(groups if average == "none" else groups[..., 0])
    if any(pointwise[:4]):
        keep_samples = samplewise and reduction == "none"
        rows_of_loss = (sums if settled is None else settled).unbind(0)
        loss = loss + pointwise_loss(rows_of_loss, extra, pointwise, of_pointwise, keep_samples)
    return loss


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
    smooth_denominator: float | None = None,
    absent: str = "score",
    link: str = "complement",
    gamma: float = 1.0,
    log_floor: float = SIMILARITY_FLOOR,
    logit_scale: float = 1.0,
    logit_offset: float = 0.0,
    ignore_index: int | Sequence[int] | None = None,
    label_smoothing: float = 0.0,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
) -> Tensor:
    """The soft-Fβ loss ``1 - ((1+β²) tp + s) / ((1+β²) tp + β² fn + fp + d)``, d = s if None."""
    per_class = average != "micro" and input.dim() > 1
    if target.dim() < input.dim():  # class numbers
        target = target.unsqueeze(1)
    sums = confusion(
        input, target, weight, activation, logit_scale, logit_offset, samplewise, per_class,
        ignore_index, label_smoothing, out_of_range=out_of_range, nan_targets=nan_targets,
    )  # fmt: skip
    denominator = smooth if smooth_denominator is None else smooth_denominator
    weights = (1 + beta**2, 1.0, beta**2)
    loss = similarity_loss(sums, *weights, smooth, denominator, link, gamma, log_floor)
    loss, counted = with_absent(loss, sums, absent)
    loss = average_groups(loss, sums, counted, average, samplewise, reduction)
    return without_class_dim(loss, average, reduction, input.dim() > 1)
