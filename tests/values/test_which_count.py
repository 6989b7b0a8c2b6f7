"""Which targets count: class numbers that are no class are refused, and NaN and ignored values left
out, on every route to the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from selection import covering
from torch import Tensor

import customloss
from customloss import reference
from customloss._backends import libraries

NAN = float("nan")
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SOFTMAX = {"activation": "softmax"}


def operands(classes: int = 4, shape: tuple[int, ...] = (2, 9, 7)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(shape[0], classes, *shape[1:]), torch.randint(0, classes, shape)


def hidden(x: Tensor, y: Tensor) -> Tensor:
    """A weight that leaves out what ``y`` marks with a number that is no class."""
    return ((y >= 0) & (y < x.shape[1])).to(x.dtype).unsqueeze(1)


# ---- class numbers that are no class -------------------------------------------------------------

WAYS: dict[str, Callable[..., object]] = {
    "function": customloss.dice_ce_loss,
    "module": lambda x, y: customloss.DiceCELoss(check_target=False)(x, y),
    "composed": lambda x, y: customloss.mcc_loss(x, y, **SOFTMAX),
    "operator": lambda x, y: torch.ops.customloss.soft_f1(x, y, **SOFTMAX),
    "sums": customloss.confusion_sums,
    "sums of a softmax": lambda x, y: customloss.confusion_sums(x, y, hard=True, **SOFTMAX),
    "autograd": lambda x, y: customloss.dice_loss(x.clone().requires_grad_(), y, **SOFTMAX),
    "double": lambda x, y: customloss.dice_loss(x.double(), y, **SOFTMAX),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("way", WAYS)
def test_a_class_number_that_is_none_is_refused(way: str, backend: str) -> None:
    x, y = operands()
    y[1, 3, 2], y[1, 5, 5] = 255, -3
    with customloss.backend(backend), pytest.raises(ValueError, match=r"^target: ") as caught:
        WAYS[way](x, y)
    assert str(caught.value) == (
        "target: expected class numbers from 0 to 3 (dim 1 of input has 4 classes), got 255; if "
        "255 marks what does not count, pass ignore_index=255"
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_message_has_the_cure(backend: str) -> None:
    x, y = operands()
    with customloss.backend(backend):
        for ignored, known, cure in (
            (None, "", "4"), (9, " or ignore_index=9", "[9, 4]"),
            ([9, -1], " or ignore_index=[9, -1]", "[9, -1, 4]"),
        ):  # fmt: skip
            with pytest.raises(ValueError) as caught:
                customloss.dice_loss(x, y + 1, ignore_index=ignored, **SOFTMAX)
            assert str(caught.value) == (
                f"target: expected class numbers from 0 to 3 (dim 1 of input has 4 classes){known},"
                f" got 4; labels 1..4 need target - 1; if 4 marks what does not count, pass "
                f"ignore_index={cure}"
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrow_dtypes_are_compared_as_they_are(dtype: torch.dtype) -> None:
    """255 of uint8 is not -1, and -100 of int8 is not 156."""
    x = torch.randn(3, 300, 5)
    y = torch.randint(0, 100, (3, 5)).to(dtype)
    customloss.dice_loss(x, y, **SOFTMAX)
    if dtype == torch.uint8:
        y[1, 1] = 255
        customloss.dice_loss(x, y, **SOFTMAX)
        x, found = x[:, :200], "255"
    else:
        y[1, 1], found = -100, "-100"
    for ignored in (None, 156, -1, (156, -1)):
        with pytest.raises(ValueError, match=f"got {found};"):
            customloss.dice_loss(x, y, ignore_index=ignored, **SOFTMAX)
    customloss.dice_loss(x, y, ignore_index=int(found), **SOFTMAX)


def test_which_one_is_named_does_not_depend_on_threads() -> None:
    x, y = operands(3, (2, 400, 300))
    for k in range(40):
        y[k % 2, 399 - 3 * k, k] = 1000 + k
    first = int(y[y > 2][0])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            with pytest.raises(ValueError, match=f"got {first};"):
                customloss.dice_loss(x, y, **SOFTMAX)
    finally:
        torch.set_num_threads(threads)


@covering
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["pixel", "element"])
def test_a_weight_of_0_hides_the_number(kind: str, backend: str) -> None:
    x, y = operands()
    y[0, 2, 2], y[1, 8, 6] = 255, -1
    w = hidden(x, y)
    w = w if kind == "pixel" else w.expand(x.shape).contiguous()
    with customloss.backend(backend):
        for loss in (customloss.dice_ce_loss, customloss.soft_f1_loss):
            allowed = loss(x, y, out_of_range="ignore")
            torch.testing.assert_close(loss(x, y, w), allowed)
        w[0, -1, 2, 2] = 1.0
        with pytest.raises(ValueError, match="got 255;"):
            customloss.dice_ce_loss(x, y, w)


@pytest.mark.parametrize("loss", [customloss.dice_ce_loss, customloss.soft_f1_loss])
def test_transforms_make_a_nan_of_it(loss: Callable[..., Tensor]) -> None:
    x, y = operands()
    y[1, 3, 2] = 4
    gradient, value = torch.func.grad_and_value(lambda x: loss(x, y))(x)
    assert value.isnan()
    assert gradient.isnan().all()
    gradient, value = torch.func.grad_and_value(lambda x: loss(x, y, ignore_index=4))(x)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_reference_makes_every_sum_of_the_sample_nan(activation: str) -> None:
    x, y = operands()
    y[1, 3, 2] = 4
    more = (activation, 1.0, 0.0, True, True, None, 0.0, 31)
    sums = reference.confusion(x, y[:, None], None, *more)
    assert sums[:, 1].isnan().all()
    assert sums[:, 0].isfinite().all()
    by = reference.confusion_backward(torch.ones_like(sums), x, y[:, None], None, "input", *more)
    assert torch.equal(by.isnan().any(1), y == 4)


def test_a_compiled_graph_refuses_it() -> None:
    x, y = operands()
    compiled = torch.compile(customloss.dice_ce_loss, backend="aot_eager", fullgraph=True)
    compiled(x, y)
    y[0, 0, 0] = 7
    with pytest.raises(ValueError, match="got 7;"):
        compiled(x, y)


# ---- several values that do not count ------------------------------------------------------------


@pytest.mark.parametrize("values", [(255,), [255, 0], (0, 255, 255, -1), range(200, 206), []])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_several_class_numbers_are_ignored(values: list[int], backend: str) -> None:
    x, y = operands(5)
    for place, value in enumerate(values):
        y[place % 2, 1 + place, 3] = value
    w = torch.stack([y != value for value in (*values, 1000)]).all(0).unsqueeze(1)
    with customloss.backend(backend):
        for loss in (customloss.dice_ce_loss, customloss.soft_f1_loss, customloss.mcc_loss):
            found = loss(x, y, ignore_index=values)
            torch.testing.assert_close(found, loss(x, y, w.float(), out_of_range="ignore"))
    module = customloss.DiceLoss(ignore_index=values, activation="softmax")
    expected = customloss.dice_loss(x, y, ignore_index=values, activation="softmax")
    torch.testing.assert_close(module(x, y), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32], ids=str)
def test_several_values_of_a_dense_target_are_ignored(dtype: torch.dtype) -> None:
    x = torch.randn(30, 3)
    t = (torch.rand(30, 3) > 0.5).to(dtype)
    t[3, 1], t[9, 0], t[11, 2] = 7, 9, 7
    w = ((t != 7) & (t != 9)).float()
    expected = customloss.dice_bce_loss(x, (t == 1).float(), w)
    torch.testing.assert_close(customloss.dice_bce_loss(x, t, ignore_index=(7, 9)), expected)


@pytest.mark.parametrize("value", [2**63, 2**64 - 2**11, 2**64 - 1])
def test_no_unsigned_number_is_taken_for_a_negative_one(value: int) -> None:
    """By kernels, by the reference, under vmap and in the check of a batch."""
    x = torch.randn(2, 2)
    t = torch.tensor([[1, value], [0, 1]], dtype=torch.uint64)
    wide = torch.tensor([[1.0, value], [0.0, 1.0]])
    expected = customloss.bce_loss(x, wide)
    assert expected.abs() > 1e15
    with customloss.backend("reference"):
        by_reference = customloss.bce_loss(x, wide)
    for ignored in (value - 2**64, (-1, -(2**63), -(2**11))):
        torch.testing.assert_close(customloss.bce_loss(x, t, ignore_index=ignored), expected)
        by_vmap = torch.func.vmap(partial(customloss.bce_loss, ignore_index=ignored))(
            x[None], t[None]
        )
        with customloss.backend("reference"):
            own = customloss.bce_loss(x, t, ignore_index=ignored)
            torch.testing.assert_close(own, by_reference)
        torch.testing.assert_close(by_vmap[0], by_reference)
        with pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\]"):
            customloss.BCELoss(ignore_index=ignored)(x, t)


def test_ignored_values_are_integers_and_at_most_eight() -> None:
    x, y = operands()
    customloss.dice_loss(x, y, ignore_index=list(range(8, 16)), **SOFTMAX)
    for loss in (customloss.dice_loss, customloss.dice_ce_loss, customloss.confusion_sums):
        with pytest.raises(ValueError, match=r"^ignore_index: expected at most 8 values, got 9"):
            loss(x, y, ignore_index=list(range(9)))
        for wrong in (1.5, True, "255", [1, 2.5], [False]):
            with pytest.raises(TypeError, match=r"^ignore_index: expected an integer"):
                loss(x, y, ignore_index=wrong)
        with pytest.raises(ValueError, match=r"^ignore_index: expected integers of 64 bits"):
            loss(x, y, ignore_index=2**70)


def test_the_public_operators_take_one_value_or_several() -> None:
    x, y = operands()
    y[0, 0, 0], y[1, 1, 1] = 255, 9
    for op in (torch.ops.customloss.soft_f1, torch.ops.customloss.confusion_sums):
        several = op(x, y, ignore_index=[9, 255])
        assert torch.equal(several, op(x, torch.where(y == 9, 255, y), ignore_index=255))


# ---- NaN in dense targets ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_nan_target_may_be_missing(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(2)
    x, t = torch.randn(40, 3, dtype=dtype), torch.rand(40, 3).to(dtype)
    missing = torch.rand(40, 3) > 0.7
    with customloss.backend(backend):
        for loss in (customloss.dice_loss, customloss.dice_bce_loss, customloss.mcc_loss):
            own, judge = (x.clone().requires_grad_() for _ in range(2))
            found = loss(own, t.masked_fill(missing, NAN), nan_targets="ignore")
            expected = loss(judge, t, (~missing).to(dtype))
            torch.testing.assert_close(found, expected)
            found.backward()
            expected.backward()
            torch.testing.assert_close(own.grad, judge.grad)
            assert not own.grad[missing].any()
            assert loss(x, t.masked_fill(missing, NAN)).isnan()


def test_gradients_by_target_and_weight_are_0_where_it_is_missing() -> None:
    x = torch.randn(20, 3)
    t = torch.rand(20, 3).masked_fill(torch.rand(20, 3) > 0.7, NAN).requires_grad_()
    w = torch.rand(20, 3).requires_grad_()
    customloss.dice_loss(x, t, w, nan_targets="ignore").backward()
    for gradient in (t.grad, w.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert not gradient[t.isnan()].any()
        assert gradient[~t.isnan()].all()


def test_check_target_allows_what_is_missing() -> None:
    x, t = torch.randn(6, 3), torch.rand(6, 3)
    t[2, 1] = NAN
    customloss.dice_loss(x, t, check_target=True, nan_targets="ignore")
    with pytest.raises(ValueError, match=r"^target: expected values in \[0, 1\]"):
        customloss.dice_loss(x, t, check_target=True)


def test_one_class_of_a_softmax_cannot_be_missing() -> None:
    x, t = torch.randn(6, 3), torch.rand(6, 3).softmax(1)
    with pytest.raises(ValueError, match=r"^nan_targets: expected 'propagate' for a dense target"):
        customloss.dice_loss(x, t, nan_targets="ignore", **SOFTMAX)


@pytest.mark.parametrize("option", ["out_of_range", "nan_targets"])
def test_words_are_checked(option: str) -> None:
    x, y = operands()
    for loss in (customloss.dice_loss, customloss.dice_ce_loss, customloss.confusion_sums):
        with pytest.raises(ValueError, match=f"^{option}: expected one of"):
            loss(x, y, **{option: "ignored"})


@pytest.mark.skipif(not libraries.loaded("_C"), reason="needs the compiled library")
def test_targets_without_nan_take_the_fast_loops() -> None:
    """nan_targets="ignore" has the same bits where a target cannot be NaN."""
    x = torch.randn(4, 3, 50)
    for target in (torch.rand(4, 3, 50) > 0.5, torch.randint(0, 2, (4, 3, 50))):
        losses = [customloss.dice_loss(x, target, nan_targets=w) for w in ("ignore", "propagate")]
        assert torch.equal(*losses)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_float_target_holds_the_number_that_is_ignored(backend: str) -> None:
    """2^24 + 1 becomes 2^24 in float32, and another element would be ignored."""
    x, t = torch.randn(4, 3), torch.ones(4, 3)
    for dtype, number in (
        (torch.float32, 2**24 + 1), (torch.float16, 2049), (torch.float16, 2**17),
        (torch.bfloat16, -257),
    ):  # fmt: skip
        with customloss.backend(backend), pytest.raises(ValueError) as caught:
            customloss.dice_loss(x, t.to(dtype), ignore_index=number)
        assert str(caught.value) == (
            f"ignore_index: expected a number that {dtype} (target's) holds, got {number}: an "
            "integer target holds it"
        )
    for dtype, number in (
        (torch.float32, 2**24), (torch.float32, -(2**25)), (torch.float16, 2048),
        (torch.bfloat16, -100), (torch.bfloat16, 300), (torch.int64, 2**24 + 1),
    ):  # fmt: skip
        marked = t.to(dtype)
        marked[1:] = number
        with customloss.backend(backend):
            loss = customloss.dice_loss(x, marked, ignore_index=number)
            torch.testing.assert_close(loss, customloss.dice_loss(x[:1], t[:1]))
