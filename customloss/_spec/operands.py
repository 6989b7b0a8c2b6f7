"""Checks of input, target and weight before any kernel runs: types, dtypes, shapes and devices.

Nothing here reads the data of a tensor; ``batch_checks.py`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from customloss._spec import hints
from customloss._spec.arguments import Data, Elements
from customloss._spec.words import IGNORE, SOFTMAX
from customloss.reference.sums import is_class_index

INPUT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TARGET_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32,
    torch.uint64, torch.int64, *INPUT_DTYPES,
)  # fmt: skip
_TARGETS = frozenset(TARGET_DTYPES)
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def are_tensors(input: object, target: object, weight: object) -> None:
    """The three operands are tensors (``weight`` may be None)."""
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(
                f"{name}: expected a torch.Tensor, got {type(value).__name__}{_part(name, value)}"
            )
        if isinstance(value, Tensor) and value.is_nested:
            raise TypeError(
                f"{name}: expected a dense tensor, got a nested one: pad it, as with "
                "torch.nested.to_padded_tensor(tensor, 0.0), and let the padding not count, with a "
                "weight of 0 or an ignore_index"
            )
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense (strided) tensor, got {value.layout}")


def _part(name: str, value: object) -> str:
    """The cure for what holds tensors where one was expected."""
    if name == "input" and isinstance(value, Mapping):
        keys = [key for key, each in value.items() if isinstance(each, Tensor)]
        best = "out" if "out" in keys else next(iter(keys), None)  # as of torchvision's models
        return "" if best is None else f": pass input[{best!r}]"
    if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value):
        several = "customloss.DeepSupervision scores the outputs of several resolutions"
        return f": {several}" if name == "input" else ": pass torch.stack or one of them"
    if isinstance(value, (list, tuple)):
        return f": torch.tensor({name})"
    if hasattr(value, "__array__"):
        return f": torch.as_tensor({name})"
    return ""


def checked(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    *,
    no_sample: bool = False,
) -> Data:
    """Dtypes, shapes and devices fit together, and there is a group to score. With ``no_sample`` a
    batch without samples passes, although it has no group.

    Returns the operands as a pass reads them: class numbers, and a weight in their shape, as
    ``[N, 1, *spatial]``.
    """
    shape = input.shape
    if input.dtype not in INPUT_DTYPES:
        hint = ""
        if target.dtype in INPUT_DTYPES:
            hint = "; are input and target swapped?"
        elif input.dtype in _TARGETS:
            hint = "; are these decisions? A loss needs the logits or probabilities before them"
        raise TypeError(
            f"input: expected float32, float64, float16 or bfloat16, got {input.dtype}{hint}"
        )
    _representable(elements, input.dtype)
    if not shape:
        raise ValueError("input: expected [N], [N, C] or [N, C, *spatial], got a scalar")
    if target.dtype not in _TARGETS:
        raise TypeError(f"target: expected a bool, integer or float dtype, got {target.dtype}")
    if elements.activation == SOFTMAX and (len(shape) < 2 or shape[1] == 1):
        raise ValueError(
            "activation: expected 'sigmoid' (or two classes) for an input without a choice of "
            f"classes, {list(shape)}, got 'softmax'"
        )
    if not _alike(target.shape, shape):
        target = _class_index(input, target)
    elif elements.ignore_index is not None and elements.activation == SOFTMAX:
        raise ValueError(
            "ignore_index: expected None for a dense target with activation='softmax' (what would "
            f"one class of a pixel say?), got {hints.listed(elements.ignore_index)}: pass class "
            "numbers, or a weight of 0"
        )
    elif elements.nan_targets == IGNORE and elements.activation == SOFTMAX:
        raise ValueError(
            "nan_targets: expected 'propagate' for a dense target with activation='softmax' (what "
            "would one class of a pixel say?), got 'ignore': pass a weight of 0 where it is NaN"
        )
    if elements.ignore_index is not None and target.dtype in _INTEGERS_BELOW:
        _has_ignored(elements.ignore_index, target.dtype)
    if target.device != input.device:
        raise ValueError(f"target: expected device {input.device} (input's), got {target.device}")
    if weight is not None:
        weight = _weight(weight, input, is_class_index(input, target))
    no_class = len(shape) > 1 and shape[1] == 0
    empty = elements.per_sample and shape[0] == 0 and not no_sample
    if empty or (elements.per_class and no_class):
        raise ValueError(f"input: there is no group to score in shape {list(shape)}")
    return Data(input, target, weight)


# of each floating dtype: it holds an integer that has an odd factor below this
_INTEGERS_BELOW = {
    torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8,
}  # fmt: skip


def _has_ignored(ignored: Sequence[int], dtype: torch.dtype) -> None:
    """A target of this dtype can hold what is ignored: it would be compared with another number."""
    for number in ignored:
        odd = number // (number & -number) if number else 0
        if abs(odd) >= _INTEGERS_BELOW[dtype] or abs(number) > torch.finfo(dtype).max:
            raise ValueError(
                f"ignore_index: expected a number that {dtype} (target's) holds, got {number}: an "
                "integer target holds it"
            )


_FLOAT32 = torch.finfo(torch.float32).max


def _representable(elements: Elements, dtype: torch.dtype) -> None:
    """Numbers that are multiplied with logits and logarithms are finite in the dtype of the
    computation: as infinite ones they would make a NaN."""
    if (
        -_FLOAT32 <= elements.scale <= _FLOAT32
        and -_FLOAT32 <= elements.offset <= _FLOAT32
        and elements.focal_gamma <= _FLOAT32
    ) or dtype == torch.float64:
        return
    for name, value in (
        ("logit_scale", elements.scale), ("logit_offset", elements.offset),
        ("focal_gamma", elements.focal_gamma),
    ):  # fmt: skip
        if abs(value) > _FLOAT32:
            raise ValueError(
                f"{name}: expected a number that float32 holds, with which an input of {dtype} is "
                f"computed, got {value}: input.double() allows it"
            )


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are equal. The ranks are compared first: Python would compare [N, H, W]
    with [N, C, H, W] size by size, which in a trace forbids that H is C."""
    return len(one) == len(other) and one == other


