"""The table of ``roof``: how many times as long as ``input.sum()`` a forward pass takes, and where.

It has the two functions of ``report`` that show a whole result.
"""

from __future__ import annotations

import statistics
from typing import cast

from rich.console import Group, RenderableType
from rich.text import Text

from customloss._bench import report, results
from customloss._bench.report import Cells
from customloss._bench.results import Document
from customloss._bench.rivals import OURS
from customloss._bench.roof import BEYOND, SIGMOID, SUM, RoofRow

TITLE = (
    f"The forward pass and {SUM} of the same logits: median time, bytes read a second, and the "
    "ratio of the times (10th–90th percentile of the rounds; ratio of the means)"
)


def rows(document: Document) -> list[RoofRow]:
    """The rows of a result whose suite is ``"roof"``."""
    return cast("list[RoofRow]", document["rows"])


# ---- words -----------------------------------------------------------------------------------


def _own_seconds(row: RoofRow) -> list[float] | None:
    form = results.standing(row, OURS)
    return form["seconds"] if form else None


def _against(row: RoofRow, probe: str) -> str:
    """How many times as long as a probe ours took."""
    own = _own_seconds(row)
    return report.ratio_words(results.ratio(own, row["probes"][probe])) if own else report.WITHHELD


def _rate(seconds: list[float] | None, bytes: int) -> str:
    if not seconds:
        return report.WITHHELD
    median = statistics.median(seconds)
    rate = report.three_digits(bytes / median / 1e9)
    return f"{report.duration(median)} ({rate} GB/s)"


def _inputs(row: RoofRow) -> str:
    size = report.amount(row["held"] / row["copies"])
    held = size if row["copies"] == 1 else f"{row['copies']} × {size}"
    return f"{row['cache']} ({held}) with {report.counted(row['threads'], 'thread')}"


def _cells(document: Document) -> Cells:
    header = ["case", "inputs", OURS, SUM, "ratio", "least"]
    lines = [
        [
            row["case"],
            _inputs(row),
            _rate(_own_seconds(row), row["bytes"]),
            _rate(row["probes"][SUM], row["probe_bytes"]),
            _against(row, SUM),
            f"{report.three_digits(row['bytes'] / row['probe_bytes'])}×",
        ]
        for row in rows(document)
    ]
    return header, lines


def _legend(document: Document) -> str:
    """What the words of the table mean, as far as they are in it."""
    said = [
        "An input in a cache takes at most half of it, and is read again and again.",
        f"An input beyond a cache is at least {BEYOND} times as large, alone or together with its "
        "copies, which take turns.",
    ]
    if any(row["cache"].startswith("partly") for row in rows(document)):
        said.append("An input partly in a cache is between these.")
    said.append(
        "The least ratio is that of the bytes: the loss reads logits and target, the sum reads the "
        "logits."
    )
    return " ".join(said)


def _sigmoids(document: Document) -> list[str]:
    """The rows that are compared with a sigmoid too: a sentence each."""
    return [
        f"{row['case']} of {row['elements']} elements {row['cache']}, with "
        f"{report.counted(row['threads'], 'thread')}: {OURS} takes {_against(row, SIGMOID)} the "
        f"time of {SIGMOID}."
        for row in rows(document)
        if SIGMOID in row["probes"]
    ]


# ---- the whole -------------------------------------------------------------------------------


def renderable(document: Document, width: int = report.WIDE) -> RenderableType:
    """Everything, for a terminal; it fits any ``width`` from 80 columns on."""
    said = [*_sigmoids(document), _legend(document)]
    said += [report.heading(document), report.origin(document)]
    warned = [*report.refusals(document), report.busy_line(document)]
    return Group(
        report.rich_table(TITLE, _cells(document), left=2, min_width=5),
        *(Text(line) for line in said),
        *(Text(line, style="red") for line in warned if line),
    )


def markdown(document: Document, others: dict[str, Document]) -> str:
    """Everything, for a README. ``others``: the same in other memory."""
    parts = [
        f"{report.heading(document)}  \n{report.origin(document)}",
        f"{TITLE}:",
        report.markdown_table(_cells(document), left=2),
        *_sigmoids(document),
        _legend(document),
        *report.refusals(document),
        report.busy_line(document) or "",
    ]
    parts += [markdown(other, {}) for other in others.values()]
    return "\n\n".join(part for part in parts if part)
