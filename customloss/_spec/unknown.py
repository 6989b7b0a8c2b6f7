"""What errors say of unknown keywords, words and names, often those of other libraries or of torch.

Loaded when such an error is made, and not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

# ---- the words of others -------------------------------------------------------------------------

_COMPOUND = '{compound}("%s", %s=1, activation="%s")'

# A sentence may name a loss in braces, ``{tversky}``: a module is then told of ``TverskyLoss``, and
# a function of ``tversky_loss``.
# Keywords; what has to be there for the row to fit: an option or operand, or else the name of the
# loss, or "" for anything; what to say. The first row that fits is taken.
_KEYWORDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # how logits become probabilities
    (("sigmoid", "softmax", "other_act", "apply_nonlin", "from_logits", "mode", "multiclass",
      "task", "use_softmax", "logits"),
     "activation",
     "here it is activation='sigmoid', 'softmax', or 'none' for probabilities"),
    (("activation", "sigmoid", "softmax"), "cross_entropy",
     "it is that of a softmax; {bce} is that of a sigmoid"),
    (("activation", "sigmoid", "softmax"), "any", "its input are probabilities"),
    (("activation", "sigmoid", "softmax"), "custom_f1", "its input are probabilities"),
    (("activation", "sigmoid", "softmax"), "sigmoid_f1", "it is that of a sigmoid"),
    (("L",), "amplification", "here it is amplification"),
    (("S", "beta"), "slope", "here it is slope=-S, and shift=E"),
    (("E", "eta"), "shift", "here it is shift=E, and slope=-S"),
    # what is a class
    (("to_onehot_y", "one_hot", "num_classes", "num_labels", "axis"), "",
     "class numbers are read as they are, in the shape of the input without its classes"),
    (("do_bg",), "include_background", "here it is include_background"),
    (("ignore_label", "ignore_value"), "ignore_index", "here it is ignore_index"),
    (("labels",), "classes", "here it is classes, or target for the labels of a batch"),
    # what is averaged
    (("batch", "batch_dice"), "samplewise", "here it is samplewise, its opposite"),
    (("multidim_average",), "samplewise", "here it is samplewise=True"),
    (("reduce", "size_average"), "reduction", "here it is reduction"),
    (("reduction",), "confusion_sums", "sums are not averaged: their losses have a reduction"),
    (("average", "samplewise", "classes", "include_background"), "cross_entropy",
     "it is one number for all classes; class_weight says what each of them counts"),
    (("average", "samplewise", "classes", "include_background"), "bce",
     "it is one number for all classes; class_weight says what each of them counts"),
    (("average", "samplewise", "classes", "include_background"), "focal",
     "it is one number for all classes; class_weight says what each of them counts"),
    (("zero_division",), "absent", "here it is absent, for groups without positives"),
    (("w_type",), "weighting", "here it is weighting='square', 'simple' or 'uniform'"),
    (("ddp",), "process_group", "here it is process_group"),
    (("process_group",), "confusion_sums",
     "customloss.distributed.global_sums(sums, group) adds up those of all ranks"),
    # decisions
    (("threshold", "top_k", "hards"), "hard", "hard=True counts decisions, beyond 1/2"),
    (("threshold", "top_k"), "",
     "a loss makes no decisions; for a metric confusion_sums(..., hard=True) counts them"),
    (("validate_args",), "check_target", "here it is check_target"),
    # what is added
    (("smooth_nr", "smooth_dr"), "smooth", "here it is smooth=(smooth_nr, smooth_dr)"),
    (("smooth_factor",), "label_smoothing", "here it is label_smoothing"),
    (("eps", "epsilon"), "smooth",
     "here it is smooth, for both sides of the fraction, or smooth=(0, eps) for the denominator"),
    # weights and powers
    (("alpha",), "focal_alpha", "here it is focal_alpha"),
    (("alpha", "beta"), "fn_weight", "here it is fp_weight and fn_weight"),
    (("alpha",), "", "{tversky} has fp_weight and fn_weight, {focal} has focal_alpha"),
    (("beta",), "", "{soft_f1} has beta"),
    (("gamma",), "fn_weight", "here it is exponent, the power itself: 1/gamma of the paper"),
    (("gamma",), "exponent", "here it is exponent"),
    (("gamma",), "focal_gamma", "here it is focal_gamma"),
    (("exponent",), "gamma", "here it is gamma, of link='focal'"),
    (("log_loss", "log_dice"), "link", "here it is link='log'"),
    (("pos_weight",), "ce_label_smoothing",
     "a softmax has class_weight; {dice_bce} and {bce} have pos_weight"),
    (("pos_weight",), "cross_entropy", "a softmax has class_weight; {bce} has pos_weight"),
    (("pos_weight",), "", "{bce} and {dice_bce} have pos_weight"),
    (("lambda_dice", "weight_dice"), "dice_weight", "here it is dice_weight"),
    (("lambda_ce", "weight_ce"), "ce_weight", "here it is ce_weight"),
    (("lambda_focal", "weight_focal"), "focal_weight", "here it is focal_weight"),
    (("weight_factors", "weight_mode", "ds_weights"), "resize", "here it is weights"),
    # operands
    (("mask", "sample_weight", "pixel_weight", "weights"), "weight", "here it is weight"),
    (("preds", "pred", "y_pred", "logits", "output", "outputs", "inputs", "prediction"), "input",
     "here it is input"),
    (("y_true", "labels", "label", "gt", "targets", "y"), "target", "here it is target"),
    (("mask", "sample_weight", "pixel_weight"), "",
     "a weight for every element is an argument of the call: criterion(input, target, weight)"),
    (("weight", "weights", "class_weights", "alpha_class"), "class_weight",
     "here it is class_weight; a weight for every element is an argument of the call"),
    # other formulas
    (("squared_pred",), "ce_weight",
     "that is " + _COMPOUND % ("squared_dice", "cross_entropy_weight", "softmax")),
    (("squared_pred",), "bce_weight",
     "that is " + _COMPOUND % ("squared_dice", "cross_entropy_weight", "sigmoid")),
    (("squared_pred",), "focal_weight",
     "that is " + _COMPOUND % ("squared_dice", "focal_weight", "sigmoid")),
    (("squared_pred",), "", "that is a loss of its own, {squared_dice}"),
    (("jaccard",), "ce_weight",
     "that is " + _COMPOUND % ("jaccard", "cross_entropy_weight", "softmax")),
    (("jaccard",), "bce_weight",
     "that is " + _COMPOUND % ("jaccard", "cross_entropy_weight", "sigmoid")),
    (("jaccard",), "focal_weight",
     "that is " + _COMPOUND % ("jaccard", "focal_weight", "sigmoid")),
    (("jaccard",), "", "that is a loss of its own, {jaccard}"),
    (("soft_dice_kwargs", "ce_kwargs", "bce_kwargs", "focal_kwargs", "tversky_kwargs"), "",
     "give its entries as options"),
)  # fmt: skip

# Values of an option, and what to say; {others} are the words that it knows beside "none". None is
# what torch and torchmetrics have for "not at all".
_VALUES: dict[tuple[str, str | None], str] = {
    ("average", None): "'none' keeps the classes",
    ("average", "samples"): "that is samplewise=True, average='micro'",
    ("average", "binary"): "that is an input [N], or one with a single class",
    ("activation", None): "'none' reads probabilities",
    ("activation", "logits"): "logits take {others}, probabilities 'none'",
    ("reduction", None): "'none' keeps what the average leaves",
    ("reduction", "batchmean"): "'mean' is over what the average leaves",
    ("pointwise_reduction", "none"): (
        "a loss for every element or pixel is torch.nn.functional.cross_entropy(..., "
        "reduction='none'), or binary_cross_entropy_with_logits"
    ),
    ("pointwise_reduction", "batchmean"): (
        "'mean' is over all that counts, and the 'sum' divided by len(input) is a mean over samples"
    ),
}

# What losses are called elsewhere, as ``plain_name`` has it, and here.
_LOSSES: dict[str, str] = {
    "f1": "soft_f1",
    "fbeta": "soft_f1",
    "fscore": "soft_f1",
    "iou": "jaccard",
    "softdice": "dice",
    "ce": "cross_entropy",
    "crossentropywithlogits": "cross_entropy",
    "binarycrossentropy": "bce",
    "bcewithlogits": "bce",
    "softbcewithlogits": "bce",
    "sigmoidfocal": "focal",
    "binaryfocal": "focal",
    "lovasz": "jaccard",
    "lovaszsoftmax": "jaccard",
    "dcandce": "dice_ce",
    "dicece": "dice_ce",
    "matthews": "mcc",
}

# How near a keyword has to be for "did you mean" (difflib's ratio): there are many, and below most
# pairs are chance. An option has few words, and less will do.
_NEAR, _NEAR_WORD = 0.75, 0.6


# ---- messages ------------------------------------------------------------------------------------


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question for a message, or nothing: a word that is near, or one that holds the name."""
    near = [each for each in known if name and name in each][:3] if name not in known else [name]
    near = near or get_close_matches(name, known, n=1, cutoff=_NEAR_WORD)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _nearest(name: str, known: Collection[str]) -> list[str]:
    return get_close_matches(name, known, n=1, cutoff=_NEAR)


