"""What setup.py needs beside the build: checks of the environment, and the text for an index.

pip shows what a build prints only when it fails, so every check ends in a SystemExit with one
sentence that says what is missing and what to do.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

SETUPTOOLS = (77, 0)  # the first that knows `license = "MIT"` in pyproject.toml
ARCHS = ("8.0", "9.0", "10.0", "12.0")  # compute capabilities that get machine code
TORCH = (2, 10)  # the first whose stable ABI has all that csrc/ calls

# gcc 10 takes -std=c++20, but has only a part of it
PROBE = """
#include <bit>
#include <concepts>
#include <span>
static_assert(__cplusplus >= 202002L && std::has_single_bit(2u));
"""


def said_by(*command: str) -> str:
    """What a tool prints; empty where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout + done.stderr


def first_two(version: str) -> tuple[int, int]:
    """Major and minor version as numbers: (2, 10) of ``2.10.0a0+cpu``."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def check_setuptools(version: str) -> None:
    """pip itself checks this only in an isolated build."""
    if os.name == "nt":
        raise SystemExit("customloss builds on Linux and macOS; on Windows use WSL")
    if first_two(version) < SETUPTOOLS:
        raise SystemExit(
            f"customloss: building needs setuptools {SETUPTOOLS[0]} or later, and this environment "
            f"has {version}: pip install 'setuptools>={SETUPTOOLS[0]}'"
        )


def import_torch() -> ModuleType:
    """The torch to build against."""
    needed = ".".join(map(str, TORCH))
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise SystemExit(f"customloss: torch cannot be imported here: {error}") from None
        raise SystemExit(
            f"customloss: building needs torch {needed} or later in this environment, and there is "
            "none: pip install torch, or leave out --no-build-isolation, and pip fetches a torch "
            "of its own to build against, on Linux gigabytes of it"
        ) from None
    except (ImportError, OSError) as error:
        raise SystemExit(f"customloss: torch cannot be imported here: {error}") from None
    if first_two(str(torch.__version__)) < TORCH:
        raise SystemExit(
            f"customloss: building needs torch {needed} or later, and this environment has "
            f"{torch.__version__}: pip install 'torch>={needed}'"
        )
    return torch


def default_architectures(known: list[str]) -> str:
    """``ARCHS`` as far as nvcc knows them, as TORCH_CUDA_ARCH_LIST.

    ``known`` is what ``nvcc --list-gpu-arch`` prints. PTX of the oldest serves GPUs in between, PTX
    of the newest those to come.
    """
    kept = [arch for arch in ARCHS if f"compute_{arch.replace('.', '')}" in known]
    return ";".join(f"{arch}+PTX" if arch in (kept[0], kept[-1]) else arch for arch in kept)


def use_own_ninja() -> None:
    """Has cpp_extension find the ninja of this environment, which need not be activated.

    Another version would not read what the last build wrote down, and would compile everything.
    """
    scripts = sysconfig.get_path("scripts")
    if Path(scripts, "ninja").is_file():
        os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))


def compiler() -> list[str]:
    """The C++ compiler that cpp_extension calls."""
    words = os.environ.get("CXX") or "c++"
    try:
        return shlex.split(words)
    except ValueError as error:
        raise SystemExit(f"customloss: CXX: expected a command, got {words!r} ({error})") from None


def check_compiler() -> None:
    command = compiler()
    name = shlex.join(command)
    if shutil.which(command[0]) is None:
        looked = "which CXX names" if os.environ.get("CXX") else "and CXX names no other"
        raise SystemExit(
            f"customloss: building needs a C++20 compiler; {name} was looked for, {looked}, and "
            "there is none. To install one: apt install g++, dnf install gcc-c++, "
            "xcode-select --install, or conda install cxx-compiler"
        )
    probe = [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(probe, input=PROBE, capture_output=True, text=True)
    if done.returncode != 0:
        version = said_by(*command, "--version").partition("\n")[0] or "of an unknown version"
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "it failed")
        raise SystemExit(
            f"customloss: building needs C++20, which gcc has from 11 on and clang from 14 on. "
            f"{name} ({version}) cannot compile it: {reason.strip()}. CXX can name another compiler"
        )


@contextmanager
def alone_in(folder: Path, torch_home: Path) -> Iterator[None]:
    """Makes the folder of objects for a torch, and waits until no other build is in it.

    Folders whose torch is gone are removed: an isolated build has a torch that nobody meets again.
    """
    import fcntl  # not on Windows, which was refused before

    for other in folder.parent.glob("objects-*/torch"):
        if not Path(other.read_text()).is_dir():
            shutil.rmtree(other.parent, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "torch").write_text(str(torch_home))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def long_description(source: Path) -> str:
    """README.md for a package index, where a link to a file beside it would lead nowhere.

    Such a link becomes the name of the file.
    """

    def plain(link: re.Match[str]) -> str:
        text, target = link.groups()
        return text if text == target else f"{text} ({target})"

    readme = (source / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)", plain, readme)
    return f"{readme}\nFiles that are named here are in the source distribution.\n"
