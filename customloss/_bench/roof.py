"""The forward pass against ``input.sum()``, in each cache of the processor and beyond them all.

Both run on the same input in the same rounds, with one thread and with all. So the roof is taken
of the bytes that the pass itself reads, from where they lie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from customloss._bench import cases, gate, machine, measure, rivals, run
from customloss._bench.cases import Case, Inputs
from customloss._bench.results import Document, Row

SUITE = "roof"
SUM, SIGMOID = "input.sum()", "input.sigmoid()"
_PROBES: dict[str, Callable[[Tensor], Tensor]] = {SUM: Tensor.sum, SIGMOID: Tensor.sigmoid}


class RoofRow(Row):
    """A row whose probes read the input itself, and are named after what they compute."""

    threads: int
    held: int  # bytes of all copies of logits and target
    cache: str  # where these lie, in words


# ---- where -----------------------------------------------------------------------------------


class Cache(NamedTuple):
    """One level: its name, the bytes of one cache of it, and how many of them can be used."""

    name: str
    size: int
    number: int

    def of(self, threads: int) -> int:
        """The bytes that so many threads have of it."""
        return self.size * min(self.number, threads)


class Room(NamedTuple):
    """The caches from the second level on, and the memory that inputs and their check may take."""

    caches: tuple[Cache, ...]
    memory: int


SMALL = Room((Cache("L2", 256 << 10, 2), Cache("L3", 2 << 20, 1)), 16 << 20)  # for a smoke test
SHARE = 4  # a quarter of the free memory is used at most
CHECK_BYTES = 48  # memory that the check of an answer takes for an element
BEYOND = 4  # times the bytes of the last cache are beyond it


def room() -> Room:
    """That of this machine."""
    counts = machine.cache_counts()
    caches = tuple(
        Cache(name, size, counts[name])
        for name, size in sorted(machine.cpu_caches().items(), key=lambda pair: pair[1])
        if name != "L1d"
    )
    unknown = Cache("a cache of unknown size", machine.cache_bytes(torch.device("cpu")), 1)
    return Room(caches or (unknown,), machine.free_bytes() // SHARE)


def whereabouts(bytes: int, threads: int, caches: tuple[Cache, ...]) -> str:
    """Where bytes lie that are read again and again: in the first cache of which they take at most
    half."""
    for cache in caches:
        if 2 * bytes <= cache.of(threads):
            return f"in {cache.name}"
    last = caches[-1]
    beyond = bytes >= BEYOND * last.of(threads)
    return f"{'beyond' if beyond else 'partly in'} {last.name}"


# ---- what ------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A part of 2^18 elements, and how often it stands in an input that no cache holds.

    The parts of an input are equal. So its sums are those of one part, times the number of parts,
    and a ratio of sums is that of one part, which is all that the reference has to compute.
    """

    part: Case
    beyond: tuple[int, ...]  # how often along each dimension
    beside_sigmoid: tuple[int, ...] | None = None  # the same, of an input that a sigmoid reads too


_MASKS = Case("float32 + bool", (1, 1, 256, 1024), torch.float32, ("forward",))
_HALVES = replace(_MASKS, name="bfloat16 + bool", dtype=torch.bfloat16)
_LABELS = replace(_MASKS, name="4 labels float32", shape=(1, 4, 16, 64, 64), labels=torch.int64)
KINDS = (
    Kind(_MASKS, (64, 1, 4, 1), (1, 1, 4, 1)),  # 64 images of 1024², and one
    Kind(_HALVES, (64, 1, 4, 1)),
    Kind(_LABELS, (2, 1, 12, 3, 3)),  # 2 volumes of 192³
)


