"""The machine of a benchmark: everything about it that a reader needs to judge a timing."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import customloss
from customloss._backends import libraries

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_model() -> str:
    """The model of the CPU, as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpu_cache_bytes() -> int:
    """The largest cache of the first core; 32 MiB where it cannot be read."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1:] in _UNITS:
            sizes.append(int(text[:-1]) * _UNITS[text[-1]])
    return max(sizes, default=32 << 20)


def cache_bytes(device: torch.device) -> int:
    """The size of the last-level cache, which inputs must not fit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache_bytes()


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
        "cache_mib": cache_bytes(device) >> 20,
        "load_average": load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "customloss": customloss.__version__,
        "backend": customloss.current_backend(),
        "kernels": kernels(device),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    described["kind"] = _kind(described)
    return described


def _kind(described: dict[str, Any]) -> str:
    """The folder of bench/results that a result belongs to, e.g. ``cpu-amd-epyc-2-threads``."""
    name = described.get("gpu") or f"cpu {described['cpu']} {described['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def kernels(device: torch.device) -> str:
    """Which code serves ``torch.ops.customloss`` on this device."""
    name = "_C_cuda" if device.type == "cuda" else "_C"
    if not libraries.loaded(name):
        return f"fallback ({libraries.status.get(name)})"
    return name if device.type == "cuda" else f"{name}, {torch.ops.customloss.cpu_isa()}"
