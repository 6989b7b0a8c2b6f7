"""The pointwise losses by themselves: cross-entropy, binary cross-entropy and focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from customloss._spec.options import PointwiseAlone
from customloss.losses.base import Loss
from customloss.losses.keywords import takes
from customloss.losses.parts import PosWeight, binary, compound

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _alone(
    input: Tensor, target: Tensor, weight: Tensor | None, given: dict[str, Any], *parts: float
) -> Tensor:
    """A compound without a score; ``parts`` are the weights of the cross-entropy and focal."""
    return compound(None, input, target, weight, given, 0.0, *parts, reduction_called="reduction")


@takes(PointwiseAlone)
def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    **options: Unpack[PointwiseAlone],
) -> Tensor:
    """``Σ w v t (-log p) / Σ w v t`` of a softmax: ``F.cross_entropy``, with weights of pixels.

    w is ``weight``, v is ``class_weight``, t the target, smoothed by ``label_smoothing`` in the
    numerator alone. It is the pointwise part of :func:`compound_loss`, whose arguments and errors
    it has.

    Args:
        input: logits ``[N, C]`` or ``[N, C, *spatial]``.
        target: class numbers ``[N, *spatial]``, or dense in the shape of ``input``.
        weight: broadcastable to ``input``, or ``[N, *spatial]``; 0 removes an element.
        reduction: ``"mean"`` as above; ``"mean_all"`` divides by the number of pixels, ignored
            ones included; ``"sum"`` divides by nothing.

    Returns:
        A scalar; float64 for float64 input, else float32. 0 where nothing counts.

    Example::

        loss = customloss.cross_entropy_loss(logits, class_numbers, ignore_index=255)
    """
    given = {"activation": "softmax", "pointwise_reduction": reduction, **options}
    return _alone(input, target, weight, given, 1.0)


class CrossEntropyLoss(Loss, name="cross_entropy"):
    r"""The cross-entropy of a softmax; see :func:`customloss.cross_entropy_loss`.

    .. math:: L = -\frac{\sum w\,v\,t \log p}{\sum w\,v\,t}
    """

    function = staticmethod(cross_entropy_loss)

    def __init__(self, *, reduction: str = "mean", **options: Unpack[PointwiseAlone]) -> None:
        super().__init__(reduction=reduction, **options)


@takes(PointwiseAlone)
def bce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: PosWeight = None,
    reduction: str = "mean",
    activation: str = "sigmoid",
    **options: Unpack[PointwiseAlone],
) -> Tensor:
    """``Σ w v [π t (-log p) + (1-t) (-log (1-p))] / Σ w v``: the binary cross-entropy.

    w is ``weight``, v is ``class_weight``, π is ``pos_weight``. It is
    ``F.binary_cross_entropy_with_logits``, but for the ``weight``: torch divides by the number of
    elements, as ``reduction="mean_all"`` does here. It is the pointwise part of
    :func:`compound_loss`, whose arguments and errors it has.

    Args:
        input: logits, or probabilities with ``activation="none"``; ``[N]``, ``[N, C]`` or
            ``[N, C, *spatial]``.
        target: the shape of ``input``, in [0, 1]; or class numbers ``[N, *spatial]``.
        weight: broadcastable to ``input``, or ``[N, *spatial]``; 0 removes an element.
        pos_weight: a number, or one per class.
        reduction: ``"mean"`` as above; ``"mean_all"`` divides by the number of elements, ignored
            ones included; ``"sum"`` divides by nothing.

    Returns:
        A scalar; float64 for float64 input, else float32. 0 where nothing counts.

    Example::

        loss = customloss.bce_loss(logits, target, pos_weight=3.0)
    """
    given = {
        "activation": binary("cross_entropy_loss", activation), "pos_weight": pos_weight,
        "pointwise_reduction": reduction, **options,
    }  # fmt: skip
    return _alone(input, target, weight, given, 1.0)


class BCELoss(Loss, name="bce"):
    r"""The binary cross-entropy; see :func:`customloss.bce_loss`.

    .. math:: L = -\frac{\sum w\,v\,[\pi t \log p + (1 - t) \log (1 - p)]}{\sum w\,v}
    """

    function = staticmethod(bce_loss)

    def __init__(
        self,
        *,
        pos_weight: PosWeight = None,
        reduction: str = "mean",
        activation: str = "sigmoid",
        **options: Unpack[PointwiseAlone],
    ) -> None:
        more: dict[str, Any] = {
            "pos_weight": pos_weight, "reduction": reduction, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)


@takes(PointwiseAlone)
def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = None,
    focal_split: bool = False,
    pos_weight: PosWeight = None,
    reduction: str = "mean",
    activation: str = "sigmoid",
    **options: Unpack[PointwiseAlone],
) -> Tensor:
    """``Σ w v m^γ [π α t (-log p) + (1-α) (1-t) (-log (1-p))] / Σ w v``: the focal loss.

    m = t (1-p) + (1-t) p is how far the prediction is off, 1 - p_t in the paper. w is ``weight``, v
    is ``class_weight``, π is ``pos_weight``; without an α both factors are 1. With a mean it is
    torchvision's ``sigmoid_focal_loss``. With ``activation="softmax"`` it is
    ``Σ w v t (1-p)^γ (-log p) / Σ w v t``. It is the pointwise part of :func:`compound_loss`, whose
    arguments and errors it has.

    Args:
        input: logits, or probabilities with ``activation="none"``; ``[N]``, ``[N, C]`` or
            ``[N, C, *spatial]``.
        target: the shape of ``input``, in [0, 1]; or class numbers ``[N, *spatial]``.
        weight: broadcastable to ``input``, or ``[N, *spatial]``; 0 removes an element.
        focal_gamma: γ, >= 0.
        focal_alpha: α in [0, 1], or None; not for a softmax.
        focal_split: with soft targets, (1-p)^γ before the first logarithm and p^γ before the
            second, instead of m^γ before both.
        pos_weight: a number, or one per class; not for a softmax.
        reduction: ``"mean"`` as above; ``"mean_all"`` divides by the number of elements (of a
            softmax: pixels), ignored ones included; ``"sum"`` divides by nothing.

    Returns:
        A scalar; float64 for float64 input, else float32. 0 where nothing counts.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Example::

        loss = customloss.focal_loss(logits, target, focal_alpha=0.25)
    """
    given = {
        "activation": activation, "focal_gamma": focal_gamma, "focal_alpha": focal_alpha,
        "focal_split": focal_split, "pos_weight": pos_weight, "pointwise_reduction": reduction,
        **options,
    }  # fmt: skip
    return _alone(input, target, weight, given, 0.0, 1.0)


class FocalLoss(Loss, name="focal"):
    r"""The focal loss; see :func:`customloss.focal_loss`.

    .. math:: L = -\frac{\sum w\,v\,m^\gamma [\alpha t \log p + (1 - \alpha) (1 - t) \log (1 - p)]}
        {\sum w\,v}
    """

    function = staticmethod(focal_loss)

    def __init__(
        self,
        *,
        focal_gamma: float = 2.0,
        focal_alpha: float | None = None,
        focal_split: bool = False,
        pos_weight: PosWeight = None,
        reduction: str = "mean",
        activation: str = "sigmoid",
        **options: Unpack[PointwiseAlone],
    ) -> None:
        more: dict[str, Any] = {
            "focal_gamma": focal_gamma, "focal_alpha": focal_alpha, "focal_split": focal_split,
            "pos_weight": pos_weight, "reduction": reduction, "activation": activation,
        }  # fmt: skip
        super().__init__(**more, **options)
