"""The CUDA kernels, run on the CPU, need each of their barriers and stay in their memory.

Without a barrier the result depends on the order of the threads. Each library runs in a process of
its own: some are broken on purpose, one is built with sanitizers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import build
import pytest
from emulated import needs_a_compiler, probe
from paths import ROOT

pytestmark = needs_a_compiler


class Barrier(NamedTuple):
    file: str
    text: str  # its first line is the barrier, the rest says which one is meant
    probe: str


BARRIERS = {
    "a block's sums": Barrier(
        "reduce.cuh",
        "  __syncthreads();\n#pragma unroll\n  for (int k = 0; k < kNumbers; ++k) {\n"
        "    values[k] = of_warp",
        "bits",
    ),
    "the sums of warps": Barrier("reduce.cuh", "  __syncthreads();\n  const int number = ", "bits"),
    "columns": Barrier("forward.cuh", "    __syncthreads();\n    if (helper < helpers)", "bits"),
    "combining": Barrier(
        "finish.cuh", "    __syncthreads();\n    if (slice.helper < half)", "bits"
    ),
    "the tile is whole": Barrier(
        "pixel_tile.cuh", "    __syncthreads();\n    index += cut.spots;", "pixels"
    ),
    "the tile is read": Barrier(
        "pixel_tile.cuh", "    __syncthreads();\n  }\n#pragma unroll\n  for (int s", "pixels"
    ),
    "the team's largest": Barrier(
        "pixel_io.cuh", "    __syncthreads();\n    for (int other = 0", "pixels"
    ),
    "the slopes": Barrier("pixel_few.cuh", "  __syncthreads();\n  for_few", "pixels"),
    "the sums of classes": Barrier(
        "pixel_few.cuh",
        "    __syncthreads();\n#pragma unroll 1\n    for (int i = warp",
        "pixels",
    ),
    "the pixels' sums": Barrier(
        "pixel_any.cuh", "      __syncthreads();\n      if (thread.spot < half)", "pixels"
    ),
    "groups of a row": Barrier("score.cuh", "    __syncthreads();\n    add_rows(f,", "sums"),
    "a row alone": Barrier("score.cuh", "  __syncthreads();\n}\n\n// Everything", "sums"),
}
# These need one file alone, which compiles in seconds. The others are compiled whole.
QUICK = {"sums": ("csrc/cuda/score.cu",)}


def digests(kind: str, root: Path = ROOT) -> set[str]:
    """The results of a probe for several orders of the threads."""
    library = build.build(root=root, sources=QUICK.get(kind, build.SOURCES))
    done = probe(library, kind)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (barrier.probe not in QUICK))
        for name, barrier in BARRIERS.items()
    ],
)
def test_a_missing_barrier_is_noticed(name: str, tmp_path: Path) -> None:
    file, text, kind = BARRIERS[name]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = tmp_path / "csrc" / "cuda" / file
    assert source.read_text().count(text) == 1
    source.write_text(source.read_text().replace(text, text.split("\n", 1)[1]))
    assert len(digests(kind, tmp_path)) > 1


@pytest.mark.parametrize("kind", ["bits", "pixels", "sums"])
def test_all_barriers_give_one_result(kind: str) -> None:
    """On the sound library the same probe gives one result, so the test above sees the barrier."""
    assert len(digests(kind)) == 1


def _runtime(name: str) -> str | None:
    found = subprocess.run(
        [str(build.compiler()), f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.mark.sanitize
def test_address_and_undefined_behaviour_sanitizers() -> None:
    runtimes = [_runtime(f"lib{name}.so") for name in ("asan", "ubsan", "stdc++")]
    if None in runtimes:
        pytest.skip("the compiler has no shared ASan and UBSan runtimes")
    done = probe(
        build.build(sanitize=True),
        "judge",
        LD_PRELOAD=" ".join(map(str, runtimes)),
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 100
