"""Eager passes whose gradient is written by hand, block by block.

They are the strongest eager form of a training step on the CPU. They go through the tensors in
blocks and use the same few buffers for each, so that what lies between logits and sums stays in a
cache. As in ``analytic``, the backward pass computes p again, and only coefficients are kept. Where
the inputs are small the gradient is made at once, in as few operations as can be.

Sums over blocks are taken in float64. ``a`` and ``b`` are those of ``analytic``: dL/dp is a + b t.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from customloss._bench import at_once
from customloss._bench.analytic import Passes, Rows, apply, coefficients
from customloss._bench.cases import Case
from customloss._bench.formulas import (
    ALONE_ONLY,
    BESIDE_ONLY,
    BOOL_ONLY,
    INNER_CLASSES_ONLY,
    LABELS_ONLY,
    LATENCY_ONLY,
    MASKS_ONLY,
    ONE_GROUP_ONLY,
    PLANES_ONLY,
    Loss,
    accumulator,
    dice,
    group_dims,
    one_hot,
    require,
    with_beside,
)

BLOCK = 1 << 18  # elements, at most: a buffer of them is 1 MiB, of a cache of 2 MiB for each core

_aten: Any = torch.ops.aten


# ---- parts -----------------------------------------------------------------------------------


def blocks(buffers: int, size: int, *tensors: Tensor, dim: int = -1) -> Iterator[list[Tensor]]:
    """Slices of ``size`` along ``dim`` of all tensors, and as many buffers to work in.

    A buffer has the shape of the first slice and the dtype that is added up in. It is contiguous,
    for the last slice too, which may be shorter. What it held before is lost.
    """
    first, *_ = parts = [tensor.split(size, dim) for tensor in tensors]
    dtype = accumulator(first[0])
    whole = [torch.empty_like(first[0], dtype=dtype).contiguous() for _ in range(buffers)]
    for slices in zip(*parts):
        shape = slices[0].shape
        if shape != first[0].shape:
            whole = [buffer.view(-1)[: shape.numel()].view(shape) for buffer in whole]
        yield [*slices, *whole]


def sums_of(input: Tensor, count: int, *shape: int) -> list[Tensor]:
    """Zeros that sums over blocks are added to."""
    zeros = input.new_zeros((count, *shape), dtype=torch.float64)
    return list(zeros.unbind())


def sigmoid(x: Tensor, p: Tensor) -> Tensor:
    """Into the buffer ``p``, and in its dtype."""
    return torch.sigmoid(x, out=p) if x.dtype == p.dtype else p.copy_(x).sigmoid_()


def sigmoid_gradient(u: Tensor, p: Tensor, out: Tensor) -> Tensor:
    """u p (1 - p), into ``out``, or into ``u`` where ``out`` has a dtype of fewer digits."""
    where = out if out.dtype == u.dtype else u
    result: Tensor = _aten.sigmoid_backward.grad_input(u, p, grad_input=where)
    return result


def store(gradient: Tensor, out: Tensor) -> None:
    """Rounds a gradient to the dtype of ``out``, unless it is there already."""
    if gradient.dtype != out.dtype:
        out.copy_(gradient)


# ---- masks of one group ----------------------------------------------------------------------


def masks_form(case: Case) -> Loss:
    """One group, alone or with the loss beside it from the same blocks."""
    require(case.labels is None, MASKS_ONLY)
    require(len(case.shape) == 1 or case.shape[1] == 1, ONE_GROUP_ONLY)
    require(not case.beside or case.mask == torch.bool, BOOL_ONLY)
    passes = _beside_passes(case.beside == "focal") if case.beside else _mask_passes()
    return lambda input, target: apply(input, target, passes)


def _flat(buffers: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    return blocks(buffers, BLOCK, *(tensor.reshape(-1) for tensor in tensors))


def _kept(tp: Tensor, total: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the coefficients of its gradient."""
    return dice(tp, total).to(accumulator(input)), coefficients(tp, total)


def _mask_passes() -> Passes:
    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        tp, total = sums_of(input, 2)
        for x, t, p, q in _flat(2, input, target):
            sigmoid(x, p)
            t = t if t.dtype == q.dtype else q.copy_(t)
            tp += torch.dot(p, t)
            total += p.sum() + t.sum()
        return _kept(tp, total, input)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = (kept * slope).tolist()
        gradient = torch.empty_like(input)
        for x, t, g, p, u in _flat(2, input, target, gradient):
            sigmoid(x, p)
            u.copy_(t).mul_(b).add_(a)
            store(sigmoid_gradient(u, p, g), g)
        return gradient

    return Passes(forward, backward)


