"""bench/gpu.sh tried without a GPU: stages are limited in time, and what they found is kept."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_rates
import gpu_stages
import pytest
import torch
from gpu_stages import Plan, Stage

ROOT = Path(__file__).parents[2]


def _stage(name: str, code: str, seconds: int = 60, needs: str = "") -> Stage:
    return Stage(name, seconds, lambda plan: [[sys.executable, "-c", code]], needs)


def _summary(folder: Path) -> list[str]:
    return (folder / "summary.txt").read_text().splitlines()


# ---- one stage after the other -------------------------------------------------------------------


def test_all_stages_are_reached_and_failures_counted(tmp_path: Path) -> None:
    stages = [
        _stage("build", "print('built')"),
        _stage("tests", "raise SystemExit(3)"),
        _stage("rates", "print('fast')"),
        _stage("profiler", "", needs="no such program"),
        Stage("streams", 60, lambda plan: [["/no/such/program"]]),
    ]
    assert gpu_stages.run(stages, tmp_path, 480, stand_in=True) == 2
    first, *lines = _summary(tmp_path)
    assert first.startswith("a stand-in")
    assert [line.partition(" in ")[0] for line in lines] == [
        "build: passed",
        "tests: FAILED with status 3",
        "rates: passed",
        "profiler: left out, there is no no such program",
        "streams: FAILED: /no/such/program: No such file or directory",
    ]
    log = (tmp_path / "log.txt").read_text()
    assert log.index("built") < log.index("tests: FAILED") < log.index("fast")


def test_without_a_build_nothing_else_is_run(tmp_path: Path) -> None:
    stages = [_stage("build", "raise SystemExit(1)"), _stage("tests", "print('wrong')")]
    assert gpu_stages.run(stages, tmp_path, 480, stand_in=False) == 1
    assert "wrong" not in (tmp_path / "log.txt").read_text()


def test_a_stage_is_cut_off_with_all_that_it_started(tmp_path: Path) -> None:
    beside = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(beside)!r}).touch()"
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('begun', flush=True); time.sleep(60)"
    )
    stages = [_stage("tests", code, seconds=2), _stage("rates", "print('later')")]
    assert gpu_stages.run(stages, tmp_path, 480, stand_in=False) == 1
    assert _summary(tmp_path)[0] == "tests: CUT OFF after 2 s"
    assert "begun" in (tmp_path / "log.txt").read_text()
    assert "later" in (tmp_path / "log.txt").read_text()
    time.sleep(3)
    assert not beside.exists()


def test_late_stages_are_left_out(tmp_path: Path) -> None:
    left = gpu_stages.LEAST_SECONDS + 1
    stages = [_stage("build", "import time; time.sleep(2)"), _stage("tests", "print('late')")]
    assert gpu_stages.run(stages, tmp_path, left, stand_in=False) == 0
    line = _summary(tmp_path)[1]
    expected = rf"tests: left out, 1[0-4] s are left of {left}, and it needs 15"
    assert re.fullmatch(expected, line), line


def test_a_run_of_nothing_is_no_success(tmp_path: Path) -> None:
    absent = [_stage("profiler", "", needs="no such program")]
    assert gpu_stages.run(absent, tmp_path, 480, stand_in=False) == gpu_stages.NOTHING_RUN
    assert _summary(tmp_path)[-1] == "nothing was run"


def test_results_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    assert gpu_stages.new_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "tests.xml").touch()
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        gpu_stages.new_folder(tmp_path)
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        gpu_stages.new_folder(tmp_path / "tests.xml")
    with pytest.raises(SystemExit, match="Not a directory"):
        gpu_stages.new_folder(tmp_path / "tests.xml" / "below")


def test_without_a_gpu_the_build_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "bench/gpu_build.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == "torch finds no GPU here; --stand-in tries the stages on the CPU\n"
    assert not done.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_found_is_there_when_the_run_is_killed(
    tmp_path: Path, how: signal.Signals
) -> None:
    code = (
        "import sys; sys.path.insert(0, 'bench'); import gpu_stages; from pathlib import Path;"
        "S = gpu_stages.Stage; python = sys.executable;"
        "endless = 'print(\"half\", flush=True); import time; time.sleep(600)';"
        "gpu_stages.STAGES = (S('build', 60, lambda plan: [[python, '-c', 'print(1)']]),"
        " S('tests', 600, lambda plan: [[python, '-c', endless]]));"
        "sys.exit(gpu_stages.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    log = tmp_path / "log.txt"
    while "half\n" not in (log.read_text() if log.is_file() else ""):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, how)
    process.wait()
    assert _summary(tmp_path)[0].startswith("build: passed")
    if how != signal.SIGKILL:
        assert process.returncode


# ---- what they run -------------------------------------------------------------------------------


@pytest.mark.parametrize("stand_in", [True, False])
def test_the_first_stages_fit_into_eight_minutes(tmp_path: Path, stand_in: bool) -> None:
    first = gpu_stages.STAGES[:3]
    assert [stage.name for stage in first] == ["build", "tests", "rates"]
    assert sum(stage.seconds for stage in first) <= 480
    for stage in gpu_stages.STAGES:
        for command in stage.commands(Plan(tmp_path, stand_in, stage.seconds)):
            for word in command:
                if word.endswith(".py"):
                    assert (ROOT / word).is_file(), word


@functools.cache
def _collected(*chosen: str) -> frozenset[str]:
    """The tests that pytest chooses."""
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *chosen],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return frozenset(line for line in shown if "::" in line)


def _chosen(command: list[str]) -> frozenset[str]:
    """The tests that a command runs."""
    words = command[command.index("cuda") - 1 :]
    return _collected(*(word for word in words if not word.startswith("--")))


def test_a_gpu_runs_every_test_of_the_compiled_kernels(tmp_path: Path) -> None:
    """Words after -k that fit no test would choose none, or not those of a bare [cuda]."""
    chosen = {
        stage.name: [
            _chosen(command)
            for command in stage.commands(Plan(tmp_path, False, 60))
            if "pytest" in command
        ]
        for stage in gpu_stages.STAGES
    }
    assert all(tests for commands in chosen.values() for tests in commands)
    compiled = {test for test in _collected("-m", "cuda", "tests/backends") if "[cuda" in test}
    assert compiled == chosen["tests"][0] | chosen["streams"][0]
    assert chosen["build"][0] < chosen["tests"][0]
    assert chosen["sanitizer"] == [chosen["build"][0]] * 2
    (triton,) = chosen["triton"]
    assert {test.replace("[triton", "[cuda") for test in triton} == chosen["build"][0]


def test_a_tree_that_is_not_installed_is_imported(tmp_path: Path) -> None:
    """The library may have come with the tree. -S hides what is installed."""
    script = tmp_path / "where.py"
    script.write_text("import importlib.util as u; print(u.find_spec('customloss').origin)")
    stages = [Stage("rates", 60, lambda plan: [[sys.executable, "-S", str(script)]])]
    assert gpu_stages.run(stages, tmp_path, 480, stand_in=True) == 0
    assert str(ROOT / "customloss" / "__init__.py") in (tmp_path / "log.txt").read_text()


def test_a_pass_is_prepared_on_the_stream_that_captures_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backward pass runs on the stream of its forward pass, which may be no other one during a
    capture; and what a graph reads has to live as long as the graph."""
    told: list[str] = []
    current = ["default"]

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    class Graph:
        def replay(self) -> None:
            told.append("replayed")

    @contextlib.contextmanager
    def on_stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        yield
        current[0] = before

    class Read:
        """A tensor that the graph reads."""

    def prepare() -> Callable[[], None]:
        told.append(f"prepared on {current[0]}")
        read = Read()
        alive.append(weakref.ref(read))

        def body(read: Read = read) -> None:
            told.append(f"ran on {current[0]}")

        return body

    alive: list[weakref.ref[Read]] = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: on_stream("side"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: on_stream("side"))
    replay = gpu_rates.graph_of(prepare, torch.device("cuda"))
    replay()
    assert told == ["prepared on side", "ran on side", "ran on side", "replayed"]
    assert alive[0]() is not None
    del replay
    assert alive[0]() is None


