"""Epoch metrics of torchmetrics 1.9 from the pass that the loss made.

The hard sums of a loss go into the states of a metric, which then computes what it would have
computed had it been updated with the predictions::

    loss, sums = criterion.with_sums(logits, target, hard=True)
    customloss.compat.torchmetrics.update(metric, sums)

Metrics with the states tp, fp, tn, fn: F1, F-beta, precision, recall, accuracy, specificity and
Hamming distance, of binary, multiclass and multilabel problems. Metrics of a confusion matrix:
Jaccard, Matthews' correlation and Cohen's kappa, of binary and multilabel problems. And the
DiceScore of segmentation.

What does not count in the loss does not count in the metric: give the loss the ``ignore_index`` of
the metric. A softmax decides for the largest class, a sigmoid at 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss.compat.drop_in import plain, refused


class _Counts(NamedTuple):
    """Whole numbers, ``[*, classes]`` or scalars."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def pooled(self) -> _Counts:
        """Those of all samples and classes together."""
        return _Counts(*(each.sum() for each in self))

    def of_classes(self, name: str, classes: int) -> _Counts:
        """Those of every class, ``[samples, classes]``."""
        if not self.tp.dim() or self.tp.shape[-1] != classes:
            raise ValueError(
                f"sums: expected those of {classes} classes for {name}={classes}, got the shape "
                f"{list(self.tp.shape)}"
            )
        return _Counts(*(each.reshape(-1, classes) for each in self))


def update(metric: Any, sums: Any) -> None:
    """Adds hard sums to the states of a metric, as ``metric.update`` does with predictions.

    Args:
        metric: a metric of torchmetrics; see the top of the file.
        sums: of ``criterion.with_sums(input, target, hard=True)``, or their ``hard``.

    Raises:
        NotImplementedError: what the four sums of each class do not say; the message has the
            nearest way.
        ValueError: the sums are of other classes than the metric, or are no whole numbers, as with
            a ``weight``; the latter is looked for only if the metric has ``validate_args``, since a
            GPU is waited for.
    """
    ancestors = [kind.__name__ for kind in type(metric).__mro__]
    add = next((_ADDED[name] for name in ancestors if name in _ADDED), None)
    if add is None:
        raise refused(
            "update", f"a {type(metric).__name__}", "metric.update takes predictions and targets"
        )
    counts = _counts(sums, metric)

    def added() -> None:
        add(metric, counts)

    metric._wrap_update(added)()  # which counts the update and forgets what was computed


def _counts(sums: Any, metric: Any) -> _Counts:
    hard = sums
    if hasattr(sums, "hard"):
        hard = sums.hard
        if hard is None:
            raise ValueError("sums: expected hard ones, of with_sums(..., hard=True), got none")
    given = torch.stack([plain(each).detach() for each in (hard.tp, hard.fp, hard.fn, hard.tn)])
    whole = given.round()
    if getattr(metric, "validate_args", True) and not torch.equal(given, whole):
        raise ValueError(
            "sums: expected whole numbers, of with_sums(..., hard=True) with hard targets and "
            "without a weight of fractions, got "
            f"{given.tolist()}"
        )
    return _Counts(*whole.to(device=metric.device, dtype=torch.long).unbind(0))


def _at_one_half(metric: Any) -> None:
    if metric.threshold != 0.5:
        raise refused(
            metric, f"threshold={metric.threshold}",
            "the hard sums are those at 0.5; metric.update takes predictions",
        )  # fmt: skip


def _one_class(counts: _Counts) -> _Counts:
    if counts.tp.dim() and counts.tp.shape[-1] != 1:
        raise ValueError(
            "sums: expected those of one class for a binary metric (of a softmax of two take "
            f"those of class 1), got the shape {list(counts.tp.shape)}"
        )
    return counts.pooled()


def _add_scores(metric: Any, counts: _Counts) -> None:
    """Into the states tp, fp, tn and fn."""
    if metric.multidim_average != "global":
        raise refused(
            metric, f"multidim_average={metric.multidim_average!r}",
            "take 'global', or metric.update with predictions",
        )  # fmt: skip
    metric._update_state(counts.tp, counts.fp, counts.tn, counts.fn)


def _binary_scores(metric: Any, counts: _Counts) -> None:
    _at_one_half(metric)
    _add_scores(metric, _one_class(counts))


def _multiclass_scores(metric: Any, counts: _Counts) -> None:
    if metric.top_k != 1:
        raise refused(metric, f"top_k={metric.top_k}", "metric.update takes predictions")
    counts = counts.of_classes("num_classes", metric.num_classes)
    pooled = metric.average == "micro"
    _add_scores(metric, counts.pooled() if pooled else _Counts(*(n.sum(0) for n in counts)))


def _multilabel_scores(metric: Any, counts: _Counts) -> None:
    _at_one_half(metric)
    counts = counts.of_classes("num_labels", metric.num_labels)
    _add_scores(metric, _Counts(*(each.sum(0) for each in counts)))


def _add_matrix(metric: Any, counts: _Counts) -> None:
    """Into a confusion matrix, rows of the target."""
    rows = torch.stack((counts.tn, counts.fp, counts.fn, counts.tp), -1)
    metric.confmat += rows.unflatten(-1, (2, 2))


def _binary_matrix(metric: Any, counts: _Counts) -> None:
    _at_one_half(metric)
    _add_matrix(metric, _one_class(counts))


def _multilabel_matrix(metric: Any, counts: _Counts) -> None:
    _at_one_half(metric)
    counts = counts.of_classes("num_labels", metric.num_labels)
    _add_matrix(metric, _Counts(*(each.sum(0) for each in counts)))


def _multiclass_matrix(metric: Any, counts: _Counts) -> None:
    raise refused(
        metric, "a matrix of which class was taken for which, whose row and column sums alone four "
        "sums of each class give,",
        "customloss.scores.jaccard and multiclass_mcc have the sums themselves, "
        "and metric.update takes predictions",
    )  # fmt: skip


def _dice(metric: Any, counts: _Counts) -> None:
    """Into the lists of a DiceScore, one row for each sample."""
    if counts.tp.dim() < 2 and metric.aggregation_level != "global":
        raise refused(
            metric, "aggregation_level='samplewise' with sums of a whole batch",
            "take 'global', or a loss with samplewise=True, whose sums are [N, C]",
        )  # fmt: skip
    counts = counts.of_classes("num_classes", metric.num_classes)
    if not metric.include_background:
        counts = _Counts(*(each[:, 1:] for each in counts))
    metric.numerator.append(2 * counts.tp)
    metric.denominator.append(2 * counts.tp + counts.fp + counts.fn)
    metric.support.append(counts.tp + counts.fn)


_ADDED: dict[str, Callable[[Any, _Counts], None]] = {
    "BinaryStatScores": _binary_scores,
    "MulticlassStatScores": _multiclass_scores,
    "MultilabelStatScores": _multilabel_scores,
    "BinaryConfusionMatrix": _binary_matrix,
    "MultilabelConfusionMatrix": _multilabel_matrix,
    "MulticlassConfusionMatrix": _multiclass_matrix,
    "DiceScore": _dice,
}

__all__ = ("update",)
