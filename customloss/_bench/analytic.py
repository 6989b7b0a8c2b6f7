"""The strongest use of ``torch.compile`` for a training step: one compiled pass each way.

What autograd derives keeps p, or several tensors of that size, from forward to backward. Here the
backward pass is a compiled function of its own. It computes p again and writes the gradient by its
formula, so that nothing of the size of the inputs is kept, and each pass reads them once.

With D = Σp + Σt of a group and G groups, dL/dp is ``a + b t``, where a = 2 tp / (D² G) and
b = -2 / (D G). These coefficients are all that is kept beside the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._bench.cases import Case
from customloss._bench.formulas import (
    BOOL_ONLY,
    LABELS_ONLY,
    MASKS_ONLY,
    Loss,
    Planes,
    Rows,
    Unavailable,
    Wrong,
    accumulator,
    cheap_exp,
    dice,
    few_classes,
    group_dims,
    narrow,
    one_hot,
    require,
)


class Passes(NamedTuple):
    """``forward(input, target)`` gives the loss and what is kept: coefficients, and for many
    classes the logarithm of every pixel's sum. ``backward(slope, input, target, *kept)`` gives the
    gradient; ``slope`` is that of the loss."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., Tensor]


class _Analytic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, passes: Passes) -> Tensor:
        loss, *kept = passes.forward(input, target)
        ctx.save_for_backward(input, target, *kept)
        ctx.passes = passes
        return loss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return ctx.passes.backward(slopes[0], *ctx.saved_tensors), None, None


def apply(input: Tensor, target: Tensor, passes: Passes) -> Tensor:
    """The loss, whose gradient the backward pass computes."""
    loss: Tensor = _Analytic.apply(input, target, passes)
    return loss


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function behind a code object of its own.

    torch counts recompilations per code object. Past the limit it would run eagerly without a word.
    """

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    code, names = call.__code__.replace(), call.__globals__
    return FunctionType(code, names, "call", None, call.__closure__)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiled whole or not at all: an error is better than a part that runs eagerly."""
    options = {"fullgraph": True, "dynamic": False, **options}
    result: Callable[..., Any] = torch.compile(fresh(function), **options)
    return result


def analytic_form(case: Case, **options: Any) -> Loss:
    """Both passes compiled, with ``options`` of torch.compile."""
    passes = passes_of(case)
    both = Passes(compiled(passes.forward, **options), compiled(passes.backward, **options))
    return lambda input, target: apply(input, target, both)


def passes_of(case: Case) -> Passes:
    """Both passes before they are compiled."""
    if case.labels is not None:
        return unrolled_passes(case) if few_classes(case) else compared_passes(case)
    try:
        return rows_passes(case)
    except Unavailable:
        return mask_passes(case)


def coefficients(tp: Tensor, total: Tensor) -> Tensor:
    """a and b of every group."""
    b = -2 / (total * total.numel())
    return torch.stack([-b * tp / total, b])


# ---- masks -----------------------------------------------------------------------------------


def mask_passes(case: Case) -> Passes:
    """Of bool masks; of float masks without a loss beside."""
    require(case.labels is None, MASKS_ONLY)
    if case.beside:
        return shared_passes(case)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        dims, dtype = group_dims(input), accumulator(input)
        p, t = input.to(dtype).sigmoid(), target.to(dtype)
        tp, total = (p * t).sum(dims), (p + t).sum(dims)
        return dice(tp, total), coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = per_group(kept * slope, input)
        p = input.to(accumulator(input)).sigmoid()
        return (p * (1 - p) * (a + b * target)).to(input.dtype)

    return Passes(forward, backward)


