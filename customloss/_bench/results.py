"""What a benchmark saves, and the numbers that follow from it: medians, ratios, shares of the roof.

A document holds every sample that was taken. Medians, ratios and shares are not saved but computed
here, so whoever doubts one can compute it in another way.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import customloss
from customloss._bench import measure
from customloss._bench.cases import Temperature
from customloss._bench.rivals import FAMILIES, OURS

SCHEMA = 2

Outcome = Literal["raced", "wrong", "failed", "absent"]


class Form(TypedDict):
    """One way to compute a loss, in one row. Without a right answer it has no times."""

    family: str
    form: str
    outcome: Outcome
    why: str | None
    value_error: float | None
    gradient_error: float | None
    seconds: list[float] | None  # a sample of every round
    saved_bytes: int | None
    peak_bytes: int | None


class Row(TypedDict):
    """One pass of one case. The samples with the same index are of the same round."""

    case: str
    shape: list[int]
    dtype: str
    which: str
    elements: int
    bytes: int
    rounds: int
    copies: int
    inputs: Temperature
    latency: bool
    probe_bytes: int
    probes: dict[str, list[float]]  # seconds to read so many bytes, and to copy them
    forms: list[Form]


class Document(TypedDict):
    """A whole benchmark, as it is saved."""

    schema: int
    made: dict[str, Any]
    machine: dict[str, Any]
    suite: str
    rows: list[Row]


# ---- numbers ---------------------------------------------------------------------------------


class Spread(NamedTuple):
    """The middle, the edges and the mean of many samples."""

    median: float
    p10: float
    p90: float
    mean: float


def spread(values: list[float]) -> Spread:
    """Median, 10th and 90th percentile, mean."""
    if len(values) == 1:
        return Spread(*values * 4)
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(statistics.median(values), tenths[0], tenths[-1], statistics.fmean(values))


def paired(theirs: list[float], ours: list[float]) -> list[float]:
    """The ratio of every round."""
    return [their / our for their, our in zip(theirs, ours)]


def ratio(theirs: list[float], ours: list[float]) -> Spread:
    """How many times as long they took, round by round; ``mean`` is the ratio of the means."""
    return spread(paired(theirs, ours))._replace(
        mean=statistics.fmean(theirs) / statistics.fmean(ours)
    )


def standing(row: Row, family: str) -> Form | None:
    """The form that represents a family in a row: the fastest of those that ran in every round.

    Without one that was right it is a wrong one, then one that failed, then one that is absent.
    """
    order = ("raced", "wrong", "failed", "absent")
    forms = [form for form in row["forms"] if form["family"] == family]
    return min(
        forms,
        key=lambda form: (
            order.index(form["outcome"]),
            -len(form["seconds"] or ()),
            spread(form["seconds"]).median if form["seconds"] else 0.0,
        ),
        default=None,
    )


def times(row: Row, family: str) -> Spread | None:
    """Seconds of the fastest right form of a family."""
    form = standing(row, family)
    return spread(form["seconds"]) if form and form["seconds"] else None


def speedup(row: Row, family: str) -> Spread | None:
    """How many times as long as ours a family took. None unless both answers are right."""
    theirs, ours = standing(row, family), standing(row, OURS)
    if not (theirs and ours and theirs["seconds"] and ours["seconds"]):
        return None
    return ratio(theirs["seconds"], ours["seconds"])


class Closest(NamedTuple):
    """The fastest other right answer of a row."""

    family: str
    ratio: Spread
    rounds: list[float]  # the ratio of every round


def closest(row: Row) -> Closest | None:
    """The family with the least median time beside ours."""
    ours = standing(row, OURS)
    others = [form for family in FAMILIES if family != OURS and (form := standing(row, family))]
    timed = [(spread(form["seconds"]).median, form) for form in others if form["seconds"]]
    if not (ours and ours["seconds"] and timed):
        return None
    _, form = min(timed, key=lambda pair: pair[0])
    assert form["seconds"] is not None
    taken = form["seconds"], ours["seconds"]
    return Closest(form["family"], ratio(*taken), paired(*taken))


def families(document: Document) -> list[str]:
    """The families that were timed, or were wrong, in some row; ours first."""

    def present(row: Row, family: str) -> bool:
        form = standing(row, family)
        return form is not None and form["outcome"] in ("raced", "wrong")

    return [f for f in FAMILIES if any(present(row, f) for row in document["rows"])]


# ---- the roof --------------------------------------------------------------------------------


class Rates(NamedTuple):
    """Bytes a second, as the probes of a row moved them."""

    read: float
    copy: float

    @property
    def best(self) -> float:
        return max(self)


def probed(bytes: int, seconds: dict[str, list[float]]) -> Rates:
    """From the samples of both probes: each reads ``bytes``, and the copy writes as many."""
    read, copy = (statistics.median(seconds[name]) for name in ("read", "copy"))
    return Rates(bytes / read, 2 * bytes / copy)


def rates(row: Row) -> Rates | None:
    """What the memory was seen to do in the rounds of a row; a latency has no roof."""
    return None if row["latency"] else probed(row["probe_bytes"], row["probes"])


def roof_seconds(row: Row) -> float | None:
    """The least time of a pass: the bytes that it has to move, at the best rate of the probes."""
    measured = rates(row)
    return row["bytes"] / measured.best if measured else None


def roof_share(row: Row, family: str) -> float | None:
    """How much of the roof a family reaches: the least time over the median of its times."""
    roof, taken = roof_seconds(row), times(row, family)
    return roof / taken.median if roof and taken else None


# ---- verdicts --------------------------------------------------------------------------------

LEVEL = 0.05  # how far the median of a level row may be from 1
FEWEST = measure.FIRST_ROUNDS  # rounds, below which nothing is said


def judged(rounds: list[float]) -> Literal["faster", "slower", "level", "unsettled"]:
    """Of the ratios of all rounds: faster or slower if nine in ten agree, else level near 1."""
    needed = 0.9 * max(len(rounds), FEWEST)
    if sum(ratio > 1 for ratio in rounds) >= needed:
        return "faster"
    if sum(ratio < 1 for ratio in rounds) >= needed:
        return "slower"
    near = len(rounds) >= FEWEST and abs(statistics.median(rounds) - 1) <= LEVEL
    return "level" if near else "unsettled"


def all_closest(document: Document) -> Iterator[tuple[Row, Closest]]:
    """Every row that has two right answers to compare."""
    for row in document["rows"]:
        found = closest(row)
        if found:
            yield row, found


# ---- files -----------------------------------------------------------------------------------


class NotAResult(Exception):
    """Raised for a file that this version cannot show; the message says why and what to do."""


def save(document: Document, path: Path) -> None:
    """Writes JSON that diffs well: a list of numbers is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = re.sub(r"\[([-+.\de,\s]+)\]", lambda list: f"[{' '.join(list[1].split())}]", text)
    path.write_text(text + "\n")


