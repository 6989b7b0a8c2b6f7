"""nnU-Net's loss of the outputs of several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

from torch import Tensor

from customloss.compat.drop_in import DropIn


class DeepSupervisionWrapper(DropIn):
    """``Σ weight_factors[i] loss(inputs[i], targets[i])`` of lists; by default all weights are 1,
    of which nnU-Net says the same but raises an error. Warts: see the top of the file."""

    def __init__(
        self, loss: Callable[..., Tensor], weight_factors: Sequence[float] | None = None, *,
        strict: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight_factors = None if weight_factors is None else tuple(weight_factors)
        if self.weight_factors is not None and not any(self.weight_factors):
            raise ValueError("weight_factors: expected one that is not 0, got none")
        self.loss, self.strict = loss, strict

    def forward(self, *args: Sequence[Tensor]) -> Tensor:
        """The loss of lists of one tensor for each output."""
        if not all(isinstance(each, (tuple, list)) for each in args):
            kinds = ", ".join(type(each).__name__ for each in args)
            raise TypeError(f"inputs, targets: expected tuples or lists, got {kinds}")
        levels = list(zip(*args))
        factors = self.weight_factors or (1.0,) * len(levels)
        if len(factors) < len(levels):
            raise ValueError(f"weight_factors: expected {len(levels)}, got {len(factors)}")
        parts = [factor * self.loss(*each) for factor, each in zip(factors, levels) if factor]
        if not self.strict:  # no element is read
            parts += [each[0].narrow(0, 0, 0).sum() for f, each in zip(factors, levels) if not f]
        return reduce(add, parts)
