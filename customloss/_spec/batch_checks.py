"""What the values of a batch say about mistakes: masks of 0 and 255, logits for probabilities, ...

``batch_values.py`` reads the numbers that are judged here. A mistake is a function that returns a
message, or None. ``ERRORS`` lists those that are certain, ``WARNINGS`` those that may be meant. To
notice one more, write a function and list it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, isinf, isnan
from typing import NamedTuple

from customloss._spec import hints
from customloss._spec.batch_values import Batch, Numbers, only, read, rounding

Mistake = Callable[[Batch, Numbers], str | None]


class Findings(NamedTuple):
    """What was found in a batch."""

    errors: list[str]  # what is certainly wrong
    warnings: dict[str, str]  # what may be meant, by the name of the mistake
    has_positives: bool  # whether something that counts is above 0 in the target


def found(batch: Batch) -> Findings:
    """Reads a batch and judges it. Where nothing counts, nothing else is judged."""
    numbers = read(batch)
    positives = bool(numbers["counted"]) and numbers["target_high"] > 0
    errors = [text for mistake in ERRORS if (text := _judged(mistake, batch, numbers))]
    warnings = {
        mistake.__name__: text for mistake in WARNINGS if (text := _judged(mistake, batch, numbers))
    }
    return Findings(errors, warnings, positives)


def _judged(mistake: Mistake, batch: Batch, numbers: Numbers) -> str | None:
    if not numbers["counted"] and mistake is not _nothing_counts:
        return None
    # The resolution of a further output is the coarser: what its shape looks like, and that
    # everything there is ignored, happens by chance.
    if batch.coarse and mistake in (_nothing_counts, _classes_last, _two_readings):
        return None
    return mistake(batch, numbers)


# ---- what is certainly wrong ---------------------------------------------------------------------


def _swapped(batch: Batch, numbers: Numbers) -> str | None:
    low, high = numbers["target_low"], numbers["target_high"]
    if not batch.target.is_floating_point() or not batch.beyond(low, high, batch.target.dtype):
        return None
    if (numbers["input_low"], numbers["input_high"]) != (0, 1) or not only(batch.input, 0, 1):
        return None
    return (
        "input, target: expected logits and then their targets, got an input of 0 and 1 and a "
        f"target with {_span(low, high)}: they seem to be swapped, logits come first"
    )


def _no_probabilities(batch: Batch, numbers: Numbers) -> str | None:
    low, high = numbers["input_low"], numbers["input_high"]
    # beyond a slope of 1 such a sigmoid sharpens probabilities
    sharpens = batch.activation == "sigmoid" and batch.offset == 0.5 and batch.scale > 4
    if batch.activation != "none" and not sharpens:
        return None
    # a logit that overflowed, or is NaN, is for a gradient scaler to notice
    least, most = (value if isfinite(value) else 0.5 for value in (low, high))
    if not batch.beyond(least, most, batch.input.dtype):
        return None
    read_as = "with activation='none'"
    cure = (
        "are these logits? Pass activation='sigmoid', or 'softmax' for classes that exclude each "
        "other; to a loss without that option, pass input.sigmoid()"
    )
    if sharpens:
        read_as = f"for a sigmoid of scale {_shown(batch.scale)} and offset 0.5, as AnyLoss has it"
        cure = "are these logits? Pass input.sigmoid()"
    if least >= 0 and most <= 100:
        cure += "; percentages need input / 100"
    elif most <= 0:
        cure += "; log-probabilities need input.exp()"
    return f"input: expected probabilities in [0, 1] {read_as}, got {_span(low, high)}: {cure}"


def _label_out_of_range(batch: Batch, numbers: Numbers) -> str | None:
    if not batch.labels or batch.ignores_out_of_range:
        return None
    low, high = numbers["target_low"], numbers["target_high"]
    classes = batch.classes
    if low >= 0 and high < classes:
        return None
    if _from_one(numbers, classes):
        return (
            f"{_class_numbers(batch)}, got some from 1 to {classes}, as if they began at 1: pass "
            "target - 1"
        )
    if (low, classes) == (0, 2) and high > 1 and _holds_only(batch, 0, high):
        return (
            f"{_class_numbers(batch)}, got values 0 and {_shown(high)}: is this a mask? Pass "
            f"(target > 0).long(); or ignore_index={_shown(high)}, if {_shown(high)} marks what "
            "does not count"
        )
    return str(hints.unknown_label(int(low if low < 0 else high), classes, batch.ignored))


def _outside(batch: Batch, numbers: Numbers) -> str | None:
    if batch.labels:
        return None
    low, high = numbers["target_low"], numbers["target_high"]
    inside = not batch.beyond(low, high, batch.target.dtype)
    if inside and not isnan(low):
        return None
    expected = "[0, 1]"
    if batch.classes > 1 and not batch.target.is_floating_point():
        expected += " (or class numbers, without a dimension of classes)"
    return f"target: expected values in {expected}, got {_what_came(batch, low, high)}"


def _what_came(batch: Batch, low: float, high: float) -> str:
    """The values of a dense target that leave [0, 1], and the likely cure."""
    if isnan(low):
        softmax = "a weight of 0 leaves such pixels out"
        cure = softmax if batch.activation == "softmax" else "nan_targets='ignore' leaves them out"
        return f"NaN: if they mark what is missing, {cure}"
    scaled = f"divide by {_shown(high)} or compare with 0"
    if isinf(high):
        scaled = "compare with 0"
    signed = "pass (target + 1) / 2, or target > 0"
    if low == high:
        return f"{_shown(low)} everywhere" + (f": {scaled}" if high > 1 else "")
    pairs = {(0.0, high): scaled, (-1.0, 1.0): signed, (1.0, 2.0): "pass target - 1"}
    if (low, high) in pairs and _holds_only(batch, low, high):
        return f"values {_shown(low)} and {_shown(high)}: {pairs[low, high]}"
    mark = _shown(low if low < 0 else high)
    # 0, 1 and 2 are class numbers rather
    if float(mark).is_integer() and high != 2 and _holds_only(batch, 0, 1, float(mark)):
        hidden = "a weight of 0 there" if batch.activation == "softmax" else f"ignore_index={mark}"
        return f"{mark} beside 0 and 1: if {mark} marks what does not count, pass {hidden}"
    if high == 255:
        return f"{_span(low, high)}: {scaled}"
    if low == -1 and high <= 1:
        return f"{_span(low, high)}: {signed}"
    if batch.classes == 1 and low >= 0 and not batch.target.is_floating_point():
        return (
            f"{_span(low, high)}: class numbers need an input with a channel for each of the "
            "classes, and one class against the rest is target == 1"
        )
    cure = ": is this tensor the target?" if batch.target.is_floating_point() else ""
    return f"{_span(low, high)}{cure}"


def _weights_of_classes(batch: Batch, numbers: Numbers) -> str | None:
    """Constant ones on the CPU were checked when the loss was made."""
    for name, _ in batch.of_classes:
        low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
        if not (low >= 0 and isfinite(high)):
            wrong = high if low >= 0 else low
            return f"{name}: expected finite numbers >= 0, got {_shown(wrong)}"
    return None


# ---- what may be meant ---------------------------------------------------------------------------


def _gradient_of_target(batch: Batch, numbers: Numbers) -> str | None:
    if batch.input.requires_grad or not batch.target.requires_grad:
        return None
    return (
        "input, target: expected predictions and then their targets, got a target that requires a "
        "gradient and an input that does not: they seem to be swapped, predictions come first"
    )


# How many values show that they are probabilities. Logits of which a share q happens to lie in
# [0, 1] do so all at once with a chance of q^64: 1e-30 for those of a standard normal distribution,
# of which a third lie there, and still 1e-3 where it is nine of ten.
_ENOUGH = 64
# Values on both sides of 1/2, and not next to it. Logits of an image are no independent draws: a
# nearly constant one gives nearly constant logits, which a bias may lift above 0. But a bias that
# lifts them to 1/2, where every decision is the same, is rare, and an output that is initialised
# with 0 or with a constant is no spread at all. Probabilities of an untrained model, whose logits
# are spread around 0 by 1/2 or more, lie on both sides.
_BELOW_HALF, _ABOVE_HALF = 3 / 8, 5 / 8


def _probabilities(batch: Batch, numbers: Numbers) -> str | None:
    low, high = numbers["input_low"], numbers["input_high"]
    if batch.activation == "none" or batch.offset != 0 or not 0 <= low < high <= 1:
        return None
    if numbers["counted"] < _ENOUGH:
        return None
    if batch.activation == "softmax":
        # sums of 1 in every pixel are no accident, whatever the spread
        if not _add_up(numbers, "input_class_sums", rounding(batch.input)):
            return None
        got = f"{_span(low, high)} that add up to 1 over the classes"
    else:
        if low > _BELOW_HALF or high < _ABOVE_HALF:
            return None
        got = _span(low, high)
    return (
        f"input: expected logits with activation={batch.activation!r}, got {got}: are these "
        "probabilities already? Pass the logits, without a sigmoid or softmax before the loss; or "
        "activation='none', if the loss has that option"
    )


def _labels_from_one(batch: Batch, numbers: Numbers) -> str | None:
    classes = batch.classes
    if not (batch.labels and batch.ignores_out_of_range):
        return None
    if (numbers["labels_low"], numbers["labels_high"]) != (1, classes):
        return None
    return (
        f"{_class_numbers(batch)}, got some from 1 to {classes}, as if they began at 1, so that "
        "the last class falls out: pass target - 1"
    )


def _nothing_counts(batch: Batch, numbers: Numbers) -> str | None:
    if numbers["counted"]:
        return None
    reasons = []
    ignored = [number for number in batch.ignored if number != hints.MISSING]
    if ignored:
        reasons.append(f"is ignored (ignore_index={hints.listed(ignored)})")
    if batch.labels and batch.ignores_out_of_range:
        reasons.append("is no class (out_of_range='ignore')")
    if batch.ignores_nan:
        reasons.append("is NaN")
    if batch.weight is not None:
        reasons.append("has a weight of 0")
    if batch.counting is not None:
        reasons.append("belongs to a class of weight 0")
    name = "target" if batch.weight is None else "weight"
    return (
        f"{name}: expected something that counts, but every element {' or '.join(reasons)}, so "
        "that nothing is learnt: is that meant?"
    )


def _negative_weight(batch: Batch, numbers: Numbers) -> str | None:
    low = numbers.get("weight_low", 0)
    if not low < 0:
        return None
    return (
        f"weight: expected numbers >= 0, got {_shown(low)}: the sums may become negative and the "
        "loss leave its range. A boundary loss means that; else, is this tensor a weight?"
    )


def _classes_last(batch: Batch, numbers: Numbers) -> str | None:
    if not _last_dim_sums_to_one(batch, numbers):
        return None
    return (
        f"target: expected the classes in dim 1 of {list(batch.shape)}, but it adds up to 1 over "
        "its last dim, as if that held the classes: pass target.movedim(-1, 1), and input alike if "
        "its classes are the last dim too"
    )


def _class_sums_off(batch: Batch, numbers: Numbers) -> str | None:
    if batch.activation != "softmax":
        return None
    if not batch.coarse and _last_dim_sums_to_one(batch, numbers):
        return None
    slack = rounding(batch.target)
    if "class_sums_low" not in numbers or _add_up(numbers, "class_sums", slack):
        return None
    low, high = numbers["class_sums_low"], numbers["class_sums_high"]
    if high > 1 + slack:
        cure = "where several classes may be there at once, pass activation='sigmoid'"
    else:
        cure = (
            "is the background missing? It is a class as well; a pixel that should not count is "
            "left out by a weight of 0, or by class numbers with an ignore_index"
        )
    sums = f"sums from {_shown(low)} to {_shown(high)}" if low != high else f"sums of {_shown(low)}"
    return (
        "target: expected classes that add up to 1 in every pixel with activation='softmax', got "
        f"{sums}: {cure}"
    )


def _two_readings(batch: Batch, numbers: Numbers) -> str | None:
    shape = list(batch.shape)
    if not batch.labels or len(shape) < 3:
        return None
    came = [shape[0], *shape[2:]]
    if came != shape[:-1]:
        return None
    return (
        f"target: expected class numbers whose shape can be read in one way, got {came} for an "
        f"input {shape}: the classes are taken to be dim 1; if they are the last one, pass "
        "input.movedim(-1, 1)"
    )


ERRORS: tuple[Mistake, ...] = (
    _weights_of_classes, _swapped, _no_probabilities, _label_out_of_range, _outside,
)  # fmt: skip
WARNINGS: tuple[Mistake, ...] = (
    _gradient_of_target, _probabilities, _labels_from_one, _nothing_counts, _negative_weight,
    _classes_last, _class_sums_off, _two_readings,
)  # fmt: skip


# ---- steps ---------------------------------------------------------------------------------------


def _class_numbers(batch: Batch) -> str:
    return f"target: expected class numbers from 0 to {batch.classes - 1}"


def _from_one(numbers: Numbers, classes: int) -> bool:
    """Whether labels run from 1 to the number of classes, where 0 to one less was meant."""
    return numbers["target_low"] == 1 and numbers["target_high"] == classes


def _last_dim_sums_to_one(batch: Batch, numbers: Numbers) -> bool:
    """Whether the sums along the last dim are 1, and those along the classes are not. That a few
    lines of bits do so may be chance, unless the sizes say that they might be classes."""
    slack = rounding(batch.target)
    square = batch.shape[1:2] == batch.shape[-1:]
    if not (square or batch.activation == "softmax" or numbers["counted"] >= _ENOUGH):
        return False
    return _add_up(numbers, "last_dim_sums", slack) and not _add_up(numbers, "class_sums", slack)


def _add_up(numbers: Numbers, name: str, slack: float) -> bool:
    """Whether sums of this name were read, and all are 1."""
    low, high = numbers.get(f"{name}_low", 0), numbers.get(f"{name}_high", 0)
    return 1 - low <= slack and high - 1 <= slack


def _holds_only(batch: Batch, *values: float) -> bool:
    """Whether the target holds nothing but these values and ignored ones."""
    return only(batch.target, *values, *batch.ignored)


def _span(low: float, high: float) -> str:
    return f"values from {_shown(low)} to {_shown(high)}"


def _shown(value: float) -> str:
    """An integer as one; of other numbers as many digits as tell them from 0 and 1."""
    if float(value).is_integer():
        return str(int(value))
    short = f"{value:.6g}"
    return str(value) if float(short).is_integer() else short
