"""The compiled primitives refuse what they would read wrongly, also where no check of ours ran.

Programs that were exported call them without the Python in front.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from customloss._backends import choice, libraries, plain
from customloss._spec.arguments import Elements

pytestmark = pytest.mark.skipif(not libraries.loaded("_C"), reason="needs the compiled library")

ops = torch.ops.customloss
ELEMENTS = Elements(2, 1.0, 0.0, False, True)
SCORING = (2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
POINTWISE = (1.0, *(0.0,) * 7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_class_numbers_of_another_dtype(dtype: torch.dtype) -> None:
    """They would be read as int64, which is past the end for the narrow ones."""
    x, labels = torch.zeros(1, 2, 64), torch.ones(1, 1, 64, dtype=torch.int64).to(dtype)
    sums = torch.ones(4, 1, 2, dtype=torch.float64)
    calls: tuple[Any, ...] = (
        lambda: ops.confusion(x, labels, None, *ELEMENTS),
        lambda: ops.confusion_score(x, labels, None, *ELEMENTS, *SCORING),
        lambda: ops.confusion_backward(None, sums, x, labels, None, 0, *ELEMENTS),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="customloss: class numbers are uint8, int8"):
            call()


@pytest.mark.parametrize("number", [-1, 4, 99, 2**32])
@pytest.mark.parametrize("place", range(7, 11), ids=["link", "absent", "average", "reduction"])
def test_numbers_of_no_word(place: int, number: int) -> None:
    """A number that stands for no word would be taken for the last one, or the first."""
    scoring = (*SCORING[:place], number, *SCORING[place + 1 :])
    x, t = torch.zeros(4, 3), torch.ones(4, 3)
    sums = torch.ones(4, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion_score(x, t, None, *ELEMENTS, *scoring)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.sums_score(sums, None, 0, False, False, *scoring, *POINTWISE)


@pytest.mark.parametrize("number", [-1, 3, 2**32])
def test_numbers_of_no_activation_operand_or_sum(number: int) -> None:
    x, t = torch.zeros(4, 3), torch.ones(4, 3)
    sums = torch.ones(4, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion(x, t, None, number, *ELEMENTS[1:])
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion_backward(None, sums, x, t, None, number, *ELEMENTS)
    extra = 64 if number == 3 else number
    with pytest.raises(RuntimeError, match=r"customloss: unknown (option|sums)"):
        ops.confusion(x, t, None, *ELEMENTS[:7], extra, *ELEMENTS[8:])


# ---- devices -------------------------------------------------------------------------------------


def elsewhere(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device="meta")


def on_other_devices() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Calls of primitives with one tensor elsewhere."""
    x, t = torch.zeros(4, 3), torch.ones(4, 3)
    sums, grad = torch.ones(4, 1, 3, dtype=torch.float64), torch.ones(())
    more = (*ELEMENTS, *SCORING)
    backward = (0, *ELEMENTS)
    scored = (0, False, False, *SCORING, *POINTWISE)
    far = elsewhere(4, 3, dtype=torch.float32)
    return {
        "target": ("confusion", (x, far, None, *ELEMENTS)),
        "weight": ("confusion", (x, t, far, *ELEMENTS)),
        "target of a score": ("confusion_score", (x, far, None, *more)),
        "weight of a score": ("confusion_score", (x, t, far, *more)),
        "target of a gradient": ("confusion_backward", (grad, sums, x, far, None, *backward)),
        "weight of a gradient": ("confusion_backward", (grad, sums, x, t, far, *backward)),
        "coefficients": ("confusion_backward", (grad, elsewhere(4, 1, 3), x, t, None, *backward)),
        "grad": ("confusion_backward", (far[0, 0], sums, x, t, None, *backward)),
        "weights of classes": ("sums_score", (sums, elsewhere(2, 3), *scored)),
    }


@pytest.mark.parametrize("name", on_other_devices())
def test_tensors_of_different_devices(name: str) -> None:
    """By the compiled kernels, which CUDA tensors of two GPUs would reach, and everywhere else."""
    primitive, arguments = on_other_devices()[name]
    operator = getattr(ops, primitive).default
    with pytest.raises(
        RuntimeError, match=rf"customloss: {name.partition(' of a ')[0]} must be on .*device"
    ):
        operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *arguments)
    argument = "class_weight" if name == "weights of classes" else name.partition(" of a ")[0]
    for call in (operator, getattr(choice.primitives_of(plain), primitive)):
        with pytest.raises(RuntimeError, match=f"customloss: {argument} must be on cpu, as"):
            call(*arguments)


def test_the_differentiable_operators_too() -> None:
    """Class weights come below the checks of Python."""
    x, t = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3)
    rest = (*ELEMENTS, *SCORING, *POINTWISE)
    with pytest.raises(RuntimeError, match="customloss: class_weight must be on cpu, as sums is"):
        ops.compound(x, t, None, elsewhere(2, 3), *rest)
    for operator in (ops.soft_f1, ops.confusion_sums):
        with pytest.raises(ValueError, match=r"^target: expected device cpu"):
            operator(x, t.to("meta"))
        with pytest.raises(ValueError, match=r"^weight: expected device cpu"):
            operator(x, t, t.to("meta"))
