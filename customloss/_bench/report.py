"""The results: a table for the terminal, one for Markdown, and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from customloss._bench.cases import BOTH
from customloss._bench.rivals import FAMILIES, OURS
from customloss._bench.run import Document, Entry, Row

WITHHELD = "withheld"  # in place of a number where an answer was wrong
NOTHING = "–"
PASS_NAMES = {BOTH: "fwd+bwd"}


# ---- words -----------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A time in the unit that reads best."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def amount(size: float | None) -> str:
    """Bytes in the unit that reads best."""
    if size is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def roof_share(row: Row, entry: Entry) -> float | None:
    """How much of the roof an entry reaches: the least time there is over the time it took."""
    roof, seconds = row["roof_seconds"], entry["seconds"]
    return roof / seconds[0] if roof and seconds else None


def _speedup(row: Row, family: str) -> str:
    entry = row["entries"].get(family)
    if entry is None or (entry["why_not"] and not entry["why_not"].startswith("wrong")):
        return NOTHING
    if entry["speedup"] is None:
        return WITHHELD
    median, low, high = (_three_digits(value) for value in entry["speedup"])
    return f"{median}× ({low}–{high})"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _own_time(row: Row) -> str:
    seconds = row["entries"][OURS]["seconds"]
    return duration(seconds[0]) if seconds else WITHHELD


def _own_share(row: Row) -> str:
    share = roof_share(row, row["entries"][OURS])
    return NOTHING if share is None else f"{100 * share:.0f} %"


def families(document: Document) -> list[str]:
    """The families that were timed, or were wrong, in some row; ours first."""
    return [
        family
        for family in FAMILIES
        if any(_present(row["entries"].get(family)) for row in document["rows"])
    ]


def _present(entry: Entry | None) -> bool:
    return entry is not None and (
        entry["seconds"] is not None or (entry["why_not"] or "").startswith("wrong")
    )


def absent(document: Document) -> dict[str, str]:
    """The families that are in no row of the table, and why."""
    raced = families(document)
    found: dict[str, str] = {}
    for row in document["rows"]:
        for family, entry in row["entries"].items():
            if family not in raced and entry["why_not"]:
                found.setdefault(family, entry["why_not"])
    return found


def heading(document: Document) -> str:
    """The machine in one line."""
    m: dict[str, Any] = document["machine"]
    device = m.get("gpu") or m["cpu"]
    load = f"load {m['load_average']}" if m["load_average"] is not None else "load unknown"
    if m.get("load_average_after") is not None:
        load += f" to {m['load_average_after']}"
    parts = [
        device,
        f"{m['threads']} threads",
        f"torch {m['torch']}",
        f"kernels {m['kernels']}",
        load,
    ]
    return " · ".join(parts)


def busy_line(document: Document) -> str | None:
    """A warning if the machine was busy when the benchmark began."""
    load, cores = document["machine"]["load_average"], document["machine"]["cores"]
    if load is None or not cores or load < 0.5 * cores:
        return None
    return (
        f"This machine was busy (load {load} on {cores} cores): times are too long, ratios rough."
    )


def roof_line(document: Document) -> str:
    """The roof of the machine, as it was measured between the samples."""
    rows = [row for row in document["rows"] if row["roof_seconds"]]
    if not rows:
        return "roof: not measured"
    read, copy, reuse = (
        statistics.median(row[rate] or 0.0 for row in rows)
        for rate in ("read_gbps", "copy_gbps", "reuse_gbps")
    )
    line = (
        f"roof, measured between the samples: read {read:.1f} GB/s (input.sum()), "
        f"copy {copy:.1f} GB/s (input.clone()). Into memory that is there already, which a fresh "
        f"gradient is not, a copy runs at {reuse:.1f} GB/s"
    )
    shares = [roof_share(row, entry) or 0.0 for row in rows for entry in row["entries"].values()]
    return line + ("; above 100 % means faster than the probes." if max(shares) > 1 else ".")


def verdict(document: Document) -> str:
    """A sentence over all rows, each compared with the fastest other right answer in it.

    A row counts as faster or slower only where the 10th and the 90th percentile of its ratio agree.
    """
    closest = sorted(_closest(document))
    if not closest:
        return "No speed-up is claimed: no row has two right answers to compare."
    medians = [ratio[0] for ratio, _, _ in closest]
    faster = sum(ratio[1] > 1 for ratio, _, _ in closest)
    slower = sum(ratio[2] < 1 for ratio, _, _ in closest)
    ratio, row, family = closest[0]
    return (
        f"Against the fastest other right answer of each of {len(closest)} rows, customloss is "
        f"faster in {faster}, slower in {slower} and level in {len(closest) - faster - slower}; "
        f"{_three_digits(statistics.median(medians))}× in the median row, "
        f"least in {row} ({_three_digits(ratio[0])}× against {family})."
    )


def _closest(document: Document) -> Iterator[tuple[list[float], str, str]]:
    for row in document["rows"]:
        found = [
            (entry["speedup"], f"{row['case']} {row['which']}", family)
            for family, entry in row["entries"].items()
            if family != OURS and entry["speedup"]
        ]
        if found:
            yield min(found)


# ---- tables ----------------------------------------------------------------------------------


def _time_table(document: Document) -> tuple[list[str], list[list[str]]]:
    others = families(document)[1:]
    header = ["case", "pass", OURS, "of roof", *(f"vs {family}" for family in others)]
    lines = []
    for row in document["rows"]:
        which = PASS_NAMES.get(row["which"], row["which"])
        own = [row["case"], which, _own_time(row), _own_share(row)]
        lines.append(own + [_speedup(row, family) for family in others])
    return header, lines


def _memory_table(document: Document) -> tuple[list[str], list[list[str]]]:
    raced = families(document)
    lines = []
    for row in document["rows"]:
        entries = [row["entries"].get(family) for family in raced]
        if any(entry and entry["saved_bytes"] is not None for entry in entries):
            lines.append([row["case"], *(_memory(entry) for entry in entries)])
    return ["case", *raced], lines


def _memory(entry: Entry | None) -> str:
    if entry is None or entry["saved_bytes"] is None:
        return NOTHING
    return f"{amount(entry['saved_bytes'])} / {amount(entry['peak_bytes'])}"


def _rich(title: str, header: list[str], lines: list[list[str]], left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        style = "bold" if name == OURS else None
        side: JustifyMethod = "left" if index < left else "right"
        table.add_column(name, justify=side, style=style, no_wrap=index < 4)
    previous = None
    for line in lines:
        if previous not in (None, line[0]):
            table.add_section()
        shown = line if line[0] != previous else ["", *line[1:]]
        table.add_row(*map(_cell, shown))
        previous = line[0]
    return table


def _cell(text: str) -> Text:
    """The spread goes below its median, so that columns are narrow enough for a terminal."""
    return Text(text.replace("× (", "×\n("), style="red" if text == WITHHELD else "")


TIME_TITLE = "Time: median, and how many times longer the others took (p10–p90 of paired rounds)"
MEMORY_TITLE = "Memory: kept for backward / peak of a step, beyond the caller's tensors"


def renderable(document: Document) -> RenderableType:
    """Everything, for a terminal."""
    parts: list[RenderableType] = [_rich(TIME_TITLE, *_time_table(document), left=2)]
    header, lines = _memory_table(document)
    if lines:
        parts.append(_rich(MEMORY_TITLE, header, lines, left=1))
    parts += [Text(roof_line(document)), Text(heading(document))]
    parts += [Text(f"{family}: {why}") for family, why in absent(document).items()]
    parts += [
        Text(line, style="red") for line in (*refusals(document), busy_line(document)) if line
    ]
    return Group(*parts, Text(verdict(document), style="bold"))


def refusals(document: Document) -> list[str]:
    """Which answers were wrong, and by how much."""
    found: dict[str, None] = {}
    for row in document["rows"]:
        for family, entry in row["entries"].items():
            if (entry["why_not"] or "").startswith("wrong"):
                found[f"{family}, {row['case']}: {entry['why_not']}"] = None
    return list(found)


def _markdown_table(header: list[str], lines: list[list[str]], left: int) -> str:
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def markdown(document: Document) -> str:
    """Everything, for a README."""
    header, lines = _memory_table(document)
    parts = [
        f"{heading(document)} · {document['machine']['date']}  \n{roof_line(document)}",
        _markdown_table(*_time_table(document), left=2),
        f"{MEMORY_TITLE}:" if lines else "",
        _markdown_table(header, lines, left=1) if lines else "",
        *refusals(document),
        busy_line(document) or "",
        verdict(document),
    ]
    return "\n\n".join(part for part in parts if part)


# What a reader of the README wants to know first: case, pass, and a description.
HEADLINE = (
    ("image float32", "forward", "soft-F1 forward, 16 masks of 1024², float32"),
    ("image bfloat16", BOTH, "its step, bfloat16 logits"),
    ("channels_last float32", "forward", "soft-F1 forward, 4 classes, channels_last"),
    (
        "4 labels float32",
        "forward",
        "softmax Dice forward, 2 × 128³ voxels, 4 classes, labels",
    ),
    ("4 labels Dice+CE", BOTH, "Dice + cross-entropy step of that"),
    ("105 labels Dice+CE", BOTH, "Dice + cross-entropy step, 64³ voxels, 105 classes"),
    ("64 logits", BOTH, "step of 64 logits"),
)


def headline(document: Document) -> str:
    """A few rows of the table, for the top of a README."""
    others = families(document)[1:]
    rows = {(row["case"], row["which"]): row for row in document["rows"]}
    lines = []
    for case, which, words in HEADLINE:
        row = rows.get((case, which))
        if row is not None:
            ratios = [_speedup(row, family).split(" ")[0] for family in others]
            lines.append([words, _own_time(row), *ratios])
    header = ["", OURS, *(f"vs {family}" for family in others)]
    intro = (
        "Median time of customloss. The other columns say how many times as long the others take "
        "for the same result, each in the fastest of its forms that was right. A step is forward "
        "and backward."
    )
    return "\n\n".join((intro, _markdown_table(header, lines, left=1), heading(document)))


# ---- files -----------------------------------------------------------------------------------


def save(document: Document, path: Path) -> None:
    """Writes JSON that diffs well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> Document:
    """What ``save`` wrote."""
    document: Document = json.loads(path.read_text())
    return document
