"""Whether a score returned a similarity; asked in the batches that ``check_target`` is about.

A score is any torch code, so it shows only with a batch. What it returned is used as it is; a
warning says why such a loss does not train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customloss import scores

# how far rounding leads out of [0, 1]
_ROUNDING = 1e-6


def mistakes(
    similarity: Tensor, counting: Tensor, link: str, runs: Sequence[tuple[int, int]] | None
) -> dict[str, str]:
    """What is wrong with the similarities of the groups that are ``counting``, a text for each
    mistake. The classes are those in the ``runs`` of class numbers, None: all."""
    is_nan = similarity.isnan()
    within = torch.where(counting & ~is_nan, similarity, 0.5)
    lost = counting & is_nan
    numbers = (within.amin(), within.amax(), lost.any().to(within.dtype))
    least, most, any_lost = torch.stack(numbers).tolist()
    found = _out_of_range(least, most, link)
    if any_lost:
        found["score"] = (
            f"expected a number for every group, got NaN for {_group(lost, runs)}, whose sums are "
            "finite: where it divides 0 by 0, customloss.scores.ratio(numerator, denominator) is 1 "
            "without a gradient"
        )
    return found


def counting(
    similarity: Tensor, rows: Sequence[Tensor], weight: Tensor | None, by_support: bool
) -> Tensor:
    """Which groups count and have finite sums: a NaN of the batch is not the score's. ``weight`` is
    that of the classes; with ``by_support`` groups without a positive do not count."""
    of_all = similarity.shape[-1] != rows[0].shape[-1]  # one similarity of all classes
    if of_all:
        rows = [row.sum(-1, keepdim=True) for row in rows]
    counts = torch.stack([*rows]).isfinite().all(0)
    if by_support:
        counts = counts & (rows[0] + rows[2] > 0)
    # else the classes are pooled
    if weight is not None and weight.shape[-1] == counts.shape[-1]:
        counts = counts & (weight != 0)
    return counts


def _out_of_range(least: float, most: float, link: str) -> dict[str, str]:
    """What a link that is not linear makes of a similarity out of [0, 1]: the logarithm of a sum is
    no loss, a power of 1 - s is 0 above 1, and a logarithm is constant below its floor."""
    found = {}
    if most > 1 + _ROUNDING and link not in scores.LINEAR_LINKS:
        found["similarity"] = (
            f"expected a similarity of at most 1 with link={link!r}, got {most:.6g}"
        )
    if least < -_ROUNDING and link in scores.LOG_LINKS:
        found["similarity below 0"] = (
            f"expected a similarity of at least 0 with link={link!r} (below log_floor the loss is "
            f"constant, without a gradient), got {least:.6g}: link='complement' takes any, or "
            "return (1 + s) / 2 if s is in [-1, 1]"
        )
    return found


def _group(lost: Tensor, runs: Sequence[tuple[int, int]] | None) -> str:
    """The first group that is ``lost``, in words."""
    sample, place = lost.nonzero()[0].tolist()
    words = []
    if lost.shape[-1] > 1:
        numbers = [n for run in runs or ((0, lost.shape[-1]),) for n in range(*run)]
        words.append(f"class {numbers[place]}")
    if lost.shape[0] > 1:
        words.append(f"sample {sample}")
    more = int(lost.sum()) - 1
    named = " of ".join(words) or "the only group"
    return f"{named} and {more} more" if more else named
