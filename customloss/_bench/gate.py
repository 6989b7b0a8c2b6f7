"""Whether an answer is right: value and gradient against the reference in float64.

No speed-up is computed, printed or stored unless both sides of the ratio have passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from customloss import reference
from customloss._bench.cases import Case, Inputs
from customloss._bench.rivals import Loss

# Largest relative error of the value, and of the gradient relative to its largest entry. Wide
# enough for the rivals' fastest forms: a float32 torch.dot over 16 M elements is off by 1e-5, and
# half dtypes may round p, or the loss itself, to a few units in the last place.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

_CHUNK = 1 << 20

_EXTRA = {
    "": reference.Extra(0),
    "cross_entropy": reference.Extra.LOG_LOSS,
    "focal": reference.Extra.FOCAL,
}


class Expected(NamedTuple):
    value: float
    gradient: Tensor


@dataclass(frozen=True)
class Verdict:
    value_error: float
    gradient_error: float
    passed: bool


def _chunks(input: Tensor, target: Tensor, dim: int) -> list[tuple[Tensor, Tensor]]:
    """Slices, because the reference keeps about ten float64 tensors of the size of its input."""
    rows = max(1, _CHUNK * input.shape[dim] // max(1, input.numel()))
    return list(zip(input.split(rows, dim), target.split(rows, dim)))


def expected(case: Case, inputs: Inputs) -> Expected:
    """The reference's value and gradient, slice by slice."""
    labels = case.labels is not None
    extra = int(_EXTRA[case.beside])
    activation = "softmax" if labels else "sigmoid"
    elements = (activation, 1.0, 0.0, case.samplewise, True, None, 0.0, extra)
    target = inputs.target.unsqueeze(1) if labels else inputs.target
    dim = 2 if labels and inputs.input.dim() > 2 else 0
    chunks = _chunks(inputs.input.detach(), target, dim)
    sums = sum(
        reference.confusion(input.double(), target, None, *elements) for input, target in chunks
    )
    assert isinstance(sums, Tensor)
    sums.requires_grad_()
    loss = reference.similarity_loss(sums, 2.0, 1.0, 1.0, 0.0, 0.0, "complement", 1.0).mean()
    if case.beside:
        focal = float(case.beside == "focal")
        # a softmax has no second log-loss and is divided by pixels, a sigmoid by elements
        logs, by = 1.0 - focal, 0.0 if labels else 1.0
        factors = (logs, by * logs, focal, by * focal, 1.0, by, 0.0)
        loss = loss + reference.pointwise_loss(sums.unbind(0), extra, factors)
    (grad_sums,) = torch.autograd.grad(inputs.scale * loss, sums)
    gradient = [
        reference.confusion_backward(grad_sums, input.double(), target, None, "input", *elements)
        for input, target in chunks
    ]
    return Expected(float(loss.detach()), torch.cat(gradient, dim))


def step(loss: Loss, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Forward and backward: the loss and its gradient."""
    value = loss(inputs.input, inputs.target)
    (gradient,) = torch.autograd.grad(value, inputs.input, torch.full_like(value, inputs.scale))
    return value, gradient


def check(loss: Loss, inputs: Inputs, right: Expected) -> Verdict:
    """Judges one implementation on the inputs it will be timed with, with and without autograd."""
    value, gradient = step(loss, inputs)
    with torch.no_grad():  # what is compiled is another program then
        alone = loss(inputs.input, inputs.target)
    errors = [abs(float(each) - right.value) / abs(right.value) for each in (value.detach(), alone)]
    value_error = max(errors, key=lambda error: (error != error, error))  # a NaN is the largest
    largest = float(right.gradient.abs().max())
    off = max(
        float((mine - theirs).abs().max())
        for mine, theirs in zip(gradient.split(64), right.gradient.split(64))
    )
    gradient_error = off / largest
    tolerance = TOLERANCE[inputs.input.dtype]
    # a NaN compares false, and so fails
    passed = value_error <= tolerance and gradient_error <= tolerance
    return Verdict(value_error, gradient_error, passed)
