"""The drop-ins for segmentation_models_pytorch against its own losses."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from drop_in_cases import Drawn, compared

from customloss._bench.libraries import import_alone
from customloss.compat import smp

needs_smp = pytest.mark.skipif(
    find_spec("segmentation_models_pytorch") is None, reason="needs segmentation_models_pytorch"
)


@pytest.mark.parametrize("name", ["Dice", "Jaccard", "Tversky"])
@pytest.mark.parametrize("seed", range(60))
@needs_smp
def test_values_and_gradients_are_those_of_smp(name: str, seed: int) -> None:
    draw = random.Random(seed)
    mode = draw.choice(["binary", "multiclass", "multilabel"])
    classes = 1 if mode == "binary" else 3
    options = {
        "mode": mode, "log_loss": draw.random() < 0.4, "smooth": draw.choice([0.0, 1.0, 1e-5]),
        "ignore_index": draw.choice([None, 255]),
    }  # fmt: skip
    if mode != "binary":
        options["classes"] = draw.choice([None, [0], [2, 0]])
        options["class_weights"] = draw.choice([None, [0.2, 0.5, 1.0]])
    if name == "Tversky":
        options |= {"alpha": 0.3, "beta": 0.7, "gamma": draw.choice([1.0, 2.0])}
    module = import_alone(f"segmentation_models_pytorch.losses.{name.lower()}")
    logits = torch.randn(2, classes, 4, 3, dtype=torch.float64, requires_grad=True)
    numbers = mode == "multiclass"
    target = torch.randint(3 if numbers else 2, (2, 4, 3) if numbers else (2, classes, 4, 3))
    if options["ignore_index"] is not None:
        target[0, ..., 0] = 255
    if not numbers and seed % 2:
        target = target.double()
    theirs = getattr(module, f"{name}Loss")(**options)(logits, target)
    ours = copy.deepcopy(getattr(smp, f"{name}Loss")(**options))(logits, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), expected, rtol=1e-10, atol=1e-10)


def test_an_absent_class_divides_the_mean_unless_not_strict() -> None:
    logits, target = torch.randn(2, 3, 5), torch.randint(2, (2, 5))
    loss = smp.DiceLoss("multiclass")(logits, target)
    mended = smp.DiceLoss("multiclass", strict=False)(logits, target)
    torch.testing.assert_close(mended, loss * 3 / 2)


def _dtype(draw: random.Random) -> tuple[torch.dtype, float]:
    """A dtype and its tolerance."""
    return draw.choice([(torch.float32, 1e-5), (torch.float64, 1e-10)])


def _focal(draw: random.Random) -> Drawn:
    mode = draw.choice(["binary", "multiclass", "multilabel"])
    dtype, tolerance = _dtype(draw)
    classes = 1 if mode == "binary" else draw.choice([2, 3, 5])
    options: dict[str, Any] = {
        "mode": mode, "alpha": draw.choice([None, 0.25, 0.7]),
        "gamma": draw.choice([0.0, 0.5, 1.0, 2.0, 3.0]),
        "ignore_index": draw.choice([None, None, 255, 1]), "from_logits": draw.random() < 0.7,
        "eps": draw.choice([1e-7, 1e-3]), "reduction": draw.choice(["mean", "sum"]),
    }  # fmt: skip
    if mode != "binary" and draw.random() < 0.5:
        options["class_weights"] = [draw.random() for _ in range(classes)]
        tolerance = max(tolerance, 1e-6)  # smp adds the weights up in float32
    if mode == "binary" and draw.random() < 0.2:
        options["reduction"] = "batchwise_mean"
    shape = draw.choice([(3, classes, 4, 5), (2, classes, 7), (6, classes)])
    input = torch.randn(shape, dtype=dtype) * draw.choice([0.5, 3.0])
    if not options["from_logits"]:
        input = input.softmax(1) if mode == "multiclass" else input.sigmoid()
    if mode == "multiclass":
        target = torch.randint(classes, (shape[0], *shape[2:]))
    else:
        target = torch.randint(2, shape)
        target = draw.choice([target, target.bool(), target.to(dtype)])
    if options["ignore_index"] == 255 and target.dtype != torch.bool:
        target[0] = 255
    return Drawn(options, input, (target,), tolerance)


def _mcc(draw: random.Random) -> Drawn:
    dtype, tolerance = _dtype(draw)
    shape = draw.choice([(2, 1, 4, 5), (3, 6, 5), (1, 40)])
    input = torch.rand(shape, dtype=dtype)
    target = torch.randint(2, shape)
    target = draw.choice([target, target.to(dtype), target * 0, torch.rand(shape, dtype=dtype)])
    return Drawn({"eps": draw.choice([1e-5, 1e-2, 1.0])}, input, (target,), tolerance)


def _soft_bce(draw: random.Random) -> Drawn:
    dtype, tolerance = _dtype(draw)
    shape = draw.choice([(2, 3, 4, 5), (4, 3), (6,), (2, 1, 3, 3)])
    classes = shape[1] if len(shape) > 1 else 1
    per_class = (classes, *(1,) * (len(shape) - 2))
    target = torch.randint(2, shape).to(dtype)
    options: dict[str, Any] = {
        "ignore_index": draw.choice([None, -100, 255, 1]),
        "reduction": draw.choice(["mean", "sum"]),
        "smooth_factor": draw.choice([None, 0.0, 0.1, 0.3]),
        "weight": draw.choice(
            [None, torch.rand(shape, dtype=dtype), torch.rand(per_class, dtype=dtype)]
        ),
        "pos_weight": draw.choice(
            [None, torch.tensor(2.5, dtype=dtype), torch.rand(per_class, dtype=dtype)]
        ),
    }
    if options["ignore_index"] == 255:
        target[0] = 255
    elif draw.random() < 0.3:
        target = torch.rand(shape, dtype=dtype)
    return Drawn(options, torch.randn(shape, dtype=dtype), (target,), tolerance)


def _soft_ce(draw: random.Random) -> Drawn:
    dtype, tolerance = _dtype(draw)
    classes = draw.choice([2, 3, 7])
    rest = draw.choice([(4, 5), (6,), ()])
    dim = draw.choice([1, 1, 1, -1, 0])
    options = {
        "reduction": draw.choice(["mean", "sum"]),
        "smooth_factor": draw.choice([0.0, 0.1, 0.5]),
        "ignore_index": draw.choice([None, -100, 255, 1]), "dim": dim,
    }  # fmt: skip
    input = torch.randn((3, classes, *rest), dtype=dtype).movedim(1, dim)
    target = torch.randint(classes, (3, *rest))
    if options["ignore_index"] not in (None, 1):
        target[0] = options["ignore_index"]
    if draw.random() < 0.3:
        target = target.unsqueeze(dim)
    return Drawn(options, input, (target,), tolerance)


POINTWISE: dict[str, tuple[str, Callable[[random.Random], Drawn]]] = {
    "FocalLoss": ("focal", _focal),
    "MCCLoss": ("mcc", _mcc),
    "SoftBCEWithLogitsLoss": ("soft_bce", _soft_bce),
    "SoftCrossEntropyLoss": ("soft_ce", _soft_ce),
}


@needs_smp
@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.more)])
def test_drawn_options_agree_with_smp(name: str, count: int) -> None:
    module, draw = POINTWISE[name]
    theirs = getattr(import_alone(f"segmentation_models_pytorch.losses.{module}"), name)
    outcome = compared(getattr(smp, name), theirs, draw, count, seed=count)
    assert outcome.accepted == count
    assert not outcome.differences, outcome.differences[:3]
    assert outcome.refused <= count // 100


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smp.FocalLoss("binary", normalized=True), "normalized=True"),
        (lambda: smp.FocalLoss("binary", reduced_threshold=0.5), "reduced_threshold"),
        (lambda: smp.FocalLoss("binary", reduction="none"), "reduction='none'"),
        (lambda: smp.FocalLoss("binary", reduction=None), "reduction=None"),
        (lambda: smp.SoftBCEWithLogitsLoss(reduction="none"), "reduction='none'"),
        (lambda: smp.SoftBCEWithLogitsLoss(smooth_factor=0.5), "smooth_factor=0.5"),
        (lambda: smp.SoftCrossEntropyLoss(reduction="none"), "reduction='none'"),
        (lambda: smp.SoftCrossEntropyLoss(smooth_factor=1.0), "smooth_factor=1.0"),
    ],
)
def test_what_is_not_there_is_refused_by_its_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(NotImplementedError, match=said):
        make()


def test_a_pos_weight_within_a_class_is_refused() -> None:
    criterion = smp.SoftBCEWithLogitsLoss(pos_weight=torch.rand(4, 5))
    with pytest.raises(NotImplementedError, match=r"pos_weight of shape \[4, 5\]"):
        criterion(torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, 5))


def test_not_strict_divides_by_what_counts() -> None:
    logits, target = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    target[0] = -100
    ours = smp.SoftCrossEntropyLoss(strict=False)(logits, target)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, target))
    torch.testing.assert_close(smp.SoftCrossEntropyLoss()(logits, target), ours / 2)
    mask = torch.randint(2, (4, 6)).float()
    mask[:2] = 255.0
    bce = smp.SoftBCEWithLogitsLoss(ignore_index=255, strict=False)(torch.zeros(4, 6), mask)
    torch.testing.assert_close(bce, torch.tensor(2.0).log())


def test_not_strict_focal_takes_probabilities_as_they_are() -> None:
    logits, target = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    expected = smp.FocalLoss("multiclass")(logits, target)
    ours = smp.FocalLoss("multiclass", from_logits=False, strict=False)(logits.sigmoid(), target)
    torch.testing.assert_close(ours, expected)
    total = smp.FocalLoss("multiclass", reduction="sum", strict=False)(logits, target)
    torch.testing.assert_close(total, expected * 30)


def test_not_strict_mcc_takes_logits() -> None:
    logits, target = torch.randn(2, 1, 5), torch.randint(2, (2, 1, 5))
    torch.testing.assert_close(
        smp.MCCLoss(strict=False)(logits, target), smp.MCCLoss()(logits.sigmoid(), target)
    )
