"""How far F1 of small batches is from F1 of all data: the table in docs/distributed.md.

    python docs/bias.py            # print it
    python docs/bias.py --write    # write it into docs/distributed.md

One population of probabilities that are calibrated (a label is 1 with its probability), prevalence
about 3 %. Batches are drawn at random from it, and the mean over batches of 1 - loss is compared
with that of the population. A batch is scored as it is, smoothed, left out where it has no
positive, or as one of 8 parts whose sums are added up.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import Tensor

import customloss

POPULATION, DRAWS = 1 << 20, 1 << 20
BATCHES = (8, 32, 128, 512, 4096)
PAGE = Path(__file__).with_name("distributed.md")
BLOCK = re.compile(r"(<!-- table: bias -->\n).*?(<!-- /table -->)", re.DOTALL)


def population() -> tuple[Tensor, Tensor]:
    """Probabilities and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(POPULATION, generator=generator, dtype=torch.float64) - 8.2
    p = torch.sigmoid(logits)
    return p, torch.rand(POPULATION, generator=generator) < p


def similarities(p: Tensor, target: Tensor, **options: object) -> Tensor:
    """1 - loss of every row."""
    return 1 - customloss.soft_f1_loss(
        p, target, activation="none", average="micro", samplewise=True, reduction="none", **options
    )


def row(batch: int, p: Tensor, target: Tensor, whole: float) -> str:
    """A line of the table: the bias of batches of this size, per policy."""
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.randint(POPULATION, (DRAWS // batch, batch), generator=generator)
    p, target = p[drawn], target[drawn]
    present = target.any(1)
    scored = similarities(p, target)
    smoothed = similarities(p, target, smooth=1.0)
    pooled = p.reshape(-1, 8 * batch), target.reshape(-1, 8 * batch)
    columns = [
        f"{batch}",
        f"{target.double().sum(1).mean():.1f}",
        f"{1 - present.double().mean():.2f}",
        *(f"{found.mean() - whole:+.3f}" for found in
          (scored, smoothed, scored[present], similarities(*pooled))),
        f"{scored.std():.2f}",
    ]  # fmt: skip
    return " | ".join(("", *columns, "")).strip()


def table() -> str:
    """The table in Markdown."""
    p, target = population()
    whole = float(similarities(p[None], target[None]))
    heads = [
        "batch", "positives", "none of them", 'bias, `absent="score"`', "bias, `smooth=1`",
        'bias, `absent="skip"`', "bias, sums of 8 batches", "sd of a batch",
    ]  # fmt: skip
    lines = [
        f"Soft F1 of the population {whole:.3f}, prevalence {target.double().mean():.1%}.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
        *(row(batch, p, target, whole) for batch in BATCHES),
    ]
    return "\n".join(lines)


def main() -> None:
    found = table()
    print(found)
    if "--write" in sys.argv[1:]:
        page = BLOCK.sub(lambda match: f"{match[1]}{found}\n{match[2]}", PAGE.read_text())
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
