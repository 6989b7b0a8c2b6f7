"""Stand-ins for packages that a library imports and that are not installed.

nnU-Net imports readers of images, augmentations and networks with its trainers. A test of its
losses needs none of these, so that ``pip install --no-deps nnunetv2`` is enough: whatever is asked
of a missing package is an empty class.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Union


def _made(owner: Any, name: str) -> Any:
    """An empty class, which has every attribute as well, and takes any arguments."""
    if name.startswith("__"):
        raise AttributeError(name)
    body = {"__module__": "stand_ins", "__init__": lambda self, *args, **named: None}
    made = _Empty(name, (), body)
    setattr(owner, name, made)
    return made


class _Empty(type):
    __getattr__ = _made


class _StandIn(ModuleType):
    __getattr__ = _made


class StandIns(MetaPathFinder, Loader):
    """The last finder of all: it finds ``packages``, and what lies in them, if no other does."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(WITH_A_STAR.get(module.__name__, {}))


# what nnU-Net uses of these: it imports them with a star, also for annotations
WITH_A_STAR = {
    "batchgenerators.utilities.file_and_folder_operations": {
        "List": list, "Tuple": tuple, "Union": Union, "isdir": os.path.isdir,
        "isfile": os.path.isfile, "join": os.path.join, "os": os,
        "maybe_mkdir_p": partial(os.makedirs, exist_ok=True),  # for the log
    },
}  # fmt: skip
# what nnU-Net 2.8 imports with its trainers
OF_NNUNET = (
    "SimpleITK", "acvl_utils", "batchgenerators", "batchgeneratorsv2", "blosc2",
    "dynamic_network_architectures", "einops", "matplotlib", "nibabel", "pandas", "seaborn",
    "skimage", "sklearn", "threadpoolctl", "tifffile", "timm", "tqdm", "yacs",
)  # fmt: skip


def install() -> None:
    """From now on nnU-Net's trainers can be imported."""
    sys.meta_path.append(StandIns(OF_NNUNET))
