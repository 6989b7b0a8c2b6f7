"""csrc/layout.h turns a tensor of any strides into the few loops that a kernel runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

pytest_plugins = ["cpp_build"]


def layout_of(
    maths: Any, *tensors: torch.Tensor | None, per_sample: bool = False, per_class: bool = True
) -> Any:
    operands = [None if t is None else (list(t.shape), list(t.stride())) for t in tensors]
    return maths.layout(operands, per_sample, per_class)


def strides(axis: Any) -> list[int]:
    return axis[1]


def visited(layout: Any, operand: int, sample: int, cls: int) -> list[int]:
    """The offsets of a group's elements in memory, in the order of the reduced index."""
    start = sample * strides(layout["sample"])[operand] + cls * strides(layout["cls"])[operand]
    steps = [[i * s[operand] for i in range(size)] for size, s in layout["reduced"]]
    return [start + sum(step) for step in itertools.product(*steps)]


def test_contiguous_spatial_axes_merge(maths: Any) -> None:
    x = torch.empty(2, 3, 4, 5, 6)
    found = layout_of(maths, x, x, per_sample=True)
    assert found["sample"] == (2, [360, 360, 0, 0])
    assert found["cls"] == (3, [120, 120, 0, 0])
    assert found["reduced"] == [(120, [1, 1, 0, 0])]
    assert (found["groups"], found["reduced_size"], found["interleaved"]) == (6, 120, False)


def test_samples_are_summed_over_as_an_axis_of_their_own(maths: Any) -> None:
    x = torch.empty(2, 3, 4, 5)
    assert layout_of(maths, x, x)["reduced"] == [(2, [60, 60, 0, 0]), (20, [1, 1, 0, 0])]
    everything = layout_of(maths, x, x, per_class=False)
    assert everything["reduced"] == [(120, [1, 1, 0, 0])]
    assert everything["groups"] == 1


def test_channels_last_ends_with_one_axis_and_is_interleaved(maths: Any) -> None:
    x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = layout_of(maths, x, x)
    assert found["cls"] == (3, [1, 1, 0, 0])
    assert found["reduced"] == [(40, [3, 3, 0, 0])]
    assert found["interleaved"]


def test_rows_are_interleaved(maths: Any) -> None:
    x = torch.empty(7, 5)
    found = layout_of(maths, x, x)
    assert found["reduced"] == [(7, [5, 5, 0, 0])]
    assert found["interleaved"]
    assert not layout_of(maths, torch.empty(7, 1), None)["interleaved"]


def test_transposed_axes_are_walked_in_the_order_of_memory(maths: Any) -> None:
    x = torch.empty(3, 4, 6, 5).transpose(2, 3)
    assert layout_of(maths, x, x, per_sample=True)["reduced"] == [(30, [1, 1, 0, 0])]
    # A target of another layout keeps the axes from merging.
    straight = torch.empty(3, 4, 5, 6)
    assert layout_of(maths, x, straight, per_sample=True)["reduced"] == [
        (6, [5, 1, 0, 0]),
        (5, [1, 6, 0, 0]),
    ]


def test_expanded_and_broadcast_operands_have_stride_zero(maths: Any) -> None:
    x = torch.empty(2, 3, 4, 5)
    t = torch.empty(2, 1, 4, 5).expand(2, 3, 4, 5)
    per_class = torch.empty(3, 1, 1)  # aligned right, as broadcasting does
    found = layout_of(maths, x, t, per_class, per_sample=True)
    assert strides(found["cls"]) == [20, 0, 1, 0]
    assert strides(found["sample"]) == [60, 20, 0, 0]
    assert found["reduced"] == [(20, [1, 1, 0, 0])]
    assert strides(layout_of(maths, x, x, torch.empty(()))["cls"]) == [20, 20, 0, 0]


def test_a_slice_of_a_larger_tensor_keeps_its_strides(maths: Any) -> None:
    x = torch.empty(4, 6, 10, 12)[1:3, 2:5, 3:8, :7]
    found = layout_of(maths, x, None, per_sample=True)
    assert found["reduced"] == [(5, [12, 0, 0, 0]), (7, [1, 0, 0, 0])]


def test_sizes_of_one_and_zero(maths: Any) -> None:
    one = layout_of(maths, torch.empty(1, 1, 1), None)
    assert one["reduced"] == [(1, [0, 0, 0, 0])]
    assert one["groups"] == one["reduced_size"] == 1
    assert layout_of(maths, torch.empty(2, 3, 0), None)["reduced_size"] == 0
    assert layout_of(maths, torch.empty(0, 3), None, per_sample=True)["groups"] == 0
    scalar = layout_of(maths, torch.empty(()), None, per_class=False)
    assert scalar["reduced_size"] == 1


def test_too_many_axes_are_refused(maths: Any) -> None:
    def alternating(axes: int) -> torch.Tensor:  # no two axes can merge
        return torch.empty([2, 2] + [4] * axes)[(..., *[slice(None, None, 2)] * axes)]

    most = maths.max_reduced - 1  # the samples take one axis
    assert len(layout_of(maths, alternating(most), None)["reduced"]) == maths.max_reduced
    assert layout_of(maths, alternating(most + 1), None) is None


LAYOUTS = {
    "contiguous": lambda: torch.empty(3, 4, 5, 2),
    "channels_last": lambda: torch.empty(3, 4, 5, 2).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.empty(2, 5, 4, 3).permute(3, 2, 1, 0),
    "sliced": lambda: torch.empty(6, 8, 10, 4)[::2, ::2, ::2, ::2],
    "expanded": lambda: torch.empty(1, 4, 1, 2).expand(3, 4, 5, 2),
}


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("input", LAYOUTS)
def test_every_element_is_visited_once_and_operands_stay_together(
    maths: Any, input: str, target: str, per_sample: bool, per_class: bool
) -> None:
    x, t = LAYOUTS[input](), LAYOUTS[target]()
    found = layout_of(maths, x, t, per_sample=per_sample, per_class=per_class)
    for sample, cls in itertools.product(range(found["sample"][0]), range(found["cls"][0])):
        pairs = zip(visited(found, 0, sample, cls), visited(found, 1, sample, cls))
        expected = [
            tuple(sum(i * s for i, s in zip(index, tensor.stride())) for tensor in (x, t))
            for index in itertools.product(*map(range, x.shape))
            if (not per_sample or index[0] == sample) and (not per_class or index[1] == cls)
        ]
        assert sorted(pairs) == sorted(expected)
