"""``patch("monai")``: the names of a peer stand for our losses, wherever they are imported."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType, TracebackType

from customloss._spec import checks
from customloss.compat.patching.imports import AfterImport
from customloss.compat.patching.peers import PEERS
from customloss.compat.patching.processes import Children
from customloss.compat.patching.replacing import Replacing

# what is replaced at present, by peer
_ACTIVE: dict[str, Replacing] = {}


def _imported(module: ModuleType) -> None:
    for active in list(_ACTIVE.values()):
        if module.__name__ in active.peer.modules():
            active.imported(module)


_LATER = AfterImport(_imported)
_CHILDREN = Children(lambda: tuple(_ACTIVE))


class Patch:
    """What :func:`patch` did. As a context manager it is undone at the end of the block, apart from
    libraries that were patched before it.

    Attributes:
        peers: the libraries that are patched, as :func:`patch` calls them.
    """

    def __init__(self, peers: Iterable[str], before: Iterable[str]) -> None:
        self.peers = tuple(peers)
        self._new = tuple(peer for peer in self.peers if peer not in before)

    @property
    def replaced(self) -> dict[str, tuple[str, ...]]:
        """By library, the names in full that stand for our losses at this moment; those of modules
        that are imported later are added when they are."""
        return {
            peer: tuple(str(each) for each in _ACTIVE[peer].replaced) if peer in _ACTIVE else ()
            for peer in self.peers
        }

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self._new:
            unpatch(peer)

    def __repr__(self) -> str:
        if not self.peers:
            return "customloss.patch: none of these libraries is installed in a tested version"
        return "\n".join(_described(peer) for peer in self.peers)


def _described(peer: str) -> str:
    """What a peer's names stand for, in a few lines."""
    active = _ACTIVE.get(peer)
    if active is None:
        return f"customloss.patch: {PEERS[peer].title}, undone"
    table, waiting = active.peer.names, active.waiting()
    names = sorted({name for defined in table.values() for name in defined})
    defined = {f"{module}.{name}" for module in table for name in table[module]}
    others = [full for full in map(str, active.replaced) if full not in defined]
    when = " when it is imported" if len(waiting) == len(table) else ""
    lines = [
        f"customloss.patch: {active.peer.title} {active.peer.version()}, replaced{when}: "
        f"{', '.join(names)}"
    ]
    if others:
        lines.append(f"also {', '.join(others)}")
    if waiting and not when:
        lines.append(f"later, when they are imported, in {', '.join(waiting)}")
    return "\n    ".join(
        textwrap.fill(line, 100, subsequent_indent="        ", break_long_words=False,
                      break_on_hyphens=False)
        for line in lines
    )  # fmt: skip


def patch(*peers: str, any_version: bool = False, quiet: bool = False) -> Patch:
    """Lets the names of a library's losses stand for the fused losses of ``customloss.compat``.

    The names are replaced in every module that has imported them, and in the library itself, so
    that later imports get ours too. What is not imported yet is not imported by this: it is
    replaced when it is. Processes that multiprocessing starts are patched as well. Losses that were
    made before stay what they are. A second call replaces what was bound to another name since the
    first. Names of a library that are other formulas, or losses that we do not have, stay.

    Args:
        peers: one or more of ``"monai"``, ``"nnunet"``, ``"smp"``, ``"toolbelt"``, ``"kornia"``,
            ``"torchvision"`` and ``"transformers"``; or ``"all"`` for all of these that are
            installed. Of ``"all"``, a library that is installed in a version that was not tested is
            left as it is, and one warning names all of these.
        any_version: also with a version that the drop-ins were not compared with.
        quiet: print nothing; otherwise what was replaced, by library.

    Returns:
        What was replaced; as a context manager, ``with customloss.patch("monai"):``, it is undone
        at the end of the block. :func:`unpatch` undoes it too.

    Raises:
        ValueError: another name, or none.
        ModuleNotFoundError: the library is not installed.
        RuntimeError: it is, in a version that the drop-ins were not compared with.

    Example::

        import customloss

        customloss.patch("monai")
        from monai.losses import DiceCELoss  # customloss.compat.monai.DiceCELoss
    """
    wanted = _wanted(peers, any_version)
    before = tuple(_ACTIVE)
    _start(wanted)
    made = Patch(wanted, before)
    if not quiet:
        print(made)
    return made


def again(peers: Sequence[str]) -> None:
    """What a process does that was started by one which is patched; quietly, as its versions are
    those of the other."""
    _start([peer for peer in peers if peer in PEERS])


def unpatch(peer: str = "all") -> None:
    """Undoes :func:`patch`; of a library that is not patched, it does nothing.

    The modules of the library get their own losses back, and so do those that had them when they
    were patched. A module of somebody else that imported a name in between keeps ours: it cannot be
    told from one that imported it from us.

    Args:
        peer: one name, as of :func:`patch`, or ``"all"``.

    Raises:
        ValueError: another name.
    """
    checks.one_of("peer", peer, (*PEERS, "all"))
    for name in list(_ACTIVE):
        if peer in (name, "all"):
            active = _ACTIVE.pop(name)
            _LATER.names -= set(active.peer.modules())
            active.undo()
    if not _ACTIVE:
        _CHILDREN.leave()
        if _LATER in sys.meta_path:
            sys.meta_path.remove(_LATER)


def _start(peers: Sequence[str]) -> None:
    for name in peers:
        active = _ACTIVE.setdefault(name, Replacing(PEERS[name]))
        _LATER.names.update(active.peer.modules())
        active.refresh()
    if peers:
        _CHILDREN.follow()
        if _LATER not in sys.meta_path:
            sys.meta_path.insert(0, _LATER)


def _wanted(peers: Sequence[str], any_version: bool) -> list[str]:
    """The libraries that were asked for, if all of them can be replaced."""
    if not peers:
        raise ValueError(f"peers: expected one or more of {', '.join(PEERS)} or 'all', got none")
    for name in peers:
        checks.one_of("peer", name, (*PEERS, "all"))
    if "all" not in peers:
        for name in peers:
            _check_version(name, any_version)
        return list(dict.fromkeys(peers))
    installed = {name: PEERS[name].version() for name in PEERS}
    there = [name for name, version in installed.items() if version is not None]
    tested = [name for name in there if any_version or _tested(name)]
    left = [name for name in there if name not in tested]
    if left:
        said = "; ".join(f"{PEERS[name].title} {installed[name]}, where {_versions(name)} was "
                         "tested" for name in left)  # fmt: skip
        warnings.warn(
            f"customloss.patch('all') leaves as they are: {said}. any_version=True takes them too",
            stacklevel=3,
        )
    return tested


def _tested(name: str) -> bool:
    version = PEERS[name].version()
    return version is not None and version.startswith(PEERS[name].versions)


def _versions(name: str) -> str:
    return " or ".join(f"{beginning}*" for beginning in PEERS[name].versions)


def _check_version(name: str, any_version: bool) -> None:
    peer = PEERS[name]
    version = peer.version()
    if version is None:
        raise ModuleNotFoundError(
            f"patch({name!r}): {peer.distribution} is not installed: pip install "
            f"{peer.distribution}; its losses are in {peer.ours} without it"
        )
    if not (any_version or _tested(name)):
        raise RuntimeError(
            f"patch({name!r}): expected {peer.distribution} {_versions(name)}, which the drop-ins "
            f"were compared with, got {version}: any_version=True takes it all the same"
        )
