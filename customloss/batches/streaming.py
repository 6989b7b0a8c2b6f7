"""An approximation for streams of small batches: the score of a moving average of the sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customloss import distributed
from customloss._spec import checks, hints
from customloss.losses.base import HoldsGroup, Loss

if TYPE_CHECKING:
    from typing_extensions import Self


class StreamingLoss(HoldsGroup, distributed.Adder):
    """APPROXIMATION: the loss of a moving average of the sums, with one forward per batch.

    For batches with too few positives where :class:`customloss.accumulate`, which is exact, costs
    too much. With decay d, the sums s of a batch and ``stop`` a stopped gradient::

        n <- n + 1      S <- d S + (1 - d) stop(s)      loss = score(S / (1 - d^n) + s - stop(s))

    The value is about the loss of the last 1 / (1 - d) batches. The gradient is that of one batch,
    taken at the average of the sums. Its direction is right as far as the model did not change
    during these batches. In ``eval`` mode the batch is scored by itself and S stays as it is.

    Every class has its own S and n, which stay as they are in a batch that says nothing of it:
    where nothing of the class counts, because it is ignored or of weight 0 there, and where its
    sums are not finite. So a class that is seen late, or seldom, weighs as much as one of every
    batch. With ``average="micro"`` the classes are one group, to which such a class adds nothing.
    A batch of NaN or infinite logits has a loss that is not finite either, so that a gradient
    scaler skips the step.

    With a compound whose ``pointwise_group`` is None, the average is about the score alone, and the
    pointwise loss is that of the batch.

    Args:
        loss: a loss module of this package without ``samplewise``. If it has a ``process_group``,
            a batch is that of all ranks.
        decay: d, 0 <= d < 1; with 0 the loss is exactly that of the batch alone, but for classes
            that it says nothing of.

    State:
        ``average`` S, float64 in the shape of the sums, and ``steps`` n of every class, once there
        was a batch; saved with the module.
        They move with ``.to(device)`` and stay float64 when the module is cast.

    Raises:
        TypeError: another kind of loss, or a decay that is no number.
        ValueError: a decay out of range, ``samplewise=True``, or another number of classes than in
            the batch before.
    """

    average: Tensor
    steps: Tensor

    def __init__(self, loss: Loss, decay: float = 0.9) -> None:
        super().__init__()
        if not isinstance(loss, Loss):
            raise TypeError(
                f"loss: expected a loss module of customloss, got {hints.instance_of(loss)}"
            )
        options = loss.options()
        if options.get("samplewise"):
            raise ValueError(
                "loss: expected samplewise=False, got True (samples have no sums in common to "
                "average over time)"
            )
        checks.number("decay", decay, at_least=0, below=1)
        self.decay = decay
        self._one_group = options.get("average") == "micro"
        self.process_group = options["process_group"]
        self.loss = loss.added_by(self)
        self.register_buffer("average", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def __copy__(self) -> Self:
        """A stream of its own from here on; its loss asks for the sums of this one no more."""
        twin = super().__copy__()
        twin.loss = self.loss.added_by(twin)
        return twin

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of the average, which includes this batch; operands are those of the loss."""
        result: Tensor = self.loss(input, target, weight)
        return result

    def total(self, sums: Tensor, options: object) -> Tensor:
        """Called by the loss with the sums of a batch; returns the average, which includes them."""
        sums = distributed.global_sums(sums, self.process_group, options=options)
        if not self.training:
            return sums
        detached = sums.detach()
        if self.average.numel() == 0:
            self.average = torch.zeros_like(detached)
        if self.average.shape != detached.shape:
            raise ValueError(
                "StreamingLoss: every batch needs the same number of classes, got sums of shape "
                f"{list(detached.shape)} after {list(self.average.shape)}"
            )
        counted = (detached[:4] != 0).any(0)  # whether anything is added up
        if self._one_group:  # however its classes are told apart
            counted = counted.any(-1, keepdim=True)
        seen = counted & detached.isfinite().all(0)
        following = torch.lerp(detached, self.average, self.decay)
        self.average = torch.where(seen, following, self.average)
        self.steps = self.steps + seen
        share = 1 - self.decay**self.steps
        never = self.steps == 0
        return self.average / share.masked_fill(never, 1) + (sums - detached)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StreamingLoss:
        """Moves the state, and does not cast it: the average needs its digits, whatever the dtype
        of the model that holds this loss."""
        state = {"average": self.average, "steps": self.steps}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in state.items():
            moved = getattr(self, name)
            if moved.dtype != exact.dtype:
                setattr(self, name, exact.to(moved.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for name in ("average", "steps"):
            saved = state_dict.get(prefix + name)
            if saved is not None:  # before the first batch there are no classes yet
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def extra_repr(self) -> str:
        return f"decay={self.decay}"
