"""How near our passes come to the memory's rate on a GPU, without the time of launches.

    python bench/gpu_rates.py --result FILE.json [--device cuda] [--seconds 90]
    ncu python bench/gpu_rates.py --once      # every pass once, without a graph and a clock

Eight cases of ``customloss bench --full``, ours alone. Every answer is first compared with the
float64 reference. The passes over as many copies of the inputs as fill the last-level cache three
times are captured as one CUDA graph, whose replay is timed by events. In every round a copy of
1 GiB into memory that is there is replayed too. The share is the pass's rate of the bytes that it
has to move, divided by the rate at which the copy reads and writes.

The file is written after every case, so that nothing measured is lost if the run is cut off. A
GPU without our compiled kernels is not timed. On a CPU, which has no graphs, the same passes run
directly: that tests this script.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from customloss._bench import cases, gate, machine, measure, rivals
from customloss._bench.cases import Case, Inputs

NAMES = (
    "image float32", "image bfloat16", "image float16", "classes float32", "channels_last float32",
    "4 labels float32", "4 labels Dice+CE", "105 labels Dice+CE",
)  # fmt: skip
COPY_BYTES = 1 << 30
ROUNDS = 15


class Replay(NamedTuple):
    """What is timed: ``run`` makes ``passes`` passes, each of which moves ``bytes``."""

    run: Callable[[], object]
    passes: int
    bytes: int


# ---- what is replayed ----------------------------------------------------------------------------


def chosen() -> list[Case]:
    """The cases, in the order of the benchmark."""
    return [case for case in cases.FULL if case.name in NAMES]


def ours(case: Case) -> rivals.Loss:
    """Our loss of a case."""
    everybody = rivals.rivals(torch.device("cpu"), compile=False)
    (rival,) = (each for each in everybody if each.family == rivals.OURS)
    return rival.build(case)


def graph_of(
    prepare: Callable[[], Callable[[], object]], device: torch.device
) -> Callable[[], object]:
    """What ``prepare`` returns, as a CUDA graph; on a CPU itself.

    It is prepared on the stream that captures it: autograd runs a backward pass on the stream of
    its forward pass, and no other stream may have work during a capture.
    """
    if device.type != "cuda":
        return prepare()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body = prepare()
        body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        body()

    def replay(kept: object = body) -> None:
        """Keeps the tensors of ``body``: the graph knows their addresses, and does not own them."""
        graph.replay()

    return replay


def one_pass(loss: rivals.Loss, which: str, inputs: Inputs) -> Callable[[], object]:
    """One pass over one copy of the inputs; its gradient is freed, so that all share memory."""
    if which != "backward":
        job = measure.task(loss, which)
        return lambda: job.run(inputs)
    value = loss(inputs.input, inputs.target)
    scale = torch.full_like(value, inputs.scale)
    return lambda: torch.autograd.grad(value, inputs.input, scale, retain_graph=True)


def in_turn(bodies: list[Callable[[], object]]) -> Callable[[], object]:
    """All of them, one after the other."""

    def run() -> None:
        for body in bodies:
            body()

    return run


def replays(case: Case, loss: rivals.Loss, inputs: list[Inputs]) -> dict[str, Replay]:
    """A graph for every pass of a case."""
    made = {}
    for which in case.passes:

        def prepare(which: str = which) -> Callable[[], object]:
            return in_turn([one_pass(loss, which, each) for each in inputs])

        run_all = graph_of(prepare, inputs[0].input.device)
        made[which] = Replay(run_all, len(inputs), case.moved_bytes(which))
    return made


def copying(device: torch.device, bytes: int) -> Replay:
    """A copy into memory that is there: it reads ``bytes`` and writes as many."""
    source = torch.rand(bytes // 4, device=device)
    target = torch.zeros_like(source)
    return Replay(graph_of(lambda: lambda: target.copy_(source), device), 1, 2 * bytes)


# ---- time ----------------------------------------------------------------------------------------


def seconds_of(replay: Replay, device: torch.device) -> float:
    """Seconds of one pass."""
    if device.type != "cuda":
        began = time.perf_counter()
        replay.run()
        return (time.perf_counter() - began) / replay.passes
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay.run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / replay.passes


def measured(case: Case, device: torch.device, copy: Replay) -> list[dict[str, Any]]:
    """The rows of a case; raises if the answer is wrong."""
    first = cases.make_inputs(case, device)
    loss = ours(case)
    verdict = gate.check(loss, first, gate.expected(case, first))
    if not verdict.passed:
        raise SystemExit(f"gpu_rates.py: {case.name} is wrong: {verdict}")
    inputs = cases.copies(first, cases.copies_needed(case, machine.cache_bytes(device)))
    jobs = {**replays(case, loss, inputs), "copy": copy}
    for job in jobs.values():
        seconds_of(job, device)
    rounds = [{name: seconds_of(job, device) for name, job in jobs.items()} for _ in range(ROUNDS)]
    return [row(case, which, jobs, rounds) for which in case.passes]


def row(
    case: Case, which: str, jobs: dict[str, Replay], rounds: list[dict[str, float]]
) -> dict[str, Any]:
    """Medians, and every sample."""
    samples = {name: [each[name] for each in rounds] for name in (which, "copy")}
    rates = {
        name: jobs[name].bytes / statistics.median(taken) / 1e9 for name, taken in samples.items()
    }
    return {
        "case": case.name,
        "which": which,
        "bytes": jobs[which].bytes,
        "passes_a_replay": jobs[which].passes,
        "microseconds": statistics.median(samples[which]) * 1e6,
        "gigabytes_a_second": rates[which],
        "copy_gigabytes_a_second": rates["copy"],
        "share": rates[which] / rates["copy"],
        "seconds": samples[which],
        "copy_seconds": samples["copy"],
    }


def rows_in_time(device: torch.device, seconds: float, copy_bytes: int) -> Iterator[dict[str, Any]]:
    """The rows of the cases that begin before the time is over."""
    deadline = time.monotonic() + seconds
    copy = copying(device, copy_bytes)
    for case in chosen():
        if time.monotonic() < deadline:
            yield from measured(case, device, copy)
        else:
            print(f"{case.name}: left out, {seconds:.0f} s are over", flush=True)


def once(device: torch.device) -> None:
    """Runs every pass of every case once."""
    for case in chosen():
        inputs = cases.make_inputs(case, device)
        for which in case.passes:
            one_pass(ours(case), which, inputs)()
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--result", type=Path, help="where to save what was measured")
    parser.add_argument("--once", action="store_true", help="run every pass once, for a profiler")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=90.0, help="no case begins later")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and machine.kernels(device) != "_C_cuda":
        raise SystemExit(f"gpu_rates.py: not our compiled kernels: {machine.kernels(device)}")
    if given.once:
        return once(device)
    made = {**machine.provenance(), "command": shlex.join(["bench/gpu_rates.py", *sys.argv[1:]])}
    document: dict[str, Any] = {"made": made, "machine": machine.describe(device)}
    document["stand_in"] = device.type != "cuda"  # figures of a CPU, to try the script
    document["rows"] = []
    print(f"{'case':<22}{'pass':<18}{'µs':>9}{'GB/s':>8}{'of a copy':>11}", flush=True)
    for each in rows_in_time(device, given.seconds, COPY_BYTES):
        document["rows"].append(each)
        if given.result:
            given.result.write_text(json.dumps(document, indent=1) + "\n")
        print(
            f"{each['case']:<22}{each['which']:<18}{each['microseconds']:>9.1f}"
            f"{each['gigabytes_a_second']:>8.0f}{each['share']:>11.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
