"""The CPU sources compile for 64-bit ARM without a warning, and their kernels, run on an emulated
processor, return what those of x86 return.

The compiler is Debian's g++-aarch64-linux-gnu, the emulator its qemu-user; without them the tests
are skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_build import ARM_COMPILER, BUILD, from_setup, tool
from filelock import FileLock
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("arm")]
CPU = ROOT / "csrc" / "cpu"
KERNELS = ROOT / "tests" / "support" / "cpp" / "kernels.cpp"
SOURCES = sorted(CPU.glob("*.cpp"))
EMULATOR = "qemu-aarch64"
Results = dict[tuple[str, str], np.ndarray]


def build_of(compiler: str) -> Callable[[Path], Path]:
    """What compiles a source as setup.py would, unless that was done before."""
    command = tool(compiler)
    if command is None:
        pytest.skip(f"needs {compiler}")
    known = from_setup("CXX_FLAGS", "WERROR")
    flags = [*known["CXX_FLAGS"], *known["WERROR"], "-fPIC", "-I", str(ROOT / "csrc")]
    flags += ["-isystem", str(Path(torch.__file__).parent / "include")]
    version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    seen = hashlib.sha256(repr((flags, version, torch.__version__)).encode())
    for path in sorted([*(ROOT / "csrc").glob("*.h"), *CPU.glob("*"), KERNELS]):
        seen.update(path.read_bytes())
    folder = BUILD / f"{Path(compiler).name}-{seen.hexdigest()[:12]}"
    for other in BUILD.glob(f"{Path(compiler).name}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)

    def build(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        with FileLock(f"{to}.lock"):
            if not to.exists():
                part = to.with_suffix(".part")
                done = subprocess.run(
                    [command, *flags, "-c", str(source), "-o", str(part)],
                    capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                part.rename(to)
        return to

    return build


@pytest.fixture(scope="module")
def for_arm() -> Callable[[Path], Path]:
    return build_of(ARM_COMPILER)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_source_compiles_without_a_warning(
    source: Path, for_arm: Callable[[Path], Path]
) -> None:
    assert for_arm(source).stat().st_size > 0


def printed(program: list[str], **settings: str) -> Results:
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    first, *lines = [line.split() for line in done.stdout.splitlines()]
    assert first == ["set", settings.get("CUSTOMLOSS_CPU_ISA", "baseline")]
    return {
        (name, kind): np.array([float.fromhex(number) for number in numbers])
        for name, kind, *numbers in lines
    }


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the baseline returns on this machine."""
    compiler = os.environ.get("CXX", "c++")
    build = build_of(compiler)
    program = tmp_path_factory.mktemp("here") / "kernels"
    objects = [build(source) for source in (KERNELS, *CPU.glob("isa_baseline_*.cpp"))]
    subprocess.run([compiler, *objects, "-o", program], check=True)
    return printed([str(program)])


@pytest.fixture(scope="module")
def arm_program(
    for_arm: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    emulator = tool(EMULATOR)
    if emulator is None:
        pytest.skip(f"needs {EMULATOR}")
    objects = [for_arm(source) for source in (KERNELS, *CPU.glob("isa*.cpp"))]
    program = tmp_path_factory.mktemp("arm") / "kernels"
    subprocess.run([ARM_COMPILER, "-static", *objects, "-o", program], check=True)
    return [emulator, str(program)]


@pytest.mark.parametrize("isa", ["neon", "baseline"])
def test_emulated_kernels_return_what_x86_returns(
    isa: str, arm_program: list[str], x86: Results
) -> None:
    """Conversions are the same bits.  ARM's baseline has fused products, which x86's lacks, so that
    sums and gradients differ in their last digits; they are judged by float64 on x86.
    """
    found = printed(arm_program, CUSTOMLOSS_CPU_ISA=isa)
    assert {name for name, _ in found} == {name for name, _ in x86}
    by_hand = {name for name, kind in found if kind == "hand"}
    assert len(by_hand) == (34 if isa == "neon" else 0)
    for (name, kind), numbers in found.items():
        if kind == "bits":
            np.testing.assert_array_equal(numbers, x86[name, kind], err_msg=name)
            continue
        judge = x86.get((name, "f64"))
        if judge is None:  # halves, which are rounded to float16 or bfloat16 at the end
            judge, near = x86[name, "f32"], {"float16": 2e-3, "bfloat16": 2e-2}[name.split(".")[0]]
            near = 1e-6 if name.endswith("sums") else near
        else:
            near = 1e-12 if kind == "f64" else 1e-6
        far = near * np.abs(judge).max()
        np.testing.assert_allclose(numbers, judge, rtol=0, atol=far, err_msg=f"{name} {kind}")
