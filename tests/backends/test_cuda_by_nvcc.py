"""nvcc compiles csrc/cuda without warnings, without spills, and within a limit of registers.

No GPU is needed. By default it compiles for one architecture, one file in each test; the other
architectures are further cases of the same kind.
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

ARCHITECTURES = (90, 80, 100, 120)
SOURCES = tuple(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
# ptxas parks two words of some kernels on the stack of sm_120.
PARKED = {120: 8}
# With 65536 registers per multiprocessor, at least two blocks of 256 threads are resident.
MOST_REGISTERS = 128


class Toolkit(NamedTuple):
    path: str
    version: tuple[int, int]


def toolkit() -> Toolkit | None:
    """The real nvcc, because the one on the path may be a script that calls another."""
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
def nvcc() -> Toolkit:
    tools = toolkit()
    if tools is None:
        pytest.skip("no nvcc found (CUDA_HOME, PATH)")
    return tools


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(number, id=f"sm_{number}", marks=[pytest.mark.more] * (number != 90))
        for number in ARCHITECTURES
    ],
)
def compiled(
    nvcc: Toolkit,
    source: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Kernel]:
    """The kernels of one file, compiled for one architecture."""
    number = request.param
    known = subprocess.run([nvcc.path, "--list-gpu-arch"], capture_output=True, text=True).stdout
    if f"compute_{number}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{number}")
    include = Path(torch.__file__).parent / "include"
    command = [
        nvcc.path, "-std=c++20", "-O3", "-c", str(source.relative_to(ROOT)),
        "-o", str(tmp_path_factory.mktemp("cuda") / f"{source.stem}.o"),
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-isystem", str(include),
        "-Wreorder", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror",
        "-Xcompiler", "-Wno-unknown-pragmas", "-Xptxas", "-v",
        f"-gencode=arch=compute_{number},code=sm_{number}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-8000:]}"
    kernels = parse(done.stderr)
    assert {kernel.architecture for kernel in kernels} == {f"sm_{number}"}
    return kernels


# The kernels that each file has to hold.
STEMS = {
    "confusion": ("planar_sums", "column_sums", "combine_sums", "finish_sums",
                  "finish_coefficients", "planar_gradient", "column_gradient"),
    "pixel": ("few_sums", "few_gradient", "tile_sums", "tile_gradient", "element_sums",
              "element_gradient", "element_column_sums", "element_column_gradient",
              "any_stats", "any_sums", "any_gradient", "pool_sums"),
    "score": ("score_sums", "score_gradient"),
}  # fmt: skip


def test_every_file_is_listed() -> None:
    assert {source.stem for source in SOURCES} == set(STEMS)


def test_kernels(
    source: Path, compiled: list[Kernel], record_property: pytest.RecordProperty
) -> None:
    """Every kernel is there. None spills, none has a stack, none takes too many registers."""
    names = " ".join(kernel.name for kernel in compiled)
    assert [stem for stem in STEMS[source.stem] if stem not in names] == []
    if source.stem == "pixel":
        few_classes_are_kernels_of_their_own(names)
    parked = PARKED.get(int(compiled[0].architecture.removeprefix("sm_")), 0)
    spilled = [k for k in compiled if k.stack > parked or (not parked and k.spill_loads)]
    assert not spilled, "\n".join(map(str, spilled))
    most = max(kernel.registers for kernel in compiled)
    record_property("registers", most)
    assert most <= MOST_REGISTERS
    # Every device gives a block 48 KiB of shared memory without being asked for more.
    assert max(kernel.shared for kernel in compiled) <= 48 * 1024


def few_classes_are_kernels_of_their_own(names: str) -> None:
    """The kernels `few` exist for 2, 3, 4 and 8 classes of a thread, `tile` for 8, 16 and 32."""
    for kernel, classes in (("few", (2, 3, 4, 8)), ("tile", (8, 16, 32))):
        for number in classes:
            for stem in ("sums", "gradient"):
                assert re.search(rf"{kernel}_{stem}I\w+?Li{number}E", names), (kernel, number, stem)
