"""The mask losses of transformers, in its words, with the same numbers.

Its models have them in two families. Detection (DETR and those that follow it) says ``dice_loss(
inputs, targets, num_boxes)``; segmentation (MaskFormer, Mask2Former, OneFormer, EoMT) says
``labels`` and ``num_masks``. Either words are taken here. A row is a mask, and ``num_boxes`` is how
many there are in the batch, or on average on every rank.

Grounding DINO divides its focal loss by ``num_boxes`` alone, which is
``customloss.compat.torchvision.sigmoid_focal_loss(..., reduction="sum") / num_boxes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from torch import Tensor

from customloss import scores
from customloss.compat import torchvision
from customloss.compat.drop_in import at, plain
from customloss.losses.composed import confusion_loss
from customloss.losses.parts import compound

__all__ = ("dice_loss", "sigmoid_cross_entropy_loss", "sigmoid_focal_loss")

_OF_SEGMENTATION = {"labels": "targets", "num_masks": "num_boxes"}


def _of_both(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss, which takes the words of segmentation too."""

    @wraps(loss)
    def in_either_words(*args: object, **named: object) -> Tensor:
        for theirs, ours in _OF_SEGMENTATION.items():
            if theirs in named and ours not in named:
                named[ours] = named.pop(theirs)
        return loss(*args, **named)

    return in_either_words


def _same_shape(inputs: Tensor, targets: Tensor) -> None:
    if inputs.shape != targets.shape or inputs.dim() < 2:
        raise ValueError(
            f"targets, labels: expected [masks, points] or more dimensions, as inputs "
            f"{list(inputs.shape)}, got {list(targets.shape)}"
        )


@_of_both
def dice_loss(inputs: Tensor, targets: Tensor, num_boxes: float | Tensor) -> Tensor:
    """``Σ 1 - (2 tp + 1) / (2 tp + fp + fn + 1)`` over the masks, divided by ``num_boxes``, of
    logits ``[masks, points]``, or of more dimensions, with targets ``[masks, points]``."""
    inputs, targets = plain(inputs).flatten(1), plain(targets)
    _same_shape(inputs, targets)
    if not inputs.numel():  # no mask to score
        return inputs.sum() / num_boxes
    loss = confusion_loss(
        at(scores.dice, smooth=1.0), inputs.unsqueeze(1), targets.unsqueeze(1), samplewise=True,
        reduction="sum",
    )  # fmt: skip
    return loss / num_boxes


@_of_both
def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_boxes: float | Tensor, alpha: float = 0.25,
    gamma: float = 2, *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """Lin's focal loss, its sum over the elements divided by the size of dimension 1 and by
    ``num_boxes``. A negative ``alpha`` is none.

    A wart: of queries and classes ``[B, queries, classes]`` the mean is over the queries, and the
    sum over the classes, and callers multiply by the number of queries. That of ``alpha`` is the
    one of :func:`customloss.compat.torchvision.sigmoid_focal_loss`, and so is what ``strict=False``
    does.
    """
    _same_shape(inputs, targets)
    summed = torchvision.sigmoid_focal_loss(
        inputs, targets, -1 if alpha < 0 else alpha, gamma, "sum", strict=strict
    )
    return summed / max(1, inputs.shape[1]) / num_boxes


@_of_both
def sigmoid_cross_entropy_loss(
    inputs: Tensor, targets: Tensor, num_boxes: float | Tensor
) -> Tensor:
    """The binary cross-entropy, divided as :func:`sigmoid_focal_loss`; segmentation has it."""
    _same_shape(inputs, targets)
    options = {"pointwise_reduction": "sum"}
    summed = compound(
        None, plain(inputs), plain(targets), None, options, 0.0, cross_entropy_weight=1.0
    )
    return summed / max(1, inputs.shape[1]) / num_boxes
