"""The losses as functions. Each is a few words on one of the two ways of ``_loss.py``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from customloss import _checks, _options, scores
from customloss._loss import at, confusion_loss, ratio_loss, takes
from customloss._options import Averaging, Grouping, Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack


# ---- ratios --------------------------------------------------------------------------------------


@takes(Options)
def soft_f1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    smooth: float = 0.0,
    **options: Unpack[Options],
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
        target: the shape of ``input``; bool, integer or float, soft labels in [0, 1] allowed. Or
            class numbers, ``[N, *spatial]`` or ``[N, 1, *spatial]``, of a signed integer or uint8.
        weight: per-element weight or mask, broadcastable to ``input``. Weight 0 removes an
            element, even a NaN.
        beta: the β of Fβ, >= 0; above 1 it favours recall.
        smooth: s, in units of elements, >= 0.
        activation: ``"sigmoid"``, ``"softmax"`` over dim 1, or ``"none"``.
        average: ``"macro"`` (a group per class, then the mean), ``"micro"`` (one group),
            ``"weighted"`` (macro weighted by support tp + fn) or ``"none"`` (classes are kept).
        class_weight: a Tensor or sequence, one number per class of ``input``. Classes are averaged
            with these weights (Σ w L / Σ w; times their support if ``average="weighted"``),
            ``"micro"`` adds their sums up with them, and ``"none"`` multiplies each loss by its
            weight. On a GPU pass a Tensor that is there: a sequence is copied at every call.
        classes: the numbers of the classes that are scored, in the order that ``"none"`` keeps; a
            softmax still runs over all of them.
        include_background: False scores all classes but 0.
        samplewise: groups are also split along dim 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over what the average leaves.
        absent: what a group without a positive target contributes: ``"score"`` (the formula as it
            stands: loss 1 and no gradient), ``"skip"`` (left out of the mean and of its
            denominator) or ``"penalize"`` (its soft false-positive rate fp / (fp + tn)).
        link: ``"complement"`` 1 - F, ``"log"`` -log F, ``"focal"`` (1 - F)^gamma or
            ``"negative"`` -F.
        gamma: the exponent of ``link="focal"``, > 0; the slope at a perfect score is 0.
        logit_scale, logit_offset: p = sigmoid(logit_scale * (input - logit_offset)).
        ignore_index: targets of this value do not count, and their gradient is 0.
        label_smoothing: ε in [0, 1): t becomes (1 - ε) t + ε / K, K the classes of a softmax or of
            class numbers, else 2.
        check_target: raise unless every target lies in [0, 1], or is the number of a class; reads
            the tensor and waits for its device.
        process_group: the ranks that share the batch: their sums are added up in one collective,
            and the loss is that of the whole batch; see ``customloss.distributed``.

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
    return ratio_loss("soft_f1", input, target, weight, beta=beta, smooth=smooth, **options)


@takes(Options)
def dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (2 tp + s) / (2 tp + fp + fn + s)``: the soft Dice loss, which is soft-F1.

    The denominator is Σp + Σt, not the squares of Milletari et al. (V-Net, 3DV 2016). Arguments
    and errors are those of :func:`soft_f1_loss`.

    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function", DLMIA 2017.
    """
    return ratio_loss("soft_f1", input, target, weight, smooth=smooth, **options)


@takes(Options)
def tversky_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: float = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (tp + s) / (tp + fp_weight fp + fn_weight fn + s)``: the Tversky loss.

    Weights of (1/2, 1/2) are Dice (at half its ``smooth``), (1, 1) Jaccard and
    (1, β²) / (1 + β²) Fβ. Both are >= 0; named for what they weigh, since papers disagree on which
    of α and β that is. Other arguments and errors are those of :func:`soft_f1_loss`.

    Source: Salehi et al., "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks", MLMI 2017.
    """
    return ratio_loss(
        "tversky", input, target, weight,
        fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, **options,
    )  # fmt: skip


@takes(Options)
def jaccard_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 0.0,
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


@takes(Grouping)
def focal_tversky_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: float = 0.75,
    smooth: float = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``(1 - Tversky)^exponent`` of every group, before they are averaged.

    ``exponent`` is what stands in the exponent: the paper's 1/γ at γ = 4/3. Below 1 it raises the
    gradient of groups that are nearly right, above 1 it lowers it. At a perfect score the gradient
    is 0. Other arguments and errors are those of :func:`tversky_loss`.

    Source: Abraham & Khan, "A novel focal Tversky loss function with improved attention U-Net for
    lesion segmentation", ISBI 2019.
    """
    _checks.number("exponent", exponent, above=0)
    return ratio_loss(
        "tversky", input, target, weight, fp_weight=fp_weight, fn_weight=fn_weight,
        smooth=smooth, link="focal", gamma=exponent, **options,
    )  # fmt: skip


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

    ``input`` is the output of a sigmoid, as in the paper: the steep second one makes it nearly 0 or
    1. It is :func:`soft_f1_loss` with ``logit_scale=amplification, logit_offset=0.5``; any other
    score takes the same two options.

    Source: Han et al., "AnyLoss: Transforming classification metrics into loss functions",
    KDD 2024.
    """
    return soft_f1_loss(
        input, target, weight, beta=beta, logit_scale=amplification, logit_offset=0.5, **options
    )


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
    code applies S to a sigmoid of x, which leaves p in [0.5, 0.73] at the defaults: not done here
    (pass ``x.sigmoid()`` to get it).

    Source: Bénédict et al., "sigmoidF1: A smooth F1 score surrogate loss for multilabel
    classification", TMLR 2022.
    """
    return soft_f1_loss(input, target, weight, logit_scale=slope, logit_offset=-shift, **options)


