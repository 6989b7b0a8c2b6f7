"""The benchmark checks answers before it times them, and times all of them alike."""

from __future__ import annotations

import ctypes.util
import gc
import itertools
import os
import subprocess
import sys
import time
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")

from rich.console import Console

import customloss
from customloss import reference
from customloss._bench import (
    cases,
    gate,
    libraries,
    measure,
    memory,
    report,
    results,
    rivals,
    run,
)

_CPU = torch.device("cpu")
_FAST = run.Settings(rounds=2, seconds=0.0, repeat=2, compile=False)


def _wrong_value(input: Tensor, target: Tensor) -> Tensor:
    return 1.1 * reference.soft_f1(input, target)


def _wrong_gradient(input: Tensor, target: Tensor) -> Tensor:
    loss = reference.soft_f1(input, target)
    return loss.detach() + 1.1 * (loss - loss.detach())


def _nan_gradient(input: Tensor, target: Tensor) -> Tensor:
    loss = reference.soft_f1(input, target)
    return loss.detach() + float("nan") * (loss - loss.detach()).nan_to_num(0.0)


def _text(document: run.Document) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report.renderable(document))
    return str(captured.get())


class _Told(torch.autograd.Function):
    """Returns what it was told: the fastest rival there can be, and a right one."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad, None, None


def _told(case: cases.Case) -> rivals.Loss:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    value = torch.tensor(right.value, dtype=case.dtype)
    gradient = (right.gradient / inputs.scale).to(case.dtype)
    return lambda input, target: _Told.apply(input, value, gradient)


def _slowly(loss: Any) -> rivals.Loss:
    """So slow that no noise of a machine makes it look fast."""

    def slow(input: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.05)
        value: Tensor = loss(input, target)
        return value

    return slow


@pytest.mark.parametrize("wrong", [_wrong_value, _wrong_gradient, _nan_gradient])
def test_no_speedup_is_shown_when_ours_is_wrong(
    monkeypatch: pytest.MonkeyPatch, wrong: rivals.Loss
) -> None:
    monkeypatch.setattr(rivals, "_ours", lambda case: wrong)
    document = run.run("smoke", _CPU, _FAST)
    for row in document["rows"]:
        assert all(results.speedup(row, family) is None for family in rivals.FAMILIES)
        assert results.times(row, rivals.OURS) is None
    for text in (_text(document), report.markdown(document, {})):
        assert "×" not in text
        assert report.WITHHELD in text
        assert "customloss has no right answer in image float32 (value off by" in text
        assert "No speed-up is claimed" in text


def test_a_value_that_is_nan_without_autograd_alone_is_wrong() -> None:
    def loss(input: Tensor, target: Tensor) -> Tensor:
        value = reference.soft_f1(input, target)
        return value if torch.is_grad_enabled() else value * float("nan")

    inputs = cases.make_inputs(cases.SMOKE[0], _CPU)
    assert not gate.check(loss, inputs, gate.expected(cases.SMOKE[0], inputs)).passed


def test_a_faster_rival_and_a_wrong_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI is planted as the fastest that can be, smp as one that is wrong by a tenth."""
    monkeypatch.setattr(rivals, "_ours", lambda case: _slowly(torch.ops.customloss.soft_f1))
    monkeypatch.setattr(libraries, "monai", _told)
    monkeypatch.setattr(libraries, "smp", lambda case: _wrong_value)
    monkeypatch.setattr(libraries, "smp_in_float64", lambda case: _wrong_value)
    monkeypatch.setattr(libraries, "smp_of_probabilities", lambda case: _wrong_value)
    case = cases.SMOKE[0]
    monkeypatch.setitem(cases.SUITES, "smoke", (cases.replace(case, passes=("forward",)),))
    settings = run.Settings(
        rounds=5, seconds=60.0, compile=False, families=("eager", "MONAI", "smp")
    )
    document = run.run("smoke", _CPU, settings)
    (row,) = document["rows"]
    ratio = results.speedup(row, "MONAI")
    assert ratio is not None
    assert ratio.p90 < 1
    found = results.closest(row)
    assert found is not None
    assert found.family in ("MONAI", rivals.EAGER)  # both are right, and far faster
    assert results.speedup(row, "smp") is None
    said = report.verdict(document)
    assert "faster in 0 (nine rounds in ten agree), slower in 1, level in 0" in said
    assert "The median is below 1 in 1 of them: image float32 forward (0." in said
    assert f"× against {found.family})" in said
    assert "slower in 1, level in 0" in report.headline(document, {})
    for text in (_text(document), report.markdown(document, {})):
        assert "smp has no right answer in image float32 (value off by 1.0e-01" in text.replace(
            "\n", " "
        )
    assert results.speedup(row, rivals.EAGER) is not None
    assert results.speedup(row, rivals.OURS) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_rival_that_fails_is_a_result_and_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fails(case: cases.Case) -> rivals.Loss:
        raise kind("no compiler\nand more")

    monkeypatch.setattr(libraries, "monai", fails)
    row = run.run_case(cases.SMOKE[0], _CPU, _FAST)[0]
    found = results.standing(row, "MONAI")
    assert found is not None
    assert (found["outcome"], found["why"]) == ("failed", f"{kind.__name__}: no compiler")
    monkeypatch.setattr(rivals, "_ours", fails)
    with pytest.raises(kind, match="no compiler"):
        run.run_case(cases.SMOKE[0], _CPU, _FAST)


