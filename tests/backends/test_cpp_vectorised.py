"""gcc vectorises the loops that all rare combinations of sums share (``kEveryExtra``).

Nothing else tells when it no longer does: the results stay right, and take ten times as long.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch
from cpp_build import X86, from_setup, tool
from paths import ROOT

CPU = ROOT / "csrc" / "cpu"
LOOPS = (CPU / "tile_impl.h").read_text().splitlines()
SOURCE = """
#include "target_avx512.h"
#include "block.h"
#include "block_impl.h"
#include "tile_class.h"
#include "tile_fill.h"
#include "tile_impl.h"
namespace customloss::cpu {{
using P = Pixels<{type}, Activation::{activation}, kEveryExtra, false>;
void vectorised(const Tile<{type}>& tile, double* sums, const {type}* by, {type}* out) {{
  tile_sums<P, {type}>(P{{tile}}, sums, 1);
  tile_gradient<Wrt::kInput, P, {type}>(P{{tile}}, by, out, 1);
  tile_gradient<Wrt::kTarget, P, {type}>(P{{tile}}, by, out, 1);
  tile_gradient<Wrt::kWeight, P, {type}>(P{{tile}}, by, out, 1);
}}
}}  // namespace customloss::cpu
"""


def gcc() -> str:
    compiler = tool(os.environ.get("CXX", "c++"))
    if compiler is None or not X86:
        pytest.skip("needs a C++ compiler for x86")
    known = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in known or platform.system() != "Linux":
        pytest.skip("only gcc reports in this form")
    return compiler


def lines_of(call: str) -> range:
    """The lines of the loop over pixels in which `call` stands."""
    at = next(number for number, text in enumerate(LOOPS) if call in text)
    first = max(n for n, text in enumerate(LOOPS[:at]) if "for (int64_t i" in text)
    indent = LOOPS[first][: len(LOOPS[first]) - len(LOOPS[first].lstrip())]
    last = next(n for n, text in enumerate(LOOPS) if n > at and text == indent + "}")
    return range(first + 1, last + 2)


@pytest.mark.parametrize("activation", ["kSigmoid", "kNone", "kSoftmax"])
@pytest.mark.parametrize("type", ["float", "double"])
def test_loops_of_every_sum(type: str, activation: str, tmp_path: Path) -> None:
    source, report = tmp_path / "loops.cpp", tmp_path / "report.txt"
    source.write_text(SOURCE.format(type=type, activation=activation))
    command = [
        gcc(), *from_setup("CXX_FLAGS")["CXX_FLAGS"], "-fPIC",
        "-w", "-I", str(CPU), "-isystem", str(Path(torch.__file__).parent / "include"),
        f"-fopt-info-vec-optimized={report}", "-c", str(source), "-o", str(tmp_path / "loops.o"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"(\w+\.h):(\d+):\d+: optimized: loop vectorized using 64", report.read_text()
    )
    # gcc names a line of the loop, or of a function that it has put into the loop
    inside = [int(line) for file, line in found if file == "tile_impl.h"]
    below = sum(file in ("tile_class.h", "pixel.h") for file, _ in found)
    loops = ("one.shares_at(", "one.slopes_at(", "one.target_gradient_at(")
    vectorised = below + sum(line in lines_of(loop) for loop in loops for line in inside)
    assert vectorised == 4, "of the loops of the sums and of three gradients"
