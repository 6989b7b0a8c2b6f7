"""What the tests on a GPU share: the device, the backends, and moving operands there and back.

The judge is that of every other test, the reference in float64 on the CPU. Operands are made on the
CPU and copied to the device in the same memory layout; the results are copied back.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import triton_package
from torch import Tensor

import customloss
from customloss._backends import libraries

DEVICE = "cuda"
COMMUNICATION = "nccl"
BACKENDS = ("cuda", "triton")
MARKS = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no CUDA GPU"),
]


@contextmanager
def backend(name: str) -> Iterator[None]:
    """The compiled kernels or the Triton ones; skips the test where there are none, and says why.

    Without compiled kernels "auto" takes Triton's. They are then not forced, so that they are
    tested behind the dispatcher too.
    """
    compiled = libraries.loaded("_C_cuda")
    if name == "cuda" and not compiled:
        pytest.skip(f"no compiled CUDA kernels: {libraries.status.get('_C_cuda')}")
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        triton_package.load()
    with customloss.backend("triton" if name == "triton" and compiled else "auto"):
        yield


def insists() -> bool:
    """Whether the backend under test is forced, because "auto" would take another."""
    return customloss.current_backend() != "auto"


class _Moved(torch.autograd.Function):
    """Copies the memory to the device: strides, offset and what lies between the elements."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory = tensor.as_strided((size,), (1,), 0).to(DEVICE, copy=True)
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.cpu()


def moved(tensor: Tensor | None) -> Tensor | None:
    """An operand on the device, with its strides; its gradient is copied back."""
    return None if tensor is None else _Moved.apply(tensor)


def on_device(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``op`` of CPU tensors, computed on the device."""

    def there(*operands: Tensor | None, **options: Any) -> Tensor:
        return op(*map(moved, operands), **options).cpu()

    return there


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether all bits are equal: a NaN equals itself, and 0 differs from -0."""
    pair = (each.detach().cpu().contiguous().flatten().view(torch.uint8) for each in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*pair)


# ---- ranks -----------------------------------------------------------------------------------


@contextmanager
def process_group(rank: int, world: int, store: str) -> Iterator[None]:
    """Makes this process a rank with a GPU of its own."""
    torch.cuda.set_device(rank)
    dist.init_process_group(
        COMMUNICATION,
        init_method=store,
        rank=rank,
        world_size=world,
        device_id=torch.device(DEVICE, rank),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_ranks(world: int, check: Callable[[], None]) -> None:
    """Runs a check on every rank; it has to be at top level of its file."""
    name = Path(check.__code__.co_filename).stem
    with tempfile.TemporaryDirectory() as folder:
        given = (world, f"file://{folder}/store", name, check.__name__)
        torch.multiprocessing.spawn(_rank, given, nprocs=world)


def _rank(rank: int, world: int, store: str, module: str, check: str) -> None:
    with process_group(rank, world, store):
        getattr(importlib.import_module(module), check)()
