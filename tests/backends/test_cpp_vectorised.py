"""gcc vectorises the plain loops: of single elements, and those that all rare combinations of sums
share (``kEveryExtra``).

Nothing else tells when it no longer does: the results stay right, and take ten times as long.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cpp_build import ARM_COMPILER, X86, from_setup, tool
from paths import ROOT

CPU = ROOT / "csrc" / "cpu"
LOOPS = (CPU / "tile_impl.h").read_text().splitlines()
SOURCE = """
#include {first}
#include <utility>
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


class Set(NamedTuple):
    """An instruction set: what its sources include first, the bytes of a register, and how objdump
    writes divisions of any numbers and of whole registers.
    """

    first: str
    width: int
    divides: str
    divides_registers: str
    cross: bool = False


SETS = {
    "baseline": Set("<type_traits>", 16, r"\bdiv[ps][sd]\b", r"\bdivp[sd]\b"),
    "avx2": Set('"target_avx2.h"', 32, r"\bvdiv", r"\bvdivp.*%ymm"),
    "avx512": Set('"target_avx512.h"', 64, r"\bvdiv", r"\bvdivp.*%[yz]mm"),
    "neon": Set("<type_traits>", 16, r"\bfdiv\b", r"\bfdiv\tv", cross=True),
}


def gcc(isa: str) -> str:
    name = ARM_COMPILER if SETS[isa].cross else os.environ.get("CXX", "c++")
    compiler = tool(name)
    if compiler is None or not (X86 or SETS[isa].cross):
        pytest.skip(
            f"needs a compiler for {isa}: there is no {name} here, or it is for another one"
        )
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


def compiled(isa: str, source: Path, to: Path, *options: str) -> None:
    command = [
        gcc(isa), *from_setup("CXX_FLAGS")["CXX_FLAGS"], "-fPIC",
        "-w", "-I", str(CPU), "-isystem", str(Path(torch.__file__).parent / "include"),
        *options, "-c", str(source), "-o", str(to),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("activation", ["kSigmoid", "kNone", "kSoftmax"])
@pytest.mark.parametrize("type", ["float", "double"])
def test_loops_of_every_sum(type: str, activation: str, isa: str, tmp_path: Path) -> None:
    if isa == "baseline" and type == "double":
        pytest.skip(
            "SSE2 has no comparisons of 64 bits, so that gcc leaves these loops as they are"
        )
    source, report = tmp_path / "loops.cpp", tmp_path / "report.txt"
    source.write_text(SOURCE.format(type=type, activation=activation, first=SETS[isa].first))
    compiled(isa, source, tmp_path / "loops.o", f"-fopt-info-vec-optimized={report}")
    width = SETS[isa].width
    found = re.findall(
        rf"(\w+\.h):(\d+):\d+: optimized: loop vectorized using {width}", report.read_text()
    )
    # gcc names a line of the loop, or of a function that it has put into the loop
    inside = [int(line) for file, line in found if file == "tile_impl.h"]
    below = sum(file in ("tile_class.h", "pixel.h") for file, _ in found)
    loops = ("one.shares_at(", "one.slopes_at(", "one.target_gradient_at(")
    vectorised = below + sum(line in lines_of(loop) for loop in loops for line in inside)
    assert vectorised == 4, "of the loops of the sums and of three gradients"


@pytest.mark.parametrize("isa", SETS)
def test_loops_of_elements(isa: str, tmp_path: Path) -> None:
    """Every sigmoid divides: where it does so one number at a time, in the rest of a loop, there is
    another division of whole registers before it. A probability needs none, and must not be a call.
    """
    objdump = tool(gcc(isa).replace("g++", "objdump") if SETS[isa].cross else "objdump")
    if objdump is None:
        pytest.skip("needs objdump")
    compiled(isa, CPU / f"isa_{isa}_blocks.cpp", tmp_path / "blocks.o")
    shown = subprocess.run(
        [objdump, "-d", "-C", "--no-show-raw-insn", str(tmp_path / "blocks.o")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", shown, flags=re.MULTILINE)[1:]
    bodies = list(zip(functions[::2], functions[1::2], strict=True))
    assert [name for name, _ in bodies if re.search(r"Known<[^>]*>::\w+", name)] == []
    dividing = [(name, body) for name, body in bodies if re.search(SETS[isa].divides, body)]
    assert len(dividing) > 20
    whole = SETS[isa].divides_registers
    scalar = [name for name, body in dividing if not re.search(whole, body)]
    assert scalar == []
