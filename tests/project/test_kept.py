"""The memory that a rival keeps for the next gradient is never lent while somebody has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customloss._bench import analytic, cases, gate, kept, measure

_LIKE = torch.zeros(2, 3, 4)


def test_a_freed_block_is_lent_again() -> None:
    memory = kept.Kept()
    first = memory.like(_LIKE)
    place = first.data_ptr()
    del first
    again = memory.like(_LIKE.clone().requires_grad_())
    assert again.data_ptr() == place
    assert again.shape == _LIKE.shape and not again.requires_grad


def _as_grad(gradient: Tensor) -> Any:
    parameter = torch.zeros_like(gradient, requires_grad=True)
    parameter.grad = gradient
    return parameter


def _in_a_graph(gradient: Tensor) -> Any:
    """Only autograd has it."""
    weight = torch.ones((), requires_grad=True)
    return weight * gradient


_HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda gradient: gradient,
    "a view": lambda gradient: gradient[1:],
    "a detached one": lambda gradient: gradient.detach(),
    "a parameter": _as_grad,
    "a graph": _in_a_graph,
    "numpy": lambda gradient: gradient.numpy(),
    "a storage": lambda gradient: gradient.untyped_storage(),
    "a typed storage": lambda gradient: gradient.storage(),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("name", _HOLDERS)
def test_a_block_is_not_lent_while_somebody_has_it(name: str) -> None:
    memory = kept.Kept()
    gradient = memory.like(_LIKE)
    place = gradient.data_ptr()
    holder = _HOLDERS[name](gradient)
    del gradient
    other = memory.like(_LIKE)
    assert other.data_ptr() != place
    del holder, other


@pytest.mark.parametrize("name", _HOLDERS)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_a_block_is_lent_once_nobody_has_it(name: str) -> None:
    memory = kept.Kept()
    gradient = memory.like(_LIKE)
    place = gradient.data_ptr()
    holder = _HOLDERS[name](gradient)
    del gradient, holder
    assert memory.like(_LIKE).data_ptr() == place


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, 3, 5),
        torch.zeros(2, 3, 4, dtype=torch.float64),
        torch.zeros(4, 3, 2).permute(2, 1, 0),
    ],
    ids=["shape", "dtype", "strides"],
)
def test_a_block_that_does_not_fit_is_replaced(other: Tensor) -> None:
    memory = kept.Kept()
    memory.like(_LIKE)
    found = memory.like(other)
    assert (found.shape, found.dtype, found.stride()) == (
        other.shape, other.dtype, other.stride(),
    )  # fmt: skip


def test_an_emptied_memory_leaves_a_lent_gradient_alone() -> None:
    memory = kept.Kept()
    gradient = memory.like(_LIKE).fill_(3)
    memory.empty()
    memory.like(_LIKE).fill_(4)
    assert (gradient == 3).all()


def _kept_loss(case: cases.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Not compiled, which is the same data path."""
    monkeypatch.setattr(analytic, "compiled", lambda function, **options: function)
    monkeypatch.setattr(kept, "GRADIENT", kept.Kept())
    return analytic.kept_form(case)


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_a_form_with_a_kept_gradient_is_right(
    case: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, inputs = _kept_loss(case, monkeypatch), cases.make_inputs(case, torch.device("cpu"))
    right = gate.expected(case, inputs)
    for _ in range(2):  # into a fresh block, and into a kept one
        assert gate.check(loss, inputs, right).passed
    _, gradient = gate.step(loss, inputs)
    assert gradient.stride() == inputs.input.stride()


def test_a_gradient_outlives_the_next_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.SMOKE[0]
    loss = _kept_loss(case, monkeypatch)
    first = cases.make_inputs(case, torch.device("cpu"))
    second = first._replace(input=(-first.input.detach()).requires_grad_())
    _, gradient = gate.step(loss, first)
    before = gradient.clone()
    _, other = gate.step(loss, second)
    assert torch.equal(gradient, before) and not torch.equal(gradient, other)
    place = other.data_ptr()
    del other
    assert gate.step(loss, second)[1].data_ptr() == place


def test_peak_memory_begins_without_a_kept_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.SMOKE[0]
    loss = _kept_loss(case, monkeypatch)
    inputs = cases.make_inputs(case, torch.device("cpu"))
    gate.step(loss, inputs)
    assert kept.GRADIENT._block is not None
    with measure._resident_peak():
        assert kept.GRADIENT._block is None
