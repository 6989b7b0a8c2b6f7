"""Runs tests on the loops for AVX-512 where the processor has AVX2 alone.

A copy of the tree is built in which SIMDe does what AVX-512 would do (Debian: libsimde-dev). The
tests then run on this copy; arguments are pytest's::

    python tools/emulate_avx512.py -n 2 tests/values tests/losses

The results are those of AVX-512 but for the last bit of a reciprocal; the times tell nothing. It
needs gcc, whose vectors SIMDe calculates with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "emulated-avx512"
PARTS = ("csrc", "customloss", "kernels", "tests", "setup.py", "build_support.py", "pyproject.toml",
         "README.md", "CMakeLists.txt")  # fmt: skip


def replaced(path: Path, old: str, new: str) -> None:
    """Replaces what has to be in the file once."""
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{path}: {old!r} is there {text.count(old)} times, expected once")
    path.write_text(text.replace(old, new))


def copy_tree() -> None:
    """Sources as they are but for their times, so that a second build compiles what has changed."""
    COPY.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        shutil.rmtree(COPY / part, ignore_errors=True)
        whole = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        whole(ROOT / part, COPY / part)  # type: ignore[operator]
    for library in COPY.glob("customloss/*.so"):
        library.unlink()
    cpu = COPY / "csrc" / "cpu"
    replaced(
        cpu / "target_avx512.h",
        '"avx512f,avx512bw,avx512vl,avx512dq,avx512cd,popcnt,avx2,fma,f16c,bmi,bmi2,'
        'prefer-vector-width=512"',
        '"popcnt,avx2,fma,f16c,bmi,bmi2"',
    )
    for name in ("bw", "vl", "dq", "cd"):
        replaced(cpu / "isa.cpp", f'__builtin_cpu_supports("avx512{name}")', "true")
    replaced(cpu / "isa.cpp", '__builtin_cpu_supports("avx512f")', "true")


def main(arguments: list[str]) -> int:
    """The exit status of pytest."""
    copy_tree()
    stand_in = ROOT / "tools" / "avx512_by_avx2"
    flags = f"-mavx2 -mfma -mf16c -mpopcnt -I{stand_in} -w"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=COPY,
        env={**os.environ, "CFLAGS": flags, "CUSTOMLOSS_CUDA": "0"},
        check=True,
    )
    settings = {"CUSTOMLOSS_CPU_ISA": "avx512", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(COPY)}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=COPY, env={**os.environ, **settings}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
