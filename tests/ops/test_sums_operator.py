"""PyTorch's checks accept ``sums_score``, ``sums_loss`` and ``compound``, with all derivatives.

test_sums_values.py checks the values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flat
import numpy as np
import pytest
import torch
from score_cases import BESIDE, F64, Case, case_of, scoring, sums_of, weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

from customloss._spec.arguments import Elements
from customloss._spec.words import AVERAGES, REDUCTIONS

ops = torch.ops.customloss

# ---- derivatives ---------------------------------------------------------------------------------

DIFFERENTIATED: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"samples": None, "weighted": "none"},
    "weighted": {"average": "weighted", "reduction": "sum", "weighted": "some are 0"},
    "samples": {"reduction": "none", "absent": "penalize", "link": "focal"},
    "log": {"link": "log", "ratio": "tversky", "beside": "softmax", "absent": "skip"},
    "classes": {"average": "none", "beside": "scaled", "weighted": "none", "reduction": "none"},
    "classes of a batch": {
        "average": "none", "beside": "unread", "weighted": "none", "reduction": "none",
        "samples": None, "ratio": "f2",
    },
    "no score": {"beside": "no score", "reduction": "none"},
    "weightless": {"weighted": "all are 0"},
}  # fmt: skip


def smooth_case(name: str) -> tuple[Case, Callable[[Tensor], Tensor]]:
    """A case without kinks, and its loss as a function of the sums."""
    case = case_of(special=False, classes=3, **DIFFERENTIATED[name])
    return case, lambda sums: ops.sums_loss(sums, case.class_weight, *case.how())


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradcheck(name: str) -> None:
    case, loss = smooth_case(name)
    sums = case.sums.requires_grad_()
    assert gradcheck(
        loss, sums, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True,
        nondet_tol=0.0,
    )  # fmt: skip
    assert gradgradcheck(loss, sums, nondet_tol=0.0)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_gradient_is_the_coefficients(name: str) -> None:
    """The gradient is the coefficients, bit by bit, or their product with the incoming gradient."""
    case, loss = smooth_case(name)
    sums = case.sums.requires_grad_()
    own, (_, coefficients) = loss(sums), ops.sums_score(sums.detach(), *case.arguments()[1:])
    (found,) = torch.autograd.grad(own.sum(), sums)
    assert torch.equal(found, coefficients)
    above = torch.rand_like(own) + 0.5
    expected = flat.sums_loss(sums, case.class_weight, *case.how())
    pair = [torch.autograd.grad(each, sums, above) for each in (loss(sums), expected)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-14)
    # The gradient of float64 sums is float64 even if the loss is float32.
    narrow = ops.sums_loss(sums, case.class_weight, *case.how(wide=False))
    (found,) = torch.autograd.grad(narrow, sums, above.float())
    torch.testing.assert_close(found, pair[1][0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["default", "weighted", "samples", "log"])
def test_third_derivatives(name: str) -> None:
    case, loss = smooth_case(name)
    sums, found = case.sums.requires_grad_(), []
    for function in (loss, lambda s: flat.sums_loss(s, case.class_weight, *case.how())):
        value = function(sums).sum()
        for _ in range(3):
            (by_sums,) = torch.autograd.grad(value, sums, create_graph=True)
            value = (by_sums**2 * torch.linspace(1, 2, by_sums.numel()).view_as(sums)).sum()
        found.append(value.detach())
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


def test_any_strides_and_no_gradient() -> None:
    """``sums_loss`` takes sums of any strides, and saves nothing if no gradient is needed."""
    case = case_of()
    expected = ops.sums_loss(*case.arguments())
    strided = case.sums.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    own = ops.sums_loss(strided, *case.arguments()[1:])
    assert torch.equal(own, expected) and own.grad_fn is not None
    (found,) = torch.autograd.grad(own, strided)
    assert torch.equal(found, ops.sums_score(*case.arguments())[1])
    assert expected.grad_fn is None
    with torch.no_grad():
        assert ops.sums_loss(strided, *case.arguments()[1:]).grad_fn is None


# ---- operators of torch --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_opcheck(name: str) -> None:
    case = smooth_case(name)[0]
    torch.library.opcheck(ops.sums_score.default, case.arguments())
    torch.library.opcheck(ops.sums_loss.default, case.arguments(wide=False))
    case.sums.requires_grad_()
    torch.library.opcheck(ops.sums_loss.default, case.arguments())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("average", AVERAGES)
def test_fake_shapes(average: str, reduction: str) -> None:
    def described(tensor: Tensor) -> tuple:
        return tensor.shape, tensor.dtype, tensor.stride()

    def every(operands: Any, how: tuple) -> list[Tensor]:
        return [*ops.sums_score(*operands, *how), ops.sums_loss(*operands, *how)]

    kind, beside = ("none", "unread") if average == "none" else ("any", "both")
    for samples, wide in ((None, True), (3, False), (0, True)):
        case = case_of(beside, kind, samples, average=average, reduction=reduction)
        real = every(case[:2], case.how(wide))
        with FakeTensorMode() as mode:
            operands = [None if t is None else mode.from_tensor(t) for t in case[:2]]
            fake = every(operands, case.how(wide))
        assert [described(each) for each in fake] == [described(each) for each in real]


def one_by_one(loss: Callable, *batches: Tensor) -> Tensor:
    return torch.stack([loss(*each) for each in zip(*batches)])


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_transforms(name: str) -> None:
    """Transforms run the reference, so they are compared with autograd of the kernel."""
    case, loss = smooth_case(name)
    sums = case.sums
    near = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
    direction = torch.linspace(-1, 1, sums.numel(), dtype=F64).view_as(sums)

    def total(sums: Tensor) -> Tensor:
        return loss(sums).sum()

    _, coefficients = ops.sums_score(*case.arguments())
    near(grad(total)(sums), coefficients)
    value, tangent = jvp(total, (sums,), (direction,))
    near(value, total(sums))
    near(tangent, (coefficients * direction).sum())
    leaf = sums.clone().requires_grad_()
    (by_leaf,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((by_leaf * direction).sum(), leaf)
    near((hessian(total)(sums) * direction).sum((3, 4, 5)), second)
    jacobian = jacrev(loss)(sums)
    near(jacobian.reshape(-1, *sums.shape).sum(0), coefficients)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap(reduction: str) -> None:
    """vmap over the sums, over the class weights, over both, and nested."""
    case = case_of(reduction=reduction, average="weighted", absent="skip")
    alone, same = case[:2]
    many = torch.stack([sums_of(9, seed=seed) for seed in range(3)])
    weighted = torch.stack([weights("some are 0", seed=seed) for seed in range(3)])
    near = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)

    def loss(sums: Tensor, weight: Tensor | None = same) -> Tensor:
        return ops.sums_loss(sums, weight, *case.how())

    def of_weights(weight: Tensor) -> Tensor:
        return loss(alone, weight)

    def by_sums(sums: Tensor, weight: Tensor) -> Tensor:
        return grad(lambda sums: loss(sums, weight).sum())(sums)

    near(vmap(loss)(many), one_by_one(loss, many))
    near(vmap(of_weights)(weighted), one_by_one(of_weights, weighted))
    near(vmap(loss)(many, weighted), one_by_one(loss, many, weighted))
    unweighted = partial(loss, weight=None)
    near(vmap(unweighted)(many), one_by_one(unweighted, many))
    moved = vmap(loss, (3, 1))(many.movedim(0, 3), weighted.movedim(0, 1))
    near(moved, one_by_one(loss, many, weighted))
    across = vmap(vmap(loss, (0, None)), (None, 0))(many, weighted)
    for i in range(3):
        near(across[i], one_by_one(partial(loss, weight=weighted[i]), many))
    coefficients = [ops.sums_score(*each, *case.how())[1] for each in zip(many, weighted)]
    near(vmap(by_sums)(many, weighted), torch.stack(coefficients))
    total = grad(lambda many: vmap(loss)(many, weighted).sum())
    near(total(many), torch.stack(coefficients))


def compound(x: Tensor, target: Tensor, w: Tensor | None, weight: Tensor | None) -> Tensor:
    """Dice and cross-entropy of a softmax, with one loss per sample."""
    elements = Elements(2, 1.0, 0.0, True, True, label_smoothing=0.1, extra=1)
    how = scoring(average="weighted", reduction="none")
    return ops.compound(x, target, w, weight, *elements, *how, *BESIDE["softmax"][1])


def pixels() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, soft labels, weights."""
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, 2, 4, 3, dtype=F64, generator=generator)
    w = torch.rand(2, 1, 3, dtype=F64, generator=generator)
    return x, t.softmax(1), w


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_compound(requires_grad: bool) -> None:
    x, t, w = (each.requires_grad_(requires_grad) for each in pixels())
    elements = Elements(2, 1.0, 0.0, True, True, label_smoothing=0.1, extra=1)
    numbers = (*elements, *scoring(reduction="none"), *BESIDE["softmax"][1])
    for operands in ((x, t.argmax(1), None, None), (x, t, w, weights("some are 0"))):
        torch.library.opcheck(ops.compound.default, (*operands, *numbers))


