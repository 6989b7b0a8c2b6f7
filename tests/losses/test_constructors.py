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
    "a class": ({"classes": (0, -1)}, ValueError, "classes: expected numbers >= 0, got -1"),
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
    "TverskyLoss(fp_weight=0, fn_weight=0.0)": "fp_weight, fn_weight: expected one above 0",
    "TverskyCELoss(fp_weight=0, fn_weight=0.0)": "fp_weight, fn_weight: expected one above 0",
    "SemimetricTverskyLoss(fp_weight=0, fn_weight=0)": "fp_weight, fn_weight: expected one above",
    "DiceLoss(logit_scale=0.0)": "logit_scale: expected a number other than 0",
    "AnyLoss(amplification=0)": "amplification: expected a number other than 0",
    "SigmoidF1Loss(slope=0.0)": "slope: expected a number other than 0",
    "FocalLoss(focal_alpha=-0.5)": r"focal_alpha: expected a number in \[0, 1\], got -0.5",
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
    "DiceCELoss(classes=[-1])": "classes: expected numbers >= 0, got -1$",
    "DiceCELoss(pointwise_classes=[-1])": "pointwise_classes: expected numbers >= 0, got -1$",
    "DiceCELoss(average='none')": r"average: .*compound loss.*per class: .*log_loss_pos / \(",
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


@pytest.mark.parametrize(
    "call",
    [
        "DiceLoss(smooth=True)", "DiceLoss(logit_scale=True)", "SoftF1Loss(beta=True)",
        "DiceLoss(label_smoothing=False)", "DiceCELoss(ce_weight=True)",
        "FocalLoss(focal_alpha=True)", "BCELoss(pos_weight=True)",
        "dice_loss(X, T, smooth=True, samplewise=True)",
        "soft_f1_loss(X, T, link='focal', gamma=True)",
        "mcc_loss(X, T, log_floor=True, link='log')",
    ],
)  # fmt: skip
def test_a_truth_is_no_number(call: str) -> None:
    """The dispatcher would take True for 1."""
    names = {"customloss": customloss, "X": torch.zeros(4, 3), "T": torch.ones(4, 3)}
    with pytest.raises(TypeError, match=r"^\w+: expected a number, got (True|False|bool)$"):
        eval(f"customloss.{call}", names)


# ---- weights of classes --------------------------------------------------------------------------

