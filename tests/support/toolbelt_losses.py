"""The losses of pytorch-toolbelt without the rest of it, which needs OpenCV and torchvision."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

NEEDS = "pytorch_toolbelt"


def installed() -> bool:
    return NEEDS in sys.modules or find_spec(NEEDS) is not None


def load(module: str) -> Any:
    """``pytorch_toolbelt.losses.<module>``."""
    if NEEDS not in sys.modules:
        spec = find_spec(NEEDS)
        assert spec is not None and spec.origin is not None
        top = Path(spec.origin).parent
        for part in ("", ".losses", ".utils"):
            bare = ModuleType(NEEDS + part)
            bare.__path__ = [str(top / part.strip("."))]
            bare.__spec__ = ModuleSpec(bare.__name__, None, is_package=True)
            sys.modules[bare.__name__] = bare
        sys.modules[f"{NEEDS}.utils"].pytorch_toolbelt_deprecated = (  # type: ignore[attr-defined]
            lambda message: lambda function: function
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about its autocast
        return importlib.import_module(f"{NEEDS}.losses.{module}")
