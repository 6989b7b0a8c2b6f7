"""Every kind of request and formula takes its route, as in a table."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
import torch
from torch.overrides import TorchFunctionMode

import customloss
from customloss._spec.arguments import Data, Elements, Pointwise
from customloss._spec.options import Ratio, ScoringWords
from customloss.losses.classes import Classes
from customloss.losses.formula import Formula
from customloss.losses.request import Request
from customloss.losses.route import Route, route

DICE = Ratio(2.0, 1.0, 1.0, 0.0, 0.0)
WEIGHTS = torch.ones(3)
LEARNED = torch.ones(3, requires_grad=True)
GROUP: Any = MagicMock(name="a process group")
POOLED: dict[str, Any] = {"per_class": False, "options": {"average": "micro"}}

# How the call differs from a macro Dice of three classes, and the route that it takes.
TABLE: dict[str, tuple[dict[str, Any], Route]] = {
    "a ratio": ({}, Route.FUSED),
    "and a cross-entropy": ({"pointwise": Pointwise(log_pos=1.0)}, Route.FUSED),
    "samples": ({"per_sample": True}, Route.FUSED),
    "micro": (POOLED, Route.FUSED),
    "a logarithm": ({"link": "log"}, Route.FUSED),
    "kept classes": ({"average": "none"}, Route.FUSED),
    "class weights": ({"classes": Classes(WEIGHTS, None)}, Route.FUSED),
    "chosen classes": ({"classes": Classes(None, ((1, 3),))}, Route.FUSED),
    "over ranks": ({"ranks": GROUP}, Route.SUMS_THEN_LOSS),
    "class weights over ranks": (
        {"ranks": GROUP, "classes": Classes(WEIGHTS, None)}, Route.SUMS_THEN_LOSS,
    ),
    "another score": ({"score": lambda rows: rows[0]}, Route.COMPOSED),
    "another score over ranks": ({"score": lambda rows: rows[0], "ranks": GROUP}, Route.COMPOSED),
    "a link that no operator knows": ({"link": "log_cosh"}, Route.COMPOSED),
    "learned class weights": ({"classes": Classes(LEARNED, None)}, Route.COMPOSED),
    "kept classes with weights": (
        {"average": "none", "classes": Classes(WEIGHTS, None)}, Route.COMPOSED,
    ),
    "micro of chosen classes": ({**POOLED, "classes": Classes(None, ((1, 3),))}, Route.COMPOSED),
    "weights of positives": ({"pos_weight": torch.ones(3)}, Route.COMPOSED),
    "samples over ranks": ({"per_sample": True, "ranks": GROUP}, Route.COMPOSED),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_way_of_a_call(name: str) -> None:
    differs, expected = TABLE[name]
    given = {**differs}
    data = Data(torch.zeros(2, 3), torch.zeros(2, 3), None)
    elements = Elements(0, 1.0, 0.0, given.pop("per_sample", False), given.pop("per_class", True))
    words = ScoringWords(
        given.pop("link", "complement"), 1.0, 1e-30, "score", given.pop("average", "macro"), "mean"
    )
    ranks, classes = given.pop("ranks", None), given.pop("classes", None)
    request = Request(data, elements, words, given.pop("options", {}), {}, ranks, classes)
    formula = Formula("dice", given.pop("score", DICE), **given)
    assert route(request, formula) is expected


# ---- the operator, or its function ---------------------------------------------------------------


class _SeenFunctions(TorchFunctionMode):
    """Notes the names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _Subclass(torch.Tensor):
    """A tensor whose operators are noted by its type."""

    names: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


INPUT, TARGET = torch.randn(2, 3, 5), torch.randint(3, (2, 5))


def test_whoever_watches_calls_sees_the_operator() -> None:
    with _SeenFunctions() as functions:
        customloss.dice_ce_loss(INPUT, TARGET)
    assert any("customloss.compound" in name for name in functions.names)
    customloss.dice_ce_loss(INPUT.as_subclass(_Subclass), TARGET)
    assert any("customloss.compound" in name for name in _Subclass.names)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        customloss.dice_ce_loss(INPUT, TARGET)
    assert "customloss::compound" in {event.key for event in profile.key_averages()}


def test_an_ordinary_call_needs_no_operator_around_its_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = customloss.dice_ce_loss(INPUT, TARGET)

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the operator was called")

    monkeypatch.setattr(torch.ops.customloss, "compound", refuse)
    assert torch.equal(customloss.dice_ce_loss(INPUT, TARGET), expected)
    leaf = INPUT.clone().requires_grad_()
    customloss.dice_ce_loss(leaf, TARGET).backward()
    assert leaf.grad is not None
