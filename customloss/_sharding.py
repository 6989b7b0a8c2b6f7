"""Whether a call is about DTensors: asked by every operator, so it costs one look at three types.

What is then done about them is in ``_dtensor.py``, which is imported when the first one comes:
``torch.distributed.tensor`` takes a third of a second.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def sharded(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether one of the operands is a DTensor."""
    if type(input) is type(target) is Tensor and (weight is None or type(weight) is Tensor):
        return False
    # parameters, fake tensors and other subclasses come here too
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(each, kind) for each in (input, target, weight))


def whole(sums: Tensor, group: object) -> Tensor:
    """The sums of DTensors as a plain tensor, on every rank: any score can be made of that."""
    if type(sums) is Tensor or not sharded(sums, sums, None):
        return sums
    from customloss.distributed import Adder

    if group is not None and not isinstance(group, Adder):
        raise ValueError(
            "process_group: expected None for DTensors, whose mesh says which ranks share the "
            f"batch, got {group!r}"
        )
    plain: Tensor = sums.to_local()  # type: ignore[attr-defined]
    return plain


def gathered(numbers: Tensor) -> Tensor:
    """One number per class as a plain tensor, if it was a DTensor; replicated, nothing is sent."""
    if type(numbers) is Tensor or not sharded(numbers, numbers, None):
        return numbers
    plain: Tensor = numbers.full_tensor()  # type: ignore[attr-defined]
    return plain


def placed_like(sums: Tensor, loss: Tensor) -> Tensor:
    """What was made of ``whole(sums)``: a DTensor again if they were of DTensors."""
    if type(sums) is Tensor or not sharded(sums, sums, None):
        return loss
    from customloss import _dtensor

    return _dtensor.placed_like(sums, loss)


def ratio_loss(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """The operator ``name`` of DTensors."""
    from customloss import _dtensor

    return _dtensor.ratio_loss(name, input, target, weight, options)


def confusion_sums(
    input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """The operator ``confusion_sums`` of DTensors."""
    from customloss import _dtensor

    return _dtensor.confusion_sums(input, target, weight, options)


def register() -> None:
    """Has DTensors of inference mode, which have no autograd key, come here as well: at once where
    somebody has imported DTensors already, else with the first that ``ready`` sees."""
    if "torch.distributed.tensor" in sys.modules:
        from customloss import _dtensor as _dtensor


def ready(input: Tensor) -> None:
    """Before an operator is called: it may be the first time with DTensors."""
    if type(input) is Tensor or torch.compiler.is_compiling():
        return
    if sharded(input, input, None):
        from customloss import _dtensor as _dtensor
