"""The operator tests pass on a library with AddressSanitizer and UndefinedBehaviorSanitizer.

``_C`` is built with a CMake preset and put into a copy of the package. The tests run on it in a
process that preloads the sanitizers and ends at the first report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_build import cmake_build, tool
from paths import ROOT, TESTS

pytestmark = [pytest.mark.sanitize, pytest.mark.xdist_group("sanitize")]

# The files that call the kernels; the rest of the suite tests Python.
FILES = (
    "test_elements_values.py",
    "test_elements_gradients.py",
    "test_strides.py",
    "test_degenerate.py",
    "test_fuzz.py",
    "test_pixels_values.py",
    "test_pixels_numerics.py",
)


def runtime(name: str) -> str:
    """The path of a sanitizer's runtime, as the compiler knows it."""
    compiler = tool(os.environ.get("CXX", "c++"))
    assert compiler is not None
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"{compiler} has no {name}: install its sanitizers")
    return os.path.realpath(found)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with customloss, whose library is instrumented."""
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is for Linux")
    build = cmake_build("_C", preset="asan-ubsan")
    folder = tmp_path_factory.mktemp("sanitized")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    shutil.copytree(ROOT / "customloss", folder / "customloss", ignore=ignore)
    shutil.copytree(ROOT / "kernels", folder / "customloss" / "kernels", ignore=ignore)
    shutil.copy(build / "_C.so", folder / "customloss")
    return folder


def run(sanitized: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(sanitized),
        "LD_PRELOAD": f"{runtime('libasan.so')}:{runtime('libstdc++.so')}",
        # Leaks are not reported, because Python and torch keep much of what they allocate.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS / "values",
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_sanitizers_are_at_work(sanitized: Path) -> None:
    """The instrumented library is the one in use, and a bad read in the process is reported."""
    script = "import customloss; print(customloss.build_info().cpu)"
    done = run(sanitized, "-c", script)
    assert str(sanitized / "customloss" / "_C.so") in done.stdout, done.stdout + done.stderr
    bad = "import ctypes; b = ctypes.CDLL(None).malloc; b.restype = ctypes.c_void_p; p = b(8)\n"
    bad += "ctypes.CDLL(None).memset(ctypes.c_void_p(p), 0, 9)"
    done = run(sanitized, "-c", bad)
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize(
    "isa",
    [
        pytest.param("", id="native"),
        pytest.param("baseline", marks=pytest.mark.slow),
        pytest.param("avx2", marks=pytest.mark.slow),
    ],
)
def test_the_operator_tests_pass_under_the_sanitizers(
    sanitized: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUSTOMLOSS_CPU_ISA", isa)
    if run(sanitized, "-c", "import torch, customloss; torch.ops.customloss.cpu_isa()").returncode:
        pytest.skip(f"this processor has no {isa}")
    # At -O1 sums round differently, so accuracy is measured on the release build alone.
    chosen = ("-m", "not slow", "-k", "not error_budget and not fuzz_of_pixels")
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen)
    done = run(sanitized, "-m", "pytest", *options, *FILES)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout
    assert "runtime error" not in done.stderr
