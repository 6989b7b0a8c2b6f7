"""MONAI's losses of a score: Dice, Tversky, generalized Dice and Matthews' correlation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customloss import scores
from customloss.compat.drop_in import Numbers, at, plain, refused
from customloss.compat.monai.reading import Act, Batch, OfScore, Weight


@scores.uses("squares")
def _squared_jaccard(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, p2: Tensor, t2: Tensor, tp2: Tensor,
    smooth: tuple[float, float],
) -> Tensor:  # fmt: skip
    return scores.ratio(2 * tp + smooth[0], 2 * (p2 + t2 - tp) + smooth[1])


class DiceLoss(OfScore):
    """``1 - (2 tp + smooth_nr) / (2 tp + fp + fn + smooth_dr)`` of every sample and class.

    Warts: see the top of the file. ``weight`` is not divided by its sum, so that the scale of the
    loss follows it.
    """

    class_weight: Tensor | None

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, squared_pred: bool = False,
        jaccard: bool = False, reduction: Any = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, weight: Weight = None,
        soft_label: bool = False, ignore_index: int | None = None, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr,
            smooth_dr, batch, strict,
        )  # fmt: skip
        self.squared_pred, self.jaccard, self.soft_label = squared_pred, jaccard, soft_label
        self.ignore_index = ignore_index
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self._numbers = Numbers()

    def score(self) -> Any:
        """The similarity, in our words."""
        half = 0.5 if self.jaccard and not self.squared_pred else 1.0
        smooth = (half * self.smooth_nr, half * self.smooth_dr)
        if self.squared_pred:
            return at(_squared_jaccard if self.jaccard else scores.squared_dice, smooth=smooth)
        if self.soft_label:
            soft = scores.semimetric_jaccard if self.jaccard else scores.semimetric_dice
            return at(soft, smooth=smooth)
        return at(scores.jaccard if self.jaccard else scores.dice, smooth=smooth)

    def weights(self, scored: int) -> Sequence[float]:
        """One number for each class that is scored, or none."""
        weight = self.class_weight
        if weight is None or scored == 1:
            return ()
        values = self._numbers.of(weight)
        values = values * scored if weight.dim() == 0 else values
        if len(values) != scored or min(values) < 0:
            raise ValueError(
                f"weight: expected {scored} numbers >= 0, one for each class that is scored (the "
                f"background is none with include_background=False), got {list(values)}"
            )
        return values

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` ``[B, C, *spatial]`` and ``target`` ``[B, C or 1, *spatial]``."""
        batch = self.read(input, target)
        loss = self.reduced(self.score(), batch, self.weights(batch.scored))
        return loss.view(*loss.shape, *[1] * (input.dim() - 2)) if loss.dim() else loss


class TverskyLoss(OfScore):
    """``1 - (tp + smooth_nr) / (tp + alpha fp + beta fn + smooth_dr)`` of every sample and class.

    Warts: at ``alpha = beta = 0.5`` the smoothing counts twice that of :class:`DiceLoss`.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, alpha: float = 0.5, beta: float = 0.5,
        reduction: Any = "mean", smooth_nr: float = 1e-5, smooth_dr: float = 1e-5,
        batch: bool = False, soft_label: bool = False, ignore_index: int | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr,
            smooth_dr, batch, strict,
        )  # fmt: skip
        self.alpha, self.beta, self.soft_label = alpha, beta, soft_label
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As :meth:`DiceLoss.forward`; without reduction ``[B, C]``."""
        kind = scores.semimetric_tversky if self.soft_label else scores.tversky
        weights = {"fp_weight": self.alpha, "fn_weight": self.beta}
        score = at(kind, smooth=(self.smooth_nr, self.smooth_dr), **weights)
        return self.reduced(score, self.read(input, target))


def _generalized_dice(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, w_type: str, smooth: tuple[float, float]
) -> Tensor:
    """:func:`customloss.scores.generalized_dice`, but for a sample without any class: there all
    weights are 0, where those of ours are 1."""
    support = (tp + fn).detach()
    present = torch.ones_like(support, dtype=torch.bool) if w_type == "uniform" else support != 0
    w = torch.where(present, support, 1.0) ** -{"square": 2, "simple": 1, "uniform": 0}[w_type]
    w = torch.where(present, w, torch.where(present, w, 0.0).amax(-1, keepdim=True))
    hit, miss = torch.stack((2 * w * tp, w * (fp + fn))).sum(-1, keepdim=True).unbind(0)
    return scores.ratio(hit + smooth[0], hit + miss + smooth[1])


@scores.uses("distance")
def _semimetric_generalized_dice(
    tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, common: Tensor, distance_pos: Tensor,
    distance_neg: Tensor, w_type: str, smooth: tuple[float, float],
) -> Tensor:  # fmt: skip
    return _generalized_dice(common, distance_pos, distance_neg, tn, w_type=w_type, smooth=smooth)


