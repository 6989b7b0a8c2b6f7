"""The benchmark beside ``input.sum()`` says which cache its inputs lie in, and is right first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich")

from rich.console import Console
from typer.testing import CliRunner

from customloss import cli, reference
from customloss._bench import (
    cases,
    gate,
    machine,
    measure,
    report,
    results,
    rivals,
    roof,
    roof_table,
    run,
)

_CPU = torch.device("cpu")
_FAST = run.Settings(rounds=2, seconds=0.0, repeat=2)
_MIB = 1 << 20
_TWO_CORES = roof.Room((roof.Cache("L2", _MIB // 2, 2), roof.Cache("L3", 32 * _MIB, 1)), 6 << 30)


def _small_kinds() -> tuple[roof.Kind, ...]:
    """The kinds of the table, of parts that take no time."""

    def small(part: cases.Case) -> cases.Case:
        batch, classes, *space = part.shape
        return replace(part, shape=(batch, classes, *(4, 32, 8)[: len(space)]))

    return tuple(kind._replace(part=small(kind.part)) for kind in roof.KINDS)


def _text(document: run.Document, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(roof_table.renderable(document, width))
    return str(captured.get())


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch) -> run.Document:
    monkeypatch.setattr(roof, "KINDS", _small_kinds())
    return roof.measured(roof.SMALL, _FAST)


# ---- where -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes", "threads", "said"),
    [
        (_MIB // 4, 1, "in L2"),
        (_MIB // 4 + 1, 1, "in L3"),
        (_MIB // 2, 2, "in L2"),  # each thread has a cache of its own
        (16 * _MIB, 2, "in L3"),  # which is one for both
        (16 * _MIB + 1, 1, "partly in L3"),
        (128 * _MIB - 1, 1, "partly in L3"),
        (128 * _MIB, 2, "beyond L3"),
    ],
)
def test_where_inputs_lie(bytes: int, threads: int, said: str) -> None:
    assert roof.whereabouts(bytes, threads, _TWO_CORES.caches) == said


def _rows(room: roof.Room, threads: int = 2) -> list[tuple[str, list[int], str, int, int]]:
    return [
        (
            plan.case.name,
            list(plan.case.shape),
            roof.cache_of(plan, room),
            plan.threads,
            plan.copies,
        )
        for plan in roof.plans(room, threads, run.Settings())
    ]


def test_the_rows_of_a_small_cache() -> None:
    masks = "float32 + bool"
    rows = _rows(_TWO_CORES)
    assert [row[1:] for row in rows if row[0] == masks] == [
        ([1, 1, 51, 1024], "in L2", 1, 1),
        ([1, 1, 1024, 1024], "in L3", 1, 1),
        ([8, 1, 256, 1024], "in L3", 1, 1),
        ([8, 1, 256, 1024], "in L3", 2, 1),
        ([64, 1, 1024, 1024], "beyond L3", 1, 1),
        ([64, 1, 1024, 1024], "beyond L3", 2, 1),
    ]
    assert [row[1:4] for row in rows if row[0] == "4 labels float32"] == [
        ([1, 4, 2, 64, 64], "in L2", 1),
        ([7, 4, 16, 64, 64], "in L3", 1),
        ([7, 4, 16, 64, 64], "in L3", 2),
        ([2, 4, 192, 192, 192], "beyond L3", 1),
        ([2, 4, 192, 192, 192], "beyond L3", 2),
    ]
    assert {row[0] for row in rows} == {masks, "bfloat16 + bool", "4 labels float32"}


@pytest.mark.parametrize("threads", [1, 2, 48])
@pytest.mark.parametrize(
    "caches",
    [
        (roof.Cache("L2", 2 * _MIB, 1), roof.Cache("L3", 260 * _MIB, 1)),  # one large L3
        (roof.Cache("L2", _MIB, 48), roof.Cache("L3", 32 * _MIB, 6)),  # an L3 for eight cores
        (roof.Cache("L2", 16 * _MIB, 1),),  # no L3
        roof.SMALL.caches,
    ],
)
def test_every_row_lies_where_it_should(caches: tuple[roof.Cache, ...], threads: int) -> None:
    """In any processor: in each cache, and beyond what all caches of its threads hold."""
    last = caches[-1].name
    expected = {f"in {cache.name}" for cache in caches} | {f"beyond {last}"}
    room = roof.Room(caches, 64 << 30)
    plans = roof.plans(room, threads, run.Settings())
    for kind in roof.KINDS:
        own = [plan for plan in plans if plan.case.name == kind.part.name]
        found = {(roof.cache_of(plan, room), plan.threads) for plan in own}
        assert {where for where, _ in found} >= expected
        for count in {1, threads}:
            assert {(f"in {last}", count), (f"beyond {last}", count)} <= found
    keys = [(plan.case, plan.threads, plan.copies) for plan in plans]
    assert len(set(keys)) == len(keys)


def test_short_memory_bounds_inputs_and_the_check() -> None:
    room = _TWO_CORES._replace(memory=200 * _MIB)
    plans = roof.plans(room, 2, run.Settings())
    for plan in plans:
        assert roof.CHECK_BYTES * plan.case.elements <= room.memory
        assert roof.held(plan) <= room.memory
    assert any(plan.copies > 1 for plan in plans)
    none = _TWO_CORES._replace(memory=0)
    short = [row for row in _rows(none) if row[1] == [1, 1, 256, 1024]]
    assert ([1, 1, 256, 1024], "in L3", 1, 1) in [row[1:] for row in short]  # and does not lie


def test_the_room_of_this_machine() -> None:
    room = roof.room()
    counts = machine.cache_counts()
    assert [cache.size for cache in room.caches] == sorted(cache.size for cache in room.caches)
    for cache in room.caches:
        assert counts.get(cache.name, 1) == cache.number >= 1
    assert set(counts) == set(machine.cpu_caches())
    assert room.memory > 0


def test_caches_that_cores_share_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processors: an L2 for each, an L3 for two; this process may run on three of them."""
    for processor in range(4):
        pair = processor // 2 * 2
        for index, level, size, shared in (
            (0, "2", "512K", f"{processor}"),
            (1, "3", "32M", f"{pair}-{pair + 1}"),
        ):
            folder = tmp_path / f"cpu{processor}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (
                ("level", level),
                ("size", size),
                ("shared_cpu_list", shared),
                ("type", "Unified"),
            ):
                (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_PROCESSORS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert machine.cpu_caches() == {"L2": 512 << 10, "L3": 32 << 20}
    assert machine.cache_counts() == {"L2": 3, "L3": 2}


# ---- right first -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _small_kinds(), ids=lambda kind: kind.part.name)
def test_the_answer_of_equal_parts_is_that_of_the_whole(kind: roof.Kind) -> None:
    times = tuple(min(3, each) for each in kind.beyond)
    plan = roof.Plan(kind.part, times, 1)
    first = cases.make_inputs(kind.part, _CPU)
    inputs, right = roof.whole(plan, first, gate.expected(kind.part, first))
    assert tuple(inputs.input.shape) == plan.case.shape
    computed = gate.expected(plan.case, inputs)
    assert right.value == pytest.approx(computed.value, rel=1e-12)
    torch.testing.assert_close(right.gradient, computed.gradient, rtol=1e-9, atol=1e-15)


def _wrong_value(input: Tensor, target: Tensor) -> Tensor:
    return 1.1 * reference.soft_f1(input, target)


def _wrong_gradient(input: Tensor, target: Tensor) -> Tensor:
    loss = reference.soft_f1(input, target)
    return loss.detach() + 1.1 * (loss - loss.detach())


@pytest.mark.parametrize("wrong", [_wrong_value, _wrong_gradient])
def test_nothing_is_claimed_when_ours_is_wrong(
    monkeypatch: pytest.MonkeyPatch, wrong: rivals.Loss
) -> None:
    monkeypatch.setattr(rivals, "_ours", lambda case: wrong)
    monkeypatch.setattr(roof, "KINDS", _small_kinds()[:1])
    document = roof.measured(roof.SMALL, _FAST)
    for row in document["rows"]:
        assert results.times(row, rivals.OURS) is None
        assert row["probes"][roof.SUM]
    for text in (_text(document), roof_table.markdown(document, {})):
        assert report.WITHHELD in text
        assert text.count("×") == text.count("1.25×") + text.count(" × ")  # by bytes, and copies
        assert "customloss has no right answer in float32 + bool (value off by" in text


# ---- how ---------------------------------------------------------------------------------------


def test_a_row_is_measured_with_its_threads_copies_and_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int, int]] = []

    def sample(job: measure.Task, inputs: cases.Inputs) -> float:
        seen.append((torch.get_num_threads(), job.repeat, inputs.input.data_ptr()))
        job.run(job.prepare(inputs))
        return 1.0

    monkeypatch.setattr(measure, "sample", sample)
    monkeypatch.setattr(roof, "KINDS", _small_kinds()[2:])
    before = torch.get_num_threads()
    with measure.threads(2):
        plans = roof.plans(roof.SMALL, 2, _FAST)
        document = roof.measured(roof.SMALL, _FAST)
    assert torch.get_num_threads() == before
    each = (1 + _FAST.rounds) * 2  # the pass and the sum, once before the clock starts
    assert len(seen) == each * len(plans)
    for plan, row, start in zip(plans, roof_table.rows(document), range(0, len(seen), each)):
        taken = seen[start : start + each]
        assert {threads for threads, _, _ in taken} == {plan.threads} == {row["threads"]}
        assert {repeat for _, repeat, _ in taken} == {plan.repeat}
        assert len({place for _, _, place in taken}) == min(plan.copies, each)
    assert {plan.repeat for plan in plans} == {1, 2}  # beyond the caches, and in them


