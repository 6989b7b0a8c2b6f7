"""How a number is judged: against the reference in float64, within the rounding of its dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from cases import Sample
from torch import Tensor

from customloss import reference

soft_f1 = torch.ops.customloss.soft_f1

# The relative error of an element whose arithmetic is in this dtype: a sigmoid (2e-7 in float32),
# a few products. Sums are float64, or float32 over runs of 1024.
ARITHMETIC = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2e-6,
    torch.bfloat16: 2e-6,
}
# one rounding to nearest, and half the smallest subnormal
ROUNDING = {
    torch.float64: (2**-53, 0.0),
    torch.float32: (2**-24, 0.0),
    torch.float16: (2**-11, 2**-25),
    torch.bfloat16: (2**-8, 0.0),
}


def assert_near(
    actual: Tensor,
    expected: Tensor,
    arithmetic: torch.dtype,
    what: str = "",
    magnitude: Tensor | float | None = None,
) -> None:
    """``actual`` is ``expected`` (float64) up to arithmetic in one dtype and a final rounding.

    ``magnitude`` is the size of the terms an element is a sum of, where they may cancel. Without
    it, a tenth of the relative error of the largest element is granted.
    """
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape, f"{what}: {actual.shape} != {expected.shape}"
    relative = ARITHMETIC[arithmetic]
    rounding, least = ROUNDING[actual.dtype]
    actual, expected = actual.detach().double(), expected.detach()
    if magnitude is None:
        finite = expected[torch.isfinite(expected)].abs()
        magnitude = 0.1 * float(finite.max()) if finite.numel() else 0.0
    if isinstance(magnitude, Tensor):
        # what the terms explain is taken off, and the rest judged as usual
        allowed = (relative * magnitude).expand(expected.shape)
        close = (actual - expected).abs() <= allowed
        actual = torch.where(close, expected, actual)
        magnitude = 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=relative + rounding,
        atol=relative * magnitude + least,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def reference_loss(sample: Sample) -> Tensor:
    wide = sample.as_double()
    return reference.soft_f1(*wide.operands, **sample.options)


def outer_gradient(loss: Tensor, seed: int = 7) -> Tensor:
    """An incoming gradient with no two numbers alike, the same for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(loss.shape, generator=generator, dtype=torch.float64) + 0.5
    # representable in float32, so that a float32 loss and its float64 judge get the same numbers
    return values.float().to(loss.dtype).to(loss.device)


def differentiated(
    op: Any, sample: Sample, grad: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of the floating operands, from fresh leaves of their strides."""
    leaves = [None if tensor is None else tensor.detach() for tensor in sample.operands]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.is_floating_point()]
    for leaf in wanted:
        leaf.requires_grad_()
    loss = op(*leaves, **sample.options)
    grad = outer_gradient(loss) if grad is None else grad
    return loss.detach(), list(torch.autograd.grad(loss, wanted, grad))


class Judgement(NamedTuple):
    """The loss, and for each floating operand the gradient and the size of its terms."""

    loss: Tensor
    gradients: list[Tensor]
    terms: list[Tensor]


def reference_gradients(sample: Sample, grad: Tensor | None = None) -> Judgement:
    """As :func:`differentiated`, by the reference in float64, of the operands that float.

    By the formulas of ``reference.confusion_backward``: autograd of a sigmoid is p (1 - p), which
    is off by 1e-16 / (1 - p). The terms are what an element would be if all it is the sum of had
    one sign and the largest derivative of its group: they may cancel altogether (one weight for
    all changes nothing) and are rounded before they do.
    """
    input, target, weight = sample.as_double().operands
    options = {"average": "macro", "samplewise": False, "beta": 1.0, **sample.options}
    average, samplewise, squared = options["average"], options["samplewise"], options["beta"] ** 2
    per_class = average != "micro" and input.dim() > 1
    elements = (
        options.get("activation", "sigmoid"),
        options.get("logit_scale", 1.0),
        options.get("logit_offset", 0.0),
        samplewise,
        per_class,
    )
    sums = reference.confusion(input, target, weight, *elements).requires_grad_()
    loss = reference.similarity_loss(
        sums, 1 + squared, 1.0, squared, options.get("smooth", 0.0),
        options.get("link", "complement"), options.get("gamma", 1.0),
    )  # fmt: skip
    loss, counted = reference.with_absent(loss, sums, options.get("absent", "score"))
    loss = reference.average_groups(
        loss, sums, counted, average, samplewise, options.get("reduction", "mean")
    )
    loss = loss.reshape(reference_loss(sample).shape)
    grad = outer_gradient(loss) if grad is None else grad.double()
    (by_sums,) = torch.autograd.grad(loss, sums, grad)

    # a class weighted by its support moves every other class of its sample
    size = by_sums.abs().amax((0, 2) if average == "weighted" else 0, keepdim=True)
    size = size.expand(sums.shape)
    none = torch.zeros_like(size[0])
    one_sign = {
        "input": torch.stack([2 * size[0], 2 * size[0], none, none]),
        "target": torch.stack([2 * size[0], none, 2 * size[0], none]),
        "weight": size,
    }
    gradients, terms = [], []
    for wrt, operand in zip(one_sign, sample.operands):
        if operand is None or not operand.is_floating_point():
            continue
        for found, factors in ((gradients, by_sums), (terms, one_sign[wrt])):
            result = reference.confusion_backward(factors, input, target, weight, wrt, *elements)
            found.append(result.sum_to_size(operand.shape))
    return Judgement(loss.detach(), gradients, [each.abs() for each in terms])


def assert_right(op: Any, sample: Sample, grad: Tensor | None = None) -> None:
    """Value and every gradient of ``op`` are those of the reference."""
    loss, gradients = differentiated(op, sample, grad)
    expected = reference_gradients(sample, grad)
    arithmetic = sample.input.dtype
    assert loss.dtype == reference.accumulator(sample.input)
    assert_near(loss, expected.loss, arithmetic, "loss")
    floating = [t for t in sample.operands if t is not None and t.is_floating_point()]
    for operand, own, wanted, terms in zip(
        floating, gradients, expected.gradients, expected.terms, strict=True
    ):
        assert own.dtype == operand.dtype
        assert_near(own, wanted, arithmetic, "gradient", terms)
