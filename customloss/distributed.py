"""The loss of the global batch, however it was cut: one collective adds up the sums of all ranks.

An F-measure of a batch is not the mean of the F-measures of its shards, but its confusion sums are
the sums of theirs. So the ranks add up a few numbers, and every rank scores the total: all of them
hold the loss that one process would have of the whole batch. See docs/distributed.md.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:  # a torch without distributed has no ProcessGroup
    from torch.distributed import ProcessGroup


def _switch(variable: str) -> bool:
    """An environment variable that is 1, or else 0 or absent."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}: expected 0 or 1, got {value!r}")
    return value == "1"


# Whether the ranks compare shapes and options before every reduction. Read once, when the package
# is imported, so that it is a constant for compiled code.
DEBUG = _switch("CUSTOMLOSS_DEBUG")


class Adder(ABC):
    """Adds up sums in place of a process group: over time instead of over ranks."""

    # that of the loss which it serves: the ranks whose sums it adds as well
    process_group: ProcessGroup | str | None = None

    @abstractmethod
    def total(self, sums: Tensor, options: object) -> Tensor:
        """The sums to score instead of ``sums``."""

    def of_part(self, sums: Tensor) -> Tensor:
        """The sums of a part for a loss of that part alone, as with ``pointwise_group=None``."""
        return sums


# ---- which group an argument means ---------------------------------------------------------------

# what ``process_group`` takes beside a ProcessGroup and None
WORDS = ("world", "local")
# Whether warn_of_parts() is still to come.
_to_warn = dist.is_available()


def check_group(group: object) -> None:
    """Raises for what is never a ``process_group``, whatever torch.distributed will be.

    Raises:
        TypeError: neither a ProcessGroup nor a string nor None.
        ValueError: another string than ``"world"`` and ``"local"``.
    """
    if group is None or group in WORDS or is_group(group):
        return
    if dist.is_available() and group == dist.GroupMember.NON_GROUP_MEMBER:
        return
    expected = "process_group: expected a ProcessGroup, 'world', 'local' or None, got "
    if isinstance(group, str):
        raise ValueError(f"{expected}{group!r}")
    raise TypeError(
        f"{expected}{type(group).__name__}; that of a one-dimensional DeviceMesh is "
        "mesh.get_group()"
    )


def is_group(value: object) -> bool:
    """Whether it is a ProcessGroup of torch."""
    return dist.is_available() and isinstance(value, dist.ProcessGroup)


def resolved(group: Any) -> ProcessGroup | None:
    """The ProcessGroup that ``group`` means now; None means that nothing is added.

    Raises:
        TypeError: no ``process_group``.
        ValueError: ``"world"`` before ``init_process_group``, another word, or a group that this
            rank is not in.
    """
    if group is None or group == "local":
        return None
    check_group(group)
    if group == "world":
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "process_group: 'world' is the default group of torch.distributed, and there is "
                "none yet: call torch.distributed.init_process_group before the first batch, or "
                "pass None where there is a single process"
            )
        group = dist.group.WORLD
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"process_group: rank {dist.get_rank()} is not in the group. new_group returns one on "
            "every rank, but only members may call the loss: pass the group this rank belongs to, "
            "or None for the loss of its own batch alone"
        )
    found: ProcessGroup = group
    return found


def group_size(group: ProcessGroup | str | None) -> int:
    """The number of ranks that share a batch, 1 or more.

    Raises:
        TypeError, ValueError: as :func:`resolved`.
    """
    members = resolved(group)
    return 1 if members is None else dist.get_world_size(members)


def warning_due() -> bool:
    """Whether there are several ranks and :func:`warn_of_parts` was not called yet.

    Every loss with ``process_group=None`` asks, so the answer has to cost next to nothing.
    """
    if torch.compiler.is_compiling() or not _to_warn or dist.GroupMember.WORLD is None:
        return False
    return dist.get_world_size() > 1