def test_every_row_has_a_sum_and_one_a_sigmoid(document: run.Document) -> None:
    rows = roof_table.rows(document)
    for row in rows:
        assert len(row["probes"][roof.SUM]) == row["rounds"] == _FAST.rounds
        assert row["probe_bytes"] == row["elements"] * (2 if row["dtype"] == "bfloat16" else 4)
    assert [row["threads"] for row in rows if roof.SIGMOID in row["probes"]] == [1]
    of_bytes = {row["case"]: row["bytes"] / row["probe_bytes"] for row in rows}
    assert of_bytes == {"float32 + bool": 1.25, "bfloat16 + bool": 1.5, "4 labels float32": 1.5}


def test_the_ratio_is_of_the_times_and_rates_are_of_the_bytes(document: run.Document) -> None:
    row = roof_table.rows(document)[0]
    form = results.standing(row, rivals.OURS)
    assert form is not None
    form["seconds"] = [2e-3, 4e-3, 9e-3]
    row["probes"] = {roof.SUM: [1e-3, 2e-3, 3e-3], roof.SIGMOID: [4e-3, 8e-3, 9e-3]}
    row |= {"bytes": 5_000_000, "probe_bytes": 4_000_000, "held": 5 << 20, "cache": "in L3"}
    text = roof_table.markdown(document, {})
    assert (
        "| float32 + bool | in L3 (5 MiB) with 1 thread | 4.00 ms (1.25 GB/s) | "
        "2.00 ms (2.00 GB/s) | 2.00× (2.00–2.80; 2.50) | 1.25× |"
    ) in text
    assert "customloss takes 0.50× (0.50–0.90; 0.71) the time of input.sigmoid()." in text


