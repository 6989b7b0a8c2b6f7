"""pytest-benchmark over the cases and rivals of ``customloss._bench``.

One test is one pass of one case by one family. ``extra_info`` has what is needed to judge the time:
bytes, GB/s, percent of the roof, threads, and how wrong the answer is. An answer that fails the
gate is not timed: if it is ours the test fails, if it is a rival's the test is skipped.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from customloss._bench import cases, machine, measure, results, run
from customloss._bench.rivals import COMPILED, FAMILIES, OURS

# warnings of rivals and of the compiler are not errors of ours
pytestmark = pytest.mark.filterwarnings("default")


class Ready(NamedTuple):
    """A case with its inputs and judged forms, and what the memory was seen to do."""

    case: cases.Case
    field: run.Field
    rates: results.Rates | None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    suite = cases.SUITES[config.getoption("suite")]
    families = [
        name for name in FAMILIES if not (name == COMPILED and config.getoption("no_compile"))
    ]
    runs = [(case, which, name) for case in suite for which in case.passes for name in families]
    metafunc.parametrize(
        ("ready", "which", "family"),
        runs,
        indirect=["ready"],
        ids=[f"{case.name}-{which}-{name}".replace(" ", "_") for case, which, name in runs],
        scope="module",
    )


@pytest.fixture(scope="module")
def ready(request: pytest.FixtureRequest, device: torch.device) -> Ready:
    """Judges every implementation once per case; pytest keeps the tests of a case together."""
    case = request.param
    options = request.config
    compile = not options.getoption("no_compile")
    settings = run.SETTINGS[options.getoption("suite")]._replace(compile=compile)
    field = run.prepare(case, device, settings)
    if case.latency:
        return Ready(case, field, None)
    probes = measure.probes(device, case.written_bytes, len(field.inputs))
    seconds = measure.interleave(probes, field.inputs, rounds=11, seconds=5.0)
    rates = results.probed(measure.probe_bytes(case.written_bytes), seconds)
    return Ready(case, field, rates)


def _racer(ready: Ready, which: str, family: str, repeat: int) -> run.Contender:
    """The fastest right form of a family, after a short race of all of them."""
    forms = [one for one in ready.field.contenders if one.rival.family == family]
    able = [one for one in forms if one.loss is not None]
    if not able:
        whys = [one.why for one in forms if one.why] or [f"{family} does not race on this device"]
        (pytest.fail if family == OURS else pytest.skip)(whys[0])
    tasks = {index: measure.task(one.loss, which, repeat) for index, one in enumerate(able)}
    samples = measure.interleave(tasks, ready.field.inputs, rounds=5, seconds=5.0)
    return able[min(samples, key=lambda index: statistics.median(samples[index]))]


def _finished(work: Callable[[Any], Any], device: torch.device) -> Callable[[Any], Any]:
    """``work``, until the device is done with it: pytest-benchmark reads the clock of the host."""
    if device.type != "cuda":
        return work

    def until_done(prepared: Any) -> Any:
        result = work(prepared)
        torch.cuda.synchronize()
        return result

    return until_done


def test_pass(
    benchmark: Any,
    pytestconfig: pytest.Config,
    ready: Ready,
    which: str,
    family: str,
    device: torch.device,
    threads: int,
) -> None:
    case, inputs = ready.case, ready.field.inputs
    repeat = run.SETTINGS[pytestconfig.getoption("suite")].repeat if case.latency else 1
    racer = _racer(ready, which, family, repeat)
    assert racer.loss is not None
    assert racer.verdict is not None
    job = measure.task(racer.loss, which, repeat)
    rounds = pytestconfig.getoption("rounds")
    benchmark.group = f"{case.name}, {which}"
    turns = iter(range(1 << 30))

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        return (job.prepare(inputs[next(turns) % len(inputs)]),), {}

    work = _finished(job.run, device)
    if case.latency:
        benchmark.pedantic(work, args=(inputs[0],), rounds=rounds, iterations=repeat)
    else:
        benchmark.pedantic(work, setup=setup, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info.update(
        machine=machine.describe(device),
        family=family,
        form=racer.rival.form,
        threads=threads,
        elements=case.elements,
        bytes=case.moved_bytes(which),
        value_error=racer.verdict.value_error,
        gradient_error=racer.verdict.gradient_error,
    )
    if benchmark.stats is not None:
        _against_roof(benchmark, ready, which)
    if device.type == "cuda" and not case.latency:
        events = [measure.sample(job, inputs[i % len(inputs)]) for i in range(rounds)]
        benchmark.extra_info["event_seconds"] = list(results.spread(events))


def _against_roof(benchmark: Any, ready: Ready, which: str) -> None:
    median = benchmark.stats.stats.median
    moved = ready.case.moved_bytes(which)
    benchmark.extra_info["gbps"] = moved / median / 1e9
    if ready.rates is not None:
        share = 100 * moved / ready.rates.best / median
        benchmark.extra_info.update(ready.rates._asdict(), percent_of_roof=share)
