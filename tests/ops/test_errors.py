"""Every bad call raises TypeError or ValueError in Python, before a kernel runs.

The message names the argument, what was expected and what was given.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch

import customloss
from customloss._spec import operands

F32 = torch.float32


def given(**changes: Any) -> dict[str, Any]:
    x, t = torch.randn(4, 3), torch.rand(4, 3) > 0.5
    return {"input": x, "target": t, **changes}


BAD_TENSORS = {
    # changed arguments; exception; named argument; what was expected; what was given
    "target shape": ({"target": torch.zeros(4, 2)}, ValueError, "target", r"\[4, 3\]", r"\[4, 2\]"),
    "target rank": (
        {"target": torch.zeros(4, 3, 1)}, ValueError, "target", r"\[4, 3\]", r"\[4, 3, 1\]",
    ),
    "float class numbers": (
        {"target": torch.zeros(4)}, TypeError, "target", "int64 for class numbers", "float32",
    ),
    "float class numbers, kept": (
        {"target": torch.zeros(4, 1)}, TypeError, "target", r"\[4, 3\]", r"\[4, 1\].*float32",
    ),
    "bool class numbers": (
        {"target": torch.zeros(4, dtype=torch.bool)}, TypeError, "target", "int64", "bool",
    ),
    "wide unsigned class numbers": (
        {"target": torch.zeros(4, dtype=torch.uint16)}, TypeError, "target", "uint8", "uint16",
    ),
    "class numbers of other samples": (
        {"target": torch.zeros(5, dtype=torch.int64)},
        ValueError, "target", r"\[4\] for class numbers", r"\[5\]",
    ),
    "class numbers of other places": (
        {"input": torch.zeros(2, 3, 4, 5), "target": torch.zeros(2, 4, 4, dtype=torch.int64)},
        ValueError, "target", r"\[2, 4, 5\] for class numbers", r"\[2, 4, 4\]",
    ),
    "a class number for every class": (
        {"input": torch.zeros(2, 3, 4, 5), "target": torch.zeros(2, 3, 4, dtype=torch.int64)},
        ValueError, "target", r"\[2, 3, 4, 5\]", r"\[2, 3, 4\]",
    ),
    "class numbers of one class": (
        {"input": torch.zeros(4, 1), "target": torch.zeros(4, dtype=torch.int64)},
        ValueError, "target", "unsqueeze", r"\[4\]",
    ),
    "class numbers of a vector": (
        {"input": torch.zeros(4), "target": torch.zeros((), dtype=torch.int64)},
        ValueError, "target", r"\[4\]", r"\[\]",
    ),
    "softmax of one class": (
        {"input": torch.zeros(4, 1), "target": torch.zeros(4, 1), "activation": "softmax"},
        ValueError, "activation", "'sigmoid'", r"\[4, 1\].*'softmax'",
    ),
    "softmax of a vector": (
        {"input": torch.zeros(4), "target": torch.zeros(4), "activation": "softmax"},
        ValueError, "activation", "'sigmoid'", r"\[4\].*'softmax'",
    ),
    "ignored elements of a softmax": (
        {"activation": "softmax", "ignore_index": 255},
        ValueError, "ignore_index", "expected None", "255",
    ),
    "scalar input": (
        {"input": torch.tensor(1.0), "target": torch.tensor(1.0)},
        ValueError, "input", r"\[N", "scalar",
    ),
    "integer input": (
        {"input": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "input", "float32", "int64",
    ),
    "bool input": (
        {"input": torch.zeros(4, 3, dtype=torch.bool)}, TypeError, "input", "float32", "bool",
    ),
    "complex input": (
        {"input": torch.zeros(4, 3, dtype=torch.complex64)},
        TypeError, "input", "float32", "complex64",
    ),
    "float8 input": (
        {"input": torch.zeros(4, 3).to(torch.float8_e4m3fn)},
        TypeError, "input", "float32", "float8_e4m3fn",
    ),
    "complex target": (
        {"target": torch.zeros(4, 3, dtype=torch.complex64)},
        TypeError, "target", "float", "complex64",
    ),
    "float8 target": (
        {"target": torch.zeros(4, 3).to(torch.float8_e5m2)},
        TypeError, "target", "float", "float8_e5m2",
    ),
    "complex weight": (
        {"weight": torch.zeros(4, 3, dtype=torch.complex64)},
        TypeError, "weight", "float", "complex64",
    ),
    "weight shape": (
        {"weight": torch.zeros(5)}, ValueError, "weight", r"broadcasts to \[4, 3\]", r"\[5\]",
    ),
    "weight of classes": (
        {"weight": torch.zeros(3), "input": torch.zeros(4, 3, 2), "target": torch.zeros(4, 3, 2)},
        ValueError, "weight", r"\[4, 3, 2\]", r"\[3\]: the option class_weight",
    ),
    "weight rank": (
        {"weight": torch.zeros(1, 4, 3)}, ValueError, "weight", r"\[4, 3\]", r"\[1, 4, 3\]",
    ),
    "empty weight": ({"weight": torch.zeros(0)}, ValueError, "weight", r"\[4, 3\]", r"\[0\]"),
    "target elsewhere": (
        {"target": torch.zeros(4, 3, device="meta")}, ValueError, "target", "cpu", "meta",
    ),
    "weight elsewhere": (
        {"weight": torch.zeros(4, 3, device="meta")}, ValueError, "weight", "cpu", "meta",
    ),
    "input elsewhere": (
        {"input": torch.zeros(4, 3, device="meta")}, ValueError, "target", "meta", "cpu",
    ),
    "no class": (
        {"input": torch.zeros(4, 0), "target": torch.zeros(4, 0)},
        ValueError, "input", "no group", r"\[4, 0\]",
    ),
    "no sample": (
        {"input": torch.zeros(0, 3), "target": torch.zeros(0, 3), "samplewise": True},
        ValueError, "input", "no group", r"\[0, 3\]",
    ),
    "no sample, micro": (
        {"input": torch.zeros(0, 3), "target": torch.zeros(0, 3), "samplewise": True,
         "average": "micro"},
        ValueError, "input", "no group", r"\[0, 3\]",
    ),
    "no sample, vector": (
        {"input": torch.zeros(0), "target": torch.zeros(0), "samplewise": True},
        ValueError, "input", "no group", r"\[0\]",
    ),
}  # fmt: skip

BAD_OPTIONS = {
    "average": ({"average": "mean"}, "average", "'macro'", "'mean'"),
    "average case": ({"average": "Macro"}, "average", "'macro'", "'Macro'"),
    "average empty": ({"average": ""}, "average", "'micro'", "''"),
    "activation": ({"activation": "tanh"}, "activation", "'softmax'", "'tanh'"),
    "activation case": ({"activation": "Softmax"}, "activation", "'softmax'", "'Softmax'"),
    "scale of a softmax": (
        {"activation": "softmax", "logit_scale": 0.0}, "logit_scale", "other than 0", "alike",
    ),
    "scale": ({"logit_scale": 0.0}, "logit_scale", "other than 0", "alike"),
    "all smoothed": ({"label_smoothing": 1.0}, "label_smoothing", "in [0, 1)", "1.0"),
    "sharpened": ({"label_smoothing": -0.1}, "label_smoothing", "in [0, 1)", "-0.1"),
    "nan smoothing": ({"label_smoothing": math.nan}, "label_smoothing", "finite", "nan"),
    "absent": ({"absent": "ignore"}, "absent", "'skip'", "'ignore'"),
    "link": ({"link": "exp"}, "link", "'complement'", "'exp'"),
    "reduction": ({"reduction": "avg"}, "reduction", "'mean'", "'avg'"),
    "negative beta": ({"beta": -1.0}, "beta", ">= 0", "-1.0"),
    "infinite beta": ({"beta": math.inf}, "beta", "finite", "inf"),
    "nan beta": ({"beta": math.nan}, "beta", "finite", "nan"),
    "beta whose square overflows": ({"beta": 1e200}, "beta", "", "1e"),
    "negative smooth": ({"smooth": -1e-6}, "smooth", ">= 0", "-1e-06"),
    "nan smooth": ({"smooth": math.nan}, "smooth", "finite", "nan"),
    "infinite smooth": ({"smooth": math.inf}, "smooth", "finite", "inf"),
    "zero gamma": ({"gamma": 0.0, "link": "focal"}, "gamma", "> 0", "0.0"),
    "negative gamma": ({"gamma": -1.0, "link": "focal"}, "gamma", "> 0", "-1.0"),
    "gamma without focal": ({"gamma": 2.0}, "gamma", "link='focal'", "2.0"),
    "infinite scale": ({"logit_scale": math.inf}, "logit_scale", "finite", "inf"),
    "nan offset": ({"logit_offset": math.nan}, "logit_offset", "finite", "nan"),
    "scale of probabilities": (
        {"activation": "none", "logit_scale": 2.0}, "logit_scale", "1 and 0", "2.0",
    ),
    "offset of probabilities": (
        {"activation": "none", "logit_offset": 0.5}, "logit_offset", "1 and 0", "0.5",
    ),
}  # fmt: skip

# Values of a wrong type, for which the dispatcher would raise a RuntimeError about schemas.
BAD_TYPES = {
    "input": [1.0],
    "target": None,
    "weight": 0.5,
    "beta": "2",
    "smooth": None,
    "gamma": [1.0],
    "logit_scale": 1j,
    "logit_offset": "0",
    "average": None,
    "activation": 3,
    "absent": True,
    "reduction": None,
    "link": None,
    "samplewise": "yes",
    "ignore_index": 1.5,
    "label_smoothing": "0.1",
}


def complaint(function: Any, expected: type[Exception], **arguments: Any) -> str:
    with pytest.raises(expected) as caught:
        function(**arguments)
    assert caught.type is expected
    text = str(caught.value)
    assert "/" not in text.replace(" / ", ""), f"a path in a message for users: {text}"
    return text


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("function", [customloss.soft_f1_loss, torch.ops.customloss.soft_f1])
@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(name: str, function: Any, requires_grad: bool) -> None:
    changes, expected, argument, wanted, came = BAD_TENSORS[name]
    arguments = given(**changes)
    if requires_grad and arguments["input"].dtype == F32:
        arguments["input"] = arguments["input"].clone().requires_grad_()
    text = complaint(function, expected, **arguments)
    assert text.startswith(argument)
    assert re.search(wanted, text)
    assert re.search(came, text)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("function", [customloss.soft_f1_loss, torch.ops.customloss.soft_f1])
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, function: Any, requires_grad: bool) -> None:
    changes, argument, wanted, came = BAD_OPTIONS[name]
    arguments = given(**changes)
    arguments["input"].requires_grad_(requires_grad)
    for _ in range(2):  # the second call must not be accepted because of the cache
        text = complaint(function, ValueError, **arguments)
        assert argument in text.split(":")[0]
        assert wanted in text
        assert came in text


@pytest.mark.parametrize("argument", BAD_TYPES)
def test_bad_types(argument: str) -> None:
    for _ in range(2):
        text = complaint(
            customloss.soft_f1_loss, TypeError, **given(**{argument: BAD_TYPES[argument]})
        )
        assert text.startswith(argument)
        assert type(BAD_TYPES[argument]).__name__ in text or repr(BAD_TYPES[argument]) in text


@pytest.mark.parametrize("argument", list(BAD_TYPES)[3:])
def test_the_module_refuses_bad_types(argument: str) -> None:
    with pytest.raises(TypeError, match=f"^{argument}"):
        customloss.SoftF1Loss(**{argument: BAD_TYPES[argument]})(*given().values())


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_confusion_sums_says_the_same(name: str) -> None:
    changes, expected, argument, *_ = BAD_TENSORS[name]
    if name.startswith("no sample"):  # a shard may be empty, and has sums
        sums = customloss.confusion_sums(**given(**changes))
        assert all(each.shape[0] == 0 for each in sums)
        loss = customloss.mcc_loss
        assert complaint(loss, expected, **given(**changes)).startswith(argument)
        return
    assert complaint(customloss.confusion_sums, expected, **given(**changes)).startswith(argument)


@pytest.mark.parametrize(
    "changes",
    [{"average": "mean"}, {"activation": "relu"}, {"logit_scale": math.nan}, {"dtype": "float32"},
     {"focal_gamma": -0.5}, {"focal_gamma": math.inf}, {"label_smoothing": 1.5},
     {"hard": "yes"}, {"squares": "no"}, {"distance": []},
     {"focal_gamma": "2"}, {"ignore_index": "255"}],
    ids=str,
)  # fmt: skip
def test_confusion_sums_bad_options(changes: dict[str, Any]) -> None:
    (value,) = changes.values()
    expected = ValueError if isinstance(value, float) or value in ("mean", "relu") else TypeError
    text = complaint(customloss.confusion_sums, expected, **given(**changes))
    assert text.startswith(next(iter(changes)))


def test_a_sparse_tensor_is_named() -> None:
    for argument in ("input", "target", "weight"):
        arguments = given(**{argument: torch.rand(4, 3).to_sparse()})
        with pytest.raises((TypeError, ValueError), match=f"^{argument}"):
            customloss.soft_f1_loss(**arguments)


def test_any_number_of_dimensions_or_a_named_error() -> None:
    """These two operands have nine axes of which none can be merged."""
    x = torch.randn([2] * 9)
    t = (torch.rand([2] * 9) > 0.5).permute(*reversed(range(9)))
    try:
        loss = customloss.soft_f1_loss(x, t, average="micro")
    except ValueError:
        return
    expected = customloss.reference.soft_f1(x.double(), t, average="micro")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_errors_come_under_transforms_too() -> None:
    arguments = given(target=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"^target"):
        torch.func.grad(lambda x: customloss.soft_f1_loss(x, arguments["target"]))(
            arguments["input"]
        )


def test_no_kernel_runs_before_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend here would fail at any call."""
    from customloss._backends import choice

    def crash(*_: Any) -> None:
        raise AssertionError("a kernel ran")

    monkeypatch.setitem(choice._loaded, "auto", choice.Primitives(*[crash] * 4))
    for changes, expected, *_ in BAD_TENSORS.values():
        complaint(customloss.soft_f1_loss, expected, **given(**changes))
    for changes, *_ in BAD_OPTIONS.values():
        complaint(customloss.soft_f1_loss, ValueError, **given(**changes))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("name", ["input", "target", "weight"])
