"""The focal loss and the cross-entropies of segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.compat.drop_in import DropIn, plain, refused
from customloss.losses.parts import compound


def _checked(owner: object, reduction: str | None) -> str:
    if reduction in (None, "none"):
        way = "take 'mean', or 'sum' and divide it"
        raise refused(owner, f"reduction={reduction!r}, a loss for every element,", way)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    return str(reduction)


class FocalLoss(DropIn):
    """The focal loss of a sigmoid, ``α_t (1 - p_t)^γ (-log p_t)``, α_t = ``alpha`` t +
    (1 - ``alpha``) (1 - t), a mean over the classes, weighted by ``class_weights``.

    Warts: it is the sigmoid of every class in ``mode="multiclass"`` too. There
    ``from_logits=False`` takes the logarithms of the probabilities for logits, which makes
    p / (1 + p) of p; ``strict=False`` takes the probabilities as they are. ``reduction="sum"`` is
    still divided by the number of classes, or by the sum of ``class_weights``; ``strict=False``
    divides by nothing.

    Where ours differs: for soft targets 1 - p_t is t (1 - p) + (1 - t) p, as in the paper's code,
    where smp has 1 - e^-(cross-entropy); for targets of 0 and 1 these are the same.
    ``mode="multilabel"`` takes an ``ignore_index``, with which smp fails. ``from_logits=False``
    reads the probabilities once more, to clamp them.

    Raises:
        NotImplementedError: ``normalized``, ``reduced_threshold``, and a loss for every element.
    """

    def __init__(
        self, mode: str, alpha: float | None = None, gamma: float | None = 2.0,
        ignore_index: int | None = None, from_logits: bool = True, eps: float = 1e-7,
        reduction: str | None = "mean", normalized: bool = False,
        reduced_threshold: float | None = None, class_weights: Sequence[float] | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        if mode not in ("binary", "multiclass", "multilabel"):
            raise ValueError(f"mode: expected 'binary', 'multiclass' or 'multilabel', got {mode!r}")
        given = class_weights
        if mode == "binary" and given is not None:
            raise ValueError(f"class_weights: expected None with mode='binary', got {given}")
        if normalized:
            raise refused(self, "normalized=True", "take a smaller learning rate or gamma=0")
        if reduced_threshold is not None:
            raise refused(self, "reduced_threshold", "take gamma")
        if mode == "binary" and reduction == "batchwise_mean":
            reduction = "sum"  # which it is of flat tensors
        super().__init__(reduction=_checked(self, reduction))
        self.mode, self.alpha, self.gamma, self.eps = mode, alpha, gamma, eps
        self.ignore_index, self.from_logits, self.strict = ignore_index, from_logits, strict
        self.class_weights = None if given is None else torch.as_tensor(given).float()

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of ``[N, C, *spatial]`` and class numbers ``[N, *spatial]``, or of two tensors
        of one shape unless the mode is ``"multiclass"``; a scalar."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        if self.mode == "binary":
            y_pred, y_true = y_pred.reshape(-1), y_true.reshape(-1)
        options: dict[str, Any] = {
            "focal_gamma": self.gamma, "focal_alpha": self.alpha, "ignore_index": self.ignore_index,
            "pointwise_reduction": self.reduction,
        }  # fmt: skip
        if not self.from_logits:
            y_pred = y_pred.clamp(self.eps, 1 - self.eps)
            if self.mode == "multiclass" and self.strict:
                y_pred = y_pred.log()
            else:
                options["activation"] = "none"
        scale = 1.0
        if self.mode != "binary":
            weights = self.class_weights
            if weights is not None:
                options["pointwise_class_weight"] = weights.to(y_pred.device)
            if self.reduction == "sum" and self.strict:
                scale = 1.0 / (y_pred.shape[1] if weights is None else float(weights.sum()))
        return compound(None, y_pred, y_true, None, options, 0.0, focal_weight=scale)


class SoftBCEWithLogitsLoss(DropIn):
    """The binary cross-entropy of a sigmoid, whose targets become
    ``(1 - smooth_factor) t + smooth_factor (1 - t)``.

    A wart: ``"mean"`` is divided by ignored elements too, and not by ``weight``; ``strict=False``
    divides by what counts.

    Raises:
        NotImplementedError: ``reduction="none"``; a ``smooth_factor`` of 1/2 or more; a
            ``pos_weight`` that differs within a class.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int | None = -100,
        reduction: str = "mean", smooth_factor: float | None = None,
        pos_weight: Tensor | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        if smooth_factor is not None and not 0 <= smooth_factor < 0.5:
            raise refused(
                self, f"smooth_factor={smooth_factor}, which turns targets around,",
                "take a number in [0, 0.5)",
            )  # fmt: skip
        super().__init__(reduction=_checked(self, reduction))
        self.ignore_index, self.smooth_factor, self.strict = ignore_index, smooth_factor, strict
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of two tensors of one shape; a scalar."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        if y_pred.shape != y_true.shape:
            raise ValueError(
                f"y_true: expected the shape of y_pred, {list(y_pred.shape)}, got "
                f"{list(y_true.shape)}"
            )
        options: dict[str, Any] = {"ignore_index": self.ignore_index}
        mean = "mean_all" if self.strict else "mean"
        options["pointwise_reduction"] = mean if self.reduction == "mean" else "sum"
        if self.smooth_factor:
            options["label_smoothing"] = 2.0 * self.smooth_factor
        if self.pos_weight is not None:
            options["pos_weight"] = self._of_classes(self.pos_weight, y_pred)
        weight = None if self.weight is None else self.weight.expand_as(y_pred)
        if not y_pred.dim():
            y_pred, y_true = y_pred.view(1), y_true.view(1)
            weight = weight if weight is None else weight.view(1)
        return compound(None, y_pred, y_true, weight, options, 0.0, 1.0)

    def _of_classes(self, pos_weight: Tensor, y_pred: Tensor) -> Tensor:
        """One number for each class, or for all, of a tensor that is broadcast to ``y_pred``."""
        if pos_weight.numel() == 1:
            return pos_weight.reshape(())
        shape = (1,) * (y_pred.dim() - pos_weight.dim()) + tuple(pos_weight.shape)
        if y_pred.dim() > 1 and shape == (1, y_pred.shape[1], *(1,) * (y_pred.dim() - 2)):
            return pos_weight.reshape(-1)
        raise refused(
            self, f"a pos_weight of shape {list(pos_weight.shape)} for {list(y_pred.shape)}",
            "give a number for each class, [C, 1, 1] for [N, C, H, W]",
        )  # fmt: skip


