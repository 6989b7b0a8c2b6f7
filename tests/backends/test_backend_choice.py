"""The backend is the one that a call, a block or the environment names; bad names are errors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import FEW, OPTIONED, Case
from judge import assert_right, soft_f1
from paths import ROOT
from process import run_python

import customloss
from customloss._backends import choice, libraries, plain
from customloss._backends.choice import Primitives


@pytest.fixture(autouse=True)
def _as_it_was() -> object:
    before = customloss.current_backend()
    yield
    customloss.backend(before)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records which primitives of the reference backend are called."""
    called: list[str] = []

    def spy(name: str, true: Any) -> Any:
        def function(*groups: Any) -> Any:
            called.append(name)
            return true(*groups)

        return function

    primitives = choice.primitives_of(plain)._asdict()
    spies = Primitives(*(spy(name, true) for name, true in primitives.items()))
    monkeypatch.setitem(choice._loaded, "reference", spies)
    return called


@pytest.mark.parametrize("case", (*(c for c in FEW if c.name != "empty"), *OPTIONED), ids=str)
def test_the_reference_backend_is_right(case: Case) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        with customloss.backend("reference"):
            assert_right(soft_f1, case.build(dtype))


@pytest.mark.parametrize("name", choice.BACKENDS)
def test_every_row_of_the_registry_is_right(name: str) -> None:
    """A backend that serves this device has values, gradients, and gradients by what is kept."""
    try:
        refusal = choice.BACKENDS[name].refusal(torch.device("cpu"))
        customloss.backend(name).__exit__(None, None, None)
    except RuntimeError as error:
        pytest.skip(str(error))
    if refusal is not None:
        with customloss.backend(name), pytest.raises(RuntimeError, match=re.escape(refusal)):
            soft_f1(*Case("x", (6, 4)).build().operands)
        return
    kept = {"samplewise": True, "average": "none", "reduction": "none"}
    for options in ({}, kept, {"samplewise": True, "reduction": "none"}, {"average": "micro"}):
        with customloss.backend(name):
            assert_right(soft_f1, Case("x", (6, 4, 3), target=None, options=options).build())


def test_inside_the_block_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    called = spied(monkeypatch)
    sample = Case("x", (6, 4)).build(requires_grad=True)
    with customloss.backend("reference"):
        assert customloss.current_backend() == "reference"
        inside = soft_f1(*sample.operands)
        assert called == ["confusion_score"]
    assert customloss.current_backend() == "auto"
    outside = soft_f1(*sample.operands)
    assert called == ["confusion_score"]
    torch.testing.assert_close(inside, outside)


def test_backward_follows_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    called = spied(monkeypatch)
    x, t = torch.randn(6, 4, requires_grad=True), torch.rand(6, 4) < 0.4
    with customloss.backend("reference"):
        loss = soft_f1(x, t)
    loss.backward()
    assert called == ["confusion_score", "confusion_backward"]
    loss = soft_f1(x, t)
    with customloss.backend("reference"):
        loss.backward()
    assert called == ["confusion_score", "confusion_backward"]


def test_blocks_nest_and_errors_restore() -> None:
    with customloss.backend("reference"):
        with customloss.backend("auto"):
            assert customloss.current_backend() == "auto"
        assert customloss.current_backend() == "reference"
        with pytest.raises(KeyError), customloss.backend("auto"):
            raise KeyError
        assert customloss.current_backend() == "reference"
    assert customloss.current_backend() == "auto"


def test_a_call_chooses_from_here_on() -> None:
    customloss.backend("reference")
    assert customloss.current_backend() == "reference"
    customloss.backend("auto")
    assert customloss.current_backend() == "auto"


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of .*'fast'"):
        customloss.backend("fast")
    with pytest.raises(TypeError, match="backend: expected a string"):
        customloss.backend(None)
    assert customloss.current_backend() == "auto"


@pytest.mark.skipif(libraries.loaded("_C_cuda"), reason="this build has the CUDA backend")
def test_cuda_that_is_not_there_is_refused_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match=r'backend "cuda" is not available: .+'):
        customloss.backend("cuda")
    assert customloss.current_backend() == "auto"


