"""What every launch asks of its tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .layout import Strided


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    device = tensor.device
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def strided(tensor: Tensor | None) -> Strided:
    """What a layout is made of."""
    return None if tensor is None else (tensor.shape, tensor.stride())
