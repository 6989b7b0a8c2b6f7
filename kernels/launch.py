"""What every launch needs of its tensors: their device, and their shapes and strides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .layout import Strided

# Triton compiles a kernel of its own for an argument that is 1, and one for a multiple of 16.  For
# 1 of these it has no loop or no division.  Multiples of 16 are nothing special: they do not affect
# the width of the loads that count.  (Arguments that need neither are listed as COUNTS.)
ALIGNMENT_IRRELEVANT = ["groups", "per_chunk", "column_tiles", "class_tiles"]


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of ``tensor`` current, because Triton launches on the current device."""
    device = tensor.device
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def strided(tensor: Tensor | None) -> Strided:
    """Shape and strides, from which a layout is made."""
    return None if tensor is None else (tensor.shape, tensor.stride())
