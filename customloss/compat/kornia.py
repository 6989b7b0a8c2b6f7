"""The losses of kornia 0.9, in its words: the same signatures, state dicts and numbers.

What a kornia loss is in our words::

    pred, target              input, class numbers; a softmax, and for the binary loss a sigmoid
    average="micro", "macro"  samplewise=True and that average; classes that a sample lacks are
                              skipped in "macro"
    eps                       smooth=(0, eps)
    alpha, beta of Tversky    fp_weight, fn_weight
    alpha of the focal loss   class weights 1 - alpha, alpha ...; of the binary one focal_alpha
    focal reduction="mean"    pointwise_reduction="mean_all", divided by the number of classes
    binary focal loss         focal_split=True

Ours take class numbers of every integer dtype and any number of spatial dimensions, where kornia
takes int64 and, for Dice and Tversky, two dimensions. The loss of a float16 input is float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from customloss import scores
from customloss.compat.drop_in import DropIn, at, plain, refused
from customloss.losses.composed import confusion_loss
from customloss.losses.parts import compound

Number = float | None
Index = int | None


def _checked(owner: str, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of logits and class numbers."""
    if pred.dim() < 2 or tuple(target.shape) != (pred.shape[0], *pred.shape[2:]):
        raise ValueError(
            f"target: expected class numbers [B, *spatial] for an input [B, C, *spatial] of shape "
            f"{list(pred.shape)}, got {list(target.shape)}"
        )
    if pred.shape[1] == 1:
        raise refused(
            owner, "a softmax of one class, whose loss is always the same,",
            "take two channels, or binary_focal_loss_with_logits",
        )  # fmt: skip
    return plain(pred), plain(target)


def _of_classes(name: str, weight: Tensor | None, pred: Tensor) -> Tensor | None:
    """One number for each class."""
    if weight is None:
        return None
    if weight.dim() == 0 or weight.shape[0] != pred.shape[1] or weight.numel() != pred.shape[1]:
        raise ValueError(
            f"{name}: expected {pred.shape[1]} numbers, one for each class, got the shape "
            f"{list(weight.shape)}"
        )
    numbers: Tensor = plain(weight)
    return numbers.flatten()


def _ignoring(ignore_index: Index) -> dict[str, Any]:
    return {} if ignore_index is None else {"ignore_index": ignore_index}


def _of_samples(
    score: Any, pred: Tensor, target: Tensor, strict: bool, options: dict[str, Any]
) -> Tensor:
    """1 minus the mean similarity of the samples. One in which nothing counts has the similarity 0,
    and with ``strict=False`` none."""
    given = {"activation": "softmax", "samplewise": True, "absent": "skip", **options}
    if not strict or given["absent"] == "score":
        return confusion_loss(score, pred, target, **given)
    given |= {"link": "negative", "reduction": "sum"}
    return torch.rsub(confusion_loss(score, pred, target, **given), 1.0, alpha=-1.0 / len(pred))