def log_loss(x: Tensor, t: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """-log of the probability of the right answer, max(y, 0) + log(1 + exp(-|y|)).

    y = x (1 - 2 t) is the logit of the wrong one. A term below 6e-8 becomes 0 in float32: log1p,
    which would keep it, takes twice as long.
    """
    y = out.copy_(x)
    y.addcmul_(t, y, value=-2)
    torch.abs(y, out=spare).neg_().exp_().add_(1).log_()
    return y.clamp_min_(0).add_(spare)


def _beside_passes(focal: bool) -> Passes:
    """With s = p - t the slope of the log-loss l is s. The focal loss is s² l."""

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        tp, total, beside = sums_of(input, 3)
        for x, t, p, q, lost, spare in _flat(4, input, target):
            sigmoid(x, p)
            q.copy_(t)
            tp += torch.dot(p, q)
            total += p.sum() + q.sum()
            log_loss(x, q, lost, spare)
            beside += torch.dot(p.sub_(q).square_(), lost) if focal else lost.sum()
        loss, kept = _kept(tp, total, input)
        return loss + (beside / input.numel()).to(loss.dtype), kept

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        a, b = (kept * slope).tolist()
        each = float(slope) / input.numel()
        gradient = torch.empty_like(input)
        for x, t, g, p, u, s, *spare in _flat(5 if focal else 3, input, target, gradient):
            sigmoid(x, p)
            u.copy_(t)
            torch.sub(p, u, out=s)
            beside = focal_slope(x, u, p, s, *spare) if focal else s
            u.mul_(b).add_(a)
            store(sigmoid_gradient(u, p, g).add_(beside, alpha=each), g)
        return gradient

    return Passes(forward, backward)


def focal_slope(x: Tensor, t: Tensor, p: Tensor, s: Tensor, lost: Tensor, out: Tensor) -> Tensor:
    """s² (2 (1 - t - p) l + s)."""
    log_loss(x, t, lost, out)
    torch.add(p, t, out=out).sub_(1).mul_(lost)
    return torch.sub(s, out, alpha=2, out=out).mul_(s).mul_(s)


# ---- masks whose classes are innermost -------------------------------------------------------


def rows_form(case: Case) -> Loss:
    """Blocks of rows of several pixels. Columns are added up by a product with ones."""
    require(case.labels is None, MASKS_ONLY)
    require(not case.beside, ALONE_ONLY)
    width = Rows.of(case).width
    classes = case.shape[1]
    rows = max(1, BLOCK // width)

    def by_rows(tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, width)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        ones = input.new_ones(rows, dtype=accumulator(input))
        tp, total = sums_of(input, 2, width)
        for x, t, p, q in blocks(2, rows, by_rows(input), by_rows(target), dim=0):
            sigmoid(x, p)
            q.copy_(t)
            one = ones[: len(x)]
            total += torch.mv(p.t(), one) + torch.mv(q.t(), one)
            tp += torch.mv(p.mul_(q).t(), one)
        return _kept(tp.view(-1, classes).sum(0), total.view(-1, classes).sum(0), input)

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        gradient = torch.empty_like(input)
        coefficient = (kept * slope).to(accumulator(input)).repeat(1, width // classes)
        a, b = coefficient.unbind()
        tensors = by_rows(input), by_rows(target), by_rows(gradient)
        for x, t, g, p, u in blocks(2, rows, *tensors, dim=0):
            sigmoid(x, p)
            u.copy_(t).mul_(b).add_(a)
            store(sigmoid_gradient(u, p, g), g)
        return gradient

    passes = Passes(forward, backward)
    return lambda input, target: apply(input, target, passes)


# ---- a softmax and class numbers -------------------------------------------------------------


def compare(target: Tensor, hit: Tensor) -> Tensor:
    """A one-hot of pixels into ``hit``. Written as floats it is vectorised, as bools it is not."""
    classes = torch.arange(len(hit), dtype=hit.dtype, device=hit.device)
    return torch.eq(target.to(hit.dtype), classes.unsqueeze(1), out=hit)


def planes_form(case: Case) -> Loss:
    """Classes that have a plane each: blocks of pixels, sample by sample."""
    require(case.labels is not None, LABELS_ONLY)
    require(len(case.shape) > 2 and not case.channels_last, PLANES_ONLY)
    samples, classes = case.shape[:2]

    def planes(buffers: int, *tensors: Tensor) -> Iterator[Iterator[list[Tensor]]]:
        """Of every sample its blocks."""
        flat = [tensor.flatten(2 if tensor.dim() == len(case.shape) else 1) for tensor in tensors]
        for each in zip(*flat):
            yield blocks(buffers, max(1, BLOCK // classes), *each)

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        tp, total = sums_of(input, 2, samples, classes)
        (log_p_sum,) = sums_of(input, 1)
        for n, sample in enumerate(planes(3, input, target)):
            for x, t, q, p, hit in sample:
                compare(t, hit)
                q.copy_(x)
                if case.beside:
                    _aten._log_softmax.out(q, 0, False, out=q)
                    torch.exp(q, out=p)
                    log_p_sum += torch.dot(q.view(-1), hit.view(-1))
                else:
                    _aten._softmax.out(q, 0, False, out=p)
                total[n] += p.sum(1) + hit.sum(1)
                tp[n] += p.mul_(hit).sum(1)
        if not case.samplewise:
            tp, total = tp.sum(0), total.sum(0)
        loss, kept = _kept(tp, total, input)
        return loss - (log_p_sum / target.numel()).to(loss.dtype), kept

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        gradient = torch.empty_like(input)
        coefficient = (kept * slope).to(accumulator(input)).unsqueeze(-1)
        each = float(slope) / target.numel()
        for n, sample in enumerate(planes(3, input, target, gradient)):
            a, b = coefficient[:, n] if case.samplewise else coefficient
            for x, t, g, q, p, hit in sample:
                _aten._softmax.out(q.copy_(x), 0, False, out=p)
                compare(t, hit)
                u = torch.mul(hit, b, out=q).add_(a)
                _aten._softmax_backward_data.out(u, p, 0, p.dtype, grad_input=q)
                if case.beside:
                    q.add_(p.sub_(hit), alpha=each)
                g.copy_(q)
        return gradient

    passes = Passes(forward, backward)
    return lambda input, target: apply(input, target, passes)


def picked_form(case: Case) -> Loss:
    """Rows of logits. p is kept, and those of the true classes are picked and added up."""
    require(case.labels is not None, LABELS_ONLY)
    require(len(case.shape) == 2 and not case.samplewise, INNER_CLASSES_ONLY)
    classes = case.shape[1]

    def forward(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        p = input.softmax(1, dtype=accumulator(input))
        true = target.long()
        hit = p.gather(1, true.unsqueeze(1)).squeeze(1)
        tp = torch.bincount(true, hit.double(), classes).to(p.dtype)
        total = p.sum(0) + torch.bincount(true, minlength=classes)
        return dice(tp, total), coefficients(tp, total), p

    def backward(slope: Tensor, input: Tensor, target: Tensor, kept: Tensor, p: Tensor) -> Tensor:
        a, b = kept * slope
        true = target.long()
        u = a.repeat(len(p), 1)
        u.scatter_add_(1, true.unsqueeze(1), b[true].unsqueeze(1))
        gradient: Tensor = _aten._softmax_backward_data(u, p, 1, p.dtype)
        return gradient.to(input.dtype)

    passes = Passes(forward, backward)
    return with_beside(lambda input, target: apply(input, target, passes), case)


# ---- latencies -------------------------------------------------------------------------------


def few_form(case: Case) -> Loss:
    """A vector of few logits, in as few operations as can be, with Python's numbers between."""
    require(case.latency, LATENCY_ONLY)
    require(case.labels is None, MASKS_ONLY)
    require(len(case.shape) == 1, ONE_GROUP_ONLY)

    def both(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        p = input.to(accumulator(input)).sigmoid()
        t = target.to(p.dtype)
        total = (p + t).sum().item()
        ratio = p.dot(t).item() / total
        u = torch.rsub(t, 2 * ratio / total, alpha=2 / total)
        loss = torch.scalar_tensor(1 - 2 * ratio, dtype=p.dtype, device=p.device)
        return loss, _aten.sigmoid_backward(u, p)

    return with_beside(lambda input, target: at_once.apply(input, target, both), case)


def one_product_form(case: Case) -> Loss:
    """Few labels with a cross-entropy, both from products with a one-hot. Autograd derives it."""
    require(case.latency, LATENCY_ONLY)
    require(case.labels is not None, LABELS_ONLY)
    require(bool(case.beside), BESIDE_ONLY)
    dims = group_dims(torch.empty(case.shape, device="meta"), case.samplewise)

    def loss(input: Tensor, target: Tensor) -> Tensor:
        log_p = input.log_softmax(1, dtype=accumulator(input))
        p, hit = log_p.exp(), one_hot(target, input).to(log_p.dtype)
        ratio = (p * hit).sum(dims) / torch.add(p, hit).sum(dims)
        return torch.rsub(ratio.mean(), 1, alpha=2) - (log_p * hit).sum() / target.numel()

    return loss
