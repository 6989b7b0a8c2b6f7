"""The kernels of csrc/cuda built for the CPU: as a fixture, and in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import build
import pytest
from paths import EMULATION, IMPORTED, ROOT

needs_a_compiler = pytest.mark.skipif(build.compiler() is None, reason="no host C++ compiler found")


@pytest.fixture(scope="session")
def library() -> build.Emulation:
    return build.loaded(build.build())


def probe(library: Path, what: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``probe.py`` on a library that is broken on purpose, or built with sanitizers."""
    folders = os.pathsep.join(map(str, (ROOT, *IMPORTED)))
    return subprocess.run(
        [sys.executable, str(EMULATION / "probe.py"), str(library), what],
        env={**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
