"""The results in words: tables for a terminal and for Markdown, and sentences that fit them."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from customloss._bench import results
from customloss._bench.cases import BOTH
from customloss._bench.results import Document, Form, Row, Spread
from customloss._bench.rivals import COMPILED, EAGER, FAMILIES, OURS

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


def three_digits(value: float) -> str:
    """A number without digits that no measurement is worth."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _time(taken: Spread) -> str:
    """Median, and in parentheses the 10th and 90th percentile and the mean."""
    digits, unit = (1e6, "µs") if taken.median < 1e-3 else (1e3, "ms")
    middle, low, high, mean = (three_digits(value * digits) for value in taken)
    return f"{middle} {unit} ({low}–{high}; {mean})"


def ratio_words(ratio: Spread) -> str:
    """Median, and in parentheses the 10th and 90th percentile and the ratio of the means."""
    middle, low, high, mean = map(three_digits, ratio)
    return f"{middle}× ({low}–{high}; {mean})"


def _speedup(row: Row, family: str) -> str:
    form = results.standing(row, family)
    if form is None or form["outcome"] in ("absent", "failed"):
        return NOTHING
    ratio = results.speedup(row, family)
    return ratio_words(ratio) if ratio else WITHHELD


def _own_time(row: Row) -> str:
    taken = results.times(row, OURS)
    return _time(taken) if taken else WITHHELD


def _own_share(row: Row) -> str:
    share = results.roof_share(row, OURS)
    if share is None:
        return NOTHING
    # a forward pass has just read what a backward pass reads, also within a step
    cached = share > 1 and (row["which"] != "forward" or row["inputs"] != "cold")
    return f"{100 * share:.0f} %{', in cache' if cached else ''}"


def _pass_name(row: Row) -> str:
    return PASS_NAMES.get(row["which"], row["which"])


def _title(row: Row) -> str:
    return f"{row['case']} {_pass_name(row)}"


# ---- sentences -------------------------------------------------------------------------------


def heading(document: Document) -> str:
    """The machine in one line."""
    m: dict[str, Any] = document["machine"]
    load = f"load {m['load_average']}" if m["load_average"] is not None else "load unknown"
    if m.get("load_average_after") is not None:
        load += f" to {m['load_average_after']}"
    caches = ", ".join(f"{name} {amount(size)}" for name, size in m["caches"].items())
    parts = [
        m.get("gpu") or m["cpu"],
        caches,
        counted(m["threads"], "thread"),
        f"torch {m['torch']}",
        f"kernels {m['kernels']}",
        load,
    ]
    return " · ".join(part for part in parts if part)


def origin(document: Document) -> str:
    """What repeats a result."""
    made = document["made"]
    rounds = [row["rounds"] for row in document["rows"]]
    installed = [f"{name} {version}" for name, version in made["libraries"].items() if version]
    return (
        f"{made['date']}, commit {made['commit']}, memory {made['memory']}, `{made['command']}`, "
        f"{min(rounds)} to "
        f"{max(rounds)} rounds a row; {', '.join(installed)}"
    )


def busy_line(document: Document) -> str | None:
    """A warning if the machine was busy before the benchmark began."""
    load, cores = document["machine"]["load_average"], document["machine"]["cores"]
    if load is None or not cores or load < 0.5 * cores:
        return None
    return (
        f"The machine was busy in the minute before (load {load} on {cores} cores). If that went "
        "on, times are too long and ratios rough."
    )


def roof_line(document: Document) -> str:
    """What the memory of the machine was seen to do between the samples."""
    measured = [rates for row in document["rows"] if (rates := results.rates(row))]
    if not measured:
        return "roof: not measured"
    read, copy = (statistics.median(rates[index] for rates in measured) / 1e9 for index in range(2))
    return (
        f"roof: the better of two probes that ran in the same rounds, input.sum() (median of the "
        f"rows {read:.1f} GB/s) and existing.copy_(input) ({copy:.1f} GB/s, read and written)."
    )


