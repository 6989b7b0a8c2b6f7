"""What PyTorch is about to do with a call: transform it, or differentiate it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad


def transformed() -> bool:
    """Inside ``torch.func`` transforms or forward-mode AD."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_grad(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether autograd has to record this call."""
    return torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    )
