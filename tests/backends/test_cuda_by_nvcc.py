"""nvcc compiles csrc/cuda without a warning, without a spill, and within its bounds of registers.

No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from paths import ROOT

# two minutes of processor time, more by the clock on a busy machine
pytestmark = pytest.mark.timeout(1800)

ARCHITECTURES = (80, 90, 100)
# 65536 registers per multiprocessor: at least two blocks of 256 threads are resident
MOST_REGISTERS = 128


class Toolkit(NamedTuple):
    nvcc: str
    version: tuple[int, int]


def toolkit() -> Toolkit | None:
    """The real nvcc: the one on the path may be a script that calls another."""
    home = os.environ.get("CUDA_HOME")
    named = str(Path(home) / "bin" / "nvcc") if home else "nvcc"
    found = shutil.which(named)
    if found is None:
        return None
    dry = subprocess.run(
        [found, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    )
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    if top is not None:
        real = Path(top[1].strip()).resolve() / "bin" / "nvcc"
        found = str(real) if real.exists() else found
    shown = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", shown)
    return Toolkit(found, (int(version[1]), int(version[2]))) if version else None


class Kernel(NamedTuple):
    name: str
    architecture: str
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


REPORT = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\S+)'\n"
    r"(?:.*\n)?\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n.*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def parse(log: str) -> list[Kernel]:
    kernels = []
    for found in REPORT.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        kernels.append(
            Kernel(
                found["name"],
                found["architecture"],
                int(found["stack"]),
                int(found["stores"]),
                int(found["loads"]),
                int(found["registers"]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    tools = toolkit()
    if tools is None:
        pytest.skip("no nvcc found (CUDA_HOME, PATH)")
    known = subprocess.run([tools.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    targets = [a for a in ARCHITECTURES if f"compute_{a}" in known.split()]
    include = Path(torch.__file__).parent / "include"
    kernels: list[Kernel] = []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        command = [
            tools.nvcc, "-std=c++20", "-O3", "-c", str(source.relative_to(ROOT)),
            "-o", str(tmp_path_factory.mktemp("cuda") / f"{source.stem}.o"),
            "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000",
            "-isystem", str(include), "--threads", "2",
            "-Wreorder", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror",
            "-Xcompiler", "-Wno-unknown-pragmas", "-Xptxas", "-v",
            *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in targets),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-8000:]}"
        kernels += parse(done.stderr)
    assert {kernel.architecture for kernel in kernels} == {f"sm_{a}" for a in targets}
    return kernels


def test_every_kernel_is_there(compiled: list[Kernel]) -> None:
    names = " ".join(kernel.name for kernel in compiled)
    for stem in ("planar_sums", "column_sums", "combine_sums", "finish_sums",
                 "finish_coefficients", "planar_gradient", "column_gradient",
                 "few_sums", "few_gradient", "tile_sums", "tile_gradient",
                 "element_sums", "element_gradient", "element_column_sums",
                 "element_column_gradient",
                 "any_stats", "any_sums", "any_gradient", "pool_sums",
                 "score_sums", "score_gradient"):  # fmt: skip
        assert stem in names


def test_no_spills_and_no_stack(compiled: list[Kernel]) -> None:
    spilled = [k for k in compiled if k.spill_stores or k.spill_loads or k.stack]
    assert not spilled, "\n".join(map(str, spilled))


def test_few_classes_are_kernels_of_their_own(compiled: list[Kernel]) -> None:
    """2, 3, 4 and up to 8 classes of a thread; 16 and 32 of a pixel's thread, 8 of a lane."""
    names = " ".join(kernel.name for kernel in compiled)
    for kernel, classes in (("few", (2, 3, 4, 8)), ("tile", (8, 16, 32))):
        for number in classes:
            for stem in ("sums", "gradient"):
                assert re.search(rf"{kernel}_{stem}I\w+?Li{number}E", names), (kernel, number, stem)


def test_registers(compiled: list[Kernel], record_property: pytest.RecordProperty) -> None:
    for architecture in sorted({kernel.architecture for kernel in compiled}):
        of = [k.registers for k in compiled if k.architecture == architecture]
        print(f"{architecture}: {len(of)} kernels, {min(of)} to {max(of)} registers")
        record_property(f"registers_{architecture}", max(of))
    assert max(kernel.registers for kernel in compiled) <= MOST_REGISTERS
    # without sm_90's shared memory carve-out: 48 KiB is what every device gives a block
    assert max(kernel.shared for kernel in compiled) <= 48 * 1024
