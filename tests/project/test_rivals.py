"""Every rival of the benchmark is right, or says why it is not in the race."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from customloss._bench import (
    analytic,
    arithmetic,
    at_once,
    cases,
    formulas,
    gate,
    libraries,
    measure,
    rivals,
    run,
)

_CPU = torch.device("cpu")
_MISSING = "not installed (pip install "
INDUCTOR = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, at its first import
_LIBRARIES = tuple(library.family for library in libraries.LIBRARIES)


def _judged(case: cases.Case, compile: bool = False) -> list[run.Contender]:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    found = rivals.rivals(_CPU, compile=compile)
    return [run.judge(rival, case, inputs, right) for rival in found]


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_every_form_is_right_or_says_no(case: cases.Case) -> None:
    judged = _judged(case)
    for one in judged:
        known = one.why in libraries.REASONS or str(one.why).startswith(_MISSING)
        assert one.loss is not None or known, one
    assert any(one.loss is not None for one in judged if one.rival.family == rivals.EAGER)


def test_names_of_forms_are_unique() -> None:
    for device in ("cpu", "cuda"):
        found = [(one.family, one.form) for one in rivals.rivals(torch.device(device))]
        assert len(set(found)) == len(found)
        assert {family for family, _ in found} == set(rivals.FAMILIES)


@INDUCTOR
def test_reasons_are_all_used() -> None:
    every = [*cases.SMOKE, *cases.FULL]
    said = set()
    for rival in rivals.rivals(_CPU):
        for case in every:
            try:
                rival.build(case)
            except rivals.Unavailable as reason:
                said.add(str(reason))
    installed = [name for name, version in rivals.versions().items() if version]
    if len(installed) < len(libraries.LIBRARIES):
        pytest.skip(f"only {', '.join(installed)} of the libraries are installed")
    assert said == libraries.REASONS


# ---- analytic forms --------------------------------------------------------------------------


_ARITHMETIC = {
    "torch": arithmetic.TORCH,
    "polynomial": arithmetic.POLYNOMIAL,
    "bits": arithmetic.BITS,
    "rational": arithmetic.RATIONAL,
}


def _analytic(case: cases.Case, name: str) -> rivals.Loss:
    """Not compiled, which is the same maths."""
    passes = analytic.passes_of(case, _ARITHMETIC[name])
    return lambda input, target: analytic.apply(input, target, passes)


_MANY = (
    cases.Case("labels", (2, 25, 8, 8), torch.float32, labels=torch.int64),
    cases.Case("samplewise", (2, 25, 8, 8), torch.float32, labels=torch.int64, samplewise=True),
    cases.Case(
        "labels CE", (2, 25, 8, 8), torch.float32, labels=torch.uint8, beside="cross_entropy"
    ),
    cases.Case("rows", (64, 32), torch.float64, labels=torch.int64),
    cases.Case("classes", (96, 100), torch.float32),
    cases.Case("odd pixels", (3, 5, 7, 3), torch.bfloat16, channels_last=True),
    cases.Case("masks", (3, 5, 7, 3), torch.float16, mask=torch.float32),
    cases.Case("mask CE", (3, 1, 7, 5), torch.float64, beside="cross_entropy"),
    cases.Case("float focal", (2, 1, 8), torch.float32, mask=torch.float32, beside="focal"),
    cases.Case("half CE", (2, 4, 64), torch.bfloat16, labels=torch.int64, beside="cross_entropy"),
    cases.Case("half focal", (2, 1, 67), torch.float16, beside="focal"),
)


@pytest.mark.parametrize("case", [*cases.SMOKE, *_MANY], ids=lambda case: case.name)
@pytest.mark.parametrize("name", _ARITHMETIC)
def test_an_analytic_gradient_is_right_and_keeps_little(name: str, case: cases.Case) -> None:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    loss = _analytic(case, name)
    verdict = gate.check(loss, inputs, right)
    assert verdict.passed
    if case.dtype == torch.float32:
        assert verdict.gradient_error < (1e-6 if name == "torch" else 1e-5)
    value, gradient = gate.step(loss, inputs)
    assert gradient.dtype == case.dtype
    assert gradient.stride() == inputs.input.stride()
    assert value.dtype == torch.promote_types(case.dtype, torch.float32)
    # coefficients, and for many classes a float per pixel
    classes = case.shape[1] if len(case.shape) > 1 else 1
    kept = 4 * case.elements // classes if case.labels and classes > formulas.FEW_CLASSES else 0
    innermost = case.labels is None and (case.channels_last or len(case.shape) == 2)
    rows = 2 * 8 * (analytic.ROW if innermost else 128 * case.shape[0])
    assert measure.saved_bytes(loss, inputs) <= 2 * kept + rows


def _extreme(case: cases.Case, *extremes: float) -> cases.Inputs:
    """Inputs some of which are so large that p is 0 or 1, for either target."""
    inputs = cases.make_inputs(case, _CPU)
    logits = inputs.input.detach()
    every = torch.tensor(extremes).repeat(7).to(case.dtype)
    logits.view(-1)[: len(every)] = every
    return inputs._replace(input=logits.requires_grad_())


_EXTREME = tuple(case for case in (*cases.SMOKE, *_MANY) if not case.channels_last)


@pytest.mark.parametrize("case", _EXTREME, ids=lambda case: case.name)
@pytest.mark.parametrize("name", _ARITHMETIC)
def test_an_analytic_gradient_is_right_for_extreme_logits(name: str, case: cases.Case) -> None:
    finite = case.labels is not None or bool(case.beside)  # else the loss is not
    inputs = _extreme(case, 100.0, -100.0, *(() if finite else (math.inf, -math.inf)))
    right = gate.expected(case, inputs)
    verdict = gate.check(_analytic(case, name), inputs, right)
    assert verdict.passed, verdict


_ARITHMETICS = ("polynomial", "exponent as bits", "rational sigmoid")
_OWN = {"analytic", *(f"{name}, kept gradient" for name in _ARITHMETICS)}


@INDUCTOR
@pytest.mark.slow
@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_a_compiled_form_is_right(case: cases.Case) -> None:
    torch.compiler.reset()
    forms = [
        rival
        for rival in rivals.rivals(_CPU)
        if rival.family == rivals.COMPILED and rival.form in _OWN
    ]
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    assert {form.form for form in forms} == _OWN
    for form in forms:
        judged = run.judge(form, case, inputs, right)
        assert judged.loss is not None or judged.why in libraries.REASONS, judged
        assert judged.loss is not None or form.form != "analytic", judged


@INDUCTOR
@pytest.mark.slow
@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_a_package_is_right(case: cases.Case) -> None:
    inputs = cases.make_inputs(case, _CPU)
    loss = at_once.package_form(replace(case, latency=True))
    assert gate.check(loss, inputs, gate.expected(case, inputs)).passed


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_loss_and_gradient_at_once_are_right(case: cases.Case) -> None:
    both = at_once.both_of(replace(case, latency=True))
    inputs = cases.make_inputs(case, _CPU)
    verdict = gate.check(
        lambda input, target: at_once.apply(input, target, both),
        inputs,
        gate.expected(case, inputs),
    )
    assert verdict.passed, verdict


@pytest.mark.parametrize("bytes, kept", (("0", False), ("1000000000", True)))
def test_a_rival_keeps_its_gradient_where_ours_is_kept(
    bytes: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In huge pages and with jemalloc customloss keeps none."""
    monkeypatch.setenv("CUSTOMLOSS_GRADIENT_CACHE", bytes)
    named = {rival.form for rival in rivals.rivals(_CPU)}
    assert (_OWN - {"analytic"} <= named) is kept
    assert ({*_ARITHMETICS} <= named) is not kept


