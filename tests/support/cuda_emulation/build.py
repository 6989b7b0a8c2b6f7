"""Builds csrc/cuda for the CPU, and loads it as ``torch.ops.customloss_emulated``.

The library is compiled once per content of its sources, into ``build/cuda_emulation``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
CACHE = ROOT / "build" / "cuda_emulation"
FLAGS = (
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    # No product is fused with a sum, so that equal expressions have equal bits in all kernels.
    "-ffp-contract=off",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)
SANITIZE = (
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
)
SOURCES = ("csrc/cuda/confusion.cu", "csrc/cuda/pixel.cu", "csrc/cuda/score.cu")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _sources(root: Path) -> list[Path]:
    found = [*root.glob("csrc/*.h"), *root.glob("csrc/cuda/*"), *Path(__file__).parent.glob("*")]
    return sorted(path for path in found if path.is_file())


def build(sanitize: bool = False, root: Path = ROOT, sources: tuple[str, ...] = SOURCES) -> Path:
    """The library of some sources, built from ``root``: the repository, or a copy of its csrc."""
    flags = FLAGS + (SANITIZE if sanitize else ())
    digest = hashlib.sha256(
        " ".join((*flags, *sources, torch.__version__, str(compiler()))).encode()
    )
    for path in _sources(root):
        digest.update(path.name.encode() + path.read_bytes())
    target = CACHE / f"{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    torch_root = Path(torch.__file__).parent
    # Written elsewhere and then moved, so that no other test process loads half a file.
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        aside = Path(folder) / target.name
        # All kernels are one translation unit, because threadIdx is a static variable of the shim.
        whole = Path(folder) / "whole.cpp"
        whole.write_text("".join(f'#include "{root / source}"\n' for source in sources))
        command = [
            str(compiler()), *flags, str(whole), "-o", str(aside),
            f"-ffile-prefix-map={root}=.",
            "-isystem", str(torch_root / "include"), f"-I{Path(__file__).parent}",
            f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")
        os.replace(aside, target)
    return target


@cache
def loaded(path: Path) -> Emulation:
    """The only one in this process, because operators can be defined only once."""
    return Emulation(path)


class Emulation:
    """The loaded library: its operators, and the switches of the shim."""

    def __init__(self, path: Path) -> None:
        from customloss._backends import choice
        from customloss._spec.arguments import PRIMITIVES

        self._library = torch.library.Library("customloss_emulated", "FRAGMENT")
        for name in PRIMITIVES:
            schema = str(getattr(torch.ops.customloss, name).default._schema)
            self._library.define(schema.removeprefix("customloss::"))
        torch.ops.load_library(str(path))
        self._symbols = ctypes.CDLL(str(path))
        self._symbols.cuda_emulation_launches.restype = ctypes.c_int64
        ops = torch.ops.customloss_emulated
        self.primitives = choice.operators_of(ops)
        self.confusion, self.confusion_score, self.confusion_backward, self.sums_score = (
            self.primitives
        )

    def seed(self, seed: int) -> None:
        """Sets the order of threads and blocks from here on."""
        self._symbols.cuda_emulation_seed(ctypes.c_uint64(seed))

    def launches(self) -> int:
        """Kernels launched so far."""
        return int(self._symbols.cuda_emulation_launches())

    def wide_index(self, wide: bool) -> None:
        """Forces the index arithmetic for tensors of more than 2**31 elements."""
        ctypes.c_bool.in_dll(self._symbols, "customloss_cuda_wide_index").value = wide
