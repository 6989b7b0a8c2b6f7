"""The Triton kernels on the CPU: the interpreter has to be chosen before they are imported, so
the files in ``SUITES`` run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = pytest.mark.triton

SUITES = ("triton_suite.py", "triton_pixels.py", "triton_operators.py")


@pytest.mark.parametrize("name", SUITES)
def test_suite_on_the_interpreter(name: str) -> None:
    suite = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(suite)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, cwd=suite.parent.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