# ---- files and tables --------------------------------------------------------------------------


def test_a_saved_roof_can_be_read_and_shown(document: run.Document, tmp_path: Path) -> None:
    path = tmp_path / "roof.json"
    results.save(document, path)
    loaded = results.load(path)
    assert loaded == json.loads(json.dumps(document))
    assert loaded["suite"] == roof.SUITE
    assert loaded["made"]["commit"]
    assert loaded["machine"]["cache_counts"].keys() == loaded["machine"]["caches"].keys()
    assert roof_table.markdown(loaded, {}) == roof_table.markdown(document, {})


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_table_fits_a_terminal(document: run.Document, width: int) -> None:
    text = _text(document, width)
    assert "…" not in text.partition("┏")[2].partition("└")[0]
    said = " ".join(text.split())
    for words in (
        "in L2",
        "in L3",
        "beyond L3",
        "with 1 thread",
        "GB/s",
        "1.25×",
        "An input in a cache",
    ):
        assert words in said
    assert report.heading(document).partition(" · ")[0] in said


def test_a_roof_is_written_into_markdown_like_any_result(
    document: run.Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    import table

    monkeypatch.setattr(table, "HERE", tmp_path)
    results.save(document, tmp_path / "results" / "here" / "roof.json")
    text = "<!-- table: here/roof.json -->\nold\n<!-- /table -->\n"
    filled = table.filled(text)
    assert filled == text.replace("old", roof_table.markdown(document, {}))
    made: Any = document["made"] | {"memory": "huge-pages"}
    other = run.Document(**(document | {"made": made}))  # type: ignore[typeddict-item]
    results.save(other, tmp_path / "results" / "here" / "roof-huge-pages.json")
    assert table.filled(text).count(f"{roof_table.TITLE}:") == 2


# ---- the command -------------------------------------------------------------------------------


def _invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *arguments], env={"COLUMNS": "120"})


def test_the_command_saves_a_roof_and_shows_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roof, "KINDS", _small_kinds())
    monkeypatch.chdir(tmp_path)
    ran = _invoke("--roof", "--smoke", "--rounds", "2", "--case", "bfloat16")
    assert ran.exit_code == 0, ran.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["roof.json"]
    assert "bfloat16 + bool in L2 ...\n" in ran.output
    document = results.load(tmp_path / "out" / "roof.json")
    assert {row["case"] for row in document["rows"]} == {"bfloat16 + bool"}
    assert "a smoke test, as if the caches were small: these are no measurements" in ran.output
    shown = _invoke("--table", "out/roof.json")
    assert shown.exit_code == 0
    assert shown.output.strip() in ran.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--full",), "--roof contradicts --full; leave one out"),
        (("--against", "eager"), "--roof contradicts --against; leave one out"),
        (("--device", "cuda"), "--roof contradicts --device cuda; leave one out"),
        (("--case", "dogs"), "--case: none of these contains 'dogs'"),
    ],
)
def test_what_is_no_roof_is_said_before_the_clock_starts(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roof, "measured", pytest.fail)
    ran = _invoke("--roof", *arguments)
    assert isinstance(ran.exception, SystemExit)
    assert str(ran.exception).startswith(f"customloss: {said}")
