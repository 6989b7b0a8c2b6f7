"""The examples run as their first lines say, and results that they call exact are exact."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

LOSS = re.compile(r"(?:(\d+) x (\d+) samples: )?loss (\d\.\d{6}) -> (\d\.\d{6})")


def losses(example: str, folder: Path, *launcher: str) -> list[tuple[str, ...]]:
    """The losses that an example prints; it runs in ``folder`` and has to train."""
    found = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "examples" / example)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    printed = LOSS.findall(found.stdout)
    assert printed, found.stdout
    for *_, first, last in printed:
        assert float(last) < float(first) - 0.02, found.stdout
    return printed


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    losses("lightning_module.py", tmp_path)


def test_hugging_face(tmp_path: Path) -> None:
    """Training with four accumulated micro-batches ends where training with one batch does."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    whole, parts = losses("hf_trainer.py", tmp_path)
    assert (whole[:2], parts[:2]) == (("1", "64"), ("4", "16"))
    assert whole[2] == parts[2]
    assert float(whole[3]) == pytest.approx(float(parts[3]), abs=2e-6)


def test_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole, parts = losses("accelerate_loop.py", tmp_path)
    assert (whole[:2], parts[:2]) == (("1", "64"), ("4", "16"))
    assert float(whole[3]) == pytest.approx(float(parts[3]), abs=2e-6)


def test_a_training_with_monai_keeps_its_curve(tmp_path: Path) -> None:
    """To 1e-10 in float64; what the other libraries round to float32 agrees to fewer digits."""
    pytest.importorskip("monai")
    pytest.importorskip("matplotlib")
    script = ROOT / "examples" / "switch_monai.py"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--steps", "6", "--size", "16"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    printed = re.findall(
        r"(\S+), .+: loss (\S+) -> (\S+), differs by at most (\S+) of it.+patched (\S+) MB",
        found.stdout,
    )
    assert [name for name, *_ in printed[:2]] == ["MONAI", "MONAI"], found.stdout
    for number, (_, first, last, gap, kept) in enumerate(printed):
        assert float(last) < float(first)
        assert float(gap) < (1e-5 if number else 1e-10)
        assert number == 1 or float(kept) == 0
    assert (tmp_path / "out" / "switch_monai.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.distributed
def test_accelerate_on_two_processes(tmp_path: Path) -> None:
    """Each process has half of the samples, and the loss is that of one process with all."""
    pytest.importorskip("accelerate")
    alone = losses("accelerate_loop.py", tmp_path)
    command = "-m torch.distributed.run --standalone --nproc-per-node 2"
    both = losses("accelerate_loop.py", tmp_path, *command.split())
    for one, other in zip(alone, both):
        assert float(one[2]) == pytest.approx(float(other[2]), abs=2e-6)
        assert float(one[3]) == pytest.approx(float(other[3]), abs=2e-5)


@pytest.mark.distributed
def test_two_ranks_train_as_one_process_does() -> None:
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 examples/ddp.py"
    found = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        # The two processes use one thread each and no GPU, because other tests run beside them.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    # Not matched line by line, because both ranks write to one pipe.
    number = r"(\d\.\d{6})"
    printed = re.findall(
        rf"(rank \d|one process): (\d+) samples, loss {number} -> {number}", found.stdout
    )
    samples = {who: int(count) for who, count, _, _ in printed}
    assert samples["rank 0"] + samples["rank 1"] == samples["one process"] == 512
    assert samples["rank 0"] != samples["rank 1"]
    assert len({(first, last) for *_, first, last in printed}) == 1
