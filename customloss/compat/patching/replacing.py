"""The names of one library, as far as they stand for ours at present."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from customloss.compat.patching.peers import Peer


class Replaced(NamedTuple):
    """A name that stands for one of our losses now, and what it stood for."""

    owner: Any  # a module; a class, if a method was replaced
    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        owner = self.owner
        full = owner.__name__
        if isinstance(owner, type):
            full = f"{owner.__module__}.{owner.__qualname__}"
        return f"{full}.{self.name}"


class Replacing:
    """What is replaced of a library, and how that is undone."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.replaced: list[Replaced] = []
        self._ours = importlib.import_module(peer.ours)
        self._now: dict[int, tuple[Any, Any]] = {}  # by the id of an original: it, and ours
        self._before: dict[int, Any] = {}  # by the id of ours: the original

    def refresh(self) -> None:
        """Replaces the names in all modules that there are."""
        for name in self.peer.names:
            if name in sys.modules:
                self._learn(sys.modules[name])
        for name in self.peer.more:
            if name in sys.modules:
                self._find_ours(sys.modules[name])
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                self._replace_in(module)

    def imported(self, module: ModuleType) -> None:
        """Replaces the names of a module that was imported right now, and in modules of the library
        that were imported on the way."""
        if module.__name__ in self.peer.more:
            self._find_ours(module)
            return
        self._learn(module)
        for each in self._modules_of_the_library():
            self._replace_in(each)

    def waiting(self) -> list[str]:
        """The modules that were not imported yet."""
        return [name for name in self.peer.names if name not in sys.modules]

    def undo(self) -> None:
        """Every name stands for what it stood for, unless somebody else changed it since."""
        for each in reversed(self.replaced):
            if vars(each.owner).get(each.name) is each.now:
                setattr(each.owner, each.name, each.before)
        # what the library itself has imported since, of names that stood for ours already
        for module in self._modules_of_the_library():
            for name, value in list(vars(module).items()):
                if id(value) in self._before:
                    setattr(module, name, self._before[id(value)])

    def _modules_of_the_library(self) -> Iterator[ModuleType]:
        package = self.peer.package
        for name, module in list(sys.modules.items()):
            inside = name == package or name.startswith(f"{package}.")
            if inside and isinstance(module, ModuleType):
                yield module

    def _learn(self, module: ModuleType) -> None:
        """Notes what a module defines, and what of ours shall stand for it."""
        for word in self.peer.names[module.__name__]:
            found = vars(module).get(word)
            if id(found) in self._before:
                continue
            if getattr(found, "__module__", None) != module.__name__:
                warnings.warn(
                    f"customloss.patch: {module.__name__} does not define {word} itself, as the "
                    f"tested {self.peer.title} does, so that name stays what it is",
                    stacklevel=2,
                )
                continue
            now = getattr(self._ours, word)
            if id(now) in self._before:
                now = _copied(now, module.__name__)
            self._now[id(found)] = found, now
            self._before[id(now)] = found

    def _replace_in(self, module: ModuleType) -> None:
        if module.__name__.startswith("customloss."):
            return
        for name, value in list(vars(module).items()):
            if id(value) in self._now:
                before, now = self._now[id(value)]
                self._set(module, name, before, now)

    def _find_ours(self, module: ModuleType) -> None:
        """Runs what a module needs that looks for losses in its own way."""
        where, _, function = self.peer.more[module.__name__].partition(":")
        find_ours = getattr(importlib.import_module(where), function)
        if not any(getattr(each.owner, "__module__", "") == module.__name__
                   for each in self.replaced):  # fmt: skip
            owner, name, now = find_ours(module, self.replaced)
            self._set(owner, name, vars(owner)[name], now)

    def _set(self, owner: Any, name: str, before: Any, now: Any) -> None:
        setattr(owner, name, now)
        self.replaced.append(Replaced(owner, name, before, now))


def _copied(loss: Any, module: str) -> Any:
    """A function that stands for one of the same formula in another module already. A copy, which
    is found in that module, lets undoing tell them apart."""
    if not isinstance(loss, FunctionType):
        raise TypeError(f"peers.py: {loss.__name__} stands for two classes of one library")
    copy = FunctionType(
        loss.__code__, loss.__globals__, loss.__name__, loss.__defaults__, loss.__closure__
    )
    copy.__kwdefaults__ = loss.__kwdefaults__
    functools.update_wrapper(copy, loss)
    copy.__module__ = module
    return copy
