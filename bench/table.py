"""Writes the committed results into Markdown, so that no number in it is typed by hand.

A result is what ``customloss bench`` saved as bench/results/FOLDER/FILE.json. All of it is written
between ``<!-- table: FOLDER/FILE.json -->`` and ``<!-- /table -->``, and a few rows of it between
``<!-- headline: FOLDER/FILE.json -->`` and ``<!-- /headline -->``. The files are those named, or
bench/README.md::

    python bench/table.py [--check] [FILE.md ...]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from customloss._bench import report

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (table|headline): (\S+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
KINDS = {"table": report.markdown, "headline": report.headline}


def block(kind: str, name: str) -> str:
    """The Markdown of one result."""
    path = HERE / "results" / name
    return KINDS[kind](report.load(path)) if path.is_file() else f"No {name} recorded yet."


def filled(text: str) -> str:
    """The text with every block written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], match[3])}\n{match[4]}", text)


def main(arguments: list[str]) -> int:
    """0, or with ``--check`` the number of files that are out of date."""
    check = "--check" in arguments
    paths = [Path(name) for name in arguments if name != "--check"] or [HERE / "README.md"]
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
