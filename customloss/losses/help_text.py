"""What ``help`` of a loss module lists: the shapes of a call, and a line for every option."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

SHAPES = """
Call:
    ``criterion(input, target, weight=None)``: input ``[N]``, ``[N, C]`` or ``[N, C, *spatial]``;
    target in its shape, or class numbers ``[N, *spatial]`` or ``[N, 1, *spatial]``; weight, if any,
    broadcastable to input, or ``[N, *spatial]`` beside class numbers. The loss is a
    scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep.
"""

# A line for every option of a loss; the function of the same name has the whole text.
OPTIONS = {
    "absent": 'a group without positives: "score", "skip" (left out) or "penalize"',
    "activation": '"sigmoid", "softmax" over the classes, or "none" for probabilities',
    "amplification": "the slope of the second sigmoid",
    "average": '"macro" over classes, "micro" (one group), "weighted" by support, or "none"',
    "bce_weight": "what the binary cross-entropy counts",
    "beta": "the β of Fβ, >= 0; above 1 it favours recall",
    "ce_label_smoothing": "ε of the cross-entropy alone; None: label_smoothing",
    "ce_weight": "what the cross-entropy counts",
    "check_target": 'whether values are looked at: False, in the first batch ("once"), or True',
    "class_weight": "what each class counts, one number per class: a buffer, or a Parameter",
    "classes": "the numbers of the classes that are scored; None: all",
    "cross_entropy_weight": "what the cross-entropy counts",
    "dice_weight": "what the Dice loss counts",
    "exponent": "the power of the loss of every group, > 0",
    "fn_weight": "the weight of false negatives, >= 0",
    "focal_alpha": "α in [0, 1], the weight of the positives of the focal loss; None: no weight",
    "focal_gamma": "γ of the focal loss, >= 0",
    "focal_split": "(1-p)^γ and p^γ before the two logarithms of soft targets",
    "focal_weight": "what the focal loss counts",
    "fp_weight": "the weight of false positives, >= 0",
    "gamma": 'the exponent of link="focal" or "log_power", > 0; 1 changes nothing',
    "ignore_index": "the values of targets that do not count: an int, or several",
    "include_background": "whether class 0 is scored",
    "label_smoothing": "ε in [0, 1): t becomes (1 - ε) t + ε / K",
    "link": '"complement" 1 - S, "log" -log S, "focal" (1 - S)^gamma or "negative" -S',
    "log_floor": "a similarity is raised to it before its logarithm is taken, in [1e-100, 1)",
    "logit_offset": "p = sigmoid(logit_scale (input - logit_offset))",
    "logit_scale": "see logit_offset",
    "nan_targets": 'a NaN target makes a loss of NaN, or "ignore": it does not count',
    "out_of_range": 'class numbers that are no class: "raise" (NaN on a GPU) or "ignore"',
    "pointwise_class_weight": "what each class counts in the pointwise loss; None: class_weight",
    "pointwise_classes": "the classes that the pointwise loss counts; None: all",
    "pointwise_group": '"score": the ranks share the pointwise loss; None: each has its own',
    "pointwise_reduction": '"mean", "mean_all" (ignored elements count) or "sum"',
    "pos_weight": "how often binary and focal losses count positives: a number, or one per class",
    "process_group": 'the ranks that share the batch: a ProcessGroup, "world", "local" or None',
    "recall_weight": "the weight of recall, in [0, 1]",
    "reduction": '"mean" or "sum"; of a score "none" (all that is kept), else "mean_all"',
    "samplewise": "score every sample by itself",
    "score_weight": "what the loss of the score counts",
    "shift": "added to the logits",
    "slope": "of the sigmoid",
    "smooth": "added to both sides of the similarity, >= 0; a pair: to numerator and denominator",
    "tversky_weight": "what the Tversky loss counts",
    "weighting": 'of the classes: "square" 1/T², "simple" 1/T or "uniform", T their positives',
}


# functions that refuse a softmax, which has no log(1-p)
OF_A_SIGMOID = ("bce_loss", "dice_bce_loss", "weighted_log_loss")


def documented(text: str | None, function: str, defaults: Mapping[str, Any]) -> str | None:
    """The docstring of a module, with shapes and options; one that explains its own is complete."""
    if text is None or "Args:" in text:  # None: python -OO
        return text
    known = meanings(function, defaults)
    lines = [_line(name, default, known) for name, default in defaults.items()]
    options = textwrap.indent("\n".join(lines), "    ")
    return (
        f"{inspect.cleandoc(text)}\n{SHAPES}\n"
        f"Options (more in :func:`customloss.{function}` and :func:`customloss.soft_f1_loss`):\n"
        f"{options}\n"
    )


def meanings(function: str, defaults: Mapping[str, Any]) -> dict[str, str]:
    """The lines of the options of a loss, without the values that it refuses."""
    known = dict(OPTIONS)
    if "pointwise_reduction" in defaults:  # a pointwise part is one number for all classes
        known["average"] = '"macro" over classes, "micro" (one group) or "weighted" by support'
    if function in OF_A_SIGMOID:
        known["activation"] = '"sigmoid", or "none" for probabilities'
    return known


def _line(name: str, default: object, meanings: Mapping[str, str]) -> str:
    meaning = meanings.get(name)
    return f"{name}={default!r}" + (f": {meaning}." if meaning else "")
