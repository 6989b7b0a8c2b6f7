"""Elements of classes that count nowhere, where a transform differentiates the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from customloss._spec import operands
from customloss._spec.arguments import Data, Elements
from customloss._spec.words import ACTIVATIONS, INPUT, NAN_TARGETS, OUT_OF_RANGE, SOFTMAX
from customloss.reference import sums as reference


def without_elements(data: Data, elements: Elements, hidden: Tensor) -> tuple[Data, Tensor]:
    """The operands with 0 where an element of ``hidden`` classes would spoil their sums, for where
    autograd differentiates the reference: a gradient of 0 by a NaN, times its derivative, is a NaN.
    Also which classes lost an element: their weights become a constant 0, as they do in
    ``reference.losses.without_hidden``. An element that is ignored, or weighs 0, spoils nothing.

    Logits of a softmax stay, because each of them is part of every class.
    """
    data = operands.checked(*data, elements)
    shape, softmax = data.input.shape, elements.activation == SOFTMAX
    along = hidden.reshape(-1, *(1 for _ in shape[2:]))
    lost = along & _spoiled(data, elements)
    input, target, each = (
        operand
        if operand is None or not operand.is_floating_point() or (softmax and place == INPUT)
        else torch.where(lost, torch.zeros_like(operand), operand)
        for place, operand in enumerate(data)
    )
    assert input is not None and target is not None
    of_classes = lost.transpose(0, 1).flatten(1).any(1) if len(shape) > 1 else lost.any()
    return Data(input, target, each), of_classes


def _spoiled(data: Data, elements: Elements) -> Tensor:
    """Which elements add what is not finite to their sums."""
    measured = (
        ACTIVATIONS[elements.activation], elements.scale, elements.offset, elements.extra,
        elements.focal_gamma, elements.focal_split,
    )  # fmt: skip
    found = reference.operands(
        *data, measured, elements.ignore_index, elements.label_smoothing, elements.log_smoothing,
        OUT_OF_RANGE[elements.out_of_range], NAN_TARGETS[elements.nan_targets],
    )  # fmt: skip
    return reference.spoiled(found, measured)