def warn_of_parts(warn: Callable[[str], None] | None = None) -> None:
    """Warns that a loss without a group scores a part of a batch; once in a process. ``warn`` is
    called with the text; by default the warning shows the line of the caller."""
    global _to_warn
    _to_warn = False
    text = (
        f"process_group is None, and torch.distributed has {dist.get_world_size()} ranks: each "
        "of them scores its own part of the batch, and the mean of these losses is not the loss of "
        "the batch. process_group='world' gives the loss of the whole batch. If parts are what you "
        "mean, process_group='local' says so and silences this warning, which comes once"
    )
    if warn is None:
        warnings.warn(text, stacklevel=2)
    else:
        warn(text)


# ---- the sums of all ranks -----------------------------------------------------------------------


def global_sums(
    sums: Tensor, group: ProcessGroup | Adder | str | None, *, options: object = None
) -> Tensor:
    """``Σ over the ranks of group``, differentiable, in one all-reduce of ``sums.numel()`` float64.

    The gradient of ``sums`` is the upstream gradient times the number of ranks, without a second
    collective. It is what DistributedDataParallel and FSDP2 need: they average gradients over the
    ranks, and the mean of n-fold shares is the gradient of the global loss. The condition is that
    every rank makes the same loss of the result (the same score, factors and terms), so that all
    upstream gradients are equal. If gradients are added up instead of averaged, divide the loss by
    the number of ranks.

    Every rank of the group has to call this equally often: a rank that skips a step leaves the
    others waiting. A rank without data passes an empty batch, whose sums are 0.

    Args:
        sums: of this rank; any shape that is the same on all ranks, any floating dtype.
        group: the ranks that share the batch. ``"world"`` is the default group of torch.distributed
            at the time of the call. None and ``"local"`` add nothing: ``sums`` are returned. Mind
            that ``torch.distributed.group.WORLD`` is None until ``init_process_group`` was called.
        options: with CUSTOMLOSS_DEBUG=1, what the ranks have to agree on beside shape and dtype;
            its ``repr`` is compared, that of a dict entry by entry.

    Returns:
        The totals, in the shape and dtype of ``sums``; the same bits on every rank.

    Raises:
        TypeError: ``group`` is no ProcessGroup.
        ValueError: this rank is not in the group, there is no default group yet, or (debug) ranks
            disagree.
        RuntimeError: a second derivative; upstream gradients would differ between ranks.
    """
    if isinstance(group, Adder):
        return group.total(sums, options)
    ranks = resolved(group)
    if ranks is None:
        return sums
    size = dist.get_world_size(ranks)
    if DEBUG and not torch.compiler.is_compiling():
        _agree(sums, ranks, options)
    if size == 1:
        return sums
    total: Tensor = _GlobalSums.apply(sums, ranks, size)
    return total


class _GlobalSums(torch.autograd.Function):
    """The all-reduce, in float64; its backward needs only the number of ranks."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, group: ProcessGroup, size: int) -> Tensor:
        ctx.size = size
        total = sums.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.to(sums.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.size, None, None


def _agree(sums: Tensor, group: ProcessGroup, options: object) -> None:
    """Checks that all ranks are about to add the same kind of sums, and waits for all of them."""
    named = options if isinstance(options, Mapping) else {"options": options}
    mine = {"sums": list(sums.shape), "dtype": sums.dtype, **named}
    shown = {name: repr(value) for name, value in mine.items()}
    everybody: list[dict[str, str]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(everybody, shown, group=group)
    ranks = dist.get_process_group_ranks(group)
    unlike = [rank for rank, theirs in zip(ranks, everybody) if theirs != everybody[0]]
    if unlike:
        names = {name: None for theirs in everybody for name in theirs}  # in their order
        differing = [name for name in names if len({each.get(name) for each in everybody}) > 1]
        listing = "\n".join(
            f"  rank {rank}: {_listed(theirs, differing)}" for rank, theirs in zip(ranks, everybody)
        )
        raise ValueError(
            f"process_group: ranks {unlike} disagree with rank {ranks[0]} on what is summed; all "
            f"need the same number of classes, dtype and options:\n{listing}"
        )


def _listed(shown: Mapping[str, str], names: Sequence[str]) -> str:
    """Options by name; of thousands of weights it is enough to know that they are unlike."""
    values = {name: shown[name] for name in names if name in shown}
    short = {n: value if len(value) <= 200 else f"{value[:200]}…" for n, value in values.items()}
    return ", ".join(f"{name}={value}" for name, value in short.items())