def value_cure(option: str, value: object, allowed: Collection[str]) -> str:
    """The cure for a word that an option does not know, for the end of a message."""
    if value is not None and not isinstance(value, str):
        return ""
    if value is None and allowed and "none" not in allowed:
        value = "none"
    if "mean_all" in allowed:  # a pointwise loss alone calls it reduction
        option = "pointwise_reduction"
    said = _VALUES.get((option, value))
    if said is not None:
        others = " or ".join(repr(word) for word in allowed if word != "none")
        return f"; {said.format(others=others)}"
    return "" if value is None else did_you_mean(value, allowed)


def keyword(
    name: str, owner: Callable[..., Any] | str, known: Collection[str], cure: str = ""
) -> TypeError:
    """The error for a keyword that ``owner`` does not have: a function, a class, or in words what
    has few of them and no help.

    ``cure`` is what the caller knows to say; else one is looked for. The whole list of ``known``
    keywords is shown only if there is none.
    """
    if isinstance(owner, str):
        near = "".join(f"did you mean {each}? " for each in _nearest(name, known))
        there = f"there are {', '.join(known)}" if known else "it has none"
        return TypeError(f"{name}: no option of {owner}; {near}{there}")
    called = _name(owner)
    kind = "argument" if "." in called else "option"  # of a method, or of what a loss is made with
    cure = cure or _cure(name, called, known)
    if not cure:
        cure = f"there are {', '.join(known)}"
    else:
        cure += f"{'' if cure.endswith('?') else ';'} help({public_name(owner)}) lists the {kind}s"
    return TypeError(f"{name}: no {kind} of {called}; {cure}")


