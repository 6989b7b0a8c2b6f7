"""Runs Python in a process of its own, for choices made once a process and code that may crash."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from paths import IMPORTED

import customloss

# what CUSTOMLOSS_CPU_ISA takes on this kind of processor
ARM = platform.machine() in ("aarch64", "arm64")
INSTRUCTION_SETS = ("baseline", "neon") if ARM else ("baseline", "avx2", "avx512")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` with the package and the helpers of the tests on its path."""
    package = Path(customloss.__file__).parents[1]
    folders = (*map(str, (package, *IMPORTED)), os.environ.get("PYTHONPATH"))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **environment},
        capture_output=True,
        text=True,
    )
