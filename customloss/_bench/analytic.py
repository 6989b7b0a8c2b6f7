"""The strongest use of ``torch.compile`` for a training step: one compiled pass each way.

What autograd derives keeps p, or several tensors of that size, from forward to backward. Here the
backward pass is a compiled function of its own. It computes p again and writes the gradient by its
formula, so that nothing of the size of the inputs is kept, and each pass reads them once.

With D = Σp + Σt of a group and G groups, dL/dp is ``a + b t``, where a = 2 tp / (D² G) and
b = -2 / (D G). These coefficients are all that is kept beside the inputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._bench import kept
from customloss._bench.arithmetic import TORCH, Arithmetic
from customloss._bench.cases import Case
from customloss._bench.formulas import (
    ALONE_ONLY,
    INNER_CLASSES_ONLY,
    LABELS_ONLY,
    MASKS_ONLY,
    ONE_GROUP_ONLY,
    Loss,
    Planes,
    Unavailable,
    accumulator,
    as_bytes,
    dice,
    few_classes,
    group_dims,
    narrow,
    one_hot,
    require,
)


def itself(tensor: Tensor) -> Tensor:
    return tensor


class Passes(NamedTuple):
    """``forward(input, target)`` gives the loss and what is kept: coefficients, and for many
    classes the logarithm of every pixel's sum. ``backward(slope, input, target, *kept)`` gives the
    gradient; ``slope`` is that of the loss.

    Both get ``view`` of the input and of the target, and no copy is made for it. It is taken
    outside of what is compiled, because Inductor makes slower loops of what it views itself.
    """

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., Tensor]
    view: Callable[[Tensor], Tensor] = itself
    undo: Callable[[Tensor, Tensor], Tensor] = lambda gradient, input: gradient


class _Analytic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, passes: Passes) -> Tensor:
        loss, *kept = passes.forward(passes.view(input), passes.view(target))
        ctx.save_for_backward(input, target, *kept)
        ctx.passes = passes
        return loss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        input, target, *kept = ctx.saved_tensors
        view, undo = ctx.passes.view, ctx.passes.undo
        gradient = ctx.passes.backward(slopes[0], view(input), view(target), *kept)
        return undo(gradient, input), None, None


def apply(input: Tensor, target: Tensor, passes: Passes) -> Tensor:
    """The loss, whose gradient the backward pass computes."""
    loss: Tensor = _Analytic.apply(input, as_bytes(target), passes)
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


def analytic_form(case: Case, maths: Arithmetic = TORCH, **options: Any) -> Loss:
    """Both passes compiled, with ``options`` of torch.compile."""
    passes = passes_of(case, maths)
    both = passes._replace(
        forward=compiled(passes.forward, **options), backward=compiled(passes.backward, **options)
    )
    return lambda input, target: apply(input, target, both)


def kept_form(case: Case, maths: Arithmetic = TORCH, **options: Any) -> Loss:
    """The gradient is written to memory that is kept from one step to the next."""
    passes = passes_of(case, maths)

    def write(gradient: Tensor, *arguments: Tensor) -> None:
        gradient.copy_(passes.backward(*arguments))

    program = compiled(write, **options)

    def backward(slope: Tensor, input: Tensor, *arguments: Tensor) -> Tensor:
        gradient = kept.GRADIENT.like(input)
        program(gradient, slope, input, *arguments)
        return gradient

    both = passes._replace(forward=compiled(passes.forward, **options), backward=backward)
    return lambda input, target: apply(input, target, both)


def passes_of(case: Case, maths: Arithmetic = TORCH) -> Passes:
    """Both passes before they are compiled."""
    if case.labels is not None:
        passes = unrolled_passes if few_classes(case) else compared_passes
        return passes(case, maths)
    try:
        return rows_passes(case, maths)
    except Unavailable:
        return mask_passes(case, maths)


def coefficients(tp: Tensor, total: Tensor) -> Tensor:
    """a and b of every group."""
    b = -2 / (total * total.numel())
    return torch.stack([-b * tp / total, b])


# ---- masks -----------------------------------------------------------------------------------


def sigmoid(input: Tensor, maths: Arithmetic) -> Tensor:
    return maths.sigmoid(input.to(accumulator(input)))


def mask_passes(case: Case, maths: Arithmetic) -> Passes:
    require(case.labels is None, MASKS_ONLY)
    if case.beside:
        return shared_passes(case, maths)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        if case.shape[1:2] == (1,) and not case.latency:
            hits, both = element_sums(input.reshape(-1), target.reshape(-1), maths, maths.pieces)
            tp, total = hits.sum().reshape(1), both.sum().reshape(1)
        else:
            dims, p = group_dims(input), sigmoid(input, maths)
            t = target.to(p.dtype)
            tp, total = (p * t).sum(dims), (p + t).sum(dims)
        return dice(tp, total), coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = per_group(kept * slope, input)
        p = sigmoid(input, maths)
        return (p * (1 - p) * (a + b * target.to(p.dtype))).to(input.dtype)

    return Passes(forward, backward)


def element_sums(
    input: Tensor, target: Tensor, maths: Arithmetic, most: int
) -> tuple[Tensor, Tensor]:
    """p t and p + t, with the elements of up to ``most`` equal pieces added to each other.

    A loop that reads several pieces side by side has more reads under way than one that goes
    through the memory from end to end, and fewer additions depend on each other.
    """
    count = math.gcd(input.shape[0], most)
    xs, ts = (tensor.unflatten(0, (count, -1)).unbind(0) for tensor in (input, target))
    ps = [sigmoid(x, maths) for x in xs]
    both = list(zip(ps, [t.to(ps[0].dtype) for t in ts]))
    return _total([p * t for p, t in both]), _total([p + t for p, t in both])


def per_group(kept: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients in a shape that broadcasts against the input."""
    shape = [-1, *(1 for _ in input.shape[2:])] if input.dim() > 1 else [1]
    if kept.dim() == 3:
        shape = [input.shape[0], *shape]
    a, b = kept.unbind(0)
    return a.reshape(shape), b.reshape(shape)