def public_name(value: Callable[..., Any]) -> str:
    """How a caller writes a function or class, with the package if it is of ours."""
    ours = value.__module__.partition(".")[0] == "customloss"
    return f"customloss.{_name(value)}" if ours else _name(value)


def _name(value: Callable[..., Any]) -> str:
    """The name of a function or class; a constructor has that of its class."""
    return value.__qualname__.removesuffix(".__init__")


def _cure(name: str, owner: str, known: Collection[str]) -> str:
    """What to write instead of a keyword, or nothing."""
    loss = plain_name(owner)
    for words, needs, text in _KEYWORDS:
        fits = not needs or needs in known or needs.replace("_", "") == loss
        if name in words and fits:
            return re.sub(r"\{(\w+)\}", lambda field: _called(field[1], owner), text)
    return f"did you mean {near[0]}?" if (near := _nearest(name, known)) else ""


def loss_name(plain: str) -> str:
    """What is meant by the plain name of a loss elsewhere, or nothing."""
    return _LOSSES.get(plain, "")


def name_cure(name: str, known: Collection[str]) -> str:
    """What a loss, a module or a function, is called here, for the end of a message."""
    plain = plain_name(name)
    for other in filter(None, (plain, loss_name(plain))):
        same = [each for each in known if plain_name(each) == plain_name(other)]
        # the module for a name that begins like one, else the function
        same = [each for each in same if each[:1].isupper() == name[:1].isupper()] or same
        if same:
            return f"; did you mean {same[0]!r}?"
    return did_you_mean(name, known)


def plain_name(name: str) -> str:
    """The name of a loss, function or module, as one word: ``DiceCELoss`` is ``dicece``."""
    return name.replace("_", "").lower().removesuffix("loss")


def _called(loss: str, owner: str) -> str:
    """A loss by the name of its function, or by that of its module where ``owner`` is a class."""
    if not owner[:1].isupper():
        return f"{loss}_loss"
    parts = (
        part.upper() if part in ("bce", "ce") else part.capitalize() for part in loss.split("_")
    )
    return f"{''.join(parts)}Loss"