class Plan(NamedTuple):
    """A row that will be measured."""

    part: Case
    times: tuple[int, ...]  # how often the part stands in the input, along each dimension
    threads: int
    copies: int = 1  # of the input, which take turns
    repeat: int = 1  # calls in a sample
    probes: tuple[str, ...] = (SUM,)

    @property
    def case(self) -> Case:
        """The whole input."""
        sides = (side * times for side, times in zip(self.part.shape, self.times))
        return replace(self.part, shape=tuple(sides))

    def again(self, most: int) -> Plan:
        """The same with as many calls in a sample as the clock needs, at most ``most``."""
        needed = max(2, _SAMPLE_BYTES // self.case.read_bytes)
        return self._replace(repeat=min(most, needed))


_SAMPLE_BYTES = 128 << 20  # read in a sample of what lies in a cache, so that the clock is exact


def _filling(kind: Kind, bytes: int, threads: int) -> Plan:
    """Slices of the part, or whole parts, in so many bytes; one slice at least."""
    batch, classes, depth, *plane = kind.part.shape
    slices = bytes * depth // kind.part.read_bytes
    part = replace(kind.part, shape=(batch, classes, max(1, min(slices, depth)), *plane))
    times = (max(1, slices // depth), *(1 for _ in part.shape[1:]))
    return Plan(part, times, threads)


def _beyond(kind: Kind, threads: int, room: Room) -> Plan:
    """As many copies as are beyond the last cache; fewer parts where memory is short."""
    plan = Plan(kind.part, kind.beyond, threads)
    while CHECK_BYTES * plan.case.elements > room.memory and max(plan.times) > 1:
        most = plan.times.index(max(plan.times))
        fewer = (times // 2 if at == most else times for at, times in enumerate(plan.times))
        plan = plan._replace(times=tuple(fewer))
    size = plan.case.read_bytes
    wanted = math.ceil(BEYOND * room.caches[-1].of(threads) / size)
    return plan._replace(copies=max(1, min(wanted, room.memory // size)))


def _of_kind(kind: Kind, room: Room, threads: int, repeat: int) -> Iterator[Plan]:
    """From the smallest input to the largest."""
    first, last = room.caches[0], room.caches[-1]
    counts = sorted({1, threads})
    if first != last:
        yield _filling(kind, first.of(1) // 2, 1).again(repeat)
    if kind.beside_sigmoid:
        yield Plan(kind.part, kind.beside_sigmoid, 1, probes=(SUM, SIGMOID)).again(repeat)
    for count in counts:
        # an element has at least 3 bytes, and its check takes CHECK_BYTES, 16 times as many
        bytes = min(last.of(count) // 3, room.memory // 16)
        yield _filling(kind, bytes, count).again(repeat)
    for count in counts:
        yield _beyond(kind, count, room)


def plans(room: Room, threads: int, settings: run.Settings) -> list[Plan]:
    """Every row, none twice, and those of the same input side by side."""
    found: dict[tuple[Case, int, int], Plan] = {}
    for kind in KINDS:
        if settings.case in kind.part.name:
            for plan in _of_kind(kind, room, threads, settings.repeat):
                found.setdefault((plan.case, plan.threads, plan.copies), plan)
    return list(found.values())


# ---- how -------------------------------------------------------------------------------------


def whole(plan: Plan, first: Inputs, right: gate.Expected) -> tuple[Inputs, gate.Expected]:
    """The input of a row and its answer, from those of its part."""
    times = plan.times
    of_target = times if plan.part.labels is None else (times[0], *times[2:])
    input = first.input.detach().repeat(times).requires_grad_()
    gradient = (right.gradient / math.prod(times)).repeat(times)
    inputs = Inputs(input, first.target.repeat(of_target), first.scale)
    return inputs, gate.Expected(right.value, gradient)


def _probe(name: str, repeat: int) -> measure.Task:
    return measure.Task(lambda inputs: inputs.input.detach(), _PROBES[name], repeat)


def held(plan: Plan) -> int:
    """The bytes of all copies of logits and target."""
    return plan.copies * plan.case.read_bytes


def cache_of(plan: Plan, room: Room) -> str:
    """Where these lie, in words."""
    return whereabouts(held(plan), plan.threads, room.caches)


def _row(
    plan: Plan, field: run.Field, room: Room, settings: run.Settings, tick: Callable[[], None]
) -> RoofRow:
    field = field._replace(probes={name: _probe(name, plan.repeat) for name in plan.probes})
    with measure.threads(plan.threads):
        row = run.row(plan.case, "forward", field, settings, tick, plan.repeat)
    return {**row, "threads": plan.threads, "held": held(plan), "cache": cache_of(plan, room)}


def _rows(
    room: Room,
    settings: run.Settings,
    on_case: Callable[[str], None],
    tick: Callable[[], None],
) -> Iterator[RoofRow]:
    """Answers are checked first, as everywhere: value and gradient of the whole input."""
    cpu = torch.device("cpu")
    ours = rivals.rivals(cpu, compile=False)[0]
    planned = plans(room, torch.get_num_threads(), settings)
    for part, of_part in itertools.groupby(planned, key=lambda plan: plan.part):
        first = cases.make_inputs(part, cpu)
        right_part = gate.expected(part, first)
        for case, of_case in itertools.groupby(of_part, key=lambda plan: plan.case):
            same = list(of_case)
            on_case(f"{case.name} {cache_of(same[0], room)}")
            inputs, right = whole(same[0], first, right_part)
            contenders = [run.judge(ours, case, inputs, right)]
            del right
            copies = cases.copies(inputs, max(plan.copies for plan in same))
            for plan in same:
                field = run.Field(copies[: plan.copies], contenders, {})
                yield _row(plan, field, room, settings, tick)


def steps(room: Room, settings: run.Settings) -> int:
    """How often ``tick`` is called at most."""
    return settings.rounds * len(plans(room, torch.get_num_threads(), settings))


def measured(
    room: Room,
    settings: run.Settings,
    on_case: Callable[[str], None] = lambda name: None,
    tick: Callable[[], None] = lambda: None,
) -> Document:
    """Every row, as a document of the suite ``"roof"``."""
    rows = _rows(room, settings, on_case, tick)
    return run.document(SUITE, torch.device("cpu"), settings, rows)
