"""Class numbers and the options that choose, weight, ignore or smooth classes do what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import FEW_OPTIONS
from parts import assert_equal
from selection import covering
from sklearn import metrics
from torch import Tensor, nn

import customloss
from customloss import distributed, scores

F64 = torch.float64
CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=F64)


def batch(*shape: int, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class numbers (class 3 is absent from the second sample), and weights of pixels."""
    generator = torch.Generator().manual_seed(11)
    shape = shape or (5,)
    x = torch.randn(3, CLASSES, *shape, dtype=F64, generator=generator)
    y = torch.randint(0, CLASSES, (3, *shape), generator=generator)
    y[1][y[1] == 3] = 0
    w = torch.rand(3, 1, *shape, dtype=F64, generator=generator)
    return x.requires_grad_(requires_grad), y, w


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, CLASSES).movedim(-1, 1).to(F64)


def per_class(
    x: Tensor, t: Tensor, w: Tensor | None = None, samplewise: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tp, fp, fn of a softmax and the support, ``[samples, classes]``, by their definitions."""
    p, w = x.softmax(1), torch.ones_like(x[:, :1]) if w is None else w
    dims = [d for d in range(x.dim()) if d != 1 and not (samplewise and d == 0)]
    found = [(w * each).sum(dims) for each in (t * p, (1 - t) * p, t * (1 - p), t)]
    tp, fp, fn, support = (each if samplewise else each[None] for each in found)
    return tp, fp, fn, support


def same_with_gradient(own: Callable, textbook: Callable, x: Tensor) -> None:
    found, expected = own(x), textbook(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    by_x = [torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*by_x, rtol=1e-11, atol=1e-14)


# ---- what the options mean -----------------------------------------------------------------------

CHOICES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({}, [0, 1, 2, 3]),
    "no background": ({"include_background": False}, [1, 2, 3]),
    "in any order": ({"classes": (3, 0, 1)}, [3, 0, 1]),
    "range": ({"classes": range(1, 3)}, [1, 2]),
    "single": ({"classes": [2]}, [2]),
}


@covering
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_textbook(choice: str, average: str, samplewise: bool, weighted: bool) -> None:
    """The softmax reads all classes; then each loss or sum of a chosen class has its weight."""
    options, kept = CHOICES[choice]
    x, y, w = batch(9, requires_grad=True)
    v = (WEIGHTS + 0.1 if weighted else torch.ones(CLASSES, dtype=F64))[kept]

    def textbook(x: Tensor) -> Tensor:
        sums = per_class(x, one_hot(y), w, samplewise)
        tp, fp, fn, support = (each[:, kept] for each in sums)
        if average == "micro":
            tp, fp, fn = ((v * each).sum(-1, keepdim=True) for each in (tp, fp, fn))
        loss = 1 - 2 * tp / (2 * tp + fp + fn)
        if average in ("macro", "micro"):
            share = v if average == "macro" else torch.ones(1, dtype=F64)
            loss = (share * loss).sum(-1) / share.sum()
        elif average == "weighted":
            loss = (v * support * loss).sum(-1) / (v * support).sum(-1)
        else:
            loss = v * loss
        return loss if samplewise else loss[0]

    more = {"class_weight": WEIGHTS + 0.1} if weighted else {}
    common = {
        "activation": "softmax", "average": average, "samplewise": samplewise, "reduction": "none",
    }  # fmt: skip
    for score in (customloss.soft_f1_loss, score_loss):
        same_with_gradient(lambda x, s=score: s(x, y, w, **common, **options, **more), textbook, x)


def score_loss(*operands: Tensor | None, **options: Any) -> Tensor:
    return customloss.confusion_loss(scores.dice, *operands, **options)


@pytest.mark.parametrize("samplewise", [False, True])
def test_mean_and_sum_of_kept_classes(samplewise: bool) -> None:
    x, y, w = batch()
    every = customloss.dice_loss(x, y, w, activation="softmax", average="none", reduction="none",
                                 samplewise=samplewise)  # fmt: skip
    options: dict[str, Any] = {
        "activation": "softmax", "average": "none", "samplewise": samplewise,
        "class_weight": WEIGHTS,
    }  # fmt: skip
    total = (WEIGHTS * every).sum()
    torch.testing.assert_close(customloss.dice_loss(x, y, w, reduction="sum", **options), total)
    share = total / WEIGHTS.expand_as(every).sum()
    torch.testing.assert_close(customloss.dice_loss(x, y, w, **options), share)


def test_the_fused_operator_serves_all_that_need_none() -> None:
    """Options that are set to their defaults leave soft-F1 a single operator."""
    x, y, _ = batch()
    with torch.profiler.profile() as profile:
        customloss.soft_f1_loss(x, y, activation="softmax", classes=None, include_background=True)
    names = {event.key for event in profile.key_averages()}
    assert "customloss::soft_f1" in names
    assert "customloss::confusion_sums" not in names


def test_absent_classes() -> None:
    """A skipped class leaves the mean, with its weight; a penalized one has its fp rate."""
    x, y, _ = batch()
    t = one_hot(y)
    losses = 1 - scores.dice(*per_class(x, t, samplewise=True)[:3], tn=torch.zeros(()))
    present = t.sum(-1) > 0
    assert not present.all()
    v = WEIGHTS + 0.1
    common = {
        "activation": "softmax", "samplewise": True, "reduction": "none", "class_weight": v,
    }  # fmt: skip
    own = customloss.dice_loss(x, y, absent="skip", **common)
    expected = (losses * v * present).sum(-1) / (v * present).sum(-1)
    torch.testing.assert_close(own, expected)
    rate = (x.softmax(1) * (1 - t)).mean(-1)
    own = customloss.dice_loss(x, y, absent="penalize", **common)
    expected = (torch.where(present, losses, rate) * v).sum(-1) / v.sum()
    torch.testing.assert_close(own, expected)


def test_ratios_of_unlike_weights() -> None:
    """Ratios with class options agree with formulas, and 0 / 0 has no gradient by a target."""
    x, y, w = batch(9, requires_grad=True)
    tp, fp, fn, _ = per_class(x, one_hot(y), w)
    for own, b, c in (
        (customloss.tversky_loss(x, y, w, activation="softmax", fp_weight=0.3, fn_weight=1.2,
                                 smooth=0.1, include_background=False), 0.3, 1.2),
        (customloss.soft_f1_loss(x, y, w, activation="softmax", beta=2.0, smooth=0.5,
                                 include_background=False), 0.2, 0.8),
    ):  # fmt: skip
        losses = 1 - (tp + 0.1) / (tp + b * fp + c * fn + 0.1)
        same_with_gradient(lambda _, own=own: own, lambda _, each=losses: each[:, 1:].mean(), x)
    t = torch.zeros(3, 2, requires_grad=True)
    loss = customloss.dice_loss(torch.full((3, 2), -1e4), t, class_weight=[1.0, 2.0])
    assert loss == 0
    assert not torch.autograd.grad(loss, t)[0].any()


def test_weights_of_0() -> None:
    """A class of weight 0 has no effect, even if it is NaN; with all weights 0 the loss is 0."""
    x, y, _ = batch()

    def score(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        nan = torch.full_like(tp, torch.nan)
        return torch.where(torch.arange(tp.shape[-1]) == 2, nan, scores.dice(tp, fp, fn, tn))

    loss = customloss.confusion_loss(score, x, y, activation="softmax", class_weight=WEIGHTS)
    assert loss.isfinite()
    x.requires_grad_()
    for average in ("macro", "weighted", "micro", "none"):
        nothing = customloss.dice_loss(x, y, class_weight=[0.0] * CLASSES, average=average)
        assert nothing == 0
        assert not torch.autograd.grad(nothing, x)[0].any()


def test_sequences_dtypes_and_gradients_of_the_weights() -> None:
    x, y, _ = batch()
    expected = customloss.dice_loss(x, y, activation="softmax", class_weight=WEIGHTS)
    for same in (WEIGHTS.tolist(), tuple(WEIGHTS.tolist()), WEIGHTS.float()):
        own = customloss.dice_loss(x, y, activation="softmax", class_weight=same)
        torch.testing.assert_close(own, expected)
    whole = torch.tensor([1, 2, 0, 3])
    own = customloss.mcc_loss(x, y, class_weight=whole)
    torch.testing.assert_close(own, customloss.mcc_loss(x, y, class_weight=whole.tolist()))
    v = (WEIGHTS + 0.1).requires_grad_()
    for average in ("macro", "micro", "weighted", "none"):
        assert torch.autograd.gradcheck(
            lambda v, a=average: customloss.dice_loss(x, y, class_weight=v, average=a), v
        )


@pytest.mark.parametrize("name", ("weighted_log", "dice_bce", "dice_focal", "mcc", "squared_dice"))
def test_learned_weights_of_every_way(name: str) -> None:
    """Pooled classes too: weighted_log_loss lost the part of the gradient that is by what it is
    divided by."""
    x, y, _ = batch()
    v = (WEIGHTS + 0.1).requires_grad_()
    loss = getattr(customloss, f"{name}_loss")
    for average in ("macro", "micro", "weighted"):
        assert torch.autograd.gradcheck(
            lambda v, a=average: loss(x, y, class_weight=v, average=a), v
        )


def test_learned_weights_that_are_all_zero() -> None:
    """Nothing counts, so the loss is 0 with gradient 0, whichever way the mean is taken."""
    x, y, _ = batch(requires_grad=True)
    for options in ({}, {"absent": "skip"}, {"average": "weighted"}, {"samplewise": True}):
        v = torch.zeros(len(WEIGHTS), requires_grad=True)
        loss = customloss.dice_loss(x, y, class_weight=v, **options)
        gradients = torch.autograd.grad(loss, (x, v))
        assert loss == 0 and all(bool((each == 0).all()) for each in gradients), options


@pytest.mark.parametrize("name", [n for n in customloss.loss_names() if n not in FEW_OPTIONS])
def test_every_loss_takes_them(name: str) -> None:
    x, y, _ = batch(requires_grad=True)
    options: dict[str, Any] = {"include_background": False}
    if name not in ("generalized_dice", "multiclass_mcc"):  # one score of all classes
        options["class_weight"] = WEIGHTS + 0.1
    criterion = customloss.loss(name, **options)
    x_ = x.sigmoid() if name == "any" else x
    loss = criterion(x_, y)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    other = customloss.loss(name)(x_, y)
    assert loss != other


def test_a_score_that_pools_the_classes_has_no_weights_for_them() -> None:
    x, y, _ = batch()
    t = one_hot(y)
    for name, options in (("generalized_dice", {}), ("multiclass_mcc", {"activation": "sigmoid"})):
        with pytest.raises(ValueError, match=rf"^class_weight: expected None for '{name}'"):
            customloss.loss(name, class_weight=WEIGHTS, **options)(x, y)
        criterion = customloss.loss(name, **options)
        own = customloss.loss(name, classes=(1, 3), **options)(x, y)
        torch.testing.assert_close(own, criterion(x[:, [1, 3]], t[:, [1, 3]]))


# ---- metrics of hard predictions -----------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, [1, 2, 3], [3, 0]])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_scikit_learns_averages(average: str, labels: list[int] | None) -> None:
    """With one-hot probabilities, 1 minus the loss is the average of the hard metric."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, CLASSES, (200,), generator=generator)
    guess = torch.randint(0, CLASSES, (200,), generator=generator)
    guess = torch.where(torch.rand(200, generator=generator) < 0.6, y, guess)
    options: dict[str, Any] = {"activation": "none", "average": average, "classes": labels}
    loss = customloss.soft_f1_loss(one_hot(guess), y, **options)
    judge = metrics.f1_score(y, guess, average=average, labels=labels)
    assert 1 - float(loss) == pytest.approx(judge, abs=1e-12)
    loss = customloss.jaccard_loss(one_hot(guess), y, **options)
    judge = metrics.jaccard_score(y, guess, average=average, labels=labels)
    assert 1 - float(loss) == pytest.approx(judge, abs=1e-12)
    # Logits so large that the softmax is one-hot too.
    options["activation"] = "softmax"
    loss = customloss.soft_f1_loss(1e4 * one_hot(guess), y, **options)
    judge = metrics.f1_score(y, guess, average=average, labels=labels)
    assert 1 - float(loss) == pytest.approx(judge, abs=1e-12)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_torchmetrics_with_ignore_index(average: str) -> None:
    from torchmetrics.functional.classification import multiclass_f1_score

    x, y, _ = batch(40)
    y[:, ::5] = 255
    judge = multiclass_f1_score(x, y, CLASSES, average=average, ignore_index=255)
    hard = customloss.confusion_sums(
        x, y, activation="softmax", ignore_index=255, hard=True,
        average="micro" if average == "micro" else "macro",
    ).hard  # fmt: skip
    score = 2 * hard.tp / (2 * hard.tp + hard.fp + hard.fn)
    if average == "weighted":
        support = hard.tp + hard.fn
        score = (support * score).sum() / support.sum()
    elif average == "macro":
        score = score.mean()
    torch.testing.assert_close(score.float(), judge)


# ---- class numbers, ignore_index, label_smoothing ------------------------------------------------


@pytest.mark.parametrize("name", ["soft_f1", "mcc", "dice_ce", "semimetric_dice", "squared_dice"])
def test_class_numbers_are_one_hot(name: str) -> None:
    x, y, w = batch(4, 3)
    for activation in ("softmax", "sigmoid"):
        loss = customloss.loss(name, activation=activation)
        expected = loss(x, one_hot(y), w)
        for same in (y, y.unsqueeze(1), y.int(), y.to(torch.uint8)):
            torch.testing.assert_close(loss(x, same, w), expected)


@pytest.mark.parametrize("name", ["soft_f1", "mcc", "dice_ce", "dice_bce", "weighted_log"])
def test_what_is_ignored_is_as_if_it_were_not_there(name: str) -> None:
    x, y, w = batch(8, requires_grad=True)
    marked = y.clone()
    marked[:, 5:] = -100
    loss = customloss.loss(name, ignore_index=-100)(x, marked, w)
    expected = customloss.loss(name)(x[..., :5], y[:, :5], w[..., :5])
    torch.testing.assert_close(loss, expected)
    own, wanted = (torch.autograd.grad(each, x)[0] for each in (loss, expected))
    torch.testing.assert_close(own, wanted)
    assert not own[..., 5:].any()


def test_smoothing_is_a_smoothed_target() -> None:
    x, y, w = batch(requires_grad=True)
    smoothed = 0.8 * one_hot(y) + 0.2 / CLASSES
    for name in ("dice", "mcc", "semimetric_dice"):
        own = customloss.loss(name, activation="softmax", label_smoothing=0.2)(x, y, w)
        expected = customloss.loss(name, activation="softmax")(x, smoothed, w)
        torch.testing.assert_close(own, expected)


# ---- parts of a batch ----------------------------------------------------------------------------


class Halves(distributed.Adder):
    """Adds the sums of the previous call, the first half, to those of the second."""

    def __init__(self) -> None:
        self.previous: Tensor | None = None

    def total(self, sums: Tensor, options: object) -> Tensor:
        total = sums if self.previous is None else self.previous + sums
        self.previous = sums.detach()
        return total


PARTS: list[dict[str, Any]] = [
    {"include_background": False},
    {"class_weight": WEIGHTS, "average": "micro"},
    {"class_weight": WEIGHTS, "average": "weighted", "classes": (2, 0, 3)},
    {"class_weight": WEIGHTS, "samplewise": True, "absent": "skip"},
    {"class_weight": 3 * WEIGHTS, "samplewise": True, "average": "none"},
    {"class_weight": WEIGHTS, "average": "none", "reduction": "sum"},
    {"class_weight": WEIGHTS, "average": "weighted", "samplewise": True, "reduction": "sum"},
]


@pytest.mark.parametrize("options", PARTS, ids=str)
@pytest.mark.parametrize("name", ["dice", "mcc", "semimetric_jaccard", "weighted_log"])
def test_parts_add_up_to_the_whole(name: str, options: dict[str, Any]) -> None:
    x, y, w = batch(6)
    expected = customloss.loss(name, **options)(x, y, w)
    in_parts = customloss.loss(name, process_group=Halves(), **options)
    in_parts(x[:1], y[:1], w[:1])
    assert_equal(in_parts(x[1:], y[1:], w[1:]), expected)
    criterion = customloss.loss(name, **options)
    leaf = x.clone().requires_grad_()
    with customloss.accumulate(criterion) as whole:
        for part in (slice(0, 1), slice(1, 3)):
            whole.add(x[part], y[part], w[part])
        for part in (slice(0, 1), slice(1, 3)):
            loss = whole.loss(leaf[part], y[part], w[part])
            assert_equal(loss, expected)
            loss.backward()
    twin = x.clone().requires_grad_()
    criterion(twin, y, w).backward()
    assert_equal(leaf.grad, twin.grad)


def test_streaming() -> None:
    x, y, w = batch()
    criterion = customloss.DiceLoss(class_weight=WEIGHTS, include_background=False)
    stream = customloss.StreamingLoss(criterion, decay=0.5)
    torch.testing.assert_close(stream(x, y, w), criterion(x, y, w))
    assert stream.average.shape == (4, 1, CLASSES)
    assert stream(x.roll(1, 0), y, w).isfinite()


# ---- modules -------------------------------------------------------------------------------------


def test_a_buffer() -> None:
    criterion = customloss.SoftF1Loss(class_weight=[1, 2, 3, 4], classes=(0, 2))
    assert repr(criterion) == "SoftF1Loss(class_weight=[1, 2, 3, 4], classes=(0, 2))"
    assert [name for name, _ in criterion.named_buffers()] == ["class_weight"]
    assert criterion.to("meta").class_weight.device.type == "meta"
    assert [*copy.deepcopy(criterion).buffers()]
    unweighted = customloss.SoftF1Loss()
    assert unweighted.class_weight is None
    unweighted.class_weight = WEIGHTS
    x, y, _ = batch()
    torch.testing.assert_close(
        unweighted(x, y), customloss.soft_f1_loss(x, y, class_weight=WEIGHTS)
    )


def test_what_wraps_a_loss_leaves_its_weights_where_they_are() -> None:
    criterion = customloss.SoftF1Loss(class_weight=[1, 2, 3, 4])
    customloss.StreamingLoss(criterion).to("meta")
    assert criterion.class_weight.device.type == "cpu"


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiles_to_one_graph() -> None:
    for criterion in (
        customloss.SoftF1Loss(include_background=False),
        customloss.MCCLoss(classes=(3, 1), class_weight=WEIGHTS),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(criterion, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for shape in ((5,), (7,)):
                x, y, w = batch(*shape, requires_grad=True)
                own, expected = compiled(x, y, w), criterion(x, y, w)
                torch.testing.assert_close(own, expected)
                pair = [torch.autograd.grad(each, x)[0] for each in (own, expected)]
                torch.testing.assert_close(*pair)


def test_vmap() -> None:
    x, y, _ = batch(2, 5)

    def loss(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return customloss.dice_loss(x, y, class_weight=v, include_background=False)

    v = torch.rand(3, CLASSES, dtype=F64)
    expected = torch.stack([loss(*each) for each in zip(x[:, None], y[:, None], v)])
    torch.testing.assert_close(torch.vmap(loss)(x[:, None], y[:, None], v), expected)