@INDUCTOR
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's, at a graph break
@pytest.mark.slow
def test_compiled_forms_are_right_or_say_no() -> None:
    torch.compiler.reset()
    for case in (cases.SMOKE[1], cases.SMOKE[5]):
        for one in _judged(case, compile=True):
            known = one.why in libraries.REASONS or str(one.why).startswith(_MISSING)
            assert one.loss is not None or known, one


def test_every_build_is_compiled_for_itself() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x

    first, second = analytic.fresh(function), analytic.fresh(function)
    assert first.__code__ is not second.__code__
    assert first(3) == second(3) == 3


# ---- libraries -------------------------------------------------------------------------------


def _package(folder: Path, name: str, files: dict[str, str]) -> None:
    for path, text in files.items():
        place = folder / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that cannot be imported whole, with a module that can."""
    files = {
        "__init__.py": "import surely_not_installed",
        "losses/__init__.py": "raise RuntimeError('ran')",
        "losses/dice.py": "from ._parts import one\nfrom ..helpers import two",
        "losses/_parts.py": "one = 1",
        "losses/needs.py": "import surely_not_installed",
        "helpers.py": "two = 2",
    }
    _package(tmp_path, "planted_library", files)
    monkeypatch.syspath_prepend(tmp_path)
    yield "planted_library"
    for name in list(sys.modules):
        if name.startswith("planted_library"):
            del sys.modules[name]


def test_a_module_is_imported_without_the_packages_around_it(planted: str) -> None:
    before = set(sys.modules)
    module: Any = libraries.import_alone(f"{planted}.losses.dice")
    assert (module.one, module.two) == (1, 2)
    added = {"losses.dice", "losses._parts", "helpers"}
    assert set(sys.modules) - before == {f"{planted}.{name}" for name in added}
    assert libraries.import_alone(f"{planted}.losses.dice") is module


def test_a_failed_import_leaves_no_trace(planted: str) -> None:
    before = set(sys.modules)
    with pytest.raises(rivals.Unavailable, match=r"planted_library needs surely_not_installed"):
        libraries.import_alone(f"{planted}.losses.needs")
    assert set(sys.modules) == before


def test_what_is_missing_is_named() -> None:
    expected = r"not installed \(pip install surely_missing\)"
    before = set(sys.modules)
    for load in (libraries.import_alone, libraries.import_whole):
        with pytest.raises(rivals.Unavailable, match=expected):
            load("surely_missing.losses.dice")
    assert set(sys.modules) == before


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (library.package for library in libraries.LIBRARIES):
        for loaded in list(sys.modules):
            if loaded.split(".")[0] == name:
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    case = next(case for case in cases.SMOKE if case.samplewise)
    said = {}
    for one in _judged(case):
        if one.rival.family in _LIBRARIES and one.loss is None:
            said.setdefault(one.rival.family, one.why)
    assert said["MONAI"] == "not installed (pip install monai)"
    assert said["nnU-Net"] == "not installed (pip install --no-deps nnunetv2)"
    assert said["kornia"] == "not installed (pip install kornia)"


@pytest.mark.parametrize("form", [libraries.nnunet_exp2, libraries.smp_exp2])
def test_a_library_is_right_on_powers_of_two(form: formulas.Form) -> None:
    """Not compiled, which is the same maths."""
    built = 0
    for case in cases.SMOKE:
        if case.dtype == torch.float16:
            continue  # in which nnU-Net adds up
        try:
            loss = form(case)
        except rivals.Unavailable as reason:
            if str(reason).startswith(_MISSING):
                pytest.skip(str(reason))
            continue
        inputs = cases.make_inputs(case, _CPU)
        verdict = gate.check(loss, inputs, gate.expected(case, inputs))
        assert verdict.passed, (case, verdict)
        built += 1
    assert built > 3


@pytest.mark.parametrize("family", _LIBRARIES)
def test_a_library_that_is_installed_races(family: str) -> None:
    missing = rivals.missing(family)
    if missing:
        pytest.skip(f"{family}: {missing}")
    raced = [
        one.rival.family for case in cases.SMOKE for one in _judged(case) if one.loss is not None
    ]
    assert family in raced
