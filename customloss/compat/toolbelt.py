"""The losses of pytorch-toolbelt 0.8, in its words.

``smooth`` and ``eps`` of the Dice and Jaccard losses: ``smooth`` is added to both sides of the
similarity, and the denominator is at least ``eps``. The classes are those of the whole batch.

Warts: an absent class costs nothing, but the mean is still divided by it, which ``strict=False``
mends. Each class names its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss import scores
from customloss.compat.batch_scores import OfBatch
from customloss.compat.drop_in import DropIn, at, plain, refused
from customloss.losses.composed import confusion_loss
from customloss.losses.formula import Score
from customloss.losses.parts import compound

# FocalLoss and CrossEntropyFocalLoss are missing on purpose: customloss.patch replaces what is
# named here, and with the default options they are refused.
__all__ = ("BinaryFocalLoss", "BinarySoftF1Loss", "DiceLoss", "JaccardLoss", "SoftF1Loss")


def _ratio(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, of_tp: float, smooth: float, eps: float
) -> Tensor:
    return (of_tp * tp + smooth) / (of_tp * tp + fp + fn + smooth).clamp_min(eps)


class DiceLoss(OfBatch):
    """``1 - (2 tp + smooth) / (2 tp + fp + fn + smooth)`` of every class, or ``-log`` of it.

    Where ours differs: toolbelt takes ``classes`` as a tensor alone, and of a list of them it makes
    one without elements; ours takes both.
    """

    of_tp = 2.0

    def __init__(
        self, mode: str, classes: Sequence[int] | Tensor | None = None, log_loss: bool = False,
        from_logits: bool = True, smooth: float = 0.0, ignore_index: int | None = None,
        eps: float = 1e-7, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(mode, classes, log_loss, from_logits, smooth, eps, strict)
        self.ignore_index = ignore_index

    def similarity(self, soft: bool) -> Score:
        if (
            not soft and 1.0 + self.smooth >= self.eps
        ):  # the least denominator of a class with a pixel
            return at(scores.dice if self.of_tp == 2 else scores.jaccard, smooth=self.smooth)
        return at(_ratio, of_tp=self.of_tp, smooth=self.smooth, eps=self.eps)


class JaccardLoss(DiceLoss):
    """``1 - (tp + smooth) / (tp + fp + fn + smooth)`` of every class, or ``-log`` of it.

    Where ours differs: as :class:`DiceLoss`.
    """

    of_tp = 1.0

    def __init__(
        self, mode: str, classes: Sequence[int] | Tensor | None = None, log_loss: bool = False,
        from_logits: bool = True, smooth: float = 0, eps: float = 1e-7, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(mode, classes, log_loss, from_logits, smooth, None, eps, strict=strict)


def _soft_f1(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    """1 where nothing counts."""
    nothing = tp + fp + fn + tn == 0
    return torch.where(nothing, torch.ones_like(tp), 2 * tp / (2 * tp + fp + fn + 1e-6))


class _SoftF1(DropIn):
    activation: str

    def __init__(
        self, ignore_index: int | None = None, eps: float = 1e-6, *, strict: bool = True
    ) -> None:
        super().__init__()
        self.ignore_index, self.eps, self.strict = ignore_index, eps, strict

    def _loss(self, preds: Tensor, targets: Tensor) -> Tensor:
        options: dict[str, Any] = {
            "activation": self.activation, "ignore_index": self.ignore_index, "absent": "score"
        }  # fmt: skip
        if self.strict:
            softmax = self.activation == "softmax"
            p = preds.softmax(dim=1) if softmax else preds.sigmoid()
            preds, options["activation"] = p.clamp(self.eps, 1 - self.eps), "none"
        return confusion_loss(_soft_f1, preds, targets, **options)


class BinarySoftF1Loss(_SoftF1):
    """``1 - 2 tp / (2 tp + fp + fn + 1e-6)`` of a sigmoid, 0 where everything is ignored.

    A wart: the probabilities are clamped to [eps, 1 - eps], so that those beyond have no gradient,
    and each counts as eps. That takes passes of its own; ``strict=False`` leaves it out: one pass.
    """

    activation = "sigmoid"

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        """The loss of two tensors with as many elements, which are one class; a scalar."""
        return self._loss(plain(preds).reshape(-1), plain(targets).reshape(-1))


class SoftF1Loss(_SoftF1):
    """``1 - 2 tp / (2 tp + fp + fn + 1e-6)`` of every class of a softmax, and the mean.

    A wart: the probabilities are clamped to [eps, 1 - eps], as in :class:`BinarySoftF1Loss`. With
    ``strict=False`` it takes spatial dimensions too.

    Raises:
        NotImplementedError: an ``ignore_index``, which toolbelt compares with the 0 and 1 of the
            one-hot tensor: ``strict=False`` ignores the samples of this class number.
    """

    activation = "softmax"

    def __init__(
        self, ignore_index: int | None = None, eps: float = 1e-6, *, strict: bool = True
    ) -> None:
        if strict and ignore_index is not None:
            raise refused(
                self, f"ignore_index={ignore_index}, compared with a one-hot tensor,",
                "take strict=False, which ignores the samples of this class number",
            )  # fmt: skip
        super().__init__(ignore_index, eps, strict=strict)

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits ``[N, C]`` and class numbers ``[N]``; a scalar."""
        return self._loss(plain(preds), plain(targets))