def dice_loss(
    pred: Tensor, target: Tensor, average: str = "micro", eps: float = 1e-8,
    weight: Tensor | None = None, ignore_index: Index = -100, *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """``1 - 2 tp / (2 tp + fp + fn + eps)`` of every sample: of all its classes together
    (``"micro"``), or the mean over the classes that it has (``"macro"``).

    Warts that are kept: the default ``"micro"`` of a softmax without ``weight`` is 1 minus the mean
    probability of the true class, and no Dice of a class: ``average="macro"`` is that. A sample in
    which every pixel is ignored, or in which every class weighs 0, counts as loss 1;
    ``strict=False`` leaves such samples out of the mean.

    Where ours differs: at ``eps=0`` a sample in which every class weighs 0 has no gradient by a
    ``weight`` that is learned.
    """
    pred, target = _checked("dice_loss", pred, target)
    if average not in ("micro", "macro"):
        raise ValueError(f"average: expected 'micro' or 'macro', got {average!r}")
    options = {"average": average, **_ignoring(ignore_index)}
    if strict and average == "micro" and eps:  # what scores 0 / eps by itself is not skipped
        options["absent"] = "score"
    by_class = _of_classes("weight", weight, pred)
    if by_class is not None:
        options["class_weight"] = by_class
    return _of_samples(at(scores.dice, smooth=(0.0, eps)), pred, target, strict, options)


def tversky_loss(
    pred: Tensor, target: Tensor, alpha: float, beta: float, eps: float = 1e-8,
    ignore_index: Index = -100, *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """``1 - tp / (tp + alpha fp + beta fn + eps)``, a mean over the classes that a sample has.

    Warts: at ``alpha = beta = 0.5`` it is the macro Dice with twice the ``eps``; and as for
    :func:`dice_loss` a sample in which every pixel is ignored counts as loss 1, which
    ``strict=False`` mends.
    """
    pred, target = _checked("tversky_loss", pred, target)
    score = at(scores.tversky, fp_weight=alpha, fn_weight=beta, smooth=(0.0, eps))
    return _of_samples(score, pred, target, strict, _ignoring(ignore_index))


def _pointwise(
    owner: str, pred: Tensor, target: Tensor, reduction: str, size: int, strict: bool,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    """A focal loss, divided by ``size`` if it is a mean."""
    if reduction == "none":
        raise refused(owner, "reduction='none', a loss for every pixel,", "take 'mean' or 'sum'")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if reduction == "mean" and not strict:
        options["pointwise_reduction"], size = "mean", 1
    else:
        options["pointwise_reduction"] = "mean_all" if reduction == "mean" else "sum"
    scale = 1.0 / size if reduction == "mean" else 1.0
    return compound(None, pred, target, None, options, 0.0, focal_weight=scale)


def focal_loss(
    pred: Tensor, target: Tensor, alpha: Number, gamma: float = 2.0, reduction: str = "none",
    weight: Tensor | None = None, ignore_index: Index = -100, *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """The focal loss ``α (1 - p)^γ (-log p)`` of the softmax of the true class; α is ``1 - alpha``
    for class 0 and ``alpha`` for the others. ``reduction="none"`` is refused.

    Wart: ``"mean"`` is divided by the number of classes too, and by pixels that are ignored.
    ``strict=False`` divides by what counts, as a weighted cross-entropy is divided.
    """
    pred, target = _checked("focal_loss", pred, target)
    by_class = _of_classes("weight", weight, pred)
    if alpha is not None:
        alphas = (by_class if by_class is not None else pred).new_full((pred.shape[1],), alpha)
        alphas[0] = 1 - alpha
        by_class = alphas if by_class is None else alphas * by_class
    options = {"activation": "softmax", "focal_gamma": gamma, **_ignoring(ignore_index)}
    if by_class is not None:
        options["pointwise_class_weight"] = by_class
    return _pointwise("focal_loss", pred, target, reduction, pred.shape[1], strict, options)


def binary_focal_loss_with_logits(
    pred: Tensor, target: Tensor, alpha: Number = 0.25, gamma: float = 2.0,
    reduction: str = "none", pos_weight: Tensor | None = None, weight: Tensor | None = None,
    ignore_index: Index = -100, *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """The focal loss of a sigmoid, ``t π α (1-p)^γ (-log p) + (1-t)(1-α) p^γ (-log(1-p))`` of every
    element, π = ``pos_weight``. ``reduction="none"`` is refused.

    Wart: ``"mean"`` is divided by all elements, ignored ones included. ``strict=False`` divides by
    what counts: the sum of the weights of elements that are not ignored.
    """
    if pred.dim() < 2 or pred.shape != target.shape:
        raise ValueError(
            f"target: expected the shape of an input [B, C, *spatial], {list(pred.shape)}, got "
            f"{list(target.shape)}"
        )
    options: dict[str, Any] = {
        "focal_gamma": gamma, "focal_alpha": alpha, "focal_split": True, **_ignoring(ignore_index)
    }  # fmt: skip
    by_class = {
        "pos_weight": _of_classes("pos_weight", pos_weight, pred),
        "pointwise_class_weight": _of_classes("weight", weight, pred),
    }
    options |= {name: given for name, given in by_class.items() if given is not None}
    owner = "binary_focal_loss_with_logits"
    return _pointwise(owner, plain(pred), plain(target), reduction, 1, strict, options)


class _Module(DropIn):
    """A module, whose weights are parts of the state dict only where they are learned."""

    ignore_index: Index

    def _keep(self, **weights: Tensor | None) -> None:
        for name, weight in weights.items():
            if isinstance(weight, nn.Parameter):
                setattr(self, name, weight)
            else:
                self.register_buffer(name, weight, persistent=False)


class DiceLoss(_Module):
    """See :func:`dice_loss`."""

    weight: Tensor | None

    def __init__(
        self, average: str = "micro", eps: float = 1e-8, weight: Tensor | None = None,
        ignore_index: Index = -100, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.average, self.eps, self.ignore_index = average, eps, ignore_index
        self.strict = strict
        self._keep(weight=weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and class numbers ``[B, *spatial]``."""
        return dice_loss(
            pred, target, self.average, self.eps, self.weight, self.ignore_index,
            strict=self.strict,
        )  # fmt: skip


class TverskyLoss(_Module):
    """See :func:`tversky_loss`."""

    def __init__(
        self, alpha: float, beta: float, eps: float = 1e-8, ignore_index: Index = -100, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.alpha, self.beta, self.eps = alpha, beta, eps
        self.ignore_index, self.strict = ignore_index, strict

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and class numbers ``[B, *spatial]``."""
        return tversky_loss(
            pred, target, self.alpha, self.beta, self.eps, self.ignore_index, strict=self.strict
        )


class FocalLoss(_Module):
    """See :func:`focal_loss`."""

    weight: Tensor | None

    def __init__(
        self, alpha: Number, gamma: float = 2.0, reduction: str = "none",
        weight: Tensor | None = None, ignore_index: Index = -100, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction)
        self.alpha, self.gamma, self.ignore_index = alpha, gamma, ignore_index
        self.strict = strict
        self._keep(weight=weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and class numbers ``[B, *spatial]``."""
        return focal_loss(
            pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index,
            strict=self.strict,
        )  # fmt: skip


class BinaryFocalLossWithLogits(_Module):
    """See :func:`binary_focal_loss_with_logits`."""

    pos_weight: Tensor | None
    weight: Tensor | None

    def __init__(
        self, alpha: Number, gamma: float = 2.0, reduction: str = "none",
        pos_weight: Tensor | None = None, weight: Tensor | None = None,
        ignore_index: Index = -100, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reduction=reduction)
        self.alpha, self.gamma, self.ignore_index = alpha, gamma, ignore_index
        self.strict = strict
        self._keep(pos_weight=pos_weight, weight=weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits and targets of one shape, ``[B, C, *spatial]``."""
        return binary_focal_loss_with_logits(
            pred, target, self.alpha, self.gamma, self.reduction, self.pos_weight, self.weight,
            self.ignore_index, strict=self.strict,
        )  # fmt: skip


__all__ = (
    "BinaryFocalLossWithLogits", "DiceLoss", "FocalLoss", "TverskyLoss",
    "binary_focal_loss_with_logits", "dice_loss", "focal_loss", "tversky_loss",
)  # fmt: skip
