"""How it is measured: samples of a pass in turns, probes of the memory, and what a step holds."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import customloss
from customloss._bench import gate, kept
from customloss._bench.cases import Inputs
from customloss._bench.rivals import Loss


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


def probe_bytes(bytes: int) -> int:
    """What a probe of ``bytes`` really reads: a whole number of float32."""
    return max(1, bytes // 4) * 4


def probes(device: torch.device, bytes: int, places: int) -> dict[str, Task]:
    """What the memory can do: read ``bytes``, or copy them into memory that is there already.

    So many places take turns that none is in a cache when its turn comes, as with the inputs. A
    copy into fresh memory would measure the page faults of the operating system.
    """
    count = probe_bytes(bytes) // 4
    sources = [torch.rand(count, device=device) for _ in range(places)]
    targets = [torch.zeros_like(source) for source in sources]
    turns = itertools.cycle(zip(sources, targets))

    def turn(_: Inputs) -> tuple[Tensor, Tensor]:
        return next(turns)

    return {
        "read": Task(turn, lambda pair: pair[0].sum()),
        "copy": Task(turn, lambda pair: pair[1].copy_(pair[0])),
    }


# ---- time ------------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads in the block; 0: as torch has them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trim() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    A task would otherwise find pages that another has freed, or not, by chance: a gradient in such
    pages takes half of the time of one that the system has to map.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _sample_cpu(job: Task, inputs: Inputs) -> float:
    prepared = job.prepare(inputs)
    if job.repeat == 1:
        _trim()
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


FIRST_ROUNDS = 5  # all tasks run in these
FAR_BEHIND = 2.0


def far_behind(samples: Mapping[Any, list[float]], family: Mapping[Any, str]) -> set[Any]:
    """Those that took twice as long as the fastest of their family, in every round of each."""
    found = set()
    for name, own in samples.items():
        relatives = [samples[each] for each in samples if family.get(each) == family.get(name)]
        fastest = [min(of_round) for of_round in zip(*relatives)]
        if name in family and all(a > FAR_BEHIND * b for a, b in zip(own, fastest)):
            found.add(name)
    return found


def interleave(
    tasks: Mapping[Any, Task],
    inputs: list[Inputs],
    *,
    rounds: int,
    seconds: float,
    family: Mapping[Any, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[Any, list[float]]:
    """A sample of every task in every round, in an order that is drawn anew for each round.

    The next task gets the copy of the inputs that was used longest ago, whoever used it. So no task
    follows another more often than by chance, and none finds what the one before it has read. Noise
    hits all tasks alike, and ratios are taken within a round. Stops after ``rounds``, or after
    ``seconds`` once there were five rounds.

    With the ``family`` of tasks, those that are far behind it after five rounds sit out from then
    on, so that there is time for more rounds of the others.
    """
    racing = list(tasks)
    samples: dict[Any, list[float]] = {name: [] for name in tasks}
    turns = itertools.cycle(inputs)
    for job in tasks.values():
        sample(job, next(turns))  # warms up, and is not kept
    drawn = random.Random(0)
    deadline = time.monotonic() + seconds
    for index in range(rounds):
        for name in drawn.sample(racing, len(racing)):
            samples[name].append(sample(tasks[name], next(turns)))
        tick()
        if index + 1 == FIRST_ROUNDS:
            out = far_behind(samples, family or {})
            racing = [name for name in racing if name not in out]
        if index + 1 >= FIRST_ROUNDS and time.monotonic() > deadline:
            break
    return samples


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
        kept.append(tensor.detach())  # with its graph it would be in a circle, and never freed
        return kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        loss(inputs.input, inputs.target)
    return sum(saved.values())


@contextlib.contextmanager
def _resident_peak() -> Iterator[dict[str, int | None]]:
    """The peak of resident memory in the block, less that at its start. Linux and glibc."""
    peak: dict[str, int | None] = {"bytes": None}
    # else freed memory is used again, and nothing grows
    _trim()
    customloss.empty_cache()
    kept.GRADIENT.empty()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
    except OSError:
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