def test_rates_of_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes over the seconds of the same samples, beside those of a copy."""
    smoke = [case for case in gpu_rates.cases.SMOKE if not case.latency]
    monkeypatch.setattr(gpu_rates, "chosen", lambda: smoke)
    monkeypatch.setattr(gpu_rates.machine, "cache_bytes", lambda device: 1 << 16)
    rows = list(gpu_rates.rows_in_time(torch.device("cpu"), 60.0, 1 << 16))
    assert len(rows) == sum(len(case.passes) for case in smoke)
    for row in rows:
        seconds = row["microseconds"] / 1e6
        assert row["gigabytes_a_second"] == pytest.approx(row["bytes"] / seconds / 1e9)
        assert row["share"] == row["gigabytes_a_second"] / row["copy_gigabytes_a_second"]
    json.dumps(rows)


def test_cases_that_came_too_late_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_rates, "chosen", lambda: gpu_rates.cases.SMOKE[:2])
    assert list(gpu_rates.rows_in_time(torch.device("cpu"), 0.0, 1 << 10)) == []
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{case.name}: left out, 0 s are over" for case in gpu_rates.cases.SMOKE[:2]]


def test_no_fallback_is_timed() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "bench/gpu_rates.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode
    assert "not our compiled kernels" in done.stderr
