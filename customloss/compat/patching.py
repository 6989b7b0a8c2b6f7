"""``patch("monai")``: the names of a peer stand for our losses, wherever they were imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from customloss._spec import checks


class Peer(NamedTuple):
    """A library whose losses can be replaced."""

    distribution: str  # what pip calls it
    versions: tuple[str, ...]  # the beginnings of those that the drop-ins were compared with
    ours: str  # the module of our drop-ins
    modules: tuple[str, ...]  # where the library defines the names


PEERS = {
    "monai": Peer(
        "monai", ("1.6.",), "customloss.compat.monai",
        (
            "monai.losses.dice", "monai.losses.tversky", "monai.losses.focal_loss",
            "monai.losses.mcc_loss", "monai.losses.unified_focal_loss",
            "monai.losses.spatial_mask", "monai.losses.ds_loss",
        ),
    ),
}  # fmt: skip


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
    """What :func:`patch` did. As a context manager it is undone at the end of the block.

    Attributes:
        replaced: the names, in full, that stand for our losses now.
    """

    def __init__(self, peers: Iterable[str]) -> None:
        self._peers = tuple(peers)
        self.replaced = tuple(str(each) for peer in self._peers for each in _ACTIVE[peer])

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
        return f"{len(self.replaced)} names replaced: {', '.join(self.replaced)}"


def patch(peer: str, *, any_version: bool = False, quiet: bool = False) -> Patch:
    """Lets the names of a library's losses stand for the fused losses of ``customloss.compat``.

    The names are replaced in every module that has imported them, and in the library itself, so
    that later imports get ours too. Losses that were made before stay what they are. A second call
    replaces what was imported since the first.
    A bundle of MONAI has to name a loss by its path, ``monai.losses.DiceCELoss``: by the name
    alone MONAI finds what it defines itself.

    Args:
        peer: ``"monai"``, or ``"all"`` for all of these that are installed.
        any_version: also with a version that the drop-ins were not compared with.
        quiet: print nothing; otherwise the names that were replaced.

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
    wanted = [name for name in PEERS if peer in (name, "all")]
    if peer == "all":
        wanted = [name for name in wanted if _version(PEERS[name]) is not None]
    for name in wanted:
        _check_version(name, any_version)
    for name in wanted:
        _replace(name)
    made = Patch(wanted)
    if not quiet:
        for name in wanted:
            print(f"customloss.patch({name!r}): {', '.join(map(str, _ACTIVE[name]))}")
    return made


def unpatch(peer: str) -> None:
    """Undoes :func:`patch`; of a library that is not patched, it does nothing.

    Args:
        peer: as of :func:`patch`.

    Raises:
        ValueError: another name.
    """
    checks.one_of("peer", peer, (*PEERS, "all"))
    for name in list(_ACTIVE):
        if peer in (name, "all"):
            for each in reversed(_ACTIVE.pop(name)):
                if vars(each.module).get(each.name) is each.now:
                    setattr(each.module, each.name, each.before)


def _version(peer: Peer) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_version(name: str, any_version: bool) -> None:
    peer = PEERS[name]
    version = _version(peer)
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


def _replace(name: str) -> None:
    """Replaces the names of a peer in all modules."""
    peer = PEERS[name]
    ours = importlib.import_module(peer.ours)
    defined = [importlib.import_module(module) for module in peer.modules]
    active = _ACTIVE.setdefault(name, [])
    known = {id(each.before): each.now for each in active}
    originals: dict[int, Callable[..., Any]] = {}
    for word in ours.__all__:
        for module in defined:
            found = vars(module).get(word)
            if found is not None and found.__module__ == module.__name__:
                originals[id(found)] = getattr(ours, word)
    originals |= known
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and not module.__name__.startswith("customloss."):
            for attribute, value in list(vars(module).items()):
                if id(value) in originals and value is not originals[id(value)]:
                    now = originals[id(value)]
                    active.append(Replaced(module, attribute, value, now))
                    setattr(module, attribute, now)
