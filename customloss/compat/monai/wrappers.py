"""MONAI's losses of a loss: with a mask, and of the outputs of several resolutions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from customloss.batches.deep_supervision import nearest
from customloss.compat.drop_in import DropIn, plain


class MaskedLoss(DropIn):
    """``loss(input * mask, target * mask)``, of any loss.

    A wart: the mask multiplies what the loss is given, so that logits outside of it are 0, which is
    a probability of one half and no hole. :class:`MaskedDiceLoss` masks behind the activation, and
    the losses of this package take a ``weight``.
    """

    def __init__(
        self, loss: Callable[..., Tensor], *loss_args: Any, strict: bool = True, **loss_kwargs: Any
    ) -> None:
        super().__init__()
        self.loss: Any = loss(*loss_args, **loss_kwargs) if inspect.isclass(loss) else loss
        self.strict = strict
        if not callable(self.loss):
            raise ValueError(f"loss: expected a loss, or a class of losses, got {loss!r}")

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss; mask: ``[B or 1, 1, *spatial]``."""
        if mask is None:
            warnings.warn("No mask value specified for the MaskedLoss.", stacklevel=2)
            masked: Tensor = self.loss(input, target)
            return masked
        if mask.shape[0] not in (1, input.shape[0]) or (target.dim() > 1 and mask.shape[1] != 1):
            raise ValueError(
                f"mask: expected [B or 1, 1, *spatial] for an input {list(input.shape)}, got "
                f"{list(mask.shape)}"
            )
        masked = self.loss(input * mask, target * mask)
        return masked


class DeepSupervisionLoss(DropIn):
    """``Σ weights[i] loss(input[i], target)``, the target at the size of every output.

    The nearest places of the target are read where they lie, for any dtype. Warts: the weights are
    1, 1/2, 1/4 ..., at least 1/16, and not divided by their sum; float64 is rounded to float32.
    """

    def __init__(
        self, loss: Any, weight_mode: str = "exp", weights: Sequence[float] | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.loss, self.weight_mode, self.weights, self.strict = loss, weight_mode, weights, strict
        self.interp_mode = "nearest-exact"

    def get_weights(self, levels: int = 1) -> list[float]:
        """The weights of so many outputs."""
        levels = max(1, levels)
        if self.weights is not None and len(self.weights) >= levels:
            return list(self.weights[:levels])
        by_mode = {
            "exp": [max(0.5**level, 0.0625) for level in range(levels)],
            "two": [1.0, *[0.5] * (levels - 1)],
        }
        return by_mode.get(self.weight_mode, [1.0] * levels)

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one output."""
        if self.strict and input.dtype == torch.float64:
            input = input.float()
        if input.shape[2:] != target.shape[2:]:
            target = nearest("target", plain(target), input, exact=True)
        loss: Tensor = self.loss(input, target)
        return loss

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of outputs, finest first, or of a single one."""
        if isinstance(input, Tensor):
            return self.get_loss(input, target)
        if input is None:
            raise ValueError("input: expected a tensor, or a sequence of them, got None")
        weights = self.get_weights(len(input))
        parts = [w * self.get_loss(each, target) for w, each in zip(weights, input)]
        return torch.stack(parts).sum(0)
