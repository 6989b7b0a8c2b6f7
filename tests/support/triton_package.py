"""Makes ``customloss.kernels`` importable from a source tree that is not installed."""

from __future__ import annotations

import importlib.util
import sys

from paths import ROOT

import customloss


def load() -> None:
    """Imports ``kernels/`` as ``customloss.kernels``, unless the installed package has it."""
    if importlib.util.find_spec("customloss.kernels") is not None:
        return
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "customloss.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["customloss.kernels"] = module
    spec.loader.exec_module(module)
    customloss.kernels = module  # type: ignore[attr-defined]
