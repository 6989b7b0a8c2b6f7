"""How the CPU's memory is allocated during a benchmark, which can be chosen for all variants alike.

On a CPU most of the time of a backward pass is the operating system's, which maps fresh pages for
the gradient. Our kernels ask for 2 MiB pages, where others take 4 KiB, and keep the memory of a
freed gradient. So a benchmark can be run with 2 MiB pages for everybody, and with an allocator that
keeps freed memory. In both our kernels keep none themselves.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from enum import Enum
from pathlib import Path
from typing import NoReturn

KEEP_PAGES = "dirty_decay_ms:-1,muzzy_decay_ms:-1"  # jemalloc returns free pages after 10 s else
_MARK = "CUSTOMLOSS_BENCH_MEMORY"  # set for the process that was started for it
_NO_JEMALLOC = (
    "no libjemalloc was found; install it (Debian: apt install libjemalloc2), "
    "or set LD_PRELOAD to it"
)


class Memory(str, Enum):
    """``default``: as torch allocates it; the others hold for all variants."""

    default = "default"
    huge_pages = "huge-pages"
    jemalloc = "jemalloc"


def current() -> Memory:
    """What is in force in this process."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        mapped = ""
    if "/libjemalloc" in mapped:
        return Memory.jemalloc
    wide = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"  # torch takes no other word
    return Memory.huge_pages if wide else Memory.default


def environment(wanted: Memory) -> dict[str, str]:
    """The variables of a process in which ``wanted`` is in force."""
    found = dict(os.environ)
    found[_MARK] = wanted.value
    found["THP_MEM_ALLOC_ENABLE"] = str(int(wanted is Memory.huge_pages))
    loaded = found.pop("LD_PRELOAD", "").replace(":", " ").split()
    others = [library for library in loaded if "libjemalloc" not in library]
    if wanted is Memory.jemalloc:
        own = [library for library in loaded if library not in others]
        loaded = [*(own or [_find_jemalloc()]), *others]
    else:
        loaded = others
    if loaded:
        found["LD_PRELOAD"] = " ".join(loaded)
    if wanted is Memory.jemalloc:
        found.setdefault("MALLOC_CONF", KEEP_PAGES)
    if wanted is not Memory.default:
        found["CUSTOMLOSS_GRADIENT_CACHE"] = "0"
    return found


def keeps_gradients() -> bool:
    """Whether customloss keeps the memory of freed gradients in this process."""
    return os.environ.get("CUSTOMLOSS_GRADIENT_CACHE") != "0"


def _find_jemalloc() -> str:
    library = ctypes.util.find_library("jemalloc")
    if library is None:
        raise SystemExit(f"customloss: --memory jemalloc: {_NO_JEMALLOC}")
    return library


def enter(wanted: Memory) -> None:
    """Returns if ``wanted`` is in force; else starts this command again with it, and does not."""
    if current() is wanted and (wanted is Memory.default or not keeps_gradients()):
        return
    if os.environ.get(_MARK) == wanted.value:
        raise SystemExit(
            f"customloss: --memory {wanted.value}: the process was started for it and has "
            f"{current().value}; see LD_PRELOAD and THP_MEM_ALLOC_ENABLE"
        )
    _start_again(wanted)


def _start_again(wanted: Memory) -> NoReturn:
    command = [sys.executable, "-m", "customloss", *sys.argv[1:]]
    os.execve(sys.executable, command, environment(wanted))
