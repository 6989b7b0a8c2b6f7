"""Builds the compiled libraries: ``_C`` (CPU) always, ``_C_cuda`` beside a CUDA torch.

Everything else about the package is in pyproject.toml. What can be set in the environment:

CUSTOMLOSS_CUDA       auto (default): build _C_cuda if torch has CUDA and a toolkit of its major
                      version is found, whether or not this machine has a GPU; 1: build it, or
                      fail with the reason; 0: do not build it. FORCE_CUDA=1 means
                      CUSTOMLOSS_CUDA=1
TORCH_CUDA_ARCH_LIST  e.g. "8.0;9.0+PTX"; default: ARCHS of build_support.py
CUDA_HOME             the toolkit; default: the one that the nvcc on PATH belongs to
MAX_JOBS              how many compilers run at once, where there is ninja
CXX                   the C++ compiler; default: c++
CUSTOMLOSS_WERROR=1   warnings are errors

build_support.py says what is missing. `pip install -v` shows the report at the end of this file and
each file that is compiled. Objects are kept: the next build compiles only what changed.

Both libraries use the LibTorch stable ABI and no Python API: one build serves every torch from
2.10 on and every Python from 3.10 on. They have no ``PyInit``: ``_backends/libraries.py`` loads
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # which is not there when pip builds
import build_support  # noqa: E402
from build_support import said_by  # noqa: E402

build_support.check_setuptools(setuptools.__version__)
build_support.use_own_ninja()
torch = build_support.import_torch()
if {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"} & {*sys.argv}:
    build_support.check_compiler()

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
FORCE_CUDA = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
WARNINGS_ARE_ERRORS = os.environ.get("CUSTOMLOSS_WERROR", "0") not in ("", "0")

# the same in CMakeLists.txt; tests/project/test_packaging.py compares them
CXX_FLAGS = [
    "-std=c++20", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fopenmp-simd", "-Wall", "-Wextra", STABLE_ABI,
]  # fmt: skip
# gcc 12 takes its own AVX-512 intrinsics for uninitialized
WERROR = ["-Werror", "-Wno-error=uninitialized", "-Wno-error=maybe-uninitialized"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-DUSE_CUDA", "-Wreorder", STABLE_ABI]


def sources(folder: str) -> list[str]:
    """The sources of a folder: relative, as setuptools wants them, and sorted, so builds repeat."""
    found = (HERE / "csrc" / folder).glob("*.c[pu]*")
    return sorted(path.relative_to(HERE).as_posix() for path in found if path.suffix != ".cuh")


class Toolkit(NamedTuple):
    home: Path
    version: str
    archs: str
    libraries: Path


def find_toolkit() -> Toolkit:
    """The toolkit to build with; raises RuntimeError with the reason where there is none."""
    if torch.version.cuda is None:
        raise RuntimeError("this torch has no CUDA")
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = f"{given}/bin/nvcc" if given else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    # the nvcc on PATH may be a wrapper far from its toolkit; nvcc itself knows where it lives
    dryrun = said_by(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    version = re.search(r"release (\d+\.\d+)", said_by(nvcc, "--version"))
    if top is None or version is None:
        raise RuntimeError(
            f"no CUDA toolkit: {nvcc} is missing or broken; CUDA_HOME can name another"
        )
    home = Path(top[1]).resolve()
    if version[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        raise RuntimeError(
            f"torch has CUDA {torch.version.cuda}, the toolkit in {home} is {version[1]}"
        )
    static = [*home.glob("lib*/libcudart_static.a"), *home.glob("targets/*/lib/libcudart_static.a")]
    if not static:
        raise RuntimeError(f"the CUDA toolkit in {home} has no libcudart_static.a")
    known = said_by(nvcc, "--list-gpu-arch").split()
    default = build_support.default_architectures(known)
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or default
    return Toolkit(home, version[1], archs, static[0].parent)


def decide_cuda() -> Toolkit:
    wanted = os.environ.get("CUSTOMLOSS_CUDA") or ("1" if FORCE_CUDA else "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"CUSTOMLOSS_CUDA: expected auto, 1 or 0, got {wanted!r}")
    if wanted == "0":
        raise RuntimeError("CUSTOMLOSS_CUDA=0")
    try:
        return find_toolkit()
    except RuntimeError as reason:
        if wanted == "1":
            raise SystemExit(f"CUSTOMLOSS_CUDA=1 cannot be met: {reason}") from None
        raise


record: dict[str, str | None] = {
    "torch": torch.__version__,
    "python": platform.python_version(),
    "compiler": said_by(*build_support.compiler(), "--version").partition("\n")[0],
    "stable_abi": "2.10",
}
toolkit = None
try:
    toolkit = decide_cuda()
    # cpp_extension reads CUDA_HOME when it is imported, the architectures when it compiles
    os.environ |= {"CUDA_HOME": str(toolkit.home), "TORCH_CUDA_ARCH_LIST": toolkit.archs}
    record |= {"cuda": toolkit.version, "cuda_archs": toolkit.archs, "no_cuda": None}
except RuntimeError as reason:
    record |= {"cuda": None, "cuda_archs": None, "no_cuda": str(reason)}
from torch.utils import cpp_extension  # noqa: E402

torch_home = Path(torch.__file__).parent
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
cxx_flags = [
    *CXX_FLAGS,
    "-g0",
    # no absolute paths in the binaries, nor in the errors they raise
    f"-ffile-prefix-map={HERE}/=",
    f"-ffile-prefix-map={torch_home}/=torch/",
    f"-isystem{torch_home}/include",  # no warnings about torch's own headers
    *(WERROR if WARNINGS_ARE_ERRORS else []),
]
# the standard library is linked before torch's libraries, because these export unversioned copies
# of some of its templates
standard = ["stdc++"] if sys.platform == "linux" else []
extensions = [
    cpp_extension.CppExtension(
        "customloss._C",
        sources("cpu"),
        extra_compile_args={"cxx": cxx_flags},
        libraries=[*standard],
        py_limited_api=not free_threaded,
    )
]
if toolkit is not None:
    host_flags = [flag for flag in cxx_flags if flag.startswith(("-f", "-g", "-Wall"))]
    # cpp_extension adds no architectures if any flag contains "arch", even within a path
    host_flags = [flag for flag in host_flags if "arch" not in flag]
    cuda = cpp_extension.CUDAExtension(
        "customloss._C_cuda",
        sources("cuda"),
        extra_compile_args={
            "cxx": [*cxx_flags, "-DUSE_CUDA"],
            "nvcc": [
                *NVCC_FLAGS,
                *(part for flag in host_flags for part in ("-Xcompiler", flag)),
                *(["-Werror", "all-warnings"] if WARNINGS_ARE_ERRORS else []),
            ],
        },
        libraries=[*standard],
        py_limited_api=not free_threaded,
    )
    # a static runtime, so that the library is not tied to the toolkit's major version
    cuda.libraries[cuda.libraries.index("cudart")] = "cudart_static"
    cuda.libraries += ["dl", "rt", "pthread"]
    cuda.library_dirs.append(str(toolkit.libraries))
    cuda.extra_link_args.append("-Wl,--exclude-libs,libcudart_static.a")
    extensions.append(cuda)


def object_folder(base: str) -> Path:
    """Where objects are kept from one build to the next.

    ninja compiles again where a source, a header of csrc/ or a flag has changed. It does not see a
    torch, a compiler or a toolkit that was replaced in its place, so each has a folder of its own.
    """
    replaced = Path(torch.version.__file__).stat().st_mtime_ns
    seen = [torch_home, torch.version.git_version, replaced, platform.machine()]
    seen += [record[name] for name in ("torch", "compiler", "cuda")]
    return Path(base) / f"objects-{hashlib.sha256(repr(seen).encode()).hexdigest()[:12]}"


class BuildPython(build_py):
    """Starts from nothing: files of an earlier build must not end up in a wheel."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "customloss", ignore_errors=True)
        super().run()


