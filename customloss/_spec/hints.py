"""What errors say about unknown options, often those of another library, and unknown labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

# The words of others; our option that a loss has to have for the cure to fit, "" for any; the cure.
# The first row that fits is taken.
_FOREIGN = (
    (
        ("sigmoid", "softmax", "other_act", "apply_nonlin", "from_logits", "mode", "multiclass"),
        "activation", "activation='sigmoid', 'softmax', or 'none' for probabilities",
    ),
    (
        ("to_onehot_y", "one_hot", "num_classes"),
        "", "class numbers are read as they are, in the shape of the input without its classes",
    ),
    (("batch", "batch_dice"), "samplewise", "samplewise, its opposite"),
    (("do_bg",), "include_background", "include_background"),
    (("ddp",), "process_group", "process_group"),
    (("reduce", "size_average"), "reduction", "reduction"),
    (("smooth_nr", "smooth_dr"), "smooth", "smooth=(smooth_nr, smooth_dr)"),
    (
        ("eps", "epsilon"),
        "smooth", "smooth, for both sides of the fraction, or smooth=(0, eps) for the denominator",
    ),
    (("alpha",), "fp_weight", "fp_weight and fn_weight"),
    (("alpha",), "", "tversky_loss has fp_weight"),
    (("beta",), "fn_weight", "fp_weight and fn_weight"),
    (("beta",), "", "soft_f1_loss has beta"),
    (("gamma",), "focal_gamma", "focal_gamma"),
    (("log_loss",), "link", "link='log'"),
    (("squared_pred",), "", "squared_dice_loss"),
    (("jaccard",), "", "jaccard_loss"),
    (
        ("weight", "weights", "class_weights"),
        "class_weight", "class_weight; a weight for every element is an argument of the call",
    ),
    (("ignore_label",), "ignore_index", "ignore_index"),
    (("lambda_dice", "weight_dice"), "dice_weight", "dice_weight"),
    (("lambda_ce", "weight_ce"), "ce_weight", "ce_weight"),
    (("lambda_focal",), "focal_weight", "focal_weight"),
)  # fmt: skip


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question for a message, or nothing: a word that is near, or one that holds the name."""
    near = [each for each in known if name and name in each][:3] if name not in known else [name]
    near = near or get_close_matches(name, known, n=1)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_option(name: str, owner: str, known: Collection[str]) -> TypeError:
    """The error for an option that ``owner``, a function or class, does not have."""
    near = get_close_matches(name, known, n=1)
    cure = f"did you mean {near[0]}? " if near else ""
    for words, ours, text in _FOREIGN:
        if name in words and (not ours or ours in known):
            cure = f"here it is {text}; " if ours else f"{text}; "
            break
    return TypeError(f"{name}: no option of {owner}; {cure}there are {', '.join(known)}")


def unknown_label(label: int, classes: int, ignored: Sequence[int] | None) -> ValueError:
    """The error for a class number that is neither a class nor ignored. csrc/cpu/pixels.cpp has
    the same message."""
    known = "" if not ignored else f" or ignore_index={listed(ignored)}"
    # the likelier mistake comes first: ignoring it would lose the last class
    shifted = f"; labels 1..{classes} need target - 1" if label == classes else ""
    return ValueError(
        f"target: expected class numbers from 0 to {classes - 1} (dim 1 of input has {classes} "
        f"classes){known}, got {label}{shifted}; if {label} marks what does not count, pass "
        f"ignore_index={listed((*(ignored or ()), label))}"
    )


def listed(values: Sequence[int]) -> str:
    """One number, or a list of them."""
    return str(values[0] if len(values) == 1 else list(values))
