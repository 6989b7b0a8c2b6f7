"""The losses as functions: checks with named errors in front of the operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from customloss import _checks, reference


class ConfusionSums(NamedTuple):
    """Soft confusion sums, one number per group.

    ``tp = Σ w t p``, ``fp = Σ w (1-t) p``, ``fn = Σ w t (1-p)``, ``tn = Σ w (1-t) (1-p)``.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def soft_f1_loss(
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
    check_target: bool = False,
) -> Tensor:
    """The soft-F1 (Fβ) loss of logits, in one pass forward and one backward.

    With the soft confusion sums of a group (see :func:`confusion_sums`)::

        loss = 1 - ((1 + β²) tp + s) / ((1 + β²) tp + fp + β² fn + s)
             =     (fp + β² fn)      / ((1 + β²) tp + fp + β² fn + s)

    evaluated in the second form, which loses no digits near a perfect score. A group that holds
    nothing and is predicted empty (0 / 0) has loss 0 and gradient 0.

    Args:
        input: logits (or probabilities, ``activation="none"``), ``[N]``, ``[N, C]`` or
            ``[N, C, *spatial]``; float32, float64, float16 or bfloat16, any strides.
        target: the shape of ``input``; bool, integer or float, soft labels in [0, 1] allowed.
        weight: per-element weight or mask, broadcastable to ``input``. Weight 0 removes an
            element, even a NaN.
        beta: the β of Fβ, >= 0; above 1 it favours recall.
        activation: ``"sigmoid"`` or ``"none"``.
        average: ``"macro"`` (a group per class, then the mean), ``"micro"`` (one group),
            ``"weighted"`` (macro weighted by support tp + fn) or ``"none"`` (classes are kept).
        samplewise: groups are also split along dim 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over what the average leaves.
        smooth: s, in units of elements, >= 0.
        absent: what a group without a positive target contributes: ``"score"`` (the formula as it
            stands: loss 1 and no gradient), ``"skip"`` (left out of the mean and of its
            denominator) or ``"penalize"`` (its soft false-positive rate fp / (fp + tn)).
        link: ``"complement"`` 1 - F, ``"log"`` -log F, ``"focal"`` (1 - F)^gamma or
            ``"negative"`` -F.
        gamma: the exponent of ``link="focal"``, > 0; the slope at a perfect score is 0.
        logit_scale, logit_offset: p = sigmoid(logit_scale * (input - logit_offset)).
        check_target: raise unless every target lies in [0, 1]; reads the tensor and waits for
            its device.

    Returns:
        A scalar; ``[N]``, ``[C]`` or ``[N, C]`` with ``reduction="none"``, as samples and classes
        are kept. float64 for float64 input, else float32.

    Raises:
        TypeError: a dtype or type that cannot be used; the message names the argument.
        ValueError: shapes or devices that do not fit, a word or number out of range, or no group.

    Source: Jansche, "Maximum Expected F-Measure Training of Logistic Regression Models",
    HLT/EMNLP 2005; -log F: Zhao et al., "Optimizing the F-measure for Threshold-free Salient
    Object Detection", ICCV 2019.
    """
    _checks.are_tensors(input, target, weight)
    if check_target:
        _checks.target_values(target)
    try:
        loss: Tensor = torch.ops.customloss.soft_f1(
            input,
            target,
            weight,
            beta=beta,
            activation=activation,
            average=average,
            samplewise=samplewise,
            reduction=reduction,
            smooth=smooth,
            absent=absent,
            link=link,
            gamma=gamma,
            logit_scale=logit_scale,
            logit_offset=logit_offset,
        )
    except RuntimeError:
        _checks.option_types(
            {
                "activation": activation,
                "average": average,
                "reduction": reduction,
                "absent": absent,
                "link": link,
            },
            {
                "beta": beta,
                "smooth": smooth,
                "gamma": gamma,
                "logit_scale": logit_scale,
                "logit_offset": logit_offset,
            },
            {"samplewise": samplewise},
        )
        raise
    return loss


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
    dtype: torch.dtype | None = None,
    check_target: bool = False,
) -> ConfusionSums:
    """The soft confusion sums of every group, differentiable: any score can be built on them.

    The arguments are those of :func:`soft_f1_loss`; ``average="micro"`` pools the classes and any
    other word keeps them apart.

    Args:
        dtype: of the sums. By default float64 for float64 input, else float32; they are added
            up in float64 either way.

    Returns:
        ``(tp, fp, fn, tn)``, each a scalar, ``[C]``, ``[N]`` (samplewise micro) or ``[N, C]``.

    Example::

        tp, fp, fn, tn = customloss.confusion_sums(logits, target)
        loss = 1 - (2 * tp / (2 * tp + fp + fn)).mean()
    """
    _checks.are_tensors(input, target, weight)
    _checks.sums_dtype(dtype)
    if check_target:
        _checks.target_values(target)
    try:
        sums = torch.ops.customloss.confusion_sums(
            input,
            target,
            weight,
            activation=activation,
            average=average,
            samplewise=samplewise,
            logit_scale=logit_scale,
            logit_offset=logit_offset,
        )
    except RuntimeError:
        _checks.option_types(
            {"activation": activation, "average": average},
            {"logit_scale": logit_scale, "logit_offset": logit_offset},
            {"samplewise": samplewise},
        )
        raise
    sums = sums.to(dtype or reference.accumulator(input))
    if average == "micro" or input.dim() == 1:
        sums = sums[:, :, 0]
    if not samplewise:
        sums = sums[:, 0]
    return ConfusionSums(*sums.unbind(0))
