"""Triton's kernels of pixels lose no digits and hide no NaN at the ends of the range of numbers;
test_triton_interpret.py runs this file."""

from __future__ import annotations

import pytest
import torch
import triton_package
from probabilities import coefficients, ends, slopes

from customloss._backends import plain
from customloss._spec.arguments import Data, Elements, Incoming, Wrt
from customloss._spec.words import INPUT, NONE, SIGMOID, SOFTMAX, TARGET
from customloss.reference import Extra, rows

triton_package.load()

from customloss.kernels import confusion as kernels  # noqa: E402

NAN, INF = float("nan"), float("inf")
EVERY = int(sum(Extra))
ROWS = len(rows(EVERY))

pytestmark = [
    # numpy warns about inf - inf and 0 * inf, which a GPU computes silently
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
    # the interpreter of Triton 3.6 uses an array as an index
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]


@pytest.mark.parametrize("classes", [3, 41])
def test_no_cancellation_next_to_1(classes: int) -> None:
    """fn is the sum of the other probabilities, about 1e-13, and the gradients keep its digits."""
    input = torch.zeros(2, classes, 33)
    input[:, 1] = 30.0
    target = torch.ones(2, 1, 33, dtype=torch.uint8)
    extra = int(Extra.LOG_LOSS | Extra.FOCAL)
    elements = Elements(SOFTMAX, 1.0, 0.0, False, True, extra=extra)
    data, wide = Data(input, target, None), Data(input.double(), target, None)
    sums = kernels.confusion(data, elements)
    expected = plain.confusion(wide, elements)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)
    incoming = Incoming(None, torch.rand(sums.shape, dtype=torch.float64))
    own = kernels.confusion_backward(incoming, data, Wrt(INPUT), elements)
    other = plain.confusion_backward(incoming, wide, Wrt(INPUT), elements)
    torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [4, 41])
def test_ties_and_logits_of_minus_infinity(classes: int) -> None:
    input = torch.zeros(1, classes, 6)
    input[0, 2, 1] = 5.0
    input[0, 3, 1] = 5.0
    input[0, :2, 2:4] = -INF
    input[0, classes - 1, 4] = INF
    input[0, :, 5] = -INF
    target = torch.tensor([[[0, 3, 2, 3, 1, 1]]])
    # the last two pixels have no softmax
    for count in (4, 5, 6):
        data = Data(input[..., :count], target[..., :count], None)
        elements = Elements(SOFTMAX, 1.0, 0.0, True, True, extra=EVERY)
        wide = data._replace(input=data.input.double())
        sums = kernels.confusion(data, elements)
        expected = plain.confusion(wide, elements)
        if count == 4:
            torch.testing.assert_close(sums, expected, rtol=4e-6, atol=1e-6)
        else:
            assert bool(sums[:4].isnan().any(0).all()) and bool(expected[:4].isnan().all())
        incoming = Incoming(None, torch.rand(ROWS, 1, classes, dtype=torch.float64))
        own = kernels.confusion_backward(incoming, data, Wrt(INPUT), elements)
        other = plain.confusion_backward(incoming, wide, Wrt(INPUT), elements)
        torch.testing.assert_close(own.double(), other, rtol=4e-6, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("classes", [4, 41])
def test_nan_spoils_its_own_group_only(classes: int) -> None:
    input = torch.randn(3, classes, 7)
    input[1, 2, 3] = NAN
    data = Data(input, torch.zeros(3, 1, 7, dtype=torch.int64), None)
    elements = Elements(SOFTMAX, 1.0, 0.0, True, True)
    sums = kernels.confusion(data, elements)
    assert sums.isnan().any(2).any(0).tolist() == [False, True, False]
    incoming = Incoming(None, torch.rand(sums.shape, dtype=torch.float64))
    spoilt = kernels.confusion_backward(incoming, data, Wrt(INPUT), elements).isnan()
    assert spoilt.sum() == classes and bool(spoilt[1, :, 3].all())


def test_a_nan_of_the_coefficients_stays_out_of_what_does_not_count() -> None:
    for classes in (4, 41):
        input = torch.randn(1, classes, 6)
        target = torch.tensor([[[0, 255, 1, 255, 2, 2]]])
        elements = Elements(SOFTMAX, 1.0, 0.0, False, True, ignore_index=(255,), extra=EVERY)
        coefficients = torch.full((ROWS, 1, classes), NAN, dtype=torch.float64)
        incoming, data = Incoming(None, coefficients), Data(input, target, None)
        gradient = kernels.confusion_backward(incoming, data, Wrt(INPUT), elements)
        assert bool((gradient[..., [1, 3]] == 0).all()) and bool(gradient[..., 0].isnan().all())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_an_infinite_focal_loss_that_weighs_nothing(gamma: float) -> None:
    """It spoils no gradient, and neither does the positive that a sure negative might have been."""
    input, target = torch.tensor([[-INF, 1.0, -INF]]), torch.tensor([[1.0, 1.0, 0.0]])
    extra = int(Extra.FOCAL)
    elements = Elements(SIGMOID, 1.0, 0.0, False, True, extra=extra, focal_gamma=gamma)
    by = torch.zeros(6, 1, 3, dtype=torch.float64)
    by[5] = 0.5  # focal_neg
    by[4, 0, 2] = 0.25  # focal_pos
    data, incoming = Data(input, target, None), Incoming(None, by)
    for wrt in (INPUT, TARGET):
        found = kernels.confusion_backward(incoming, data, Wrt(wrt), elements)
        assert bool(found.isfinite().all())
        wanted = plain.confusion_backward(incoming, data, Wrt(wrt), elements)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_slopes_of_probabilities_at_their_ends(gamma: float) -> None:
    """Below its floor a logarithm has no slope."""
    logs = int(Extra.LOG_LOSS | Extra.FOCAL)
    for dtype, extra in ((torch.float32, logs), (torch.float64, logs), (torch.float64, EVERY)):
        p, t = ends(dtype)
        elements = Elements(NONE, 1.0, 0.0, False, True, extra=extra, focal_gamma=gamma)
        incoming = Incoming(None, coefficients(extra, 0.75, 0.5))
        found = kernels.confusion_backward(incoming, Data(p, t, None), Wrt(INPUT), elements)
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(found, slopes(p, t, 0.75, 0.5, gamma), rtol=rtol, atol=1e-30)
