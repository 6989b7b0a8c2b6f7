"""Puts cases, rivals, gate and measure together: a suite in, one JSON-ready document out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import torch

from customloss._bench import cases, gate, machine, measure
from customloss._bench.cases import Case, Inputs
from customloss._bench.measure import Task
from customloss._bench.results import SCHEMA, Document, Form, Outcome, Row
from customloss._bench.rivals import FAMILIES, OURS, Loss, Rival, Unavailable, rivals


class Contender(NamedTuple):
    """A form that was built and judged; ``loss`` is None where it may not race."""

    rival: Rival
    loss: Loss | None
    outcome: Outcome
    why: str | None = None
    verdict: gate.Verdict | None = None


class Field(NamedTuple):
    """A case made ready: inputs that take turns, all forms, judged, and probes of the memory."""

    inputs: list[Inputs]
    contenders: list[Contender]
    probes: dict[str, Task]


class Settings(NamedTuple):
    """How much to measure, and against whom."""

    rounds: int = 15
    seconds: float = 6.0  # per row, but at least five rounds
    repeat: int = 200  # calls in a sample of what is small, at most
    compile: bool = True
    all_forms: bool = True  # False: compile only a few forms, because that takes long
    families: Collection[str] = FAMILIES
    case: str = ""  # only the cases whose name contains this


SETTINGS = {
    "smoke": Settings(rounds=5, seconds=1.0, repeat=20),
    "quick": Settings(rounds=15, seconds=6.0, all_forms=False),
    "full": Settings(rounds=31, seconds=25.0),
    "roof": Settings(rounds=31, seconds=6.0, compile=False),
}


# ---- who may race ----------------------------------------------------------------------------


def judge(rival: Rival, case: Case, inputs: Inputs, right: gate.Expected) -> Contender:
    """Builds a rival and holds its answer against the reference."""
    try:
        loss = rival.build(case)
        verdict = gate.check(loss, inputs, right)
    except Unavailable as reason:
        return Contender(rival, None, "absent", str(reason))
    except (Exception, SystemExit) as error:  # a rival's failure is a result, ours is a bug
        if rival.family == OURS:
            raise
        lines = str(error).strip().splitlines() or [""]
        return Contender(rival, None, "failed", f"{type(error).__name__}: {lines[0][:120]}")
    if not verdict.passed:
        why = f"value off by {verdict.value_error:.1e}, gradient by {verdict.gradient_error:.1e}"
        return Contender(rival, None, "wrong", why, verdict)
    return Contender(rival, loss, "raced", None, verdict)


def prepare(case: Case, device: torch.device, settings: Settings) -> Field:
    """Makes the inputs and judges every form on them."""
    if settings.compile:
        torch.compiler.reset()  # else the eighth shape would silently run eagerly
    first = cases.make_inputs(case, device)
    right = gate.expected(case, first)
    entrants = [
        rival
        for rival in rivals(device, compile=settings.compile, all_forms=settings.all_forms)
        if rival.family == OURS or rival.family in settings.families
    ]
    contenders = [judge(rival, case, first, right) for rival in entrants]
    del right
    inputs = cases.copies(first, cases.copies_needed(case, machine.cache_bytes(device)))
    probes = {} if case.latency else measure.probes(device, case.written_bytes, len(inputs))
    return Field(inputs, contenders, probes)


# ---- rows ------------------------------------------------------------------------------------


def row(
    case: Case,
    which: str,
    field: Field,
    settings: Settings,
    tick: Callable[[], None],
    repeat: int = 1,
) -> Row:
    """One pass of a case. ``repeat``: calls in a sample of a form."""
    inputs = field.inputs
    device = inputs[0].input.device
    tasks = {
        index: measure.task(one.loss, which, repeat)
        for index, one in enumerate(field.contenders)
        if one.loss is not None
    }
    samples = measure.interleave(
        tasks | field.probes,
        inputs,
        rounds=settings.rounds,
        seconds=settings.seconds,
        family={index: field.contenders[index].rival.family for index in tasks},
        tick=tick,
    )
    forms = [
        _form(case, which, one, samples.get(index), inputs[0])
        for index, one in enumerate(field.contenders)
    ]
    return {
        "case": case.name,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "which": which,
        "elements": case.elements,
        "bytes": case.moved_bytes(which),
        "rounds": max((len(taken) for taken in samples.values()), default=0),
        "copies": len(inputs),
        "inputs": cases.temperature(case, which, len(inputs), machine.cache_bytes(device)),
        "latency": case.latency,
        "probe_bytes": measure.probe_bytes(case.written_bytes),
        "probes": {name: _rounded(samples[name]) for name in field.probes},
        "forms": forms,
    }


def _form(
    case: Case, which: str, one: Contender, taken: list[float] | None, inputs: Inputs
) -> Form:
    weighed = one.loss if which == cases.BOTH and not case.latency else None
    return {
        "family": one.rival.family,
        "form": one.rival.form,
        "outcome": one.outcome,
        "why": one.why,
        "value_error": one.verdict.value_error if one.verdict else None,
        "gradient_error": one.verdict.gradient_error if one.verdict else None,
        "seconds": _rounded(taken) if taken else None,
        "saved_bytes": measure.saved_bytes(weighed, inputs) if weighed else None,
        "peak_bytes": measure.peak_bytes(weighed, inputs) if weighed else None,
    }


def _rounded(seconds: list[float]) -> list[float]:
    """Four digits, which is more than a clock is worth."""
    return [float(f"{value:.4g}") for value in seconds]


def run_case(
    case: Case,
    device: torch.device,
    settings: Settings,
    tick: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All passes of one case."""
    field = prepare(case, device, settings)
    repeat = settings.repeat if case.latency else 1
    return [row(case, which, field, settings, tick, repeat) for which in case.passes]


def chosen(suite: str, settings: Settings) -> list[Case]:
    """The cases that are measured."""
    return [case for case in cases.SUITES[suite] if settings.case in case.name]


def steps(suite: str, settings: Settings) -> int:
    """How often ``tick`` is called at most."""
    return settings.rounds * sum(len(case.passes) for case in chosen(suite, settings))


def run(
    suite: str,
    device: torch.device,
    settings: Settings | None = None,
    on_case: Callable[[str], None] = lambda name: None,
    tick: Callable[[], None] = lambda: None,
) -> Document:
    """Every case of a suite: ``"quick"``, ``"full"`` or ``"smoke"``."""
    settings = settings or SETTINGS[suite]

    def rows() -> Iterator[Row]:
        for case in chosen(suite, settings):
            on_case(case.name)
            yield from run_case(case, device, settings, tick)

    return document(suite, device, settings, rows())


def document(suite: str, device: torch.device, settings: Settings, rows: Iterable[Row]) -> Document:
    """What is saved: where the rows are from, and the rows, which are measured meanwhile."""
    made = machine.provenance() | {"rounds": settings.rounds, "seconds_a_row": settings.seconds}
    described = machine.describe(device)
    measured = list(rows)
    described["load_average_after"] = machine.load_average()
    return {
        "schema": SCHEMA,
        "made": made,
        "machine": described,
        "suite": suite,
        "rows": measured,
    }
