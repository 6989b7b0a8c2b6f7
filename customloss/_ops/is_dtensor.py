"""Whether a call is about DTensors: asked by every operator, so it costs one look at three types.

What is then done about them is in ``dtensor.py``, which is imported when the first one comes:
``torch.distributed.tensor`` takes a third of a second.
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
    """Called before an operator, which may be the first time with DTensors.

    DTensors of inference mode have no autograd key, so they reach the rules of ``dtensor.py`` only
    where these are registered.
    """
    if type(input) is Tensor or torch.compiler.is_compiling():
        return
    if _is_dtensor(input):
        load_rules()


def whole(sums: Tensor) -> Tensor:
    """The sums of DTensors as a plain tensor, on every rank: any score can be made of that."""
    if not _is_dtensor(sums):
        return sums
    plain: Tensor = sums.to_local()  # type: ignore[attr-defined]
    return plain


def gathered(numbers: Tensor) -> Tensor:
    """One number per class as a plain tensor, if it was a DTensor; replicated, nothing is sent."""
    if not _is_dtensor(numbers):
        return numbers
    plain: Tensor = numbers.full_tensor()  # type: ignore[attr-defined]
    return plain


def placed_like(sums: Tensor, loss: Tensor) -> Tensor:
    """The loss that every rank has made of the same ``whole(sums)``, as a DTensor if they were."""
    if not _is_dtensor(sums):
        return loss
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sums.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(loss, mesh, [Replicate()] * mesh.ndim, run_check=False)
