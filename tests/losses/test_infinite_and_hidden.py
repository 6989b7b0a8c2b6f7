"""An infinite log-loss spoils no gradient, and what a class of weight 0 holds reaches nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case, Sample, short
from hidden import assert_hidden, spoiled
from selection import covering
from torch import Tensor
from torch.utils._pytree import tree_leaves

import customloss
from customloss.losses.base import LOSSES

INF, NAN = float("inf"), float("nan")
BACKENDS = ["auto", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_on_a_masked_class(backend: str) -> None:
    """As in torch, the loss is infinite and the gradients are finite."""
    x = torch.tensor([[1.0, 2.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    y = torch.tensor([2, 1])
    expected = F.cross_entropy(x, y)
    (wanted,) = torch.autograd.grad(expected, x)
    assert wanted.isfinite().all()
    with customloss.backend(backend):
        loss = customloss.dice_ce_loss(x, y, dice_weight=0.0)
        (gradient,) = torch.autograd.grad(loss, x)
    assert loss == expected == INF
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("logits", "known"),
    [
        ([1.0, 2.0, -INF], True), ([0.0, -INF, -INF], True), ([-INF, -INF, -INF], False),
        ([1.0, 2.0, INF], False), ([INF, INF, 0.0], False), ([1.0, 2.0, NAN], False),
    ],
)  # fmt: skip
def test_logits_that_make_a_nan_of_a_softmax(
    logits: list[float], known: bool, backend: str
) -> None:
    """As docs/nan.md says: one is +inf, or all are -inf."""
    x = torch.tensor([logits, [0.0, 1.0, 2.0]], requires_grad=True)
    with customloss.backend(backend):
        for loss in (customloss.dice_ce_loss, customloss.cross_entropy_loss):
            value = loss(x, torch.tensor([0, 1]))
            (gradient,) = torch.autograd.grad(value, x)
            assert value.isfinite() == known
            assert value.isnan() != known
            assert gradient.isfinite().all() == known


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_binary_target_that_was_impossible(backend: str) -> None:
    x = torch.tensor([[-INF, 0.5], [1.0, 2.0]], requires_grad=True)
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with customloss.backend(backend):
        loss = customloss.dice_bce_loss(x, t, dice_weight=0.0)
        (gradient,) = torch.autograd.grad(loss, x)
    assert loss == INF
    torch.testing.assert_close(gradient, (x.detach().sigmoid() - t) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["dice_bce", "dice_focal"])
def test_a_class_of_weight_0_in_the_value(name: str, backend: str) -> None:
    x, t = torch.randn(6, 3), torch.rand(6, 3) > 0.5
    criterion = customloss.loss(name, class_weight=[0.0, 1.0, 1.0])
    hurt = x.clone()
    hurt[:, 0] = NAN
    with customloss.backend(backend):
        torch.testing.assert_close(criterion(hurt, t), criterion(x, t))
        z = hurt.requires_grad_()  # the route with a gradient is another
        torch.testing.assert_close(criterion(z, t).detach(), criterion(x, t))


# ---- classes that do not count -------------------------------------------------------------------

HIDDEN = (0, 2)
# Ways to say that the classes 0 and 2 of 4 do not count.
HIDING: dict[str, dict[str, Any]] = {
    "list": {"class_weight": [0.0, 1.0, 0.0, 2.0]},
    "tensor": {"class_weight": torch.tensor([0.0, 1.0, 0.0, 2.0])},
    "learned": {"class_weight": torch.tensor([0.0, 1.0, 0.0, 2.0]).requires_grad_()},
    "classes": {"classes": (3, 1)},
    "both": {"classes": (1, 2, 3), "class_weight": [1.0, 1.0, 0.0, 2.0]},
    "background": {"include_background": False, "class_weight": [1.0, 1.0, 0.0, 2.0]},
}

OF_SCORE_ALONE = ("classes", "both", "background")  # a pointwise loss is about all classes
AVERAGES: dict[str, dict[str, Any]] = {
    "macro": {},
    "micro": {"average": "micro", "smooth": 1.0},
    "weighted": {"average": "weighted"},
    "none": {"average": "none", "reduction": "none"},
    "none_mean": {"average": "none"},
    "samplewise": {"samplewise": True, "reduction": "none"},
    "samplewise_micro": {"samplewise": True, "average": "micro"},
    "samplewise_weighted": {"samplewise": True, "average": "weighted", "absent": "penalize"},
    "samplewise_skip": {"samplewise": True, "absent": "skip"},
}
COMPOUNDS = ("dice_bce", "dice_ce", "dice_focal", "tversky_ce")
OF_ALL_CLASSES = ("generalized_dice", "multiclass_mcc")
ALONE = ("bce", "cross_entropy", "focal")  # they have no score
OF_SIGMOIDS = ("any", "bce", "dice_bce", "sigmoid_f1", "weighted_log")
OF_SOFTMAX = ("cross_entropy",)
NAMES = tuple(name for name in LOSSES if name not in ("custom_f1", *OF_SOFTMAX))
LAYOUTS = ("contiguous", "class_last", "sliced", "transposed")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def loss_of(name: str, hiding: str, average: str, **more: Any) -> Callable[..., Tensor] | None:
    """The loss, or None if it has no such option."""
    options = {**HIDING[hiding], **AVERAGES[average], **more}
    known = LOSSES[name].defaults
    if name in ALONE and (set(AVERAGES[average]) - set(known) or hiding in OF_SCORE_ALONE):
        return None
    options = {k: v for k, v in options.items() if name not in ALONE or k != "reduction"}
    if name in COMPOUNDS and (options.get("average") == "none" or hiding in OF_SCORE_ALONE):
        return None
    if name in OF_ALL_CLASSES and average[-5:] != "micro" and hiding != "classes":
        return None  # one score of all classes, which have no weights
    if name in (*COMPOUNDS, "multiclass_mcc"):
        options.setdefault("activation", "sigmoid")
    options = {key: value for key, value in options.items() if key in known}
    return partial(getattr(customloss, f"{name}_loss"), **options)


def losses(name: str, **more: Any) -> list[tuple[str, Callable[..., Tensor]]]:
    """The loss with every way to hide and every average that it has."""
    made = [
        (f"{hiding}-{average}", loss_of(name, hiding, average, **more))
        for hiding in HIDING
        for average in AVERAGES
    ]
    return [(label, loss) for label, loss in made if loss is not None]


def batch(name: str, layout: str, dtype: torch.dtype, seed: int, **more: Any) -> Sample:
    shape = ((3, 4, 5), (7, 4), (2, 4, 3, 6))[seed % 3]
    given = {"target": (None, torch.bool)[seed // 2 % 2], "weight": (None, "full")[seed % 2]}
    options = {"activation": "none"} if name == "any" else {}
    case = Case(f"hidden-{seed}", shape, layout=layout, options=options, **{**given, **more})
    return case.build(dtype, seed=seed)._replace(options={})


@covering
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_does_not_count(
    name: str, layout: str, dtype: torch.dtype, backend: str
) -> None:
    """Neither for the loss nor for a gradient, by the input, the target or a weight."""
    for seed, (_, loss) in enumerate(losses(name)):
        with customloss.backend(backend):
            assert_hidden(loss, batch(name, layout, dtype, seed), HIDDEN, layout=layout)


# What makes the kernels read pixels: of a sigmoid or of probabilities.
READINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # options, and what the batch is
    "ignored": ({"ignore_index": -1}, {"target": torch.int64}),
    "smoothed": ({"label_smoothing": 0.1}, {}),
    "numbers": ({"out_of_range": "ignore"}, {"kind": "numbers", "target": torch.int64}),
    "scaled": ({"logit_scale": -2.0, "logit_offset": 0.5}, {}),
}


@covering
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_does_not_count_among_pixels(name: str, reading: str, backend: str) -> None:
    options, kind = READINGS[reading]
    options = {key: value for key, value in options.items() if key in LOSSES[name].defaults}
    for seed, (_, loss) in enumerate(losses(name, **options)):
        layout, dtype = LAYOUTS[seed % 4], DTYPES[seed % 3]
        sample = batch(name, layout, dtype, seed, **kind)
        with customloss.backend(backend):
            assert_hidden(loss, sample, HIDDEN, layout=layout)


@covering
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    "name", [*OF_SOFTMAX, *(name for name in NAMES if name not in OF_SIGMOIDS)]
)
def test_the_target_of_a_class_of_a_softmax(name: str, dtype: torch.dtype, backend: str) -> None:
    """A NaN logit makes a NaN of every class of its pixel, but a NaN target or weight does not."""
    for seed, (_, loss) in enumerate(losses(name, activation="softmax")):
        layout = LAYOUTS[seed % 4]
        sample = batch(name, layout, dtype, seed, target=None)
        with customloss.backend(backend):
            assert_hidden(loss, sample, HIDDEN, softmax=True, layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "samplewise"])
def test_positives_that_weigh_nothing(average: str, backend: str) -> None:
    """``pos_weight`` and ``class_weight`` together, and an infinite log-loss of a positive."""
    pos_weight = torch.tensor([1.0, 2.0, 0.0, 0.0]).requires_grad_()
    loss = loss_of("dice_bce", "list", average, pos_weight=pos_weight)
    assert loss is not None
    sample = batch("dice_bce", "contiguous", torch.float64, 2)
    with customloss.backend(backend):
        assert_hidden(loss, sample, HIDDEN)
        by_positives = []
        for each in (sample, spoiled(sample, HIDDEN)):
            value = loss(*each.operands).sum()
            by_positives.append(torch.autograd.grad(value, pos_weight)[0])
        clean, found = by_positives
        assert torch.equal(clean, found) and not found[list(HIDDEN)].any()
        x, t, w, _ = sample
        x[:, 3] = -INF  # class 3 counts, its positives do not
        value = loss(x.requires_grad_(), t, w)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()


@covering
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("hiding", ["list", "learned"])
@pytest.mark.parametrize("name", ["dice", "mcc", "dice_bce", "squared_dice"])
def test_a_class_that_does_not_count_over_micro_batches(
    name: str, hiding: str, samplewise: bool
) -> None:
    """The sums of both parts are added before the loss is made of them."""
    criterion = customloss.loss(name, samplewise=samplewise, **HIDING[hiding])
    sample = batch(name, "contiguous", torch.float64, 0, target=None, weight="full")
    results = []
    for each in (sample, spoiled(sample, HIDDEN)):
        parts = [[own.requires_grad_() for own in (x[:1], x[1:])] for x in each.operands]
        batches = customloss.accumulate(criterion)
        with batches:
            for part in zip(*parts):
                batches.add(*part)
            found = [torch.autograd.grad(batches.loss(*part), part) for part in zip(*parts)]
        assert all(leaf.isfinite().all() for leaf in tree_leaves(found))
        results.append(found)
    assert all(torch.equal(*pair) for pair in zip(*map(tree_leaves, results), strict=True))


# ---- other derivatives ---------------------------------------------------------------------------

Transform = Callable[[Callable[[Tensor], Tensor], Tensor], Any]


def _grad(function: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    return torch.func.grad(lambda x: function(x).sum())(x)


TRANSFORMS: dict[str, Transform] = {
    "grad": _grad,
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x[None].expand(2, *x.shape)),
    "grad of vmap": lambda f, x: torch.func.grad(lambda x: torch.func.vmap(f)(x[None]).sum())(x),
    "vmap of grad": lambda f, x: torch.func.vmap(partial(_grad, f))(x[None].expand(2, *x.shape)),
}


@covering
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_does_not_count_under_transforms(name: str, transform: str) -> None:
    make = TRANSFORMS[transform]
    first = list(TRANSFORMS).index(transform)
    for seed, (label, loss) in enumerate(losses(name)[first % 7 :: 7]):
        sample = batch(name, "contiguous", torch.float64, seed, target=None)
        hurt = spoiled(sample, HIDDEN)
        results = []
        for x, t, w, _ in (sample, hurt):
            results.append((
                make(lambda x, t=t, w=w, f=loss: f(x, t, w), x),
                make(lambda t, x=x, w=w, f=loss: f(x, t, w), t),
            ))  # fmt: skip
        assert all(leaf.isfinite().all() for leaf in tree_leaves(results)), label
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@covering
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_a_class_that_does_not_count(name: str, backend: str) -> None:
    for seed, (label, loss) in enumerate(losses(name)):
        sample = batch(name, "contiguous", torch.float64, seed, target=None, weight="full")
        results = []
        for each in (sample, spoiled(sample, HIDDEN)):
            leaves = [operand.detach().requires_grad_() for operand in each.operands]
            with customloss.backend(backend):
                value = loss(*leaves).sum()
                first = torch.autograd.grad(value, leaves, create_graph=True)
                total = sum((own.sin() * own).sum() for own in first)
                results.append((value, first, torch.autograd.grad(total, leaves)))
        assert all(leaf.isfinite().all() for leaf in tree_leaves(results)), label
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


# ---- learned weights -----------------------------------------------------------------------------

LEARNED = [
    (name, average)
    for name in ("dice", "mcc", "dice_bce", "squared_dice")
    for average in AVERAGES
    if loss_of(name, "learned", average) is not None
]


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize(("name", "average"), LEARNED)
def test_a_learned_weight_of_0(name: str, average: str, transformed: bool) -> None:
    """It has its derivative where the class is finite, and else 0."""
    weight = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    sample = batch(name, "contiguous", torch.float64, 0, target=None)
    function, options = getattr(customloss, f"{name}_loss"), dict(AVERAGES[average])
    if "smooth" not in LOSSES[name].defaults:
        options.pop("smooth", None)

    def by_weight(each: Sample) -> Tensor:
        def loss(v: Tensor) -> Tensor:
            return function(*each.operands, class_weight=v, **options).sum()

        if transformed:
            return torch.func.grad(loss)(weight)
        leaf = weight.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    def value(v: Tensor) -> Tensor:
        return function(*sample.operands, class_weight=v, **options).sum()

    found, step = by_weight(sample), 1e-6
    for cls in HIDDEN:
        moved = weight.clone()
        moved[cls] = step
        slope = (value(moved) - value(weight)) / step
        torch.testing.assert_close(found[cls], slope, rtol=1e-4, atol=1e-5)
    hurt = by_weight(spoiled(sample, HIDDEN))
    assert not hurt[list(HIDDEN)].any()
    kept = [1, 3]
    torch.testing.assert_close(hurt[kept], found[kept], rtol=1e-12, atol=1e-14)


# ---- weights and scores of classes that do not count ---------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_the_weight_of_a_class_that_is_not_scored(bad: float, average: str, backend: str) -> None:
    x, t = torch.randn(4, 3), torch.rand(4, 3).round()
    y = torch.tensor([0, 1, 1, 0])

    def losses(weight: float) -> tuple[Tensor, ...]:
        of_class = torch.tensor([weight, 2.0, 3.0])
        chosen = {"include_background": False, "average": average}
        scored = customloss.dice_loss(x, t, class_weight=of_class, **chosen)
        composed = customloss.mcc_loss(x, t, class_weight=of_class, **chosen)
        parts = {"pointwise_class_weight": of_class, "pointwise_classes": (1, 2)}
        return scored, composed, customloss.dice_ce_loss(x, y, **parts)

    with customloss.backend(backend):
        for found, wanted in zip(losses(bad), losses(1.0)):
            assert wanted.isfinite() and torch.equal(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("function", [customloss.bce_loss, customloss.dice_bce_loss])
def test_the_positives_of_a_hidden_class(function: Any, bad: float, backend: str) -> None:
    """Their weight has no meaning, whatever it is."""
    x, t = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3).round()
    ways: list[dict[str, Any]] = [{"class_weight": torch.tensor([0.0, 1.0, 1.0])}]
    if function is customloss.dice_bce_loss:
        ways += [{"pointwise_classes": (1, 2)}]
    for more in ways:
        results = []
        for weight in (bad, 1.0):
            pos_weight = torch.tensor([weight, 2.0, 3.0])
            with customloss.backend(backend):
                loss = function(x, t, pos_weight=pos_weight, **more)
                results.append((loss, torch.autograd.grad(loss, x)[0]))
        for found, wanted in zip(*results):
            assert wanted.isfinite().all() and torch.equal(found, wanted)


def _recall(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return tp / (tp + fn)


@pytest.mark.parametrize("kind", ["list", "tensor"])
@pytest.mark.parametrize("average", ["macro", "weighted", "none_mean", "samplewise"])
def test_a_score_that_is_0_over_0_in_a_hidden_class(average: str, kind: str) -> None:
    """A constant weight of 0 keeps the score's NaN from every derivative."""
    x = torch.randn(4, 3, dtype=torch.float64)
    t = torch.ones(4, 3)
    t[:, 2] = 0
    weight: Any = [1.0, 2.0, 0.0]
    weight = torch.tensor(weight) if kind == "tensor" else weight

    def loss(x: Tensor) -> Tensor:
        options = {**AVERAGES[average], "class_weight": weight}
        return customloss.confusion_loss(_recall, x, t, **options).sum()

    def of_others(x: Tensor) -> Tensor:
        options = {**AVERAGES[average], "class_weight": weight[:2]}
        return customloss.confusion_loss(_recall, x[:, :2], t[:, :2], **options).sum()

    for transform in (_backward, TRANSFORMS["grad"], TRANSFORMS["hessian"]):
        found, wanted = transform(loss, x), transform(of_others, x)
        assert wanted.isfinite().all()
        torch.testing.assert_close(found, wanted)


