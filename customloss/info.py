"""What this installation consists of: for bug reports, and to see why something is slow."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from customloss._backends import choice, libraries

__version__ = "0.1.0"


@dataclass(frozen=True)
class Library:
    """A compiled library: the file that is loaded, or the reason that none is."""

    path: str | None
    reason: str | None

    @property
    def loaded(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return f"loaded, {self.path}" if self.loaded else f"not loaded: {self.reason}"


@dataclass(frozen=True)
class BuildInfo:
    """What :func:`build_info` found; printed, it is a block of lines."""

    customloss: str
    torch: str
    torch_cuda: str | None  # the CUDA version of torch; None without CUDA
    python: str
    platform: str
    cpu: Library
    cuda: Library
    instruction_set: str | None  # what the CPU kernels run on; None without them
    huge_pages: str | None  # whether fresh CPU gradients get 2 MiB pages; None without the kernels
    gradient_cache: str | None  # what is kept of freed CPU gradients; None without the kernels
    threads: int
    cuda_archs: str | None  # what _C_cuda was compiled for
    triton: str  # its version, or why it is not in use
    backend: str  # "auto", or the chosen one
    built_with: dict[str, Any]  # what setup.py wrote down; empty if it did not build this

    def __str__(self) -> str:
        return "\n".join(f"{name:<17}{value}" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """Names and values as text, in the order to show them."""
        built = self.built_with
        by = f"torch {built['torch']}, {built['compiler']}" if built else "no record"
        return [
            ("customloss", self.customloss),
            ("torch", f"{self.torch}, CUDA {self.torch_cuda or 'none'}"),
            ("python", f"{self.python} on {self.platform}"),
            ("_C", str(self.cpu)),
            ("_C_cuda", str(self.cuda)),
            ("instruction set", self.instruction_set or "none"),
            ("threads", str(self.threads)),
            ("huge pages", self.huge_pages or "none"),
            ("gradient cache", self.gradient_cache or "none"),
            ("CUDA archs", self.cuda_archs or "none"),
            ("triton", self.triton),
            ("backend", self.backend),
            ("built with", by),
        ]


def build_info() -> BuildInfo:
    """Versions, the libraries that are loaded or why not, and what the kernels run on.

    Example::

        print(customloss.build_info())
    """
    record = libraries.build_record()
    return BuildInfo(
        customloss=__version__,
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_library("_C"),
        cuda=_library("_C_cuda"),
        instruction_set=_instruction_set() if libraries.loaded("_C") else None,
        huge_pages=_huge_pages() if libraries.loaded("_C") else None,
        gradient_cache=_gradient_cache() if libraries.loaded("_C") else None,
        threads=torch.get_num_threads(),
        cuda_archs=record.get("cuda_archs") if libraries.loaded("_C_cuda") else None,
        triton=_triton(),
        backend=choice.current_backend(),
        built_with=record,
    )


def _instruction_set() -> str:
    try:
        name: str = torch.ops.customloss.cpu_isa()
    except RuntimeError as error:  # CUSTOMLOSS_CPU_ISA is a word that is not known
        return f"none ({str(error).splitlines()[0]})"
    return name


def _huge_pages() -> str:
    wanted: bool = torch.ops.customloss.cpu_huge_pages()
    return "wanted" if wanted else "turned off by CUSTOMLOSS_HUGE_PAGES=0"


def _gradient_cache() -> str:
    limit, kept = torch.ops.customloss.cpu_gradient_cache()
    return (
        f"{kept / 2**20:.0f} MiB kept, {limit / 2**20:.0f} MiB at most" if limit else "turned off"
    )


def empty_cache() -> int:
    """Gives the memory back that is kept of freed CPU gradients; returns how many bytes it was.

    A large gradient on the CPU lies in memory that is kept when the gradient is freed, for the next
    one of about its size: to get memory from the operating system takes longer than to fill it.
    At most ``CUSTOMLOSS_GRADIENT_CACHE`` bytes are kept, by default a sixteenth of the machine's
    memory; 0 keeps none. :func:`build_info` shows both numbers. Nothing is kept before torch 2.11,
    and on other systems than Linux.

    Example::

        customloss.empty_cache()  # after a training, in a process that goes on
    """
    if not libraries.loaded("_C"):
        return 0
    freed: int = torch.ops.customloss.cpu_empty_gradient_cache()
    return freed


def _library(name: str) -> Library:
    path = libraries.paths.get(name)
    return Library(None if path is None else str(path), libraries.status.get(name))


def _triton() -> str:
    if find_spec("triton") is None:
        return "not installed"
    if find_spec("customloss.kernels") is None:
        return "customloss.kernels is not installed: this is a source tree on the path"
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "an unknown version"