class Wrong(NamedTuple):
    """Of each element: ``s``, the probability of the wrong answer, and -log(1 - s) in two parts.

    With ``y`` the logit of the wrong answer, s is its sigmoid, and -log(1 - s) is the positive part
    of y plus log(1 + ``exponential``). One exponential serves all, and the slope of s.
    """

    t: Tensor
    s: Tensor
    positive: Tensor
    exponential: Tensor
    slope: Tensor

    @staticmethod
    def of(input: Tensor, target: Tensor, maths: Arithmetic) -> Wrong:
        x = input.to(accumulator(input))
        t = target.to(x.dtype)
        y = x * (1 - 2 * t)
        exponential = maths.exp(-y.abs())
        share = 1 / (1 + exponential)
        part = exponential * share
        s = torch.where(y >= 0, share, part)
        return Wrong(t, s, y.clamp_min(0), exponential, part * share)

    def log_loss(self, maths: Arithmetic) -> Tensor:
        return self.positive + maths.log1p(self.exponential)


def shared_passes(case: Case, maths: Arithmetic) -> Passes:
    """Masks of one group with a log-loss or a focal loss beside, and one exponential for both."""
    require(case.shape[1] == 1, ONE_GROUP_ONLY)
    focal = case.beside == "focal"

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        sums = focal_sums if focal else log_loss_sums
        tp, wrong, beside = sums(input, target, maths)
        tp, total = tp.reshape(1), (2 * tp + wrong).reshape(1)
        return dice(tp, total) + beside / input.numel(), coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = per_group(kept * slope, input)
        wrong = Wrong.of(input, target, maths)
        s = beside = wrong.s
        if focal:  # the slope of s² · log-loss; that of the log-loss alone is s
            beside = s * s * (2 * (1 - s) * wrong.log_loss(maths) + s)
        beside = (1 - 2 * wrong.t) * beside * (slope / input.numel())
        return (wrong.slope * (a + b * wrong.t) + beside).to(input.dtype)

    return Passes(forward, backward)


