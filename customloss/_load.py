"""Finds and loads the compiled libraries, and remembers why one was not loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).parent

# name -> None where it is loaded, else the reason it is not
status: dict[str, str | None] = {}


def build_record() -> dict[str, Any]:
    """What setup.py wrote down at build time; empty for a source tree that was never built."""
    path = _HERE / "_build.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _library(name: str) -> Path | None:
    found = sorted(_HERE.glob(f"{name}.*.so")) + sorted(_HERE.glob(f"{name}.so"))
    found += sorted(_HERE.glob(f"{name}*.pyd"))
    return found[0] if found else None


def _load(name: str, absent: str) -> None:
    path = _library(name)
    if path is None:
        status[name] = absent
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        built = build_record().get("torch", "unknown")
        status[name] = f"built with torch {built}, running {torch.__version__}: {error}"
    else:
        status[name] = None


def load() -> None:
    """Loads ``_C``, and ``_C_cuda`` where torch has CUDA."""
    _load("_C", f"not built: no _C library beside {_HERE}")
    if torch.version.cuda is None:
        status["_C_cuda"] = "this torch has no CUDA"
    else:
        _load("_C_cuda", "not built: no CUDA toolkit was found, or CUSTOMLOSS_CUDA=0")


def loaded(name: str) -> bool:
    """Whether ``_C`` or ``_C_cuda`` is in use."""
    return status.get(name, "load() has not run") is None
