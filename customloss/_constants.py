"""Small tensors made of options, kept for the next call: a copy to a device waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from customloss import _autograd


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``found(like, *key)`` is ``make(device, *key)`` on the device of ``like``: called once for
    each set of arguments, on the CPU, and copied.

    Where a tensor made now would not be an ordinary one (while compiling, under transforms and
    modes, in a CUDA graph that is being captured) it is made on the device and not kept. So
    ``make`` only fills: it copies nothing from the CPU.
    """

    @lru_cache(maxsize=256)
    def once(device: torch.device, *key: Any) -> Tensor:
        with torch.inference_mode(False):
            return make(torch.device("cpu"), *key).to(device)

    @wraps(make)
    def found(like: Tensor, *key: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(like.device, *key)
        # a fake tensor brings its mode along
        with getattr(like, "fake_mode", None) or nullcontext():
            return once(like.device, *key) if _ordinary(like.device) else make(like.device, *key)

    found.forget = once.cache_clear  # type: ignore[attr-defined]
    return found


def _ordinary(device: torch.device) -> bool:
    if torch._C._len_torch_dispatch_stack() or _autograd.transformed():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


@kept
def numbers(device: torch.device, values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """``values`` as a tensor."""
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