class GeneralizedDiceLoss(OfScore):
    """``1 - (2 Σ w tp + smooth_nr) / (Σ w (2 tp + fp + fn) + smooth_dr)`` over the classes of a
    sample, w = 1 / T², 1 / T or 1 by ``w_type``, T = tp + fn.

    Warts: a class that a sample lacks gets the largest weight of the others, and a sample without
    any class scores ``smooth_nr / smooth_dr``.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, w_type: Any = "square",
        reduction: Any = "mean", smooth_nr: float = 1e-5, smooth_dr: float = 1e-5,
        batch: bool = False, soft_label: bool = False, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr,
            smooth_dr, batch, strict,
        )  # fmt: skip
        self.w_type = str(getattr(w_type, "value", w_type))
        if self.w_type not in ("square", "simple", "uniform"):
            raise ValueError(f"w_type: expected 'square', 'simple' or 'uniform', got {w_type!r}")
        self.soft_label = soft_label

    def score(self) -> Any:
        """The similarity, in our words."""
        kind = _semimetric_generalized_dice if self.soft_label else _generalized_dice
        return at(kind, w_type=self.w_type, smooth=(self.smooth_nr, self.smooth_dr))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As :meth:`DiceLoss.forward`; one number for each sample."""
        loss = self.reduced(self.score(), self.read(input, target))
        if self.reduction != "none":
            return loss
        return loss.view(-1, *[1] * (input.dim() - 2 + (not self.batch)))

    def read(self, input: Tensor, target: Tensor) -> Batch:
        """The batch, whose classes make one number."""
        return super().read(input, target)._replace(scored=1)


def _mcc(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, smooth: tuple[float, float]) -> Tensor:
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn) + smooth[1]
    perfect = (fp == 0) & (fn == 0)
    root = torch.where(perfect, 1.0, product).sqrt()
    return torch.where(perfect, 1.0, (tp * tn - fp * fn + smooth[0]) / root)


class MCCLoss(OfScore):
    """``1 - (tp tn - fp fn + smooth_nr) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn) + smooth_dr)``, 0 where
    nothing is wrong."""

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, reduction: Any = "mean",
        smooth_nr: float = 0.0, smooth_dr: float = 1e-5, batch: bool = False, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr,
            smooth_dr, batch, strict,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As :meth:`DiceLoss.forward`; without reduction ``[B, C]``."""
        score = at(_mcc, smooth=(self.smooth_nr, self.smooth_dr))
        return self.reduced(score, self.read(input, target))


class MaskedDiceLoss(DiceLoss):
    """:class:`DiceLoss` of ``input * mask`` and ``target * mask``, behind the activation.

    One pass with a mask of bools; any other mask is multiplied in, as MONAI does, which is two
    more. A wart: with ``to_onehot_y`` every pixel outside of the mask is one of the background that
    was missed. ``strict=False`` mends it, for a mask of bools: what is outside counts for nothing.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False,
        softmax: bool = False, other_act: Act | None = None, squared_pred: bool = False,
        jaccard: bool = False, reduction: Any = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, weight: Weight = None,
        soft_label: bool = False, *, strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard,
            reduction, smooth_nr, smooth_dr, batch, weight, soft_label, strict=strict,
        )  # fmt: skip

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`DiceLoss.forward`; mask: ``[B or 1, 1, *spatial]``."""
        if mask is None:
            warnings.warn("No mask value specified for the MaskedLoss.", stacklevel=2)
            return super().forward(input, target)
        mask = plain(mask)
        if tuple(mask.shape) not in {(n, 1, *input.shape[2:]) for n in (1, input.shape[0])}:
            raise ValueError(
                f"mask: expected [B or 1, 1, *spatial] for an input {list(input.shape)}, got "
                f"{list(mask.shape)}"
            )
        batch = self.read(input, target)
        if batch.weight is not None:
            raise refused(self, "an ignore_index beside a mask", "put it in the mask")
        score = self.score()
        if mask.dtype == torch.bool:
            batch = batch._replace(weight=mask)
            numbers = self.to_onehot_y and input.shape[1] > 1
            if self.strict and numbers and batch.scored == input.shape[1]:
                outside = (~mask).flatten(1).sum(1, dtype=torch.float64)
                score = _with_missed(
                    score,
                    outside * (input.shape[0] // mask.shape[0] if self.batch else 1),
                    self.batch,
                )
        else:
            batch = _multiplied(batch, mask)
        loss = self.reduced(score, batch, self.weights(batch.scored))
        return loss.view(*loss.shape, *[1] * (input.dim() - 2)) if loss.dim() else loss


def _multiplied(batch: Batch, mask: Tensor) -> Batch:
    """Probabilities and targets times a mask."""
    p = batch.input
    act = batch.options["activation"]
    if act != "none":
        p = p.sigmoid() if act == "sigmoid" else p.softmax(1)
    options = {**batch.options, "activation": "none"}
    return batch._replace(input=p * mask, target=batch.target * mask, options=options)


def _with_missed(score: Any, outside: Tensor, pooled: bool) -> Any:
    """A score in which class 0 misses as many pixels more as are outside of the mask."""
    missed = outside.sum().view(1, 1) if pooled else outside.view(-1, 1)

    @scores.uses(*scores.used_by(score))
    def with_missed(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, **more: Tensor) -> Tensor:
        of_first = torch.zeros_like(fn)
        of_first[:, :1] = missed
        grown = {"t2", "distance_neg"} & more.keys()
        more |= {name: more[name] + of_first for name in grown}
        similarity: Tensor = score(tp, fp, fn + of_first, tn, **more)
        return similarity

    return with_missed
