"""A weight in the shape of the class numbers, ``[N, *spatial]``, is ``weight[:, None]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import customloss

F64 = torch.float64
SHAPES = [
    (3, 3, 5),
    (4, 3, 5),
    (2, 3, 4, 5),
    (2, 2, 4, 5),
    (2, 3, 1, 2, 4),
    (2, 1, 4, 5),
    (5, 2, 2, 2),
]


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and a weight; class numbers where there are classes."""
    places = (shape[0], *shape[2:])
    dense = torch.rand(shape) > 0.5
    target = dense if shape[1] == 1 else torch.randint(0, shape[1], places)
    return torch.randn(shape, dtype=F64), target, torch.rand(places, dtype=F64)


def all_gradients(call: Callable[..., Tensor], x: Tensor, t: Tensor, w: Tensor) -> list[Tensor]:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    loss = call(x, t, w)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), (x, w))]


CALLS: dict[str, Callable[..., Tensor]] = {
    "function": customloss.dice_loss,
    "module": customloss.SoftF1Loss(average="none", reduction="none"),
    "operator": torch.ops.customloss.tversky,
    "sums": torch.ops.customloss.confusion_sums,
    "confusion_sums": lambda *batch: torch.stack(customloss.confusion_sums(*batch)),
    "composed": customloss.mcc_loss,
    "class weights": lambda x, *batch: customloss.dice_loss(
        x, *batch, class_weight=[1.0, 2.0, 3.0][: x.shape[1]]
    ),
    "compound": customloss.dice_bce_loss,
    "ignored": lambda *batch: customloss.dice_loss(*batch, ignore_index=0, samplewise=True),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_route(shape: tuple[int, ...], call: str) -> None:
    """Loss and gradients, that by the weight in the weight's own shape."""
    x, t, w = batch(shape)
    found, wanted = (all_gradients(CALLS[call], x, t, each) for each in (w, w[:, None]))
    assert found[2].shape == w.shape
    for one, other in zip(found, wanted):
        assert torch.equal(one, other.reshape(one.shape))


@pytest.mark.parametrize("shape", [(3, 3, 5), (2, 2, 4, 5)], ids=str)
def test_the_shape_of_the_target_has_precedence(shape: tuple[int, ...]) -> None:
    """Where N is C the weight could be broadcast as one that all samples share."""
    x, t, w = batch(shape)
    for call in (customloss.dice_loss, torch.ops.customloss.soft_f1):
        assert call(x, t, w) == call(x, t, w[:, None]) != call(x, t, w[None])
        dense = torch.rand(shape) > 0.5
        assert call(x, dense, w) == call(x, dense, w[None]) != call(x, dense, w[:, None])


def test_other_shapes_broadcast_as_ever() -> None:
    x, t, w = batch((1, 3, 4, 5))
    assert torch.equal(customloss.dice_loss(x, t, w), customloss.dice_loss(x, t, w[:, None]))
    x, t, w = batch((2, 3, 4, 5))
    for shape in ((3, 1, 1), (3, 4, 5), (4, 5), (1, 4, 5), (5,), ()):
        each = torch.rand(shape, dtype=F64)
        wanted = customloss.dice_loss(x, t, each.expand(2, 3, 4, 5))
        torch.testing.assert_close(customloss.dice_loss(x, t, each), wanted)
    for shape in ((2, 4, 1), (2, 5, 4), (3, 2, 4, 5), (4, 4, 5)):
        with pytest.raises(ValueError, match=r"^weight: expected a shape that broadcasts to"):
            customloss.dice_loss(x, t, torch.rand(shape, dtype=F64))


def test_rows_and_dense_targets_need_a_dimension() -> None:
    """[N] beside [N, C] would be one number per class whenever N is C."""
    x, w = torch.randn(4, 3), torch.rand(4)
    with pytest.raises(ValueError, match=r"^weight: .*got \[4\]: weight\[:, None\] is one number"):
        customloss.dice_loss(x, torch.tensor([0, 2, 1, 1]), w)
    x, t, w = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5) > 0.5, torch.rand(2, 4, 5)
    with pytest.raises(ValueError, match=r"^weight: .*: weight\[:, None\] is one number"):
        customloss.dice_loss(x, t, w)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 1), (1, 0, 2)], ids=str)
def test_vmap(in_dims: tuple[Any, ...]) -> None:
    """The weight of one element of the batch is one of pixels."""
    batches = [batch((2, 3, 4, 5)) for _ in range(3)]
    stacked = [
        each[0] if dim is None else torch.stack(each, dim)
        for each, dim in zip(map(list, zip(*batches)), in_dims)
    ]
    for call in (torch.ops.customloss.soft_f1, customloss.dice_ce_loss, customloss.mcc_loss):
        expected = [
            call(*(b[0 if dim is None else i] for b, dim in zip(map(list, zip(*batches)), in_dims)))
            for i in range(3)
        ]
        torch.testing.assert_close(torch.vmap(call, in_dims)(*stacked), torch.stack(expected))


def test_func_and_second_derivatives() -> None:
    x, t, w = batch((4, 3, 5))
    by_weight = torch.func.grad(customloss.dice_loss, 2)(x, t, w)
    torch.testing.assert_close(by_weight, all_gradients(customloss.dice_loss, x, t, w)[2])
    x.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: customloss.dice_loss(x, t, w), (x, w))


def test_compile_and_export_keep_the_batch_size() -> None:
    """Neither reading ties a program to a number of samples."""
    torch._dynamo.reset()
    compiled = torch.compile(customloss.dice_ce_loss, fullgraph=True, backend="aot_eager")
    for n in (4, 5, 6):
        x, t, w = batch((n, 3, 6))
        x.requires_grad_()
        for operand in (x, t, w):
            torch._dynamo.mark_dynamic(operand, 0)
        with torch._dynamo.config.patch(error_on_recompile=n > 4):
            torch.testing.assert_close(compiled(x, t, w), customloss.dice_ce_loss(x, t, w))

    class Criterion(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, w: Tensor) -> Tensor:
            return customloss.dice_loss(x, t, w)

    n = torch.export.Dim("n", min=2)
    for shared in (False, True):
        x, t, w = batch((4, 3, 6))
        w = torch.rand(3, 6, dtype=F64) if shared else w
        shapes = ({0: n}, {0: n}, None if shared else {0: n})
        program = torch.export.export(Criterion(), (x, t, w), dynamic_shapes=shapes)
        for size in (5, 7):
            x, t, other = batch((size, 3, 6))
            w = w if shared else other
            wanted = customloss.dice_loss(x, t, w[None] if shared else w[:, None])
            torch.testing.assert_close(program.module()(x, t, w), wanted)


def test_fake_and_meta_tensors() -> None:
    x, t, w = (each.to("meta") for each in batch((2, 3, 4, 5)))
    w.requires_grad_()
    customloss.dice_loss(x, t, w).backward()
    assert w.grad is not None
    assert w.grad.shape == w.shape