class BuildExtension(cpp_extension.BuildExtension):
    """Keeps its objects, also those of an editable build, which setuptools would throw away.

    It writes beside the libraries what they were built with, for ``customloss.build_info()``.
    """

    def finalize_options(self) -> None:
        if self.build_temp is None:
            self.build_temp = str(object_folder(self.get_finalized_command("build").build_base))
        super().finalize_options()
        self.force = True  # ninja knows what is up to date; without ninja, nothing counts as that

    def run(self) -> None:
        with build_support.alone_in(Path(self.build_temp), torch_home):
            super().run()
        beside = Path(self.get_ext_fullpath("customloss._C")).with_name("_build.json")
        beside.write_text(json.dumps(record, indent=2) + "\n")


def report() -> str:
    cuda = f"not built: {record['no_cuda']}"
    if toolkit is not None:
        cuda = f"{len(sources('cuda'))} sources, by {toolkit.home}, for {toolkit.archs}"
    jobs = os.environ.get("MAX_JOBS", "as many as there are cores")
    if not cpp_extension.is_ninja_available():
        jobs = "one after the other, because there is no ninja: pip install ninja"
    return f"""customloss build
  torch     {torch.__version__} in {torch_home}, stable ABI 2.10
  python    {record["python"]}{"" if free_threaded else ", libraries for any from 3.10 on (abi3)"}
  compiler  {record["compiler"] or "none"}
  _C        {len(sources("cpu"))} sources, about two minutes of one core
  _C_cuda   {cuda}
  jobs      {jobs}"""


print(report(), file=sys.stderr, flush=True)
setuptools.setup(
    packages=[*setuptools.find_packages(include=["customloss*"]), "customloss.kernels"],
    package_dir={"customloss.kernels": "kernels"},
    package_data={"customloss": ["py.typed"]},
    long_description=build_support.long_description(HERE),
    long_description_content_type="text/markdown",
    ext_modules=extensions,
    cmdclass={"build_py": BuildPython, "build_ext": BuildExtension},
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
