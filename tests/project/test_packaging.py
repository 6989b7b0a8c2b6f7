"""The wheel and the sdist hold what they should, and the wheel works away from its sources.

Tests that build are marked ``packaging``. They share one build, so they run on one xdist worker.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cpp_build
import pytest
import torch
from cpp_build import from_setup
from filelock import FileLock
from paths import ROOT

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
LIBRARY = "_C.abi3.so"
pytestmark = pytest.mark.xdist_group("packaging")


def run(*command: Any, env: dict[str, str] | None = None, **options: Any) -> str:
    """The output of a command; if it fails, the error shows all output."""
    full = {**os.environ, **(env or {})}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=full, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python_in(folder: Path, script: str, *path: Path) -> str:
    """Runs a script far from the source tree, with customloss found on `path`."""
    where = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"}
    return run(sys.executable, "-c", script, env=where, cwd=folder)


# ---- setup.py without building -------------------------------------------------------------


def setup_fails(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize("demand", ["CUSTOMLOSS_CUDA", "FORCE_CUDA"])
def test_cuda_demanded_in_vain_fails_with_the_reason(demand: str) -> None:
    assert "cannot be met: this torch has no CUDA" in setup_fails(**{demand: "1"})


def test_an_unknown_choice_of_cuda_is_an_error() -> None:
    assert "expected auto, 1 or 0, got 'yes'" in setup_fails(CUSTOMLOSS_CUDA="yes")


@pytest.mark.parametrize("name", ["CXX_FLAGS", "NVCC_FLAGS", "WERROR"])
def test_setup_and_cmake_use_the_same_flags(name: str) -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    spelled = {
        "CXX_FLAGS": r"set\(CXX_FLAGS\s+([^)]*)\)",
        "NVCC_FLAGS": r"set\(NVCC_FLAGS\s+([^)]*)\)",
        "WERROR": r"if\(CUSTOMLOSS_WERROR\)\s+(?:#.*\n)?\s*list\(APPEND CXX_FLAGS ([^)]*)\)",
    }[name]
    found = re.search(spelled, cmake)
    assert found is not None
    abi = from_setup()["STABLE_ABI"]
    assert abi.removeprefix("-D") in cmake
    assert found[1].split() == [flag for flag in from_setup(name)[name] if flag != abi]


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_setup_and_cmake_use_the_same_sources(folder: str) -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(rf"file\(GLOB {folder}_sources CONFIGURE_DEPENDS ([^)]*)\)", cmake)
    assert found is not None
    matched = {path for pattern in found[1].split() for path in ROOT.glob(pattern)}
    expected = sorted(path.relative_to(ROOT).as_posix() for path in matched)
    assert from_setup("sources")["sources"](folder) == expected
    assert expected


@pytest.mark.slow
def test_the_cuda_code_compiles_beside_any_torch() -> None:
    """This needs nvcc, but no GPU and no CUDA in torch; warnings are errors."""
    if cpp_build.tool("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    archs = "-DCUSTOMLOSS_CUDA_ARCHS=90-real"
    build = cpp_build.cmake_build("_C_cuda", archs, preset="cuda-compile-only")
    assert any(build.rglob("confusion.cu.o"))


# ---- the sdist and the wheel ---------------------------------------------------------------


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools.build_meta import build_sdist as b; b({str(folder)!r})"
    # It is put together in the source tree, where two processes would be in each other's way: some
    # versions of pytest do not keep the tests of an xdist_group in one.
    cpp_build.BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(cpp_build.BUILD / "sdist.lock"):
        run(sys.executable, "-c", build, cwd=ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel is built from the sdist, so that a file missing there is noticed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "-q", "-w")
    run(sys.executable, "-m", "pip", "wheel", *options, folder, sdist, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "-q", "--target")
    run(sys.executable, "-m", "pip", "install", *options, folder, wheel, cwd=folder)
    return folder


@pytest.fixture
def copied(installed: Path, tmp_path: Path) -> Path:
    """A copy of the installed package, which a test may damage."""
    return Path(shutil.copytree(installed, tmp_path / "copied"))


def under(folder: str, *suffixes: str) -> set[str]:
    found = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.mark.packaging
def test_the_sdist_carries_every_source_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = under("csrc", ".cpp", ".h", ".cu", ".cuh") | under("kernels", ".py")
    expected |= under("customloss", ".py") | under("tests", ".py", ".cpp", ".h")
    expected |= under("bench", ".py", ".json", ".txt") | under("tools", ".py")
    expected |= {"setup.py", "build_support.py", "pyproject.toml", "Makefile", "LICENSE"}
    expected |= {"CMakeLists.txt", "CMakePresets.json", ".clang-format", ".gitignore"}
    assert expected <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build.json"))]


@pytest.mark.packaging
def test_the_wheel_says_truthfully_where_it_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        meta = next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        tags = re.findall(r"^Tag: (.*)$", archive.read(meta).decode(), re.MULTILINE)
    version = sys.version_info
    expected = (
        f"cp{version.major}{version.minor}-cp{version.major}{version.minor}t"
        if FREE_THREADED
        else "cp310-abi3"
    )
    assert [tag.rsplit("-", 1)[0] for tag in tags] == [expected]
    assert tags[0].endswith(platform.machine())


@pytest.mark.packaging
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        record = json.loads(archive.read("customloss/_build.json"))
    expected = {f"customloss/{name}" for name in under("kernels", ".py")}
    expected |= under("customloss", ".py") | {"customloss/py.typed", "customloss/_build.json"}
    libraries = {name for name in names if name.endswith(".so")}
    if not FREE_THREADED:
        assert f"customloss/{LIBRARY}" in libraries
        assert libraries <= {f"customloss/{LIBRARY}", "customloss/_C_cuda.abi3.so"}
    assert expected <= names
    assert all(name.startswith("customloss/") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".pyc"))]
    assert record["torch"] == torch.__version__
    assert record["stable_abi"] == "2.10"
    assert ("customloss/_C_cuda.abi3.so" in libraries) == (record["cuda"] is not None)


@pytest.mark.packaging
def test_the_wheel_passes_the_audits(wheel: Path) -> None:
    """What `make wheel` runs, on a wheel whose platform tag auditwheel has not yet narrowed."""
    pytest.importorskip("abi3audit")
    pytest.importorskip("twine")
    if FREE_THREADED:
        pytest.skip("a wheel for one Python is not audited for abi3")
    output = run(sys.executable, ROOT / "tools" / "wheel.py", "--audit", wheel)
    assert "PASSED" in output  # twine; abi3audit tells by its exit status
    if sys.version_info >= (3, 11):
        assert f"{LIBRARY} runs from torch 2.10 on" in output
    if sys.platform == "linux":
        assert "manylinux_2_" in output


# ---- what the libraries need ---------------------------------------------------------------


def symbols(path: Path, which: str) -> set[str]:
    """Names of dynamic symbols, without versions."""
    if shutil.which("nm") is None or sys.platform != "linux":
        pytest.skip("needs binutils' nm")
    lines = run("nm", "-D", f"--{which}-only", path).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


@pytest.mark.packaging
def test_the_libraries_need_no_python_and_only_the_stable_abi(installed: Path) -> None:
    torch_libraries = Path(torch.__file__).parent / "lib"
    offered: set[str] = set()
    for name in ("libtorch_cpu.so", "libc10.so", "libtorch_cuda.so"):
        if (torch_libraries / name).is_file():
            offered |= symbols(torch_libraries / name, "defined")
    libraries = sorted((installed / "customloss").glob("*.so"))
    assert libraries
    for library in libraries:
        needed = symbols(library, "undefined")
        assert not [name for name in needed if name.startswith(("Py", "_Py"))]
        # From torch we use C shims only. It also exports copies of std templates, left out here.
        std = re.compile(r"_Z(N[KRO]*)?St|_ZT[ISV]|_Zn|_Zd")
        from_torch = {name for name in needed & offered if not std.match(name)}
        shims = re.compile(r"(aoti_torch|torch)_\w+")
        assert not [name for name in from_torch if not shims.fullmatch(name)]
        assert len(from_torch) > 10
        assert "aoti_torch_empty_strided" in from_torch
        mangled = [name for name in needed if re.search(r"2at\d|3c10\d|5torch\d", name)]
        assert not mangled


@pytest.mark.packaging
def test_the_libraries_name_no_folder_of_the_builder(installed: Path, tmp_path: Path) -> None:
    for library in (installed / "customloss").glob("*.so"):
        content = library.read_bytes()
        for folder in (ROOT, Path(torch.__file__).parent, tmp_path.parent):
            assert str(folder).encode() not in content, folder
        if sys.platform == "linux" and shutil.which("readelf"):
            dynamic = run("readelf", "-d", library)
            assert "RUNPATH" not in dynamic
            assert "RPATH" not in dynamic
            assert "libcudart" not in dynamic
            assert "libpython" not in dynamic


# ---- elsewhere -----------------------------------------------------------------------------

SCRIPT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import customloss
import torch, importlib.util
x = torch.randn(64, 5, generator=torch.manual_seed(0), requires_grad=True)
t = torch.randint(0, 2, (64, 5))
loss = torch.ops.customloss.soft_f1(x, t)
loss.backward()
info = customloss.build_info()
print(json.dumps({
    "file": customloss.__file__,
    "loss": loss.item(),
    "grad": x.grad.abs().sum().item(),
    "expected": customloss.soft_f1_loss(x.double(), t).item(),
    "kernels": importlib.util.find_spec("customloss.kernels").origin,
    "loaded": info.cpu.loaded, "reason": info.cpu.reason, "isa": info.instruction_set,
    "built_with": info.built_with, "text": str(info),
    "warnings": [str(w.message) for w in caught if w.category is RuntimeWarning],
}))
"""


