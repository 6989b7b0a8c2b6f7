"""Losses of any score of tp, fp, fn and tn: those of ``scores.py`` that are no ratio, and yours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from customloss import scores
from customloss._spec import checks
from customloss._spec import options as spec
from customloss._spec.arguments import Data
from customloss._spec.options import Grouping, Linking, Options
from customloss.losses import keywords, request, route
from customloss.losses.base import Loss
from customloss.losses.formula import Looks, Score, at, formula_of, score_name
from customloss.losses.keywords import takes
from customloss.losses.named_scores import score_of
from customloss.losses.score_checks import check_score
from customloss.scores import Smooth

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Options)
def confusion_loss(
    score: Score | str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """The loss of any score of the soft confusion sums: forward and backward one pass each.

    Args:
        score: ``score(tp, fp, fn, tn)`` in torch operations, as those of ``customloss.scores``. It
            gets float64 tensors ``[samples, classes]``, with the classes that are scored and with
            size 1 where samples or classes are pooled. It returns the similarity of every group in
            that shape, or one per sample, ``[samples, 1]``; 1 is perfect. Where it may divide 0 by
            0, use ``customloss.scores.ratio``; if it needs more sums than these four, use
            ``customloss.scores.uses``. Or the name of a score: of ``customloss.scores``, of
            :func:`register_score`, or of a plug-in.
        input, target, weight: see :func:`soft_f1_loss`, as are the options.
        link: also ``"log_cosh"`` log cosh(1 - s) and ``"log_power"`` (-log s)^gamma; see
            ``customloss.scores.linked``.

    Returns:
        As :func:`soft_f1_loss`.

    Raises:
        TypeError, ValueError: no score has this name; or the score returned no tensor, or one of
            another shape, or one that has no gradient by the sums; the message names the score.

    Example::

        def f2(tp, fp, fn, tn):
            return 5 * tp / (5 * tp + fp + 4 * fn)

        customloss.confusion_loss(f2, logits, target, average="micro", link="log").backward()
    """
    score = score_of(score)
    call = request.of_score(Data(input, target, weight), {**options}, scores.used_by(score))
    looks = Looks(options.get("check_target", False), call.classes)
    return route.loss(call, formula_of(score, call.words, call.elements.extra, looks=looks))


class ConfusionLoss(Loss):
    """The loss of any score, by name or one of your own; see :func:`customloss.confusion_loss`.

    Example::

        def f2(tp, fp, fn, tn):
            return 5 * tp / (5 * tp + fp + 4 * fn)

        criterion = customloss.ConfusionLoss(f2, average="micro", link="log")
        criterion(logits, target).backward()
    """

    function = staticmethod(confusion_loss)

    def __init__(self, score: Score | str, **options: Unpack[Options]) -> None:
        score = score_of(score)
        check_score(score)
        keywords.check_known(options, list(self.defaults), type(self), score)
        super().__init__(**options)
        self.score = score  # a score that is itself a module becomes a part of this one

    def _loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        function: Any = type(self).function
        result: Tensor = function(self.score, input, target, weight, **options)
        return result

    def _try_options(self, function: Callable[..., Tensor], given: Iterable[str]) -> None:
        """With a score of this package, since another may expect a whole batch."""
        super()._try_options(partial(function, scores.dice), given)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (score_name(self.score), super().extra_repr())))


# ---- losses of the package -----------------------------------------------------------------------


@takes(Grouping)
def log_cosh_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Grouping],
) -> Tensor:
    """``log cosh(1 - Dice)`` of every group. Arguments: :func:`dice_loss`.

    Source: Jadon, "A survey of loss functions for semantic segmentation", CIBCB 2020.
    """
    score = at(scores.dice, smooth=smooth)
    return confusion_loss(score, input, target, weight, link="log_cosh", **options)


class LogCoshDiceLoss(Loss, name="log_cosh_dice"):
    """``log cosh(1 - Dice)``; see :func:`customloss.log_cosh_dice_loss`."""

    function = staticmethod(log_cosh_dice_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Grouping]) -> None:
        super().__init__(smooth=smooth, **options)


@takes(Grouping)
def exp_log_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    exponent: float = 0.3,
    smooth: Smooth = 0.0,
    log_floor: float = scores.LOG_FLOOR,
    **options: Unpack[Grouping],
) -> Tensor:
    """``(-log Dice)^exponent`` of every group: the Dice term of the exponential logarithmic loss.

    At a perfect score the gradient is 0 (an exponent below 1 would make it infinite). Dice is
    raised to ``log_floor`` before its logarithm is taken; see :func:`soft_f1_loss`. Arguments:
    :func:`dice_loss`.

    Source: Wong et al., "3D segmentation with exponential logarithmic loss for highly unbalanced
    object sizes", MICCAI 2018.
    """
    checks.number("exponent", exponent, above=0)
    score = at(scores.dice, smooth=smooth)
    return confusion_loss(
        score, input, target, weight, link="log_power", gamma=exponent, log_floor=log_floor,
        **options,
    )  # fmt: skip


class ExpLogDiceLoss(Loss, name="exp_log_dice"):
    """``(-log Dice)^exponent``; see :func:`customloss.exp_log_dice_loss`."""

    function = staticmethod(exp_log_dice_loss)

    def __init__(
        self,
        *,
        exponent: float = 0.3,
        smooth: Smooth = 0.0,
        log_floor: float = scores.LOG_FLOOR,
        **options: Unpack[Grouping],
    ) -> None:
        super().__init__(exponent=exponent, smooth=smooth, log_floor=log_floor, **options)


@takes(Options)
def fowlkes_mallows_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    recall_weight: float = 0.5,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - precision^(1-w) recall^w``, w = recall_weight in [0, 1]: a weighted geometric mean.

    ``smooth`` is added to both sides of precision and of recall. The similarity is no smaller than
    Fβ at β² = w / (1 - w), and much larger where everything is predicted: π^(1-w) at a prevalence
    of π, 0.17 at π = 0.03 and w = 1/2, where F1 is 0.06. Its ``link="log"`` is
    :func:`log_precision_recall_loss`. Other arguments and errors are those of
    :func:`soft_f1_loss`.

    Source: Fowlkes & Mallows, "A method for comparing two hierarchical clusterings", JASA 1983.
    """
    score = at(scores.fowlkes_mallows, recall_weight=recall_weight, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class FowlkesMallowsLoss(Loss, name="fowlkes_mallows"):
    """``1 - precision^(1-w) recall^w``; see :func:`customloss.fowlkes_mallows_loss`."""

    function = staticmethod(fowlkes_mallows_loss)

    def __init__(
        self, *, recall_weight: float = 0.5, smooth: Smooth = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(recall_weight=recall_weight, smooth=smooth, **options)


@takes(Grouping)
def log_precision_recall_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    recall_weight: float = 0.5,
    smooth: Smooth = 0.0,
    log_floor: float = scores.LOG_FLOOR,
    **options: Unpack[Grouping],
) -> Tensor:
    """``-(1-w) log precision - w log recall``, w = recall_weight in [0, 1].

    Degenerate minima: at w = 1 "predict everything" is perfect, at w = 0 "predict almost nothing,
    but only true positives". In between a network that has learnt nothing is driven towards
    "everything" at a constant speed w. "Everything" costs -(1-w) log π at a prevalence of π: 0.70
    at π = 0.03 and w = 0.8, where precision and recall of 1/2 cost 0.69. So for a large w add
    binary cross-entropy, or use ``soft_f1_loss(link="log")``, which bounds this loss from above.
    The similarity of :func:`fowlkes_mallows_loss` is raised to ``log_floor`` before its logarithm
    is taken; see :func:`soft_f1_loss`. Arguments: :func:`fowlkes_mallows_loss`.
    """
    score = at(scores.fowlkes_mallows, recall_weight=recall_weight, smooth=smooth)
    return confusion_loss(score, input, target, weight, link="log", log_floor=log_floor, **options)


class LogPrecisionRecallLoss(Loss, name="log_precision_recall"):
    """``-(1-w) log precision - w log recall``; see :func:`customloss.log_precision_recall_loss`
    and its warning of degenerate minima."""

    function = staticmethod(log_precision_recall_loss)

    def __init__(
        self,
        *,
        recall_weight: float = 0.5,
        smooth: Smooth = 0.0,
        log_floor: float = scores.LOG_FLOOR,
        **options: Unpack[Grouping],
    ) -> None:
        super().__init__(recall_weight=recall_weight, smooth=smooth, log_floor=log_floor, **options)


@takes(Options)
def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    weighting: str = "square",
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (2 Σ w tp + s) / (Σ w (2 tp + fp + fn) + s)``, with Σ over the classes.

    w is 1/T² (``weighting="square"``), 1/T (``"simple"``) or 1 (``"uniform"``) of a class with
    T = tp + fn; a class without positives gets the largest weight of the others. The weights have
    no gradient. Classes are summed before the ratio, so ``average`` has nothing left to do, and
    ``absent`` means that no class has a positive. Other arguments and errors are those of
    :func:`soft_f1_loss`.

    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function", DLMIA 2017.
    """
    spec.bounded(smooth=smooth)
    score = partial(scores.generalized_dice, weighting=weighting, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class GeneralizedDiceLoss(Loss, name="generalized_dice"):
    """Dice of the weighted sum over classes; see :func:`customloss.generalized_dice_loss`."""

    function = staticmethod(generalized_dice_loss)

    def __init__(
        self, *, weighting: str = "square", smooth: Smooth = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(weighting=weighting, smooth=smooth, **options)


class _WithoutParameters(Loss):
    """A loss of a score that has no parameters."""

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)


@takes(Options)
def balanced_accuracy_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """``1 - (recall + specificity) / 2``. Arguments and errors: :func:`soft_f1_loss`.

    Source: Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    return confusion_loss(scores.balanced_accuracy, input, target, weight, **options)


class BalancedAccuracyLoss(_WithoutParameters, name="balanced_accuracy"):
    """``1 - (recall + specificity) / 2``; see :func:`customloss.balanced_accuracy_loss`."""

    function = staticmethod(balanced_accuracy_loss)


@takes(Options)
def g_mean_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """``1 - sqrt(recall specificity)``. Arguments and errors: :func:`soft_f1_loss`.

    Source: Kubat & Matwin, "Addressing the curse of imbalanced training sets", ICML 1997.
    """
    return confusion_loss(scores.g_mean, input, target, weight, **options)


class GMeanLoss(_WithoutParameters, name="g_mean"):
    """``1 - sqrt(recall specificity)``; see :func:`customloss.g_mean_loss`."""

    function = staticmethod(g_mean_loss)


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


class MCCLoss(_WithoutParameters, name="mcc"):
    """``1 - MCC``, Matthews' correlation; see :func:`customloss.mcc_loss`."""

    function = staticmethod(mcc_loss)


@takes(Linking)
def multiclass_mcc_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    activation: str = "softmax",
    **options: Unpack[Linking],
) -> Tensor:
    """``1 - R_K``, Matthews' correlation of several classes, in [0, 2]; of a SOFTMAX by default.

    With P = tp + fp and T = tp + fn of each class, s the number of pixels and Σ over the classes::

        R_K = (s Σ tp - Σ P T) / sqrt((s² - Σ P²) (s² - Σ T²))

    evaluated as Σ (tp tn - fp fn) / sqrt(Σ P (s - P)  Σ T (s - T)), in which nothing cancels. At
    hard predictions it is ``sklearn.metrics.matthews_corrcoef``, and of two classes that of
    :func:`mcc_loss`. Where the root is 0, because only one class is predicted or present, R_K is 0:
    then the loss is 1 with gradient 0, as scikit-learn has it.

    All classes make one score, so ``average="macro"``, ``"weighted"`` and ``"none"`` leave nothing
    to average, and a ``class_weight`` is refused. (``"micro"`` adds the classes up before, which is
    :func:`mcc_loss` with that average.) Of ``classes`` or ``include_background=False`` the sums are
    over the classes that are scored; of a sigmoid they are over binary problems. ``absent`` means
    that no class has a positive. Other arguments and errors are those of :func:`soft_f1_loss`.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
    coefficient", Computational Biology and Chemistry 2004.
    """
    given: dict[str, Any] = {"activation": activation, **options}
    return confusion_loss(scores.multiclass_mcc, input, target, weight, **given)


class MulticlassMCCLoss(Loss, name="multiclass_mcc"):
    r"""``1 - R_K``, Matthews' correlation of several classes; see
    :func:`customloss.multiclass_mcc_loss`.

    .. math:: L = 1 - \frac{\sum_k tp_k tn_k - fp_k fn_k}
        {\sqrt{\sum_k (tp_k + fp_k)(fn_k + tn_k) \sum_k (tp_k + fn_k)(fp_k + tn_k)}}

    Example::

        criterion = customloss.MulticlassMCCLoss()
        criterion(logits, class_numbers).backward()  # [N, C, H, W] and [N, H, W]
    """

    function = staticmethod(multiclass_mcc_loss)

    def __init__(self, *, activation: str = "softmax", **options: Unpack[Linking]) -> None:
        more: dict[str, Any] = {"activation": activation}
        super().__init__(**more, **options)
