"""Micro-batches have the loss and, added up, the gradients of the whole batch."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parts import CLASSES, FEATURES, TOLERANCE, assert_equal, network
from process import run_python
from ranks import run
from selection import covering
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import customloss
from customloss.batches import accumulation

SAMPLES = 17
CRITERIA = {
    "macro": customloss.SoftF1Loss(),
    "micro_log": customloss.SoftF1Loss(average="micro", link="log", beta=2.0),
    "weighted": customloss.SoftF1Loss(average="weighted"),
    "per_class": customloss.SoftF1Loss(average="none", reduction="sum", absent="penalize"),
    "skip": customloss.SoftF1Loss(absent="skip"),
    "samplewise": customloss.SoftF1Loss(samplewise=True),
    "samplewise_skip": customloss.SoftF1Loss(samplewise=True, absent="skip"),
    "samplewise_weighted_sum": customloss.SoftF1Loss(
        samplewise=True, average="weighted", reduction="sum"
    ),
    "mcc": customloss.MCCLoss(),
    "generalized_dice": customloss.GeneralizedDiceLoss(samplewise=True),
    "own": customloss.ConfusionLoss(customloss.scores.g_mean),
}
Parts = list[tuple[Tensor, Tensor, Tensor]]


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets in which one class is absent, and weights."""
    torch.manual_seed(1)
    target = torch.rand(SAMPLES, CLASSES) < 0.3
    target[:, 1] = False
    weight = torch.rand(SAMPLES, CLASSES, dtype=dtype)
    return torch.randn(SAMPLES, FEATURES, dtype=dtype), target, weight


def cut(whole: tuple[Tensor, ...], count: int) -> Parts:
    """Uneven parts: all but the last have one or two samples."""
    sizes = [2 - part % 2 for part in range(count - 1)]
    sizes.append(SAMPLES - sum(sizes))
    return list(zip(*(tensor.split(sizes) for tensor in whole), strict=True))


def step(criterion: nn.Module, model: nn.Module, parts: Parts) -> list[Tensor]:
    """Runs one accumulated step and returns the losses of the micro-batches."""
    losses = []
    with customloss.accumulate(criterion) as whole:
        for x, target, weight in parts:
            with torch.no_grad():
                whole.add(model(x), target, weight)
        for x, target, weight in parts:
            loss = whole.loss(model(x), target, weight)
            loss.backward()
            losses.append(loss.detach())
    return losses


@covering
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("name", CRITERIA)
def test_micro_batches_equal_the_batch(name: str, count: int, dtype: torch.dtype) -> None:
    whole, criterion = batch(dtype), CRITERIA[name]
    at_once, in_parts = network(dtype), network(dtype)
    expected = criterion(at_once(whole[0]), *whole[1:])
    expected.backward()
    for loss in step(criterion, in_parts, cut(whole, count)):
        assert_equal(loss, expected)
    for own, other in zip(in_parts.parameters(), at_once.parameters(), strict=True):
        assert_equal(own.grad, other.grad)


def test_the_mean_of_micro_batches_is_another_loss() -> None:
    """The mean of losses differs, so the test above could not pass by averaging."""
    x, target, weight = batch(torch.float64)
    model, criterion = network(torch.float64), customloss.SoftF1Loss()
    parts = cut((x, target, weight), 8)
    mean = sum(criterion(model(x), *more) for x, *more in parts) / 8
    assert abs(mean - criterion(model(x), target, weight)) > 0.05


def test_the_first_pass_keeps_no_graph() -> None:
    whole = customloss.accumulate(customloss.SoftF1Loss())
    x = torch.randn(4, 3, requires_grad=True)
    whole.add(x, torch.rand(4, 3) < 0.4)
    assert whole.loss(x, torch.rand(4, 3) < 0.4).requires_grad
    assert not whole._whole.requires_grad


def test_the_criterion_is_left_as_it_was() -> None:
    criterion = customloss.SoftF1Loss()
    customloss.accumulate(criterion)
    assert criterion.process_group is None


# ---- over ranks ------------------------------------------------------------------------------


def ranks_accumulate() -> None:
    rank = dist.get_rank()
    for criterion in (
        customloss.SoftF1Loss(process_group=dist.group.WORLD),
        customloss.SoftF1Loss(samplewise=True, process_group=dist.group.WORLD),
    ):
        whole = batch(torch.float64)
        alone = network(torch.float64)
        own = customloss.SoftF1Loss(samplewise=criterion.samplewise)
        expected = own(alone(whole[0]), *whole[1:])
        expected.backward()
        parts = cut(whole, 5)[slice(0, 2) if rank == 0 else slice(2, 5)]
        model = DistributedDataParallel(network(torch.float64))
        with customloss.accumulate(criterion) as accumulated:
            for x, *more in parts:
                with torch.no_grad():
                    accumulated.add(model(x), *more)
            with model.no_sync():
                for x, *more in parts[:-1]:
                    accumulated.loss(model(x), *more).backward()
            loss = accumulated.loss(model(parts[-1][0]), *parts[-1][1:])
            loss.backward()
        assert_equal(loss, expected)
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            assert_equal(one.grad, other.grad)