def focal_sums(input: Tensor, target: Tensor, maths: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
    """tp, Σs and the sum of the focal loss; Σp + Σt is 2 tp + Σs."""
    wrong = Wrong.of(input, target, maths)
    losses = wrong.s * wrong.s * wrong.log_loss(maths)
    return ((1 - wrong.s) * wrong.t).sum(), wrong.s.sum(), losses.sum()


def log_loss_sums(
    input: Tensor, target: Tensor, maths: Arithmetic
) -> tuple[Tensor, Tensor, Tensor]:
    """tp, Σs and the sum of the log-loss, with one logarithm for eight elements.

    It is that of a product of factors between 1 and 2.
    """
    pieces = math.gcd(input.numel(), 8)
    xs, ts = (tensor.reshape(pieces, -1).unbind(0) for tensor in (input, target))
    wrongs = [Wrong.of(x, t, maths) for x, t in zip(xs, ts)]
    tp = _total([(1 - each.s) * each.t for each in wrongs])
    total = _total([each.s for each in wrongs])
    positive = _total([each.positive for each in wrongs])
    product = functools.reduce(torch.mul, [1 + each.exponential for each in wrongs])
    return tp.sum(), total.sum(), (positive + product.log()).sum()


def _total(pieces: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, pieces)


ROW = 1024  # elements of several pixels that are added up as one row, at most


class Rows(NamedTuple):
    """How memory whose innermost dim is the classes is viewed: ``[-1, rows, width]``.

    A row holds several pixels, so that vectors are full with few classes too, and a block of
    ``rows`` rows fits into a fast cache while it is added up column by column.
    """

    rows: int
    width: int

    @staticmethod
    def of(case: Case) -> Rows:
        inner = case.channels_last or (len(case.shape) == 2 and case.labels is None)
        require(inner and case.shape[1] > 1, INNER_CLASSES_ONLY)
        classes = case.shape[1]
        pixels = case.elements // classes
        together = math.gcd(pixels, max(1, ROW // classes))
        width = together * classes
        return Rows(math.gcd(pixels // together, max(1, 16384 // width)), width)

    def view(self, tensor: Tensor) -> Tensor:
        """No copy is made, because the classes are innermost."""
        return tensor.movedim(1, -1).reshape(-1, self.rows, self.width)

    def undo(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.reshape(like.movedim(1, -1).shape).movedim(-1, 1)

    def fold(self, sums: Tensor, classes: int) -> Tensor:
        """Sums of columns to sums of classes."""
        return sums.sum(0).reshape(-1, classes).sum(0)


def rows_passes(case: Case, maths: Arithmetic) -> Passes:
    """Masks whose classes are innermost in memory, added up in blocks of rows."""
    require(case.labels is None, MASKS_ONLY)
    rows, classes = Rows.of(case), case.shape[1]
    require(not case.beside, ALONE_ONLY)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        hits, both = element_sums(input, target, maths, 2)
        tp, total = rows.fold(hits.sum(1), classes), rows.fold(both.sum(1), classes)
        kept = coefficients(tp, total)
        return dice(tp, total), kept.repeat(1, rows.width // classes)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = (kept * slope).unbind(0)
        p = sigmoid(input, maths)
        return (p * (1 - p) * (a + b * target.to(p.dtype))).to(input.dtype)

    return Passes(forward, backward, rows.view, rows.undo)


# ---- a softmax and class numbers -------------------------------------------------------------


def unrolled_passes(case: Case, maths: Arithmetic) -> Passes:
    """Few classes: the loop over them is written out, and each pass is one loop over pixels."""
    require(case.labels is not None, LABELS_ONLY)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        planes, target = Planes.of(input, maths), narrow(target)
        tp, total = planes.sums(target, case.samplewise)
        value = dice(tp, total)
        if case.beside:
            value = value + planes.cross_entropy(target)
        return value, coefficients(tp, total)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        p, target = Planes.of(input, maths).p, narrow(target)
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


def compared_passes(case: Case, maths: Arithmetic) -> Passes:
    """Many classes. A float per pixel is kept, which spares the backward pass two loops."""
    require(case.labels is not None, LABELS_ONLY)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        x, t = input.to(accumulator(input)), one_hot(narrow(target), input)
        log_total = x.logsumexp(1, keepdim=True)
        p = maths.exp(x - log_total)
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
        p = maths.exp(input.to(accumulator(input)) - log_total)
        t = one_hot(narrow(target), input)
        u = torch.where(t, a + b, a)
        gradient = p * (u - (p * u).sum(1, keepdim=True))
        if case.beside:
            gradient = gradient + torch.where(t, p - 1, p) * (slope / target.numel())
        return gradient.to(input.dtype)

    return Passes(forward, backward)
