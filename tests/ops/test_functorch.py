"""vmap, grad, jvp, jacobians, hessians and their mixtures give the plain loss's derivatives."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import OPTIONS, Case
from judge import soft_f1
from selection import covering
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import customloss
from customloss import reference

F64 = torch.float64


@pytest.fixture(autouse=True)
def _no_slow_path() -> Any:
    """A warning about a missing batching rule is an error: a batch has to be one call."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def operands(*shape: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, soft targets and positive weights, with a batch dimension in front."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(batch, *shape, dtype=F64, generator=generator)
    t = torch.rand(batch, *shape, dtype=F64, generator=generator)
    w = torch.rand(batch, *shape, dtype=F64, generator=generator) + 0.1
    return x, t, w


def one_by_one(function: Callable, in_dims: tuple, *args: Tensor) -> Tensor:
    """The meaning of vmap: one call for each element of the batch."""
    size = next(arg.shape[dim] for arg, dim in zip(args, in_dims) if dim is not None)
    return torch.stack([
        function(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims)))
        for i in range(size)
    ])  # fmt: skip


IN_DIMS = [dims for dims in itertools.product((None, 0, 1, -1), repeat=3) if dims != (None,) * 3]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_over_every_argument(in_dims: tuple) -> None:
    given = [
        full[0] if dim is None else full.movedim(0, dim)
        for full, dim in zip(operands(4, 5), in_dims)
    ]
    own = vmap(soft_f1, in_dims)(*given)
    torch.testing.assert_close(own, one_by_one(reference.soft_f1, in_dims, *given))


@pytest.mark.parametrize("option", OPTIONS)
def test_vmap_options(option: str) -> None:
    options = OPTIONS[option]

    def own(x: Tensor, t: Tensor) -> Tensor:
        return soft_f1(x, t, **options)

    def judge(x: Tensor, t: Tensor) -> Tensor:
        return reference.soft_f1(x, t, **options)

    for shape in ((4, 3), (4, 3, 2), (5,)):
        x, t, _ = operands(*shape)
        if "activation" in options:
            x = x.sigmoid()
        torch.testing.assert_close(vmap(own)(x, t), one_by_one(judge, (0, 0), x, t))


@pytest.mark.parametrize("weight", ["class", "sample", "scalar", "fewer"])
def test_vmap_over_broadcast_weights(weight: str) -> None:
    x, t, w = operands(4, 5, 2)
    w = {"class": w[:, 0, :, :1], "sample": w[:, :, :1, :1], "scalar": w[:, 0, 0, 0],
         "fewer": w[:, 0, 0]}[weight]  # fmt: skip
    for in_dims in ((0, 0, 0), (None, None, 0), (0, None, None)):
        given = [full[0] if d is None else full for full, d in zip((x, t, w), in_dims)]
        own = vmap(soft_f1, in_dims)(*given)
        torch.testing.assert_close(own, one_by_one(reference.soft_f1, in_dims, *given))


