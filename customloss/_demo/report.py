"""The results: a table, sentences that are chosen by the numbers, a figure, and JSON."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import customloss
from customloss._demo.data import Problem
from customloss._demo.train import AT_HALF, METHODS, TUNED, Method, Scores

OURS, PLAIN, ADJUSTED = (
    Method("soft-F1", AT_HALF),
    Method("BCE", AT_HALF),
    Method("BCE", TUNED),
)
RELIABLE = "a difference is called reliable if 9 of 10 seeds agree and its mean exceeds its sd"
CAVEAT = (
    "Seeds shuffle the same data, so their sd says how much the split matters, not how the method "
    "does on other data. What an F-loss puts out is a decision, not a calibrated probability."
)


@dataclass(frozen=True)
class Difference:
    """The difference of two methods, seed by seed."""

    mean: float
    sd: float
    higher: int
    lower: int
    seeds: int

    @property
    def reliable(self) -> bool:
        agreeing = max(self.higher, self.lower)
        return self.seeds > 1 and agreeing >= 0.9 * self.seeds and abs(self.mean) > self.sd


def difference(ours: list[float], theirs: list[float]) -> Difference:
    """Ours minus theirs."""
    each = [our - their for our, their in zip(ours, theirs)]
    higher, lower = sum(d > 0 for d in each), sum(d < 0 for d in each)
    return Difference(statistics.fmean(each), _sd(each), higher, lower, len(each))


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _number(value: float, signed: bool = False) -> str:
    """Three digits without a leading zero, as F1 is usually written."""
    return f"{value:{'+' if signed else ''}.3f}".replace("0.", ".", 1).replace("-", "−")


def shown(values: list[float]) -> str:
    """Mean ± sd."""
    return f"{_number(statistics.fmean(values))} ± {_number(_sd(values))}"


# ---- sentences -------------------------------------------------------------------------------


def _compared(d: Difference, theirs: str) -> str:
    word = "not reliably different from"
    if d.reliable:
        word = "above" if d.mean > 0 else "below"
    numbers = f"{_number(d.mean, True)} ± {_number(d.sd)}"
    return f"{word} {theirs} ({numbers}, higher in {d.higher} of {d.seeds} seeds)"


def sentence(problem: Problem, scores: Scores) -> str:
    """What the numbers of one problem show; the threshold is always named."""
    plain = difference(scores[OURS], scores[PLAIN])
    adjusted = difference(scores[OURS], scores[ADJUSTED])
    start = f"{problem.name} ({100 * problem.prevalence:.0f} % positive): "
    if problem.seeds < 2:
        return f"{start}one seed says nothing about which method is better."
    return (
        f"{start}soft-F1 at 0.5 is {_compared(plain, 'BCE at 0.5')}, and "
        f"{_compared(adjusted, 'BCE with a tuned threshold')}."
    )


def conclusion(results: list[tuple[Problem, Scores]]) -> str:
    """One sentence over all problems, written from the numbers."""
    found = {problem.name: difference(scores[OURS], scores[PLAIN]) for problem, scores in results}
    up = [name for name, d in found.items() if d.reliable and d.mean > 0]
    down = [name for name, d in found.items() if d.reliable and d.mean < 0]
    same = [name for name, d in found.items() if not d.reliable]
    parts = [
        f"{verb} {' and '.join(names)}"
        for verb, names in (
            ("a reliably higher F1 on", up),
            ("a reliably lower one on", down),
            ("no reliable difference on", same),
        )
        if names
    ]
    return f"At the threshold 0.5, soft-F1 against BCE: {'; '.join(parts)}."


# ---- outputs ---------------------------------------------------------------------------------


def renderable(results: list[tuple[Problem, Scores]]) -> RenderableType:
    """Table and sentences, for a terminal."""
    seeds = results[0][0].seeds
    title = f"F1 on rows not trained on, mean ± sd over {seeds} seeds"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("loss", no_wrap=True)
    table.add_column("threshold")
    for problem, _ in results:
        table.add_column(problem.name, justify="right")
    for method in METHODS:
        style = "" if method.loss == "BCE" else "bold"
        cells = [shown(scores[method]) for _, scores in results]
        table.add_row(method.loss, method.threshold, *cells, style=style)
    sentences = [Text(f"• {sentence(*result)}") for result in results]
    notes = [Text(f"({RELIABLE})", style="dim"), Text(CAVEAT, style="dim")]
    return Group(table, *sentences, Text(conclusion(results), style="bold"), *notes)


def markdown(document: dict[str, Any]) -> str:
    """Mean and sd of what was saved, for the top of a README: a row per problem."""
    shown_methods = (PLAIN, ADJUSTED, OURS)
    header = ["F1, mean ± sd", *(f"{m.loss}, {m.threshold}" for m in shown_methods)]
    lines = [header, ["---", *["---:"] * len(shown_methods)]]
    for problem in document["problems"]:
        scores = {Method(f1["loss"], f1["threshold"]): f1["per_seed"] for f1 in problem["f1"]}
        name = f"{problem['name']}, {100 * problem['prevalence']:.0f} % positive"
        lines.append([name, *(shown(scores[method]) for method in shown_methods)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document(results: list[tuple[Problem, Scores]]) -> dict[str, Any]:
    """All numbers, JSON-ready."""
    return {
        "versions": {
            "customloss": customloss.__version__,
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
        "reliable": RELIABLE,
        "problems": [
            {
                "name": problem.name,
                "positive": problem.positive,
                "prevalence": problem.prevalence,
                "seeds": problem.seeds,
                "f1": [
                    {"loss": method.loss, "threshold": method.threshold, "per_seed": values}
                    for method, values in scores.items()
                ],
                "sentence": sentence(problem, scores),
            }
            for problem, scores in results
        ],
        "conclusion": conclusion(results),
    }


def save(results: list[tuple[Problem, Scores]], path: Path) -> None:
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(results), indent=1, ensure_ascii=False) + "\n")


def draw(results: list[tuple[Problem, Scores]], path: Path) -> None:
    """Draws a panel per problem, with a dot for each seed and a bar at the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(results), 2.9), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    spans = [_ends(scores) for _, scores in results]
    width = 1.15 * max(high - low for low, high in spans) + 0.02
    for axes, (problem, scores), (low, high) in zip(panels, results, spans):
        _panel(axes, problem, scores)
        right = min(1.0, (low + high + width) / 2)
        axes.set_xlim(right - width, right)  # equal scales in all panels
    panels[0].set_yticks(range(len(METHODS)), [f"{m.loss}\n{m.threshold}" for m in METHODS])
    panels[0].set_ylim(len(METHODS) - 0.5, -0.65)
    figure.supxlabel(
        f"F1 on rows not trained on; a dot a seed ({results[0][0].seeds}), the line their mean",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _ends(scores: Scores) -> tuple[float, float]:
    values = [value for each in scores.values() for value in each]
    return min(values), max(values)


def _panel(axes: Any, problem: Problem, scores: Scores) -> None:
    for place, method in enumerate(METHODS):
        colour = "#6b7280" if method.loss == "BCE" else "#0b5fff"
        values = scores[method]
        step = 0.24 / max(1, len(values) - 1)
        spots = [place - 0.12 + step * index for index in range(len(values))]
        axes.plot(values, spots, "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
        mean = statistics.fmean(values)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.annotate(
            _number(mean), (mean, place - 0.32), ha="center", va="bottom", fontsize=8, color=colour
        )
    axes.set_title(f"{problem.name} ({100 * problem.prevalence:.0f} % positive)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
