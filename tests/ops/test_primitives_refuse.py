"""The compiled primitives refuse what they would read wrongly, also where no check of ours ran.

Programs that were exported call them without the Python in front.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from customloss._backends import libraries

pytestmark = pytest.mark.skipif(not libraries.loaded("_C"), reason="needs the compiled library")

ops = torch.ops.customloss
ELEMENTS = (2, 1.0, 0.0, False, True, None, 0.0, 0, 2.0)
SCORING = (2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
POINTWISE = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_class_numbers_of_another_dtype(dtype: torch.dtype) -> None:
    """They would be read as int64, which is past the end for the narrow ones."""
    x, labels = torch.zeros(1, 2, 64), torch.ones(1, 1, 64, dtype=torch.int64).to(dtype)
    sums = torch.ones(4, 1, 2, dtype=torch.float64)
    calls: tuple[Any, ...] = (
        lambda: ops.confusion(x, labels, None, *ELEMENTS),
        lambda: ops.confusion_score(x, labels, None, *ELEMENTS, *SCORING),
        lambda: ops.confusion_backward(None, sums, x, labels, None, 0, *ELEMENTS),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="customloss: class numbers are uint8, int8"):
            call()


@pytest.mark.parametrize("number", [-1, 4, 99, 2**32])
@pytest.mark.parametrize("place", range(7, 11), ids=["link", "absent", "average", "reduction"])
def test_numbers_of_no_word(place: int, number: int) -> None:
    """A number that stands for no word would be taken for the last one, or the first."""
    scoring = (*SCORING[:place], number, *SCORING[place + 1 :])
    x, t = torch.zeros(4, 3), torch.ones(4, 3)
    sums = torch.ones(4, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion_score(x, t, None, *ELEMENTS, *scoring)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.sums_score(sums, None, 0, False, False, *scoring, *POINTWISE)


@pytest.mark.parametrize("number", [-1, 3, 2**32])
def test_numbers_of_no_activation_operand_or_sum(number: int) -> None:
    x, t = torch.zeros(4, 3), torch.ones(4, 3)
    sums = torch.ones(4, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion(x, t, None, number, *ELEMENTS[1:])
    with pytest.raises(RuntimeError, match=f"customloss: unknown option {number}"):
        ops.confusion_backward(None, sums, x, t, None, number, *ELEMENTS)
    extra = 32 if number == 3 else number
    with pytest.raises(RuntimeError, match=r"customloss: unknown (option|sums)"):
        ops.confusion(x, t, None, *ELEMENTS[:7], extra, 2.0)
