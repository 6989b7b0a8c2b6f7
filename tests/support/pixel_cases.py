"""Cases where the classes of a pixel are read together: softmax, class numbers, smoothing.

On the CPU a tile has about ``65536 / C`` pixels, between 16 and 512 of them in steps of 16. A unit
of work has as many tiles as make ``65536 / C`` pixels. float32 sums span a short run of a tile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from cases import Case, short

from customloss import scores

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SOFTMAX = {"activation": "softmax"}


def numbered(name: str, shape: tuple[int, ...], reason: str = "", **more: Any) -> Case:
    """Softmax and class numbers: what people segment and classify with."""
    options = {**SOFTMAX, **more.pop("options", {})}
    return Case(name, shape, reason, **{"kind": "numbers", "options": options, **more})


def _sized(shape: tuple[int, ...], reason: str, **more: Any) -> Case:
    name = "x".join(map(str, shape)) + "".join(f"-{value}" for value in more.values())
    return numbered(f"pixels-{name}", shape, reason, **more)


SIZES = (
    _sized((1, 2), "one pixel, the fewest classes"),
    _sized((7, 2), "below a vector: the tail loop alone"),
    _sized((15, 4), "one short of the least tile"),
    _sized((16, 17), "the least tile, one class above its width"),
    _sized((33, 16), "as many classes as a register has lanes"),
    _sized((255, 5), "one short of a run of float64"),
    _sized((511, 3), "one short of a tile"),
    _sized((512, 4), "a tile"),
    _sized((513, 5), "a tile and one pixel"),
    _sized((21847, 3), "a unit (21846 rounded up to tiles) less some tiles"),
    _sized((22017, 3), "a unit and one pixel"),
    _sized((32769, 2), "a unit and one pixel"),
    _sized((1100, 33), "tiles of rows and a tail"),
    _sized((1031, 105), "primes: units, tiles and tails at once"),
    _sized((97, 1031), "more classes than a tile has pixels"),
    _sized((1, 1031), "one pixel of many classes"),
    _sized((3, 4, 5), "samples of few pixels share a tile"),
    _sized((700, 3, 2), "a tile of hundreds of samples"),
    _sized((2, 16, 1, 1), "size-1 axes have any stride"),
    _sized((2, 5, 33, 37), "images with prime sides"),
    _sized((2, 2, 3, 4, 5), "volumes"),
    _sized((1, 4, 9, 11, 13), "a volume above a tile"),
    _sized((2, 3, 21, 25), "classes last in memory", layout="class_last"),
    _sized((2, 33, 7, 5), "lines of classes longer than a cache line", layout="class_last"),
    _sized((2, 105, 4, 5), "more classes than pixels", layout="class_last"),
    _sized((1, 1031, 3, 5), "lines of more than a block", layout="class_last"),
    _sized((2, 4, 5, 6, 7), "volumes, classes last", layout="class_last"),
    _sized((700, 3), "each class a row of memory", layout="transposed"),
    _sized((2, 17, 5, 7), "memory in the reverse order", layout="transposed"),
    _sized((2, 4, 9, 7), "rows with gaps, from an offset", layout="sliced"),
    _sized((50, 16), "rows of classes with gaps", layout="sliced"),
    _sized((129, 33), "every second class", layout="stepped"),
    _sized((2, 5, 9, 70), "every second pixel", layout="stepped"),
    _sized((530, 5), "unaligned: starts one element late", layout="offset"),
    _sized((30, 5), "stride 0 between samples", layout="expanded_sample"),
    _sized((2, 3, 6, 5), "stride 0 between classes: all are largest", layout="expanded_class"),
)

LABELS = tuple(
    numbered(f"labels-{short(dtype)}-{kind}-{'x'.join(map(str, shape))}", shape,
             "a dtype of class numbers, some of them ignored or of no class",
             target=dtype, kind=kind, target_layout=layout, options={"ignore_index": ignored})
    for dtype, ignored in zip(LABEL_DTYPES, (255, -1, -100, 0, 2))
    for kind, shape, layout in (("numbers", (45, 7), None), ("column", (3, 4, 6, 5), "transposed"))
)  # fmt: skip

WEIGHTED = tuple(
    Case(f"pixels-weight-{weight}-{kind}", (4, 5, 6, 7), "a shape of weight", target=None,
         kind=kind, weight=weight, options=SOFTMAX)
    for weight in ("full", "mask", "class", "sample", "pixel", "scalar")
    for kind in ("numbers", "shares")
) + tuple(
    numbered(f"pixels-weight-{short(dtype)}", (45, 7), "a dtype of weight", weight="pixel",
             weight_dtype=dtype)
    for dtype in (torch.bool, torch.float64, torch.bfloat16, torch.int64, torch.uint8)
)  # fmt: skip

MIXED_LAYOUTS = tuple(
    Case(f"pixels-{one}-{other}-{kind}", (4, 6, 9, 3), "operands of different layouts", one, other,
         target=None, kind=kind, weight="full", weight_layout=third, options=SOFTMAX)
    for one, other, third in (
        ("contiguous", "class_last", "transposed"),
        ("class_last", "contiguous", "sliced"),
        ("transposed", "stepped", "class_last"),
        ("sliced", "expanded_sample", "expanded_class"),
        ("expanded_sample", "contiguous", "offset"),
    )
    for kind in ("column", "shares")
)  # fmt: skip

# Every activation with every kind of target that makes the classes of a pixel be read together.
READINGS: dict[str, dict[str, Any]] = {
    "softmax-numbers": {"kind": "numbers", "options": SOFTMAX},
    "softmax-onehot": {"kind": "onehot", "target": torch.bool, "options": SOFTMAX},
    "softmax-onehot-uint8": {"kind": "onehot", "target": torch.uint8, "options": SOFTMAX},
    "softmax-shares": {"kind": "shares", "target": None, "options": SOFTMAX},
    "softmax-any": {"kind": "dense", "target": None, "options": SOFTMAX},
    "sigmoid-numbers": {"kind": "numbers", "options": {}},
    "none-numbers": {"kind": "column", "options": {"activation": "none"}},
    "sigmoid-ignored": {"target": torch.int64, "options": {"ignore_index": -100}},
    "sigmoid-ignored-soft": {"target": None, "options": {"ignore_index": -1}},
    "none-ignored": {"target": torch.uint8, "options": {"activation": "none", "ignore_index": 255}},
    "softmax-several": {
        "kind": "numbers", "options": {**SOFTMAX, "ignore_index": (-1, 2, 255)},
    },
    "softmax-refusing": {
        "kind": "numbers",
        "options": {**SOFTMAX, "out_of_range": "raise", "ignore_index": (-1, 255)},
    },
    "sigmoid-refusing": {"kind": "column", "options": {"out_of_range": "raise"}},
    "sigmoid-several": {"target": torch.int64, "options": {"ignore_index": (-100, 255)}},
    "sigmoid-nan": {"target": None, "options": {"nan_targets": "ignore"}},
    "none-nan": {
        "target": None,
        "options": {
            "activation": "none", "nan_targets": "ignore", "ignore_index": -1,
            "label_smoothing": 0.1,
        },
    },
    "sigmoid-smoothed": {"target": None, "options": {"label_smoothing": 0.2}},
    "none-smoothed": {"options": {"activation": "none", "label_smoothing": 0.1}},
    "softmax-smoothed": {
        "kind": "numbers", "options": {**SOFTMAX, "label_smoothing": 0.1, "ignore_index": 1},
    },
    "softmax-smoothed-shares": {
        "kind": "shares", "target": None, "options": {**SOFTMAX, "label_smoothing": 0.3},
    },
    "softmax-scaled": {
        "kind": "numbers", "options": {**SOFTMAX, "logit_scale": 2.5, "logit_offset": 0.5},
    },
    "softmax-negative": {
        "kind": "shares", "target": None,
        "options": {**SOFTMAX, "logit_scale": -0.5, "logit_offset": -1.0},
    },
}  # fmt: skip


def reading(name: str, shape: tuple[int, ...], **more: Any) -> Case:
    own = READINGS[name]
    options = {**own["options"], **more.pop("options", {})}
    return Case(f"{name}-{'x'.join(map(str, shape))}", shape, **{**own, "options": options, **more})


READ = tuple(
    replace(reading(name, shape, weight=weight, layout=layout), name=f"{name}-{layout}-{weight}")
    for name in READINGS
    for shape, layout, weight in (
        ((70, 6), "contiguous", None),
        ((2, 5, 6, 7), "class_last", "pixel"),
        ((3, 3, 4, 2, 5), "sliced", "full"),
    )
)

# Options that decide what becomes of the sums.
OUTCOMES: dict[str, dict[str, Any]] = {
    "micro": {"average": "micro"},
    "weighted": {"average": "weighted"},
    "none": {"average": "none", "reduction": "none"},
    "samplewise": {"samplewise": True},
    "samplewise_micro": {"samplewise": True, "average": "micro", "reduction": "none"},
    "samplewise_groups": {"samplewise": True, "average": "none", "reduction": "none"},
    "smooth": {"smooth": 1.0},
    "skip": {"samplewise": True, "absent": "skip"},
    "penalize": {"samplewise": True, "absent": "penalize", "average": "weighted"},
    "log": {"link": "log", "beta": 2.0},
    "focal": {"link": "focal", "gamma": 2.0},
    "negative": {"link": "negative"},
}  # fmt: skip

OPTIONED = tuple(
    replace(reading(name, (3, 4, 5), options=OUTCOMES[outcome], weight=weight),
            name=f"{name}-{outcome}")
    for outcome in OUTCOMES
    for name, weight in (("softmax-numbers", None), ("softmax-shares", "pixel"),
                         ("sigmoid-ignored", "class"))
)  # fmt: skip

# The extras beside tp, fp, fn and tn: alone, in pairs, all.
EXTRAS: dict[str, dict[str, Any]] = {
    **{word: {word: True} for word in scores.SUMS},
    "log_loss-hard": {"log_loss": True, "hard": True},
    "log_loss-focal": {"log_loss": True, "focal": True},
    "distance-focal": {"distance": True, "focal": True, "focal_gamma": 1.5},
    "log_loss-support": {"log_loss": True, "support": True, "log_smoothing": 0.15},
    "focal-split": {"focal": True, "focal_gamma": 1.5, "focal_split": True},
    "every": {**dict.fromkeys(scores.SUMS, True), "focal_gamma": 0.5},
    "every-split": {
        **dict.fromkeys(scores.SUMS, True), "focal_split": True, "log_smoothing": 0.2,
    },
}  # fmt: skip

# A few of everything, for checks that cost seconds each.
FEW = (
    *(reading(name, (3, 4), weight=None) for name in READINGS),
    numbered("volume", (1, 3, 2, 2, 2), "numbers of a volume", kind="column", weight="class"),
    numbered("images", (2, 3, 3, 2), "channels last", layout="class_last", weight="pixel"),
    numbered("rows", (5, 4), "transposed", layout="transposed", target=torch.uint8),
    reading("softmax-shares", (2, 3, 2), weight="full", layout="sliced"),
    numbered("no-pixels", (0, 4), "no elements"),
    numbered("groups", (3, 4), "a loss of rank 2", options=OUTCOMES["samplewise_groups"]),
)

ALL = (*SIZES, *LABELS, *WEIGHTED, *MIXED_LAYOUTS, *READ, *OPTIONED)