def _backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


@pytest.mark.parametrize("transform", ["backward", "create_graph", "grad"])
@pytest.mark.parametrize(
    "options", [{"average": "weighted"}, {"absent": "skip"}, {"absent": "penalize"}]
)
def test_an_infinite_loss_of_a_class_without_positives(
    options: dict[str, Any], transform: str
) -> None:
    """The loss of such a class is left out, and so is its gradient."""
    x = torch.tensor([[0.5, INF], [1.0, 0.3]], dtype=torch.float64)
    t = torch.tensor([[1.0, 0.0], [0.0, 0.0]])

    def loss(x: Tensor) -> Tensor:
        return customloss.weighted_log_loss(x, t, **options)

    def gradient(x: Tensor) -> Tensor:
        if transform == "grad":
            return torch.func.grad(loss)(x)
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf, create_graph=transform != "backward")[0]

    found, wanted = gradient(x), gradient(x.clamp_max(500.0))
    assert loss(x).isfinite()
    torch.testing.assert_close(found, wanted)


# ---- nothing else is hidden ----------------------------------------------------------------------


@covering
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("average", ["macro", "micro", "samplewise", "samplewise_skip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_nan_that_counts(name: str, average: str, backend: str) -> None:
    """It reaches the loss, and the gradient of its class."""
    loss = loss_of(name, "classes" if name == "generalized_dice" else "list", average)
    if loss is None:
        loss = getattr(customloss, f"{name}_loss")
    for target in (torch.bool, None):
        sample = batch(name, "contiguous", torch.float64, 0, target=target)
        sample.input[0, 1] = NAN
        with customloss.backend(backend):
            x = sample.input.requires_grad_()
            value = loss(x, sample.target)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isnan().any()
        assert gradient[0, 1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("link", ["complement", "log_cosh"])
def test_a_nan_is_no_absent_class(link: str, backend: str) -> None:
    """Whichever way a call takes: a class without positives is skipped, but not if it is NaN."""
    x, t = torch.randn(6, 3), torch.zeros(6, 3, dtype=torch.bool)
    t[0, 1:] = True
    with customloss.backend(backend):
        assert customloss.dice_loss(x, t, absent="skip").isfinite()
        x[2, 0] = NAN
        loss = customloss.confusion_loss(customloss.scores.dice, x, t, absent="skip", link=link)
        assert loss.isnan()
        assert customloss.dice_loss(x, t, absent="skip").isnan()
