"""The ``customloss`` command, also as ``python -m customloss``."""

import sys
from importlib.util import find_spec

from customloss.info import build_info


def main() -> None:
    """The entry point. What is installed can be asked for, and a script can be patched, without
    what the other commands are made of."""
    if sys.argv[1:2] == ["patch"]:
        from customloss.compat.patching.command import main as patched

        patched(sys.argv[2:])
        return
    if sys.argv[1:] == ["info"] and not (find_spec("typer") and find_spec("rich")):
        print(build_info())
        return
    from customloss.cli import main as commands

    commands()


if __name__ == "__main__":
    main()
