"""The benchmark as a picture: how close every implementation comes to the roof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from customloss._bench import report, results
from customloss._bench.results import Document, Row
from customloss._bench.rivals import COMPILED, EAGER, OURS

COLOURS = {OURS: "#0b5fff", COMPILED: "#e07a00", EAGER: "#6b7280"}
_OTHERS = ("#2a9d8f", "#9d4edd", "#c1121f", "#8d6e63")
MARKERS = {OURS: "o", COMPILED: "D", EAGER: "s"}


def draw(document: Document, path: Path) -> None:
    """Writes the PNG: rows with a roof on the left, latencies on the right."""
    from matplotlib.figure import Figure

    roofed = [row for row in document["rows"] if results.roof_seconds(row)]
    quick = [row for row in document["rows"] if row["latency"]]
    height = 1.9 + 0.42 * max(len(roofed), 2)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 1.3]})
    _roof_axes(left, roofed, document)
    _latency_axes(right, quick, document)
    right.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=6)
    figure.supxlabel(report.heading(document), fontsize=7, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _colour(family: str, raced: list[str]) -> str:
    others = [name for name in raced if name not in COLOURS]
    return COLOURS.get(family) or _OTHERS[others.index(family) % len(_OTHERS)]


def _roof_axes(axes: Any, rows: list[Row], document: Document) -> None:
    raced = results.families(document)
    for family in reversed(raced):
        points = [
            (place, [100 * roof / seconds for seconds in taken[:3]])
            for place, row in enumerate(rows)
            if (taken := results.times(row, family)) and (roof := results.roof_seconds(row))
        ]
        colour = _colour(family, raced)
        for place, (_, best, worst) in points:
            axes.plot([worst, best], [place, place], color=colour, alpha=0.35, linewidth=3)
        axes.plot(
            [share[0] for _, share in points],
            [place for place, _ in points],
            linestyle="none",
            marker=MARKERS.get(family, "^"),
            color=colour,
            label=family,
        )
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['case']}, {row['which']}" for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the roof of this machine, measured in the same rounds (right is better)")
    axes.set_title("Large tensors: share of the memory roof", fontsize=10)
    _clean(axes)


def _latency_axes(axes: Any, rows: list[Row], document: Document) -> None:
    raced = results.families(document)
    bars = [
        (row["case"], family, 1e6 * taken.median)
        for row in rows
        for family in raced
        if (taken := results.times(row, family))
    ]
    colours = [_colour(family, raced) for _, family, _ in bars]
    axes.barh(range(len(bars)), [value for *_, value in bars], color=colours, height=0.55)
    for place, (*_, value) in enumerate(bars):
        axes.text(value, place, f" {value:.0f} µs", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [f"{case}\n{family}" for case, family, _ in bars])
    axes.margins(x=0.25)
    axes.set_xlabel("µs a step (left is better)")
    axes.set_title("Small inputs: forward+backward", fontsize=10)
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