WEIGHTS = {
    "DiceLoss": ("class_weight", [-1.0, 2.0]),
    "DiceCELoss": ("pointwise_class_weight", [1.0, float("nan")]),
    "CrossEntropyLoss": ("class_weight", [1.0, float("inf")]),
    "BCELoss": ("pos_weight", [1.0, -5.0]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_in_a_tensor_are_checked_like_a_list(name: str) -> None:
    option, values = WEIGHTS[name]
    wrong = next(each for each in values if not 0 <= each < float("inf"))
    text = rf"^{option}: expected finite numbers >= 0, got {wrong}$"
    make = getattr(customloss, name)
    for given in (values, torch.tensor(values), torch.tensor(values).double()):
        with pytest.raises(ValueError, match=text):
            make(**{option: given})
    # what is learned has other values later, and nothing waits for another device
    make(**{option: torch.nn.Parameter(torch.tensor(values))})
    make(**{option: torch.ones(2, device="meta")})


def test_a_scalar_pos_weight_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^pos_weight: expected finite numbers >= 0, got -1.0"):
        customloss.BCELoss(pos_weight=torch.tensor(-1.0))


def test_weights_of_numpy_are_weights() -> None:
    """``compute_class_weight`` of scikit-learn returns an array."""
    np = pytest.importorskip("numpy")
    x, t, y = torch.randn(8, 3), torch.rand(8, 3) > 0.5, torch.randint(0, 3, (8,))
    shape = "expected one number per class, got shape"
    for name, option, target in (
        ("dice", "class_weight", t), ("dice_ce", "pointwise_class_weight", y),
        ("bce", "pos_weight", t), ("mcc", "class_weight", t),
    ):  # fmt: skip
        values = [1.0, 0.5, 2.0]
        expected = LOSSES[name].function(x, target, **{option: values})
        for kind in (np.float32, np.float64):
            given = {option: np.array(values, dtype=kind)}
            torch.testing.assert_close(customloss.loss(name, **given)(x, target), expected)
            torch.testing.assert_close(LOSSES[name].function(x, target, **given), expected)
        with pytest.raises(ValueError, match=rf"^{option}: {shape}"):
            customloss.loss(name, **{option: np.ones((1, 3))})
        with pytest.raises(ValueError, match=rf"^{option}: expected finite numbers >= 0, got -1"):
            customloss.loss(name, **{option: np.array([1.0, -1.0, 1.0])})


def test_balanced_weights_are_a_line() -> None:
    with pytest.raises(TypeError, match=r"^class_weight: .*got 'balanced': count = torch.bincount"):
        customloss.DiceLoss(class_weight="balanced")
    labels, C = torch.tensor([[0, 0, 0], [1, 1, 2]]), 3
    count = torch.bincount(labels.flatten(), minlength=C)
    weight = count.sum() / (C * count)
    torch.testing.assert_close(weight, torch.tensor([2 / 3, 1.0, 2.0]))
    customloss.DiceLoss(class_weight=weight)


def test_each_class_of_a_compound() -> None:
    """What the refusal of ``average="none"`` says: the parts of every class, of the sums."""
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randint(0, 3, (16,))
    _, sums = customloss.DiceCELoss().with_sums(x, y)
    own = customloss.dice_loss(x, y, activation="softmax", average="none", reduction="none")
    torch.testing.assert_close(1 - customloss.scores.dice(*sums[:4]), own)
    each = torch.stack([torch.nn.functional.cross_entropy(x[y == c], y[y == c]) for c in range(3)])
    torch.testing.assert_close(sums.log_loss_pos / (sums.tp + sums.fn), each)


# ---- what is printed -----------------------------------------------------------------------------


def test_a_repr_is_short() -> None:
    """torch prints none of its buffers; here a few numbers tell what a loss was made with."""
    many = torch.arange(5000) / 4
    for options, text in (
        ({"class_weight": [1.0, 1 / 3]}, "class_weight=[1, 0.3333]"),
        ({"class_weight": many}, "class_weight=[0, 0.25, …, 1250] (5000)"),
        ({"class_weight": torch.ones(5, device="meta")}, "class_weight=<[5] on meta>"),
        ({"classes": [*range(12, 40)]}, "classes=[12, 13, …, 39] (28)"),
        ({"classes": [1, 0]}, "classes=[1, 0]"), ({"smooth": (0, 1)}, "smooth=(0, 1)"),
    ):  # fmt: skip
        assert repr(customloss.DiceLoss(**options)) == f"DiceLoss({text})"
    assert repr(customloss.BCELoss(pos_weight=torch.tensor(3.0))) == "BCELoss(pos_weight=3)"


def test_only_what_was_given_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message about a default would name what nobody wrote."""
    found: list[set[str]] = []

    def look(*operands: Any, **options: Any) -> torch.Tensor:
        found.append({*options} - {"process_group"})
        return torch.zeros(())

    monkeypatch.setattr(customloss.ConfusionLoss, "function", staticmethod(look))
    look.__module__ = "customloss.losses"
    customloss.ConfusionLoss(hits)
    customloss.ConfusionLoss(hits, average="micro", check_target=True)
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
        assert "weight=[1" in repr(make())


# ---- a reduction that keeps nothing --------------------------------------------------------------

KEEPS: dict[str, dict[str, Any]] = {
    "samples": {"samplewise": True}, "classes": {"average": "none"},
    "both": {"samplewise": True, "average": "none"},
}  # fmt: skip


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", ["dice", "mcc", "dice_ce"])
def test_a_reduction_that_keeps_nothing_is_warned_of(name: str, average: str) -> None:
    """``reduction="none"`` of torch keeps elements, of which a score has none."""
    with pytest.warns(UserWarning, match=r"^reduction: 'none' keeps nothing.*samplewise=True") as w:
        customloss.loss(name, average=average, reduction="none")
    assert w[0].filename == __file__
    per_class = "average='none' keeps one per class" in str(w[0].message)
    assert per_class == (name != "dice_ce")  # which refuses it


@pytest.mark.parametrize("keeps", KEEPS)
def test_a_reduction_that_keeps_something(keeps: str) -> None:
    criterion = customloss.DiceLoss(**KEEPS[keeps], reduction="none")
    assert criterion(torch.randn(4, 3), torch.rand(4, 3) > 0.5).dim() == len(KEEPS[keeps])
    customloss.DiceLoss(**KEEPS[keeps])
    customloss.CrossEntropyLoss(reduction="sum")


# ---- calls ---------------------------------------------------------------------------------------


def test_a_call_without_its_operands_names_the_class() -> None:
    criterion, x, t = customloss.DiceCELoss(), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for call, message in (
        (lambda: criterion(x), r"criterion\(input, target, weight=None\), got no target"),
        (lambda: criterion(target=t), r"criterion\(.*\), got no input"),
        (lambda: criterion(), r"criterion\(.*\), got no input and no target"),
        (lambda: criterion(x, t, None, 3), r"criterion\(.*\), got 4 operands"),
        (lambda: criterion.with_sums(x), r"criterion\.with_sums\(.*\), got no target"),
    ):
        with pytest.raises(TypeError, match=rf"^DiceCELoss: expected {message}$"):
            call()
    expected = criterion(x, t)
    assert criterion(x, target=t) == criterion(input=x, target=t, weight=None) == expected
    with pytest.raises(TypeError, match=r"^DeepSupervision: expected .*got no targets$"):
        customloss.DeepSupervision(criterion)([x])
