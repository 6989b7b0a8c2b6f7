"""What half precision loses of a gradient, by the size of a group: a table of mixed_precision.md.

    python docs/underflow.py            # print it
    python docs/underflow.py --write    # write it into docs/mixed_precision.md

Standard normal logits, 5 % positive, one group. The error is that of the whole gradient, in the
2-norm, against float64.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import Tensor

import customloss

PAGE = Path(__file__).with_name("mixed_precision.md")
BLOCK = re.compile(r"(<!-- table: underflow -->\n).*?(<!-- /table -->)", re.DOTALL)
SIZES = (2**10, 2**14, 2**18, 2**22)


def gradients(size: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of the scaled loss in ``dtype``, unscaled in float64, and the float64 one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator)
    target = torch.rand(size, generator=generator) < 0.05
    x = logits.to(dtype).requires_grad_()
    (scale * customloss.soft_f1_loss(x, target)).backward()
    wide = x.detach().double().requires_grad_()
    customloss.soft_f1_loss(wide, target).backward()
    return x.grad.double() / scale, wide.grad


def error(size: int, dtype: torch.dtype, scale: float = 1.0) -> float:
    own, expected = gradients(size, dtype, scale)
    return float((own - expected).norm() / expected.norm())


def row(size: int) -> str:
    own, expected = gradients(size, torch.float16, 1.0)
    columns = [
        f"2^{size.bit_length() - 1}",
        f"{expected.abs().max():.0e}",
        f"{(own == 0).double().mean():.0%}",
        f"{error(size, torch.float16):.0e}",
        f"{error(size, torch.float16, 2.0**10):.0e}",
        f"{error(size, torch.float16, 2.0**16):.0e}",
        f"{error(size, torch.bfloat16):.0e}",
    ]
    return " | ".join(("", *columns, "")).strip()


def table() -> str:
    """The table in Markdown."""
    heads = [
        "elements", "largest gradient", "0 in float16", "error in float16", "scaled by 2^10",
        "scaled by 2^16", "error in bfloat16",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *map(row, SIZES)]
    return "\n".join(lines)


def main() -> None:
    found = table()
    print(found)
    if "--write" in sys.argv[1:]:
        page = BLOCK.sub(lambda match: f"{match[1]}{found}\n{match[2]}", PAGE.read_text())
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