def test_vmap_of_vmap_and_out_dims() -> None:
    x, t, _ = (each.reshape(2, 3, 4, 5) for each in operands(4, 5, batch=6))
    own = vmap(vmap(soft_f1))(x, t)
    expected = torch.stack([one_by_one(reference.soft_f1, (0, 0), a, b) for a, b in zip(x, t)])
    torch.testing.assert_close(own, expected)
    across = vmap(vmap(soft_f1, (0, None)), (None, 0))(x[0], t[0])
    assert across.shape == (3, 3)
    torch.testing.assert_close(across[1, 2], reference.soft_f1(x[0, 2], t[0, 1]))

    def groups(x: Tensor, t: Tensor) -> Tensor:
        return soft_f1(x, t, average="none", reduction="none")

    torch.testing.assert_close(vmap(groups, out_dims=1)(x[0], t[0]), vmap(groups)(x[0], t[0]).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vmap_dtypes(dtype: torch.dtype) -> None:
    x, t, w = (each.to(dtype) for each in operands(4, 5))
    own = vmap(soft_f1)(x, t > 0.5, w)
    assert own.dtype == torch.float32
    expected = one_by_one(reference.soft_f1, (0, 0, 0), x.double(), t > 0.5, w.double())
    torch.testing.assert_close(own.double(), expected, rtol=1e-6, atol=0)


def test_vmap_of_confusion_sums() -> None:
    x, t, w = operands(4, 5)

    def own(*given: Tensor) -> Tensor:
        return torch.stack(customloss.confusion_sums(*given))

    def judge(*given: Tensor) -> Tensor:
        return reference.confusion(*given, "sigmoid", 1.0, 0.0, False, True)[:, 0]

    torch.testing.assert_close(vmap(own)(x, t, w), one_by_one(judge, (0, 0, 0), x, t, w))


def test_vmap_of_an_empty_batch_and_of_nothing() -> None:
    x = torch.zeros(3, 0, 4, dtype=F64)
    assert torch.equal(vmap(soft_f1)(x, x), torch.zeros(3, dtype=F64))


# ---- derivatives ---------------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("option", ["default", "everything", "samplewise", "log", "weighted"])
@pytest.mark.parametrize("argnum", [0, 1, 2])
def test_derivatives(argnum: int, option: str) -> None:
    """Each transform has the derivatives of the reference, also of losses with several values."""
    x, t, w = (each[0] for each in operands(4, 3))
    options = OPTIONS[option]
    tangents = tuple(torch.randn_like(each) for each in (x, t, w))

    def of(op: Callable) -> dict[str, Any]:
        def loss(*given: Tensor) -> Tensor:
            return op(*given, **options)

        def total(*given: Tensor) -> Tensor:
            return loss(*given).sum()

        value, pullback = vjp(loss, x, t, w)
        return {
            "grad": grad(total, argnum)(x, t, w),
            "vjp": pullback(torch.ones_like(value)),
            "jvp": jvp(loss, (x, t, w), tangents),
            "jacrev": jacrev(loss, argnum)(x, t, w),
            "jacfwd": jacfwd(loss, argnum)(x, t, w),
            "hessian": hessian(total, argnum)(x, t, w),
            "reverse over forward": jacrev(jacfwd(total, argnum), argnum)(x, t, w),
        }

    own, expected = of(soft_f1), of(reference.soft_f1)
    for name, wanted in expected.items():
        torch.testing.assert_close(own[name], wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_mixtures_with_vmap() -> None:
    x, t, w = operands(4, 3)
    for argnum in range(3):
        own = vmap(grad(soft_f1, argnum))(x, t, w)
        torch.testing.assert_close(
            own, one_by_one(grad(reference.soft_f1, argnum), (0, 0, 0), x, t, w)
        )

        def total(op: Callable, *given: Tensor) -> Tensor:
            return vmap(op)(*given).sum()

        torch.testing.assert_close(
            grad(lambda *g: total(soft_f1, *g), argnum)(x, t, w),
            grad(lambda *g: total(reference.soft_f1, *g), argnum)(x, t, w),
        )
    own = vmap(hessian(soft_f1))(x, t, w)
    torch.testing.assert_close(own, one_by_one(hessian(reference.soft_f1), (0, 0, 0), x, t, w))


def test_vmap_inside_ordinary_autograd() -> None:
    x, t, w = operands(4, 3)
    leaves = [each.clone().requires_grad_() for each in (x, t, w)]
    found = torch.autograd.grad(vmap(soft_f1)(*leaves).square().sum(), leaves)
    judged = [each.clone().requires_grad_() for each in (x, t, w)]
    losses = one_by_one(reference.soft_f1, (0, 0, 0), *judged)
    for own, wanted in zip(found, torch.autograd.grad(losses.square().sum(), judged)):
        torch.testing.assert_close(own, wanted)


def test_transforms_are_those_of_the_kernels_in_float32() -> None:
    """Transforms run the reference, in which confident logits must keep their gradient too."""
    x = torch.tensor([-30.0, -17.5, -8.0, 0.5, 8.0, 17.5, 30.0])
    t = torch.tensor([True, False, True, True, False, True, False])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(soft_f1(leaf, t), leaf)
    torch.testing.assert_close(grad(soft_f1)(x, t), expected, rtol=1e-5, atol=0)
    _, tangent = jvp(lambda x: soft_f1(x, t), (x,), (torch.eye(7)[5],))
    torch.testing.assert_close(tangent, expected[5], rtol=1e-5, atol=0)


def test_forward_mode_without_functorch() -> None:
    sample = Case("x", (5, 4), target=None, weight="full").build(F64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(sample.input, torch.ones_like(sample.input))
        loss = soft_f1(dual, sample.target, sample.weight)
        value, tangent = torch.autograd.forward_ad.unpack_dual(loss)
    x = sample.input.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_f1(x, sample.target, sample.weight), x)
    torch.testing.assert_close(tangent, gradient.sum())
    torch.testing.assert_close(value, soft_f1(*sample.operands))


def test_autograd_functional() -> None:
    sample = Case("x", (3, 2)).build(F64)
    for transform in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        own = transform(lambda x: soft_f1(x, sample.target), sample.input)
        expected = transform(lambda x: reference.soft_f1(x, sample.target), sample.input)
        torch.testing.assert_close(own, expected)


def test_per_sample_gradients_of_a_model() -> None:
    """The usual application of vmap(grad)."""
    model = torch.nn.Linear(6, 3).double()
    parameters = dict(model.named_parameters())
    x, t = torch.randn(5, 8, 6, dtype=F64), torch.rand(5, 8, 3) < 0.4

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return customloss.soft_f1_loss(functional_call(model, parameters, (x,)), t)

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, t)
    for i in range(5):
        model.zero_grad()
        reference.soft_f1(model(x[i]), t[i]).backward()
        torch.testing.assert_close(found["weight"][i], model.weight.grad)


# ---- a pixel with a very large loss --------------------------------------------------------------

CLASS_NUMBERS = torch.tensor([0, 1, 2])
LARGE_LOSSES: dict[str, tuple[Callable, dict[str, Any]]] = {
    "cross_entropy": (customloss.cross_entropy_loss, {}),
    "focal": (customloss.focal_loss, {}),
    "softmax focal": (customloss.focal_loss, {"activation": "softmax", "focal_gamma": 0.5}),
    "bce": (customloss.bce_loss, {"pos_weight": torch.tensor([1.0, 2.0, 3.0, 1.0])}),
    "weighted log": (customloss.weighted_log_loss, {"average": "micro"}),
    "dice_ce": (customloss.dice_ce_loss, {}),
    "weighted classes": (customloss.dice_ce_loss, {"class_weight": torch.tensor([1.0, 2, 3, 1])}),
    "dice_bce": (customloss.dice_bce_loss, {}),
    "dice_focal": (customloss.dice_focal_loss, {}),
    "composed": (
        partial(customloss.compound_loss, "g_mean"),
        {"activation": "softmax", "cross_entropy_weight": 1.0},
    ),
}


def with_large_loss(name: str, logit: float, dtype: torch.dtype) -> tuple[Callable, Tensor, Tensor]:
    """A loss of logits and targets, and those, of which one pixel has a loss of about ``logit``."""
    function, options = LARGE_LOSSES[name]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 1] = logit
    t = torch.nn.functional.one_hot(CLASS_NUMBERS, 4).to(dtype)
    return partial(function, **options), x, t


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", LARGE_LOSSES)
def test_a_very_large_loss_of_one_pixel_moves_no_other(name: str, dtype: torch.dtype) -> None:
    """The other pixels have the gradient that they have beside a loss of 1e3, by every transform:
    the logits have no influence on what the loss is divided by."""
    loss, x, t = with_large_loss(name, 1e3, F64)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf, t), leaf)[0][1:].to(dtype)
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    for logit in (1e4, 1e6, 1e8, 1e10, *((1e16, 1e18) if dtype == F64 else ())):
        loss, x, t = with_large_loss(name, logit, dtype)

        def of_logits(x: Tensor, loss: Callable = loss, t: Tensor = t) -> Tensor:
            return loss(x, t)

        found = [
            grad(of_logits)(x),
            vmap(grad(of_logits))(x[None])[0],
            jacfwd(of_logits)(x),
            vjp(of_logits, x)[1](torch.ones((), dtype=dtype))[0],
        ]
        for each in found:
            torch.testing.assert_close(each[1:], expected, **tolerance)