def test_nested_tensors(name: str, layout: torch.layout) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)
    call = given(**{"weight": torch.ones(4, 3), name: nested})
    for function in (customloss.dice_loss, customloss.DiceCELoss(), customloss.confusion_sums):
        text = complaint(function, TypeError, **call)
        assert text.startswith(f"{name}: expected a dense tensor, got a nested one: pad it")


@pytest.mark.parametrize("value", [1e40, -1e40])
@pytest.mark.parametrize("option", ["logit_scale", "logit_offset", "focal_gamma"])
def test_numbers_beyond_the_dtype_of_the_computation(option: str, value: float) -> None:
    """In float32 they would be infinite, and infinity times 0 or minus infinity is NaN."""
    if option == "focal_gamma" and value < 0:
        return
    criterion = customloss.DiceFocalLoss(**{option: value})  # it may see float64
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        text = complaint(criterion, ValueError, **given(input=torch.zeros(4, 3, dtype=dtype)))
        assert text.startswith(f"{option}: expected a number that float32 holds")
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = customloss.dice_loss(x, x > 0, **{option: value}) if option != "focal_gamma" else (
        criterion(x, (x > 0).float())
    )  # fmt: skip
    loss.backward()
    assert x.grad is not None
    assert loss.isfinite() and x.grad.isfinite().all()


