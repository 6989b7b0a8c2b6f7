"""The soft confusion sums themselves: every loss is made of them, and any score can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor

from customloss._spec import checks
from customloss._spec import options as spec
from customloss._spec.arguments import Data
from customloss._spec.options import Reading
from customloss.losses import request
from customloss.reference.sums import accumulator

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ConfusionSums(NamedTuple):
    """Soft confusion sums, one number per group.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    ``a + b``, and ``sum`` of a list, are the sums of both batches.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    def __add__(self, other: object) -> ConfusionSums:
        result: ConfusionSums = _added(self, other)
        return result

    def __radd__(self, other: object) -> ConfusionSums:
        return self + other


def _added(one: Any, other: object) -> Any:
    """The sums of two batches; 0 is where ``sum`` of a list begins."""
    if isinstance(other, int) and other == 0:
        return one
    kind: Any = type(one)
    if type(other) is not kind:
        return NotImplemented
    pairs: list[tuple[Any, Any]] = list(zip(tuple(one), cast(Any, other)))
    if any((mine is None) != (theirs is None) for mine, theirs in pairs):
        raise ValueError("sums: expected the same sums of both batches, got some of one alone")
    return kind(*(None if mine is None else mine + theirs for mine, theirs in pairs))


class ExtendedSums(NamedTuple):
    """The sums that were asked for, one number per group; None where they were not.

    ``log_loss_pos = Σ w t (-log p)``, ``log_loss_neg = Σ w (1-t) (-log (1-p))`` (0 for softmax),
    ``p2 = Σ w p²``, ``t2 = Σ w t²``, ``tp2 = Σ w t p²``, ``distance = Σ w |p - t|``,
    ``focal_pos = Σ w t m^γ (-log p)``, ``focal_neg = Σ w (1-t) m^γ (-log (1-p))`` with
    ``m = t (1-p) + (1-t) p`` (of a softmax m is 1-p, and the second is 0); ``focal`` is their sum.
    ``support = Σ w t``, with t before smoothing.
    ``hard`` counts decisions, p > 1/2 or the largest of a softmax, in float64 and without a
    gradient, so that they can be added up over an epoch. ``a + b``, and ``sum`` of a list, are the
    sums of both batches.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor
    log_loss_pos: Tensor | None = None
    log_loss_neg: Tensor | None = None
    p2: Tensor | None = None
    t2: Tensor | None = None
    tp2: Tensor | None = None
    distance: Tensor | None = None
    focal_pos: Tensor | None = None
    focal_neg: Tensor | None = None
    hard: ConfusionSums | None = None  # of the decisions: p > 1/2, or the largest of a softmax
    support: Tensor | None = None

    @property
    def focal(self) -> Tensor | None:
        """The sum of both focal terms."""
        if self.focal_pos is None or self.focal_neg is None:
            return None
        return self.focal_pos + self.focal_neg

    def __add__(self, other: object) -> ExtendedSums:
        result: ExtendedSums = _added(self, other)
        return result

    def __radd__(self, other: object) -> ExtendedSums:
        return self + other


@overload
def confusion_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    log_loss: Literal[False] = False,
    squares: Literal[False] = False,
    distance: Literal[False] = False,
    focal: Literal[False] = False,
    hard: Literal[False] = False,
    support: Literal[False] = False,
    **options: Unpack[Reading],
) -> ConfusionSums: ...


@overload
def confusion_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    log_loss: bool = False,
    squares: bool = False,
    distance: bool = False,
    focal: bool = False,
    hard: bool = False,
    support: bool = False,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
    log_smoothing: float | None = None,
    **options: Unpack[Reading],
) -> ExtendedSums: ...


def confusion_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    activation: str = "sigmoid",
    average: str = "macro",
    samplewise: bool = False,
    logit_scale: float = 1.0,
    logit_offset: float = 0.0,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    log_loss: bool = False,
    squares: bool = False,
    distance: bool = False,
    focal: bool = False,
    hard: bool = False,
    support: bool = False,
    focal_gamma: float = 2.0,
    focal_split: bool = False,
    log_smoothing: float | None = None,
    dtype: torch.dtype | None = None,
    check_target: bool = False,
) -> ConfusionSums | ExtendedSums:
    """The soft confusion sums of every group, differentiable: any score can be built on them.

    The arguments are those of :func:`soft_f1_loss`; ``average="micro"`` pools the classes and any
    other word keeps them apart.

    Args:
        log_loss, squares, distance, focal, hard, support: sums to add up in the same pass, see
            :class:`ExtendedSums`. ``hard`` are those of the decisions, for metrics in training.
        focal_gamma: the γ of the focal sums, >= 0.
        focal_split: m is 1-p before the first logarithm of the focal sums and p before the second;
            for hard targets that is the same.
        log_smoothing: ε of the log-losses alone; None: ``label_smoothing``.
        dtype: of the sums. By default float64 for float64 input, else float32; they are added
            up in float64 either way.

    Returns:
        ``(tp, fp, fn, tn)``, each a scalar, ``[C]``, ``[N]`` (samplewise micro) or ``[N, C]``; if
        any further sum was asked for, an :class:`ExtendedSums` of tensors of that shape.

    Example::

        tp, fp, fn, tn = customloss.confusion_sums(logits, target)
        loss = 1 - (2 * tp / (2 * tp + fp + fn)).mean()

        sums = customloss.confusion_sums(logits, target, squares=True, hard=True)
        loss = 1 - (2 * sums.tp / (sums.p2 + sums.t2)).mean()
        accuracy = (sums.hard.tp + sums.hard.tn) / sum(sums.hard)
    """
    options = {
        "activation": activation, "average": average, "samplewise": samplewise,
        "logit_scale": logit_scale, "logit_offset": logit_offset, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "focal_gamma": focal_gamma, "focal_split": focal_split,
        "log_smoothing": log_smoothing,
    }  # fmt: skip
    asked = {
        "log_loss": log_loss, "squares": squares, "distance": distance, "focal": focal,
        "hard": hard, "support": support,
    }  # fmt: skip
    given = {**options, **asked}
    data = Data(input, target, weight)
    request.prepared(*data, {"check_target": check_target, "ignore_index": ignore_index})
    checks.sums_dtype(dtype)
    try:
        sums = torch.ops.customloss.confusion_sums(*data, **given)
    except RuntimeError:
        checks.option_types(given, spec.SUMS)
        raise
    if average == "micro" or input.dim() == 1:
        sums = sums[:, :, 0]
    if not samplewise:
        sums = sums[:, 0]
    exact, sums = sums, sums.to(dtype or accumulator(input))
    rows = sums.unbind(0)
    if not any(asked.values()):
        return ConfusionSums(*rows)
    names = [name for word, names in spec.ROWS.items() if asked[word] for name in names]
    named: dict[str, Any] = dict(zip(names, rows[4:]))
    if hard:
        for name in spec.ROWS["hard"]:
            del named[name]
        # float32 would lose a count beyond 2^24
        first = 4 + names.index("hard_tp")
        named["hard"] = ConfusionSums(*exact[first : first + 4].detach().unbind(0))
    return ExtendedSums(*rows[:4], **named)
