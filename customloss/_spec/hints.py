"""What errors say of things that are near to what was expected: a class, an unknown label.

``unknown.py`` does so of keywords and words.
"""

from __future__ import annotations

from collections.abc import Sequence

# Class numbers that stand for floats: for a NaN that does not count, and for what is no whole
# number of 64 bits. No float is one of them, since those next to -2^63 lie 1024 apart or more.
MISSING, NO_LABEL = -(2**63) + 1, -(2**63) + 2


def instance_of(value: object) -> str:
    """What came where an object was expected: its type, and the cure if it is a class."""
    if isinstance(value, type):
        return f"the class {value.__name__}: {value.__name__}()"
    short = value is None or isinstance(value, (str, int, float))
    return repr(value) if short else type(value).__name__


def unknown_label(label: int, classes: int, ignored: Sequence[int] | None) -> ValueError:
    """The error for a class number that is neither a class nor ignored. csrc/cpu/pixels.cpp has
    the same message. What stands for a float that is no class number is not shown."""
    if label == NO_LABEL:
        return ValueError(
            "target: expected whole class numbers of 64 bits in a float target, got one that is "
            "not: on the CPU the message has it; labels are resized with mode='nearest'"
        )
    ignored = tuple(number for number in ignored or () if number != MISSING)
    known = "" if not ignored else f" or ignore_index={listed(ignored)}"
    # the likelier mistake comes first: ignoring it would lose the last class
    shifted = f"; labels 1..{classes} need target - 1" if label == classes else ""
    return ValueError(
        f"target: expected class numbers from 0 to {classes - 1} (dim 1 of input has {classes} "
        f"classes){known}, got {label}{shifted}; if {label} marks what does not count, pass "
        f"ignore_index={listed((*ignored, label))}"
    )


def listed(values: Sequence[int]) -> str:
    """One number, or a list of them."""
    return str(values[0] if len(values) == 1 else list(values))
