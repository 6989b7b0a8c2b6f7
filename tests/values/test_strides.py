"""Operands of any strides are read in place: the loss is the same, and no operand is copied.

test_elements_values and test_elements_gradients judge every layout against the reference; this file
has the remaining checks.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import LAYOUTS, Case, Sample, lay_out
from judge import assert_near, assert_right, reference_loss, soft_f1
from measured import allocated
from selection import covering
from torch import Tensor

# dense in some order of their dimensions
DENSE = ("contiguous", "class_last", "transposed")


def test_the_counter_counts() -> None:
    """``allocated`` sees a copy, and does not count a view."""
    assert sum(allocated(lambda: torch.zeros(1000, 1000).contiguous())) >= 4_000_000
    x = torch.zeros(1000, 1000).t()
    assert sum(allocated(lambda: x.contiguous())) >= 4_000_000
    assert sum(allocated(lambda: x.view(torch.int32))) == 0


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", [torch.bool, torch.int64, None], ids=str)
def test_no_hidden_copy(target: torch.dtype | None, layout: str, dtype: torch.dtype) -> None:
    case = Case("x", (4, 6, 60, 70), target=target, layout=layout, weight="full",
                weight_layout=layout)  # fmt: skip
    sample = case.build(dtype)
    x = sample.input.requires_grad_()
    size = x.numel() * x.element_size()
    # Room for the sums of 6 groups, their derivatives and the loss; any copy takes at least 100 kB.
    few = 4096

    forward = allocated(lambda: soft_f1(*sample.operands))
    assert sum(forward) <= few, forward
    loss = soft_f1(*sample.operands)
    backward = allocated(lambda: torch.autograd.grad(loss, x))
    assert sum(backward) <= size + few, backward


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4, 5), (2, 3, 2, 4, 5)])
@pytest.mark.parametrize("layout", DENSE)
def test_the_layout_changes_no_more_than_the_last_digits(
    layout: str, shape: tuple[int, ...]
) -> None:
    sample = Case("x", shape, target=None, weight="full").build()
    moved = Sample(*(lay_out(t, layout) for t in sample.operands), {})
    assert_near(soft_f1(*moved.operands), reference_loss(sample), torch.float32)


@pytest.mark.parametrize("format", [torch.channels_last, torch.channels_last_3d])
def test_channels_last_goes_in_and_comes_out(format: torch.memory_format) -> None:
    shape = (2, 3, 4, 5) if format == torch.channels_last else (2, 3, 2, 4, 5)
    x = torch.randn(shape).to(memory_format=format).requires_grad_()
    for target in (torch.rand(shape) < 0.4, (torch.rand(shape) < 0.4).to(memory_format=format)):
        (gradient,) = torch.autograd.grad(soft_f1(x, target), x)
        assert gradient.is_contiguous(memory_format=format)
        assert gradient.stride() == x.stride()


def test_gradients_of_leaves_reached_through_views() -> None:
    base = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 3) < 0.4
    for view in (base[1:5, 2:5], base[::2, ::3][:4], base.t()[:4, :3], base[:4, 0:1].expand(4, 3)):
        (own,) = torch.autograd.grad(soft_f1(view, target), base, retain_graph=True)
        dense = view.detach().clone().requires_grad_()
        (by_dense,) = torch.autograd.grad(soft_f1(dense, target), dense)
        (expected,) = torch.autograd.grad(view, base, by_dense, retain_graph=True)
        torch.testing.assert_close(own, expected)


def test_every_pair_of_layouts() -> None:
    """Operands of different layouts, in float64 so that rounding hides nothing."""
    for shape in ((3, 5), (2, 3, 4, 3), (2, 3, 66)):
        for one in LAYOUTS:
            for other in LAYOUTS:
                case = Case("x", shape, layout=one, target_layout=other, target=None, weight="full",
                            weight_layout=other)  # fmt: skip
                assert_right(soft_f1, case.build(torch.float64))


@pytest.mark.parametrize("rank", range(1, 9))
def test_every_rank(rank: int) -> None:
    shape = (3, 2, 2, 3, 1, 2, 2, 2)[:rank]
    for layout in LAYOUTS:
        case = Case("x", shape, layout=layout, target=None, weight="last")
        assert_right(soft_f1, case.build(torch.float64))
        assert_right(soft_f1, replace(case, target_layout="contiguous").build())


def test_every_order_of_four_dimensions() -> None:
    from itertools import permutations

    sample = Case("x", (2, 3, 4, 5), target=None, weight="full").build(torch.float64)
    expected = reference_loss(sample)
    for order in permutations(range(4)):
        back = [order.index(dim) for dim in range(4)]

        def moved(tensor: Tensor, order: tuple = order, back: list = back) -> Tensor:
            return tensor.permute(order).contiguous().permute(back)

        operands = [moved(tensor) for tensor in sample.operands]
        assert_near(soft_f1(*operands), expected, torch.float64)
        assert_right(soft_f1, Sample(*operands, {"average": "micro"}))


def test_an_unaligned_start() -> None:
    """Every offset within a cache line, for every operand."""
    for offset in range(17):
        x = torch.randn(1100 + offset)[offset:]
        t = (torch.rand(1100 + offset) < 0.4)[offset:]
        w = torch.rand(1100 + offset)[offset:]
        assert_right(soft_f1, Sample(x, t, w, {}))