def test_triton_is_refused_on_the_cpu_or_says_why_it_is_absent() -> None:
    """Triton's interpreter would accept the CPU, so the process starts with it switched off."""
    code = (
        "import torch, customloss\n"
        "customloss.backend('triton')\n"
        "customloss.soft_f1_loss(torch.zeros(3), torch.zeros(3))"
    )
    done = run_python(code, TRITON_INTERPRET="0")
    assert done.returncode != 0
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("RuntimeError")
    assert "triton" in error


@pytest.mark.parametrize("name", ["reference", "auto", ""])
def test_the_environment_chooses_first(name: str) -> None:
    code = (
        "import torch, customloss\n"
        "print(customloss.current_backend())\n"
        "print(float(customloss.soft_f1_loss(torch.zeros(4), torch.ones(4))))"
    )
    done = run_python(code, CUSTOMLOSS_BACKEND=name)
    assert done.returncode == 0, done.stderr
    chosen, loss = done.stdout.split()
    assert chosen == (name or "auto")
    assert float(loss) == pytest.approx(1 / 3)


def test_the_environment_is_checked_too() -> None:
    done = run_python("import customloss", CUSTOMLOSS_DEBUG="false")
    assert "CUSTOMLOSS_DEBUG: expected 0 or 1, got 'false'" in done.stderr
    done = run_python("import customloss", CUSTOMLOSS_BACKEND="fast")
    assert done.returncode != 0
    assert "ValueError: CUSTOMLOSS_BACKEND: expected one of" in done.stderr
    code = "import customloss; print(customloss.build_info())"
    done = run_python(code, CUSTOMLOSS_CPU_ISA="sse9")
    assert "none (CUSTOMLOSS_CPU_ISA=sse9: expected baseline" in done.stdout


@pytest.mark.parametrize(("word", "shown"), [("0", "turned off"), ("1", "wanted"), ("", "wanted")])
def test_huge_pages_are_wanted_or_not(word: str, shown: str) -> None:
    code = (
        "import customloss, torch; print(customloss.build_info(), flush=True)\n"
        "customloss.dice_loss(torch.randn(4, requires_grad=True), torch.ones(4)).backward()"
    )
    done = run_python(code, CUSTOMLOSS_HUGE_PAGES=word)
    line = next(line for line in done.stdout.splitlines() if line.startswith("huge pages"))
    assert shown in line
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["yes", "2"])
def test_huge_pages_are_refused_at_once(word: str) -> None:
    """At import, not in the first backward that is large enough."""
    done = run_python("import customloss", CUSTOMLOSS_HUGE_PAGES=word)
    assert done.returncode != 0
    assert f"ValueError: CUSTOMLOSS_HUGE_PAGES: expected 0 or 1, got '{word}'" in done.stderr


def test_compiled_kernels_are_in_use_here() -> None:
    """Without compiled kernels this run would compare the reference with itself."""
    assert libraries.status["_C"] is None
    for name in ("confusion", "confusion_score", "confusion_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"customloss::{name}", "CPU")


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")
@pytest.mark.parametrize("name", ("avx2", "avx512"))
def test_an_instruction_set_is_chosen_where_all_of_it_is_there(name: str) -> None:
    """The processor is asked for every extension that the loops of a set are compiled with."""
    header = (ROOT / f"csrc/cpu/target_{name}.h").read_text()
    switched = [set(found.split(",")) for found in re.findall(r'"(avx[^"]*)"', header)]
    features = set.union(*switched) - {"prefer-vector-width=512"}
    assert len(switched) == 2 and len(features) >= 5  # those of clang, and of gcc
    chosen = (ROOT / "csrc/cpu/isa.cpp").read_text()
    asked = {*re.findall(r'__builtin_cpu_supports\("(\w+)"\)', chosen)}
    asked |= {"f16c"} if "&& has_f16c()" in chosen else set()
    assert features <= asked