# ---- other scores --------------------------------------------------------------------------------


@takes(Grouping)
def log_cosh_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: float = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``log cosh(1 - Dice)`` of every group. Arguments: :func:`dice_loss`.

    Source: Jadon, "A survey of loss functions for semantic segmentation", CIBCB 2020.
    """
    score = at(scores.dice, smooth=smooth)
    return confusion_loss(score, input, target, weight, link="log_cosh", **options)


@takes(Grouping)
def exp_log_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    exponent: float = 0.3,
    smooth: float = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``(-log Dice)^exponent`` of every group: the Dice term of the exponential logarithmic loss.

    At a perfect score the gradient is 0 (an exponent below 1 would make it infinite). Arguments:
    :func:`dice_loss`.

    Source: Wong et al., "3D segmentation with exponential logarithmic loss for highly unbalanced
    object sizes", MICCAI 2018.
    """
    _checks.number("exponent", exponent, above=0)
    score = at(scores.dice, smooth=smooth)
    return confusion_loss(score, input, target, weight, link="log_power", gamma=exponent, **options)


@takes(Options)
def fowlkes_mallows_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    recall_weight: float = 0.5,
    smooth: float = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - precision^(1-w) recall^w``, w = recall_weight in [0, 1]: a weighted geometric mean.

    ``smooth`` is added to both sides of precision and of recall. It is no smaller than Fβ at
    β² = w / (1 - w), and falls into "predict everything" more easily: see
    :func:`log_precision_recall_loss`, which is its ``link="log"``. Other arguments and errors are
    those of :func:`soft_f1_loss`.

    Source: Fowlkes & Mallows, "A method for comparing two hierarchical clusterings", JASA 1983.
    """
    score = at(scores.fowlkes_mallows, recall_weight=recall_weight, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


@takes(Grouping)
def log_precision_recall_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    recall_weight: float = 0.5,
    smooth: float = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``-(1-w) log precision - w log recall``, w = recall_weight in [0, 1].

    Degenerate minima: at w = 1 "predict everything" is perfect, at w = 0 "predict almost nothing,
    but that surely". In between a network that has learnt nothing is driven towards everything at
    a constant speed w, and above w = 0.7 "everything" often beats what can be learnt: add binary
    cross-entropy (half its weight suffices), or use ``soft_f1_loss(link="log")``, which bounds this
    loss from above. Arguments: :func:`fowlkes_mallows_loss`.
    """
    score = at(scores.fowlkes_mallows, recall_weight=recall_weight, smooth=smooth)
    return confusion_loss(score, input, target, weight, link="log", **options)


@takes(Options)
def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    weighting: str = "square",
    smooth: float = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (2 Σ w tp + s) / (Σ w (2 tp + fp + fn) + s)``, summed over the classes: one group.

    w is 1/T² (``weighting="square"``), 1/T (``"simple"``) or 1 (``"uniform"``) of a class with
    T = tp + fn; a class without positives gets the largest weight of the others. The weights have
    no gradient. Classes are summed before the ratio, so ``average`` has nothing left to do, and
    ``absent`` means that no class has a positive. Other arguments and errors are those of
    :func:`soft_f1_loss`.

    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function", DLMIA 2017.
    """
    _options.bounded(smooth=smooth)
    score = partial(scores.generalized_dice, weighting=weighting, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


@takes(Options)
def balanced_accuracy_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """``1 - (recall + specificity) / 2``. Arguments and errors: :func:`soft_f1_loss`.

    Source: Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    return confusion_loss(scores.balanced_accuracy, input, target, weight, **options)


@takes(Options)
def g_mean_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """``1 - sqrt(recall specificity)``. Arguments and errors: :func:`soft_f1_loss`.

    Source: Kubat & Matwin, "Addressing the curse of imbalanced training sets", ICML 1997.
    """
    return confusion_loss(scores.g_mean, input, target, weight, **options)


@takes(Options)
def mcc_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """``1 - MCC``, in [0, 2]. Arguments and errors: :func:`soft_f1_loss`.

    MCC = (tp tn - fp fn) / sqrt((tp+fp) (tp+fn) (tn+fp) (tn+fn)), and 0 where a factor is 0: then
    the loss is 1 with gradient 0.

    Source: Matthews, "Comparison of the predicted and observed secondary structure of T4 phage
    lysozyme", BBA 1975.
    """
    return confusion_loss(scores.mcc, input, target, weight, **options)


def custom_f1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    check_target: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """See :class:`customloss.CustomF1Loss`, where ``beta`` is explained."""
    _checks.number("beta", beta, at_least=0, at_most=1)
    return confusion_loss(
        partial(_custom_f1, recall_weight=beta), input, target, weight, activation="none",
        average="micro", link="log", check_target=check_target, process_group=process_group,
    )  # fmt: skip


def _custom_f1(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, recall_weight: float) -> Tensor:
    """``exp(-CustomF1Loss)``."""
    precision, recall = tp / (tp + fp + 1e-10), tp / (tp + fn + 1e-10)
    return scores.power(precision, 1 - recall_weight) * scores.power(recall, recall_weight)
