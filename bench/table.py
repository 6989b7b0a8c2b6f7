"""Writes the committed results into Markdown, so that no number in it is typed by hand.

A result is what ``customloss bench``, with or without ``--roof``, saved as
bench/results/FOLDER/FILE.json. All of it is written between ``<!-- table: FOLDER/FILE.json -->``
and ``<!-- /table -->``. A few rows of one without ``--roof`` are written between
``<!-- headline: FOLDER/FILE.json -->`` and ``<!-- /headline -->``. What ``customloss demo`` saved
is written between ``<!-- training: FILE.json -->`` and ``<!-- /training -->``, and what switch.py
saved between ``<!-- switch: FOLDER/FILE.json -->`` and ``<!-- /switch -->``. The files are those
named, or bench/README.md and ``PAGES``::

    python bench/table.py [--check] [FILE.md ...]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import switch  # beside this file

from customloss._bench import report, results, roof, roof_table
from customloss._demo import report as training

HERE = Path(__file__).parent
PAGES = ("README.md", "docs/training.md", "docs/switch.md")
BLOCK = re.compile(
    r"(<!-- (table|headline|training|switch): (\S+) -->\n).*?(<!-- /\2 -->)", re.DOTALL
)


def tables(path: Path) -> str:
    """All of a result, of either kind."""
    document, others = results.load(path), results.in_other_memory(path)
    if document["suite"] == roof.SUITE:
        return roof_table.markdown(document, others)
    return report.markdown(document, others)


KINDS: dict[str, Callable[[Path], str]] = {
    "table": tables,
    "headline": lambda path: report.headline(results.load(path), results.in_other_memory(path)),
    "switch": switch.markdown,
    "training": lambda path: training.markdown(json.loads(path.read_text())),
}


def block(kind: str, name: str) -> str:
    """The Markdown of one result."""
    path = HERE / "results" / name
    if not path.is_file():
        return f"No {name} recorded yet."
    try:
        return KINDS[kind](path)
    except results.NotAResult as reason:
        raise SystemExit(f"{path}: {reason}") from None


def filled(text: str) -> str:
    """The text with every block written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], match[3])}\n{match[4]}", text)


def main(arguments: list[str]) -> int:
    """0, or with ``--check`` the number of files that are out of date."""
    check = "--check" in arguments
    named = [Path(name) for name in arguments if name != "--check"]
    paths = named or [HERE / "README.md", *(HERE.parent / page for page in PAGES)]
    stale = 0
    for path in paths:
        before = path.read_text()
        after = filled(before)
        if after == before:
            continue
        stale += 1
        if check:
            print(f"{path}: out of date, run python bench/table.py {path}")
        else:
            path.write_text(after)
            print(f"{path}: written")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
