"""Judges numbers against the reference in float64, within the rounding of their dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from cases import Sample
from torch import Tensor

from customloss import reference
from customloss._spec import options as spec_options

soft_f1 = torch.ops.customloss.soft_f1
confusion_sums = torch.ops.customloss.confusion_sums

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

    An element may be a sum of terms that cancel; ``magnitude`` is the size of these terms. Without
    it, a tenth of the relative error of the largest element is allowed as an absolute error.
    """
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape, f"{what}: {actual.shape} != {expected.shape}"
    relative = ARITHMETIC[arithmetic]
    rounding, least = ROUNDING[actual.dtype]
    most = torch.finfo(actual.dtype).max
    actual, expected = actual.detach().double(), expected.detach()
    expected = torch.where(expected.abs() > most, expected * torch.inf, expected)
    if magnitude is None:
        finite = expected[torch.isfinite(expected)].abs()
        magnitude = 0.1 * float(finite.max()) if finite.numel() else 0.0
    if isinstance(magnitude, Tensor):
        # An error that the terms and the last rounding explain is removed before judging the rest.
        allowed = (relative * magnitude + least).expand(expected.shape) + rounding * expected.abs()
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
    """The loss and the gradients by the floating operands, which become fresh leaves."""
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


def elements_of(sample: Sample) -> tuple[Any, ...]:
    """The arguments of ``reference.confusion`` that follow the operands."""
    options = sample.options
    extra = sum(flag for flag in reference.Extra if options.get(str(flag.name).lower()))
    return (
        options.get("activation", "sigmoid"),
        options.get("logit_scale", 1.0),
        options.get("logit_offset", 0.0),
        options.get("samplewise", False),
        options.get("average", "macro") != "micro" and sample.input.dim() > 1,
        options.get("ignore_index"),
        options.get("label_smoothing", 0.0),
        int(extra),
        options.get("focal_gamma", 2.0),
        options.get("focal_split", False),
        options.get("log_smoothing"),
        options.get("out_of_range", "raise"),
        options.get("nan_targets", "propagate"),
    )


def judging(sample: Sample) -> Sample:
    """The sample in float64; class numbers get the dimension of size 1 that the reference wants."""
    wide = sample.as_double()
    numbers = wide.target.dim() < wide.input.dim()
    return wide._replace(target=wide.target.unsqueeze(1)) if numbers else wide


def reference_sums(sample: Sample) -> Tensor:
    return reference.confusion(*judging(sample).operands, *elements_of(sample))


def reference_gradients(sample: Sample, grad: Tensor | None = None) -> Judgement:
    """As :func:`differentiated`, by the reference in float64.

    The gradients are those of ``reference.confusion_backward``. Autograd's derivative of a sigmoid
    is p (1 - p), which has a relative error of 1e-16 / (1 - p).
    """
    options = {"average": "macro", "samplewise": False, "beta": 1.0, **sample.options}
    average, samplewise, squared = options["average"], options["samplewise"], options["beta"] ** 2
    smooth = options.get("smooth", 0.0)
    sums = reference_sums(sample).requires_grad_()
    loss = reference.similarity_loss(
        sums, 1 + squared, 1.0, squared, smooth, options.get("smooth_denominator", smooth),
        options.get("link", "complement"), options.get("gamma", 1.0),
        options.get("log_floor", reference.SIMILARITY_FLOOR),
    )  # fmt: skip
    loss, counted = reference.with_absent(loss, sums, options.get("absent", "score"))
    loss = reference.average_groups(
        loss, sums, counted, average, samplewise, options.get("reduction", "mean")
    )
    loss = loss.reshape(reference_loss(sample).shape)
    grad = outer_gradient(loss) if grad is None else grad.double()
    (by_sums,) = torch.autograd.grad(loss, sums, grad)
    # When classes are weighted by their support, each one changes the share of the others.
    size = by_sums.abs().amax((0, 2) if average == "weighted" else 0, keepdim=True)
    return Judgement(loss.detach(), *_by_operands(sample, by_sums, size.expand(by_sums.shape)))


def reference_sums_gradients(sample: Sample, grad: Tensor) -> Judgement:
    """As :func:`reference_gradients`, for ``confusion_sums``."""
    return Judgement(reference_sums(sample), *_by_operands(sample, grad, grad.abs()))


