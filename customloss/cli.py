"""The command line: ``customloss demo``, ``customloss bench`` and ``customloss info``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch

EXTRA = "pip install '.[demo]'    (in a checkout of the repository)"


def _need(module: str) -> Any:
    """Imports a module of the extra, or exits with a message that names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise SystemExit(
            f"customloss: this command needs {missing}, which is not installed.\n    {EXTRA}"
        ) from None


for _name in ("typer", "rich"):
    _need(_name)

import typer  # noqa: E402
from rich import progress as bars  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

app = typer.Typer(
    help="Fused F-measure losses for PyTorch: see them train, see them run, see what is installed.",
    no_args_is_help=True,
    add_completion=False,
)


class Device(str, Enum):
    """Where to benchmark."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Out = Annotated[Path, typer.Option(help="Folder for the PNG and JSON files.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of the benchmark.")]
Compile = Annotated[bool, typer.Option(help="Race against torch.compile, too.")]


def _console() -> Console:
    return Console(highlight=False)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description:<24}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        console=console,
        transient=True,
    )


# ---- demo ------------------------------------------------------------------------------------


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="How often the data are split anew.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of these seeds.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0: enough of them.")] = 0,
    bench: Annotated[bool, typer.Option(help="Benchmark after training.")] = True,
    out: Out = Path("out"),
    threads: Threads = 2,
    compile: Compile = True,
) -> None:
    """Train with BCE, soft-F1 and -log F1 on small data, then benchmark the operator."""
    for module in ("sklearn", "matplotlib"):
        _need(module)
    console = _console()
    console.rule("Training: does it help?")
    with _threads(1):  # the last bits of a product of matrices depend on the number of threads
        _train(console, range(first_seed, first_seed + seeds), steps or None, out)
    if bench:
        console.rule("Speed: what does it cost?")
        with _threads(threads):
            _bench(console, "quick", _device(Device.auto), 9, 4.0, compile, out / "bench.json")


def _train(console: Console, seeds: range, steps: int | None, out: Path) -> None:
    from customloss._demo import data, report, train

    problems = data.problems(seeds)
    results = []
    with _progress(console) as progress:
        total = len(train.LOSSES) * sum(steps or problem.steps for problem in problems)
        bar = progress.add_task("training", total=total)
        for problem in problems:
            progress.update(bar, description=problem.name)
            scores = train.run(problem, steps, lambda: progress.advance(bar))
            results.append(report.Result.of(problem, scores))
    console.print(report.renderable(results))
    report.save(results, out / "training.json")
    report.draw(results, out / "training.png")
    _saved(console, out / "training.json", out / "training.png")


# ---- bench -----------------------------------------------------------------------------------


@app.command()
def bench(
    full: Annotated[
        bool, typer.Option("--full/--quick", help="All cases, or a few in a minute or two.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny cases, to test the benchmark itself.")
    ] = False,
    json: Annotated[Path, typer.Option(help="Where to save; the PNG goes beside it.")] = Path(
        "out/bench.json"
    ),
    table: Annotated[
        Path | None, typer.Option(help="Measure nothing: show a saved JSON file.")
    ] = None,
    compile: Compile = True,
    rounds: Annotated[int, typer.Option(min=0, help="Samples each; 0: as the suite says.")] = 0,
    device: Annotated[Device, typer.Option(help="auto: CUDA where there is one.")] = Device.auto,
    threads: Threads = 2,
) -> None:
    """Time the operator beside eager, torch.compile, MONAI and smp, and beside the machine's roof.

    No speed-up is shown unless value and gradient agree with the float64 reference.
    """
    console = _console()
    if table is not None:
        from customloss._bench import report

        try:
            shown = report.renderable(report.load(table))
        except OSError as error:
            raise SystemExit(f"customloss: --table {table}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SystemExit(
                f"customloss: --table {table}: expected a JSON file that customloss bench saved"
            ) from None
        console.print(shown)
        return
    suite = "smoke" if smoke else "full" if full else "quick"
    wanted = rounds or {"smoke": 5, "quick": 15, "full": 51}[suite]
    seconds = {"smoke": 1.0, "quick": 6.0, "full": 60.0}[suite]
    with _threads(threads):
        _bench(console, suite, _device(device), wanted, seconds, compile, json)


def _device(wanted: Device) -> torch.device:
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise SystemExit("customloss: no CUDA device is available to this torch")
    if wanted is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted.value)


def _bench(
    console: Console,
    suite: str,
    device: torch.device,
    rounds: int,
    seconds: float,
    compile: bool,
    json: Path,
) -> None:
    from customloss._bench import report, run

    settings = run.Settings(rounds=rounds, seconds=seconds, compile=compile)
    with _progress(console) as progress:
        bar = progress.add_task("benchmark", total=run.steps(suite, settings))
        document = run.run(
            suite,
            device,
            settings,
            on_case=lambda name: progress.update(bar, description=name),
            tick=lambda: progress.advance(bar),
        )
    console.print(report.renderable(document))
    report.save(document, json)
    saved = [json]
    if importlib.util.find_spec("matplotlib"):
        from customloss._bench import figure

        saved.append(json.with_suffix(".png"))
        figure.draw(document, saved[-1])
    _saved(console, *saved)


def _saved(console: Console, *paths: Path) -> None:
    console.print("saved " + ", ".join(str(path) for path in paths), style="dim", soft_wrap=True)


# ---- info ------------------------------------------------------------------------------------


@app.command()
def info() -> None:
    """Show versions, the libraries that are loaded or why not, and what the kernels run on."""
    import customloss

    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in customloss.build_info().lines():
        table.add_row(name, value)
    _console().print(table)


def main() -> None:
    """Runs the command that ``sys.argv`` names."""
    app()
