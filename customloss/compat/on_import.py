"""Calls a function right after a module is imported, for modules that nobody has imported yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Then = Callable[[ModuleType], None]


class _Loader(Loader):
    """The loader of a module, and what follows its import."""

    def __init__(self, loader: Any, then: Then) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # the module shall know its own loader, as pkgutil and inspect ask for it
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(MetaPathFinder):
    """Stands before the other finders, and lets them find the modules that are waited for."""

    def __init__(self) -> None:
        self.waiting: dict[str, Then] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        then = self.waiting.get(name)
        if then is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, then)
                return spec
        return None


_FINDER = _Finder()


def after_import(name: str, then: Then) -> None:
    """Calls ``then(module)`` as soon as the module ``name`` is imported; one function a module."""
    _FINDER.waiting[name] = then
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def forget(name: str) -> None:
    """Waits for this module no longer."""
    _FINDER.waiting.pop(name, None)
    if not _FINDER.waiting and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
