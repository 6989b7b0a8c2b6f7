"""What is done to a module as soon as it was imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Done = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """A finder that stands before the others in ``sys.meta_path``: it lets them find, and calls
    ``done`` behind the import of a module that is one of ``names``. It imports nothing itself."""

    def __init__(self, done: Done) -> None:
        self.names: set[str] = set()
        self._done = done
        self._looked_for: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with a loader that calls ``done``."""
        if fullname not in self.names or fullname in self._looked_for:
            return None
        self._looked_for.add(fullname)  # another finder of this kind may ask all finders, too
        try:
            spec = self._found(fullname, path, target)
        finally:
            self._looked_for.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(spec.loader, self._done)
        return spec

    def _found(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None:
                spec: ModuleSpec | None = find(fullname, path, target)
                if spec is not None:
                    return spec
        return None


class _Followed(Loader):
    """A loader, and what is done after it."""

    def __init__(self, loader: Loader, done: Done) -> None:
        self._loader, self._done = loader, done

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module of the loader itself."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, which is told the name of its own loader."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._done(module)
