"""Whether Triton's interpreter works beside the NumPy that is installed.

Triton 3.6 makes Python numbers of arrays of one element, which NumPy 2.4 refuses. As a program, in
an environment with TRITON_INTERPRET=1, this file runs a loop that needs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(out, end):
    """The sum of the numbers below `end`."""
    total = tl.zeros([1], tl.int32)
    for number in range(0, end):
        total += number
    tl.store(out + tl.arange(0, 1), total)


def refusal(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why the interpreter runs no loop in this environment; None if it does."""
    given = {**environment, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=given, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"Triton's interpreter runs no loop: {done.stderr.strip().splitlines()[-1]}"


if __name__ == "__main__":
    out = torch.zeros(1, dtype=torch.int32)
    count_kernel[(1,)](out, 4)
    assert out.item() == 6, out
