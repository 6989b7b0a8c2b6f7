"""Memory of a gradient that Python keeps for the next one, as customloss's kernels do in C++."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, UntypedStorage


class Kept:
    """One block, which is lent again only after everything that was lent of it has been freed."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._memory: UntypedStorage | None = None  # as Python sees it
        self._owners = 0

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised tensor like this one, in the block if it fits and nobody has it."""
        if self._block is None or not _fits(self._block, tensor) or self._lent():
            self._block = torch.empty_like(tensor, requires_grad=False)
            self._memory = self._block.untyped_storage()
            self._owners = _owners(self._memory)
        return self._block.detach()

    def _lent(self) -> bool:
        return self._memory is not None and _owners(self._memory) > self._owners

    def empty(self) -> None:
        """Gives the block back, or leaves it to those who have it."""
        self._block = self._memory = None


def _fits(block: Tensor, tensor: Tensor) -> bool:
    return (
        block.shape == tensor.shape
        and block.dtype == tensor.dtype
        and block.device == tensor.device
        and block.stride() == torch.empty_like(tensor, device="meta").stride()
    )


def _owners(memory: UntypedStorage) -> int:
    """How many have the memory: tensors and views, in Python or in a graph, and those who have it
    as a storage, which is one object for all of them.

    A weak reference would not do. It dies with the object of Python, which a graph does not need.
    """
    tensors: int = torch._C._storage_Use_Count(memory._cdata)
    return tensors + sys.getrefcount(memory)


GRADIENT = Kept()  # of all forms, because one gradient lives at a time