@pytest.mark.parametrize("weighted", ["none", "some are 0"])
def test_derivatives_of_compound(weighted: str) -> None:
    leaves = [each.requires_grad_() for each in pixels()]
    loss = partial(compound, weight=weights(weighted))
    assert gradcheck(loss, leaves, check_forward_ad=True, check_undefined_grad=True, nondet_tol=0.0)
    assert gradgradcheck(loss, leaves, nondet_tol=0.0)


def test_vmap_of_compound() -> None:
    x, t, w = pixels()
    many = torch.stack([x, x.sin(), x**2])
    weighted = torch.stack([weights("any", seed=seed) for seed in range(3)])
    near = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return compound(x, t, w, weight)

    def of_weights(weight: Tensor) -> Tensor:
        return loss(x, weight)

    near(vmap(loss)(many, weighted), one_by_one(loss, many, weighted))
    near(vmap(of_weights)(weighted), one_by_one(of_weights, weighted))
    moved = vmap(loss, (0, 2))(many, weighted.movedim(0, 2))
    near(moved, one_by_one(loss, many, weighted))
    by_weight = vmap(grad(lambda v, x: loss(x, v).sum()))(weighted, many)
    for own, weight, logits in zip(by_weight, weighted, many):
        near(own, jacrev(partial(loss, logits))(weight).sum(0))


