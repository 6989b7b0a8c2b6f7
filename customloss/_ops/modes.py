"""What PyTorch is about to do with a call: transform it, or differentiate it."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    is_functorch_wrapped_tensor,
)
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether the call has to consist of torch operations: inside ``torch.func`` transforms and
    forward-mode AD, and for a program that becomes ONNX, which has no operators of ours."""
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and _becomes_onnx()


def _becomes_onnx() -> bool:
    """Whether ``torch.onnx.export`` is running; importing ``torch.onnx`` takes a while."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


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


def is_constant(tensor: Tensor) -> bool:
    """Whether nothing can be differentiated by this tensor, by autograd or in a transform."""
    if tensor.requires_grad:
        return False
    if torch.compiler.is_compiling():
        return True
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        return False
    return not is_functorch_wrapped_tensor(tensor)


def ordinary_tensors(device: torch.device) -> bool:
    """Whether operations on this device give tensors with values, here and now: not under
    transforms and modes, nor in a CUDA graph that is being captured."""
    if torch._C._len_torch_dispatch_stack() or transformed():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def holds_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be read, which waits for its device."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if tensor.device.type == "meta" or getattr(tensor, "fake_mode", None) is not None:
        return False
    return ordinary_tensors(tensor.device)
