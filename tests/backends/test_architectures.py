"""A GPU that the compiled kernels have no code for gets others, and a warning says so."""

from __future__ import annotations

import pytest
from process import run_python

from customloss._backends.architectures import has_code, without_code


@pytest.mark.parametrize(
    ("archs", "capability", "fits"),
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 6), True),  # machine code runs on later minor versions
        ("8.6", (8, 0), False),
        ("9.0", (8, 0), False),
        ("9.0", (10, 0), False),
        ("9.0+PTX", (10, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("8.0+PTX;9.0;10.0;12.0+PTX", (7, 5), False),
        ("8.0+PTX;9.0;10.0;12.0+PTX", (11, 0), True),
        ("8.0 9.0", (9, 0), True),
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
        ("10.0f", (10, 3), True),
        ("Hopper", (7, 5), True),  # torch alone knows names
    ],
)
def test_what_runs_where(archs: str, capability: tuple[int, int], fits: bool) -> None:
    assert has_code(archs, capability) == fits


def test_without_a_record_nothing_is_known() -> None:
    assert without_code(None) is None


_PRETENDED = """
import warnings, torch
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda index: (7, 5)
torch.cuda.get_device_name = lambda index: "Tesla T4"
import customloss
from customloss._backends import libraries
from customloss._ops import register
libraries.status["_C_cuda"] = None
libraries.build_record = lambda: {"cuda_archs": %r}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    register._leave_cuda_without_code()
print(*(str(each.message) for each in caught))
print(customloss.build_info().cuda)
print(torch._C._dispatch_has_kernel_for_dispatch_key("customloss::confusion", "CUDA"))
"""


def test_a_gpu_without_code_gets_other_kernels() -> None:
    done = run_python(_PRETENDED % "9.0")
    assert done.returncode == 0, done.stderr
    warned, library, other = done.stdout.splitlines()
    reason = (
        "it was built for 9.0, and cuda:0, Tesla T4, has compute capability 7.5. Build again with "
        "TORCH_CUDA_ARCH_LIST='7.5'"
    )
    assert warned.startswith("customloss computes CUDA losses with ")
    assert warned.endswith(f", and not with _C_cuda: {reason}")
    assert library == f"not loaded: {reason}"
    assert other == "True"


def test_a_gpu_with_code_keeps_them() -> None:
    done = run_python(_PRETENDED % "7.0")
    assert done.stdout.splitlines()[0] == ""
    assert done.stdout.splitlines()[1].startswith("loaded")
