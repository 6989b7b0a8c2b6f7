"""Imports go from higher floors to lower ones, and packages document truly what they import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import customloss

PACKAGE = Path(customloss.__file__).parent
# A package or file may import from itself and from the floors that are listed before its own.
FLOORS = (
    ("reference", "scores", "distributed"),
    ("_spec",),
    ("_backends",),
    ("_ops", "info"),
    ("losses",),
    ("batches",),
    ("compat",),
    ("__init__",),
    ("_bench", "_demo"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES = 9
MOST_FLOORS = 11
# Files that a build leaves beside the sources.
BUILT = re.compile(r"_build\.json|.*\.so|__pycache__")


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name; ``__init__`` is that of the root."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "kernels":  # lies in the top folder of the repository
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Our modules that a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            # customloss.kernels is loaded only if Triton is there, and has no floor.
            if package == "customloss" and not inside.startswith("kernels"):
                yield resolved(inside)


def resolved(name: str) -> str:
    """The module that defines a dotted name."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


GRAPH = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_few_files_lie_in_the_package_itself() -> None:
    files = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len([name for name in files if not BUILT.fullmatch(name)]) <= MOST_FILES


def test_an_underscore_stands_at_the_door_only() -> None:
    """A package is public or private as a whole."""
    for name in MODULES:
        for part in name.split(".")[1:]:
            assert not part.startswith("_"), name


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    for other in GRAPH[name]:
        inside = room(other) == room(name)
        assert inside or FLOOR_OF[room(other)] < FLOOR_OF[room(name)], f"{name} -> {other}"


def test_there_is_no_circle_and_few_floors() -> None:
    """No imports are circular, and the longest chain of imports is short.

    The benchmark and the demo are programs, no part of the library, and count as one floor each.
    """
    height: dict[str, int] = {}

    def of(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in height:
            height[name] = 1 + max((of(other, (*above, name)) for other in under(name)), default=0)
        return height[name]

    def under(name: str) -> set[str]:
        if name not in ("_bench", "_demo"):
            return {room(other) if room(other) in ("_bench", "_demo") else other
                    for other in GRAPH[name]}  # fmt: skip
        inside = [each for each in MODULES if room(each) == name]
        return {other for each in inside for other in GRAPH[each] if room(other) != name}

    for name in MODULES:
        if room(name) not in ("_bench", "_demo"):
            of(name)
    assert max(height.values()) <= MOST_FLOORS
    for program in ("_bench", "_demo"):  # no imports inside a program are circular either
        left = {name for name in MODULES if room(name) == program}
        while left:
            free = {name for name in left if not GRAPH[name] & left}
            assert free, f"a circle among {sorted(left)}"
            left -= free


PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "__init__"])
def test_a_package_says_what_it_holds_and_imports(name: str) -> None:
    """The docstring of a package has three parts, of which the allowed imports are checked."""
    doc = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    parts = re.fullmatch(r".+\n\nLives here: .+\nMay import: (.+)\nStart with .+", doc, re.DOTALL)
    assert parts, f"{name}/__init__.py: {doc}"
    allowed = set(re.findall(r"``([\w.]+)``", parts[1]))
    used = {room(other) for each in MODULES if room(each) == name for other in GRAPH[each]}
    used = {"customloss" if each == "__init__" else each for each in used} - {name}
    assert used <= allowed, f"{name} imports {used - allowed}"