def loss_of_weights(op: str) -> Callable[[Tensor], Tensor]:
    x, t, w = pixels()
    case = case_of(special=False)
    if op == "compound":
        return lambda weight: compound(x, t, w, weight).sum()
    return lambda weight: ops.sums_loss(case.sums, weight, *case.how())


@pytest.mark.parametrize("op", ["sums_loss", "compound"])
def test_learned_weights_of_classes_have_their_gradient(op: str) -> None:
    """A gradient or an error, but never silently no gradient."""
    loss, learned = loss_of_weights(op), weights("any").requires_grad_()
    try:
        value = loss(learned)
    except (TypeError, ValueError):
        return
    (found,) = torch.autograd.grad(value, learned)
    torch.testing.assert_close(found, grad(loss)(weights("any")))


@pytest.mark.parametrize("op", ["sums_loss", "compound"])
def test_transforms_by_the_weights_of_classes(op: str) -> None:
    loss, given, step = loss_of_weights(op), weights("any"), 1e-6
    by_weight = grad(loss)(given)
    for index in np.ndindex(*given.shape):
        change = torch.zeros_like(given)
        change[index] = step
        slope = (loss(given + change) - loss(given - change)) / (2 * step)
        assert float(by_weight[index]) == pytest.approx(float(slope), rel=1e-7, abs=1e-9)