def absences(document: Document) -> list[str]:
    """The families that are in no row, and why; they are named, so that nobody misses them."""
    raced = results.families(document)
    found: dict[str, str] = {}
    for row in document["rows"]:
        for form in row["forms"]:
            why = form["why"] or ""
            if form["outcome"] == "failed":
                raced.append(form["family"])  # it is named among the refusals
            if form["family"] not in raced and (
                form["family"] not in found or why.startswith("not installed")
            ):
                found[form["family"]] = why
    asked = {form["family"] for row in document["rows"] for form in row["forms"]}
    left_out = [family for family in FAMILIES if family not in asked]
    lines = [f"{family} is absent: {why}" for family, why in found.items()]
    lines += [f"{family} is absent: left out by the command" for family in left_out]
    return lines + [line for family in raced[1:] if (line := _gaps(document, family))]


def _gaps(document: Document, family: str) -> str:
    """The rows in which a family has no form at all, by their reasons; empty if there are none."""
    reasons: dict[str, int] = {}
    for row in document["rows"]:
        form = results.standing(row, family)
        if form is not None and form["outcome"] == "absent":
            why = form["why"] or "no reason given"
            reasons[why] = reasons.get(why, 0) + 1
    listed = "; ".join(f"{why} ({counted(rows, 'row')})" for why, rows in reasons.items())
    return f"Where {family} has a –: {listed}" if listed else ""


