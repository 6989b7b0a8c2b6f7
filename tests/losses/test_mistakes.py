"""What people get wrong most often is named, with a cure; what is right and looks alike is not."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from small_batches import XC, T, X, Y, logits, mask, numbers
from torch import Tensor

import customloss
from customloss._spec import batch_values
from customloss._spec.operands import INPUT_DTYPES

NAN, INF = float("nan"), float("inf")
SOFTMAX, PROBABILITIES = {"activation": "softmax"}, {"activation": "none"}
NO_CLASSES: dict[str, Any] = {**SOFTMAX, "out_of_range": "ignore"}

# options, operands, and what the message says
ERRORS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...], str]] = {
    "a mask of 0 and 255": (
        {}, (X, (T * 255).to(torch.uint8)),
        "target: expected values in [0, 1], got values 0 and 255: divide by 255 or compare with 0",
    ),
    "a grey mask": (
        {}, (X, torch.tensor([0, 100, 255] * 4).reshape(2, 1, 6)),
        "target: expected values in [0, 1], got values from 0 to 255: divide by 255",
    ),
    "a mask of 255": (
        {}, (X, torch.full((2, 1, 6), 255.0)),
        "target: expected values in [0, 1], got 255 everywhere: divide by 255",
    ),
    "an infinite mask": (
        {}, (X, torch.full((2, 1, 6), float("inf"))),
        "target: expected values in [0, 1], got inf everywhere: compare with 0",
    ),
    "-1 and 1": (
        {}, (X, T * 2 - 1),
        "target: expected values in [0, 1], got values -1 and 1: pass (target + 1) / 2, or "
        "target > 0",
    ),
    "1 and 2": ({}, (X, T + 1), "got values 1 and 2: pass target - 1"),
    "from -1 to 1": ({}, (X, X / 3), "got values from -1 to 1: pass (target + 1) / 2, or target"),
    "an ignored value": (
        {}, (X, torch.where(X > 2, 255, T.int())),
        "got 255 beside 0 and 1: if 255 marks what does not count, pass ignore_index=255",
    ),
    "an ignored float, and another": (
        {"ignore_index": 9}, (X, torch.where(X > 2, torch.where(T, 9.0, -1.0), T.float())),
        "got -1 beside 0 and 1: if -1 marks what does not count, pass ignore_index=-1",
    ),
    "an ignored value of a softmax": (
        SOFTMAX, (XC, torch.where(torch.arange(3)[:, None] == 1, 255, mask(2, 3, 6).int())),
        "got 255 beside 0 and 1: if 255 marks what does not count, pass a weight of 0 there",
    ),
    "class numbers in one channel": (
        {}, (X, numbers(4, 2, 1, 6)),
        "got values from 0 to 3: class numbers need an input with a channel for each",
    ),
    "dense class numbers": (
        {}, (XC, numbers(3, 2, 3, 6)),
        "target: expected values in [0, 1] (or class numbers, without a dimension of classes), got "
        "values from 0 to 2",
    ),
    "an unsigned mask": ({}, (X, (T * 65535).to(torch.uint16)), "got values 0 and 65535: divide"),
    "float targets": (
        {}, (X, logits(2, 1, 6)), "got values from -3 to 3: is this tensor the target?",
    ),
    "a NaN target": (
        {}, (X, torch.where(T, NAN, 0.0)),
        "got NaN: if they mark what is missing, nan_targets='ignore' leaves them out",
    ),
    "a NaN target of a softmax": (
        SOFTMAX, (XC, torch.where(mask(2, 3, 6), NAN, 0.0)), "a weight of 0 leaves such pixels out",
    ),
    "logits for probabilities": (
        PROBABILITIES, (X, T),
        "input: expected probabilities in [0, 1] with activation='none', got values from -3 to 3: "
        "are these logits? Pass activation='sigmoid', or",
    ),
    "percentages": (
        PROBABILITIES, (T * 99.0, T),
        "got values from 0 to 99: are these logits? Pass activation='sigmoid', or 'softmax' for "
        "classes that exclude each other; to a loss without that option, pass input.sigmoid(); "
        "percentages need input / 100",
    ),
    "logarithms of probabilities": (
        PROBABILITIES, (-X.abs(), T), "log-probabilities need input.exp()",
    ),
    "labels from 1": (
        SOFTMAX, (XC, Y + 1),
        "target: expected class numbers from 0 to 2, got some from 1 to 3, as if they began at 1: "
        "pass target - 1",
    ),
    "labels from 0 to C": (SOFTMAX, (XC, Y + (Y == 2).long()), "if 3 marks what does not count"),
    "labels of 0 and 255": (
        SOFTMAX, (logits(2, 2, 6), mask(2, 6) * 255),
        "target: expected class numbers from 0 to 1, got values 0 and 255: is this a mask? Pass "
        "(target > 0).long(); or ignore_index=255, if",
    ),
    "labels of 0, 1 and 255": (
        SOFTMAX, (logits(2, 2, 6), torch.where(numbers(3, 2, 6) == 2, 255, numbers(3, 2, 6))),
        "got 255; if 255 marks what does not count, pass ignore_index=255",
    ),
    "a label beyond": (SOFTMAX, (XC, Y * 5), "has 3 classes), got 10; if 10 marks"),
    "a label below": (
        {**SOFTMAX, "ignore_index": 2}, (XC, Y - 1),
        "has 3 classes) or ignore_index=2, got -1; if -1 marks",
    ),
    "input and target swapped": (
        {}, (T.float(), X),
        "input, target: expected logits and then their targets, got an input of 0 and 1 and a "
        "target with values from -3 to 3: they seem to be swapped, logits come first",
    ),
}  # fmt: skip

# options, operands, and what the warning says
WARNINGS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...], str]] = {
    "rows that add up to more": (
        SOFTMAX, (XC, torch.ones(2, 3, 6)),
        "target: expected classes that add up to 1 in every pixel with activation='softmax', got "
        "sums of 3: where several classes may be there at once, pass activation='sigmoid'",
    ),
    "pixels without a class": (
        SOFTMAX, (XC, torch.nn.functional.one_hot(Y).movedim(-1, 1) * mask(2, 1, 6)),
        "got sums from 0 to 1: is the background missing? It is a class as well;",
    ),
    "more classes at once than a byte can count": (
        SOFTMAX, (logits(2, 300), (torch.arange(300) < 257).expand(2, 300)), "got sums of 257: ",
    ),
    "chosen rows that add up to more": (
        {**SOFTMAX, "classes": (0, 2)}, (XC, torch.ones(2, 3, 6)), "got sums of 2: where several",
    ),
    "probabilities": (
        {}, (logits(2, 1, 32).sigmoid(), mask(2, 1, 32)),
        "input: expected logits with activation='sigmoid', got values from 0.0474259 to 0.952574: "
        "are these probabilities already? Pass the logits, without a sigmoid or softmax before the "
        "loss; or activation='none', if the loss has that option",
    ),
    "decisions": ({}, (mask(2, 1, 32).float(), mask(2, 1, 32)), "got values from 0 to 1: are"),
    "probabilities of classes": (
        SOFTMAX, (logits(2, 2, 16).softmax(1), numbers(2, 2, 16)),
        "input: expected logits with activation='softmax', got values from 0.178901 to 0.821099 "
        "that add up to 1 over the classes: are these probabilities already?",
    ),
    "halves of probabilities of classes": (
        SOFTMAX, (logits(2, 4, 16).softmax(1).bfloat16(), numbers(4, 2, 16)),
        "are these probabilities already?",
    ),
    "probabilities that are swapped": (
        PROBABILITIES, (T.float(), X.sigmoid().requires_grad_()),
        "input, target: expected predictions and then their targets, got a target that requires a "
        "gradient and an input that does not: they seem to be swapped, predictions come first",
    ),
    "a negative weight": (
        {}, (X, T, logits(2, 1, 6)),
        "weight: expected numbers >= 0, got -3: the sums may become negative and the loss leave "
        "its range. A boundary loss means that; else, is this tensor a weight?",
    ),
    "everything is ignored": (
        {**SOFTMAX, "ignore_index": 7}, (XC, torch.full_like(Y, 7)),
        "target: expected something that counts, but every element is ignored (ignore_index=7), so "
        "that nothing is learnt: is that meant?",
    ),
    "everything is NaN": (
        {"nan_targets": "ignore"}, (X, torch.full_like(X, NAN)),
        "target: expected something that counts, but every element is NaN, so that nothing",
    ),
    "every class weighs 0": (
        {"class_weight": [0.0, 0.0, 0.0]}, (XC, mask(2, 3, 6)),
        "every element belongs to a class of weight 0, so that nothing is learnt",
    ),
    "the only class weighs 0": (
        {"class_weight": [0.0]}, (X[0, 0], T[0, 0]), "every element belongs to a class of weight 0",
    ),
    "a weight of 0": (
        {}, (X, T, torch.zeros(2, 1, 1)), "weight: expected something that counts, but every",
    ),
    "ignored, and the rest of weight 0": (
        {"ignore_index": 7}, (X, torch.where(T, 7, 300), T),
        "weight: expected something that counts, but every",
    ),
    "[B, T, C] with T = C": (
        SOFTMAX, (logits(2, 3, 3), numbers(3, 2, 3)),
        "target: expected class numbers whose shape can be read in one way, got [2, 3] for an "
        "input [2, 3, 3]: the classes are taken to be dim 1",
    ),
    "[N, H, W, C] with H = W = C": (
        {}, (logits(2, 3, 3, 3), numbers(3, 2, 3, 3)), "pass input.movedim(-1, 1)",
    ),
    "one-hot with the classes last": (
        {}, (logits(2, 3, 3), torch.eye(3)[torch.tensor([[0, 0, 1], [2, 2, 2]])]),
        "target: expected the classes in dim 1 of [2, 3, 3], but it adds up to 1 over its last "
        "dim, as if that held the classes: pass target.movedim(-1, 1), and input alike",
    ),
    "logits and one-hot with the classes last": (
        {}, (logits(4, 6, 3), torch.eye(3)[numbers(3, 4, 6)]), "adds up to 1 over its last dim",
    ),
    "the same of a softmax": (
        SOFTMAX, (logits(2, 6, 3), torch.eye(3)[numbers(3, 2, 6)]), "adds up to 1 over its last",
    ),
}  # fmt: skip

RIGHT: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "bool": ({}, (X, T)),
    "soft": ({}, (X, X.sigmoid())),
    "probabilities": (PROBABILITIES, (X.sigmoid(), T)),
    "rounded averages": (PROBABILITIES, (T * (1 + 2e-7), T * (1 + 2e-7))),
    "labels": (SOFTMAX, (XC, Y)),
    "one-hot": (SOFTMAX, (XC, torch.nn.functional.one_hot(Y).movedim(-1, 1))),
    "soft rows": (SOFTMAX, (XC, XC.softmax(1))),
    "halves of soft rows": (SOFTMAX, (XC.bfloat16(), XC.bfloat16().softmax(1))),
    "ignored labels": ({**SOFTMAX, "ignore_index": 255}, (XC, torch.where(Y == 2, 255, Y))),
    "ignored elements": ({"ignore_index": -100}, (X, torch.where(T, -100, 1))),
    "small labels of which -100 is none": (
        {**SOFTMAX, "ignore_index": -100}, (XC, Y.to(torch.uint8)),
    ),
    "hidden targets": ({}, (X, torch.where(T, 255.0, 1.0), ~T)),
    "targets hidden by an unsigned mask": (
        {}, (X, torch.where(T, 255.0, 1.0), (~T).to(torch.uint16)),
    ),
    "hidden NaN targets": ({}, (X, torch.where(T, NAN, 1.0), ~T)),
    "hidden labels": (SOFTMAX, (XC, torch.where(Y == 2, 99, Y), (Y != 2)[:, None])),
    "hidden pixels of no class": (
        SOFTMAX, (XC, torch.nn.functional.one_hot(Y).movedim(-1, 1) * ~T, ~T),
    ),
    "hidden classes": (
        {"classes": (0, 2)}, (XC, torch.where(torch.arange(3)[:, None] == 1, NAN, mask(2, 3, 6))),
    ),
    "classes of weight 0": (
        {"class_weight": [1.0, 0.0, 1.0]},
        (XC, torch.where(torch.arange(3)[:, None] == 1, 255, mask(2, 3, 6).int())),
    ),
    "background that is not scored": (
        {**SOFTMAX, "include_background": False},
        (XC, torch.nn.functional.one_hot(Y).movedim(-1, 1) * (torch.arange(3)[:, None] > 0)),
    ),
    "logits of hidden classes": (
        {**PROBABILITIES, "classes": [1]},
        (torch.where(torch.arange(3)[:, None] == 1, XC.sigmoid(), XC), mask(2, 3, 6)),
    ),
    "rows of which weights hide a part": (
        SOFTMAX,
        (XC, torch.nn.functional.one_hot(Y).movedim(-1, 1) * ~mask(2, 3, 6), ~mask(2, 3, 6)),
    ),
    "hidden negative weights": ({"ignore_index": 7}, (X, torch.where(T, 7, 1), 1 - 2 * T.float())),
    "a few logits between 0 and 1": ({}, (X.sigmoid(), T)),
    "logits on one side of 1/2": ({}, (logits(2, 1, 64).sigmoid() / 2, mask(2, 1, 64))),
    "logits of a constant": ({}, (torch.full((2, 1, 64), 0.5), mask(2, 1, 64))),
    "logits of 0 and more classes": (SOFTMAX, (torch.zeros(2, 3, 64), numbers(3, 2, 64))),
    "equal logits of a softmax": (SOFTMAX, (torch.full((2, 2, 64), 0.5), numbers(2, 2, 64))),
    "logits between 0 and 1": (SOFTMAX, (logits(2, 3, 64).sigmoid(), numbers(3, 2, 64))),
    "a learned target": ({}, (X.clone().requires_grad_(), X.sigmoid().requires_grad_())),
    "few lines that add up to 1": ({}, (logits(1, 3, 2), torch.eye(2)[numbers(2, 1, 3)])),
    "hidden logits": (PROBABILITIES, (torch.where(T, 7.0, 0.5), T, ~T)),
    "NaN of a step that is skipped": ({}, (torch.where(T, NAN, X), T)),
    "NaN probabilities": (PROBABILITIES, (torch.where(T, NAN, 0.5), T)),
    "infinite probabilities": (PROBABILITIES, (torch.where(T, INF, 0.5), T)),
    "logits of 0 and 1": ({}, (T.float(), T)),
    "a diagonal": ({}, (logits(2, 3, 3), torch.eye(3).expand(2, 3, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_certainly_wrong(name: str) -> None:
    """By a module, which goes on refusing it, and by a function that is asked to look."""
    options, operands, text = ERRORS[name]
    criterion = customloss.DiceLoss(**options)
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(text)):
            criterion(*operands)
    with pytest.raises(ValueError, match=re.escape(text)):
        customloss.dice_loss(*operands, check_target=True, **options)


@pytest.mark.parametrize("name", WARNINGS)
def test_what_may_be_meant(name: str) -> None:
    """One warning of each module, which says how to silence it, at the line that calls it."""
    options, operands, text = WARNINGS[name]
    for _ in range(2):
        criterion = customloss.DiceLoss(**options)
        with pytest.warns(UserWarning, match=f"{re.escape(text)}.*check_target=False") as caught:
            criterion(*operands)
        (warning,) = caught
        assert warning.filename == __file__
        criterion(*operands)
    customloss.DiceLoss(**options, check_target=False)(*operands)
    customloss.dice_loss(*operands, **options)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right(name: str) -> None:
    options, operands = RIGHT[name]
    customloss.DiceLoss(**options)(*operands)


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=str)
def test_every_dtype_of_input_and_weight(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    customloss.DiceLoss()(x, T.to(dtype), torch.ones(6, dtype=dtype))
    with pytest.raises(ValueError, match=r"^input: .* got values from -3 to 3"):
        customloss.DiceLoss(activation="none")(x, T)


def test_a_mistake_of_rounding_is_none_unless_asked_for() -> None:
    """An interpolated target may be 1 + 1e-7; ``check_target=True`` means [0, 1] to the bit."""
    t = T * (1 + 3e-7)
    customloss.DiceLoss()(X, t)
    for check in (lambda: customloss.dice_loss(X, t, check_target=True),
                  lambda: customloss.DiceLoss(check_target=True)(X, t)):  # fmt: skip
        with pytest.raises(ValueError, match=r"got values 0 and 1\.0000"):
            check()


def test_losses_that_take_probabilities() -> None:
    """Their functions set the activation, so no option of the module shows it."""
    with pytest.raises(ValueError, match=r"^input: expected probabilities .*'none', got values"):
        customloss.CustomF1Loss()(X, T)
    with pytest.raises(ValueError, match=r"^input: .*AnyLoss has it, got values .* input\.sigmoid"):
        customloss.AnyLoss()(X, T)
    customloss.AnyLoss()(logits(2, 1, 64).sigmoid(), mask(2, 1, 64))
    customloss.SigmoidF1Loss(shift=-0.5)(X, T)  # an offset of 1/2 that sharpens nothing


def test_the_input_may_be_integer_when_swapped() -> None:
    with pytest.raises(TypeError, match=r"^input: .*int64; are input and target swapped\?"):
        customloss.dice_loss(T.long(), X)


def test_labels_out_of_range_that_are_meant() -> None:
    """``out_of_range="ignore"`` allows them; labels from 1 to C still look like a mistake."""
    criterion = customloss.DiceLoss(activation="softmax", out_of_range="ignore")
    criterion(XC, Y * 50)
    criterion = customloss.DiceLoss(activation="softmax", out_of_range="ignore")
    message = (
        "^target: expected class numbers from 0 to 2, got some from 1 to 3, as if they began at 1, "
        "so that the last class falls out: pass target - 1"
    )
    with pytest.warns(UserWarning, match=message):
        criterion(XC, Y + 1)


@pytest.mark.parametrize("label", [2**63 - 1, 2**53 + 1, -(2**53) - 1, -(2**63)])
def test_a_huge_label_is_named_to_the_last_digit(label: int) -> None:
    """And the ``ignore_index`` that the message advises leaves it out."""
    target = torch.where(Y == 2, label, Y)
    criterion = customloss.DiceCELoss()
    with pytest.raises(ValueError, match=rf"got {label}; .* pass ignore_index={label}$"):
        criterion(XC, target)
    customloss.DiceCELoss(ignore_index=label)(XC, target)
    two = torch.where(Y == 2, label, 0)
    if label > 0:
        with pytest.raises(ValueError, match=rf"got values 0 and {label}: is this a mask\?"):
            customloss.DiceCELoss()(XC[:, :2], two)
    with pytest.raises(ValueError, match=rf"^target: expected values in \[0, 1\].* {label}\b"):
        customloss.DiceLoss()(X, torch.where(T, label, 0))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_numbers_come_as_they_are(wide: torch.dtype) -> None:
    """Also where float64 is not to be had, as on MPS."""
    found = {
        "float": torch.tensor(-0.1), "nan": torch.tensor(NAN), "half": torch.tensor(3.5).half(),
        "integer": torch.tensor(2**62 + 1), "byte": torch.tensor(200, dtype=torch.uint8),
    }  # fmt: skip
    numbers = batch_values.on_host(found, wide)
    assert math.isnan(numbers.pop("nan"))
    assert numbers == {name: each.item() for name, each in found.items() if name != "nan"}


@pytest.mark.parametrize("other", [255, 4, -1])
def test_labels_out_of_range_are_not_judged(other: int) -> None:
    """They are looked at no more than ignored ones, and what is left is judged as it is beside
    them."""
    outside = (torch.arange(6) % 4 == 3).expand_as(Y)
    for options in ({"out_of_range": "ignore"}, {"ignore_index": other}):
        make = partial(customloss.DiceLoss, activation="softmax", **options)
        make()(XC, torch.where(outside, other, Y))
        with pytest.raises(ValueError, match="from 1 to 3") if "ignore_index" in options else (
            pytest.warns(UserWarning, match="got some from 1 to 3, as if they began at 1")
        ):  # fmt: skip
            make()(XC, torch.where(outside, other, Y + 1))
        with pytest.warns(UserWarning, match="^target: expected something that counts, but every"):
            make()(XC, torch.full_like(Y, other))
    criterion = customloss.DiceLoss(**NO_CLASSES)
    with pytest.warns(UserWarning, match=r"every element is no class \(out_of_range='ignore'\),"):
        criterion(XC, torch.full_like(Y, 255))
    # a label of a pixel that weighs nothing is not judged either
    weight = torch.ones(2, 1, 6).masked_fill((Y == 2)[:, None], 0)
    customloss.DiceLoss(**NO_CLASSES)(XC, Y + 1, weight)


def test_classes_of_a_compound_count_in_either_part() -> None:
    """``classes`` is about the score; what a cross-entropy counts is judged as well."""
    rows = torch.nn.functional.one_hot(Y).movedim(-1, 1) * (torch.arange(3)[:, None] > 0)
    options: dict[str, Any] = {"include_background": False, "ce_weight": 1.0}
    with pytest.warns(UserWarning, match="add up to 1"):
        customloss.DiceCELoss(**options)(XC, rows)
    customloss.DiceCELoss(**options, pointwise_classes=[1, 2])(XC, rows)
    customloss.DiceCELoss(**{**options, "ce_weight": 0.0})(XC, rows)
    with pytest.warns(UserWarning, match="add up to 1"):
        customloss.DiceCELoss(**options, pointwise_class_weight=[1.0, 0.0, 0.0])(XC, rows)
    with pytest.warns(UserWarning, match="add up to 1"):
        customloss.CrossEntropyLoss()(XC, rows)
    customloss.CrossEntropyLoss(class_weight=[0.0, 1.0, 1.0])(XC, rows)