def _by_operands(
    sample: Sample, by_sums: Tensor, size: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients by the operands and the size of their terms, from those by the sums.

    An element of a gradient is a sum of terms, which are rounded before they are added and may
    cancel completely: the gradient by a weight that all elements share is 0. The size of the terms
    is what the element would be if all of them had the same sign and the derivatives by the sums
    were ``size``.
    """
    operands, elements = judging(sample).operands, elements_of(sample)

    def backward(factors: Tensor, wrt: str) -> Tensor:
        return reference.confusion_backward(factors, *operands, wrt, *elements)

    gradients, terms = [], []
    for wrt, operand in zip(("input", "target", "weight"), sample.operands):
        if operand is None or not operand.is_floating_point():
            continue
        gradients.append(backward(by_sums, wrt).sum_to_size(operand.shape))
        if wrt == "input" and elements[0] == "softmax":
            own = _softmax_terms(operands, elements, size)
        elif wrt == "weight":
            own = backward(size, wrt).abs()
        else:
            own = sum(backward(part, wrt).abs() for part in _of_one_sign(size, wrt, elements[7]))
        terms.append(own.sum_to_size(operand.shape))
    return gradients, terms


def _of_one_sign(size: Tensor, wrt: str, extra: int) -> list[Tensor]:
    """Derivatives by the sums, split into parts in which nothing cancels.

    The derivatives of tp and fn by a logit have opposite signs; so do those of tp and fp by a
    target.
    """
    names = reference.rows(extra)
    groups = [("tp", "fp"), ("fn", "tn")] if wrt == "input" else [("tp", "fn"), ("fp", "tn")]
    groups += [("p2", "t2", "tp2")] + [
        (name,) for name in names[4:] if name not in ("p2", "t2", "tp2")
    ]
    parts = []
    for group in groups:
        kept = torch.tensor([name in group for name in names])
        if kept.any():
            parts.append(torch.where(kept[:, None, None], size, torch.zeros_like(size)))
    return parts


def _softmax_terms(operands: Any, elements: tuple[Any, ...], size: Tensor) -> Tensor:
    """A logit moves every class of its pixel: p_k q_k times the largest slope, and log-losses."""
    activation, scale, offset, _, _, ignored, smoothing, extra, gamma, split, log, *allowed = (
        elements
    )
    measured = (activation, scale, offset, extra, gamma, split)
    x, target, w, holes = reference.operands(*operands, measured, ignored, smoothing, log, *allowed)
    t = target.smoothed
    g = size.reshape(*size.shape, *(1 for _ in x.shape[2:]))
    g = dict(zip(reference.rows(extra), g.unbind(0)))
    p, q, _ = reference.probability(x, activation, scale, offset)
    zero = torch.zeros_like(p)
    slope = torch.stack([g[name] for name in ("tp", "fp", "fn", "tn")]).amax(0) + zero
    slope = slope + 2 * p * (g.get("p2", zero) + t * g.get("tp2", zero))
    common, above, below = (
        g.get(name, zero) for name in ("common", "distance_pos", "distance_neg")
    )
    slope = slope + torch.maximum(above, common + below)  # where p is above t, and where below
    log = -torch.nn.functional.log_softmax(scale * (x - offset), 1)
    h = target.log * g.get("log_loss_pos", zero)
    more = reference.power(q, gamma) + gamma * p * log * reference.power(q, gamma - 1)
    h = h + t * g.get("focal_pos", zero) * torch.where(t > 0, more, zero)
    weight = torch.ones_like(p) if w is None else w.abs()
    slope, h = (weight * slope).amax(1, keepdim=True), weight * h
    total = 2 * p * q * slope + p * h.sum(1, keepdim=True) + q * h
    # z is rounded before exp(z) is taken, which is a relative error of |z| / 2^24 in every term.
    rounded = 1 + 0.06 * (scale * (x - offset)).abs().amax(1, keepdim=True)
    total = abs(scale) * rounded * total
    return total if holes is None else total.masked_fill(holes, 0)


def assert_right(op: Any, sample: Sample, grad: Tensor | None = None) -> None:
    """Value and every gradient of ``op`` are those of the reference."""
    loss, gradients = differentiated(op, sample, grad)
    assert loss.dtype == reference.accumulator(sample.input)
    _compare(sample, loss, gradients, reference_gradients(sample, grad))


def assert_sums_right(sample: Sample, **extras: Any) -> None:
    """The sums, with the extras that are asked for, and all their gradients are the reference's."""
    own = {name: value for name, value in sample.options.items() if name in spec_options.SUMS}
    sample = sample._replace(options={**own, **extras})
    grad = outer_gradient(reference_sums(sample)) - 1  # of either sign
    sums, gradients = differentiated(confusion_sums, sample, grad)
    assert sums.dtype == torch.float64
    _compare(sample, sums, gradients, reference_sums_gradients(sample, grad))


def _compare(sample: Sample, value: Tensor, gradients: list[Tensor], expected: Judgement) -> None:
    arithmetic = sample.input.dtype
    assert_near(value, expected.loss, arithmetic, "loss")
    floating = [t for t in sample.operands if t is not None and t.is_floating_point()]
    for operand, own, wanted, terms in zip(
        floating, gradients, expected.gradients, expected.terms, strict=True
    ):
        assert own.dtype == operand.dtype
        assert_near(own, wanted, arithmetic, "gradient", terms)
