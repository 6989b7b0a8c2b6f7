"""The soft confusion sums themselves: every loss is made of them, and any score can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from customloss._spec import checks
from customloss._spec import options as spec
from customloss._spec.arguments import Data
from customloss._spec.options import Reading
from customloss.losses import float_labels, request
from customloss.losses.keywords import known_only
from customloss.losses.named_sums import ConfusionSums, ExtendedSums, named
from customloss.reference.sums import accumulator

if TYPE_CHECKING:
    from typing_extensions import Unpack


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


@known_only
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
    ignore_index: int | Sequence[int] | None = None,
    label_smoothing: float = 0.0,
    out_of_range: str = "raise",
    nan_targets: str = "propagate",
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
    options: dict[str, Any] = {
        "activation": activation, "average": average, "samplewise": samplewise,
        "logit_scale": logit_scale, "logit_offset": logit_offset, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "out_of_range": out_of_range,
        "nan_targets": nan_targets, "focal_gamma": focal_gamma, "focal_split": focal_split,
        "log_smoothing": log_smoothing,
    }  # fmt: skip
    asked = {
        "log_loss": log_loss, "squares": squares, "distance": distance, "focal": focal,
        "hard": hard, "support": support,
    }  # fmt: skip
    data = float_labels.read(Data(input, target, weight), options)
    given = {**options, **asked}
    # "local": sums of a part are not wrong, so nobody is warned of them
    checked = {"check_target": check_target, "process_group": "local"}
    request.prepared(*data, {**options, **checked})
    checks.sums_dtype(dtype)
    try:
        sums = torch.ops.customloss.confusion_sums(*data, **given)
    except RuntimeError:
        checks.option_types(given, spec.SUMS)
        raise
    one_group = average == "micro" or input.dim() == 1
    extra = spec.extra_bits(asked)
    return named(sums, extra, samplewise, one_group, dtype or accumulator(input))
