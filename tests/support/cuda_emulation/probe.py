"""Tests one emulated library in its own process: ``probe.py LIBRARY bits|pixels|sums|judge``.

The first three print a digest for each of several orders of the threads: ``bits`` of losses and
their gradients, ``pixels`` of sums and gradients where the classes of a pixel are read together,
``sums`` of losses computed from sums. ``judge`` compares results with the reference and prints how
many samples it judged. emulated.py sets the import path and runs this for libraries that are broken
on purpose or built with sanitizers.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import cases
import sums_cases
import torch
from build import Emulation
from judge import assert_right, differentiated
from sums_cases import How

from customloss._backends import choice
from customloss._spec.arguments import Elements

SEEDS = (1, 2, 3)
# These reach every kernel: long and short groups, rows of classes, folded rows, many groups.
PROBES = (
    cases.Case("long", (5000,)),
    cases.Case("planes", (2, 3, 33, 37), weight="full"),
    cases.Case("rows", (300, 9), target=None),
    cases.Case("wide-rows", (70, 40), weight="class"),
    cases.Case("samples", (40, 21), options=cases.OPTIONS["samplewise_skip"]),
    cases.Case("segments", (3, 700), options=cases.OPTIONS["weighted"]),
)
JUDGED = (
    *(case for case in cases.SIZES if torch.Size(case.shape).numel() < 3000),
    *cases.MIXED_LAYOUTS,
    *cases.TARGETS,
    *cases.WEIGHTED,
    *(case for case in cases.OPTIONED if case.name.startswith("few")),
    *PROBES,
)
# Losses of sums: a single slice, of one row or of many; several slices, of whole rows or segments.
SUMS = (
    ((1, 300), How(pointwise="binary", weights="some")),
    ((40, 21), How(average="weighted", absent="skip", pointwise="both", weights="some")),
    ((600, 3), How(reduction="none", pointwise="focal")),
    ((2, 1100), How(average="weighted", pointwise="cross-entropy")),
)


def use(emulation: Emulation) -> None:
    """The public operators run on the emulated primitives from here on."""
    choice.primitives = lambda input: emulation.primitives


def digest(seed: int, emulation: Emulation) -> str:
    emulation.seed(seed)
    found = hashlib.sha256()
    for case in PROBES:
        loss, gradients = differentiated(torch.ops.customloss.soft_f1, case.build())
        for tensor in (loss, *gradients):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def pixel_digest(seed: int, emulation: Emulation) -> str:
    emulation.seed(seed)
    torch.manual_seed(0)
    found = hashlib.sha256()
    # A shape for each kind of kernel: few classes, tiles of planes (with the classes of a pixel in
    # several threads and in one), tiles of rows, and the rest.
    shapes = (
        ((1, 3, 2500), 0), ((1, 40, 700), 1), ((1, 20, 1500), 0), ((300, 20), 0), ((2, 5, 700), 31),
    )  # fmt: skip
    for shape, extra in shapes:
        x, t = torch.randn(shape), torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))
        how = Elements(2, 1.0, 0.0, False, True, extra=extra)
        sums = emulation.confusion(x, t, None, *how)
        by = emulation.confusion_backward(None, sums, x, t, None, 0, *how)
        found.update(sums.numpy().tobytes() + by.numpy().tobytes())
    return found.hexdigest()


def sums_digest(seed: int, emulation: Emulation) -> str:
    emulation.seed(seed)
    torch.manual_seed(0)
    found = hashlib.sha256()
    for shape, how in SUMS:
        weight = how.class_weight(shape[1])
        for tensor in emulation.sums_score(how.sums(shape), weight, *how.arguments()):
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()


DIGESTS = {"bits": digest, "pixels": pixel_digest, "sums": sums_digest}


def main() -> None:
    emulation = Emulation(Path(sys.argv[1]))
    use(emulation)
    if sys.argv[2] in DIGESTS:
        print(*(DIGESTS[sys.argv[2]](seed, emulation) for seed in SEEDS))
        return
    for case in JUDGED:
        for dtype in (torch.float32, torch.bfloat16):
            assert_right(torch.ops.customloss.soft_f1, case.build(dtype))
    for shape, how in SUMS:
        sums_cases.assert_right(emulation.sums_score, how, shape)
    print(2 * len(JUDGED) + len(SUMS))


if __name__ == "__main__":
    main()
