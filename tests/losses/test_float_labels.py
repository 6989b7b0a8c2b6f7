"""Class numbers that came as floats, in MONAI's layout, are read as the integers that they are."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import customloss
from customloss._spec.arguments import Data
from customloss._spec.hints import NO_LABEL
from customloss.losses import float_labels

Y = torch.tensor([[0, 1, 2, 255], [2, 2, 0, 1]])[:, None]  # [N, 1, L]
X = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
OPTIONS = {"activation": "softmax", "ignore_index": 255}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_public_way(dtype: torch.dtype) -> None:
    labels = Y.to(dtype)
    for loss in (customloss.soft_f1_loss, customloss.mcc_loss, customloss.dice_ce_loss,
                 customloss.squared_dice_loss):  # fmt: skip
        options = {**OPTIONS, "check_target": True}
        expected = loss(X, Y, **options)
        torch.testing.assert_close(loss(X, labels, **options), expected, rtol=0, atol=0)
    own = customloss.confusion_sums(X, labels, **OPTIONS)
    torch.testing.assert_close(own, customloss.confusion_sums(X, Y, **OPTIONS), rtol=0, atol=0)
    compiled = torch.compile(customloss.dice_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(X, labels, **OPTIONS), customloss.dice_loss(X, Y, **OPTIONS)
    )


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), 2.0**63, -(2.0**63)])
def test_no_label_is_made_up(value: float) -> None:
    labels = Y.double()
    labels[1, 0, 2] = value
    text = rf"^target: expected whole class numbers of 64 bits.* got {re.escape(str(value))}:"
    for options in (OPTIONS, {**OPTIONS, "out_of_range": "ignore"}):
        with pytest.raises(ValueError, match=text):
            customloss.dice_loss(X, labels, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinite_label_is_refused(dtype: torch.dtype, sign: int) -> None:
    labels = torch.tensor([[[0.0, sign * float("inf")]]], dtype=dtype)
    text = rf"^target: expected whole class numbers of 64 bits.* got {sign * float('inf')}:"
    for options in ({}, {"out_of_range": "ignore"}, {"nan_targets": "ignore"}):
        with pytest.raises(ValueError, match=text):
            customloss.dice_ce_loss(X[:1, :, :2], labels, **options)
        assert _gradient(labels, **{**options, "out_of_range": "raise"}).isnan().all()


def _gradient(labels: Tensor, **options: Any) -> Tensor:
    """Where nothing may wait; of the pixels of the first batch that there are labels for."""
    x = X[:1, :, : labels.shape[2]]
    found: Tensor = torch.func.grad(customloss.dice_ce_loss)(x, labels, **options)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [2.0**31, 2.0**40, 1e18, -(2.0**31), -(2.0**40)])
def test_a_large_whole_number_is_a_label(dtype: torch.dtype, value: float) -> None:
    """It is no class, may be ignored like any other, and is named as it is."""
    labels = torch.tensor([[[0.0, value, 2.0]]], dtype=dtype)
    number = int(labels[0, 0, 1].item())
    x, known = X[:1, :, :3], torch.tensor([[[0, 255, 2]]])
    text = rf"^target: .* got {number}; .* pass ignore_index={number}$"
    with pytest.raises(ValueError, match=text):
        customloss.dice_ce_loss(x, labels)
    with pytest.raises(ValueError, match=text):
        customloss.DiceCELoss()(x, labels)
    assert _gradient(labels).isnan().all()
    torch.compiler.reset()
    compiled = torch.compile(customloss.dice_ce_loss, fullgraph=True, backend="aot_eager")
    expected = customloss.dice_ce_loss(x, known, ignore_index=255)
    for options in ({"ignore_index": number}, {"out_of_range": "ignore"}):
        torch.testing.assert_close(customloss.dice_ce_loss(x, labels, **options), expected)
        torch.testing.assert_close(compiled(x, labels, **options), expected)
        torch.testing.assert_close(_gradient(labels, **options), _gradient(known, ignore_index=255))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_where_int32_will_do_no_int64_is_made(dtype: torch.dtype) -> None:
    """Labels on the CPU are looked at; torch takes three times as long to make int64 of them."""
    for labels, expected in (
        (Y, torch.int32), (Y - 7, torch.int32), (Y[:, :, :0], torch.int64),
        (torch.full_like(Y, 2**31), torch.int64), (torch.full_like(Y, -(2**31)), torch.int64),
    ):  # fmt: skip
        if dtype == torch.float16 and labels.numel() and abs(labels.min()) > 2**16:
            continue  # they are infinite there
        data = Data(X[:, :, : labels.shape[2]], labels.to(dtype), None)
        found = float_labels.read(data, {"out_of_range": "ignore"}).target
        assert found.dtype == expected
        assert torch.equal(found.to(dtype), labels.to(dtype))


def test_what_stands_for_a_missing_label_is_not_shown() -> None:
    """Nor is it a label that the caller could give."""
    x, missing = X[:1, :, :3], float("nan")
    options: dict[str, Any] = {"nan_targets": "ignore"}
    for value in (255, -(2**31) + 1, -(2**31), 2**31):
        labels = torch.tensor([[[0.0, value, missing]]], dtype=torch.float64)
        text = (
            "target: expected class numbers from 0 to 2 (dim 1 of input has 3 classes), got "
            f"{value}; if {value} marks what does not count, pass ignore_index={value}"
        )
        hidden = torch.tensor([[[1.0, 0.0, 1.0]]])
        for loss in (customloss.dice_ce_loss, customloss.cross_entropy_loss):
            with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                loss(x, labels, **options)
            assert loss(x, labels, hidden, **options).isfinite()
        customloss.dice_ce_loss(x, labels, out_of_range="ignore", **options)
        customloss.dice_ce_loss(x, labels, ignore_index=value, **options)
    nothing = torch.full((1, 1, 3), missing)
    with pytest.warns(UserWarning, match=r"every element is NaN, so that") as caught:
        customloss.DiceCELoss(**options)(x, nothing)
    assert "ignore_index" not in str(caught[0].message)


def test_what_stands_for_no_label_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, which is not waited for until the values are checked."""
    monkeypatch.setattr(float_labels, "_may_look", lambda data: False)
    for value in (0.5, float("inf"), float("nan")):
        labels = torch.tensor([[[0.0, value, 2.0]]])
        for options in ({}, {"ignore_index": 255}):
            with pytest.raises(ValueError, match=r"whole class numbers.* got one") as refused:
                customloss.DiceCELoss(**options)(X[:1, :, :3], labels)
            assert not re.search(r"\d{5}", str(refused.value))
    labels = torch.tensor([[[0.0, 255.0, float("nan")]]])
    with pytest.raises(ValueError, match=r"got 255; .* pass ignore_index=255$"):
        customloss.DiceCELoss(nan_targets="ignore")(X[:1, :, :3], labels)