def check_loss(found: dict[str, Any]) -> None:
    assert found["loss"] == pytest.approx(found["expected"], rel=1e-6)
    assert found["grad"] > 0


@pytest.mark.packaging
def test_an_installed_wheel_works_far_from_its_sources(installed: Path, tmp_path: Path) -> None:
    found = json.loads(python_in(tmp_path, SCRIPT, installed))
    assert Path(found["file"]).parent == installed / "customloss"
    assert Path(found["kernels"]).parent == installed / "customloss" / "kernels"
    assert found["loaded"], found["reason"]
    assert found["isa"] in ("baseline", "avx2", "avx512", "neon")
    assert found["built_with"]["compiler"] in found["text"]
    assert not found["warnings"]
    check_loss(found)


@pytest.mark.packaging
def test_without_its_library_the_reference_answers_and_says_why(
    copied: Path, tmp_path: Path
) -> None:
    for library in (copied / "customloss").glob("*.so"):
        library.unlink()
    found = json.loads(python_in(tmp_path, SCRIPT, copied))
    assert not found["loaded"]
    assert found["reason"].startswith("not built: no _C")
    assert str(copied) in found["reason"]
    assert found["isa"] is None
    assert len(found["warnings"]) == 1
    assert found["reason"] in found["warnings"][0]
    check_loss(found)


@pytest.mark.packaging
def test_a_library_that_does_not_load_is_named(copied: Path, tmp_path: Path) -> None:
    library = next((copied / "customloss").glob("_C.*"))
    library.write_bytes(b"not a library")
    found = json.loads(python_in(tmp_path, SCRIPT, copied))
    expected = f"{library.name} was built with torch {torch.__version__} and does not load into"
    assert found["reason"].startswith(expected)
    check_loss(found)


@pytest.mark.packaging
def test_a_source_tree_that_hides_the_installed_package_is_named(
    installed: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "setup.py").touch()
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    shutil.copytree(ROOT / "customloss", tree / "customloss", ignore=ignore)
    shutil.copytree(ROOT / "kernels", tree / "customloss" / "kernels", ignore=ignore)
    found = json.loads(python_in(tmp_path, SCRIPT, tree, installed))
    assert Path(found["file"]).parent == tree / "customloss"
    assert f"imported from the source tree {tree}, which hides" in found["reason"]
    assert str(installed) in found["reason"]
    assert "pip install --no-build-isolation -e ." in found["reason"]
    check_loss(found)
