"""The Triton kernels, interpreted on the CPU, agree with the reference.

The interpreter has to be chosen before the kernels are imported, so the files in ``SHARDS`` run in
processes of their own. Each file is split into shards that take less than a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

import interpreted

pytestmark = pytest.mark.triton

# The numbers of shards: of the default cases, and of the cases that are marked ``more``.
SHARDS = {
    "triton_suite.py": (2, 6),
    "triton_pixels.py": (2, 6),
    "triton_operators.py": (1, 0),
    "triton_which_count.py": (1, 1),
    "triton_hidden.py": (1, 1),
    "triton_extremes.py": (1, 0),
}
RUNS = [
    pytest.param(name, choice, f"{number}/{count}", marks=marks, id=f"{name}-{choice}-{number}")
    for name, counts in SHARDS.items()
    for choice, count, marks in zip(("not more", "more"), counts, ((), pytest.mark.more))
    for number in range(count)
]


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    """Skips what no interpreter can run, and says why."""
    reason = interpreted.refusal()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("name", "choice", "shard"), RUNS)
def test_suite_on_the_interpreter(name: str, choice: str, shard: str) -> None:
    suite = Path(__file__).with_name(name)
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", choice, "--shard", shard)
    command = [sys.executable, "-m", "pytest", *options, str(suite)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
