"""StreamingLoss has the value, the gradient and the state that it documents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customloss


def batch(seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, classes, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), torch.rand(8, classes, generator=generator) < 0.3


def f1_loss(sums: Tensor) -> Tensor:
    tp, fp, fn, _ = sums.unbind(0)
    return ((fp + fn) / (2 * tp + fp + fn)).mean()


def test_against_the_formula() -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss(), decay=0.7)
    average = torch.zeros(4, 1, 3, dtype=torch.float64)
    for step in range(1, 5):
        x, target = batch(step)
        loss = stream(x, target)
        (gradient,) = torch.autograd.grad(loss, x)
        sums = torch.ops.customloss.confusion_sums(x, target)
        average = 0.7 * average + 0.3 * sums.detach()
        expected = f1_loss(average / (1 - 0.7**step) + sums - sums.detach())
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])


def test_decay_0_and_the_first_batch_are_the_loss_itself() -> None:
    criterion = customloss.SoftF1Loss(average="weighted", beta=2.0)
    for decay, batches in ((0.0, 3), (0.9, 1)):
        stream = customloss.StreamingLoss(criterion, decay)
        for seed in range(batches):
            x, target = batch(seed)
            own, expected = stream(x, target), criterion(x, target)
            torch.testing.assert_close(own, expected)
            pair = (torch.autograd.grad(loss, x)[0] for loss in (own, expected))
            torch.testing.assert_close(*pair)


def test_eval_scores_the_batch_and_keeps_the_average() -> None:
    criterion = customloss.SoftF1Loss()
    stream = customloss.StreamingLoss(criterion)
    stream(*batch(0))
    before = stream.average.clone()
    torch.testing.assert_close(stream.eval()(*batch(1)), criterion(*batch(1)))
    assert torch.equal(stream.average, before)


def test_state_is_saved_and_copied() -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss())
    stream(*batch(0))
    loaded = customloss.StreamingLoss(customloss.SoftF1Loss())
    loaded.load_state_dict(stream.state_dict())
    twin = copy.deepcopy(stream)
    expected = stream(*batch(1))
    assert torch.equal(loaded(*batch(1)), expected)
    assert torch.equal(twin(*batch(1)), expected)
    assert [name for name, _ in stream.named_modules()] == ["", "loss"]


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_stream_of_its_own(twin_of: Callable[[Any], Any]) -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss(class_weight=[1.0] * 3))
    stream(*batch(0))
    twin = twin_of(stream)
    assert twin.loss.process_group is twin
    assert stream.loss.process_group is stream
    before = {name: value.clone() for name, value in stream.state_dict().items()}
    expected = copy.deepcopy(stream)(*batch(1))
    assert torch.equal(twin(*batch(1)), expected)
    twin.loss.class_weight = [3.0, 2.0, 1.0]
    twin.loss.beta = 3.0
    torch.testing.assert_close(stream.state_dict(), before, rtol=0, atol=0)
    assert stream.loss.beta == 1.0
    assert torch.equal(stream(*batch(1)), expected)


def test_a_stream_of_small_batches_comes_near_the_whole() -> None:
    """With a rare label the mean loss of batches of 8 is far from the whole, the stream is near."""
    generator = torch.Generator().manual_seed(0)
    p = torch.sigmoid(4 * torch.randn(4096, generator=generator, dtype=torch.float64) - 6)
    target = torch.rand(4096, generator=generator) < p
    criterion = customloss.SoftF1Loss(activation="none")
    stream = customloss.StreamingLoss(criterion, decay=0.99)
    parts = list(zip(p.split(8), target.split(8), strict=True))
    streamed = torch.stack([stream(*part) for part in parts])[100:].mean()
    mean = torch.stack([criterion(*part) for part in parts]).mean()
    whole = criterion(p, target)
    assert abs(mean - whole) > 0.15
    assert abs(streamed - whole) < 0.02


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ((nn.BCEWithLogitsLoss(),), TypeError, "loss: expected a loss module of customloss"),
        ((customloss.SoftF1Loss(samplewise=True),), ValueError, "samplewise=False"),
        ((customloss.SoftF1Loss(), 1.0), ValueError, r"decay: expected a number in \[0, 1\)"),
        ((customloss.SoftF1Loss(), -0.1), ValueError, r"decay: expected a number in \[0, 1\)"),
        ((customloss.SoftF1Loss(), "0.9"), TypeError, "decay: expected a number"),
    ],
)
def test_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        customloss.StreamingLoss(*arguments)


def test_unlike_classes() -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss())
    stream(*batch(0))
    with pytest.raises(ValueError, match=r"same number of classes.*\[4, 1, 5\] after \[4, 1, 3\]"):
        stream(*batch(1, classes=5))


def test_it_prints() -> None:
    criterion = customloss.SoftF1Loss(beta=2.0)
    stream = customloss.StreamingLoss(criterion)
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "criterion": stream})
    for text in (repr(stream), repr(model), repr(nn.ModuleList([stream]))):
        assert "decay=0.9" in text
        assert "SoftF1Loss(beta=2.0)" in text


@pytest.mark.parametrize(
    "cast", [nn.Module.float, nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)]
)
@pytest.mark.parametrize("before", [0, 3], ids=["new", "after 3 batches"])
def test_a_cast_leaves_the_state_exact(before: int, cast: Any) -> None:
    stream, judge = (
        customloss.StreamingLoss(customloss.SoftF1Loss(class_weight=[1.0, 2.0, 3.0]), 0.999)
        for _ in range(2)
    )
    for seed in range(before):
        assert torch.equal(stream(*batch(seed)), judge(*batch(seed)))
    cast(stream)
    assert stream.average.dtype == stream.steps.dtype == torch.float64
    for seed in range(before, 6):
        assert torch.equal(stream(*batch(seed)), judge(*batch(seed)))
    assert stream.to("meta").average.device.type == "meta"
    assert stream.to_empty(device="cpu").average.dtype == torch.float64


@pytest.mark.parametrize("first", [True, False], ids=["first batch", "later batch"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")], ids=str)
def test_a_batch_of_nan_is_forgotten(wrong: float, first: bool) -> None:
    """Its loss is not finite, so that a gradient scaler skips the step; the next one is right."""
    stream = customloss.StreamingLoss(customloss.SoftF1Loss(activation="none", check_target=False))
    judge = customloss.StreamingLoss(customloss.SoftF1Loss(activation="none", check_target=False))
    if not first:
        assert torch.equal(stream(*batch(0)), judge(*batch(0)))
    x, target = batch(1)
    assert not stream(torch.full_like(x, wrong), target).isfinite()
    for seed in (2, 3):
        assert torch.equal(stream(*batch(seed)), judge(*batch(seed)))


def test_a_class_of_nan_does_not_stop_the_others() -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss(average="none", reduction="none"))
    judge = customloss.StreamingLoss(customloss.SoftF1Loss(average="none", reduction="none"))
    for seed in range(3):
        x, target = batch(seed)
        hurt = x.detach().clone()
        hurt[0, 1] = float("nan")
        loss = stream(hurt, target)
        assert torch.equal(loss[[0, 2]], judge(x, target)[[0, 2]])
        assert loss[1].isnan()
    assert stream.average.isfinite().all()


def left_out(how: str, seed: int, classes: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """A batch of which some classes say nothing."""
    x, target = batch(seed)
    target = target.long()
    if how == "ignored":
        target[:, classes] = -1
        return x, target, None
    if how == "nan":
        x = x.detach().clone()
        x[3, classes] = float("nan")
        return x.requires_grad_(), target, None
    weight = torch.ones(3, dtype=torch.float64)
    weight[classes] = 0
    return x, target, weight


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("how", ["ignored", "weight 0", "nan"])
def test_a_class_that_is_seen_late_or_seldom_is_not_under_weighted(how: str, decay: float) -> None:
    """Its average is that of the batches that had it, as if there were no others."""
    criterion = customloss.SoftF1Loss(
        average="none", reduction="none", smooth=1.0, ignore_index=-1, check_target=False
    )
    stream, judge = (customloss.StreamingLoss(criterion, decay) for _ in range(2))
    late = slice(2, 3)
    for seed in (*range(20), 40, 41, *range(20, 30), 42):
        if seed < 40:
            data = left_out(how, seed, late)
            loss = stream(*data)
            if how != "nan":
                (gradient,) = torch.autograd.grad(loss.sum(), data[0])
                assert (gradient[:, late] == 0).all()
            continue
        x, target = batch(seed)
        own, expected = stream(x, target)[2], judge(x, target)[2]
        torch.testing.assert_close(own, expected)
        pair = (torch.autograd.grad(loss, x)[0] for loss in (own, expected))
        torch.testing.assert_close(*pair)
    assert stream.steps.tolist() == [[33, 33, 3]]


def test_a_class_that_was_never_seen_is_an_empty_group() -> None:
    criterion = customloss.SoftF1Loss(average="none", reduction="none", ignore_index=-1)
    stream = customloss.StreamingLoss(criterion, 0.9)
    for seed in range(2):
        data = left_out("ignored", seed, slice(0, 1))
        loss = stream(*data)
        assert loss[0] == 0
        assert torch.autograd.grad(loss.sum(), data[0])[0].isfinite().all()


def test_pooled_classes_are_one_group_whatever_they_weigh() -> None:
    one, other = (
        customloss.StreamingLoss(
            customloss.SoftF1Loss(average="micro", smooth=1.0, ignore_index=-1, **more)
        )
        for more in ({}, {"class_weight": [1.0, 1.0, 1.0]})
    )
    for seed, classes in enumerate((slice(0, 1), slice(0, 3), slice(1, 2), slice(2, 2))):
        data = left_out("ignored", seed, classes)
        torch.testing.assert_close(one(*data), other(*data))
    assert one.steps.flatten().tolist() == [3]
    assert other.steps.unique().tolist() == [3]


def test_a_state_with_one_number_of_steps_loads() -> None:
    stream = customloss.StreamingLoss(customloss.SoftF1Loss())
    for seed in range(3):
        stream(*batch(seed))
    saved = {**stream.state_dict(), "steps": torch.tensor(3.0, dtype=torch.float64)}
    loaded = customloss.StreamingLoss(customloss.SoftF1Loss())
    loaded.load_state_dict(saved)
    assert torch.equal(loaded(*batch(3)), stream(*batch(3)))
    assert torch.equal(loaded.steps, stream.steps)
