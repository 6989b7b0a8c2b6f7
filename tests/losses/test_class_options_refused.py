"""Which options of classes and class numbers are refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import customloss

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(11))
NUMBERS = torch.tensor([[0, 1, 2, 3, 0]] * 3)

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few weights": ({"class_weight": [1.0, 2.0]}, ValueError, "class_weight: .* 4 classes.* 2"),
    "a matrix": ({"class_weight": torch.ones(1, 4)}, ValueError, r"class_weight: .*\[1, 4\]"),
    "a mask": ({"class_weight": torch.ones(4) > 0}, TypeError, "class_weight: .*torch.bool"),
    "complex": ({"class_weight": torch.ones(4) * 1j}, TypeError, "class_weight: .*complex64"),
    "a number": ({"class_weight": 2.0}, TypeError, "class_weight: .*2.0"),
    "words": ({"class_weight": ["1"] * 4}, TypeError, "class_weight: .*'1'"),
    "negative": ({"class_weight": [1, 1, -1, 1]}, ValueError, "class_weight: .*-1"),
    "elsewhere": (
        {"class_weight": torch.ones(4, device="meta")}, ValueError, "class_weight: .*cpu.*meta",
    ),
    "a class too many": ({"classes": (0, 4)}, ValueError, "classes: .* 0 to 3, got 4"),
    "from behind": ({"classes": (-1,)}, ValueError, "classes: .* 0 to 3, got -1"),
    "twice": ({"classes": (1, 2, 1)}, ValueError, "classes: .* once, got 1"),
    "no class": ({"classes": ()}, ValueError, "classes: expected at least one"),
    "one number": ({"classes": 1}, TypeError, "classes: .*sequence.*got 1"),
    "truths": ({"classes": [True, False]}, TypeError, "classes: .*integers, got True"),
    "fractions": ({"classes": [1.0]}, TypeError, "classes: .*integers, got 1.0"),
    "a tensor": ({"classes": torch.arange(2)}, TypeError, "classes: .*sequence"),
    "both": (
        {"classes": (0,), "include_background": False}, ValueError, "include_background: .*classes",
    ),
    "background": ({"include_background": 0}, TypeError, "include_background: .*got 0"),
    "ignore a half": ({"ignore_index": 0.5}, TypeError, "ignore_index: .*integer.*0.5"),
    "ignore a word": ({"ignore_index": "255"}, TypeError, "ignore_index: .*integer.*'255'"),
    "smoothed away": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: .*in \[0, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    options, error, message = WRONG[name]
    for loss in (customloss.dice_loss, customloss.mcc_loss, customloss.dice_ce_loss):
        with pytest.raises(error, match=f"^{message}"):
            loss(X, NUMBERS, **options)


def test_one_class_has_no_background() -> None:
    for shape in ((5,), (5, 1)):
        with pytest.raises(ValueError, match=r"^include_background: .*one class"):
            customloss.dice_loss(torch.zeros(shape), torch.zeros(shape), include_background=False)
    one = customloss.dice_loss(torch.zeros(5), torch.ones(5), class_weight=[2.0])
    torch.testing.assert_close(one, customloss.dice_loss(torch.zeros(5), torch.ones(5)))


def test_the_module_refuses_weights_when_it_is_made() -> None:
    for wrong in (2.0, ["1"], [-1.0], torch.ones(2, 2)):
        with pytest.raises((TypeError, ValueError), match=r"^class_weight"):
            customloss.DiceLoss(class_weight=wrong)


@pytest.mark.parametrize("value", [4, -1, 255])
def test_check_target_names_a_class_that_is_none(value: int) -> None:
    y = NUMBERS.clone()
    y[1, 2] = value
    for call in (customloss.dice_loss, customloss.dice_ce_loss, customloss.confusion_sums):
        with pytest.raises(ValueError, match=rf"^target: .* 0 to 3 .*, got {value}; "):
            call(X, y, check_target=True)
        call(X, y, check_target=True, ignore_index=value)
        with pytest.raises(ValueError, match=rf"^target: .*or ignore_index=77, got {value};"):
            call(X, y, check_target=True, ignore_index=77)
        call(X, y, check_target=True, out_of_range="ignore")


def test_check_target_of_dense_targets_with_ignored_ones() -> None:
    x = torch.randn(4, 3)
    t = torch.tensor([[1, 0, 9]] * 4)
    customloss.dice_loss(x, t, check_target=True, ignore_index=9)
    with pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\] .*got 9 beside"):
        customloss.dice_loss(x, t, check_target=True, ignore_index=8)
