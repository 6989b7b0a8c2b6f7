"""One loss of several outputs, each at a resolution of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from customloss._spec import checks, hints
from customloss.batches.streaming import StreamingLoss
from customloss.losses import first_batch
from customloss.losses.base import Loss
from customloss.losses.keywords import known_only
from customloss.losses.named_sums import ConfusionSums, ExtendedSums

_RESIZE = ("nearest", "nearest-exact")


@known_only
def deep_supervision_loss(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor] | Tensor,
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
        inputs: the outputs; or a tensor, the one output of a model that is not deeply supervised,
            as in evaluation. Its loss is the result, whatever the ``weights``.
        targets: one for each output, in a sequence or stacked in front, ``[outputs, N, ...]``; with
            ``resize`` a tensor is one target for all outputs.
        weight: element weights or None for each output, or None; with ``resize`` also one for all.
        weights: of the outputs, >= 0 and not all 0, taken as they are. By default 1, 1/2, 1/4, ...,
            divided by their sum. An output of weight 0 is not scored; it gets a gradient of zeros,
            so that DistributedDataParallel finds no parameter unused.
        resize: ``"nearest"`` or ``"nearest-exact"`` gives target and weight the spatial size of
            each output, by the rule of ``F.interpolate`` in that mode, for every dtype and so for
            class numbers too. An output whose size divides that of the target gets a strided view,
            and nothing is copied. ``"nearest"`` takes the first of the elements that an output's
            element covers, ``"nearest-exact"`` the middle one, as MONAI's loss does.

    A loss module checks the values of every output of its first batch. What the shape of a coarser
    target looks like, or that nothing is left of it, is no reason to warn.

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
    outputs = _outputs(inputs, targets, weight, weights, resize)
    return reduce(add, _parts(outputs, [loss] * len(outputs)))


class _Output(NamedTuple):
    """What the loss of one output is called with, and what it counts."""

    operands: tuple[Tensor | None, ...]
    share: float
    coarse: bool  # its target is resized, or that of a further output
    name: str  # what is added to an error


def _outputs(
    inputs: Sequence[Tensor] | Tensor,
    targets: Sequence[Tensor] | Tensor,
    weight: Sequence[Tensor | None] | Tensor | None,
    weights: Sequence[float] | None,
    resize: str | None,
) -> list[_Output]:
    """The outputs of a batch, checked."""
    single = isinstance(inputs, Tensor)
    if isinstance(inputs, Tensor):
        inputs, weights = [inputs], [1.0]
        targets = [targets] if isinstance(targets, Tensor) else targets
        weight = [weight] if isinstance(weight, Tensor) else weight
    _sequence("inputs", inputs)
    _check_resize(resize)
    given: Sequence[Tensor] | Tensor = targets
    if resize is not None:
        targets = _resized("targets", targets, inputs, resize)
        weight = None if weight is None else _resized("weight", weight, inputs, resize)
    elif isinstance(targets, Tensor):
        targets = _unstacked(targets, inputs)
    _sequence("targets", targets, len(inputs))
    if weight is not None:
        _sequence("weight", weight, len(inputs), none=True)
    outputs = []
    for i, share in enumerate(_shares(weights, len(inputs))):
        more = () if weight is None else (weight[i],)
        own = given if isinstance(given, Tensor) else given[i]
        coarse = i > 0 or (resize is not None and targets[i] is not own)
        name = "" if single else f" (output {i})"
        outputs.append(_Output((inputs[i], targets[i], *more), share, coarse, name))
    return outputs


def _parts(outputs: Sequence[_Output], losses: Sequence[Callable[..., Tensor]]) -> list[Tensor]:
    """The terms of the loss: of each output that counts what its function gives."""
    if torch.compiler.is_compiling():
        parts = [loss(*each.operands) if each.share else None
                 for loss, each in zip(losses, outputs)]  # fmt: skip
    else:
        parts = []
        with first_batch.outputs() as batch:
            for loss, each in zip(losses, outputs):
                batch.coarse = each.coarse
                parts.append(_named(loss, each) if each.share else None)
    return [_term(part, each) for part, each in zip(parts, outputs)]


def _named(loss: Callable[..., Tensor], output: _Output) -> Tensor:
    """The loss of an output; an error says which one."""
    try:
        return loss(*output.operands)
    except (TypeError, ValueError) as error:
        if not output.name:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error}{output.name}") from error


def _term(part: Tensor | None, output: _Output) -> Tensor:
    """The share of an output. One that does not count gets a gradient of zeros; no element of it is
    read, so no NaN gets through."""
    if part is None:
        input = output.operands[0]
        assert input is not None
        return input.narrow(0, 0, 0).sum()
    return part if output.share == 1 else output.share * part


def _unstacked(targets: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The targets of a tensor that has one for each output in front."""
    shape, first = list(targets.shape), list(inputs[0].shape)
    fits_one = shape in (first, first[:1] + first[2:], [*first[:1], 1, *first[2:]])
    if fits_one or shape[:1] != [len(inputs)]:
        cure = "resize='nearest' takes one for all outputs"
        if shape[:1] == [len(inputs)]:
            cure += ", and targets.unbind(0) is one for each"
        raise TypeError(
            f"targets: expected a sequence of tensors, or one stacked of {len(inputs)}, got Tensor "
            f"{shape}; {cure}"
        )
    return targets.unbind(0)


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
        checks.one_of("resize", resize, _RESIZE)


