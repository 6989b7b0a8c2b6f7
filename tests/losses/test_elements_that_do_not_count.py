"""What an element holds that is ignored or weighs 0, in any operand, reaches no loss and no
derivative of any kind, on any backend and under any transform."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from selection import covering
from torch import Tensor
from torch.utils._pytree import tree_leaves

import customloss

INF, NAN = float("inf"), float("nan")
F64 = torch.float64


class Batch(NamedTuple):
    """The operands, and where the elements are that do not count."""

    x: Tensor
    t: Tensor
    w: Tensor
    out: Tensor


def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(5, 3, 4, dtype=F64, generator=generator)
    t = torch.rand(5, 3, 4, dtype=F64, generator=generator).round()
    w = torch.rand(5, 3, 4, dtype=F64, generator=generator) + 0.5
    out = torch.rand(5, 3, 4, generator=generator) < 0.3
    return Batch(x, t, w, out)


# Every loss reads other sums: logarithms, squares, distances, focal terms.
LOSSES: dict[str, dict[str, Any]] = {
    "dice": {},
    "bce": {},
    "focal": {"label_smoothing": 0.1},
    "weighted_log": {"average": "micro"},
    "squared_dice": {"activation": "none"},
    "semimetric_dice": {"average": "none"},
    "dice_focal": {"class_weight": [1.0, 2.0, 0.5]},
    "dice_bce": {"samplewise": True, "ce_label_smoothing": 0.1},
}
BAD = (NAN, INF, -INF)


def ignored(clean: Batch, bad: float) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Ignored elements, with anything in the input and as weight."""
    x, t, w, out = clean
    return (x.masked_fill(out, bad), t.masked_fill(out, 255), w.masked_fill(out, bad)), {
        "ignore_index": 255
    }


def missing(clean: Batch, bad: float) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Targets that were not measured."""
    (x, t, w), _ = ignored(clean, bad)
    return (x, t.masked_fill(clean.out, NAN), w), {"nan_targets": "ignore"}


def unweighted(clean: Batch, bad: float) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Elements of weight 0, with anything in input and target."""
    x, t, w, out = clean
    return (x.masked_fill(out, bad), t.masked_fill(out, bad), w.masked_fill(out, 0.0)), {}


def impossible(clean: Batch, bad: float) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Elements of weight 0 whose prediction is certain and wrong, or too large to be squared."""
    x, t, w, out = clean
    wrong = torch.where(t == 1, -INF, INF) if bad == -INF else torch.full_like(x, 1e200)
    return (torch.where(out, wrong, x), t, w.masked_fill(out, 0.0)), {}


WAYS: dict[str, Callable[..., Any]] = {
    "ignored": ignored, "missing": missing, "unweighted": unweighted, "impossible": impossible,
}  # fmt: skip

Loss = Callable[..., Tensor]


def by_autograd(loss: Loss, *leaves: Tensor) -> Any:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    value = loss(*leaves)
    return value, torch.autograd.grad(value, leaves)


def second(loss: Loss, *leaves: Tensor) -> Any:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum((own.sin() * own).sum() for own in first), leaves)


def by_grad(loss: Loss, *leaves: Tensor) -> Any:
    return torch.func.grad_and_value(loss, argnums=tuple(range(len(leaves))))(*leaves)


def by_jvp(loss: Loss, *leaves: Tensor) -> Any:
    return torch.func.jvp(loss, leaves, tuple(torch.ones_like(leaf) for leaf in leaves))


def by_vmap(loss: Loss, *leaves: Tensor) -> Any:
    return torch.func.vmap(loss)(*(leaf[None] for leaf in leaves))


def by_vmap_of_grad(loss: Loss, *leaves: Tensor) -> Any:
    gradients = torch.func.grad(loss, argnums=tuple(range(len(leaves))))
    return torch.func.vmap(gradients)(*(leaf[None] for leaf in leaves))


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "backward": by_autograd, "second": second, "grad": by_grad, "jvp": by_jvp, "vmap": by_vmap,
    "vmap of grad": by_vmap_of_grad,
}  # fmt: skip


def _value(loss: Loss, constants: tuple[Tensor, ...], *leaves: Tensor) -> Tensor:
    return loss(*leaves, *constants).sum()


@covering
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_it_reaches_nothing(name: str, way: str, derivative: str, backend: str) -> None:
    """The results are those of a batch that holds something harmless there."""
    clean = batch()
    if LOSSES[name].get("activation") == "none":
        clean = clean._replace(x=clean.x.sigmoid())
    for bad in BAD:
        hurt, options = WAYS[way](clean, bad)
        loss = partial(getattr(customloss, f"{name}_loss"), **LOSSES[name], **options)
        harmless = [torch.where(clean.out, torch.full_like(own, 0.5), own) for own in hurt]
        if options:  # ignored by what the target holds
            harmless[1] = hurt[1]
        else:
            harmless[2] = hurt[2]
        # What is finite has a gradient by its weight of 0, which is no constant.
        linear = derivative not in ("second", "jvp") and way != "impossible"
        count = 3 if linear or options else 2
        results = []
        with customloss.backend(backend):
            for operands in (hurt, harmless):
                value = partial(_value, loss, operands[count:])
                results.append(tree_leaves(DERIVATIVES[derivative](value, *operands[:count])))
        for own, other in zip(*results, strict=True):
            assert own.isfinite().all()
            if own.shape[-3:] == clean.out.shape:
                assert not own[..., clean.out].any()
                other = other.masked_fill(clean.out, 0)
            torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-13)


# ---- of a softmax --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", ["cross_entropy", "dice_ce", "focal"])
def test_a_masked_class_of_a_pixel_without_weight(name: str, derivative: str, backend: str) -> None:
    """Its label has probability 0, so its log-loss is infinite; alone, or beside a NaN weight of an
    ignored pixel."""
    x = torch.tensor([[0.5, -0.3, 0.0], [1.0, -INF, 0.0], [NAN, INF, 0.1]], dtype=F64)
    y = torch.tensor([0, 1, 255])
    w = torch.tensor([[1.0], [0.0], [NAN]], dtype=F64)
    more: dict[str, Any] = {} if name == "cross_entropy" else {"activation": "softmax"}
    if name == "dice_ce":
        more["label_smoothing"] = 0.1
    loss = partial(getattr(customloss, f"{name}_loss"), ignore_index=255, **more)
    with customloss.backend(backend):
        found = tree_leaves(DERIVATIVES[derivative](lambda x: loss(x, y, w), x))
        wanted = tree_leaves(DERIVATIVES[derivative](lambda x: loss(x, y[:1], w[:1]), x[:1]))
    for own, other in zip(found, wanted, strict=True):
        if own.dim() > 1:
            assert not own[..., 1:, :].any()
            own = own[..., :1, :]
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("samples", [2, 3])
def test_a_weight_of_pixels_under_a_transform(samples: int) -> None:
    """It has the shape of the class numbers, also beside class options."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, 4, dtype=F64, generator=generator)
    y = torch.randint(0, 3, (samples, 4), generator=generator)
    w = torch.rand(samples, 4, dtype=F64, generator=generator)

    def loss(x: Tensor) -> Tensor:
        return customloss.dice_ce_loss(x, y, w, class_weight=[0.0, 1.0, 2.0])

    torch.testing.assert_close(torch.func.grad(loss)(x), by_autograd(loss, x)[1][0])