def test_where_nothing_may_wait_it_is_a_label_that_no_class_has() -> None:
    labels = Y.double()
    labels[1, 0, 2] = 0.5
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(float_labels.read(Data(x, labels, None), {}).target)
        return x.sum()

    torch.func.grad(look)(X)
    assert found[0].dtype == torch.int64
    assert found[0][1, 0].tolist() == [2, 2, NO_LABEL, 1]


def test_other_floats_are_what_they_were() -> None:
    with pytest.raises(TypeError, match=r"^target: expected uint8, int8"):
        customloss.dice_loss(X, Y[:, 0].double(), **OPTIONS)
    with pytest.raises(TypeError, match=r"^target: expected uint8, int8"):  # it asks for a gradient
        customloss.dice_loss(X, Y.double().requires_grad_(), **OPTIONS)
    one = torch.randn(2, 1, 4)
    soft = torch.rand(2, 1, 4)
    torch.testing.assert_close(
        customloss.dice_loss(one, soft),
        customloss.dice_loss(one[:, 0], soft[:, 0], average="micro"),
    )


OF_PIXELS = torch.tensor([[1.0, 0.5, 0.0, 2.0], [1.0, 0.0, 0.5, 1.0]], dtype=torch.float64)
WEIGHTS = {
    "[N, L]": OF_PIXELS,
    "[N, 1, L]": OF_PIXELS[:, None],
    "[N, C, L]": OF_PIXELS[:, None] * torch.tensor([1.0, 0.0, 2.0])[:, None],
}
LOSSES = (
    customloss.soft_f1_loss, customloss.mcc_loss, customloss.dice_ce_loss,
    customloss.semimetric_dice_loss,
)  # fmt: skip


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), -7.0, 2.0**40])
@pytest.mark.parametrize("name", WEIGHTS)
def test_what_weighs_nothing_is_not_looked_at(name: str, value: float) -> None:
    """Whatever stands there, loss and gradients are those of any label."""
    weight = WEIGHTS[name]
    unread = (weight.expand(2, 3, 4) if weight.dim() == 3 else weight[:, None]) == 0
    unread = unread.all(1, keepdim=True)
    labels = Y.double().masked_fill(unread, value)
    for loss in LOSSES:
        found = []
        for target in (labels, Y.masked_fill(unread, 0)):
            x = X.clone().requires_grad_()
            value_of = loss(x, target, weight, **OPTIONS)
            found.append((value_of.detach(), *torch.autograd.grad(value_of, x)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15)
        expected = torch.func.grad(loss)(X, Y.masked_fill(unread, 0), weight, **OPTIONS)
        torch.testing.assert_close(torch.func.grad(loss)(X, labels, weight, **OPTIONS), expected)
    torch.compiler.reset()
    compiled = torch.compile(customloss.dice_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(X, labels, weight, **OPTIONS),
        customloss.dice_loss(X, Y.masked_fill(unread, 0), weight, **OPTIONS),
    )
    counted = weight.masked_fill(weight == 0, 1e-300)
    with pytest.raises(ValueError, match=r"^target: expected (whole )?class numbers"):
        customloss.dice_loss(X, labels, counted, **OPTIONS)


@pytest.mark.parametrize("ignored", [None, 255, (1, 255), 2**40, [2**40, 255]], ids=str)
def test_a_missing_label_is_ignored(ignored: Any) -> None:
    """``nan_targets="ignore"`` is about dense targets, and about labels that came as floats."""
    missing = torch.zeros_like(Y, dtype=torch.bool)
    missing[0, 0, 1] = missing[1, 0, 3] = True
    every = Y.clamp(max=2)
    labels = every.double().masked_fill(missing, float("nan"))
    weight = (~missing).double()
    options = {"activation": "softmax", "nan_targets": "ignore", "ignore_index": ignored}
    plain = {**options, "nan_targets": "propagate"}
    for loss in LOSSES:
        expected = torch.func.grad_and_value(loss)(X, every, weight, **plain)
        found = torch.func.grad_and_value(loss)(X, labels, **options)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(loss(X, labels, **options), expected[1])
        with pytest.raises(ValueError, match=r"^target: expected whole class numbers.* got nan"):
            loss(X, labels, **plain)
        with pytest.raises(ValueError, match=r"^target: expected whole class numbers.* got 0.5"):
            loss(X, labels.index_fill(2, torch.tensor([0]), 0.5), **options)
    own = customloss.confusion_sums(X, labels, **options)
    torch.testing.assert_close(own, customloss.confusion_sums(X, every, weight, **plain))
    torch.compiler.reset()
    compiled = torch.compile(customloss.dice_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(X, labels, **options), customloss.dice_loss(X, every, weight, **plain)
    )


def test_beside_missing_labels_no_label_is_made_up_either() -> None:
    """Where nothing may wait, a number that is none is not the label that a NaN became."""
    labels = torch.tensor([[0.0, float("nan"), 0.5, 2.0]], dtype=torch.float64)[:, None]
    options: dict[str, Any] = {"nan_targets": "ignore"}
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(float_labels.read(Data(x, labels, None), options).target)
        return x.sum()

    torch.func.grad(look)(X[:1])
    numbers = found[0][0, 0].tolist()
    assert [numbers[1]] == [*options["ignore_index"]]
    assert numbers[2] not in (*options["ignore_index"], 0, 1, 2)
    loss = torch.func.grad(customloss.dice_loss)(
        X[:1], labels, activation="softmax", nan_targets="ignore"
    )
    assert loss.isnan().any()