def counted(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def refusals(document: Document) -> list[str]:
    """Where no answer of a family was right, and how wrong they were: a line a family."""
    found: dict[str, dict[str, None]] = {}
    for row in document["rows"]:
        for family in FAMILIES:
            form = results.standing(row, family)
            if form is not None and form["outcome"] in ("wrong", "failed"):
                found.setdefault(family, {})[f"{row['case']} ({_fault(form)})"] = None
    return [
        f"{family} has no right answer in {', '.join(cases)}" for family, cases in found.items()
    ]


def _fault(form: Form) -> str:
    return f"{form['why']}" if form["outcome"] == "wrong" else f"failed: {form['why']}"


def verdict(document: Document, named: bool = True) -> str:
    """Sentences over all rows, each compared with the fastest other right answer in it.

    ``named``: with the names of the rows whose median is below 1.
    """
    found = sorted(results.all_closest(document), key=lambda pair: pair[1].ratio.median)
    if not found:
        return "No speed-up is claimed: no row has two right answers to compare."
    ratios = [closest.ratio for _, closest in found]
    judged = [results.judged(closest.rounds) for _, closest in found]
    middle, mean = (statistics.median(ratio[place] for ratio in ratios) for place in (0, 3))
    below = [
        f"{_title(row)} ({three_digits(closest.ratio.median)}× against {closest.family})"
        for row, closest in found
        if closest.ratio.median < 1
    ]
    said = f"The median is below 1 in {len(below) or 'none'} of them"
    if below and named:
        said += f": {', '.join(below)}"
    elif not below:
        row, least = found[0]
        said += f", and least in {_title(row)}"
        said += f" ({three_digits(least.ratio.median)}× against {least.family})"
    return (
        f"Against the fastest other right answer of each of {len(found)} rows, customloss is "
        f"faster in {judged.count('faster')} (nine rounds in ten agree), slower in "
        f"{judged.count('slower')}, level in {judged.count('level')} (the rounds disagree, and "
        f"the median is within 5 %) and unsettled in {judged.count('unsettled')}. The ratio is "
        f"{three_digits(middle)}× in the median row, and {three_digits(mean)}× as a ratio of the "
        f"means. {said}."
    )


# ---- tables ----------------------------------------------------------------------------------

Cells = tuple[list[str], list[list[str]]]  # a header and lines

TIME_TITLE = (
    "Time of customloss, and how many times as long the others took: median "
    "(10th–90th percentile of the rounds; mean, or ratio of the means)"
)
MEMORY_TITLE = "Memory: kept for backward / peak of a step, beyond the caller's tensors"
OTHER_MEMORY_TITLE = (
    "The same with other memory for everybody: time of customloss, and the fastest other right "
    "answer"
)


def _time_table(document: Document) -> Cells:
    """A column for each family."""
    others = results.families(document)[1:]
    header = ["case", "pass", "inputs", OURS, "of roof", *(f"vs {family}" for family in others)]
    lines = []
    for row in document["rows"]:
        own = [row["case"], _pass_name(row), row["inputs"], _own_time(row), _own_share(row)]
        lines.append(own + [_speedup(row, family) for family in others])
    return header, lines


def _narrow_time_table(document: Document) -> Cells:
    """A column for the fastest family alone, where there is no room for all."""
    header = ["case", "pass", OURS, "of roof", "vs fastest other"]
    lines = [
        [
            row["case"],
            f"{_pass_name(row)} ({row['inputs']})",
            _own_time(row),
            _own_share(row),
            _fastest(row),
        ]
        for row in document["rows"]
    ]
    return header, lines


def _fastest(row: Row) -> str:
    closest = results.closest(row)
    if closest is None:
        return WITHHELD if results.times(row, OURS) is None else NOTHING
    return f"{ratio_words(closest.ratio)} {closest.family}"


def _memory_table(document: Document, wide: bool = True) -> Cells:
    raced = results.families(document)[: None if wide else 3]
    lines = []
    for row in document["rows"]:
        forms = [results.standing(row, family) for family in raced]
        if any(form and form["saved_bytes"] is not None for form in forms):
            lines.append([row["case"], *(_memory(form) for form in forms)])
    return ["case", *raced], lines


def _memory(form: Form | None) -> str:
    if form is None or form["saved_bytes"] is None:
        return NOTHING
    return f"{amount(form['saved_bytes'])} / {amount(form['peak_bytes'])}"


def _other_memory_table(document: Document, others: dict[str, Document]) -> Cells:
    """One column a memory, each with the closest rival there."""
    columns = {document["made"]["memory"]: document} | others
    lines = []
    for row in document["rows"]:
        which = (row["case"], row["which"])
        cells = [_closest_there(each, which) for each in columns.values()]
        lines.append([row["case"], _pass_name(row), *cells])
    return ["case", "pass", *columns], lines


def _closest_there(document: Document, which: tuple[str, str]) -> str:
    for row in document["rows"]:
        if (row["case"], row["which"]) == which and (taken := results.times(row, OURS)):
            closest = results.closest(row)  # a terminal has no room for the name of its form
            form = closest and results.standing(row, closest.family)
            named = f", {form['form']}" if form else ""
            return f"{duration(taken.median)}, {_fastest(row)}{named}"
    return NOTHING


def rich_table(title: str, cells: Cells, left: int, min_width: int = 10) -> Table:
    """A table for a terminal, whose first ``left`` columns are words."""
    header, lines = cells
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        style = "bold" if name == OURS else None
        side: JustifyMethod = "left" if index < left else "right"
        table.add_column(name, justify=side, style=style, no_wrap=index > 0, min_width=min_width)
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
    narrow = text.replace(" (", "\n(").replace("; ", "\nmean ").replace(") ", "\n").replace(")", "")
    return Text(narrow.replace("(", ""), style="red" if text == WITHHELD else "")


WIDE = 140  # columns of a terminal that has room for every family


def renderable(document: Document, width: int = WIDE) -> RenderableType:
    """Everything, for a terminal of so many columns."""
    wide = width >= WIDE
    table = _time_table(document) if wide else _narrow_time_table(document)
    parts: list[RenderableType] = [rich_table(TIME_TITLE, table, left=3 if wide else 2)]
    held = _memory_table(document, wide)
    if held[1]:
        parts.append(rich_table(MEMORY_TITLE, held, left=1))
    parts += [Text(line) for line in (roof_line(document), heading(document), origin(document))]
    parts += [Text(line) for line in absences(document)]
    parts += [
        Text(line, style="red") for line in (*refusals(document), busy_line(document)) if line
    ]
    return Group(*parts, Text(verdict(document), style="bold"))


def markdown_table(cells: Cells, left: int) -> str:
    """The same in Markdown."""
    header, lines = cells
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def markdown(document: Document, others: dict[str, Document]) -> str:
    """Everything, for a README. ``others``: the same suite in other memory."""
    held = _memory_table(document)
    parts = [
        f"{heading(document)}  \n{origin(document)}  \n{roof_line(document)}",
        f"{TIME_TITLE}:",
        markdown_table(_time_table(document), left=3),
        *absences(document),
        *refusals(document),
        busy_line(document) or "",
        verdict(document),
    ]
    if held[1]:
        parts += [f"{MEMORY_TITLE}:", markdown_table(held, left=1)]
    if others:
        parts += [
            f"{OTHER_MEMORY_TITLE}:",
            markdown_table(_other_memory_table(document, others), left=2),
        ]
        for memory, other in others.items():
            parts.append(f"{memory}: {origin(other)}. {verdict(other)}")
    return "\n\n".join(part for part in parts if part)


# What a reader of the README wants to know first: case, pass, and a description.
HEADLINE = (
    ("image float32", "forward", "soft-F1 forward, 16 masks of 1024², float32"),
    ("image bfloat16", BOTH, "soft-F1 step, 16 masks of 1024², bfloat16"),
    ("channels_last float32", "forward", "soft-F1 forward, 4 classes, channels_last"),
    ("4 labels float32", "forward", "softmax Dice forward, 2 × 128³ voxels, 4 classes"),
    ("4 labels Dice+CE", BOTH, "Dice + cross-entropy step, 2 × 128³ voxels, 4 classes"),
    ("21 labels samplewise", BOTH, "softmax Dice step per image, 8 × 256² pixels, 21 classes"),
    ("105 labels Dice+CE", BOTH, "Dice + cross-entropy step, 64³ voxels, 105 classes"),
    ("64 logits", BOTH, "step of 64 logits"),
)
HEADLINE_RIVALS = (EAGER, COMPILED, "MONAI", "nnU-Net")


def _kept_gradients(others: dict[str, Document]) -> str:
    """Whether customloss kept the memory of gradients in runs where the memory was chosen."""
    settings = [other["made"].get("environment", {}) for other in others.values()]
    if all(found.get("CUSTOMLOSS_GRADIENT_CACHE") == "0" for found in settings):
        return "There customloss keeps no gradients itself."
    return "There customloss still kept its gradients, so that only jemalloc is the same for all."


def headline(document: Document, others: dict[str, Document]) -> str:
    """A few rows of the table, for the top of a README; all of a result with other cases."""
    rivals = [family for family in HEADLINE_RIVALS if family in results.families(document)]
    rows = {(row["case"], row["which"]): row for row in document["rows"]}
    everything = [(case, which, _title(row)) for (case, which), row in rows.items()]
    lines = []
    for case, which, words in [each for each in HEADLINE if each[:2] in rows] or everything:
        row = rows[case, which]
        ratios = [_speedup(row, family) for family in rivals]
        ratios += [_closest_there(other, (case, which)) for other in others.values()]
        lines.append([words, _own_time(row), *ratios])
    header = ["", OURS, *(f"vs {family}" for family in rivals)]
    header += [f"{memory}: {OURS}, vs fastest" for memory in others]
    intro = (
        "Time of customloss: median (10th–90th percentile; mean). The other columns say how many "
        "times as long the others take for the same result, each in the fastest of its forms that "
        "was right: median (10th–90th percentile; ratio of the means). A step is forward and "
        "backward."
    )
    if others:
        intro += (
            " The last columns are of other runs: with 2 MiB pages for everybody, and with "
            f"jemalloc, which keeps freed memory for everybody. {_kept_gradients(others)} They "
            "compare with the fastest other form there was."
        )
    table = markdown_table((header, lines), left=1)
    verdicts = [verdict(document, named=False)]
    verdicts += [
        f"With {memory} for everybody: {verdict(other, named=False)}"
        for memory, other in others.items()
    ]
    return "\n\n".join((intro, table, heading(document), *verdicts))
