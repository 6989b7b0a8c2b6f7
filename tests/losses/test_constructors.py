"""A module refuses options that its function would refuse, when it is made and not at a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FEW_OPTIONS

import customloss
from customloss.losses.base import LOSSES

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a word": ({"average": "marco"}, ValueError, "average: .*'macro'.*got 'marco'"),
    "an integer": ({"ignore_index": 1.5}, TypeError, "ignore_index: .*integer"),
    "a number": ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: .*in \[0, 1\)"),
    "a truth": ({"samplewise": 1}, TypeError, "samplewise: expected True or False, got 1"),
    "a class": ({"classes": (0, -1)}, ValueError, "classes: .*got -1"),
    "a class of the weights": (
        {"classes": (0, 7), "class_weight": [1.0, 2.0]}, ValueError, "classes: .* 0 to 1, got 7",
    ),
    "a weight": ({"class_weight": [1.0, -1.0]}, ValueError, "class_weight: .*>= 0"),
    "a group": ({"process_group": 3}, TypeError, "process_group: expected a ProcessGroup"),
}  # fmt: skip


def hits(tp: Any, fp: Any, fn: Any, tn: Any) -> Any:
    return tp


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in FEW_OPTIONS])
def test_options_of_all(name: str, what: str) -> None:
    options, error, message = WRONG[what]
    with pytest.raises(error, match=f"^{message}"):
        customloss.loss(name, **options)
    for module, first in (("ConfusionLoss", customloss.scores.mcc), ("CompoundLoss", hits)):
        with pytest.raises(error, match=f"^{message}"):
            getattr(customloss, module)(first, **options)


OWN: dict[str, str] = {
    "SoftF1Loss(beta=-1.0)": "beta: .*>= 0",
    "SoftF1Loss(link='foo')": "link: .*got 'foo'",
    "SoftF1Loss(gamma=2.0)": "gamma: expected 1 unless",
    "CustomF1Loss(beta=2.0)": r"beta: .*in \[0, 1\]",
    "TverskyLoss(fn_weight=-1.0)": "fn_weight: .*>= 0",
    "FocalTverskyLoss(exponent=0.0)": "exponent: .*> 0",
    "GeneralizedDiceLoss(weighting='cube')": "weighting: .*'square'",
    "LogPrecisionRecallLoss(recall_weight=1.5)": r"recall_weight: .*in \[0, 1\]",
    "DiceBCELoss(pos_weight=-1.0)": "pos_weight: .*>= 0",
    "DiceCELoss(ce_weight=-1.0)": "ce_weight: .*>= 0",
    "DiceBCELoss(bce_weight=-1.0)": "bce_weight: .*>= 0",
    "DiceFocalLoss(dice_weight=-1.0)": "dice_weight: .*>= 0",
    "TverskyCELoss(tversky_weight=-1.0)": "tversky_weight: .*>= 0",
    "TverskyCELoss(tversky_weight=0.0, ce_weight=0.0)": "tversky_weight, ce_weight: expected one",
    "CompoundLoss('dice', score_weight=-1.0)": "score_weight: .*>= 0",
    "DiceBCELoss(activation='softmax')": "activation: .*dice_ce_loss",
    "DiceCELoss(average='none')": "average: .*compound loss",
    "DiceLoss(activation='none', logit_scale=2.0)": "logit_scale, logit_offset: ",
    "DiceBCELoss(pos_weight=torch.ones(3, 1, 1))": r"pos_weight: .*pos_weight.flatten\(\)",
}


@pytest.mark.parametrize("call", OWN)
def test_options_of_one(call: str) -> None:
    with pytest.raises(ValueError, match=f"^{OWN[call]}"):
        eval(f"customloss.{call}", {"customloss": customloss, "torch": torch})


def test_what_is_right_is_taken() -> None:
    """Whatever the batch will be: its classes, device and score are not known yet."""
    customloss.DiceLoss(classes=(3, 7))
    customloss.DiceCELoss(class_weight=[1.0] * 5, classes=[4], ignore_index=255)
    customloss.DiceBCELoss(pos_weight=torch.ones(6, device="meta"))
    customloss.DiceCELoss(pointwise_class_weight=[1.0] * 5)
    customloss.DiceFocalLoss(pointwise_classes=(1, 4), class_weight=torch.rand(5))
    customloss.DiceFocalLoss(pointwise_classes=(1, 4), classes=(3,))
    customloss.SoftF1Loss(check_target=True, activation="none", class_weight=torch.rand(3))

    def score(tp: Any, fp: Any, fn: Any, tn: Any) -> Any:
        raise AssertionError("a score may expect a whole batch")

    customloss.ConfusionLoss(score, samplewise=True)
    customloss.CompoundLoss(score, cross_entropy_weight=1.0)
    for name in ("reference", "auto"):
        with customloss.backend(name), torch.device("meta"):
            customloss.DiceLoss()


@pytest.mark.parametrize("option", ["beta", "smooth", "gamma"])
def test_a_tensor_is_no_number(option: str) -> None:
    """The dispatcher would read it, and a gradient that somebody expects would not come."""
    x, t = torch.randn(4, 3), torch.rand(4, 3) > 0.5
    value = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(TypeError, match=rf"^{option}: expected a number.*{option}\.item\(\)"):
        customloss.soft_f1_loss(x, t, link="focal", **{option: value})


def test_numbers_of_numpy_are_numbers() -> None:
    """On every route, by function and by module."""
    np = pytest.importorskip("numpy")
    x, t = torch.randn(8, 3), torch.rand(8, 3) > 0.5
    y = torch.randint(0, 3, (8,))
    for name, options, target in (
        ("soft_f1", {"beta": 2.0, "smooth": 0.5}, t),
        ("fowlkes_mallows", {"recall_weight": 0.25}, t),
        ("dice_ce", {"ce_weight": 0.5, "ignore_index": 2}, y), ("dice_bce", {"pos_weight": 2.0}, t),
        ("focal_tversky", {"fp_weight": 0.5, "exponent": 0.75}, t),
    ):  # fmt: skip
        expected = customloss.loss(name, **options)(x, target)
        for kinds in ((np.float32, np.int64), (np.float64, np.int32)):
            given = {k: kinds[isinstance(v, int)](v) for k, v in options.items()}
            module = customloss.loss(name, **given)
            torch.testing.assert_close(module(x, target), expected)
            torch.testing.assert_close(LOSSES[name].function(x, target, **given), expected)


def test_only_what_was_given_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message about a default would name what nobody wrote."""
    found: list[set[str]] = []

    def look(*operands: Any, **options: Any) -> torch.Tensor:
        found.append({*options} - {"process_group"})
        return torch.zeros(())

    monkeypatch.setattr(customloss.ConfusionLoss, "function", staticmethod(look))
    look.__module__ = "customloss.losses"
    customloss.ConfusionLoss(len)
    customloss.ConfusionLoss(len, average="micro", check_target=True)
    assert found == [set(), {"average"}]


