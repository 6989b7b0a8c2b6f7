"""Puts cases, rivals, gate and measure together: a suite in, one JSON-ready document out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypedDict

import torch

from customloss._bench import cases, gate, machine, measure
from customloss._bench.cases import Case, Inputs
from customloss._bench.rivals import FAMILIES, OURS, Loss, Rival, Unavailable, rivals


class Entry(TypedDict):
    """One contender in one row. Without a right answer there are no times and no speed-up."""

    form: str | None
    why_not: str | None
    value_error: float | None
    gradient_error: float | None
    seconds: list[float] | None  # median, p10, p90
    speedup: list[float] | None  # of ours over this one: median, p10, p90 of the paired ratios
    saved_bytes: int | None
    peak_bytes: int | None


class Row(TypedDict):
    """One pass of one case."""

    case: str
    shape: list[int]
    dtype: str
    which: str
    elements: int
    bytes: int
    rounds: int
    roof_seconds: float | None
    read_gbps: float | None
    copy_gbps: float | None
    reuse_gbps: float | None
    latency: bool
    entries: dict[str, Entry]


class Document(TypedDict):
    """A whole benchmark, as it is saved."""

    machine: dict[str, Any]
    suite: str
    rounds: int
    rows: list[Row]


class Contender(NamedTuple):
    """A form that was built and judged; ``loss`` is None where it may not race."""

    rival: Rival
    loss: Loss | None
    verdict: gate.Verdict | None
    why_not: str | None


class Field(NamedTuple):
    """A case made ready: inputs to rotate through, and the judged forms of every family."""

    inputs: list[Inputs]
    families: dict[str, list[Contender]]


class Settings(NamedTuple):
    """How much to measure."""

    rounds: int = 15
    seconds: float = 6.0  # per row, but at least five rounds
    repeat: int = 200  # calls in a sample, where a latency is measured
    compile: bool = True


# ---- who may race ----------------------------------------------------------------------------


def judge(rival: Rival, case: Case, inputs: Inputs, right: gate.Expected) -> Contender:
    """Builds a rival and holds its answer against the reference."""
    try:
        loss = rival.build(case)
        verdict = gate.check(loss, inputs, right)
    except Unavailable as reason:
        return Contender(rival, None, None, str(reason))
    except Exception as error:  # a rival's failure is a result, ours is a bug
        if rival.family == OURS:
            raise
        lines = str(error).strip().splitlines() or [""]
        return Contender(rival, None, None, f"failed: {type(error).__name__}: {lines[0][:120]}")
    if not verdict.passed:
        why = (
            f"wrong: value off by {verdict.value_error:.1e}, "
            f"gradient by {verdict.gradient_error:.1e}"
        )
        return Contender(rival, None, verdict, why)
    return Contender(rival, loss, verdict, None)


def fastest(forms: list[Contender], which: str, inputs: Inputs, repeat: int) -> Contender:
    """The form of a family that represents it in this row."""
    able = [form for form in forms if form.loss is not None]
    if len(able) < 2:
        return (able or forms)[0]

    def best(form: Contender) -> float:
        assert form.loss is not None
        job = measure.task(form.loss, which, repeat)
        return min(measure.sample(job, inputs) for _ in range(2))

    return min(able, key=best)


def _families(contenders: Iterable[Contender]) -> dict[str, list[Contender]]:
    grouped: dict[str, list[Contender]] = {}
    for contender in contenders:
        grouped.setdefault(contender.rival.family, []).append(contender)
    return {family: grouped[family] for family in FAMILIES if family in grouped}


def prepare(case: Case, device: torch.device, *, compile: bool) -> Field:
    """Makes the inputs and judges every implementation on them."""
    if compile:
        torch.compiler.reset()  # else the eighth shape would silently run eagerly
    first = cases.make_inputs(case, device)
    right = gate.expected(case, first)
    entrants = rivals(device, compile=compile)
    families = _families(judge(rival, case, first, right) for rival in entrants)
    inputs = cases.copies(first, cases.copies_needed(case, machine.cache_bytes(device)))
    return Field(inputs, families)


# ---- rows ------------------------------------------------------------------------------------


def _row(
    case: Case,
    which: str,
    racing: dict[str, Contender],
    inputs: list[Inputs],
    settings: Settings,
    tick: Callable[[], None],
) -> Row:
    repeat = settings.repeat if case.latency else 1
    tasks = {
        name: measure.task(one.loss, which, repeat)
        for name, one in racing.items()
        if one.loss is not None
    }
    if not case.latency:
        tasks |= measure.roof_tasks(inputs[0].input.device, case.written_bytes)
    samples = measure.interleave(
        tasks, inputs, rounds=settings.rounds, seconds=settings.seconds, tick=tick
    )
    least = roof(case, which, samples)
    return {
        "case": case.name,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "which": which,
        "elements": case.elements,
        "bytes": case.moved_bytes(which),
        "rounds": min((len(taken) for taken in samples.values()), default=0),
        "roof_seconds": least.seconds,
        "read_gbps": least.read_gbps,
        "copy_gbps": least.copy_gbps,
        "reuse_gbps": least.reuse_gbps,
        "latency": case.latency,
        "entries": {
            name: _entry(one, which, samples, inputs[0], case) for name, one in racing.items()
        },
    }


class Roof(NamedTuple):
    """Measured rates in GB/s, and the seconds a pass takes at them; None for a latency."""

    read_gbps: float | None
    copy_gbps: float | None
    reuse_gbps: float | None
    seconds: float | None


def roof(case: Case, which: str, samples: dict[str, list[float]]) -> Roof:
    """The roof of one pass.

    A forward pass costs reading its inputs. A backward pass costs a clone of its output, plus
    reading the rest: it writes to fresh memory, so that is closer than bytes over one bandwidth.
    """
    if case.latency:
        return Roof(None, None, None, None)
    probed = max(1, case.written_bytes // 4) * 4
    read, clone, reuse = (
        measure.spread(samples[name]).median
        for name in (measure.READ_ROOF, measure.COPY_ROOF, measure.REUSE_ROOF)
    )
    forward = case.read_bytes * read / probed
    backward = clone + (case.read_bytes - case.written_bytes) * read / probed
    seconds = {"forward": forward, "backward": backward}.get(which, forward + backward)
    return Roof(probed / read / 1e9, 2 * probed / clone / 1e9, 2 * probed / reuse / 1e9, seconds)


def _entry(
    one: Contender, which: str, samples: dict[str, list[float]], inputs: Inputs, case: Case
) -> Entry:
    family = one.rival.family
    taken, ours = samples.get(family), samples.get(OURS)
    memory = one.loss is not None and which == cases.BOTH and not case.latency
    return {
        "form": one.rival.form if one.loss is not None else None,
        "why_not": one.why_not,
        "value_error": one.verdict.value_error if one.verdict else None,
        "gradient_error": one.verdict.gradient_error if one.verdict else None,
        "seconds": list(measure.spread(taken)) if taken else None,
        # if the gate refused ours, it is missing from the samples, and nobody gets a ratio
        "speedup": list(measure.ratio(taken, ours)) if taken and ours else None,
        "saved_bytes": measure.saved_bytes(one.loss, inputs) if memory and one.loss else None,
        "peak_bytes": measure.peak_bytes(one.loss, inputs) if memory and one.loss else None,
    }


def run_case(
    case: Case,
    device: torch.device,
    settings: Settings,
    tick: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All passes of one case."""
    field = prepare(case, device, compile=settings.compile)
    repeat = settings.repeat if case.latency else 1
    rows = []
    for which in case.passes:
        racing = {
            family: fastest(forms, which, field.inputs[0], repeat)
            for family, forms in field.families.items()
        }
        rows.append(_row(case, which, racing, field.inputs, settings, tick))
    return rows


def steps(suite: str, settings: Settings) -> int:
    """How often ``tick`` is called at most."""
    return settings.rounds * sum(len(case.passes) for case in cases.SUITES[suite])


def run(
    suite: str,
    device: torch.device,
    settings: Settings | None = None,
    on_case: Callable[[str], None] = lambda name: None,
    tick: Callable[[], None] = lambda: None,
) -> Document:
    """Every case of a suite: ``"quick"``, ``"full"`` or ``"smoke"``."""
    settings = settings or Settings()
    described = machine.describe(device)
    rows: list[Row] = []
    for case in cases.SUITES[suite]:
        on_case(case.name)
        rows += run_case(case, device, settings, tick)
    described["load_average_after"] = machine.load_average()
    return {"machine": described, "suite": suite, "rounds": settings.rounds, "rows": rows}