# ---- check_target --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (F32, 1.5), (F32, -0.25), (F32, math.nan), (F32, math.inf), (torch.float64, 1 + 1e-12),
        (torch.float16, 1.001), (torch.bfloat16, -1.0), (torch.int64, 2), (torch.int32, -1),
        (torch.uint8, 255), (torch.int8, -1), (torch.int16, 7), (torch.uint16, 2),
        (torch.uint32, 2), (torch.uint64, 2),
    ],
)  # fmt: skip
def test_targets_outside_0_and_1(dtype: torch.dtype, value: float) -> None:
    target = torch.ones(4, 3, dtype=torch.float64)
    target[2, 1] = value
    target = target.to(dtype)
    for function in (
        lambda: customloss.soft_f1_loss(torch.randn(4, 3), target, check_target=True),
        lambda: customloss.confusion_sums(torch.randn(4, 3), target, check_target=True),
        lambda: customloss.SoftF1Loss(check_target=True)(torch.randn(4, 3), target),
    ):
        text = complaint(function, ValueError)
        assert text.startswith("target")
        assert "[0, 1]" in text
    customloss.soft_f1_loss(torch.randn(4, 3), target)  # not checked unless asked for


@pytest.mark.parametrize("dtype", operands.TARGET_DTYPES, ids=str)
def test_targets_inside_0_and_1(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3)
    for target in (torch.zeros(4, 3), torch.ones(4, 3), (torch.rand(4, 3) > 0.5).float()):
        customloss.soft_f1_loss(x, target.to(dtype), check_target=True)
    customloss.soft_f1_loss(torch.zeros(0, 3), torch.zeros(0, 3, dtype=dtype), check_target=True)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", operands.INDEX_DTYPES, ids=str)
