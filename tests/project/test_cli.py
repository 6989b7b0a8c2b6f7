"""Every command of the command line runs, writes what it says, and names the extra it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import customloss
from customloss import cli
from customloss._backends import libraries
from customloss._bench import cases, report, rivals, roof, run

_RUNNER = CliRunner()


def _output(*arguments: str) -> str:
    result = _RUNNER.invoke(cli.app, arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


def test_info_shows_the_build() -> None:
    output = _output("info")
    for name in ("customloss", "torch", "_C", "backend"):
        assert name in output


def test_a_table_that_is_none(tmp_path: Path) -> None:
    """One line says what is wrong with the file."""
    other, broken, old = (tmp_path / f"{name}.json" for name in ("other", "broken", "old"))
    other.write_text('{"a": 1}')
    broken.write_text("{")
    old.write_text('{"machine": {}, "rows": []}')
    for path, text in (
        (tmp_path / "nope.json", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (other, "expected a JSON file that customloss bench saved"),
        (broken, "expected a JSON file that customloss bench saved"),
        (
            old,
            "another version of customloss saved the file, with schema 1; this is version "
            f"{customloss.__version__}, which reads schema 2: measure again, or use that version",
        ),
    ):
        result = _RUNNER.invoke(cli.app, ("bench", "--table", str(path)))
        assert isinstance(result.exception, SystemExit)
        assert str(result.exception).startswith(f"customloss: --table {path}: {text}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--json", "{file}/bench.json"), "--json: cannot write"),
        (("--memory", "big"), "--memory: expected default or huge-pages or jemalloc, got 'big'"),
        (("--against", "compile", "--no-compile"), "--against compile contradicts --no-compile"),
        (("--against", "kornia"), "--against kornia: not installed (pip install kornia)"),
        (("--full",), "--smoke contradicts --full"),
        (("--table", "a.json"), "--table contradicts --smoke; leave one out"),
        (("--json", "plain.png"), "--json: expected a name that ends in .json, got plain.png"),
        (("--against", "keras"), "--against: expected one of eager, compile, monai, nnunet, smp"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_clock_starts(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a file"
    file.touch()
    missing = {"kornia": "not installed (pip install kornia)"}
    monkeypatch.setattr(rivals, "missing", missing.get)
    monkeypatch.setattr(run, "run", pytest.fail)
    given = [argument.format(file=file) for argument in arguments]
    default = [] if "--json" in arguments else ["--json", str(tmp_path / "bench.json")]
    result = _RUNNER.invoke(cli.app, ["bench", "--smoke", *given, *default])
    assert isinstance(result.exception, SystemExit)
    assert str(result.exception).startswith(f"customloss: {said}")
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.parametrize("what", [(), ("--roof",)])
def test_a_case_that_is_none_is_told_those_there_are_and_makes_no_folder(
    what: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run", pytest.fail)
    place = tmp_path / "new" / "bench.json"
    given = ["bench", "--smoke", *what, "--case", "dogs", "--json", str(place)]
    result = _RUNNER.invoke(cli.app, given)
    assert isinstance(result.exception, SystemExit)
    first, *listed = str(result.exception).splitlines()
    assert first == "customloss: --case: none of these contains 'dogs':"
    names = [name.strip()[1:-1] for name in listed]
    kinds = [kind.part.name for kind in roof.KINDS]
    assert names == (kinds if what else [case.name for case in cases.SUITES["smoke"]])
    assert not place.parent.exists()


def test_a_result_is_saved_before_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise UnicodeEncodeError("ascii", "×", 0, 1, "planted")

    monkeypatch.setattr(report, "renderable", broken)
    path = tmp_path / "bench.json"
    options = ("--smoke", "--no-compile", "--against", "eager", "--rounds", "1")
    result = _RUNNER.invoke(cli.app, ["bench", *options, "--json", str(path)])
    assert isinstance(result.exception, UnicodeEncodeError)
    assert json.loads(path.read_text())["rows"]


def test_bench_saves_json_and_png_and_shows_them_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "bench.json"
    output = _output("bench", "--smoke", "--no-compile", "--rounds", "2", "--json", str(path))
    assert "of roof" in output
    assert re.search(rf"\b{torch.get_num_threads()} threads?\b", output)
    assert path.with_suffix(".png").stat().st_size > 10_000
    document = json.loads(path.read_text())
    assert {row["which"] for row in document["rows"]} == {
        "forward",
        "backward",
        "forward+backward",
    }
    shown = _output("bench", "--table", str(path))
    assert output.startswith("image float32 ...\n")  # progress, where there is no terminal
    assert shown.strip()[:400] in output


def test_a_result_in_the_default_place_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("bench", "--smoke", "--no-compile", "--against", "eager", "--rounds", "1")
    _output(*options, "--case", "64 logits")
    first = Path("out/bench.json").read_text()
    assert "the result that was in out/bench.json is now in" in _output(
        *options, "--case", "64 logits"
    )
    (kept,) = Path("out").glob("*-bench.json")
    assert kept.read_text() == first


def test_demo_trains_and_saves(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    output = _output("demo", "--seeds", "1", "--steps", "2", "--no-bench", "--out", str(tmp_path))
    assert "one seed says nothing" in output
    assert (tmp_path / "training.png").stat().st_size > 10_000
    document = json.loads((tmp_path / "training.json").read_text())
    names = [problem["name"] for problem in document["problems"]]
    assert names == ["diabetes > P90", "diabetes > P80", "diabetes > P50", "digits"]


def test_demo_says_which_seeds(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    options = ("--seeds", "2", "--first-seed", "7", "--steps", "1", "--no-bench")
    assert "over seeds 7 to 8" in _output("demo", *options, "--out", str(tmp_path))
    document = json.loads((tmp_path / "training.json").read_text())
    assert {tuple(problem["seeds"]) for problem in document["problems"]} == {(7, 8)}


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_a_message_names_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import customloss.cli"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"needs {missing}" in ran.stderr
    assert "pip install --no-build-isolation '.[demo,bench]'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_info_needs_no_extra(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from customloss.__main__ import main; main()"
    )
    for command, prints in (("info", True), ("bench", False)):
        ran = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
        assert (ran.returncode == 0) == prints, ran.stderr
        assert ("backend" in ran.stdout) == prints


def test_cuda_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this torch sees a GPU")
    result = _RUNNER.invoke(cli.app, ["bench", "--smoke", "--device", "cuda"])
    assert result.exit_code == 1
    assert "no CUDA device" in result.output


@pytest.mark.parametrize("command", [["bench", "--smoke"], ["demo", "--steps", "1"]])
def test_no_fallback_is_timed_under_our_name(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(libraries.status, "_C", "not built: no compiler")
    result = _RUNNER.invoke(cli.app, command)
    assert result.exit_code == 1
    assert "the compiled kernels are not loaded" in result.output
    assert "not built: no compiler" in result.output
