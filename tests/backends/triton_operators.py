"""Triton's kernels work with autograd and the dispatcher; test_triton_interpret.py runs this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton_package
from cases import OPTIONS, Case, Sample
from judge import differentiated, soft_f1
from torch.autograd import gradcheck

import customloss
from customloss._backends import choice, libraries, plain
from customloss._ops import register
from customloss._spec.arguments import (
    PRIMITIVES,
    SCORE_ALONE,
    Data,
    Elements,
    GroupSums,
    Incoming,
    Scoring,
    Wrt,
    schema,
)
from customloss._spec.words import INPUT, SIGMOID

triton_package.load()

from customloss.kernels import confusion as kernels  # noqa: E402
from customloss.kernels.pixel import by_pixel  # noqa: E402


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with customloss.backend("triton"):
        yield


@pytest.mark.parametrize("option", ["default", "log_smooth", "everything", "samplewise_groups"])
def test_gradcheck(option: str) -> None:
    case = Case("check", (3, 2, 2), target=None, weight="scalar", options=OPTIONS[option])
    sample = case.build(torch.float64, requires_grad=True)
    assert gradcheck(lambda *o: soft_f1(*o, **sample.options), sample.operands, nondet_tol=0)


def test_confusion_sums_are_differentiable() -> None:
    sample = Case("sums", (4, 3), target=None).build(torch.float64, requires_grad=True)
    op = torch.ops.customloss.confusion_sums
    assert gradcheck(lambda *o: op(*o), sample.operands[:2], nondet_tol=0)


def test_a_list_without_a_number_ignores_nothing() -> None:
    """The kernels of pixels read it, as on the CPU."""
    case = Case("list", (4, 3), target=None).build(torch.float32)
    data = Data(*case.operands)
    elements = Elements(SIGMOID, 1.0, 0.0, False, True)
    empty = elements._replace(ignore_index=())
    assert by_pixel(data, empty) and not by_pixel(data, elements)
    torch.testing.assert_close(kernels.confusion(data, empty), kernels.confusion(data, elements))


def test_registration_covers_the_devices_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher calls Triton's kernels for CUDA and XPU, with the schemas of the operators."""
    library = torch.library.Library("customloss_triton_operators", "DEF")
    for name, contract in PRIMITIVES.items():
        library.define(schema(name, contract))
    seen = []

    class Recorder:
        def impl(self, name: str, function: Any, key: str) -> None:
            if key == "CUDA":
                library.impl(name, function, "CPU")
            if key in ("CUDA", "XPU"):
                library.impl(name, function, key)
                seen.append((name, key))

    # Pretend that torch has CUDA and that no CUDA library of ours is built.
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(libraries, "loaded", lambda name: False)
    monkeypatch.setattr(register, "_LIBRARY", Recorder())
    register._implement_primitives()
    assert sorted(seen) == sorted((name, key) for name in PRIMITIVES for key in ("CUDA", "XPU"))

    ops = choice.operators_of(torch.ops.customloss_triton_operators)
    data = Data(*Case("ops", (5, 4), target=None, weight="class").build().operands)
    elements = Elements(0, 1.0, 0.0, False, True)
    scoring = Scoring(2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
    loss, coefficients = ops.confusion_score(*data, *elements, *scoring)
    groups = (Incoming(loss, coefficients), data, Wrt(INPUT), elements)
    flat = [argument for group in groups for argument in group]
    torch.testing.assert_close(ops.confusion_backward(*flat), plain.confusion_backward(*groups))
    group_sums = GroupSums(ops.confusion(*data, *elements), None, 0, False, False)
    found = ops.sums_score(*group_sums, *scoring, *SCORE_ALONE)
    torch.testing.assert_close(found, (loss, coefficients))


def test_the_interpreter_needs_no_gpu() -> None:
    assert kernels.refusal(torch.device("cpu")) is None


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "softmax"},
        {"activation": "softmax", "average": "weighted", "ignore_index": 255, "link": "log"},
        {"activation": "softmax", "average": "micro", "samplewise": True, "reduction": "none"},
        {"label_smoothing": 0.1, "samplewise": True, "average": "none", "reduction": "none"},
    ],
    ids=str,
)
def test_losses_of_pixels(options: dict[str, Any]) -> None:
    input = torch.randn(3, 5, 4, 7)
    target = torch.randint(0, 5, (3, 4, 7))
    target[0, :2] = 255 if "ignore_index" in options else 1
    found = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        with customloss.backend(backend):
            sample = Sample(input.to(dtype), target, None, options)
            found.append(differentiated(soft_f1, sample))
    (loss, (own,)), (expected, (other,)) = found
    torch.testing.assert_close(loss.double(), expected, rtol=4e-6, atol=0)
    torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=1e-7)
