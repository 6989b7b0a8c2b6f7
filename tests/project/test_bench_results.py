"""What the benchmark makes of its samples: ratios, verdicts, tables and files."""

from __future__ import annotations

import json
import os
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")

from rich.console import Console

import customloss
from customloss._bench import (
    figure,
    libraries,
    machine,
    report,
    results,
    run,
)

_CPU = torch.device("cpu")
_FAST = run.Settings(rounds=2, seconds=0.0, repeat=2, compile=False)


# ---- numbers -----------------------------------------------------------------------------------


def _form(family: str, seconds: list[float] | None, **other: Any) -> Any:
    blank: Any = dict.fromkeys(results.Form.__annotations__)
    outcome = "raced" if seconds else "absent"
    return blank | {"family": family, "seconds": seconds, "outcome": outcome, "form": "f"} | other


def _row(seconds: dict[str, list[float]], case: str = "a", which: str = "forward") -> Any:
    forms = [_form(family, taken) for family, taken in seconds.items()]
    named = {"case": case, "which": which, "inputs": "cold", "rounds": 3, "latency": False}
    return named | {"forms": forms, "bytes": 1, "probe_bytes": 1} | {"probes": {}}


def test_ratios_are_paired_and_means_are_of_all() -> None:
    found = results.ratio([2.0, 20.0, 4.0, 40.0], [1.0, 10.0, 2.0, 10.0])
    assert found.median == 2.0
    assert found.mean == pytest.approx(66 / 23)


def test_the_roof_is_the_better_of_both_probes() -> None:
    """4000 bytes read in 4 s, or read and written in 5 s: the copy moves more a second."""
    probes = {"read": [4.0, 4.0, 9.0], "copy": [5.0, 5.0, 1.0]}
    assert results.probed(4000, probes) == (1000, 1600)
    row = _row({"customloss": [10.0]}) | {"bytes": 8000, "probe_bytes": 4000, "probes": probes}
    assert results.roof_seconds(row) == 5.0
    assert results.roof_share(row, "customloss") == 0.5
    assert results.roof_share(row, "eager") is None
    assert results.roof_seconds(row | {"latency": True}) is None


def test_the_fastest_right_form_stands_for_its_family() -> None:
    row = _row({"customloss": [1.0]})
    wrong = {"outcome": "wrong", "why": "value off by 1"}
    row["forms"] += [_form("eager", [3.0, 3.0], form="slow"), _form("eager", None, **wrong)]
    row["forms"] += [_form("eager", [2.0, 9.0, 2.0], form="quick"), _form("smp", None, **wrong)]
    assert results.standing(row, "eager")["form"] == "quick"
    row["forms"] += [_form("eager", [1.0], form="sat out")]  # its rounds may have been lucky
    assert results.standing(row, "eager")["form"] == "quick"
    assert results.standing(row, "smp")["outcome"] == "wrong"
    assert results.standing(row, "kornia") is None


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([1.01] * 9 + [0.5], "faster"),
        ([1.01] * 6 + [0.5], "level"),
        ([2.0] * 6 + [0.5], "unsettled"),
        ([0.99] * 9 + [2.0], "slower"),
        ([0.9, 0.9, 1.04, 1.2, 1.3], "level"),
        ([0.9, 0.9, 0.96, 1.2, 1.3], "level"),
        ([0.4, 0.4, 0.58, 1.6, 1.6], "unsettled"),
        ([2.0] * 4, "unsettled"),
        ([1.0], "unsettled"),
    ],
)
def test_level_is_near_one_and_the_rest_is_unsettled(rounds: list[float], said: str) -> None:
    assert results.judged(rounds) == said


def test_the_verdict_names_every_row_whose_median_is_below_one() -> None:
    ours = [1.0] * 5
    rows = [
        _row({"customloss": ours, "eager": [2.0] * 5, "MONAI": [3.0] * 5}, "a"),
        _row({"customloss": ours, "eager": [0.9, 0.9, 0.98, 1.1, 1.2]}, "b"),
        _row({"customloss": ours, "MONAI": [0.5] * 5}, "c"),
        _row({"customloss": ours, "eager": [0.5, 0.5, 0.6, 8.0, 8.0]}, "d"),
        _row({"customloss": ours}, "e"),
    ]
    assert report.verdict({"rows": rows}) == (  # type: ignore[typeddict-item]
        "Against the fastest other right answer of each of 4 rows, customloss is faster in 1 "
        "(nine rounds in ten agree), slower in 1, level in 1 (the rounds disagree, and the median "
        "is within 5 %) and unsettled in 1. The ratio is 0.79× in the median row, and 1.51× as a "
        "ratio of the means. The median is below 1 in 3 of them: c forward (0.50× against MONAI), "
        "d forward (0.60× against eager), b forward (0.98× against eager)."
    )
    assert report.verdict({"rows": rows[:1]}).endswith(  # type: ignore[typeddict-item]
        "The median is below 1 in none of them, and least in a forward (2.00× against eager)."
    )


# ---- files -------------------------------------------------------------------------------------


