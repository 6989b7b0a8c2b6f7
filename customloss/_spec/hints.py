"""What other libraries call our options: the cure in the error for an unknown option."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

_ACTIVATION = "activation='sigmoid', 'softmax', or 'none' for probabilities"
_CLASS_NUMBERS = "class numbers are read as they are, in the shape of the input without its classes"
_SMOOTH = "smooth is added to both sides of the fraction"
_CLASS_WEIGHT = "class_weight; a weight for every element is an argument of the call"

# Of each foreign word: our options, one of which the loss has to have, and what to write instead.
_FOREIGN: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "sigmoid": [(("activation",), _ACTIVATION)],
    "softmax": [(("activation",), _ACTIVATION)],
    "other_act": [(("activation",), _ACTIVATION)],
    "apply_nonlin": [(("activation",), _ACTIVATION)],
    "from_logits": [(("activation",), _ACTIVATION)],
    "mode": [(("activation",), _ACTIVATION)],
    "to_onehot_y": [((), _CLASS_NUMBERS)],
    "one_hot": [((), _CLASS_NUMBERS)],
    "num_classes": [((), _CLASS_NUMBERS)],
    "batch": [(("samplewise",), "samplewise, its opposite")],
    "batch_dice": [(("samplewise",), "samplewise, its opposite")],
    "do_bg": [(("include_background",), "include_background")],
    "ddp": [(("process_group",), "process_group")],
    "reduce": [(("reduction",), "reduction")],
    "size_average": [(("reduction",), "reduction")],
    "smooth_nr": [(("smooth",), _SMOOTH)],
    "smooth_dr": [(("smooth",), _SMOOTH)],
    "eps": [(("smooth",), _SMOOTH)],
    "epsilon": [(("smooth",), _SMOOTH)],
    "alpha": [(("fp_weight",), "fp_weight and fn_weight"), ((), "tversky_loss has fp_weight")],
    "beta": [(("fn_weight",), "fp_weight and fn_weight"), ((), "soft_f1_loss has beta")],
    "gamma": [(("focal_gamma",), "focal_gamma")],
    "log_loss": [(("link",), "link='log'")],
    "squared_pred": [((), "squared_dice_loss")],
    "jaccard": [((), "jaccard_loss")],
    "weight": [(("class_weight",), _CLASS_WEIGHT)],
    "weights": [(("class_weight",), _CLASS_WEIGHT)],
    "class_weights": [(("class_weight",), _CLASS_WEIGHT)],
    "ignore_label": [(("ignore_index",), "ignore_index")],
    "lambda_dice": [(("dice_weight",), "dice_weight")],
    "weight_dice": [(("dice_weight",), "dice_weight")],
    "lambda_ce": [(("ce_weight",), "ce_weight")],
    "weight_ce": [(("ce_weight",), "ce_weight")],
    "lambda_focal": [(("focal_weight",), "focal_weight")],
    "multiclass": [(("activation",), _ACTIVATION)],
}


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question for a message, or nothing: a word that is near, or one that holds the name."""
    near = [each for each in known if name and name in each][:3] if name not in known else [name]
    near = near or get_close_matches(name, known, n=1)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_option(name: str, owner: str, known: Collection[str]) -> TypeError:
    """The error for an option that ``owner``, a function or class, does not have."""
    near = get_close_matches(name, known, n=1)
    cure = f"did you mean {near[0]}? " if near else ""
    for ours, text in _FOREIGN.get(name, ()):
        if not ours or any(option in known for option in ours):
            cure = f"here it is {text}; " if ours else f"{text}; "
            break
    return TypeError(f"{name}: no option of {owner}; {cure}there are {', '.join(known)}")
