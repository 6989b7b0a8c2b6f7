"""The first minutes on a GPU, in stages, each with a time limit of its own.

    bench/gpu.sh RESULTS [--seconds 480] [--only build --only rates] [--stand-in]

RESULTS is a folder, new or empty. It gets ``log.txt`` (all that is printed, while it is printed),
``summary.txt`` (a line for each stage that ended), ``tests.xml`` and ``rates.json``: whenever the
run is killed, what it had found is there. ``PYTHON=... bench/gpu.sh`` names the interpreter. It
needs torch with CUDA and what the extra ``test`` of this package lists; it needs no network.

The library is built for the GPU that is found, unless ``customloss/_C_cuda.abi3.so`` is there
already and has code for it. Without a build nothing else is run, so that no fallback is tested or
timed under our name. Stages that come late are left out when the time is over. The exit status is
the number of stages that failed, or 5 if none was run.

``--stand-in`` runs the stages on the CPU, as far as they go there, to try this script where no GPU
is. Its figures are no GPU's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

TREE = Path(__file__).resolve().parents[1]
LEAST_SECONDS = 15  # a stage is not begun with less
NOTHING_RUN = 5  # the exit status, as pytest has it
WORKERS = min(14, os.cpu_count() or 1)


class Plan(NamedTuple):
    """What the commands of a stage depend on."""

    results: Path
    stand_in: bool
    seconds: int  # that the stage has

    @property
    def device(self) -> str:
        return "cpu" if self.stand_in else "cuda"


Command = list[str]


class Stage(NamedTuple):
    """Commands that run one after the other, until one fails or the seconds are over."""

    name: str
    seconds: int
    commands: Callable[[Plan], list[Command]]
    needs: str = ""  # a program without which there is nothing to run


# ---- what is run ---------------------------------------------------------------------------------


def _pytest(*arguments: str, workers: int = WORKERS) -> Command:
    # a line for each test: what a stage that is cut off has found is known
    plain = ("-v", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=120")
    return [sys.executable, "-m", "pytest", "-n", str(workers), *plain, *arguments]


def _gpu_tests(plan: Plan, files: str, kept: str, *more: str, workers: int = WORKERS) -> Command:
    """Tests of ``-m cuda`` in files of tests/backends; a few of the CPU's stand in for them."""
    if plan.stand_in:
        return _pytest("tests/values/test_determinism.py", "-k", "float32", *more, workers=workers)
    named = [f"tests/backends/test_gpu_{file}.py" for file in files.split()]
    return _pytest("-m", "cuda", *named, "-k", kept, *more, workers=workers)


def _build(plan: Plan) -> list[Command]:
    build = [sys.executable, "bench/gpu_build.py", *(["--stand-in"] if plan.stand_in else [])]
    return [build, _gpu_tests(plan, "values", "few_of_everything and [cuda", "--maxfail=1")]


def _compiled_tests(plan: Plan) -> list[Command]:
    report = f"--junit-xml={plan.results / 'tests.xml'}"
    return [_gpu_tests(plan, "values training", "[cuda", report)]


def _rates(plan: Plan) -> list[Command]:
    return [_rates_script(plan, f"--result={plan.results / 'rates.json'}")]


def _rates_script(plan: Plan, *arguments: str) -> Command:
    stop = f"--seconds={0.75 * plan.seconds:.0f}"  # the last case that begins needs time too
    return [sys.executable, "bench/gpu_rates.py", f"--device={plan.device}", stop, *arguments]


def _triton(plan: Plan) -> list[Command]:
    return [_gpu_tests(plan, "values", "few_of_everything and [triton")]


def _streams(plan: Plan) -> list[Command]:
    return [_gpu_tests(plan, "streams graphs", "[cuda")]