@pytest.mark.parametrize("name", LARGE_LOSSES)
def test_a_very_large_loss_beside_learned_targets_and_weights(name: str) -> None:
    """What a loss is divided by has its derivative by these, and mixed ones, as in float64."""
    found = []
    for dtype in (F64, torch.float32):
        loss, x, t = with_large_loss(name, 1e6, dtype)
        operands = (x, t, torch.tensor([[1.0], [2.0], [0.5]], dtype=dtype))
        leaves = [each.clone().requires_grad_() for each in operands]
        once = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        mixed = torch.autograd.grad(once[1].sum() + once[2].sum(), leaves[0])[0]
        by_all = grad(loss, (0, 1, 2))(*operands)
        rows = jacfwd(grad(loss, 2))(*operands)
        found.append([*once[1:], *by_all[1:], *(each[1:] for each in (once[0], mixed, by_all[0])),
                      rows[..., 1:, :]])  # fmt: skip
    for wide, narrow in zip(*found, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LARGE_LOSSES)
def test_derivatives_beside_learned_targets_and_weights(name: str) -> None:
    """Of every order and by every transform, as those of autograd."""
    loss, x, t = with_large_loss(name, 1.5, F64)
    operands = (x, 0.9 * t + 0.02, torch.tensor([[1.0], [2.0], [0.5]], dtype=F64))
    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in operands])
    assert torch.autograd.gradgradcheck(loss, operands)
    operands = tuple(each.detach() for each in operands)
    for argnums in (0, 1, 2):
        leaves = [each.clone().requires_grad_() for each in operands]
        (own,) = torch.autograd.grad(loss(*leaves), leaves[argnums], create_graph=True)
        torch.testing.assert_close(grad(loss, argnums)(*operands), own.detach())
        torch.testing.assert_close(jacfwd(loss, argnums)(*operands), own.detach())
        for other in (0, 1, 2):
            (again,) = torch.autograd.grad(own.sum(), leaves[other], retain_graph=True)
            for way in (jacrev, jacfwd):
                rows = way(lambda *given, at=argnums: grad(loss, at)(*given).sum(), other)
                torch.testing.assert_close(rows(*operands), again)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_forward_mode_by_the_weights_of_classes(average: str) -> None:
    """Pooled sums depend on them, though targets and weights of elements are constants."""
    x, t, _ = operands(4, 5)

    def loss(weight: Tensor) -> Tensor:
        result: Tensor = customloss.weighted_log_loss(
            x[0], t[0], average=average, class_weight=weight
        )
        return result

    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(weight), weight)
    torch.testing.assert_close(jacfwd(loss)(weight.detach()), expected)
    torch.testing.assert_close(jacrev(loss)(weight.detach()), expected)
