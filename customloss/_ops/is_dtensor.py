"""Whether a call has DTensors. Every operator asks, so the answer costs one look at three types.

``dtensor.py`` computes with them. It is imported when the first one comes, because importing
``torch.distributed.tensor`` takes half a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor


def _no_rules() -> object:
    raise RuntimeError("customloss: the operators are not registered")


# imports dtensor.py; set by register.py, since this file stands beneath both
load_rules: Callable[[], object] = _no_rules


def sharded(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether one of the operands is a DTensor."""
    if type(input) is type(target) is Tensor and (weight is None or type(weight) is Tensor):
        return False
    # parameters, fake tensors and other subclasses come here too
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(each, kind) for each in (input, target, weight))


def _is_dtensor(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor and sharded(tensor, tensor, None)


def ready(input: Tensor) -> None:
    """Called before an operator: imports ``dtensor.py`` if this is the first DTensor.

    DTensors of inference mode have no autograd key, so they reach the rules of ``dtensor.py`` only
    if these are registered before the operator is called.
    """
    if type(input) is Tensor or torch.compiler.is_compiling():
        return
    if _is_dtensor(input):
        load_rules()


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, as a plain one."""
    if not _is_dtensor(tensor):
        return tensor
    plain: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return plain


def gathered(numbers: Tensor) -> Tensor:
    """One number per class as a plain tensor; nothing is sent for a replicated DTensor."""
    if not _is_dtensor(numbers):
        return numbers
    plain: Tensor = numbers.full_tensor()  # type: ignore[attr-defined]
    return plain


def placed_like(sums: Tensor, loss: Tensor) -> Tensor:
    """The loss, which every rank has made of all ``sums``: a DTensor if they are one."""
    if not _is_dtensor(sums):
        return loss
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sums.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(loss, mesh, [Replicate()] * mesh.ndim, run_check=False)