def _class_index(input: Tensor, target: Tensor) -> Tensor:
    """Class numbers, one per sample and place, as ``[N, 1, *spatial]``."""
    shape, came = input.shape, target.shape
    with_class_dim = (*shape[:1], 1, *shape[2:])
    without_class_dim = (*shape[:1], *shape[2:])
    if len(shape) < 2 or not (_alike(came, with_class_dim) or _alike(came, without_class_dim)):
        expected = f"the shape of input, {list(shape)}"
        if len(shape) > 1:
            expected += f", or {list(without_class_dim)} for class numbers"
        raise ValueError(f"target: expected {expected}, got {list(came)}{_shape_cure(came, shape)}")
    if shape[1] == 1:
        raise ValueError(
            f"target: expected the shape of input, {list(shape)}, got {list(came)}: an input with "
            "one class has no class numbers (target.unsqueeze(1) makes it dense)"
        )
    if target.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"target: expected uint8, int8, int16, int32 or int64 for class numbers {list(came)}, "
            f"got {target.dtype}: pass target.long(), if these are class numbers; a dense target "
            f"has the shape of input, {list(shape)}"
        )
    return target if len(came) == len(shape) else target.unsqueeze(1)


def _shape_cure(came: Sequence[int], shape: Sequence[int]) -> str:
    """What a target of shape ``came`` needs to fit an input of ``shape``, if that can be said."""
    if len(shape) > 2 and _alike(came, (shape[0], *shape[2:], shape[1])):
        return ": are the classes its last dimension? Pass target.movedim(-1, 1)"
    if len(shape) > 2 and _alike(came, shape[:-1]):
        return ": are the classes the last dimension of input? Pass input.movedim(-1, 1)"
    if [size for size in came if size != 1] == [size for size in shape if size != 1]:
        return ": pass target.view_as(input)"
    return ""


def _weight(weight: Tensor, input: Tensor, labels: bool) -> Tensor:
    """The weight so that it broadcasts to the input; ``labels``: the target holds class numbers."""
    if weight.dtype not in _TARGETS:
        raise TypeError(f"weight: expected a bool, integer or float dtype, got {weight.dtype}")
    if weight.device != input.device:
        raise ValueError(f"weight: expected device {input.device} (input's), got {weight.device}")
    came, shape = weight.shape, input.shape
    if (labels or shape[1:2] == (1,)) and of_pixels(came, shape):
        return weight.unsqueeze(1)
    if not broadcasts(came, shape):
        expected = f"a shape that broadcasts to {list(shape)} (input's)"
        cure = ""
        if of_pixels(came, shape) or (len(shape) == 2 and _alike(came, shape[:1])):
            cure = ": weight[:, None] is one number per sample and place"
        elif len(shape) > 1 and _alike(came, shape[1:2]):
            cure = ": the option class_weight has a number for each class"
        raise ValueError(f"weight: expected {expected}, got {list(came)}{cure}")
    return weight


def of_pixels(came: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a weight of shape ``came`` has the shape of class numbers, ``[N, *spatial]``, of an
    input ``[N, C, *spatial]``. Beside class numbers, and where there is one class, it then has one
    number per pixel, also where it could be broadcast because N is C. Without places, ``[N]`` is
    too easily one number per class.
    """
    if len(came) != len(shape) - 1 or len(shape) < 3 or not _same_kind(came[0], shape[0]):
        return False
    return _alike(came, (shape[0], *shape[2:]))


def _same_kind(one: int, other: int) -> bool:
    """Whether both sizes are known, or both are symbols of a trace. Comparing a number with the
    symbol of a batch's size would forbid the program that size."""
    return (type(one) is int) == (type(other) is int)


def broadcasts(came: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a tensor of shape ``came`` broadcasts to ``shape``."""
    return len(came) <= len(shape) and all(
        size == 1 or size == wanted for size, wanted in zip(reversed(came), reversed(shape))
    )
