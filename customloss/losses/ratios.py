"""Losses that are a ratio of tp, fp and fn: one fused operator each, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customloss import scores
from customloss._spec import checks
from customloss._spec import options as spec
from customloss._spec.arguments import Data
from customloss._spec.options import Averaging, Grouping, Options
from customloss.losses import float_labels, request, route
from customloss.losses.base import Loss
from customloss.losses.formula import Formula
from customloss.losses.keywords import takes
from customloss.scores import Smooth

if TYPE_CHECKING:
    from typing_extensions import Unpack


def ratio_loss(
    operator: str, input: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> Tensor:
    """The loss that ``torch.ops.customloss.<operator>`` computes, also with the options that the
    operator lacks: a process group, and those of classes."""
    data = float_labels.read(Data(input, target, weight), options)
    smooth = options["smooth"]
    if isinstance(smooth, (tuple, list)):
        top, bottom = scores.sides(smooth)
        if not type(top) is type(bottom) is float:
            spec.bounded(smooth=smooth)  # the dispatcher would take True for 1
        options["smooth"], options["smooth_denominator"] = top, bottom
    ranks, classes, _ = request.prepared(*data, options)
    if ranks is None and classes is None:
        try:
            loss: Tensor = getattr(torch.ops.customloss, operator)(*data, **options)
        except RuntimeError:
            request.bad_options(operator, options)
            raise
        return loss
    call, ratio = request.of_ratio(operator, data, options, ranks, classes)
    return route.loss(call, Formula(operator, ratio))


@takes(Options)
def soft_f1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """The soft-F1 (Fβ) loss of logits, in one pass forward and one backward.

    With the soft confusion sums of a group (see :func:`confusion_sums`)::

        loss = 1 - ((1 + β²) tp + s)      / ((1 + β²) tp + fp + β² fn + d)
             =     (fp + β² fn + (d - s)) / ((1 + β²) tp + fp + β² fn + d)

    evaluated in the second form, which loses no digits near a perfect score; d = s, unless
    ``smooth`` is a pair. A group that holds nothing and is predicted empty (0 / 0) has loss 0 and
    gradient 0.

    Args:
        input: logits (or probabilities, ``activation="none"``), ``[N]``, ``[N, C]`` or
            ``[N, C, *spatial]``; float32, float64, float16 or bfloat16, any strides.
        target: the shape of ``input``; bool, integer or float, soft labels in [0, 1] allowed. Or
            class numbers, ``[N, *spatial]`` or ``[N, 1, *spatial]``, signed integers or uint8;
            floats ``[N, 1, *spatial]``, as MONAI keeps labels, are copied to integers.
        weight: per-element weight or mask, broadcastable to ``input``; beside class numbers also in
            their shape, ``[N, *spatial]``. Weight 0 removes an element, even a NaN.
        beta: the β of Fβ, >= 0; above 1 it favours recall. It is 0, or from 1e-100 to 1e100.
        smooth: s, in units of elements, >= 0; or a pair ``(s, d)``, for the numerator and for the
            denominator. s > d is for the links that are linear, ``"complement"`` and
            ``"negative"``. Each is 0, or from 1e-200 to 1e200.
        activation: ``"sigmoid"``, ``"softmax"`` over dim 1, or ``"none"``.
        average: ``"macro"`` (a group per class, then the mean), ``"micro"`` (one group),
            ``"weighted"`` (macro weighted by support tp + fn) or ``"none"`` (classes are kept, for
            the ``reduction``: with ``"none"`` the loss of each is returned).
        class_weight: a Tensor or sequence, one number per class of ``input``. Classes are averaged
            with these weights (Σ w L / Σ w; times their support if ``average="weighted"``),
            ``"micro"`` adds their sums up with them, and ``"none"`` multiplies each loss by its
            weight. A Tensor has to be on the device of ``input``; a sequence is copied there once.
        classes: the numbers of the classes that are scored, in the order that ``"none"`` keeps; a
            softmax still runs over all of them.
        include_background: False scores all classes but 0.
        samplewise: groups are also split along dim 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over what the average leaves, which is one
            number unless classes (``average="none"``) or samples (``samplewise``) are kept.
        absent: what a group without a positive target contributes: ``"score"`` (the formula as it
            stands: without ``smooth`` loss 1 and no gradient), ``"skip"`` (left out of the mean and
            of its denominator) or ``"penalize"`` (its soft false-positive rate fp / (fp + tn)).
        link: ``"complement"`` 1 - F, ``"log"`` -log F, ``"focal"`` (1 - F)^gamma or
            ``"negative"`` -F.
        gamma: the exponent of ``link="focal"``, > 0. With 1, the default, that is
            ``"complement"``; otherwise the slope at a perfect score is 0.
        log_floor: F is raised to it before its logarithm is taken, so below it the loss is constant
            and the gradient 0. At least 1e-100, below 1.
        logit_scale, logit_offset: p = sigmoid(logit_scale * (input - logit_offset)).
        ignore_index: targets of this value do not count, and their gradient is 0. An int, or a
            sequence of at most 8.
        out_of_range: what becomes of class numbers outside of 0 .. C-1 that are not ignored.
            ``"raise"``: a ValueError on the CPU, and a loss of NaN on a GPU and under
            ``torch.func``, where nothing may wait; see docs/nan.md. ``"ignore"``: as
            ``ignore_index``.
        nan_targets: ``"propagate"``: a NaN in a dense target makes the loss NaN. ``"ignore"``: such
            an element does not count, and its gradient is 0; nor does a NaN among float class
            numbers. Not for a dense target of a softmax.
        label_smoothing: ε in [0, 1): t becomes (1 - ε) t + ε / K, K the classes of a softmax or of
            class numbers, else 2.
        check_target: look at the values of input, target and weight, and raise an error where they
            are certainly wrong, as a mask of 0 and 255 is, or warn where they may be. This reads
            the tensors and waits for their device. In a module it is ``"once"`` by default: the
            first batch is checked, and more until one has a positive. See docs/checks.md.
        process_group: the ranks that share the batch: their sums are added up in one collective,
            and the loss is that of the whole batch. A ProcessGroup, or ``"world"`` for the default
            group of torch.distributed at the time of the call. None and ``"local"`` score the batch
            of this rank alone; where there are several ranks, None warns of it once. See
            ``customloss.distributed``.

    Returns:
        A scalar; with ``reduction="none"`` also ``[N]``, ``[C]`` or ``[N, C]``, if samples, classes
        or both are kept. float64 for float64 input, else float32.

    Raises:
        TypeError: a dtype or type that cannot be used; the message names the argument.
        ValueError: shapes or devices that do not fit, a word or number out of range, no group to
            score, or a class number that ``out_of_range`` is about.

    Source: Jansche, "Maximum Expected F-Measure Training of Logistic Regression Models",
    HLT/EMNLP 2005; -log F: Zhao et al., "Optimizing the F-measure for Threshold-free Salient
    Object Detection", ICCV 2019.
    """
    return ratio_loss("soft_f1", input, target, weight, beta=beta, smooth=smooth, **options)


class SoftF1Loss(Loss, name="soft_f1"):
    r"""The soft-F1 (Fβ) loss; see :func:`customloss.soft_f1_loss` for every option.

    .. math:: L = \frac{fp + \beta^2 fn}{(1 + \beta^2)\,tp + fp + \beta^2 fn + s}

    Example::

        loss = customloss.SoftF1Loss(beta=2.0)
        loss(logits, target).backward()
    """

    function = staticmethod(soft_f1_loss)

    def __init__(
        self, *, beta: float = 1.0, smooth: Smooth = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(beta=beta, smooth=smooth, **options)


@takes(Options)
def dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (2 tp + s) / (2 tp + fp + fn + s)``: the soft Dice loss, which is soft-F1.

    The denominator is Σp + Σt, not the squares of Milletari et al. (V-Net, 3DV 2016). Arguments
    and errors are those of :func:`soft_f1_loss`.

    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function", DLMIA 2017.
    """
    return ratio_loss("soft_f1", input, target, weight, smooth=smooth, **options)