def _resized(
    name: str, values: Tensor | Sequence[Tensor | None], inputs: Sequence[Tensor], resize: str
) -> list[Any]:
    """One tensor for each output, of the spatial size of that output."""
    if isinstance(values, Tensor):
        values = [values] * len(inputs)
    _sequence(name, values, len(inputs), none=name == "weight")
    return [
        None if value is None else nearest(name, value, input, resize == "nearest-exact")
        for value, input in zip(values, inputs)
    ]


def nearest(name: str, value: Tensor, input: Tensor, exact: bool) -> Tensor:
    """``value`` at the places of ``input``: number i of n is number ``floor(i m / n)`` of m, or if
    ``exact``, ``floor((i + 1/2) m / n)``."""
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
            step = size // wanted
            index = [slice(None)] * value.dim()
            index[dim] = slice(step // 2 if exact else 0, None, step)
            value = value[tuple(index)]
        else:
            places = (2 * torch.arange(wanted, device=value.device) + exact) * size
            value = value.index_select(dim, places.div(max(2 * wanted, 1), rounding_mode="floor"))
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
        resize: ``"nearest"`` or ``"nearest-exact"`` for one target at full resolution; by default
            there is one for each output.

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
        inputs: Sequence[Tensor] | Tensor,
        targets: Sequence[Tensor] | Tensor,
        weight: Sequence[Tensor | None] | Tensor | None = None,
    ) -> Tensor:
        """The loss of all outputs; see :func:`customloss.deep_supervision_loss`."""
        return deep_supervision_loss(
            self.loss, inputs, targets, weight, weights=self.weights, resize=self.resize
        )

    def with_sums(
        self,
        inputs: Sequence[Tensor] | Tensor,
        targets: Sequence[Tensor] | Tensor,
        weight: Sequence[Tensor | None] | Tensor | None = None,
        *,
        hard: bool = False,
    ) -> tuple[Tensor, ConfusionSums | ExtendedSums]:
        """The loss of all outputs, and the sums of the first one, which has the full size, of the
        same pass.

        Args:
            inputs, targets, weight: those of a call.
            hard: also count decisions; see :meth:`customloss.Loss.with_sums`.

        Raises:
            TypeError: ``loss`` is no module of this package, or as there.
        """
        if not isinstance(self.loss, Loss):
            kind = getattr(self.loss, "__name__", type(self.loss).__name__)
            raise TypeError(
                f"with_sums: expected a loss module of this package, which has sums, got {kind}"
            )
        taken = []

        def first(*operands: Any) -> Tensor:
            loss, sums = self.loss.with_sums(*operands, hard=hard)
            taken.append(sums)
            result: Tensor = loss
            return result

        outputs = _outputs(inputs, targets, weight, self.weights, self.resize)
        parts = _parts(outputs, [first, *[self.loss] * (len(outputs) - 1)])
        if not taken:  # the first output has a weight of 0
            with torch.no_grad():
                _named(first, outputs[0])
        return reduce(add, parts), taken[0]

    def extra_repr(self) -> str:
        changed = {"weights": self.weights, "resize": self.resize}
        return ", ".join(f"{key}={value!r}" for key, value in changed.items() if value is not None)
