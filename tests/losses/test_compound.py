"""A score with a cross-entropy or focal loss, in one pass, is the sum of textbook formulas.

The formulas are also those of torch and MONAI. Parts of a batch add up, and a bad call is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from parts import CLASSES, FEATURES, assert_equal, network
from ranks import run
from selection import covering, one_of_each
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.parallel import DistributedDataParallel

import customloss
from customloss import scores

F64 = torch.float64
K = 4
V = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=F64)


def pixels(*shape: int, ignored: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class numbers, and one weight per pixel."""
    generator = torch.Generator().manual_seed(5)
    shape = shape or (6, 3)
    x = torch.randn(3, K, *shape, dtype=F64, generator=generator).requires_grad_()
    y = torch.randint(0, K, (3, *shape), generator=generator)
    if ignored:
        y[:, ::2] = 255
    return x, y, torch.rand(3, 1, *shape, dtype=F64, generator=generator)


def labels(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, soft labels, and weights of elements."""
    generator = torch.Generator().manual_seed(6)
    x, t, w = (torch.randn(*shape, dtype=F64, generator=generator) for _ in range(3))
    return x.requires_grad_(), t.sigmoid(), w.sigmoid()


def same_with_gradient(own: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)
    pair = [torch.autograd.grad(each.sum(), leaves, retain_graph=keep)
            for each, keep in ((own, False), (expected, True))]  # fmt: skip
    torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-14)


def pure(x: Tensor, y: Tensor, w: Tensor | None = None, **options: Any) -> Tensor:
    """The pointwise part alone."""
    return customloss.compound_loss(scores.dice, x, y, w, score_weight=0.0, **options)


# ---- cross-entropy -------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_cross_entropy_is_torchs(
    average: str, ignored: bool, weighted: bool, smoothing: float
) -> None:
    x, y, _ = pixels(ignored=ignored)
    v = V if weighted else None
    options: dict[str, Any] = {"ignore_index": 255, "label_smoothing": smoothing}
    expected = F.cross_entropy(x, y, weight=v, **options)
    options.update(activation="softmax", class_weight=v, average=average)
    own = pure(x, y, cross_entropy_weight=1.0, **options)
    same_with_gradient(own, expected, x)
    # Together with a score that has the same weights, classes and smoothing.
    options["include_background"] = False
    both = customloss.dice_ce_loss(x, y, dice_weight=0.3, ce_weight=0.7, smooth=1.0, **options)
    alone = customloss.dice_loss(x, y, smooth=1.0, **options)
    same_with_gradient(both, 0.3 * alone + 0.7 * expected, x)


def test_cross_entropy_with_pixel_weights_and_temperature() -> None:
    x, y, w = pixels()
    each = F.cross_entropy(3 * (x - 0.5), y, reduction="none")
    expected = (w[:, 0] * each).sum() / w.sum()
    options: dict[str, Any] = {"activation": "softmax", "logit_scale": 3.0, "logit_offset": 0.5}
    w.requires_grad_()
    own = pure(x, y, w, cross_entropy_weight=1.0, **options)
    expected = (w[:, 0] * each).sum() / w.sum()
    same_with_gradient(own, expected, x, w)


def test_soft_labels_of_a_softmax() -> None:
    x, _, _ = pixels()
    t = torch.randn_like(x).softmax(1).detach().requires_grad_()
    own = pure(x, t, cross_entropy_weight=1.0, activation="softmax")
    same_with_gradient(own, F.cross_entropy(x, t), x)
    # With soft labels torch divides by the number of pixels, and we by the weights of the classes.
    own = pure(x, t, cross_entropy_weight=1.0, activation="softmax", class_weight=V)
    total = -(V[:, None, None] * t * x.log_softmax(1)).sum()
    same_with_gradient(own, total / (V[:, None, None] * t).sum(), x, t)


def test_binary_cross_entropy_is_torchs() -> None:
    x, t, w = labels(5, 3, 4)
    bce = F.binary_cross_entropy_with_logits
    same_with_gradient(pure(x, t, cross_entropy_weight=1.0), bce(x, t), x)
    for average in ("macro", "micro"):
        own = pure(x, t, w, cross_entropy_weight=1.0, average=average)
        same_with_gradient(own, bce(x, t, weight=w) * w.numel() / w.sum(), x)
        for pos_weight in (2.5, torch.tensor(2.5), (0.5, 2.0, 3.0), torch.tensor([0.5, 2.0, 3.0])):
            of_torch = torch.as_tensor(pos_weight, dtype=F64)
            of_torch = of_torch[:, None] if of_torch.dim() else of_torch
            own = pure(x, t, cross_entropy_weight=1.0, pos_weight=pos_weight, average=average)
            same_with_gradient(own, bce(x, t, pos_weight=of_torch), x)
    v = torch.tensor([1.0, 0.5, 3.0], dtype=F64)
    each = bce(x, t, reduction="none")
    own = pure(x, t, w, cross_entropy_weight=1.0, class_weight=v)
    ours = w * v[:, None]
    same_with_gradient(own, (ours * each).sum() / ours.sum(), x)
    p = x.detach().sigmoid().requires_grad_()
    own = pure(p, t, cross_entropy_weight=1.0, activation="none")
    same_with_gradient(own, F.binary_cross_entropy(p, t), p)
    vector = x[:, 0, 0].detach().requires_grad_()
    own = customloss.dice_bce_loss(vector, t[:, 0, 0], bce_weight=0.4)
    expected = customloss.dice_loss(vector, t[:, 0, 0]) + 0.4 * bce(vector, t[:, 0, 0])
    same_with_gradient(own, expected, vector)


def test_one_against_the_rest() -> None:
    """Class numbers with a sigmoid are a binary problem per class, without the ignored pixels."""
    x, y, _ = pixels(ignored=True)
    kept = (y != 255).unsqueeze(1).expand_as(x)
    t = F.one_hot(y.where(y != 255, 0), K).movedim(-1, 1).to(F64)
    expected = F.binary_cross_entropy_with_logits(x[kept], t[kept])
    own = customloss.compound_loss(scores.dice, x, y, score_weight=0.0, cross_entropy_weight=1.0,
                                   ignore_index=255)  # fmt: skip
    same_with_gradient(own, expected, x)


def test_saturated_logits_keep_their_gradient() -> None:
    """At a logit of -60 the probability vanishes in float32, but its logarithm is exact."""
    x = torch.full((8, 2), -60.0, requires_grad=True)
    loss = customloss.dice_bce_loss(x, torch.ones(8, 2))
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, torch.full_like(x, -1 / 16))
    torch.testing.assert_close(loss.detach(), torch.tensor(61.0))


# ---- focal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_focal_textbook(gamma: float) -> None:
    x, t, w = labels(5, 3, 4)
    p = x.sigmoid()
    for split in (False, True):
        missed = t * (1 - p) + (1 - t) * p
        one, other = (1 - p, p) if split else (missed, missed)
        each = -t * one**gamma * F.logsigmoid(x) - (1 - t) * other**gamma * F.logsigmoid(-x)
        own = pure(x, t, w, focal_weight=1.0, focal_gamma=gamma, focal_split=split)
        same_with_gradient(own, (w * each).sum() / w.sum(), x)
    hard = (t > 0.5).to(F64)
    q = torch.where(hard > 0, p, 1 - p)  # as torchvision and Lin et al. write it
    bce = F.binary_cross_entropy_with_logits(x, hard, reduction="none")
    both = customloss.dice_focal_loss(x, hard, focal_weight=0.5, focal_gamma=gamma)
    expected = customloss.dice_loss(x, hard) + 0.5 * ((1 - q) ** gamma * bce).mean()
    same_with_gradient(both, expected, x)

    x, y, w = pixels()
    log_p = x.log_softmax(1).gather(1, y.unsqueeze(1))
    each = -((1 - log_p.exp()) ** gamma) * log_p
    own = pure(x, y, w, focal_weight=1.0, focal_gamma=gamma, activation="softmax")
    same_with_gradient(own, (w * each).sum() / w.sum(), x)
    own = pure(x, y, focal_weight=1.0, focal_gamma=gamma, activation="softmax", class_weight=V)
    of_pixels = V[y].unsqueeze(1)
    same_with_gradient(own, (of_pixels * each).sum() / of_pixels.sum(), x)


def test_three_parts() -> None:
    x, y, _ = pixels()
    options: dict[str, Any] = {"activation": "softmax", "include_background": False}
    own = customloss.compound_loss(
        scores.jaccard, x, y, score_weight=0.5, cross_entropy_weight=0.25, focal_weight=2.0,
        focal_gamma=1.0, **options,
    )  # fmt: skip
    log_p = x.log_softmax(1).gather(1, y.unsqueeze(1))
    expected = 0.5 * customloss.jaccard_loss(x, y, **options) + 0.25 * F.cross_entropy(x, y)
    same_with_gradient(own, expected - 2 * ((1 - log_p.exp()) * log_p).mean(), x)


def test_a_score_that_needs_the_same_sums() -> None:
    @scores.uses("log_loss", "squares")
    def score(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, **more: Tensor) -> Tensor:
        assert list(more) == ["log_loss_pos", "log_loss_neg", "p2", "t2", "tp2"]
        return 2 * tp / (more["p2"] + more["t2"]) + 0 * more["log_loss_pos"]

    x, t, _ = labels(5, 3)
    own = customloss.compound_loss(score, x, t, cross_entropy_weight=1.0, focal_weight=1.0)
    apart = customloss.squared_dice_loss(x, t)
    same_with_gradient(own, apart + pure(x, t, cross_entropy_weight=1.0, focal_weight=1.0), x)


# ---- average, samplewise, reduction --------------------------------------------------------------

PRESETS: dict[str, Callable[..., Tensor]] = {
    "dice_ce": customloss.dice_ce_loss, "dice_bce": customloss.dice_bce_loss,
    "dice_focal": customloss.dice_focal_loss, "tversky_ce": customloss.tversky_ce_loss,
}  # fmt: skip
SCORES = dict.fromkeys(PRESETS, customloss.dice_loss) | {"tversky_ce": customloss.tversky_loss}
POINTWISE = {
    "dice_ce": {"cross_entropy_weight": 1.0}, "dice_bce": {"cross_entropy_weight": 1.0},
    "dice_focal": {"focal_weight": 1.0}, "tversky_ce": {"cross_entropy_weight": 1.0},
}  # fmt: skip


@covering
@pytest.mark.parametrize("link", ["complement", "log", "negative", "log_cosh"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", PRESETS)
def test_one_pointwise_loss_is_added(
    name: str, average: str, samplewise: bool, reduction: str, link: str
) -> None:
    x, y, w = pixels(5)
    softmax = name in ("dice_ce", "tversky_ce")
    both: dict[str, Any] = {"activation": "softmax" if softmax else "sigmoid", "class_weight": V}
    scored: dict[str, Any] = {
        "average": average, "samplewise": samplewise, "reduction": reduction,
        "include_background": False, "absent": "penalize", "link": link,
    }  # fmt: skip
    own = {"fp_weight": 0.3, "fn_weight": 1.2} if name == "tversky_ce" else {}
    if link == "log_cosh":
        kept = {k: v for k, v in scored.items() if k != "link"}
        ratio = partial(scores.tversky if own else scores.dice, **own)
        expected = customloss.confusion_loss(ratio, x, y, w, **both, **kept, link=link)
    else:
        expected = SCORES[name](x, y, w, **both, **scored, **own)
    if samplewise and reduction == "none":
        more = torch.stack([pure(x[i : i + 1], y[i : i + 1], w[i : i + 1], **POINTWISE[name],
                                 **both) for i in range(3)])  # fmt: skip
    else:
        more = pure(x, y, w, **POINTWISE[name], **both)
    assert more.shape in ((), expected.shape)
    same_with_gradient(PRESETS[name](x, y, w, **both, **scored, **own), expected + more, x)


def test_nothing_counts() -> None:
    """If all is ignored, all weights are 0 or there is no pixel, loss and gradient are 0."""
    x, y, w = pixels()
    for loss in PRESETS.values():
        nothing = loss(x, torch.full_like(y, 9), ignore_index=9)
        assert nothing == 0
        assert not torch.autograd.grad(nothing, x)[0].any()
        w = torch.zeros_like(w).requires_grad_()
        nothing = loss(x, y, w)
        by_x, by_w = torch.autograd.grad(nothing, (x, w))
        assert nothing == 0
        assert not by_x.any()
        assert by_w.isfinite().all()
        empty = torch.zeros(0, K, 2, requires_grad=True)
        assert loss(empty, torch.zeros(0, 2, dtype=torch.int64)) == 0


# ---- other libraries -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    x, y, _ = pixels(6, 5)
    index = y.unsqueeze(1)
    for background, batch in itertools.product((True, False), repeat=2):
        theirs = losses.DiceCELoss(
            to_onehot_y=True, softmax=True, include_background=background, batch=batch,
            lambda_dice=0.7, lambda_ce=0.4, smooth_nr=1e-3, smooth_dr=1e-3,
        )(x, index)  # fmt: skip
        own = customloss.dice_ce_loss(
            x, y, dice_weight=0.7, ce_weight=0.4, smooth=1e-3, samplewise=not batch,
            include_background=background,
        )  # fmt: skip
        same_with_gradient(own, theirs, x)
    x, t, _ = labels(3, 2, 4, 5)
    t = (t > 0.5).to(F64)
    theirs = losses.DiceFocalLoss(sigmoid=True, gamma=1.5, smooth_nr=1.0, smooth_dr=1.0)(x, t)
    own = customloss.dice_focal_loss(x, t, focal_gamma=1.5, smooth=1.0, samplewise=True)
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=0)  # theirs is float32


def test_nnu_net() -> None:
    """Its formula is CE minus the mean of (2 tp + s) / (2 tp + fp + fn + s) without background."""
    x, y, _ = pixels(6, 5, ignored=True)
    mask = (y != 255).unsqueeze(1)
    p = x.softmax(1) * mask
    t = F.one_hot(y.where(y != 255, 0), K).movedim(-1, 1) * mask
    for batch in (True, False):
        dims = (0, 2, 3) if batch else (2, 3)
        dice = (2 * (p * t).sum(dims) + 1e-5) / (p.sum(dims) + t.sum(dims) + 1e-5)
        expected = F.cross_entropy(x, y, ignore_index=255) - dice[..., 1:].mean()
        own = customloss.dice_ce_loss(
            x, y, smooth=1e-5, link="negative", include_background=False, samplewise=not batch,
            ignore_index=255,
        )  # fmt: skip
        same_with_gradient(own, expected, x)


# ---- derivatives, compilation, transforms --------------------------------------------------------

ANY: Any = {"check_target": False}  # dense targets of any number
CRITERIA = {
    "dice_ce": customloss.DiceCELoss(class_weight=V, label_smoothing=0.1, **ANY),
    "dice_bce": customloss.DiceBCELoss(pos_weight=2.0, samplewise=True),
    "dice_focal": customloss.DiceFocalLoss(focal_gamma=1.5, activation="softmax", **ANY),
    "tversky_ce": customloss.TverskyCELoss(fn_weight=0.7, classes=range(1, K), link="log", **ANY),
    "compound": customloss.CompoundLoss(
        scores.semimetric_dice, cross_entropy_weight=0.5, focal_weight=0.5, average="micro",
        class_weight=V,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CRITERIA)
def test_gradcheck(name: str) -> None:
    x, t, w = labels(2, K, 2)
    t = (0.2 + 0.3 * t).requires_grad_()
    w = (w + 0.1).requires_grad_()
    loss = CRITERIA[name]
    assert gradcheck(loss, (x, t, w), check_forward_ad=True, nondet_tol=0.0)
    assert gradgradcheck(lambda x: loss(x, t.detach(), w.detach()), x, nondet_tol=0.0)


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@one_of_each(lambda name: name == "compound")
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("name", ["dice_ce", "tversky_ce", "compound"])
def test_compiles_to_one_graph(name: str) -> None:
    compiled = torch.compile(CRITERIA[name], fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((6, 5), (7, 9)):
            x, y, w = pixels(*shape)
            same_with_gradient(compiled(x, y, w), CRITERIA[name](x, y, w), x)


@pytest.mark.parametrize("name", CRITERIA)
def test_vmap_and_grad(name: str) -> None:
    loss = CRITERIA[name]
    x, y, _ = pixels(2, 3)
    x = x.detach().unsqueeze(1)
    expected = torch.stack([torch.func.grad(loss)(*each) for each in zip(x, y.unsqueeze(1))])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x, y.unsqueeze(1)), expected)
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(leaf, y[:1]), leaf)[0], expected[0])


def test_one_pass_each_way() -> None:
    """Forward and backward read the data once each, whatever is summed."""
    x, y, _ = pixels()
    with torch.profiler.profile() as profile:
        CRITERIA["compound"](x, y).backward()
        CRITERIA["dice_ce"](x, y).backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["customloss::confusion"] == calls["customloss::confusion_backward"] == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_inputs(dtype: torch.dtype) -> None:
    x, y, _ = pixels()
    own = customloss.dice_ce_loss(x.detach().to(dtype), y)
    assert own.dtype == torch.float32
    expected = customloss.dice_ce_loss(x.detach().to(dtype).double(), y)
    torch.testing.assert_close(own.double(), expected, rtol=1e-6, atol=0)


# ---- parts of a batch ----------------------------------------------------------------------------

IN_PARTS = {
    **CRITERIA,
    "samplewise": customloss.DiceCELoss(samplewise=True, class_weight=V, absent="skip"),
    "sum": customloss.DiceBCELoss(samplewise=True, reduction="sum"),
    "weighted": customloss.DiceFocalLoss(average="weighted"),
}


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("name", IN_PARTS)
def test_micro_batches_equal_the_batch(name: str, count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(9, K, 3, dtype=F64, generator=generator)
    y = torch.randint(0, K, (9, 3), generator=generator)
    w = torch.rand(9, 1, 3, dtype=F64, generator=generator)
    at_once, in_parts = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = IN_PARTS[name](at_once, y, w)
    expected.backward()
    sizes = [1] * (count - 1) + [10 - count]
    parts = list(zip(in_parts.split(sizes), y.split(sizes), w.split(sizes)))
    with customloss.accumulate(IN_PARTS[name]) as whole:
        for part in parts:
            whole.add(*part)
        for part in parts:
            loss = whole.loss(*part)
            assert_equal(loss, expected)
            loss.backward()
    assert_equal(in_parts.grad, at_once.grad)


def test_streaming() -> None:
    x, y, w = pixels()
    criterion = CRITERIA["dice_ce"]
    stream = customloss.StreamingLoss(criterion, decay=0.5)
    torch.testing.assert_close(stream(x, y, w), criterion(x, y, w))
    first = torch.ops.customloss.confusion_sums(
        x, y, w, activation="softmax", label_smoothing=0.1, log_loss=True, support=True
    )
    torch.testing.assert_close(stream.average, first.detach() / 2)
    assert torch.autograd.grad(stream(x, y, w), x)[0].isfinite().all()


def ranks_agree() -> None:
    """With uneven ranks, score and cross-entropy are those of all pixels."""
    torch.manual_seed(1)
    features, y = torch.randn(9, FEATURES, dtype=F64), torch.randint(0, CLASSES, (9,))
    own = slice(0, 6) if dist.get_rank() == 0 else slice(6, 9)
    for options in ({}, {"samplewise": True}, {"average": "micro", "include_background": False}):
        alone = network(F64)
        expected = customloss.dice_ce_loss(alone(features), y, **options)
        expected.backward()
        model = DistributedDataParallel(network(F64))
        loss = customloss.DiceCELoss(process_group=dist.group.WORLD, **options)(
            model(features[own]), y[own]
        )
        assert_equal(loss, expected)
        loss.backward()
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            assert_equal(one.grad, other.grad)


@pytest.mark.distributed
def test_ranks() -> None:
    run(2, ranks_agree)


# ---- what can be wrong ---------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kept classes": ({"average": "none"}, ValueError, "average: .*'micro'.*got 'none'"),
    "no part": (
        {"score_weight": 0.0, "cross_entropy_weight": 0.0}, ValueError, "score_weight, .*above 0",
    ),
    "a negative part": ({"focal_weight": -1.0}, ValueError, "focal_weight: .*>= 0"),
    "a part of words": ({"score_weight": "1"}, TypeError, "score_weight: expected a number"),
    "focus": ({"focal_gamma": -0.5}, ValueError, "focal_gamma: .*>= 0"),
    "positives of a softmax": (
        {"pos_weight": 2.0, "activation": "softmax"}, ValueError, "pos_weight: expected None",
    ),
    "positives of too few": ({"pos_weight": [1.0]}, ValueError, "pos_weight: .*4 classes.*got 1"),
    "negative positives": ({"pos_weight": -1.0}, ValueError, "pos_weight: .*>= 0"),
    "positives of words": ({"pos_weight": "2"}, TypeError, "pos_weight: .*'2'"),
    "an option of none": ({"gama": 2.0}, TypeError, "gama: no option of compound_loss"),
    "beyond float64": ({"score_weight": 10**400}, ValueError, "score_weight: .*beyond float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    options, error, message = WRONG[name]
    x, y, _ = pixels()
    with pytest.raises(error, match=f"^{message}"):
        customloss.compound_loss(scores.dice, x, y, **{"cross_entropy_weight": 1.0, **options})


def test_errors_of_presets() -> None:
    x, y, _ = pixels()
    with pytest.raises(ValueError, match=r"^activation: .*dice_ce_loss"):
        customloss.dice_bce_loss(x, y, activation="softmax")
    with pytest.raises(ValueError, match=r"^activation: expected 'sigmoid'"):
        customloss.dice_ce_loss(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match=r"^activation: expected 'sigmoid'"):
        customloss.dice_ce_loss(torch.zeros(5), torch.zeros(5), label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"^smooth"):
        customloss.dice_ce_loss(x, y, smooth=-1.0)
    with pytest.raises(ValueError, match=r"^fp_weight"):
        customloss.tversky_ce_loss(x, y, fp_weight=-1.0)
    with pytest.raises(TypeError, match=r"^score: expected a function"):
        customloss.CompoundLoss(2)  # type: ignore[arg-type]
    batch = customloss.accumulate(customloss.DiceCELoss(samplewise=True, reduction="none"))
    with pytest.raises(ValueError, match=r"^reduction: expected 'mean' or 'sum'"):
        batch.add(x, y)