class SoftCrossEntropyLoss(DropIn):
    """The cross-entropy of a softmax with smoothed labels, ``(1 - smooth_factor) t +
    smooth_factor / C``.

    A wart: ``"mean"`` is divided by ignored pixels too; ``strict=False`` divides by what counts.
    Where ours differs: the default ``smooth_factor=None`` means 0, where smp fails.

    Raises:
        NotImplementedError: ``reduction="none"``; a ``smooth_factor`` of 1 or more.
    """

    def __init__(
        self, reduction: str = "mean", smooth_factor: float | None = None,
        ignore_index: int | None = -100, dim: int = 1, *, strict: bool = True,
    ) -> None:  # fmt: skip
        if smooth_factor is not None and not 0 <= smooth_factor < 1:
            way = "take a number in [0, 1)"
            raise refused(self, f"smooth_factor={smooth_factor}, without a true class,", way)
        super().__init__(reduction=_checked(self, reduction))
        self.smooth_factor, self.ignore_index, self.dim = smooth_factor, ignore_index, dim
        self.strict = strict

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss of logits with the classes in ``dim``, and class numbers without this
        dimension, or with one of size 1 there; a scalar."""
        y_pred, y_true = plain(y_pred), plain(y_true)
        if y_true.dim() == y_pred.dim():
            y_true = y_true.squeeze(self.dim)
        if y_pred.dim() == 1:
            y_pred, y_true = y_pred.unsqueeze(0), y_true.reshape(1)
        elif self.dim != 1:
            y_pred = y_pred.movedim(self.dim, 1)
        mean = "mean_all" if self.strict else "mean"
        options: dict[str, Any] = {
            "activation": "softmax", "ignore_index": self.ignore_index,
            "pointwise_reduction": mean if self.reduction == "mean" else "sum",
        }  # fmt: skip
        if self.smooth_factor:
            options["label_smoothing"] = self.smooth_factor
        return compound(None, y_pred, y_true, None, options, 0.0, 1.0)
