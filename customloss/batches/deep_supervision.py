"""One loss of several outputs, each at a resolution of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from customloss._spec import checks, hints
from customloss.batches.streaming import StreamingLoss
from customloss.losses.keywords import known_only


@known_only
def deep_supervision_loss(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor] | Tensor,
    weight: Sequence[Tensor | None] | Tensor | None = None,
    *,
    weights: Sequence[float] | None = None,
    resize: str | None = None,
) -> Tensor:
    """``Σ_i weights[i] · loss(inputs[i], targets[i], weight[i])``: the loss of every output.

    The outputs of a decoder, finest first, each with the target at its resolution. A target may be
    a strided view such as ``target[:, ::2, ::2]``: no loss of this package copies it. Every output
    is scored by itself, so any loss and any option may be used, class numbers and
    ``process_group`` too.

    Args:
        loss: ``loss(input, target)`` or, with ``weight``, ``loss(input, target, weight)``: a module
            or function that returns a tensor of the same shape for every output.
        inputs, targets: one of each per output; with ``resize`` also one target for all outputs.
        weight: element weights or None for each output, or None; with ``resize`` also one for all.
        weights: of the outputs, >= 0 and not all 0, taken as they are. By default 1, 1/2, 1/4, ...,
            divided by their sum. An output of weight 0 is not scored; it gets a gradient of zeros,
            so that DistributedDataParallel finds no parameter unused.
        resize: ``"nearest"`` gives target and weight the spatial size of each output, by the rule
            of ``F.interpolate(mode="nearest")``, for every dtype and so for class numbers too. An
            output whose size divides that of the target gets a strided view, and nothing is
            copied.

    Raises:
        TypeError: no sequence of tensors (nor, with ``resize``, one for all), or a
            :class:`StreamingLoss`, whose average would mix the outputs.
        ValueError: sequences of unlike lengths, or weights out of range. Where the loss raises an
            error for an output, ``(output i)`` is appended to its message.

    Source: Lee et al., "Deeply-supervised nets", AISTATS 2015; the weights are those of Isensee et
    al., "nnU-Net", Nature Methods 2021, whose trainer leaves the coarsest out: ``weights=(4/7, 2/7,
    1/7, 0)``.

    Example::

        outputs = model(image)  # [N, C, 64, 64], [N, C, 32, 32], [N, C, 16, 16]
        loss = customloss.deep_supervision_loss(
            customloss.dice_ce_loss, outputs, target, resize="nearest"
        )
        targets = [target[:, :: 2**i, :: 2**i] for i in range(3)]  # the same
        loss = customloss.deep_supervision_loss(customloss.dice_ce_loss, outputs, targets)
    """
    _check_loss(loss)
    _sequence("inputs", inputs)
    _check_resize(resize)
    if resize is not None:
        targets = _resized("targets", targets, inputs)
        weight = None if weight is None else _resized("weight", weight, inputs)
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


def _check_loss(loss: object) -> None:
    """Checks what scores every output."""
    if isinstance(loss, StreamingLoss):
        raise TypeError(
            "loss: expected a loss without a state, got StreamingLoss, whose average would mix the "
            "outputs: take one for each"
        )
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss: expected a loss module or function, got {hints.instance_of(loss)}")


def _sequence(name: str, values: object, length: int | None = None, none: bool = False) -> None:
    """Checks a sequence of tensors, which may hold None if ``none``."""
    if isinstance(values, Tensor) or not isinstance(values, Sequence):
        one = isinstance(values, Tensor) and name != "inputs"
        cure = "; resize='nearest' takes one for all outputs" if one else ""
        raise TypeError(
            f"{name}: expected a sequence of tensors, got {type(values).__name__}{cure}"
        )
    if length is None and not values:
        raise ValueError(f"{name}: expected at least one output, got none")
    if length is not None and len(values) != length:
        raise ValueError(
            f"{name}: expected {length}, one for each of the inputs, got {len(values)}"
        )
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) and not (none and value is None):
            raise TypeError(f"{name}[{i}]: expected a torch.Tensor, got {type(value).__name__}")


def _check_resize(resize: object) -> None:
    """Checks how targets are resized."""
    if resize is not None:
        checks.one_of("resize", resize, ("nearest",))


def _resized(
    name: str, values: Tensor | Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Any]:
    """One tensor for each output, of the spatial size of that output."""
    if isinstance(values, Tensor):
        values = [values] * len(inputs)
    _sequence(name, values, len(inputs), none=name == "weight")
    return [
        None if value is None else _nearest(name, value, input)
        for value, input in zip(values, inputs)
    ]


def _nearest(name: str, value: Tensor, input: Tensor) -> Tensor:
    """``value`` at the places of ``input``: number i of n is number ``floor(i m / n)`` of m."""
    spatial = max(input.dim() - 2, 0)
    if value.dim() < spatial:
        raise ValueError(
            f"{name}: expected the {spatial} spatial dimensions of the inputs, got "
            f"{list(value.shape)}"
        )
    for dim in range(-spatial, 0):
        size, wanted = value.shape[dim], input.shape[dim]
        if size == wanted or (name == "weight" and size == 1):  # a weight may be broadcast
            continue
        if wanted and size % wanted == 0:
            index = [slice(None)] * value.dim()
            index[dim] = slice(None, None, size // wanted)
            value = value[tuple(index)]
        else:
            places = torch.arange(wanted, device=value.device) * size
            value = value.index_select(dim, places.div(max(wanted, 1), rounding_mode="floor"))
    return value


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
        resize: ``"nearest"`` for one target at full resolution; by default there is one for each
            output.

    Example::

        loss = customloss.DiceCELoss(ignore_index=255)
        criterion = customloss.DeepSupervision(loss, resize="nearest")
        criterion(outputs, target).backward()
        criterion = customloss.DeepSupervision(loss)
        criterion(outputs, [target[:, :: 2**i, :: 2**i] for i in range(len(outputs))]).backward()
    """

    @known_only
    def __init__(
        self,
        loss: Callable[..., Tensor],
        weights: Sequence[float] | None = None,
        resize: str | None = None,
    ) -> None:
        super().__init__()
        _check_loss(loss)
        if weights is not None:
            _check_weights(weights)
        _check_resize(resize)
        self.loss: Any = loss
        self.weights = None if weights is None else tuple(weights)
        self.resize = resize

    @known_only
    def forward(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor] | Tensor,
        weight: Sequence[Tensor | None] | Tensor | None = None,
    ) -> Tensor:
        """The loss of all outputs; see :func:`customloss.deep_supervision_loss`."""
        return deep_supervision_loss(
            self.loss, inputs, targets, weight, weights=self.weights, resize=self.resize
        )

    def extra_repr(self) -> str:
        changed = {"weights": self.weights, "resize": self.resize}
        return ", ".join(f"{key}={value!r}" for key, value in changed.items() if value is not None)
