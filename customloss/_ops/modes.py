"""What PyTorch is about to do with a call: transform it, or differentiate it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def transformed() -> bool:
    """Inside ``torch.func`` transforms or forward-mode AD."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiates() -> bool:
    """Inside a transform that differentiates, so not under ``vmap`` alone."""
    if forward_ad._current_level >= 0:
        return True
    levels = get_interpreter_stack() if _are_functorch_transforms_active() else None
    return any(level.key() != TransformType.Vmap for level in levels or ())


def wants_grad(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether autograd has to record this call."""
    return torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    )