def test_a_saved_result_can_be_read_and_diffed(tmp_path: Path) -> None:
    document = run.run("smoke", _CPU, _FAST)
    path = tmp_path / "new" / "bench.json"
    results.save(document, path)
    assert results.load(path) == json.loads(json.dumps(document))
    text = path.read_text()
    assert '"shape": [2, 1, 32, 32]' in text
    made = document["made"]
    assert made["commit"]
    assert made["command"].startswith("customloss")
    assert set(document["machine"]["caches"]) <= {"L1d", "L2", "L3", "L4"}
    assert set(made["libraries"]) == set(libraries.versions())
    for row in document["rows"]:
        for form in row["forms"]:
            assert (form["value_error"] is not None) == (form["outcome"] in ("raced", "wrong"))


def test_other_memory_is_shown_beside_and_must_be_of_the_same_kind(tmp_path: Path) -> None:
    document = run.run("smoke", _CPU, _FAST)
    path, other = tmp_path / "bench.json", tmp_path / "bench-huge-pages.json"
    results.save(document, path)
    made = document["made"] | {"memory": "huge-pages"}
    results.save(document | {"made": made}, other)  # type: ignore[typeddict-item]
    beside = results.in_other_memory(path)
    assert list(beside) == ["huge-pages"]
    text = report.markdown(document, beside)
    assert "| case | pass | default | huge-pages |" in text
    assert f"huge-pages: {report.origin(beside['huge-pages'])}. Against the fastest" in text
    assert "With huge-pages for everybody: Against the fastest" in report.headline(document, beside)
    results.save(document | {"made": made}, tmp_path / "bench-more.json")  # type: ignore[typeddict-item]
    with pytest.raises(results.NotAResult, match=r"bench-more\.json is one more with huge-pages"):
        results.in_other_memory(path)
    made = made | {"commit": "another"}
    results.save(document | {"made": made}, other)  # type: ignore[typeddict-item]
    with pytest.raises(results.NotAResult, match=r"pages\.json is of another, bench"):
        results.in_other_memory(path)


def test_a_narrow_terminal_names_every_case_and_the_fastest_other() -> None:
    document = run.run("smoke", _CPU, _FAST)
    for width in (80, 100, 139, 160):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(report.renderable(document, width))
        text = captured.get()
        assert ("vs fastest other" in text) == (width < report.WIDE)
        for row in document["rows"]:
            assert row["case"].split()[0] in text


def test_a_result_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"rows": [], "suite": "quick"}')
    said = f"schema 1; this is version {customloss.__version__}, which reads schema 2: measure"
    with pytest.raises(results.NotAResult, match=f"^another version of .* {said}"):
        results.load(path)
    path.write_text('{"rows": [], "schema": 3, "machine": {"customloss": "9.9"}}')
    said = f"^version 9.9 of .* schema 3; this is version {customloss.__version__}, .* schema 2: "
    with pytest.raises(results.NotAResult, match=said):
        results.load(path)


def test_an_older_result_is_kept_beside_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert results.set_aside(path) is None
    path.write_text("older")
    path.with_suffix(".png").write_text("its figure")
    os.utime(path, (0, datetime(2026, 3, 4, 5, 6, 7).timestamp()))
    kept = results.set_aside(path)
    assert kept == tmp_path / "20260304-050607-bench.json"
    assert kept.read_text() == "older" and not path.exists()
    assert kept.with_suffix(".png").read_text() == "its figure"
    assert not path.with_suffix(".png").exists()


@pytest.mark.parametrize("latency", [False, True])
def test_a_picture_of_one_kind_of_row_has_no_warning(latency: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    case = "64 logits" if latency else "image float32"
    document = run.run("smoke", _CPU, _FAST._replace(case=case))
    assert {row["latency"] for row in document["rows"]} == {latency}
    with warnings.catch_warnings(action="error"):
        figure.draw(document, tmp_path / "bench.png")


def test_a_rival_that_is_missing_is_named_below_the_tables() -> None:
    row = _row({"customloss": [1.0], "eager": [2.0]})
    row["forms"].append(_form("kornia", None, why="class numbers only"))
    row["forms"].append(_form("kornia", None, why="not installed"))
    row["forms"].append(_form("kornia", None, why="a Dice per sample only"))
    document: Any = {"rows": [row]}
    lines = report.absences(document)
    assert "kornia is absent: not installed" in lines
    assert "MONAI is absent: left out by the command" in lines


def test_a_gap_in_the_tables_has_its_reasons_below() -> None:
    rows = [
        _row({"customloss": [1.0], "kornia": [2.0]}),
        *(_row({"customloss": [1.0]}) for _ in range(3)),
    ]
    for row, why in zip(rows[1:], ("class numbers only", "class numbers only", "too wide")):
        row["forms"] = [*row["forms"], _form("kornia", None, why=why)]
    document: Any = {"rows": rows}
    assert "Where kornia has a –: class numbers only (2 rows); too wide (1 row)" in report.absences(
        document
    )


def test_results_are_kept_in_a_folder_named_after_the_processor() -> None:
    for cpu, kernels, folder in (
        ("Intel(R) Xeon(R) Processor", "_C, avx512", "cpu-intel-xeon-avx512-2-threads"),
        ("AMD EPYC", "_C, avx2", "cpu-amd-epyc-avx2-2-threads"),
        ("AMD EPYC 9004 32-Core Processor", "fallback", "cpu-amd-epyc-9004-32-core-2-threads"),
    ):
        assert machine.kind({"cpu": cpu, "kernels": kernels, "threads": 2}) == folder
