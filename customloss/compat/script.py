"""``customloss patch monai -- train.py``: a script that one may not edit, with our losses."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from customloss.compat.patching import patch
from customloss.compat.peers import PEERS

_USAGE = "customloss patch [LIBRARY ...] [--any-version] [--quiet] -- (SCRIPT.py | -m MODULE) [...]"


def main(arguments: list[str]) -> None:
    """Replaces the losses of the libraries, of all that are installed if none is named, and runs
    the script or module behind ``--`` as Python would."""
    parser = argparse.ArgumentParser(
        prog="customloss patch", usage=_USAGE, description=main.__doc__,
        epilog="Processes that the script starts anew are not patched. With torchrun: torchrun "
        "[...] -m customloss patch -- train.py [...]",
    )  # fmt: skip
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"{', '.join(PEERS)}, all")
    parser.add_argument("--any-version", action="store_true", help="also untested versions")
    parser.add_argument("--quiet", action="store_true", help="do not print what is replaced")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    if not command or command == ["-m"]:
        parser.error("expected -- and a script behind it, or -- -m and a module")
    for library in given.libraries or ["all"]:
        try:
            patch(library, any_version=given.any_version, quiet=given.quiet)
        except (ValueError, ModuleNotFoundError, RuntimeError) as reason:
            parser.error(str(reason))
    _run(command)


def _run(command: list[str]) -> None:
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    script = command[0]
    if not os.path.exists(script):
        raise SystemExit(
            f"customloss patch: expected a script behind --, got {script}: no such file"
        )
    sys.argv = command
    sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name="__main__")