def _sanitizer(plan: Plan) -> list[Command]:
    """Every tensor is an allocation of its own, so that an access beyond its end is seen."""
    tests = _gpu_tests(plan, "values", "few_of_everything and [cuda", workers=0)
    alone = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    tools = ("memcheck", "racecheck")
    return [
        [*alone, "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *tests]
        for tool in tools
    ]


def _profiler(plan: Plan) -> list[Command]:
    shown = ("--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis")
    return [["ncu", *shown, *_rates_script(plan, "--once")]]


STAGES = (
    Stage("build", 200, _build),  # 20 s where the library came with the tree
    Stage("tests", 150, _compiled_tests),
    Stage("rates", 120, _rates),
    Stage("triton", 60, _triton),
    Stage("streams", 60, _streams),
    Stage("sanitizer", 90, _sanitizer, needs="compute-sanitizer"),
    Stage("profiler", 60, _profiler, needs="ncu"),
)


# ---- one stage -----------------------------------------------------------------------------------


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kills a command with everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def tell(text: str, *files: TextIO) -> None:
    """Prints a line, and writes it to files, at once."""
    for file in (sys.stdout, *files):
        print(text, file=file, flush=True)


def environment() -> dict[str, str]:
    """That of every command: this tree is imported, whether or not it is installed."""
    path = os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run_command(command: Command, seconds: float, log: TextIO) -> int | None:
    """The exit status, or None if the time was over; what it prints is shown and logged at once."""
    print(f"$ {' '.join(command)}", file=log, flush=True)
    over = threading.Event()
    with subprocess.Popen(
        command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, env=environment(),
    ) as process:  # fmt: skip

        def stop() -> None:
            over.set()
            _kill(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                tell(line.rstrip("\n"), log)
            status = process.wait()
        finally:
            timer.cancel()
            _kill(process)
    return None if over.is_set() else status


def run_stage(stage: Stage, plan: Plan, log: TextIO) -> str:
    """What became of a stage, as a line of the summary tells it."""
    began = time.monotonic()
    for command in stage.commands(plan):
        left = plan.seconds - (time.monotonic() - began)
        try:
            status = run_command(command, left, log)
        except OSError as error:
            return f"FAILED: {command[0]}: {error.strerror}"
        if status is None:
            return f"CUT OFF after {plan.seconds} s"
        if status:
            return f"FAILED with status {status}"
    return f"passed in {time.monotonic() - began:.0f} s"


# ---- one after the other -------------------------------------------------------------------------


def run(stages: Sequence[Stage], results: Path, seconds: int, stand_in: bool) -> int:
    """Runs the stages as far as the seconds go; the number of those that failed."""
    began = time.monotonic()
    failed = passed = 0
    with (results / "log.txt").open("a") as log, (results / "summary.txt").open("a") as summary:
        if stand_in:
            tell("a stand-in: this ran on a CPU, and its figures are no GPU's", log, summary)
        for stage in stages:
            left = int(seconds - (time.monotonic() - began))
            if stage.needs and shutil.which(stage.needs) is None:
                tell(f"{stage.name}: left out, there is no {stage.needs}", log, summary)
            elif left < LEAST_SECONDS:
                why = f"{max(left, 0)} s are left of {seconds}, and it needs {LEAST_SECONDS}"
                tell(f"{stage.name}: left out, {why}", log, summary)
            else:
                plan = Plan(results, stand_in, min(stage.seconds, left))
                tell(f"\n==== {stage.name}, at most {plan.seconds} s", log)
                outcome = run_stage(stage, plan, log)
                tell(f"{stage.name}: {outcome}", log, summary)
                passed += outcome.startswith("passed")
                failed += not outcome.startswith("passed")
                if failed and stage.name == "build":
                    tell("there is no build, so nothing else was run", log, summary)
                    break
        if not passed and not failed:
            tell("nothing was run", log, summary)
    return failed if passed or failed else NOTHING_RUN


def new_folder(results: Path) -> Path:
    """Where a run writes: a used folder would mix its results with those of another run."""
    if results.exists() and (not results.is_dir() or any(results.iterdir())):
        raise SystemExit(f"gpu.sh: RESULTS: expected a new or empty folder, got {results}")
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"gpu.sh: RESULTS: {results}: {error.strerror}") from None
    return results.resolve()


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=int, default=480, help="for all stages together")
    parser.add_argument("--only", action="append", choices=names, help="leave out the others")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, to try this script")
    given = parser.parse_args()
    # so that a command is killed with its children when this script is
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [stage for stage in STAGES if stage.name in (given.only or names)]
    return run(chosen, new_folder(given.results), given.seconds, given.stand_in)


if __name__ == "__main__":
    sys.exit(main())