# ---- infinite terms that count for nothing -------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("derivative", ["backward", "second", "grad", "vmap of grad"])
@pytest.mark.parametrize(
    "options",
    [{"focal_alpha": 0.0}, {"pos_weight": 0.0}, {"focal_alpha": 0.0, "focal_split": True}],
)
def test_positives_without_weight(options: dict[str, Any], derivative: str, backend: str) -> None:
    """A positive that was taken for impossible has an infinite focal loss, times 0."""
    x = torch.tensor([[-INF, 1.0, -0.5]], dtype=F64)
    t = torch.tensor([[1.0, 1.0, 0.0]], dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return customloss.focal_loss(x, t, **options)

    with customloss.backend(backend):
        found = tree_leaves(DERIVATIVES[derivative](loss, x))
        wanted = tree_leaves(DERIVATIVES[derivative](loss, x.clamp_min(-200.0)))
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_an_infinite_focal_loss_has_the_gradient_of_a_large_one(
    activation: str, backend: str
) -> None:
    x = torch.tensor([[-INF, 1.0, -0.5], [0.0, 0.1, 0.2]], dtype=F64)
    t = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return customloss.focal_loss(x, t, activation=activation)

    with customloss.backend(backend):
        for derivative in (by_autograd, lambda f, x: (f(x), torch.func.grad(f)(x))):
            value, found = derivative(loss, x)
            _, wanted = derivative(loss, x.clamp_min(-700.0))
            assert value == INF
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_target_beside_infinite_focal_losses(backend: str) -> None:
    """Of positives that weigh nothing, and of negatives that were known to be negative."""
    x = torch.tensor([[-INF, 1.0]])
    for target, options in ((1.0, {"focal_alpha": 0.0}), (0.0, {}), (0.0, {"focal_split": True})):
        t = torch.tensor([[target, 1.0]], requires_grad=True)
        with customloss.backend(backend):
            loss = customloss.focal_loss(x, t, **options)
            (gradient,) = torch.autograd.grad(loss, t)
        assert loss.isfinite()
        if options != {"focal_split": True}:
            assert gradient.isfinite().all() and gradient[0, 0] == 0
        else:  # whose first base is 1 - p, whatever the target is
            assert gradient[0, 0] == INF
