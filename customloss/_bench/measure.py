"""How it is measured: samples of a pass in turns, with the roof, and the memory of a step."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._bench import gate
from customloss._bench.cases import Inputs
from customloss._bench.rivals import Loss

READ_ROOF, COPY_ROOF, REUSE_ROOF = "read roof", "copy roof", "reuse roof"


class Task(NamedTuple):
    """``prepare`` is not timed, ``run`` is; what ``run`` returns is freed after the clock stops."""

    prepare: Callable[[Inputs], Any]
    run: Callable[[Any], Any]
    repeat: int = 1


def _itself(inputs: Inputs) -> Inputs:
    return inputs


def task(loss: Loss, which: str, repeat: int = 1) -> Task:
    """One pass of a loss.

    Forward is without autograd, as in validation. Backward is timed on a graph that is recorded
    before the clock starts.
    """

    def forward(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return loss(inputs.input, inputs.target)

    def recorded(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        value = loss(inputs.input, inputs.target)
        return value, inputs.input, torch.full_like(value, inputs.scale)

    def backward(graph: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        value, input, scale = graph
        return torch.autograd.grad(value, input, scale)[0]

    if which == "forward":
        return Task(_itself, forward, repeat)
    if which == "backward":
        return Task(recorded, backward)
    return Task(_itself, lambda inputs: gate.step(loss, inputs), repeat)


def roof_tasks(device: torch.device, bytes: int) -> dict[str, Task]:
    """Probes of what the memory can do: reading, copying into fresh memory (as a gradient is
    written), and copying into existing memory, which spares the page faults of a gradient.

    Two sources take turns, so that neither is in a cache when its turn comes.
    """
    count = max(1, bytes // 4)
    places = [torch.rand(count, device=device) for _ in range(2)]
    existing = torch.empty_like(places[0])

    def turn(_: Inputs) -> Tensor:
        places.reverse()
        return places[0]

    return {
        READ_ROOF: Task(turn, torch.sum),
        COPY_ROOF: Task(turn, torch.clone),
        REUSE_ROOF: Task(turn, existing.copy_),
    }


# ---- time ------------------------------------------------------------------------------------


def _sample_cpu(job: Task, inputs: Inputs) -> float:
    prepared = job.prepare(inputs)
    start = time.perf_counter()
    for _ in range(job.repeat):
        result = job.run(prepared)
    stop = time.perf_counter()
    del result, prepared
    return (stop - start) / job.repeat


def _sample_cuda(job: Task, inputs: Inputs) -> float:
    """Times with events, around work that is queued behind 1 ms of waiting, so that launches are
    not timed. Many repeats mean a latency, which is host time until the device is done."""
    prepared = job.prepare(inputs)
    torch.cuda.synchronize()
    if job.repeat > 1:
        start_time = time.perf_counter()
        for _ in range(job.repeat):
            job.run(prepared)
        torch.cuda.synchronize()
        return (time.perf_counter() - start_time) / job.repeat
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)
    start.record()
    result = job.run(prepared)
    stop.record()
    stop.synchronize()
    del result, prepared
    return float(start.elapsed_time(stop)) / 1e3


def sample(job: Task, inputs: Inputs) -> float:
    """Seconds of one run."""
    on_gpu = inputs.input.device.type == "cuda"
    return _sample_cuda(job, inputs) if on_gpu else _sample_cpu(job, inputs)


def interleave(
    tasks: Mapping[str, Task],
    inputs: list[Inputs],
    *,
    rounds: int,
    seconds: float,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Samples of every task, taken in turns and in another order every round.

    Noise then hits all tasks alike, and ratios are taken within a round. Stops after ``rounds``, or
    after ``seconds`` once there were five rounds.
    """
    names = list(tasks)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        sample(tasks[name], inputs[0])  # warms up, and is not kept
    deadline = time.monotonic() + seconds
    for index in range(rounds):
        order = names[index % len(names) :] + names[: index % len(names)]
        for turn, name in enumerate(order):
            current = inputs[(index + turn) % len(inputs)]
            samples[name].append(sample(tasks[name], current))
        tick()
        if index >= 4 and time.monotonic() > deadline:
            break
    return samples


class Spread(NamedTuple):
    """The middle and the edges of many samples."""

    median: float
    p10: float
    p90: float


def spread(values: list[float]) -> Spread:
    """Median, 10th and 90th percentile."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(statistics.median(values), tenths[0], tenths[-1])


def ratio(theirs: list[float], ours: list[float]) -> Spread:
    """How many times longer they took, round by round."""
    return spread([their / our for their, our in zip(theirs, ours)])


# ---- memory ----------------------------------------------------------------------------------


def saved_bytes(loss: Loss, inputs: Inputs) -> int:
    """What autograd keeps from forward to backward, beyond the caller's own tensors."""
    callers = {tensor.untyped_storage().data_ptr() for tensor in (inputs.input, inputs.target)}
    saved: dict[int, int] = {}
    kept = []  # so that no address is used twice while we count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in callers:
            saved[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(inputs.input, inputs.target)
    return sum(saved.values())


@contextmanager
def _resident_peak() -> Iterator[dict[str, int | None]]:
    """The peak of resident memory in the block, less that at its start. Linux and glibc."""
    peak: dict[str, int | None] = {"bytes": None}
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory is used again, and nothing grows
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
    except (OSError, AttributeError):
        yield peak
        return
    yield peak
    peak["bytes"] = max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak_bytes(loss: Loss, inputs: Inputs) -> int | None:
    """The most a forward and a backward hold beyond the inputs, the gradient included."""
    if inputs.input.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        gate.step(loss, inputs)
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with _resident_peak() as peak:
        gate.step(loss, inputs)
    return peak["bytes"]
