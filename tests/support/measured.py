"""What a step allocates on the CPU, and what it keeps for its backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def allocated(function: object) -> list[int]:
    """The sizes of all blocks that torch's CPU allocator hands out while ``function`` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = function()  # noqa: F841  # held, so that its memory does not count as freed
    return [
        event.cpu_memory_usage
        for event in profiled.events()
        if event.name == "[memory]" and event.cpu_memory_usage > 0
    ] or [
        event.self_cpu_memory_usage
        for event in profiled.events()
        if event.self_cpu_memory_usage > 0
    ]


def kept_for_backward(function: object) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return saved