@pytest.mark.distributed
def test_ranks_with_unlike_numbers_of_micro_batches() -> None:
    run(2, ranks_accumulate)


# ---- what can go wrong -----------------------------------------------------------------------


def operands(classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(4, classes, requires_grad=True), torch.rand(4, classes) < 0.4


def test_loss_without_add() -> None:
    with pytest.raises(RuntimeError, match=r"loss\(\) number 1 after 0 add\(\)"):
        customloss.accumulate(customloss.SoftF1Loss()).loss(*operands())


def test_more_losses_than_micro_batches() -> None:
    whole = customloss.accumulate(customloss.SoftF1Loss())
    whole.add(*operands())
    whole.loss(*operands())
    with pytest.raises(RuntimeError, match=r"loss\(\) number 2 after 1 add\(\)"):
        whole.loss(*operands())


def test_add_after_loss() -> None:
    whole = customloss.accumulate(customloss.SoftF1Loss())
    whole.add(*operands())
    whole.add(*operands())
    whole.loss(*operands())
    with pytest.raises(RuntimeError, match=r"add\(\) after loss\(\), which 1 of 2 micro"):
        whole.add(*operands())


def unfinished(error: Exception | None = None) -> None:
    with customloss.accumulate(customloss.SoftF1Loss()) as whole:
        whole.add(*operands())
        if error:
            raise error


def test_leaving_before_the_end() -> None:
    with pytest.raises(RuntimeError, match="of 1 micro-batches only 0 had their loss"):
        unfinished()
    with pytest.raises(KeyError):  # the user's own error comes through
        unfinished(KeyError())


def test_unlike_classes() -> None:
    whole = customloss.accumulate(customloss.SoftF1Loss())
    whole.add(*operands())
    with pytest.raises(ValueError, match=r"same number of classes.*\[4, 1, 5\].*\[4, 1, 3\]"):
        whole.add(*operands(5))


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), customloss.soft_f1_loss], ids=["bce", "f"]
)
def test_another_loss(loss: Any) -> None:
    with pytest.raises(TypeError, match="expected a loss module of customloss"):
        customloss.accumulate(loss)


class Learned(nn.Module):
    """A score with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return tp / (tp + self.alpha * fp + (1 - self.alpha) * fn)


@pytest.mark.parametrize("kind", ["weight", "tensor", "score", "compound"])
def test_what_the_loss_itself_learns_has_its_gradient_once(kind: str) -> None:
    """And not once in every micro-batch."""
    weight = nn.Parameter(torch.linspace(0.5, 2, CLASSES, dtype=torch.float64))
    criterion = {
        "weight": lambda: customloss.DiceLoss(class_weight=weight),
        "tensor": lambda: customloss.DiceLoss(class_weight=2 * weight),
        "score": lambda: customloss.ConfusionLoss(Learned(), average="weighted"),
        "compound": lambda: customloss.DiceBCELoss(class_weight=weight, pos_weight=weight),
    }[kind]()
    learned = weight if kind != "score" else criterion.score.alpha
    x, target, _ = batch(torch.float64)
    x = x[:, :1].repeat(1, CLASSES) * torch.linspace(-1, 1, CLASSES)
    (expected,) = torch.autograd.grad(criterion(x, target), learned, retain_graph=True)
    with customloss.accumulate(criterion) as whole:
        parts = list(zip(x.split(5), target.split(5)))
        for part in parts:
            whole.add(*part)
        losses = [whole.loss(*part) for part in parts]
    found = [torch.autograd.grad(loss, learned, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(sum(found), expected)


def test_losses_of_single_samples() -> None:
    whole = customloss.accumulate(customloss.SoftF1Loss(samplewise=True, reduction="none"))
    with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum'"):
        whole.add(*operands())


def test_debug_mode_finds_forwards_that_differ() -> None:
    found = run_python(
        """if True:
        import torch, customloss
        for p in (0.0, 0.5):
            dropout, x, target = torch.nn.Dropout(p), torch.randn(64, 3), torch.rand(64, 3) < 0.4
            with customloss.accumulate(customloss.SoftF1Loss()) as whole:
                for _ in range(2):
                    whole.add(dropout(x), target)
                for _ in range(2):
                    whole.loss(dropout(x), target)
            print("passed with", p)
        """,
        CUSTOMLOSS_DEBUG="1",
    )
    assert found.stdout == "passed with 0.0\n"
    assert "ValueError: accumulate: the second forward" in found.stderr


def differing(change: float, count: int = 2) -> None:
    """A block whose second pass sees logits that differ by ``change``."""
    x, target = operands()
    with customloss.accumulate(customloss.SoftF1Loss()) as whole:
        for _ in range(count):
            whole.add(x, target)
        for _ in range(count):
            whole.loss(x + change * x, target)


def test_unlike_passes_are_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulation, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        differing(0.0)
        differing(math.nan)  # a step that a gradient scaler skips
    with pytest.warns(UserWarning, match=r"^accumulate: the second forward.*dropout.*once") as seen:
        differing(0.5)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        differing(0.5)
