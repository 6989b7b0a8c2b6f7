"""The drop-ins for pytorch-toolbelt against its own losses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import toolbelt_losses
import torch
from drop_in_cases import Drawn, compared

import customloss
from customloss.compat import toolbelt

needs_toolbelt = pytest.mark.skipif(
    not toolbelt_losses.installed(), reason="needs pytorch_toolbelt"
)


def _dtype(draw: random.Random) -> tuple[torch.dtype, float]:
    """A dtype and its tolerance."""
    return draw.choice([(torch.float32, 1e-5), (torch.float64, 1e-10)])


def _of_batch(draw: random.Random, dice: bool) -> Drawn:
    mode = draw.choice(["binary", "multiclass", "multilabel"])
    dtype, tolerance = _dtype(draw)
    classes = 1 if mode == "binary" else draw.choice([2, 3, 5])
    options: dict[str, Any] = {
        "mode": mode, "log_loss": draw.random() < 0.4, "from_logits": draw.random() < 0.7,
        "smooth": draw.choice([0.0, 1.0, 1e-5]), "eps": draw.choice([1e-7, 1e-3]),
    }  # fmt: skip
    if dice:
        options["ignore_index"] = draw.choice([None, 255, 1])
    if mode != "binary":
        options["classes"] = draw.choice([None, torch.tensor([0]), torch.tensor([1, 0])])
    shape = draw.choice([(3, classes, 4, 5), (2, classes, 7)])
    input = torch.randn(shape, dtype=dtype) * draw.choice([0.5, 3.0])
    if not options["from_logits"]:
        input = input.softmax(1) if mode == "multiclass" else input.sigmoid()
    if mode == "multiclass":
        target = torch.randint(draw.choice([1, classes]), (shape[0], *shape[2:]))
    else:
        target = torch.randint(2, shape)
        target = draw.choice([target, target.to(dtype), torch.rand(shape, dtype=dtype)])
    if options.get("ignore_index") == 255:
        target[0] = 255
    return Drawn(options, input, (target,), tolerance)


def _soft_f1(draw: random.Random) -> Drawn:
    dtype, tolerance = _dtype(draw)
    rows, classes = draw.choice([1, 7, 40]), draw.choice([2, 3, 6])
    input = torch.randn((rows, classes), dtype=dtype) * draw.choice([1.0, 20.0])
    return Drawn(
        {"eps": draw.choice([1e-6, 1e-2])}, input, (torch.randint(classes, (rows,)),), tolerance
    )


def _binary_soft_f1(draw: random.Random) -> Drawn:
    dtype, tolerance = _dtype(draw)
    options = {"ignore_index": draw.choice([None, 255, 0]), "eps": draw.choice([1e-6, 1e-2])}
    shape = draw.choice([(40,), (3, 1, 4, 5), (2, 6)])
    target = torch.randint(2, shape)
    target = draw.choice([target, target.to(dtype), torch.rand(shape, dtype=dtype)])
    if options["ignore_index"] == 255:
        target[0] = 255
    return Drawn(options, torch.randn(shape, dtype=dtype) * 4, (target,), tolerance)


def _binary_focal(draw: random.Random) -> Drawn:
    classes = draw.choice([1, 3])
    options: dict[str, Any] = {
        "alpha": draw.choice([None, 0.25, 0.5, 1.0]), "gamma": draw.choice([0.0, 0.5, 1.0, 2.0]),
        "ignore_index": draw.choice([None, 255]), "reduction": draw.choice(["mean", "sum"]),
    }  # fmt: skip
    options["class_weights"] = draw.choice([None, torch.rand(classes), [0.5] * classes])
    shape = draw.choice([(3, classes, 4, 5), (2, classes, 7), (5, classes)])
    kind = draw.choice(["integers", "floats", "soft", *(["numbers"] if classes > 1 else [])])
    if kind == "numbers":
        target = torch.randint(classes, (shape[0], *shape[2:]))
    else:
        target = torch.rand(shape) if kind == "soft" else torch.randint(2, shape)
        target = target.float() if kind == "floats" else target
    if options["ignore_index"] == 255:
        target[0] = 255
    return Drawn(options, torch.randn(shape), (target,), 1e-5)


DRAWS: dict[str, tuple[str, Callable[[random.Random], Drawn]]] = {
    "DiceLoss": ("dice", lambda draw: _of_batch(draw, True)),
    "JaccardLoss": ("jaccard", lambda draw: _of_batch(draw, False)),
    "SoftF1Loss": ("soft_f1", _soft_f1),
    "BinarySoftF1Loss": ("soft_f1", _binary_soft_f1),
    "BinaryFocalLoss": ("focal", _binary_focal),
}


@needs_toolbelt
@pytest.mark.parametrize("name", toolbelt.__all__)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.more)])
def test_drawn_options_agree_with_toolbelt(name: str, count: int) -> None:
    module, draw = DRAWS[name]
    theirs = getattr(toolbelt_losses.load(module), name)
    outcome = compared(getattr(toolbelt, name), theirs, draw, count, seed=count)
    assert outcome.accepted == count
    assert not outcome.differences, outcome.differences[:3]
    assert not outcome.refused


@pytest.mark.parametrize("kind", [toolbelt.DiceLoss, toolbelt.JaccardLoss])
def test_a_list_of_classes_is_taken_as_such(kind: type[toolbelt.DiceLoss]) -> None:
    logits, target = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    expected = kind("multiclass", classes=torch.tensor([2, 0]))(logits, target)
    assert expected == kind("multiclass", classes=[2, 0])(logits, target)


def test_not_strict_leaves_absent_classes_out_of_the_mean() -> None:
    logits, target = torch.randn(2, 3, 5), torch.arange(10).view(2, 5) % 2
    loss = toolbelt.DiceLoss("multiclass")(logits, target)
    mended = toolbelt.DiceLoss("multiclass", strict=False)(logits, target)
    torch.testing.assert_close(mended, loss * 3 / 2)


def test_float64_keeps_its_digits() -> None:
    logits, target = torch.randn(4, 3, dtype=torch.float64), torch.randint(2, (4, 3))
    ours = toolbelt.BinaryFocalLoss()(logits, target)
    p = logits.sigmoid()
    hit = torch.where(target == 1, p, 1 - p)
    expected = ((1 - hit) ** 2 * -hit.log()).mean()
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: toolbelt.SoftF1Loss(ignore_index=255), "ignore_index=255"),
        (lambda: toolbelt.BinaryFocalLoss()(torch.zeros(5, 1), torch.zeros(5).long()), "one class"),
        (lambda: toolbelt.FocalLoss(), "focal factor of a softmax"),
        (lambda: toolbelt.CrossEntropyFocalLoss(), "focal factor of a softmax"),
        (lambda: toolbelt.BinaryFocalLoss(activation="softmax"), "activation='softmax'"),
        (lambda: toolbelt.BinaryFocalLoss(normalized=True), "normalized=True"),
        (lambda: toolbelt.BinaryFocalLoss(reduced_threshold=0.5), "reduced_threshold"),
        (lambda: toolbelt.BinaryFocalLoss(reduction="batchwise_mean"), "batchwise_mean"),
        (lambda: toolbelt.FocalLoss(reduction="none", strict=False), "reduction='none'"),
    ],
)
def test_what_is_not_there_is_refused_by_its_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(NotImplementedError, match=said):
        make()


def test_not_strict_is_one_pass_of_the_activation() -> None:
    logits, target = torch.randn(20, 3), torch.randint(3, (20,))
    target[:5] = -100
    loss = toolbelt.SoftF1Loss(ignore_index=-100, strict=False)(logits, target)
    expected = toolbelt.SoftF1Loss()(logits[5:], target[5:])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    focal = toolbelt.FocalLoss(strict=False)(logits, target)
    by_us = customloss.focal_loss(logits, target, activation="softmax", ignore_index=-100)
    torch.testing.assert_close(focal, by_us)


def test_nothing_that_counts_costs_nothing() -> None:
    criterion = toolbelt.BinarySoftF1Loss(ignore_index=255)
    assert criterion(torch.randn(4), torch.full((4,), 255)) == 0
