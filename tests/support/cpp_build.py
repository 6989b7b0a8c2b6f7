"""Builds CMake targets for the tests, among them the pybind11 module of the header maths.

Builds are kept under build/; without a compiler the tests are skipped and say so. On x86 the module
is built twice: for the default instruction set, and with FMA, which rounds differently.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from paths import ROOT

BUILD = ROOT / "build" / f"tests-{sys.implementation.cache_tag}"
X86 = platform.machine() in ("x86_64", "AMD64")
ARM_COMPILER = "aarch64-linux-gnu-g++"  # Debian: g++-aarch64-linux-gnu


def tool(name: str) -> str | None:
    """The path of a program; one installed beside this Python comes first."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return shutil.which(name, path=path)


def from_setup(*names: str) -> dict[str, Any]:
    """Constants and functions of setup.py, which cannot be imported without building."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    wanted = ["STABLE_ABI", *names]
    body = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in wanted)
    ]
    namespace: dict[str, Any] = {"Path": Path, "HERE": ROOT}
    exec(compile(ast.Module(body, []), "setup.py", "exec"), namespace)
    return namespace


def cmake_build(target: str, *options: str, preset: str | None = None) -> Path:
    """Configures and builds one target; returns the build folder. Skips without a compiler."""
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None or ninja is None or tool(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs cmake, ninja and a C++20 compiler")
    build = BUILD / (preset or "maths")
    build.mkdir(parents=True, exist_ok=True)
    kind = ("--preset", preset) if preset else ()
    configure = [
        cmake, *kind, "-S", ROOT, "-B", build, "-G", "Ninja", *options,
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}",
    ]  # fmt: skip
    with FileLock(build / "lock"):  # one pytest-xdist worker builds, the others wait for it
        for command in (configure, [cmake, "--build", build, "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def built() -> Path:
    return cmake_build("maths", "-DCUSTOMLOSS_TESTS=ON")


@pytest.fixture(scope="session", params=["baseline", "fma"] if X86 else ["baseline"])
def maths(built: Path, request: pytest.FixtureRequest) -> Any:
    if request.param == "fma" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no FMA")
    name = f"maths_{request.param}"
    spec = spec_from_file_location(name, next(built.glob(f"{name}.*")))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
