"""Whether ``_C_cuda`` has code for the GPUs of this machine: what it was built for, what they are.

A library without code for a GPU loads, and fails at its first launch.
"""

from __future__ import annotations

import re

import torch

_ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


def has_code(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``archs`` runs on a GPU of this compute capability.

    ``archs`` is written as in TORCH_CUDA_ARCH_LIST, "8.0;9.0a;12.0+PTX". Machine code runs on its
    own minor version and later ones of the same major version; PTX on every later version; code
    for 9.0a on 9.0 alone, and for 10.0f on the rest of its major version. A name such as "Hopper"
    is taken to fit, since torch alone knows what it stands for.
    """
    for arch in re.split(r"[;\s]+", archs.strip("; ")):
        parsed = _ARCHITECTURE.fullmatch(arch)
        if parsed is None:
            return True
        built = (int(parsed[1]), int(parsed[2]))
        if parsed[3] == "a":
            if capability == built:
                return True
        elif capability >= built and (capability[0] == built[0] or parsed[4]):
            return True
    return False


def without_code(archs: str | None) -> str | None:
    """A sentence about the first GPU that code for ``archs`` does not run on.

    None if all are served, or where it is not known what was built. This initialises CUDA.
    """
    if archs is None:
        return None
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not has_code(archs, capability):
            name, version = torch.cuda.get_device_name(index), "{}.{}".format(*capability)
            return (
                f"it was built for {archs}, and cuda:{index}, {name}, has compute capability "
                f"{version}. Build again with TORCH_CUDA_ARCH_LIST='{version}'"
            )
    return None
