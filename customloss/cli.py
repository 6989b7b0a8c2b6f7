"""The command line: ``customloss demo``, ``customloss bench`` and ``customloss info``.

``customloss patch`` is not here: it needs no extra (compat/patching/command.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import torch

EXTRA = "pip install --no-build-isolation '.[demo,bench]'    in the source tree of customloss"


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

if TYPE_CHECKING:
    from rich.console import RenderableType

    from customloss._bench import results, run

app = typer.Typer(
    help="Fused F-measure losses for PyTorch: see them train, see them run, see what is installed.",
    epilog="One more command runs a script with these losses in the place of those of other "
    "libraries: customloss patch -- SCRIPT; see customloss patch --help.",
    no_args_is_help=True,
    add_completion=False,
)


class Device(str, Enum):
    """Where to benchmark."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Out = Annotated[Path, typer.Option(help="Folder for the PNG and JSON files.")]
Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="CPU threads of the benchmark; 0: as torch has them.")
]
Compile = Annotated[bool, typer.Option(help="Also race what is compiled with torch.compile.")]


def _console() -> Console:
    return Console(highlight=False)


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
    first_seed: Annotated[
        int, typer.Option(min=0, max=2**31, help="The first of these seeds.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0: enough of them.")] = 0,
    bench: Annotated[bool, typer.Option(help="Benchmark after training.")] = True,
    out: Out = Path("out"),
    threads: Threads = 0,
    compile: Compile = True,
) -> None:
    """Train with BCE, soft-F1 and -log F1 on small data, then benchmark the operator."""
    for module in ("sklearn", "matplotlib"):
        _need(module)
    names = ("training", "bench") if bench else ("training",)
    _writable("--out", *(out / f"{name}.{kind}" for name in names for kind in ("json", "png")))
    if bench:
        _no_fallback(_device(Device.auto))
    from customloss._bench import measure

    console = _console()
    console.rule("Training: does it help?")
    with measure.threads(1):  # the last bits of a product of matrices depend on their number
        _train(console, range(first_seed, first_seed + seeds), steps or None, out)
    if bench:
        from customloss._bench import run

        console.rule("Speed: what does it cost?")
        with measure.threads(threads):
            settings = run.SETTINGS["quick"]._replace(rounds=9, seconds=4.0, compile=compile)
            _bench(console, "quick", _device(Device.auto), settings, out / "bench.json")


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
        bool, typer.Option("--full/--quick", help="All cases and forms, in an hour, or a few.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny cases, to test the benchmark itself.")
    ] = False,
    roof: Annotated[
        bool,
        typer.Option(
            "--roof", help="The forward pass beside input.sum(), in and beyond the CPU's caches."
        ),
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            help="Where to save; without it out/bench.json, with the PNG beside it, or with --roof "
            "out/roof.json, and what was there is kept under another name."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Measure nothing: show a saved JSON file.")
    ] = None,
    compile: Compile = True,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Race only these, one option for each: eager, compile, monai, nnunet, smp, "
            "kornia. Without it, all that are installed."
        ),
    ] = None,
    case: Annotated[
        str, typer.Option(help="Measure only the cases whose name contains this.")
    ] = "",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Of the CPU, for all alike: default, huge-pages or jemalloc. Without it, as it is."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Samples each; 0: as the suite says.")] = 0,
    device: Annotated[Device, typer.Option(help="auto: CUDA where there is one.")] = Device.auto,
    threads: Threads = 0,
) -> None:
    """Time the operator beside eager, torch.compile and other libraries, and beside the roof.

    No speed-up is shown unless value and gradient agree with the float64 reference.
    """
    console = _console()
    if table is not None:
        measured = {"--full": full, "--smoke": smoke, "--roof": roof, "--against": against}
        _alone("--table", {**measured, "--case": case, "--memory": memory, "--json": json})
        _show(console, table)
        return
    if smoke and full:
        raise SystemExit("customloss: --smoke contradicts --full; leave one out")
    if roof:
        # no rival races, and a GPU has other caches
        on_gpu = device is Device.cuda
        _alone("--roof", {"--full": full, "--against": against, "--device cuda": on_gpu})
    json = json or DEFAULT_PLACES[roof]
    if json.suffix != ".json":
        raise SystemExit(f"customloss: --json: expected a name that ends in .json, got {json}")
    if memory is not None:
        _enter_memory(memory)
    from customloss._bench import cases, measure, run

    if roof:
        with measure.threads(threads):
            _roof(console, smoke, rounds, case, json)
        return
    suite = "smoke" if smoke else "full" if full else "quick"
    settings = run.SETTINGS[suite]
    settings = settings._replace(
        rounds=rounds or settings.rounds,
        compile=compile,
        families=_families(against, compile),
        case=case,
    )
    if not run.chosen(suite, settings):
        _no_case(case, (each.name for each in cases.SUITES[suite]))
    _writable("--json", json, json.with_suffix(".png"))
    on = _device(device)
    _no_fallback(on)
    with measure.threads(threads):
        _bench(console, suite, on, settings, json)


