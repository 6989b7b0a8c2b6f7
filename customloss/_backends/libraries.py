"""Finds and loads the compiled libraries, and remembers why one was not loaded.

They use the LibTorch stable ABI and are no Python modules, so ``torch.ops.load_library`` loads
them. Without ``_C`` everything works on the plain backend: slower, and a warning says why.
"""

from __future__ import annotations

import json
import warnings
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

# the folder of the package, where the build leaves the libraries
_HERE = Path(__file__).resolve().parents[1]

# name -> None if it is loaded, else the reason why it is not
status: dict[str, str | None] = {}
# name -> the file that was loaded
paths: dict[str, Path] = {}


def build_record() -> dict[str, Any]:
    """What setup.py wrote down at build time; empty where it did not build these libraries."""
    path = _HERE / "_build.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _library(name: str) -> Path | None:
    """The file that Python itself would take for a module of this name."""
    candidates = (_HERE / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _shadowed() -> Path | None:
    """The folder of an installed customloss that this one hides, if this one is a source tree."""
    if not (_HERE.parent / "setup.py").is_file():
        return None
    for folder in {Path(str(each.locate_file(""))) for each in metadata.distributions()}:
        other = (folder / "customloss").resolve()
        if other != _HERE and any(other.glob("_C.*")):
            return other
    return None


def _why_absent(name: str) -> str:
    if name == "_C_cuda" and (reason := build_record().get("no_cuda")):
        return f"not built: {reason}"
    other = _shadowed()
    if other is not None:
        return (
            f"imported from the source tree {_HERE.parent}, which hides the customloss installed "
            f"in {other.parent}. Start Python in another folder, or build this tree: "
            "pip install --no-build-isolation -e ."
        )
    return f"not built: no {name}{EXTENSION_SUFFIXES[-1]} or other {name}.* library in {_HERE}"


def _load(name: str) -> None:
    path = _library(name)
    if path is None:
        status[name] = _why_absent(name)
        return
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        built = build_record().get("torch", "an unknown version")
        status[name] = (
            f"{path.name} was built with torch {built} and does not load into "
            f"{torch.__version__}: {error}"
        )
    else:
        status[name], paths[name] = None, path


def load() -> None:
    """Loads ``_C``, and ``_C_cuda`` where torch has CUDA.

    Raises a ValueError if CUSTOMLOSS_HUGE_PAGES or CUSTOMLOSS_GRADIENT_CACHE, which ``_C`` reads
    once, holds another word than those it may.
    """
    _load("_C")
    if status["_C"] is None:
        try:
            torch.ops.customloss.cpu_huge_pages()
            torch.ops.customloss.cpu_gradient_cache()
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
    if torch.version.cuda is None:
        status["_C_cuda"] = "this torch has no CUDA"
    else:
        _load("_C_cuda")
    if status["_C"] is not None:
        warnings.warn(
            f"customloss computes CPU losses with its slow reference: {status['_C']}",
            RuntimeWarning,
            stacklevel=2,
        )


def loaded(name: str) -> bool:
    """Whether ``_C`` or ``_C_cuda`` is in use."""
    return status.get(name, "load() has not run") is None
