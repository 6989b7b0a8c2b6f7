"""Processes that multiprocessing starts anew are patched as the one that starts them.

A forked process has the memory of its parent, and so its patch. One that is spawned, or comes from
a fork server, is a new Python, which gets a pickled dict from its parent before it imports the main
module: DataLoader workers, ``torch.multiprocessing.spawn``, nnU-Net's training on several GPUs.
"""

from __future__ import annotations

import multiprocessing.spawn
import sys
from collections.abc import Callable
from typing import Any

_CODE = """\
import sys
sys.path[:] = {path!r}
from customloss.compat.patching.patch import again
again({peers!r})
"""


class _Again:
    """An object that patches the process in which it is unpickled.

    It is unpickled before that process gets the path of its parent, and so brings it along.
    """

    def __init__(self, peers: tuple[str, ...]) -> None:
        self._peers = peers

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return exec, (_CODE.format(path=sys.path, peers=self._peers),)


class Children:
    """Takes care of the processes that are started between ``follow`` and ``leave``."""

    def __init__(self, peers: Callable[[], tuple[str, ...]]) -> None:
        self._peers = peers
        self._before: Any = None

    def follow(self) -> None:
        """From now on what is patched here is patched in new processes."""
        if self._before is None:
            self._before = multiprocessing.spawn.get_preparation_data
            setattr(multiprocessing.spawn, "get_preparation_data", self._data)  # noqa: B010

    def leave(self) -> None:
        """New processes are left as they are again."""
        if multiprocessing.spawn.get_preparation_data == self._data:
            setattr(multiprocessing.spawn, "get_preparation_data", self._before)  # noqa: B010
            self._before = None

    def _data(self, name: str) -> dict[str, Any]:
        """What a new process is told."""
        data: dict[str, Any] = self._before(name)
        peers = self._peers()
        return {"customloss": _Again(peers), **data} if peers else data
