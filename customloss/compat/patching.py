"""``patch("monai")``: the names of a peer stand for our losses, wherever they were imported."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from customloss._spec import checks
from customloss.compat import on_import
from customloss.compat.peers import PEERS


class Replaced(NamedTuple):
    """A name that stands for one of our losses now, and what it stood for."""

    module: ModuleType
    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.module.__name__}.{self.name}"


# what is replaced at present, by peer
_ACTIVE: dict[str, list[Replaced]] = {}


class Patch:
    """What :func:`patch` did. As a context manager it is undone at the end of the block."""

    def __init__(self, peers: Iterable[str]) -> None:
        self._peers = tuple(peers)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names, in full, that stand for our losses now."""
        return tuple(str(each) for peer in self._peers for each in _ACTIVE.get(peer, ()))

    @property
    def later(self) -> tuple[str, ...]:
        """The modules that are not imported yet, in which names will be replaced."""
        peers = [peer for peer in self._peers if peer in _ACTIVE]
        return tuple(name for peer in peers for name in _not_imported(peer))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self._peers:
            unpatch(peer)

    def __repr__(self) -> str:
        later = f"; when they are imported: {', '.join(self.later)}" if self.later else ""
        return f"{len(self.replaced)} names replaced: {', '.join(self.replaced)}{later}"


def patch(peer: str, *, any_version: bool = False, quiet: bool = False) -> Patch:
    """Lets the names of a library's losses stand for the fused losses of ``customloss.compat``.

    The names are replaced in every module that has imported them, and in the library itself, so
    that later imports get ours too; a module of the library that nobody has imported yet is not
    imported now, but changed when it is. Losses that were made before stay what they are. A second
    call replaces what was imported since the first.

    Names that ours refuses in every call stay those of the library. Processes that are started anew
    (``spawn``) are not patched, unless the file that they import calls ``patch`` itself.
    A bundle of MONAI has to name a loss by its path, ``monai.losses.DiceCELoss``: by the name
    alone MONAI finds what it defines itself.

    Args:
        peer: ``"monai"``, ``"nnunet"``, ``"smp"``, ``"toolbelt"``, ``"kornia"``,
            ``"torchvision"``, ``"transformers"``; or ``"all"`` for all of these that are
            installed, where one in a version that the drop-ins were not compared with is left
            alone, with a warning.
        any_version: also with a version that the drop-ins were not compared with.
        quiet: print nothing; otherwise the names, when they are replaced.

    Returns:
        What was replaced; as a context manager, ``with customloss.patch("monai"):``, it is undone
        at the end of the block. :func:`unpatch` undoes it too.

    Raises:
        ValueError: another name.
        ModuleNotFoundError: the library is not installed.
        RuntimeError: it is, in a version that the drop-ins were not compared with.

    Example::

        import customloss

        customloss.patch("monai")
        from monai.losses import DiceCELoss  # customloss.compat.monai.DiceCELoss
    """
    checks.one_of("peer", peer, (*PEERS, "all"))
    wanted = _tested(any_version) if peer == "all" else [peer]
    for name in wanted:
        _check_version(name, any_version)
    for name in wanted:
        _replace(name, quiet)
    return Patch(wanted)


def _tested(any_version: bool) -> list[str]:
    """Those that are installed, without the ones whose version was not compared with."""
    tested = []
    for name, peer in PEERS.items():
        if peer.version() is None:
            continue
        try:
            _check_version(name, any_version)
        except RuntimeError as reason:
            warnings.warn(f"{reason}; its losses are left alone", stacklevel=3)
        else:
            tested.append(name)
    return tested


def unpatch(peer: str) -> None:
    """Undoes :func:`patch`; of a library that is not patched, it does nothing.

    What a module of yours has imported from a patched library stays ours there.

    Args:
        peer: as of :func:`patch`.

    Raises:
        ValueError: another name.
    """
    checks.one_of("peer", peer, (*PEERS, "all"))
    for name in list(_ACTIVE):
        if peer in (name, "all"):
            _undo(name)


def _undo(name: str) -> None:
    """Gives all names back, also those that the library took over from its own modules since."""
    for waited in PEERS[name].modules:
        on_import.forget(waited)
    before: dict[int, Any] = {}
    for each in reversed(_ACTIVE.pop(name)):
        before[id(each.now)] = each.before
        if vars(each.module).get(each.name) is each.now:
            setattr(each.module, each.name, each.before)
    top = PEERS[name].modules[0].partition(".")[0]
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module_name.partition(".")[0] == top:
            for attribute, value in list(vars(module).items()):
                if id(value) in before:
                    setattr(module, attribute, before[id(value)])


def _check_version(name: str, any_version: bool) -> None:
    peer = PEERS[name]
    version = peer.version()
    if version is None:
        raise ModuleNotFoundError(
            f"patch({name!r}): {peer.distribution} is not installed: pip install "
            f"{peer.distribution}; its losses are in {peer.ours} without it"
        )
    if not (any_version or version.startswith(peer.versions)):
        tested = " or ".join(f"{beginning}*" for beginning in peer.versions)
        raise RuntimeError(
            f"patch({name!r}): expected {peer.distribution} {tested}, which the drop-ins were "
            f"compared with, got {version}: any_version=True takes it all the same"
        )


def _not_imported(name: str) -> list[str]:
    return [module for module in PEERS[name].modules if module not in sys.modules]


def _replace(name: str, quiet: bool) -> None:
    """Replaces the names of a peer in all modules, now and when more of them are imported."""

    def replace(_: object = None) -> None:
        new = _replace_now(name)
        if new and not quiet:
            print(f"customloss.patch({name!r}): {', '.join(map(str, new))}")

    replace()
    later = _not_imported(name)
    for module in later:
        on_import.after_import(module, replace)
    if later and not quiet:
        print(f"customloss.patch({name!r}), when they are imported: {', '.join(later)}")


def _replace_now(name: str) -> list[Replaced]:
    """Replaces the names of a peer in what is imported."""
    active = _ACTIVE.setdefault(name, [])
    originals = {id(each.before): each.now for each in active} | _originals(name)
    new = []
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and not module.__name__.startswith("customloss."):
            for attribute, value in list(vars(module).items()):
                now = originals.get(id(value))
                if now is not None and value is not now:
                    new.append(Replaced(module, attribute, value, now))
                    setattr(module, attribute, now)
    active += new
    return new


def _originals(name: str) -> dict[int, Callable[..., Any]]:
    """Ours by the identity of what the peer defines in the modules that are imported."""
    peer = PEERS[name]
    ours = importlib.import_module(peer.ours)
    words = [word for word in ours.__all__ if word not in peer.stay]
    found = {}
    for module in peer.modules:
        defined = vars(sys.modules[module]) if module in sys.modules else {}
        for word in words:
            if getattr(defined.get(word), "__module__", None) == module:
                found[id(defined[word])] = getattr(ours, word)
    return found