def set_aside(path: Path) -> Path | None:
    """Keeps an older result beside a new one, as DATE-TIME-NAME.json, and its figure by the same
    name; None if there is none."""
    if not path.is_file():
        return None
    changed = datetime.fromtimestamp(path.stat().st_mtime)
    stem = f"{changed:%Y%m%d-%H%M%S}-{path.stem}"
    figure = path.with_suffix(".png")
    if figure.is_file():
        figure.replace(figure.with_stem(stem))
    return path.replace(path.with_stem(stem))


def load(path: Path) -> Document:
    """What ``save`` wrote."""
    try:
        found: Any = json.loads(path.read_text())
    except ValueError:
        found = None
    saved = isinstance(found, dict) and "rows" in found
    if not saved:
        raise NotAResult("expected a JSON file that customloss bench saved")
    schema = found.get("schema", 1)
    if schema != SCHEMA:
        version = found.get("machine", {}).get("customloss")
        writer = f"version {version}" if version else "another version"
        raise NotAResult(
            f"{writer} of customloss saved the file, with schema {schema}; this is version "
            f"{customloss.__version__}, which reads schema {SCHEMA}: measure again, or use that "
            "version"
        )
    document: Document = found
    return document


def in_other_memory(path: Path) -> dict[str, Document]:
    """The same suite in other memory, saved in the same folder as NAME-MEMORY.json.

    They must be of the same machine, suite, commit and torch: else they could not be compared.
    """
    first = load(path)
    found: dict[str, Document] = {}
    for other in sorted(path.parent.glob(f"{path.stem}-*.json")):
        document = load(other)
        for mine, its in zip(_identity(first), _identity(document)):
            if mine != its:
                raise NotAResult(f"{other.name} is of {its}, {path.name} of {mine}")
        memory = document["made"]["memory"]
        if memory in found or memory == first["made"]["memory"]:
            raise NotAResult(f"{other.name} is one more with {memory} memory")
        found[memory] = document
    return found


def _identity(document: Document) -> tuple[str, ...]:
    machine = document["machine"]
    return machine["kind"], document["suite"], document["made"]["commit"], machine["torch"]
