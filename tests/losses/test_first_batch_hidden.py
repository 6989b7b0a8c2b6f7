"""The check of the first batch leaves out classes that no part of the loss counts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import customloss

GENERATOR = torch.Generator().manual_seed(8)
X = torch.randn(6, 3, 4, dtype=torch.float64, generator=GENERATOR)
T = (torch.rand(6, 3, 4, generator=GENERATOR) < 0.4).double()
ROWS = torch.nn.functional.one_hot(torch.randint(0, 3, (6, 4), generator=GENERATOR)).movedim(-1, 1)
NAN = float("nan")

# each hides class 1 from a score, and may be about a pointwise loss as well
HIDDEN: dict[str, dict[str, Any]] = {
    "a weight of 0": {"class_weight": [1.0, 0.0, 2.0]},
    "a tensor": {"class_weight": torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)},
    "other classes": {"classes": (2, 0)},
    "both": {"class_weight": [0.0, 3.0, 1.0], "classes": (0, 2)},
}
# and from the pointwise loss
OWN: dict[str, dict[str, Any]] = {
    "a weight of its own": {"pointwise_class_weight": [1.0, 0.0, 1.0]},
    "classes of its own": {"pointwise_classes": (0, 2)},
}


def with_class(values: Tensor, value: float) -> Tensor:
    found = values.clone()
    found[:, 1] = value
    return found


def accepted(criterion: Any, *operands: Tensor) -> Tensor:
    """The loss of a first batch of which nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss: Tensor = criterion(*operands)
    return loss


@pytest.mark.parametrize("value", [255.0, -1.0, NAN])
@pytest.mark.parametrize("name", HIDDEN)
def test_targets(name: str, value: float) -> None:
    options = HIDDEN[name]
    for loss in (customloss.DiceLoss, customloss.MCCLoss):
        found = accepted(loss(**options), X, with_class(T, value))
        torch.testing.assert_close(found, loss(**options)(X, T))
        with pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\]"):
            loss()(X, with_class(T, value))
        with pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\]"):
            loss(**options)(X, with_class(T, value).flip(1).roll(1, 1))  # a class that counts


@pytest.mark.parametrize("name", HIDDEN)
def test_probabilities_and_negative_weights(name: str) -> None:
    options = HIDDEN[name]
    p, w = X.sigmoid(), torch.ones_like(X)
    plain = customloss.DiceLoss(activation="none", **options)
    torch.testing.assert_close(accepted(plain, with_class(p, 7.0), T), plain(p, T))
    signed = customloss.DiceLoss(**options)
    torch.testing.assert_close(accepted(signed, X, T, with_class(w, -1.0)), signed(X, T))
    with pytest.raises(ValueError, match=r"^input: expected probabilities"):
        customloss.DiceLoss(activation="none")(with_class(p, 7.0), T)
    with pytest.warns(UserWarning, match=r"^weight: expected numbers >= 0"):
        customloss.DiceLoss(**options)(X, T, with_class(w, -1.0).roll(1, 1))


def test_a_background_of_a_softmax_that_no_target_has() -> None:
    """Where it does not count, a pixel of background may have no class at all; not two of them."""
    target = ROWS.clone()
    target[:, 0] = 0
    criterion = customloss.DiceLoss(activation="softmax", include_background=False)
    accepted(criterion, X, target)
    target[:, 1:] = 1
    with pytest.warns(UserWarning, match=r"^target: expected classes that add up to 1"):
        customloss.DiceLoss(activation="softmax", include_background=False)(X, target)


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("name", HIDDEN)
def test_a_class_that_one_part_counts_is_looked_at(name: str, own: str) -> None:
    wrong = with_class(T, 255.0)
    hidden = customloss.DiceBCELoss(**HIDDEN[name], **OWN[own])
    torch.testing.assert_close(accepted(hidden, X, wrong), hidden(X, T))
    refused = pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\]")
    for options in (
        OWN[own], {**HIDDEN[name], "pointwise_class_weight": [1.0, 1.0, 1.0]},
    ):  # fmt: skip
        with refused:
            customloss.DiceBCELoss(**options)(X, wrong)
    # a part of weight 0 is not there
    accepted(customloss.DiceBCELoss(dice_weight=0.0, **OWN[own]), X, wrong)
    accepted(customloss.DiceBCELoss(bce_weight=0.0, **HIDDEN[name]), X, wrong)


def test_a_pointwise_loss_alone() -> None:
    wrong, options = with_class(T, 255.0), {"class_weight": [1.0, 0.0, 1.0]}
    for loss in (customloss.BCELoss, customloss.FocalLoss):
        found = accepted(loss(**options), X, wrong)
        torch.testing.assert_close(found, loss(**options)(X, T))
        found = accepted(loss(**options, activation="none"), with_class(X.sigmoid(), 7.0), T)
        torch.testing.assert_close(found, loss(**options, activation="none")(X.sigmoid(), T))


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("value", [7.0, NAN])
@pytest.mark.parametrize("name", HIDDEN)
def test_the_score_of_any_loss_is_that_of_the_shown_classes(
    name: str, value: float, average: str
) -> None:
    """Its input are probabilities, which a steep sigmoid sharpens; the others may hold anything."""
    options, p = HIDDEN[name], X.sigmoid()
    given = with_class(p, value).requires_grad_()
    loss = accepted(customloss.AnyLoss(average=average, **options), given, T)
    sharp = torch.sigmoid(73 * (p - 0.5))
    products = (sharp * T, sharp * (1 - T), (1 - sharp) * T)
    tp, fp, fn = (each.sum((0, 2))[[0, 2]] for each in products)
    weight = torch.as_tensor(options.get("class_weight", [1.0, 1.0, 1.0])).double()[[0, 2]]
    if average == "micro":
        tp, fp, fn = (weight @ each for each in (tp, fp, fn))
        expected = (fp + fn) / (2 * tp + fp + fn)
    else:
        weight = weight * (tp + fn) if average == "weighted" else weight
        expected = weight @ ((fp + fn) / (2 * tp + fp + fn)) / weight.sum()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, given)
    assert (gradient[:, 1] == 0).all()
    assert gradient.isfinite().all()
