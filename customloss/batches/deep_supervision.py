"""One loss of several outputs, each at a resolution of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from customloss._spec import checks
from customloss.batches.streaming import StreamingLoss


def deep_supervision_loss(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    weight: Sequence[Tensor | None] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """``Σ_i weights[i] · loss(inputs[i], targets[i], weight[i])``: the loss of every output.

    The outputs of a decoder, finest first, each with the target at its resolution. A target may be
    a strided view such as ``target[:, ::2, ::2]``: no loss of this package copies it. Every output
    is scored by itself, so any loss and any option may be used, class numbers and
    ``process_group`` too.

    Args:
        loss: ``loss(input, target)`` or, with ``weight``, ``loss(input, target, weight)``: a module
            or function that returns a tensor of the same shape for every output.
        inputs, targets: one of each per output.
        weight: element weights or None for each output, or None.
        weights: of the outputs, >= 0 and not all 0, taken as they are. By default 1, 1/2, 1/4, ...,
            divided by their sum. An output of weight 0 is not scored; it gets a gradient of zeros,
            so that DistributedDataParallel finds no parameter unused.

    Raises:
        TypeError: no sequence of tensors, or a :class:`StreamingLoss`, whose average would mix
            the outputs.
        ValueError: sequences of unlike lengths, or weights out of range. Where the loss raises an
            error for an output, ``(output i)`` is appended to its message.

    Source: Lee et al., "Deeply-supervised nets", AISTATS 2015; the weights are those of Isensee et
    al., "nnU-Net", Nature Methods 2021, whose trainer leaves the coarsest out: ``weights=(4/7, 2/7,
    1/7, 0)``.

    Example::

        outputs = model(image)  # [N, C, 64, 64], [N, C, 32, 32], [N, C, 16, 16]
        targets = [target[:, :: 2**i, :: 2**i] for i in range(3)]
        loss = customloss.deep_supervision_loss(customloss.dice_ce_loss, outputs, targets)
    """
    if isinstance(loss, StreamingLoss):
        raise TypeError(
            "loss: expected a loss without a state, got StreamingLoss, whose average would mix the "
            "outputs: take one for each"
        )
    _sequence("inputs", inputs)
    _sequence("targets", targets, len(inputs))
    if weight is not None:
        _sequence("weight", weight, len(inputs), none=True)
    shares = _shares(weights, len(inputs))
    parts = []
    for i, (share, input, target) in enumerate(zip(shares, inputs, targets)):
        if share == 0:
            parts.append(input.narrow(0, 0, 0).sum())  # reads no element, so no NaN gets through
            continue
        more = () if weight is None else (weight[i],)
        if torch.compiler.is_compiling():
            part = loss(input, target, *more)
        else:
            try:
                part = loss(input, target, *more)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{error} (output {i})") from error
        parts.append(part if share == 1 else share * part)
    return reduce(add, parts)


def _sequence(name: str, values: object, length: int | None = None, none: bool = False) -> None:
    """Checks a sequence of tensors, which may hold None if ``none``."""
    if isinstance(values, Tensor) or not isinstance(values, Sequence):
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(values).__name__}")
    if length is None and not values:
        raise ValueError(f"{name}: expected at least one output, got none")
    if length is not None and len(values) != length:
        raise ValueError(
            f"{name}: expected {length}, one for each of the inputs, got {len(values)}"
        )
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) and not (none and value is None):
            raise TypeError(f"{name}[{i}]: expected a torch.Tensor, got {type(value).__name__}")


def _shares(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    """The weight of every output."""
    if weights is None:
        whole = 2 - 0.5 ** (count - 1)
        return [0.5**i / whole for i in range(count)]
    _check_weights(weights)
    if len(weights) != count:
        raise ValueError(
            f"weights: expected {count}, one for each of the inputs, got {len(weights)}"
        )
    return weights


def _check_weights(weights: object) -> None:
    """Checks that weights are numbers >= 0, and that one of them is not 0."""
    if isinstance(weights, (str, Tensor)) or not isinstance(weights, Sequence):
        raise TypeError(f"weights: expected a sequence of numbers, got {type(weights).__name__}")
    for i, value in enumerate(weights):
        checks.number(f"weights[{i}]", value, at_least=0)
    if not any(weights):
        raise ValueError("weights: expected one above 0, got none")


class DeepSupervision(nn.Module):
    """A loss for the outputs of several resolutions; see
    :func:`customloss.deep_supervision_loss`.

    Args:
        loss: a loss module, or a function.
        weights: of the outputs; by default 1, 1/2, 1/4, ... over their sum, however many there are.

    Example::

        criterion = customloss.DeepSupervision(customloss.DiceCELoss(ignore_index=255))
        criterion(outputs, [target[:, :: 2**i, :: 2**i] for i in range(len(outputs))]).backward()
    """

    def __init__(self, loss: Callable[..., Tensor], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss: expected a loss module or function, got {loss!r}")
        if weights is not None:
            _check_weights(weights)
        self.loss: Any = loss
        self.weights = None if weights is None else tuple(weights)

    def forward(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        weight: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        return deep_supervision_loss(self.loss, inputs, targets, weight, weights=self.weights)

    def extra_repr(self) -> str:
        return "" if self.weights is None else f"weights={self.weights}"
