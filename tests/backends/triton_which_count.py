"""Triton's kernels refuse class numbers that are none, and leave out what does not count;
test_triton_interpret.py runs this file."""

from __future__ import annotations

import pytest
import torch
import triton_package
from selection import covering

from customloss._spec.arguments import Data, Elements, Incoming, Wrt
from customloss._spec.words import IGNORE, INPUT, SIGMOID, SOFTMAX, TARGET
from customloss.reference import Extra

triton_package.load()

from customloss.kernels import confusion as kernels  # noqa: E402

NAN = float("nan")
EVERY = int(sum(Extra))

pytestmark = [
    # numpy warns about a NaN, which a GPU computes silently
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning"),
    # the interpreter of Triton 3.6 uses an array as an index
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]


@covering
@pytest.mark.parametrize("extra", [0, EVERY])
@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("activation", [SOFTMAX, SIGMOID])
@pytest.mark.parametrize("shape", [(2, 3, 40), (30, 5), (2, 70, 9), (9, 105)], ids=str)
def test_a_class_number_that_is_none_makes_a_nan(
    shape: tuple[int, ...], activation: int, per_class: bool, extra: int
) -> None:
    """Of every sum of its sample, and of the gradient at its pixel, unless it weighs nothing."""
    torch.manual_seed(3)
    input = torch.randn(shape)
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))
    target[0, 0, ...], target[1, 0, ...] = -7, 1000
    elements = Elements(activation, 1.0, 0.0, True, per_class, ignore_index=(-7, 78), extra=extra)
    allowed = elements._replace(out_of_range=IGNORE)
    hides = torch.ones(target.shape)
    hides[1] = 0.0
    for weight in (None, hides, hides.expand(shape).contiguous()):
        data = Data(input, target, weight)
        sums, wanted = kernels.confusion(data, elements), kernels.confusion(data, allowed)
        lost = torch.zeros(shape[0], dtype=torch.bool)
        lost[1] = weight is None
        assert sums[:, lost].isnan().all()
        torch.testing.assert_close(sums[:, ~lost], wanted[:, ~lost])
        # all different: equal ones by tp and fn, and by fp and tn, leave the input no influence
        steps = 1.0 + torch.arange(len(sums), dtype=sums.dtype).reshape(-1, 1, 1)
        by = kernels.confusion_backward(
            Incoming(None, steps.expand(sums.shape).contiguous()), data, Wrt(INPUT), elements
        )
        spoiled = torch.zeros(shape, dtype=torch.bool)
        spoiled[1] = weight is None
        assert torch.equal(by.isnan(), spoiled)


def test_several_values_and_nan_are_ignored() -> None:
    x, t = torch.randn(4, 5, 33), torch.rand(4, 5, 33)
    t[0, 1, 3], t[2, 2, 2], t[3, 4, 5] = 7.0, 9.0, NAN
    w = torch.ones_like(t)
    w[0, 1, 3] = w[2, 2, 2] = w[3, 4, 5] = 0.0
    ignoring = Elements(SIGMOID, 1.0, 0.0, False, True, (7, 9), extra=EVERY, nan_targets=IGNORE)
    plain_elements = Elements(SIGMOID, 1.0, 0.0, False, True, extra=EVERY)
    found = kernels.confusion(Data(x, t, None), ignoring)
    wanted = kernels.confusion(Data(x, t.nan_to_num(0.0), w), plain_elements)
    torch.testing.assert_close(found, wanted)
    for wrt in (INPUT, TARGET):
        incoming = Incoming(None, torch.rand_like(found))
        by = kernels.confusion_backward(incoming, Data(x, t, None), Wrt(wrt), ignoring)
        other = kernels.confusion_backward(
            incoming, Data(x, t.nan_to_num(0.0), w), Wrt(wrt), plain_elements
        )
        torch.testing.assert_close(by, other)


def test_an_unsigned_number_is_no_negative_one() -> None:
    x, t = torch.randn(2, 3, 5), torch.ones(2, 3, 5)
    rows = t.long().tolist()
    rows[0][1][3], rows[1][2][4] = 2**64 - 1, 7
    w = torch.ones_like(t)
    w[1, 2, 4] = 0.0
    t[0, 1, 3] = 2.0**64
    ignoring = Elements(SIGMOID, 1.0, 0.0, False, True, (-1, 7), extra=int(Extra.LOG_LOSS))
    unsigned = torch.tensor(rows, dtype=torch.uint64)
    found = kernels.confusion(Data(x, unsigned, None), ignoring)
    wanted = kernels.confusion(Data(x, t, w), ignoring._replace(ignore_index=None))
    torch.testing.assert_close(found, wanted)
    assert found.abs().max() > 1e18