def _show(console: Console, path: Path) -> None:
    from customloss._bench import results

    try:
        shown = _rendered(results.load(path), console.width)
    except OSError as error:
        raise SystemExit(f"customloss: --table {path}: {error.strerror}") from None
    except results.NotAResult as reason:
        raise SystemExit(f"customloss: --table {path}: {reason}") from None
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise SystemExit(
            f"customloss: --table {path}: the file is damaged; measure again"
        ) from None
    console.print(shown)


def _rendered(document: results.Document, width: int) -> RenderableType:
    """The tables of a result of either kind."""
    from customloss._bench import report, roof, roof_table

    if document["suite"] == roof.SUITE:
        return roof_table.renderable(document, width)
    return report.renderable(document, width)


def _writable(option: str, *paths: Path) -> None:
    """Says so before hours of measuring, not after them."""
    for path in paths:
        new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
            if new:
                path.unlink()
        except OSError as error:
            raise SystemExit(
                f"customloss: {option}: cannot write {path} ({error.strerror}); name another folder"
            ) from None


def _enter_memory(wanted: str) -> None:
    from customloss._bench import memory

    names = [each.value for each in memory.Memory]
    if wanted not in names:
        raise SystemExit(f"customloss: --memory: expected {' or '.join(names)}, got {wanted!r}")
    memory.enter(memory.Memory(wanted))


def _families(against: list[str] | None, compile: bool) -> tuple[str, ...]:
    """The families of the benchmark that were asked for; one that is not there is an error."""
    from customloss._bench import rivals

    if not against:
        return rivals.FAMILIES
    if "compile" in against and not compile:
        raise SystemExit("customloss: --against compile contradicts --no-compile; leave one out")
    for asked in against:
        if asked not in rivals.TYPED:
            names = ", ".join(rivals.TYPED)
            raise SystemExit(f"customloss: --against: expected one of {names}, got {asked!r}")
        missing = rivals.missing(rivals.TYPED[asked])
        if missing:
            raise SystemExit(f"customloss: --against {asked}: {missing}")
    return tuple(rivals.TYPED[asked] for asked in against)


def _device(wanted: Device) -> torch.device:
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise SystemExit("customloss: no CUDA device is available to this torch")
    if wanted is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted.value)


def _no_fallback(device: torch.device) -> None:
    """Refuses to time a slow substitute under our name, unless it was chosen."""
    import customloss
    from customloss._bench import machine

    kernels = machine.kernels(device)
    if kernels.startswith("fallback") and customloss.current_backend() == "auto":
        raise SystemExit(
            f"customloss: the compiled kernels are not loaded, so there is nothing to time: "
            f"{kernels}. CUSTOMLOSS_BACKEND=triton or reference times those"
        )


DEFAULT_PLACES = (Path("out/bench.json"), Path("out/roof.json"))
Steps = Callable[[Callable[[str], None], Callable[[], None]], "results.Document"]


def _measured(console: Console, total: int, run: Steps, json: Path) -> results.Document:
    """Runs a benchmark of so many steps beside a bar, saves it and shows it."""
    from customloss._bench import results

    def on_case(name: str) -> None:
        progress.update(bar, description=name)
        if not console.is_terminal:
            console.print(f"{name} ...")  # a log has no progress bar

    with _progress(console) as progress:
        bar = progress.add_task("benchmark", total=total)
        document = run(on_case, lambda: progress.advance(bar))
    # whoever names a place means that file; the default one may hold another measurement
    older = results.set_aside(json) if json in DEFAULT_PLACES else None
    results.save(document, json)  # first of all: printing may fail
    if older is not None:
        console.print(f"the result that was in {json} is now in {older}", style="dim")
    console.print(_rendered(document, console.width))
    return document


def _bench(
    console: Console, suite: str, device: torch.device, settings: run.Settings, json: Path
) -> None:
    from customloss._bench import run

    rows = partial(run.run, suite, device, settings)
    document = _measured(console, run.steps(suite, settings), rows, json)
    saved = [json]
    if importlib.util.find_spec("matplotlib"):
        from customloss._bench import figure

        saved.append(json.with_suffix(".png"))
        figure.draw(document, saved[-1])
    _saved(console, *saved)


def _alone(option: str, others: dict[str, object]) -> None:
    """Refuses options that have no meaning beside this one."""
    for other, given in others.items():
        if given:
            raise SystemExit(f"customloss: {option} contradicts {other}; leave one out")


def _no_case(asked: str, names: Iterable[str]) -> NoReturn:
    """Exits with the names that there are, which have commas in them."""
    listed = "".join(f"\n  {name!r}" for name in names)
    raise SystemExit(f"customloss: --case: none of these contains {asked!r}:{listed}")


def _roof(console: Console, small: bool, rounds: int, case: str, json: Path) -> None:
    from customloss._bench import roof, run

    settings = run.SETTINGS["smoke" if small else "roof"]
    settings = settings._replace(rounds=rounds or settings.rounds, case=case)
    room = roof.SMALL if small else roof.room()
    steps = roof.steps(room, settings)
    if not steps:
        _no_case(case, (kind.part.name for kind in roof.KINDS))
    _writable("--json", json)
    _no_fallback(torch.device("cpu"))
    if small:
        console.print("a smoke test, as if the caches were small: these are no measurements")
    _measured(console, steps, partial(roof.measured, room, settings), json)
    _saved(console, json)


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