def test_all_forms_race_in_every_round() -> None:
    row = run.run_case(cases.SMOKE[0], _CPU, _FAST)[0]
    eager = [form for form in row["forms"] if form["family"] == rivals.EAGER]
    raced = [form for form in eager if form["outcome"] == "raced"]
    assert len(raced) > 1
    assert {len(form["seconds"] or ()) for form in raced} == {_FAST.rounds}


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_the_gate_agrees_with_the_reference(case: cases.Case) -> None:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    double = inputs.input.detach().double().requires_grad_()
    activation = "sigmoid" if case.labels is None else "softmax"
    value = reference.soft_f1(
        double, inputs.target, activation=activation, samplewise=case.samplewise
    )
    if case.labels is not None and case.beside:
        value = value + torch.nn.functional.cross_entropy(double, inputs.target.long())
    elif case.beside:
        p, t = double.sigmoid(), inputs.target
        right_p = torch.where(t, p, 1 - p)
        gamma = 2 if case.beside == "focal" else 0
        value = value - ((1 - right_p) ** gamma * right_p.log()).mean()
    (gradient,) = torch.autograd.grad(inputs.scale * value, double)
    assert right.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(right.gradient, gradient, rtol=1e-10, atol=0)
    assert gate.check(rivals.rivals(_CPU, compile=False)[0].build(case), inputs, right).passed


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float32, 5, 9), (torch.bfloat16, 3, 5)]
)
def test_bytes_of_an_element(dtype: torch.dtype, forward: int, backward: int) -> None:
    case = cases.Case("", (1000,), dtype)
    moved = [case.moved_bytes(which) / 1000 for which in cases.PASSES]
    assert moved == [forward, backward, forward + backward]


def test_inputs_that_rotate_hold_the_same_numbers_and_outgrow_the_cache() -> None:
    case = cases.SMOKE[1]
    count = cases.copies_needed(case, cache_bytes=2 * case.read_bytes)
    copies = cases.copies(cases.make_inputs(case, _CPU), count)
    assert count == 6
    assert len({each.input.data_ptr() for each in copies}) == count
    for each in copies:
        assert torch.equal(each.input, copies[0].input)
        assert each.input.stride() == each.target.stride() == copies[0].input.stride()


def test_a_row_says_whether_its_inputs_were_cold() -> None:
    case = cases.SMOKE[1]
    cache = 2 * case.read_bytes
    assert cases.temperature(case, "forward", 6, cache) == "cold"
    assert cases.temperature(case, "backward", 6, cache) == "after forward"
    assert cases.temperature(case, "forward", 5, cache) == "warm"
    assert cases.copies_needed(cases.SMOKE[-1], cache) == 1
    assert cases.temperature(cases.SMOKE[-1], "forward", 1, cache) == "warm"


def test_rounds_are_shuffled_and_no_copy_is_used_twice_in_a_turn() -> None:
    seen: list[tuple[str, int]] = []
    case = cases.SMOKE[0]
    inputs = cases.copies(cases.make_inputs(case, _CPU), 5)
    places = {id(each): index for index, each in enumerate(inputs)}

    def task(name: str) -> measure.Task:
        return measure.Task(lambda given: seen.append((name, places[id(given)])), lambda _: None)

    names = ["a", "b", "c", "d"]
    tasks = {name: task(name) for name in names}
    samples = measure.interleave(tasks, inputs, rounds=60, seconds=60.0)
    assert {len(taken) for taken in samples.values()} == {60}
    used = [place for _, place in seen]
    assert used == [index % 5 for index in range(len(seen))]  # always the one used longest ago
    order = [name for name, _ in seen[len(names) :]]
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(sorted(each) == names for each in rounds)
    pairs = {pair for each in rounds for pair in itertools.pairwise(each)}
    assert len(pairs) == 12  # everyone follows everyone else
    assert len({(name, place) for name, place in seen}) == 20  # and gets every copy


