"""Makes ``customloss.kernels`` importable from a source tree that is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from paths import ROOT

import customloss


def load() -> None:
    """Imports ``kernels/`` as ``customloss.kernels``, unless the package that is tested has it. An
    editable installation of another tree has it too, but not that of this one."""
    found = importlib.util.find_spec("customloss.kernels")
    folder = ROOT / "kernels"
    is_tree = Path(customloss.__file__).is_relative_to(ROOT) and folder.is_dir()
    if found is not None and (not is_tree or found.origin == str(folder / "__init__.py")):
        return
    spec = importlib.util.spec_from_file_location(
        "customloss.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["customloss.kernels"] = module
    spec.loader.exec_module(module)
    customloss.kernels = module  # type: ignore[attr-defined]
