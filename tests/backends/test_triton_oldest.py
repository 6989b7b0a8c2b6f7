"""The Triton kernels compile with the oldest Triton that is supported, and are right there too.

It is installed into a folder of its own, with a NumPy of its time, and put before what is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

triton = pytest.importorskip("triton", reason="Triton is not installed")

import interpreted  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.xdist_group("oldest triton"),  # which is installed once
]

# Triton 3.6's interpreter does what was deprecated in NumPy 1.25, and is an error from 2.4 on
NUMPY = "numpy<2.4"
ALLOWED = ("-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")
PROJECT = ROOT / "pyproject.toml"


def oldest_version() -> str:
    """As pyproject.toml names it."""
    found = re.search(r'"triton>=([\d.]+);', PROJECT.read_text())
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which Python imports the oldest Triton."""
    if not PROJECT.is_file():
        pytest.skip("there is no pyproject.toml here, which names the oldest Triton")
    wanted = oldest_version()
    if triton.__version__.startswith(f"{wanted}."):
        pytest.skip(f"the Triton that all tests use is the oldest, {triton.__version__}")
    folder = tmp_path_factory.mktemp("triton")
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--target", str(folder), f"triton=={wanted}.*", NUMPY,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        pytest.skip(f"Triton {wanted} cannot be installed: {reason}")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    given = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(folder / "cache")}
    given.pop("PYTEST_ADDOPTS", None)
    asked = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    version = subprocess.run(asked, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    assert version.stdout.startswith(f"{wanted}."), version.stdout
    yield given
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file", "on_interpreter"),
    [("test_triton_compile.py", False), ("test_triton_variants.py", False),
     ("triton_operators.py", True), ("triton_extremes.py", True)],
)  # fmt: skip
def test_suite_with_the_oldest(
    environment: dict[str, str], file: str, on_interpreter: bool
) -> None:
    suite = Path(__file__).with_name(file)
    options = ("-q", "-p", "no:cacheprovider", "-m", "not more and not slow", *ALLOWED)
    command = [sys.executable, "-m", "pytest", *options, str(suite)]
    given = {**environment, "TRITON_INTERPRET": "1"} if on_interpreter else environment
    if on_interpreter and (reason := interpreted.refusal(environment)) is not None:
        pytest.skip(reason)
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), done.stdout[-500:]