def per_group(kept: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients in a shape that broadcasts against the input."""
    shape = [-1, *(1 for _ in input.shape[2:])] if input.dim() > 1 else [1]
    if kept.dim() == 3:
        shape = [input.shape[0], *shape]
    a, b = kept.unbind(0)
    return a.reshape(shape), b.reshape(shape)


def shared_passes(case: Case) -> Passes:
    """Masks with a log-loss or a focal loss beside."""
    require(case.mask == torch.bool, BOOL_ONLY)
    focal = case.beside == "focal"

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        tp, total, beside = Wrong.of(input, target).sums(target, focal)
        return dice(tp, total) + beside, coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = per_group(kept * slope, input)
        wrong = Wrong.of(input, target)
        s, each = wrong.s, slope / input.numel()
        # d/dy of the log-loss is s, and of s² · log-loss it is s² (2 (1 - s) log-loss + s)
        beside = s * s * (2 * (1 - s) * wrong.log_loss + s) if focal else s
        beside = beside * each
        dice_part = wrong.slope * torch.where(target, a + b, a)
        return (dice_part + torch.where(target, -beside, beside)).to(input.dtype)

    return Passes(forward, backward)


def rows_passes(case: Case) -> Passes:
    """Masks whose classes are innermost in memory, added up in blocks of rows."""
    require(case.labels is None, MASKS_ONLY)
    rows, classes = Rows.of(case), case.shape[1]
    require(not case.beside, "no loss beside")

    def probability(input: Tensor) -> Tensor:
        return 1 / (1 + cheap_exp(-rows.view(input).to(accumulator(input))))

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        p, t = probability(input), rows.view(target)
        tp = rows.fold((p * t).sum(1), classes)
        total = rows.fold((p + t).sum(1), classes)
        kept = coefficients(tp, total)
        return dice(tp, total), kept.repeat(1, rows.width // classes)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = (kept * slope).unbind(0)
        p, t = probability(input), rows.view(target)
        gradient = (p * (1 - p) * (a + b * t)).to(input.dtype)
        return rows.undo(gradient, input)

    return Passes(forward, backward)


# ---- a softmax and class numbers -------------------------------------------------------------


def unrolled_passes(case: Case) -> Passes:
    """Few classes: the loop over them is written out, and each pass is one loop over pixels."""
    require(case.labels is not None, LABELS_ONLY)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        planes, target = Planes.of(input), narrow(target)
        tp, total = planes.sums(target, case.samplewise)
        value = dice(tp, total)
        if case.beside:
            value = value + planes.cross_entropy(target)
        return value, coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        p, target = Planes.of(input).p, narrow(target)
        if case.samplewise:
            kept = kept.reshape(*kept.shape, *(1 for _ in target.shape[1:])).movedim(2, 1)
        a, b = (kept * slope).unbind(0)
        each = slope / target.numel()
        u = [torch.where(target == c, a[c] + b[c], a[c]) for c in range(len(p))]
        mean = p[0] * u[0]
        for c in range(1, len(p)):
            mean = mean + p[c] * u[c]
        gradient = [p[c] * (u[c] - mean) for c in range(len(p))]
        if case.beside:
            gradient = [
                g + torch.where(target == c, p[c] - 1, p[c]) * each for c, g in enumerate(gradient)
            ]
        return torch.stack([g.to(input.dtype) for g in gradient], 1)

    return Passes(forward, backward)


def compared_passes(case: Case) -> Passes:
    """Many classes. A float per pixel is kept, which spares the backward pass two loops."""
    require(case.labels is not None, LABELS_ONLY)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        x, t = input.to(accumulator(input)), one_hot(narrow(target), input)
        log_total = x.logsumexp(1, keepdim=True)
        p = cheap_exp(x - log_total)
        dims = group_dims(input, case.samplewise)
        tp, total = torch.where(t, p, 0).sum(dims), (p + t).sum(dims)
        value = dice(tp, total)
        if case.beside:
            true = x.gather(1, target.long().unsqueeze(1))
            value = value + (log_total - true).mean()
        return value, coefficients(tp, total), log_total

    def backward(
        slope: Tensor, input: Tensor, target: Tensor, kept: Tensor, log_total: Tensor
    ) -> Tensor:
        a, b = per_group(kept * slope, input)
        p = cheap_exp(input.to(accumulator(input)) - log_total)
        t = one_hot(narrow(target), input)
        u = torch.where(t, a + b, a)
        gradient = p * (u - (p * u).sum(1, keepdim=True))
        if case.beside:
            gradient = gradient + torch.where(t, p - 1, p) * (slope / target.numel())
        return gradient.to(input.dtype)

    return Passes(forward, backward)
