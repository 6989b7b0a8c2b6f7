"""The examples run as their first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.distributed
def test_two_ranks_train_as_one_process_does() -> None:
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 examples/ddp.py"
    found = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        # the two processes share this machine with the other tests, and take no GPU
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    # not by lines: the ranks write to one pipe
    number = r"(\d\.\d{6})"
    told = re.findall(
        rf"(rank \d|one process): (\d+) samples, loss {number} -> {number}", found.stdout
    )
    samples = {who: int(count) for who, count, _, _ in told}
    assert samples["rank 0"] + samples["rank 1"] == samples["one process"] == 512
    assert samples["rank 0"] != samples["rank 1"]
    assert len({(first, last) for *_, first, last in told}) == 1