def test_a_call_passes_on_what_differs_from_the_defaults() -> None:
    """1 is 1.0, True is not, and tensors and arrays are compared with nothing."""
    np = pytest.importorskip("numpy")
    same = customloss.SoftF1Loss(beta=1, smooth=0, average="".join(["mac", "ro"]), log_floor=1e-30)
    same.check_target = False
    assert same._changed() == {}
    assert repr(same) == "SoftF1Loss(check_target=False)"
    for value in (torch.ones(2), np.ones(2), [1.0, 1.0], True, 2, "1.0"):
        same.beta = value
        assert same._changed()["beta"] is value
        assert "beta=" in repr(same)


def test_it_prints_where_there_are_no_numbers() -> None:
    """On the meta device tensors have shapes alone."""
    for make in (
        lambda: customloss.DiceLoss(class_weight=[1.0, 2.0]),
        lambda: customloss.DiceBCELoss(pos_weight=torch.ones(2), pointwise_class_weight=[1.0, 2.0]),
        lambda: customloss.StreamingLoss(customloss.DiceLoss(class_weight=torch.ones(2))),
    ):
        with torch.device("meta"):
            built = make()
        for module in (built, make().to("meta"), torch.nn.Sequential(built)):
            assert "weight=<[2] on meta>" in repr(module)
        assert "weight=[1.0, " in repr(make())
