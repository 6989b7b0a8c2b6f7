"""``customloss patch``: runs a script that one may not edit, with our losses in it.

It needs nothing but Python's own library, since a training has not always what the other commands
are made of, and since no other code may stand between the script and its exceptions.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import os
import runpy
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from customloss.compat.patching.patch import patch
from customloss.compat.patching.peers import PEERS

USAGE = "customloss patch [LIBRARY ...] [--any-version] [--quiet] -- SCRIPT [ARGUMENT ...]"
_MORE = """\
Runs a Python script, or `-m MODULE`, as Python itself would, after the losses of other libraries
were replaced by those of customloss. What was replaced is printed to the standard error. Processes
that multiprocessing starts are patched as well. Under a launcher it stands between the launcher and
the script: torchrun --nproc-per-node 2 -m customloss patch -- train.py
"""


def main(arguments: Sequence[str]) -> None:
    """Runs what stands behind ``--``; its exceptions and exit codes pass through.

    Raises:
        SystemExit: of code 2, after a message, if there is nothing to run or to replace.
    """
    options, program = _read(arguments)
    run = _program(program)  # a script that is missing is told first
    try:
        made = patch(*options.libraries or ["all"], any_version=options.any_version, quiet=True)
    except (ImportError, RuntimeError, ValueError) as error:
        _fail(str(error).replace("any_version=True", "--any-version"))
    if not options.quiet and os.environ.get("LOCAL_RANK", "0") == "0":
        print(made, file=sys.stderr, flush=True)
    run()


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the script with its arguments."""
    given = list(arguments)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="customloss patch", usage=USAGE, description=_MORE, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "libraries", nargs="*", metavar="LIBRARY",
        help=f"{', '.join(PEERS)}; without one, all that are installed",
    )  # fmt: skip
    parser.add_argument(
        "--any-version", action="store_true",
        help="also versions that the losses were not compared with",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="do not say what was replaced")
    options = parser.parse_args(given[:at])
    for name in options.libraries:
        if name not in (*PEERS, "all"):
            cure = "; the script stands behind --" if at == len(given) else ""
            _fail(f"LIBRARY: expected {', '.join(PEERS)} or all, got {name!r}{cure}")
    return options, given[at + 1 :]


class _Script:
    """A file, a folder or a zip archive, which is run as ``python`` runs it."""

    def __init__(self, path: str, arguments: list[str]) -> None:
        self._path, self._arguments = path, arguments
        if not os.path.exists(path):
            _fail(f"there is no file {path!r} in {os.getcwd()}")

    def __call__(self) -> None:
        sys.argv = [self._path, *self._arguments]
        full = os.path.abspath(self._path)
        if os.path.isdir(full) or full.endswith(".pyc") or zipfile.is_zipfile(full):
            _leave_first_path()
            runpy.run_path(full, run_name="__main__")
            return
        if not _safe_path():
            sys.path[0] = str(Path(full).resolve().parent)
        with open(full, "rb") as file:
            code = compile(file.read(), full, "exec", dont_inherit=True)
        module = ModuleType("__main__")
        vars(module).update(
            __file__=full, __builtins__=builtins, __cached__=None,
            __loader__=SourceFileLoader("__main__", full),
        )  # fmt: skip
        sys.modules["__main__"] = module  # and stays, for what runs when the interpreter ends
        exec(code, vars(module))


class _Module:
    """A module, which is run as ``python -m`` runs it."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self._name, self._arguments = name, arguments

    def __call__(self) -> None:
        sys.argv = [self._name, *self._arguments]
        if not _safe_path():
            sys.path[0] = os.getcwd()
        try:
            found = importlib.util.find_spec(self._name)
        except ModuleNotFoundError as error:  # a package above it
            if not f"{self._name}.".startswith(f"{error.name}."):
                raise
            found = None
        if found is None:
            _fail(f"-m: there is no module {self._name!r}")
        runpy.run_module(self._name, run_name="__main__", alter_sys=True)


def _program(words: list[str]) -> _Script | _Module:
    """What is to be run."""
    if not words:
        _fail("expected a script behind --, got none")
    if words[0] == "-m":
        if len(words) == 1:
            _fail("-m: expected a module, got none")
        return _Module(words[1], words[2:])
    if words[0].startswith("-"):
        _fail(f"expected a script or -m MODULE behind --, got {words[0]!r}")
    return _Script(words[0], words[1:])


def _safe_path() -> bool:
    """Whether Python was told not to put the place of a script in front of its path."""
    return bool(getattr(sys.flags, "safe_path", False))


def _leave_first_path() -> None:
    """Removes what was put in front for this command."""
    if not _safe_path():
        del sys.path[0]


def _fail(said: str) -> NoReturn:
    print(f"customloss patch: {said}\nusage: {USAGE}", file=sys.stderr)
    raise SystemExit(2)
