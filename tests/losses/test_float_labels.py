"""Class numbers that came as floats, in MONAI's layout, are read as the integers that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import customloss
from customloss.losses import request

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


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), 2.0**40])
def test_no_label_is_made_up(value: float) -> None:
    labels = Y.double()
    labels[1, 0, 2] = value
    with pytest.raises(ValueError, match=rf"^target: expected whole class numbers.* got {value}"):
        customloss.dice_loss(X, labels, **OPTIONS)


def test_where_nothing_may_wait_it_is_a_label_that_no_class_has() -> None:
    labels = Y.double()
    labels[1, 0, 2] = 0.5
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(request.readable(x, labels))
        return x.sum()

    torch.func.grad(look)(X)
    assert found[0].dtype == torch.int32
    assert found[0][1, 0].tolist() == [2, 2, -(2**31), 1]


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
