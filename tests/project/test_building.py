"""What a build says where it cannot succeed, and what it compiles again after a change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cpp_build
import pytest
from paths import ROOT

from customloss._backends.architectures import has_code

pytestmark = pytest.mark.xdist_group("packaging")
OLD = {"torch": '__version__ = "2.9.1"', "setuptools": '__version__ = "68.2.2"'}
ABSENT = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")'


def failed(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def compiler(folder: Path, says: str, status: int) -> str:
    """A program in the place of a compiler."""
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


# ---- one sentence ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("torch", OLD["torch"], "torch 2.10 or later, and this environment has 2.9.1"),
        ("torch", ABSENT, "there is none: pip install torch, or leave out --no-build-isolation"),
        (
            "torch",
            'raise OSError("libcudart.so.13: no such file")',
            "cannot be imported here: libcu",
        ),
        (
            "setuptools",
            OLD["setuptools"],
            "77 or later, and this environment has 68.2.2",
        ),
    ],
)
def test_what_is_missing_is_one_sentence(
    module: str, text: str, expected: str, tmp_path: Path
) -> None:
    package = tmp_path / module
    (package / "command").mkdir(parents=True)
    (package / "__init__.py").write_text(text + "\n")
    (package / "command" / "__init__.py").touch()
    (package / "command" / "build_py.py").write_text("class build_py: pass\n")
    output = failed("setup.py", "--version", PYTHONPATH=str(tmp_path))
    assert expected in output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1


def test_a_compiler_that_is_missing_is_named() -> None:
    output = failed("setup.py", "build_ext", CXX="no-such-compiler")
    assert "needs a C++20 compiler; no-such-compiler was looked for, which CXX names" in output
    assert "apt install g++" in output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1


def test_a_compiler_that_is_no_command_is_named() -> None:
    output = failed("setup.py", "build_ext", CXX="'g++")
    assert output.strip().endswith('CXX: expected a command, got "\'g++" (No closing quotation)')
    assert "Traceback" not in output


def test_a_compiler_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = compiler(tmp_path, "error: unrecognized option -std=c++20", 1)
    output = failed("setup.py", "build_ext", CXX=old)
    assert "gcc has from 11 on and clang from 14 on" in output
    assert "unrecognized option -std=c++20" in output
    assert "Traceback" not in output


def source_tree(folder: Path, *sources: str) -> Path:
    """A copy of what a build needs, with these alone of the sources in csrc/cpu."""
    tree = folder / "tree"
    for name in ("csrc", "customloss", "kernels"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("setup.py", "build_support.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for path in (tree / "csrc" / "cpu").glob("*.cpp"):
        if path.name not in sources:
            path.unlink()
    return tree


@pytest.mark.packaging
def test_pip_shows_the_sentence(tmp_path: Path) -> None:
    tree = source_tree(tmp_path, "isa.cpp")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    output = failed("-m", "pip", "wheel", *options, ".", cwd=tree, CXX="no-such-compiler")
    assert "customloss: building needs a C++20 compiler; no-such-compiler was looked" in output
    assert "Traceback" not in output


def test_ninja_is_found_in_an_environment_that_is_not_activated() -> None:
    if not Path(sysconfig.get_path("scripts"), "ninja").is_file():
        pytest.skip("no ninja beside this Python")
    command = [sys.executable, "setup.py", "--version"]
    environment = {**os.environ, "PATH": "/no-such-folder", "CXX": "c++"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "there is no ninja" not in done.stderr


# ---- what is compiled again ------------------------------------------------------------------


class Editable:
    """Editable builds of a tree, and the objects that each compiles."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.before: dict[str, int] = {}

    def compiled(self, **environment: str) -> set[str]:
        """Builds, and returns the names of the objects that are new."""
        hook = "from setuptools.build_meta import build_editable as b; b('out')"
        (self.tree / "out").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", hook],
            cwd=self.tree, capture_output=True, text=True,
            env={**os.environ, "CUSTOMLOSS_CUDA": "0", **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        objects = self.tree.glob("build/objects-*/csrc/cpu/*.o")
        now = {str(path): path.stat().st_mtime_ns for path in objects}
        new = {Path(name).stem for name, when in now.items() if self.before.get(name) != when}
        self.before = now
        return new

    def append(self, name: str) -> None:
        path = self.tree / "csrc" / name
        path.write_text(path.read_text() + "// more\n")


@pytest.mark.packaging
def test_an_editable_build_compiles_only_what_changed(tmp_path: Path) -> None:
    if cpp_build.tool("ninja") is None:
        pytest.skip("without ninja, everything is compiled in every build")
    build = Editable(source_tree(tmp_path, "isa.cpp", "score.cpp"))
    assert build.compiled() == {"isa", "score"}
    assert build.compiled() == set()
    build.append("cpu/isa.cpp")
    assert build.compiled() == {"isa"}
    build.append("score.h")  # which score.cpp includes
    assert build.compiled() == {"score"}
    assert build.compiled(CUSTOMLOSS_WERROR="1") == {"isa", "score"}  # other flags
    assert list((build.tree / "customloss").glob("_C.*.so"))
    gone = build.tree / "build" / "objects-gone"
    gone.mkdir()
    (gone / "torch").write_text(str(tmp_path / "no-torch"))
    build.compiled()
    assert not gone.exists()


@pytest.mark.packaging
def test_another_compiler_in_its_place_compiles_everything(tmp_path: Path) -> None:
    if cpp_build.tool("ninja") is None:
        pytest.skip("without ninja, everything is compiled in every build")
    real = cpp_build.tool(os.environ.get("CXX", "c++"))
    build = Editable(source_tree(tmp_path, "isa.cpp"))
    for version, expected in (("1", {"isa"}), ("1", set()), ("2", {"isa"})):
        wrapper = tmp_path / "cxx"
        wrapper.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {version} && exit\nexec {real} "$@"\n'
        )
        wrapper.chmod(0o755)
        assert build.compiled(CXX=str(wrapper), TORCH_DONT_CHECK_COMPILER_ABI="1") == expected


# ---- for an index ----------------------------------------------------------------------------


def test_the_long_description_links_to_nothing_beside_it() -> None:
    code = "import build_support, pathlib; print(build_support.long_description(pathlib.Path()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "](" in (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", done.stdout)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "docs/losses.md" in done.stdout


def test_gpus_between_the_architectures_of_the_default_are_served() -> None:
    """An 11.0 would otherwise find neither machine code nor PTX that it can run."""
    code = (
        "import build_support\n"
        "nvcc = [f'compute_{n}' for n in (75, 80, 86, 90, 100, 110, 120)]\n"
        "print(build_support.default_architectures(nvcc))\n"
        "print(build_support.default_architectures(nvcc[:4]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    newest, older = done.stdout.splitlines()
    assert newest == "8.0+PTX;9.0;10.0;12.0+PTX"
    assert older == "8.0+PTX;9.0+PTX"
    for capability in ((8, 0), (8, 9), (9, 0), (10, 3), (11, 0), (12, 0), (13, 0)):
        assert has_code(newest, capability)