def test_class_numbers_outside_of_the_classes(dtype: torch.dtype, activation: str) -> None:
    x = torch.randn(4, 3)
    high = torch.tensor([0, 1, 3, 2], dtype=dtype)
    options = {"activation": activation, "check_target": True}
    for function in (customloss.soft_f1_loss, customloss.confusion_sums):
        text = complaint(function, ValueError, input=x, target=high, **options)
        assert text.startswith("target")
        assert "from 0 to 2" in text
        assert "got 3" in text
        text = complaint(
            function, ValueError, input=x, target=high[:, None], ignore_index=9, **options
        )
        assert "or ignore_index=9, got 3" in text
        assert "ignore_index=[9, 3]" in text
        function(x, high, ignore_index=3, **options)
        function(x, high % 3, **options)
    if dtype != torch.uint8:
        low = torch.tensor([0, 1, -1, 2], dtype=dtype)
        text = complaint(customloss.soft_f1_loss, ValueError, input=x, target=low, **options)
        assert "got -1" in text
        customloss.soft_f1_loss(x, low, ignore_index=-1, **options)
    customloss.soft_f1_loss(x, high, **options, out_of_range="ignore")


def test_ignored_elements_may_lie_outside_0_and_1() -> None:
    x, t = torch.randn(4, 3), torch.ones(4, 3)
    t[1, 2] = -100
    customloss.soft_f1_loss(x, t, ignore_index=-100, check_target=True)
    customloss.soft_f1_loss(x, t.to(torch.int16), ignore_index=-100, check_target=True)
    t[0, 0] = 7
    text = complaint(
        customloss.soft_f1_loss, ValueError, input=x, target=t, ignore_index=-100,
        check_target=True,
    )  # fmt: skip
    assert "[0, 1]" in text
    with pytest.warns(UserWarning, match="^target: .*every element is ignored"):
        customloss.soft_f1_loss(x, torch.full((4, 3), 255), ignore_index=255, check_target=True)
