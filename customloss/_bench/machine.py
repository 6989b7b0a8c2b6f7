"""Where a result is from: the machine, the versions, and the command that repeats it."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import customloss
from customloss._backends import libraries as compiled
from customloss._bench import libraries, memory

_PROCESSORS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_model() -> str:
    """The model of the CPU, as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _caches_of(processor: int) -> Iterator[tuple[str, int, str]]:
    """Name, bytes and sharing processors of each cache for data that a processor has."""
    for folder in sorted((_PROCESSORS / f"cpu{processor}" / "cache").glob("index*")):
        size, level, kind, shared = (
            (folder / name).read_text().strip()
            for name in ("size", "level", "type", "shared_cpu_list")
        )
        if kind != "Instruction" and size[:-1].isdigit() and size[-1:] in _UNITS:
            name = f"L{level}{'d' if kind == 'Data' else ''}"
            yield name, int(size[:-1]) * _UNITS[size[-1]], shared


def cpu_caches() -> dict[str, int]:
    """The bytes of each cache of the first core: ``{"L1d": ..., "L2": ..., "L3": ...}``."""
    return {name: size for name, size, _ in _caches_of(0)}


def cache_counts() -> dict[str, int]:
    """How many caches of each level serve the processors that this process may run on."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    found: dict[str, set[str]] = {name: set() for name in cpu_caches()}
    for processor in allowed:
        for name, _, shared in _caches_of(processor):
            found.setdefault(name, set()).add(shared)
    return {name: max(1, len(different)) for name, different in found.items()}


def cache_bytes(device: torch.device) -> int:
    """The size of the last-level cache; 32 MiB where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(cpu_caches().values(), default=32 << 20)


_UNKNOWN_MEMORY = 4 << 30


def free_bytes() -> int:
    """The memory that is free, in the machine and in the control group; 4 GiB if it is unknown."""
    found = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=_UNKNOWN_MEMORY)


def load_average() -> float | None:
    """The number of runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def describe(device: torch.device) -> dict[str, Any]:
    """The header of every result."""
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": cpu_caches(),
        "cache_counts": cache_counts(),
        "cache_bytes": cache_bytes(device),
        "load_average": load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "customloss": customloss.__version__,
        "backend": customloss.current_backend(),
        "kernels": kernels(device),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    described["kind"] = kind(described)
    return described


# ---- how it was made -------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """What it takes to repeat a result, beside the machine."""
    return {
        "commit": commit(),
        "command": shlex.join(["customloss", *sys.argv[1:]]),
        "memory": memory.current().value,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "libraries": libraries.versions(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)
        },
    }


# what a timing depends on: other files may change, results among them
_MEASURED = ("csrc", "kernels", "customloss", "setup.py", "build_support.py", "pyproject.toml")
_SETTINGS = (
    "CUSTOMLOSS_", "OMP_", "GOMP_", "KMP_", "MKL_", "THP_", "MALLOC_", "LD_PRELOAD",
)  # fmt: skip


def commit() -> str:
    """The commit of the source tree that customloss is imported from; elsewhere its version."""
    tree = Path(customloss.__file__).resolve().parents[1]
    head = _git(tree, "rev-parse", "HEAD") if (tree / "setup.py").is_file() else ""
    if not head:
        return f"version {customloss.__version__}"
    changed = _git(tree, "status", "--porcelain", "--", *_MEASURED)
    return head[:12] + (", changed" if changed else "")


def _git(tree: Path, *arguments: str) -> str:
    try:
        ran = subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


# ---- names -----------------------------------------------------------------------------------


def kind(described: dict[str, Any]) -> str:
    """The folder of results of a machine, e.g. ``cpu-intel-xeon-avx512-2-threads``.

    The instruction set is part of it, because processors of the same name differ in theirs.
    """
    loops = str(described["kernels"]).partition(", ")[2]
    cpu = f"cpu {described['cpu']} {loops} {described['threads']} threads"
    name = described.get("gpu") or cpu
    name = re.sub(r"\((r|tm)\)|\bprocessor\b", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def kernels(device: torch.device) -> str:
    """Which code serves ``torch.ops.customloss`` on this device."""
    name = "_C_cuda" if device.type == "cuda" else "_C"
    if not compiled.loaded(name):
        return f"fallback ({compiled.status.get(name)})"
    return name if device.type == "cuda" else f"{name}, {torch.ops.customloss.cpu_isa()}"
