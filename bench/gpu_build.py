"""Makes sure that ``_C_cuda`` has code for the GPU of this machine: builds it if it has not.

    python bench/gpu_build.py [--stand-in]

It installs this tree in place, without a network and without dependencies. The exit status is 1 if
there are no compiled kernels for the GPU in the end. ``--stand-in``, where no GPU is, does the same
with the kernels of the CPU, and builds nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

TREE = Path(__file__).resolve().parents[1]
# in a process of its own: a library that is loaded stays
LOADED = """
import sys, torch, customloss
name = sys.argv[1]
if name == "_C_cuda":
    torch.cuda.init()
info = customloss.build_info()
print(info)
library = info.cuda if name == "_C_cuda" else info.cpu
sys.exit(not library.loaded)
"""
CAPABILITY = "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"


def loaded(name: str) -> bool:
    """Whether the library is built and has code for this machine; prints what is installed."""
    return not subprocess.run([sys.executable, "-c", LOADED, name], cwd=TREE).returncode


def build() -> int:
    """Builds for the first GPU alone."""
    capability = subprocess.run(
        [sys.executable, "-c", CAPABILITY], cwd=TREE, check=True, capture_output=True, text=True
    ).stdout.strip()
    wanted = {
        "TORCH_CUDA_ARCH_LIST": capability, "CUSTOMLOSS_CUDA": "1",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }  # fmt: skip
    print(f"building for compute capability {capability}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
    return subprocess.run(
        [*pip, "--no-build-isolation", "-e", "."], cwd=TREE, env=os.environ | wanted
    ).returncode


def main(stand_in: bool) -> int:
    """0 if there are compiled kernels."""
    if not stand_in and not torch.cuda.is_available():
        print("torch finds no GPU here; --stand-in tries the stages on the CPU", flush=True)
        return 1
    name = "_C" if stand_in else "_C_cuda"
    if not loaded(name) and (stand_in or build() or not loaded(name)):
        print(f"{name} does not serve this machine, see above", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--stand-in" in sys.argv[1:]))
