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
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import customloss
from customloss._demo.data import Problem
from customloss._demo.train import AT_HALF, IN_FOLD, METHODS, OUT_OF_FOLD, Method, Scores

PLAIN, OURS = Method("BCE", AT_HALF), Method("soft-F1", AT_HALF)
THRESHOLDS = {
    AT_HALF: "at 0.5",
    IN_FOLD: "with a threshold tuned on the rows trained on",
    OUT_OF_FOLD: "with a threshold tuned out of fold",
}
FORMS = (
    "Weighted: pos_weight is the ratio of negatives to positives among the rows trained on; "
    "root-weighted: the root of it. In fold: the threshold has the best F1 on the rows trained on; "
    "out of fold: on rows that inner folds held out. These also choose the strength of L2. "
    "The best form is the one with the highest mean here, and BCE has more forms than soft-F1."
)
FEWEST = 5  # seeds, below which no difference is called reliable
RELIABLE = "reliable: at least 9 of 10 seeds agree, and the mean difference exceeds its sd"
CAVEAT = (
    "Seeds shuffle the same data, so their sd says how much the split matters, not how the method "
    "does on other data. What an F-loss puts out is a decision, not a calibrated probability."
)


@dataclass(frozen=True)
class Result:
    """What is known of a problem when it has been run, or read from JSON."""

    name: str
    positive: str
    prevalence: float
    seeds: list[int]
    scores: Scores

    @classmethod
    def of(cls, problem: Problem, scores: Scores) -> Result:
        return cls(problem.name, problem.positive, problem.prevalence, list(problem.seeds), scores)

    @property
    def title(self) -> str:
        return f"{self.name} ({100 * self.prevalence:.0f} % positive)"

    @property
    def rival(self) -> Method:
        """The form of BCE with the highest mean F1."""
        return self._best([method for method in self.scores if method.is_rival])

    @property
    def best(self) -> Method:
        """The form of soft-F1 with the highest mean F1."""
        return self._best([method for method in self.scores if method.loss == OURS.loss])

    def _best(self, methods: list[Method]) -> Method:
        return max(methods, key=lambda method: statistics.fmean(self.scores[method]))

    def difference(self, ours: Method, theirs: Method) -> Difference:
        return difference(self.scores[ours], self.scores[theirs])


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
        return agreeing >= 0.9 * max(self.seeds, FEWEST) and abs(self.mean) > self.sd


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


def _form(method: Method) -> str:
    return f"{method.trained} {THRESHOLDS[method.threshold]}"


def _compared(d: Difference, theirs: str) -> str:
    word = "not reliably different from"
    if d.reliable:
        word = "reliably above" if d.mean > 0 else "reliably below"
    numbers = f"{_number(d.mean, True)} ± {_number(d.sd)}"
    return f"{word} {theirs} ({numbers}, higher in {d.higher} of {d.seeds} seeds)"


def sentence(result: Result) -> str:
    """What the numbers of one problem show; the threshold is always named."""
    if len(result.seeds) < 2:
        return f"{result.title}: one seed says nothing about which method is better."
    rival, best = result.rival, result.best
    plain = _compared(result.difference(OURS, PLAIN), _form(PLAIN))
    said = f"{result.title}: {_form(OURS)} is {plain}"
    if rival == PLAIN:
        said += ", which is the best form of BCE."
    else:
        against = _compared(result.difference(OURS, rival), f"the best form of BCE, {_form(rival)}")
        said += f", and {against}."
    if best == OURS:
        return f"{said} No other form of soft-F1 has a higher mean."
    against = _compared(result.difference(best, rival), "that form of BCE")
    return f"{said} The best form of soft-F1, {_form(best)}, is {against}."


def _summed_up(found: dict[str, Difference]) -> str:
    up = [name for name, d in found.items() if d.reliable and d.mean > 0]
    down = [name for name, d in found.items() if d.reliable and d.mean < 0]
    same = [name for name, d in found.items() if not d.reliable]
    parts = [
        f"{verb} {_list(names)}"
        for verb, names in (
            ("a reliably higher F1 on", up),
            ("a reliably lower F1 on", down),
            ("no reliable difference on", same),
        )
        if names
    ]
    return "; ".join(parts)


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def conclusion(results: list[Result]) -> str:
    """All problems in three sentences, written from the numbers."""
    if len(results[0].seeds) < FEWEST:
        return f"With fewer than {FEWEST} seeds no difference is called reliable."
    plain = {each.name: each.difference(OURS, PLAIN) for each in results}
    best = {each.name: each.difference(OURS, each.rival) for each in results}
    both = {each.name: each.difference(each.best, each.rival) for each in results}
    return (
        f"Soft-F1 at 0.5 against BCE at 0.5: {_summed_up(plain)}. "
        f"Soft-F1 at 0.5 against the best form of BCE: {_summed_up(best)}. "
        f"The best form of soft-F1 against the best form of BCE: {_summed_up(both)}."
    )


