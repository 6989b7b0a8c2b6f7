"""The loss of a big batch from micro-batches: gradient accumulation without approximation.

An F-measure of a batch is not the mean of the F-measures of its micro-batches: their confusion sums
have to be added before the score is taken. So every micro-batch is forwarded twice, first without a
graph to add up the sums, then with one. See docs/distributed.md for costs and limits.
"""

from __future__ import annotations

import warnings
from types import TracebackType

import torch
from torch import Tensor
from torch.func import functional_call

from customloss import distributed
from customloss._ops.modes import transformed
from customloss._spec import hints
from customloss.losses.base import Loss

# Whether the warning of unlike passes came already, and whether a device was waited for to see
# whether it is due.
_warned = _waited = False


def _compares(sums: Tensor) -> bool:
    """Whether the sums of the two passes are compared at the end of the block.

    On the CPU until the warning came. Elsewhere only in the first block of a process, because
    reading the result waits for the device.
    """
    global _waited
    if distributed.DEBUG:
        return True
    if torch.compiler.is_compiling() or _warned or transformed():
        return False
    if sums.is_cpu:
        return True
    capturing = sums.is_cuda and torch.cuda.is_current_stream_capturing()
    first = not _waited and not capturing
    _waited = _waited or first
    return first


def _share(value: Tensor, count: int) -> Tensor:
    """``value``, whose gradient is one of ``count`` equal parts."""
    constant = value.detach()
    return constant + (value - constant) / count


class accumulate(distributed.Adder):
    """Gradients of micro-batches that add up to those of the whole batch, for one optimizer step.

    Two passes over the micro-batches: :meth:`add` all of them, then call :meth:`loss` for each and
    differentiate it. With S the sums of the whole batch, s(x) those of a micro-batch and ``stop`` a
    stopped gradient::

        loss(x) = score(S + s(x) - stop(s(x)))

    whose value is the loss of the whole batch, whatever the micro-batch, and whose gradient is the
    micro-batch's share of the gradient of that loss. Nothing is divided by the number of
    micro-batches.

    If the loss has a ``process_group``, the batch is that of all ranks, and the first call of
    :meth:`loss` makes one all-reduce. Every rank needs a micro-batch, even if it is empty.

    With a compound whose ``pointwise_group`` is None, the score is that of the batch, and the
    pointwise loss that of each micro-batch. The gradients add up to those of the score and of the
    mean of the pointwise losses, which is what ranks have under data parallelism.

    Both forwards have to give the same logits: dropout and batch norm in training mode break that
    (batch norm would also count every batch twice). Where the sums of the two passes differ, the
    end of the ``with`` block warns, once in a process. On a GPU only the first block is looked at,
    since that waits for the device. With CUSTOMLOSS_DEBUG=1 every block is, and raises. A second
    derivative is that of the micro-batch alone.

    Args:
        loss: a loss module of this package, :class:`customloss.ConfusionLoss` for a score of your
            own, with any options except ``samplewise=True`` together with ``reduction="none"``.
            It is not changed.

    Raises:
        TypeError: another kind of loss.
        ValueError: micro-batches with unlike numbers of classes, or (debug) forwards that differ.
        RuntimeError: steps out of order, or a ``with`` block left before every micro-batch that was
            added had its loss.

    Example::

        with customloss.accumulate(criterion) as batch:
            for x, target in micro_batches:
                with torch.no_grad():
                    batch.add(model(x), target)
            for x, target in micro_batches:
                batch.loss(model(x), target).backward()
        optimizer.step()
    """

    def __init__(self, loss: Loss) -> None:
        if not isinstance(loss, Loss):
            raise TypeError(
                "loss: expected a loss module of customloss, such as SoftF1Loss(), got "
                f"{hints.instance_of(loss)}"
            )
        self.process_group = loss.options()["process_group"]
        self._size = distributed.group_size(self.process_group)
        self._loss = loss.added_by(self)
        self._added = self._scored = 0
        self._adding = True
        self._whole: Tensor | None = None
        self._missing: Tensor | None = None  # the sums not yet met again in the second pass

    def add(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """First pass: adds the sums of a micro-batch, without a graph."""
        if not self._adding:
            raise RuntimeError(
                f"accumulate: add() after loss(), which {self._scored} of {self._added} "
                "micro-batches had: add all of them first, and take a new accumulate for each step"
            )
        with torch.no_grad():
            self._loss(input, target, weight)
        self._added += 1

    def loss(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Second pass: the loss of the whole batch, differentiable by this micro-batch."""
        if self._scored == self._added:
            raise RuntimeError(
                f"accumulate: loss() number {self._scored + 1} after {self._added} add(): every "
                "micro-batch is added once, without a graph, and then has its loss once"
            )
        self._adding = False
        learned, operands = self._learned(), (input, target, weight)
        loss: Tensor = (
            functional_call(self._loss, learned, operands) if learned else self._loss(*operands)
        )
        self._scored += 1
        return loss

    def total(self, sums: Tensor, options: object) -> Tensor:
        """Called by the loss with the sums of a micro-batch; returns the sums that it scores."""
        whole = sums.new_zeros(sums.shape) if self._whole is None else self._whole
        if whole.shape != sums.shape:
            raise ValueError(
                "accumulate: every micro-batch needs the same number of classes, got sums of shape "
                f"{list(sums.shape)} after {list(whole.shape)}"
            )
        detached = sums.detach()
        if self._adding:
            self._whole = whole + detached
            return detached
        if self._scored == 0:
            self._missing = whole if _compares(whole) else None
            self._whole = whole = distributed.global_sums(
                whole, self.process_group, options=options
            )
        if self._missing is not None:
            self._missing = self._missing - detached
        # The value is that of the whole batch, to the bit. Data parallelism averages gradients over
        # the ranks, so this rank's share is multiplied by their number.
        return whole + self._size * (sums - detached)

    def of_part(self, sums: Tensor) -> Tensor:
        """Called with the sums of a micro-batch whose pointwise loss is its own; the batch has the
        mean of these losses."""
        return sums if self._adding else _share(sums, self._added)

    def _learned(self) -> dict[str, Tensor]:
        """What the loss itself learns, as a class weight that is a parameter. Every micro-batch has
        the whole gradient by it, so it takes its share."""
        tensors = (*self._loss.named_parameters(), *self._loss.named_buffers())
        return {name: _share(each, self._added) for name, each in tensors if each.requires_grad}

    def __enter__(self) -> accumulate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        if self._scored != self._added:
            raise RuntimeError(
                f"accumulate: of {self._added} micro-batches only {self._scored} had their loss; "
                "without the others the gradients are not those of the batch"
            )
        if self._missing is not None and self._whole is not None:
            self._compare(self._missing, self._whole)

    def _compare(self, missing: Tensor, whole: Tensor) -> None:
        """The sums of the second pass were those of the first. A batch that is not finite tells
        nothing: a gradient scaler skips its step."""
        global _warned
        if not bool((missing.abs() > 1e-4 * whole.abs().max()).any()):
            return
        found = (
            "accumulate: the second forward of the micro-batches gave other logits than the first, "
            "so the gradients are not those of the batch. Look for dropout or batch norm in "
            "training mode, or other data: switch them off, or seed dropout alike in both passes"
        )
        if distributed.DEBUG:
            raise ValueError(found)
        _warned = True
        warnings.warn(f"{found}. This warning comes once", stacklevel=3)