def _pointwise_reduction(
    owner: object, reduction: str, normalized: bool, reduced_threshold: float | None
) -> str:
    if normalized:
        raise refused(owner, "normalized=True", "take a smaller learning rate or gamma=0")
    if reduced_threshold is not None:
        raise refused(owner, "reduced_threshold", "take gamma")
    if reduction in ("none", "batchwise_mean"):
        way = "take 'mean', or 'sum' and divide it"
        raise refused(owner, f"reduction={reduction!r}, a loss for every element,", way)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    return reduction


class BinaryFocalLoss(DropIn):
    """The focal loss of a sigmoid, ``α_t (1 - p_t)^γ (-log p_t)``, times ``class_weights``.

    Warts: α_t = ``alpha`` t + (1 - ``alpha``)(1 - t) weighs an element as a whole, also one with a
    soft target, and for targets of floats that is one more pass over them; ``"mean"`` is divided by
    ignored elements too, and not by ``class_weights``. ``strict=False`` divides by what counts, and
    weighs both parts of a soft target by their own.

    Where ours differs: toolbelt rounds float64 to float32.

    Raises:
        NotImplementedError: ``activation="softmax"``, in which the focal factor has a softmax and
            the cross-entropy a sigmoid; ``normalized``; ``reduced_threshold``; a loss for every
            element.
    """

    class_weights: Tensor | None

    def __init__(
        self, alpha: float | None = None, gamma: float = 2.0, ignore_index: int | None = None,
        reduction: str = "mean", normalized: bool = False, reduced_threshold: float | None = None,
        activation: str = "sigmoid", softmax_dim: int | None = None,
        class_weights: Tensor | Sequence[float] | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        if activation != "sigmoid":
            raise refused(
                self, f"activation={activation!r}, a focal factor of another activation than the "
                "cross-entropy,", "take customloss.FocalLoss(activation='softmax')",
            )  # fmt: skip
        reduction = _pointwise_reduction(self, reduction, normalized, reduced_threshold)
        super().__init__(reduction=reduction)
        self.alpha, self.gamma, self.ignore_index = alpha, gamma, ignore_index
        self.strict = strict
        if class_weights is not None and not isinstance(class_weights, Tensor):
            class_weights = torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and targets of this shape, or class numbers
        ``[B, *spatial]``; a scalar."""
        inputs, targets = plain(inputs), plain(targets)
        if targets.dim() + 1 == inputs.dim() and inputs.shape[1] == 1:
            way = "give targets of the shape of the inputs"
            raise refused(self, "class numbers of one class, whose targets are all 1,", way)
        mean = "mean_all" if self.strict else "mean"
        options: dict[str, Any] = {
            "focal_gamma": self.gamma, "ignore_index": self.ignore_index,
            "pointwise_reduction": mean if self.reduction == "mean" else "sum",
        }  # fmt: skip
        if self.class_weights is not None:
            options["pointwise_class_weight"] = self.class_weights
        weight, alpha = None, self.alpha
        soft = targets.is_floating_point() and targets.shape == inputs.shape
        if alpha is not None and self.strict and soft and alpha != 0.5:
            weight = (targets.detach() * (2 * alpha - 1)).add_(1 - alpha)
            if self.ignore_index is not None:
                weight = weight.masked_fill_(targets == self.ignore_index, 0.0)
        elif alpha is not None:
            options["focal_alpha"] = float(alpha)
        return compound(None, inputs, targets, weight, options, 0.0, focal_weight=1.0)


class CrossEntropyFocalLoss(DropIn):
    """The focal loss of a softmax, ``(1 - p)^γ (-log p)`` of the true class.

    toolbelt's own number is another one: the sigmoid cross-entropies of all classes, each times a
    focal factor of its softmax. No pass computes both activations of an element, so that is
    refused: ``strict=False`` gives the focal loss of the softmax, divided by what counts.

    Raises:
        NotImplementedError: ``strict=True``, the default; ``normalized``; ``reduced_threshold``; a
            loss for every pixel.
    """

    class_weights: Tensor | None

    def __init__(
        self, gamma: float = 2.0, reduction: str = "mean", normalized: bool = False,
        reduced_threshold: float | None = None, ignore_index: int = -100,
        class_weights: Tensor | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        if strict:
            raise refused(
                self, "a cross-entropy of a sigmoid times a focal factor of a softmax",
                "take strict=False, which is the focal loss of the softmax",
            )  # fmt: skip
        reduction = _pointwise_reduction(self, reduction, normalized, reduced_threshold)
        super().__init__(reduction=reduction)
        self.gamma, self.ignore_index, self.strict = gamma, ignore_index, strict
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits ``[B, C, *spatial]`` and class numbers ``[B, *spatial]``; a scalar."""
        options: dict[str, Any] = {
            "activation": "softmax", "focal_gamma": self.gamma, "ignore_index": self.ignore_index,
            "pointwise_reduction": self.reduction,
        }  # fmt: skip
        if self.class_weights is not None:
            options["pointwise_class_weight"] = self.class_weights
        return compound(None, plain(inputs), plain(targets), None, options, 0.0, focal_weight=1.0)


FocalLoss = CrossEntropyFocalLoss  # toolbelt's older name of it
