"""Losses that need more sums than tp, fp, fn and tn, which the same pass adds up: of squares,
distances and logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customloss import scores
from customloss._spec import checks
from customloss._spec import options as spec
from customloss._spec.arguments import Data
from customloss._spec.options import Grouping, Options
from customloss.losses import request, route
from customloss.losses.base import Loss
from customloss.losses.composed import confusion_loss
from customloss.losses.formula import Formula, at
from customloss.losses.keywords import takes
from customloss.reference.losses import quotient
from customloss.reference.sums import rows as rows_of
from customloss.scores import Smooth

if TYPE_CHECKING:
    from typing_extensions import Unpack


# ---- squares -------------------------------------------------------------------------------------


@takes(Options)
def squared_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (2 Σ p t + s) / (Σ p² + Σ t² + s)``: the Dice loss of V-Net.

    It is Σ (p - t)² / (Σ p² + Σ t² + s), so unlike that of :func:`dice_loss` its minimum, 0, is at
    p = t for soft labels too. Arguments and errors are those of :func:`soft_f1_loss`.

    Source: Milletari et al., "V-Net: Fully convolutional neural networks for volumetric medical
    image segmentation", 3DV 2016.
    """
    score = at(scores.squared_dice, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class SquaredDiceLoss(Loss, name="squared_dice"):
    r"""The Dice loss of V-Net; see :func:`customloss.squared_dice_loss`.

    .. math:: L = 1 - \frac{2 \sum p t + s}{\sum p^2 + \sum t^2 + s}
    """

    function = staticmethod(squared_dice_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


# ---- distances: soft labels ----------------------------------------------------------------------


@takes(Options)
def semimetric_dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (P + T - A + s) / (P + T + s) = A / (P + T + s)``: the Dice semimetric loss.

    P = Σp, T = Σt, A = Σ|p - t|. With hard labels it is :func:`dice_loss`. With soft labels (from
    smoothing, distillation or several annotators) its minimum, 0, is at p = t, and that of
    :func:`dice_loss` is not. Arguments and errors are those of :func:`soft_f1_loss`.

    Source: Wang et al., "Dice semimetric losses: Optimizing the Dice score with soft labels",
    MICCAI 2023.
    """
    score = at(scores.semimetric_dice, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class SemimetricDiceLoss(Loss, name="semimetric_dice"):
    r"""Dice for soft labels; see :func:`customloss.semimetric_dice_loss`.

    .. math:: L = \frac{\sum |p - t|}{\sum p + \sum t + s}
    """

    function = staticmethod(semimetric_dice_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


@takes(Options)
def semimetric_jaccard_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (P + T - A + 2s) / (P + T + A + 2s)``: the Jaccard metric loss.

    P, T and A are those of :func:`semimetric_dice_loss`. With hard labels it is
    :func:`jaccard_loss`; with soft labels its minimum, 0, is at p = t. Arguments and errors are
    those of :func:`soft_f1_loss`.

    Source: Wang et al., "Jaccard metric losses: Optimizing the Jaccard index with soft labels",
    NeurIPS 2023.
    """
    score = at(scores.semimetric_jaccard, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class SemimetricJaccardLoss(Loss, name="semimetric_jaccard"):
    r"""Jaccard for soft labels; see :func:`customloss.semimetric_jaccard_loss`.

    .. math:: L = \frac{2 \sum |p - t|}{\sum p + \sum t + \sum |p - t| + 2 s}
    """

    function = staticmethod(semimetric_jaccard_loss)

    def __init__(self, *, smooth: Smooth = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


@takes(Options)
def semimetric_tversky_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Smooth = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """``1 - (tp' + s) / (tp' + fp_weight fp' + fn_weight fn' + s)``: Tversky for soft labels.

    tp' = Σ min(p, t), fp' = Σ max(p - t, 0), fn' = Σ max(t - p, 0). With hard labels it is
    :func:`tversky_loss`; with soft labels its minimum, 0, is at p = t. Other arguments and errors
    are those of :func:`tversky_loss`.

    Source: Wang et al., "Dice semimetric losses: Optimizing the Dice score with soft labels",
    MICCAI 2023.
    """
    score = at(scores.semimetric_tversky, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth)
    return confusion_loss(score, input, target, weight, **options)


class SemimetricTverskyLoss(Loss, name="semimetric_tversky"):
    r"""Tversky for soft labels; see :func:`customloss.semimetric_tversky_loss`.

    .. math:: L = \frac{a\,fp' + b\,fn'}{tp' + a\,fp' + b\,fn' + s}
    """

    function = staticmethod(semimetric_tversky_loss)

    def __init__(
        self,
        *,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        smooth: Smooth = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, **options)


# ---- logarithms ----------------------------------------------------------------------------------


@takes(Grouping)
def weighted_log_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    recall_weight: float = 0.5,
    **options: Unpack[Grouping],
) -> Tensor:
    """``(w Σ t (-log p) + (1-w) Σ (1-t) (-log (1-p))) / Σ 1`` of every group, w = recall_weight.

    The loss is convex and decomposes over elements. With η the true probability of a positive, the
    best p is above 1/2 where w η > (1-w) (1-η), which is η > 1 - w. :func:`f_optimal_weight` is
    the w that makes this threshold optimal for Fβ. The loss is (1-w) times the binary cross-entropy
    with ``pos_weight`` w / (1-w), so half the plain one at w = 1/2. An empty group has loss 0.

    ``absent`` is about groups without a positive, here too. Other arguments and errors are those of
    :func:`soft_f1_loss`. ``activation="softmax"`` is refused: its log-loss has no log(1-p).

    Source: Parambath et al., "Optimizing F-measures by cost-sensitive classification", NIPS 2014.
    """
    given = {**options}
    if given.get("activation") == "softmax":
        raise ValueError(
            "activation: expected 'sigmoid' or 'none' (of a softmax there is no log(1-p): see "
            "compound_loss), got 'softmax'"
        )
    checks.one_of("activation", given.get("activation", "sigmoid"), ("sigmoid", "none"))
    spec.bounded(recall_weight=recall_weight)

    call = request.of_score(Data(input, target, weight), given, ("log_loss",))
    learned = call.classes is not None and call.classes.learned()
    # weights of classes that are pooled are in the sums already
    constant = call.constant_sums() and not (learned and given.get("average") == "micro")

    names = rows_of(call.elements.extra)

    def loss_of_rows(rows: Sequence[Tensor]) -> Tensor:
        tp, fp, fn, tn = (each.detach() for each in rows[:4]) if constant else rows[:4]
        whole = tp + fp + fn + tn
        by_name = dict(zip(names, rows))
        of_positives, of_negatives = by_name["log_loss_pos"], by_name["log_loss_neg"]
        loss = torch.add(recall_weight * of_positives, of_negatives, alpha=1 - recall_weight)
        return quotient(loss, whole)

    must_agree = ({"recall_weight": recall_weight},)
    return route.loss(call, Formula("weighted_log", loss_of_rows, must_agree=must_agree))


class WeightedLogLoss(Loss, name="weighted_log"):
    r"""A log loss with a weight of recall; see :func:`customloss.weighted_log_loss`.

    .. math:: L = -\frac{1}{N} \sum w\,t \log p + (1 - w) (1 - t) \log (1 - p)
    """

    function = staticmethod(weighted_log_loss)

    def __init__(self, *, recall_weight: float = 0.5, **options: Unpack[Grouping]) -> None:
        super().__init__(recall_weight=recall_weight, **options)


def f_optimal_weight(score: Tensor | float, beta: float = 1.0) -> Tensor | float:
    """``1 - F* / (1 + β²)``: the ``recall_weight`` that makes :func:`weighted_log_loss` Fβ-optimal.

    The classifier with the best Fβ, F*, predicts 1 where the probability of a positive is above
    F* / (1 + β²); at β = 1 that is half of F*, so at most 1/2. Weighing positives by w and
    negatives by 1-w moves the threshold from 1/2 to there. F* is not known beforehand: take the Fβ
    that validation reached, or that of the last steps (``StreamingLoss``, ``hard=True`` of
    :func:`confusion_sums`), without gradient.

    Args:
        score: F*, in [0, 1]; a number, or a Tensor of any shape.
        beta: the β of Fβ, >= 0.

    Returns:
        A number, or a Tensor without gradient if ``score`` is a Tensor.

    Raises:
        TypeError, ValueError: no number, or one out of range.

    Source: Parambath et al., "Optimizing F-measures by cost-sensitive classification", NIPS 2014;
    Lipton et al., "Optimal thresholding of classifiers to maximize F1 measure", ECML 2014.

    Example::

        w = customloss.f_optimal_weight(0.6)  # 0.7
        loss = customloss.weighted_log_loss(logits, target, recall_weight=w)
    """
    checks.number("beta", beta, at_least=0)
    if isinstance(score, Tensor):
        score = score.detach()
    else:
        checks.number("score", score, at_least=0, at_most=1)
    return 1 - score / (1 + beta * beta)
