"""What Triton makes of its kernels for GPUs that are not here."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends import compiler as backends

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_LIMIT = 48 * 1024  # every GPU grants a block this much by default
REGISTER_LIMIT = 255


class StandIn:
    """The part of a Triton driver that compilation needs."""

    def __init__(self, capability: int, device: str = "") -> None:
        self.capability = capability
        self.device = device or f"sm_{capability}"  # Triton keeps what it compiled per device

    def get_current_target(self) -> Any:
        return backends.GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        return self.device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def standing_in(stand_in: StandIn) -> Iterator[None]:
    """Within it, Triton takes this machine for one with such a GPU."""
    driver = triton.runtime.driver
    # Private fields are used, because reading the public one looks for a GPU.
    before = driver._active if hasattr(driver, "_active") else None
    driver.set_active(stand_in)
    try:
        yield
    finally:
        driver.set_active(before)


class Compiled:
    """The kernels that were compiled instead of launched, by name."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.kernels: dict[str, list[Any]] = {}
        self.parked = 0  # bytes of stack that a thread may use
        # Kernels that spill more than that, and how much: known, and not mended yet. They are right
        # and slower than they could be. A kernel that is not listed, or spills more, fails.
        self.known: dict[str, int] = {}

    def ptx(self, name: str) -> str:
        return str(self.kernels[name][-1].asm["ptx"])

    def check(self) -> None:
        """Nothing spills, and everything fits."""
        spilled: dict[str, int] = {}
        for name, found in self.kernels.items():
            for kernel in found:
                assert kernel.asm["cubin"], name
                assert kernel.metadata.shared <= SHARED_LIMIT, name
                ptx = kernel.asm["ptx"]
                uses = re.search(r"\b(ld|st|cvta)\.local\b", ptx)
                assert not uses, f"{name} keeps an array in local memory"
                assert not re.search(r"\batom\.|\bred\.", ptx), f"{name} uses an atomic"
                registers, stack, local = _resources(kernel.asm["cubin"])
                # ptxas may put two words on the stack so that another block fits. In finish_kernel
                # it does so in some compilations of one source, and not in others.
                may = name in ("pixel_sums_kernel", "finish_kernel")
                most = max(8, self.parked) if may else self.parked
                assert local == 0, name
                if stack > max(most, self.known.get(name, 0), _unused_frame(ptx)):
                    spilled[name] = max(stack, spilled.get(name, 0))
                assert registers <= REGISTER_LIMIT
        assert not spilled, f"bytes of stack: {spilled}"


class Variants:
    """The variants of kernels that would have been compiled, by name."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def counts(self) -> Counter[str]:
        """How many variants every kernel has."""
        return Counter(name for name, _ in self.seen)

    @contextmanager
    def counted(self) -> Iterator[Variants]:
        """Within it, no kernel is compiled or launched; those that would be are counted."""
        run = triton.JITFunction.run
        device = f"counts {id(self)}"  # for which nothing has been compiled

        def count(*, key: str, fn: Any, **_: Any) -> bool:
            self.seen.add((fn.name, key))
            fn.jit_function.device_caches[device][0][key] = self  # stands for what is compiled
            return True  # that it is not to be compiled

        def without_a_launch(self: Any, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
            launched.add(self)
            run(self, *args, grid=grid, warmup=True, **given)

        launched: set[Any] = set()
        with pytest.MonkeyPatch.context() as patch, standing_in(StandIn(90, device)):
            patch.setattr(triton.JITFunction, "run", without_a_launch)
            patch.setattr(triton.knobs.runtime, "jit_cache_hook", count)
            yield self
        for kernel in launched:
            del kernel.device_caches[device]


def _unused_frame(ptx: str) -> int:
    """The bytes of a frame that LLVM declares. As nothing loads from it or stores to it, it costs
    nothing, but it counts as stack."""
    found = re.search(r"\.local .*__local_depot\d+\[(\d+)\]", ptx)
    return 0 if found is None else -(-int(found[1]) // 8) * 8


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and local bytes; zeros where Triton ships no cuobjdump."""
    if not CUOBJDUMP.is_file():
        return 0, 0, 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2]), int(found[3])


def differences_of_products(ptx: str) -> list[str]:
    """The exponents of exp2 that are made of the difference of a product and a number, which is
    fused or may be."""
    lines = re.findall(r"^\s*([a-z]\S*) \s*(%\w+), (.*);$", ptx, re.MULTILINE)
    made = {to: (operation.split(".")[0], given.split(", ")) for operation, to, given in lines}
    found, open = [], [given for operation, _, given in lines if operation.startswith("ex2")]
    assert open
    while open:
        operation, given = made.get(open.pop(), ("", []))
        factors = [made.get(register, ("", []))[0] for register in given]
        if operation == "mul":
            open += given
        elif operation == "fma" or (operation == "sub" and "mul" in factors):
            found.append(f"{operation} {', '.join(given)}")
    return found
