"""A score and a pointwise loss in one pass, of any score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from customloss._spec.options import Compound
from customloss.losses.composed import ConfusionLoss
from customloss.losses.formula import Score
from customloss.losses.keywords import takes
from customloss.losses.parts import compound, known_score

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Compound)
def compound_loss(
    score: Score | str | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    score_weight: float = 1.0,
    cross_entropy_weight: float = 0.0,
    focal_weight: float = 0.0,
    **options: Unpack[Compound],
) -> Tensor:
    """``a · loss of a score + b · cross-entropy + c · focal``, one pass forward and one backward.

    The pointwise part is a mean over the whole batch: for softmax over its pixels, else over its
    elements. With w the element weights, v the class weights and m = t (1-p) + (1-t) p::

        softmax             Σ w v t (-log p)                                  /  Σ w v t
        sigmoid, none       Σ w v [π t (-log p) + (1-t) (-log (1-p))]         /  Σ w v
        focal, softmax      Σ w v t (1-p)^γ (-log p)                          /  Σ w v t
        focal, otherwise    Σ w v m^γ [π α t (-log p) + (1-α) (1-t) (-log (1-p))]  /  Σ w v

    The first is ``F.cross_entropy`` with its ``weight``, ``ignore_index`` and ``label_smoothing``.
    The second, with π = ``pos_weight``, is ``F.binary_cross_entropy_with_logits``, except where
    there is a ``weight``: torch still divides by the number of elements. The last is torchvision's
    ``sigmoid_focal_loss``; without an α both factors are 1. With ``activation="none"`` the
    logarithms are those of max(p, 1e-30) and max(1-p, 1e-30). Below the floor they are constant: a
    probability of exactly 0 where t = 1 gets no gradient from them, so pass logits where you have
    them.

    Args:
        score: see :func:`confusion_loss`, as for all arguments that are not listed here. It may be
            None where ``score_weight`` is 0.
        score_weight, cross_entropy_weight, focal_weight: a, b and c, >= 0. A part of weight 0 is
            not computed.
        focal_gamma: γ, >= 0.
        focal_alpha: α in [0, 1], the weight of the positives of a focal loss, or None. A softmax
            has class weights instead.
        focal_split: with soft targets, (1-p)^γ before the first logarithm and p^γ before the
            second, instead of m^γ before both. For hard targets it is the same.
        pos_weight: π, the weight of the positives in a binary cross-entropy and a focal loss: a
            number, or one per class.
        ce_label_smoothing: ε of the cross-entropy alone, in [0, 1); None: that of the score,
            ``label_smoothing``. nnU-Net and MONAI smooth the cross-entropy, and never Dice.
        pointwise_class_weight: v of the pointwise loss, and then ``class_weight`` is that of the
            score alone. None: ``class_weight``.
        pointwise_classes: the classes that the pointwise loss counts. None: all.
        pointwise_reduction: ``"mean"`` as above; ``"mean_all"`` divides by the number of pixels
            or elements, ignored ones and any weights included; ``"sum"`` divides by nothing.
        pointwise_group: ``"score"``: the ranks of ``process_group`` share the pointwise loss as
            well; None: each rank has that of its own part of the batch, as in nnU-Net.
        average, samplewise, reduction: these are about the score, to which the pointwise loss of
            the whole batch is added. With ``samplewise=True`` and ``reduction="none"`` each sample
            gets its own pointwise loss. ``average="none"`` is refused: a pointwise loss is one
            number for all classes.
        classes, include_background: these are about the score. The pointwise loss is about all
            classes, as in MONAI and nnU-Net.
        class_weight, ignore_index, label_smoothing, weight: these are about both parts. A batch in
            which nothing counts has a pointwise loss of 0, and gradient 0.

    Returns:
        As :func:`confusion_loss`.

    Raises:
        TypeError, ValueError: as :func:`confusion_loss`; also for ``average="none"``, for
            ``pos_weight`` or ``focal_alpha`` with a softmax, and if no part has a weight above 0.

    Source: Taghanaki et al., "Combo loss: Handling input and output imbalance in multi-organ
    segmentation", CMIG 2019; Isensee et al., "nnU-Net", Nature Methods 2021; focal: Lin et al.,
    "Focal loss for dense object detection", ICCV 2017.

    Example::

        loss = customloss.compound_loss(
            customloss.scores.jaccard, logits, target, activation="softmax",
            score_weight=0.75, cross_entropy_weight=0.25, include_background=False,
        )
    """
    weights = (score_weight, cross_entropy_weight, focal_weight)
    return compound(score, input, target, weight, {**options}, *weights)


class CompoundLoss(ConfusionLoss):
    """Any score with a cross-entropy or focal loss beside it; see
    :func:`customloss.compound_loss`.

    Example::

        criterion = customloss.CompoundLoss(
            customloss.scores.jaccard, cross_entropy_weight=0.5, activation="softmax"
        )
        criterion(logits, class_numbers).backward()
    """

    function = staticmethod(compound_loss)

    def __init__(
        self,
        score: Score | str | None,
        *,
        score_weight: float = 1.0,
        cross_entropy_weight: float = 0.0,
        focal_weight: float = 0.0,
        **options: Unpack[Compound],
    ) -> None:
        more: dict[str, Any] = {
            "score_weight": score_weight, "cross_entropy_weight": cross_entropy_weight,
            "focal_weight": focal_weight, **options,
        }  # fmt: skip
        super().__init__(known_score(score, score_weight), **more)