def test_who_is_far_behind_its_family_sits_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After five rounds; never the fastest of a family, nor a probe, which has none."""
    monkeypatch.setattr(measure, "sample", lambda job, inputs: job.run(None))
    seconds = {"a": 1.0, "a slow": 2.1, "b": 8.0, "b slow": 30.0, "b near": 15.0, "probe": 99.0}
    inputs = cases.copies(cases.make_inputs(cases.SMOKE[0], _CPU), 2)
    tasks = {
        name: measure.Task(lambda given: given, lambda _, own=own: own)
        for name, own in seconds.items()
    }
    family = {name: name[0] for name in seconds if name != "probe"}
    samples = measure.interleave(tasks, inputs, rounds=8, seconds=60.0, family=family)
    counts = {name: len(taken) for name, taken in samples.items()}
    assert counts == {"a": 8, "a slow": 5, "b": 8, "b slow": 5, "b near": 8, "probe": 8}
    once = {"a": [1.0, 1.0], "a mixed": [3.0, 1.9]}
    assert not measure.far_behind(once, {"a": "a", "a mixed": "a"})


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from /proc (Linux)"
)
def test_the_peak_of_a_step_has_its_gradient_even_if_one_was_kept() -> None:
    inputs = cases.make_inputs(cases.Case("large", (1 << 22, 1), torch.float32), _CPU)
    gradient = inputs.input.numel() * inputs.input.element_size()
    for _ in range(2):
        peak = measure.peak_bytes(torch.ops.customloss.soft_f1, inputs)
        assert peak is not None
        assert peak > 0.9 * gradient


def test_saved_bytes_leave_out_the_callers_tensors() -> None:
    inputs = cases.make_inputs(cases.SMOKE[0], _CPU)
    ours = measure.saved_bytes(torch.ops.customloss.soft_f1.default, inputs)
    eager = measure.saved_bytes(rivals.formula_sums, inputs)
    assert ours <= 64
    assert eager >= inputs.input.nbytes


def test_what_the_reference_saves_is_counted() -> None:
    """Without kernels, the reference takes a gradient inside of its forward pass."""
    inputs = cases.make_inputs(cases.SMOKE[0], _CPU)
    with customloss.backend("reference"):
        saved = measure.saved_bytes(torch.ops.customloss.soft_f1.default, inputs)
    assert saved > 0


def test_counting_what_is_saved_keeps_nothing() -> None:
    """A tensor that a hook keeps with its graph is never freed, and a benchmark has many."""
    inputs = cases.make_inputs(cases.SMOKE[0], _CPU)
    made: list[weakref.ref[Tensor]] = []

    def loss(input: Tensor, target: Tensor) -> Tensor:
        p = input.sigmoid()
        made.append(weakref.ref(p))
        return p.sum()

    assert measure.saved_bytes(loss, inputs) == inputs.input.nbytes
    gc.collect()
    assert made[0]() is None


# ---- memory ------------------------------------------------------------------------------------


def test_memory_is_chosen_for_the_whole_process() -> None:
    """A process that is started for a kind of memory has it; a wish that fails is one line."""
    code = (
        "from customloss._bench.memory import Memory, current, enter; "
        "enter(Memory(__import__('sys').argv[1])); import os; "
        "print(current().value, os.environ.get('CUSTOMLOSS_GRADIENT_CACHE'))"
    )
    for wanted in memory.Memory:
        if wanted is memory.Memory.jemalloc and ctypes.util.find_library("jemalloc") is None:
            continue
        ran = subprocess.run(
            [sys.executable, "-c", code, wanted.value],
            capture_output=True,
            text=True,
            env=memory.environment(wanted),
        )
        kept = None if wanted is memory.Memory.default else "0"
        assert ran.stdout.strip() == f"{wanted.value} {kept}", ran.stderr
    lying = memory.environment(memory.Memory.default) | {"CUSTOMLOSS_BENCH_MEMORY": "huge-pages"}
    ran = subprocess.run(
        [sys.executable, "-c", code, "huge-pages"], capture_output=True, text=True, env=lying
    )
    assert ran.stderr.strip().startswith("customloss: --memory huge-pages: the process was started")


def test_without_jemalloc_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(SystemExit, match="no libjemalloc was found; install it"):
        memory.environment(memory.Memory.jemalloc)


def test_committed_tables_are_up_to_date() -> None:
    pytest.importorskip("sklearn")
    import table

    assert table.main(["--check"]) == 0