# ---- outputs ---------------------------------------------------------------------------------


def _seeds(result: Result) -> str:
    first, last = result.seeds[0], result.seeds[-1]
    return f"seed {first}" if first == last else f"seeds {first} to {last}"


def renderable(results: list[Result]) -> RenderableType:
    """Table and sentences, for a terminal of 80 columns or more."""
    title = f"F1 on rows not trained on, mean ± sd over {_seeds(results[0])}"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("loss", no_wrap=True)
    table.add_column("threshold", no_wrap=True)
    for result in results:
        table.add_column(result.name.replace(" > ", "\n> "), justify="right", no_wrap=True)
    for method in METHODS:
        style = "" if method.is_rival else "bold"
        cells = [shown(result.scores[method]).replace(" ", "") for result in results]
        table.add_row(method.trained, method.threshold, *cells, style=style)
    sentences = [Text(f"• {sentence(result)}") for result in results]
    notes = [Text(note, style="dim") for note in (FORMS, f"({RELIABLE})", CAVEAT)]
    return Group(table, *sentences, Text(conclusion(results), style="bold"), *notes)


def markdown(document: dict[str, Any]) -> str:
    """What was saved, for a page: a row per method, then the sentences."""
    results = load(document)
    header = [f"F1, mean ± sd, {_seeds(results[0])}", "threshold", *(r.title for r in results)]
    lines = [header, ["---", "---", *["---:"] * len(results)]]
    for method in METHODS:
        cells = [shown(result.scores[method]) for result in results]
        lines.append([method.trained, method.threshold, *cells])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    sentences = [f"* {sentence(result)}" for result in results]
    return "\n".join([*table, "", *sentences, "", conclusion(results)])


def document(results: list[Result]) -> dict[str, Any]:
    """All numbers, JSON-ready."""
    return {
        "versions": {
            "customloss": customloss.__version__,
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
        "forms": FORMS,
        "reliable": RELIABLE,
        "problems": [
            {
                "name": result.name,
                "positive": result.positive,
                "prevalence": result.prevalence,
                "seeds": result.seeds,
                "f1": [
                    {**method._asdict(), "per_seed": values}
                    for method, values in result.scores.items()
                ],
                "sentence": sentence(result),
            }
            for result in results
        ],
        "conclusion": conclusion(results),
    }


def load(document: dict[str, Any]) -> list[Result]:
    """The results in a document."""
    return [
        Result(
            problem["name"],
            problem["positive"],
            problem["prevalence"],
            problem["seeds"],
            {Method(f1["loss"], f1["threshold"], f1["l2"]): f1["per_seed"] for f1 in problem["f1"]},
        )
        for problem in document["problems"]
    ]


def save(results: list[Result], path: Path) -> None:
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(results), indent=1, ensure_ascii=False) + "\n")


def draw(results: list[Result], path: Path) -> None:
    """Draws a panel per problem, with a dot for each seed and a bar at the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0 + 3.0 * len(results), 0.9 + 0.42 * len(METHODS)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    spans = [_ends(result.scores) for result in results]
    width = 1.15 * max(high - low for low, high in spans) + 0.02
    for axes, result, (low, high) in zip(panels, results, spans):
        _panel(axes, result)
        right = min(1.0, (low + high + width) / 2)
        axes.set_xlim(right - width, right)  # equal scales in all panels
    names = [f"{method.trained}, {method.threshold}" for method in METHODS]
    panels[0].set_yticks(range(len(METHODS)), names)
    panels[0].set_ylim(len(METHODS) - 0.5, -0.75)
    seeds = f"{len(results[0].seeds)}, {_seeds(results[0])}"
    figure.supxlabel(
        f"F1 on rows not trained on; a dot a seed ({seeds}), the line their mean",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _ends(scores: Scores) -> tuple[float, float]:
    values = [value for each in scores.values() for value in each]
    return min(values), max(values)


def _panel(axes: Any, result: Result) -> None:
    for place, method in enumerate(METHODS):
        colour = "#6b7280" if method.is_rival else "#0b5fff"
        values = result.scores[method]
        step = 0.24 / max(1, len(values) - 1)
        spots = [place - 0.12 + step * index for index in range(len(values))]
        axes.plot(values, spots, "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
        mean = statistics.fmean(values)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.annotate(
            _number(mean), (mean, place - 0.32), ha="center", va="bottom", fontsize=8, color=colour
        )
    axes.set_title(result.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
