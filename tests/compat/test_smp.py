"""The drop-ins for segmentation_models_pytorch against its own losses."""

from __future__ import annotations

import copy
import random
from importlib.util import find_spec

import pytest
import torch

from customloss._bench.libraries import import_alone
from customloss.compat import smp


@pytest.mark.parametrize("name", ["Dice", "Jaccard", "Tversky"])
@pytest.mark.parametrize("seed", range(60))
@pytest.mark.skipif(find_spec("segmentation_models_pytorch") is None, reason="needs smp")
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