class DiceLoss(Loss, name="dice"):
    r"""The soft Dice loss, which is soft-F1; see :func:`customloss.dice_loss`.

    .. math:: L = \frac{fp + fn}{2\,tp + fp + fn + s}
    """

    function = staticmethod(dice_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


@takes(Options)
def tversky_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (tp + s) / (tp + fp_weight fp + fn_weight fn + s)``: the Tversky loss.

    Weights of (1/2, 1/2) give Dice (at half its ``smooth``), (1, 1) Jaccard and
    (1, β²) / (1 + β²) Fβ. Both are >= 0. They are named for what they weigh, since papers disagree
    on which of the two is α. Other arguments and errors are those of :func:`soft_f1_loss`.

    Source: Salehi et al., "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks", MLMI 2017.
    """
    return ratio_loss(
        "tversky", input, target, weight,
        fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, **options,
    )  # fmt: skip


class TverskyLoss(Loss, name="tversky"):
    r"""The Tversky loss, with weights a of fp and b of fn; see :func:`customloss.tversky_loss`.

    .. math:: L = \frac{a\,fp + b\,fn}{tp + a\,fp + b\,fn + s}
    """

    function = staticmethod(tversky_loss)

    def __init__(
        self,
        *,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        smooth: Smooth = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, **options)


@takes(Options)
def jaccard_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (tp + s) / (tp + fp + fn + s)``: the soft Jaccard (IoU) loss.

    With soft labels its minimum is not at p = t, as for every ratio of products. Arguments and
    errors are those of :func:`soft_f1_loss`.

    Source: Rahman & Wang, "Optimizing intersection-over-union in deep neural networks for image
    segmentation", ISVC 2016.
    """
    return ratio_loss(
        "tversky", input, target, weight, fp_weight=1.0, fn_weight=1.0, smooth=smooth, **options
    )


class JaccardLoss(Loss, name="jaccard"):
    r"""The soft Jaccard (IoU) loss; see :func:`customloss.jaccard_loss`.

    .. math:: L = \frac{fp + fn}{tp + fp + fn + s}
    """

    function = staticmethod(jaccard_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


@takes(Grouping)
def focal_tversky_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: float = 0.75,
    smooth: Smooth = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``(1 - Tversky)^exponent`` of every group, before they are averaged.

    ``exponent`` is the paper's 1/γ, by default with its γ = 4/3. Below 1 it raises the gradient of
    groups that are nearly right, above 1 it lowers it. At a perfect score the gradient is 0. Other
    arguments and errors are those of :func:`tversky_loss`.

    Source: Abraham & Khan, "A novel focal Tversky loss function with improved attention U-Net for
    lesion segmentation", ISBI 2019.
    """
    checks.number("exponent", exponent, above=0)
    return ratio_loss(
        "tversky", input, target, weight, fp_weight=fp_weight, fn_weight=fn_weight,
        smooth=smooth, link="focal", gamma=exponent, **options,
    )  # fmt: skip


class FocalTverskyLoss(Loss, name="focal_tversky"):
    r"""A power of the Tversky loss of every group; see :func:`customloss.focal_tversky_loss`.

    .. math:: L = \left(\frac{a\,fp + b\,fn}{tp + a\,fp + b\,fn + s}\right)^{exponent}
    """

    function = staticmethod(focal_tversky_loss)

    def __init__(
        self,
        *,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        exponent: float = 0.75,
        smooth: Smooth = 0.0,
        **options: Unpack[Grouping],
    ) -> None:
        super().__init__(
            fp_weight=fp_weight, fn_weight=fn_weight, exponent=exponent, smooth=smooth, **options
        )


# ---- presets of the logit's scale and offset -----------------------------------------------------


@takes(Averaging)
def any_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    amplification: float = 73.0,
    **options: Unpack[Averaging],
) -> Tensor:
    """AnyLoss: the soft-Fβ loss of ``sigmoid(amplification (p - 1/2))``, p a PROBABILITY.

    ``input`` is the output of a sigmoid, as in the paper: the second, steep sigmoid makes it nearly
    0 or 1. The loss is :func:`soft_f1_loss` with ``logit_scale=amplification, logit_offset=0.5``;
    any other score takes the same two options.

    Source: Han et al., "AnyLoss: Transforming classification metrics into loss functions",
    KDD 2024.
    """
    if not amplification:
        raise ValueError("amplification: expected a number other than 0, got 0")
    return soft_f1_loss(
        input, target, weight, beta=beta, logit_scale=amplification, logit_offset=0.5, **options
    )


class AnyLoss(Loss, name="any"):
    """Soft-Fβ of sharpened PROBABILITIES; see :func:`customloss.any_loss`."""

    function = staticmethod(any_loss)

    def __init__(
        self, *, beta: float = 1.0, amplification: float = 73.0, **options: Unpack[Averaging]
    ) -> None:
        super().__init__(beta=beta, amplification=amplification, **options)


@takes(Averaging)
def sigmoid_f1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    slope: float = 1.0,
    shift: float = 0.0,
    **options: Unpack[Averaging],
) -> Tensor:
    """sigmoidF1: the soft-F1 loss of ``sigmoid(slope (x + shift))``, x a logit.

    The paper's S(u; β, η) = 1 / (1 + exp(β (u + η))) has β = -slope and η = shift. Its released
    code applies S to a sigmoid of x, which leaves p in [0.5, 0.73] at the defaults. That is not
    done here; pass ``x.sigmoid()`` to get it.

    Source: Bénédict et al., "sigmoidF1: A smooth F1 score surrogate loss for multilabel
    classification", TMLR 2022.
    """
    if not slope:
        raise ValueError("slope: expected a number other than 0, got 0")
    return soft_f1_loss(input, target, weight, logit_scale=slope, logit_offset=-shift, **options)


class SigmoidF1Loss(Loss, name="sigmoid_f1"):
    """Soft-F1 of logits scaled and shifted; see :func:`customloss.sigmoid_f1_loss`."""

    function = staticmethod(sigmoid_f1_loss)

    def __init__(
        self, *, slope: float = 1.0, shift: float = 0.0, **options: Unpack[Averaging]
    ) -> None:
        super().__init__(slope=slope, shift=shift, **options)
