"""Random shapes, strides, dtypes and options agree with the reference.

A failure names its seed. Add the seed to KEPT or KEPT_PIXELS with what was wrong, so that it is
always run. ``CUSTOMLOSS_FUZZ=5000 pytest tests/values/test_fuzz.py`` tries more seeds.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import INPUT_DTYPES, LAYOUTS, TARGET_DTYPES, WEIGHTS, Case
from judge import assert_right, assert_sums_right, soft_f1
from pixel_cases import LABEL_DTYPES as INTEGERS
from selection import one_of_each

import customloss
from customloss import reference

SEEDS = int(os.environ.get("CUSTOMLOSS_FUZZ", "240"))

# seed -> the fault that it once found
KEPT: dict[int, str] = {}
KEPT_PIXELS: dict[int, str] = {
    1881: "the gradient of a log-loss of a probability of 1 is beyond float16",
    802: "a derivative that cancels is rounded to a subnormal float16",
    2395: "a logit of 15 is rounded before its exponential is taken",
}

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


def drawn_pixels(seed: int) -> tuple[Case, torch.dtype, dict[str, Any]]:
    """Softmax, class numbers, ignored targets and smoothing, and which extras to sum."""
    draw = random.Random(seed)
    case, dtype = drawn_case(seed)
    classes = draw.choice((2, 3, 4, 5, 7, 16, 17, 33, 105))
    places = [draw.choice(SIZES) for _ in range(draw.choice((0, 1, 1, 2, 2, 3)))]
    shape = [draw.choice(SIZES), classes, *places]
    while torch.Size(shape).numel() > 20_000:
        place = max((i for i in range(len(shape)) if i != 1), key=lambda i: shape[i])
        shape[place] = max(shape[place] // 3, 1)
    options = dict(case.options)
    activation = draw.choice(("softmax", "softmax", "softmax", "sigmoid", "none"))
    options["activation"] = activation
    if activation == "none":
        options |= {"logit_scale": 1.0, "logit_offset": 0.0}
    elif options.get("logit_scale", 1.0) ** 2 < 0.01:
        options["logit_scale"] = 0.5
    kind = draw.choice(("numbers", "column", "numbers", "onehot", "shares", "dense"))
    numbers = kind in ("numbers", "column")
    ignored = draw.choice((None, 0, 1, 255, -100, classes - 1, classes))
    if ignored is not None and (numbers or (activation != "softmax" and kind == "dense")):
        options["ignore_index"] = ignored
    options["label_smoothing"] = draw.choice((0.0, 0.0, 0.1, 0.5))
    target = draw.choice(INTEGERS if numbers else (torch.bool, torch.uint8, torch.float32))
    further = {name: True for name in reference.ROWS if draw.random() < 0.3}
    if draw.random() < 0.3:
        further = {}
    further["focal_gamma"] = draw.choice((2.0, 1.0, 0.5, 0.0, 3.0))
    case = replace(
        case, name=f"pixels-{seed}", shape=tuple(shape), kind=kind, options=options,
        target=draw.choice((target, None)) if kind in ("shares", "dense") else target,
        weight=draw.choice((None, *WEIGHTS)),
    )  # fmt: skip
    return case, dtype, further


def run(seed: int, op: Any = soft_f1) -> None:
    case, dtype = drawn_case(seed)
    try:
        assert_right(op, case.build(dtype))
    except Exception as error:
        raise AssertionError(f"fuzz seed {seed}: {dtype} {case!r}") from error


def run_pixels(seed: int) -> None:
    case, dtype, further = drawn_pixels(seed)
    try:
        sample = case.build(dtype)
        assert_right(soft_f1, sample)
        assert_sums_right(sample, **further)
    except Exception as error:
        raise AssertionError(f"fuzz of pixels, seed {seed}: {dtype} {further} {case!r}") from error


def test_kept_seeds() -> None:
    for seed in KEPT:
        run(seed)
    for seed in KEPT_PIXELS:
        run_pixels(seed)


@one_of_each(lambda tenth: tenth % 3)
@pytest.mark.parametrize("tenth", range(10))
def test_fuzz(tenth: int) -> None:
    for seed in range(tenth, SEEDS, 10):
        run(seed)


@one_of_each(lambda tenth: tenth % 3)
@pytest.mark.parametrize("tenth", range(10))
def test_fuzz_of_pixels(tenth: int) -> None:
    for seed in range(tenth, SEEDS, 10):
        run_pixels(seed)


def test_fuzz_of_the_reference_backend() -> None:
    """The fallback keeps the same contract."""
    with customloss.backend("reference"):
        for seed in range(0, SEEDS, 8):
            run(seed)
            run_pixels(seed)
