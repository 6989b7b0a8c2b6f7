"""Differential fuzz: random shapes, strides, dtypes and options against the reference.

A failure names its seed. Put it into KEPT with what was wrong, so that it is run for ever;
``CUSTOMLOSS_FUZZ=5000 pytest tests/test_fuzz.py`` looks for more."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from cases import INPUT_DTYPES, LAYOUTS, TARGET_DTYPES, WEIGHTS, Case
from judge import assert_right, soft_f1

import customloss

FOUND = int(os.environ.get("CUSTOMLOSS_FUZZ", "240"))

# seed -> what it once found
KEPT: dict[int, str] = {}

SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 33, 63, 64, 65, 127)


def drawn_case(seed: int) -> tuple[Case, torch.dtype]:
    draw = random.Random(seed)
    rank = draw.choice((1, 2, 2, 2, 3, 4, 4, 5))
    shape = [draw.choice(SIZES) for _ in range(rank)]
    if draw.random() < 0.15:
        shape[draw.randrange(rank)] = draw.choice((1023, 1024, 1025, 1031))
    while torch.Size(shape).numel() > 40_000:
        shape[shape.index(max(shape))] //= 3
    link = draw.choice(("complement", "complement", "log", "focal", "negative"))
    options: dict[str, Any] = {
        "beta": draw.choice((1.0, 1.0, 0.0, 0.3, 2.0, 5.0)),
        "average": draw.choice(("macro", "micro", "weighted", "none")),
        "samplewise": draw.random() < 0.4,
        "reduction": draw.choice(("mean", "sum", "none")),
        "smooth": draw.choice((0.0, 0.0, 1.0, 0.01)),
        "absent": draw.choice(("score", "skip", "penalize")),
        "link": link,
        "gamma": draw.choice((1.0, 1.5, 2.0)) if link == "focal" else 1.0,
    }
    if draw.random() < 0.2:
        options["activation"] = "none"
    elif draw.random() < 0.3:
        options |= {"logit_scale": draw.uniform(-3, 3), "logit_offset": draw.uniform(-1, 1)}
    case = Case(
        f"fuzz-{seed}",
        tuple(shape),
        layout=draw.choice(LAYOUTS),
        target_layout=draw.choice(LAYOUTS),
        target=draw.choice((torch.bool, None, *TARGET_DTYPES)),
        weight=draw.choice((None, None, *WEIGHTS)),
        weight_dtype=draw.choice((None, None, *INPUT_DTYPES, torch.uint8)),
        weight_layout=draw.choice(LAYOUTS),
        options=options,
    )
    return case, draw.choice(INPUT_DTYPES)


def run(seed: int, op: Any = soft_f1) -> None:
    case, dtype = drawn_case(seed)
    try:
        assert_right(op, case.build(dtype))
    except Exception as error:
        raise AssertionError(f"fuzz seed {seed}: {dtype} {case!r}") from error


def test_kept_seeds() -> None:
    for seed in KEPT:
        run(seed)


@pytest.mark.parametrize("tenth", range(10))
def test_fuzz(tenth: int) -> None:
    for seed in range(tenth, FOUND, 10):
        run(seed)


def test_fuzz_of_the_reference_backend() -> None:
    """The fallback has the same contract."""
    with customloss.backend("reference"):
        for seed in range(0, FOUND, 8):
            run(seed)
