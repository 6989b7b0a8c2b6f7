"""Random calls of every loss: names, operands and options, made from a seed alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import LAYOUTS, lay_out
from drawn_operands import (
    DTYPES,
    Draw,
    dense,
    drawn_input,
    drawn_shape,
    drawn_weight,
    labels,
    with_junk,
)
from oracle import holds_numbers
from oracle_losses import ALONE, OF_A_SOFTMAX, POOLING, SCORES, WEIGHTS, Scored
from torch import Tensor

import customloss

# the parameters of scores, and those of the losses that are named like them or made of them
SMOOTHED = ("dice", "fbeta", "tversky", "jaccard", "precision", "recall", "specificity",
            "squared_dice", "semimetric_dice", "semimetric_jaccard", "semimetric_tversky",
            "fowlkes_mallows", "generalized_dice")  # fmt: skip
PARAMETERS: dict[str, tuple[str, ...]] = {
    "fbeta": ("beta",),
    "tversky": ("fp_weight", "fn_weight"),
    "semimetric_tversky": ("fp_weight", "fn_weight"),
    "fowlkes_mallows": ("recall_weight",),
    "generalized_dice": ("weighting",),
}
PRESETS: dict[str, tuple[str, ...]] = {
    "soft_f1": ("beta", "smooth"),
    "dice": ("smooth",),
    "tversky": ("fp_weight", "fn_weight", "smooth"),
    "jaccard": ("smooth",),
    "focal_tversky": ("fp_weight", "fn_weight", "exponent", "smooth"),
    "log_cosh_dice": ("smooth",),
    "exp_log_dice": ("exponent", "smooth", "log_floor"),
    "fowlkes_mallows": ("recall_weight", "smooth"),
    "log_precision_recall": ("recall_weight", "smooth", "log_floor"),
    "generalized_dice": ("weighting", "smooth"),
    "balanced_accuracy": (),
    "g_mean": (),
    "mcc": (),
    "multiclass_mcc": (),
    "squared_dice": ("smooth",),
    "semimetric_dice": ("smooth",),
    "semimetric_jaccard": ("smooth",),
    "semimetric_tversky": ("fp_weight", "fn_weight", "smooth"),
    "weighted_log": ("recall_weight",),
    "dice_ce": ("smooth",),
    "dice_bce": ("smooth",),
    "dice_focal": ("smooth",),
    "tversky_ce": ("fp_weight", "fn_weight", "smooth"),
    "cross_entropy": (),
    "bce": (),
    "focal": (),
    "any": ("beta", "amplification"),
    "sigmoid_f1": ("slope", "shift"),
    "custom_f1": ("recall",),
}
# the losses that take any score; the others are named
OF_ANY_SCORE = ("confusion", "compound")
NAMES = (*PRESETS, *3 * ("confusion",), *6 * ("compound",))  # in proportion to what they can be
# a link of their own, and no option for it
LINKED = ("focal_tversky", "log_cosh_dice", "exp_log_dice", "log_precision_recall", "weighted_log",
          "any", "sigmoid_f1", "custom_f1", *ALONE)  # fmt: skip
FUSED = ("soft_f1", "dice", "tversky", "jaccard")  # these have the links of the operators
SIGMOID = ("any", "sigmoid_f1")  # without an option for it
# Their 0 is a difference that cancels. Its logarithm is that of rounding, or of the floor.
CANCELLING = ("mcc", "multiclass_mcc")
NO_SOFTMAX = ("weighted_log", "dice_bce", "bce")
CROSS_ENTROPIES = ("dice_ce", "dice_bce", "tversky_ce")


@dataclass(frozen=True)
class Call:
    """A call of a loss: by its function, by its module, or by that with the sums handed out."""

    name: str
    way: str
    score: Scored | None
    input: Tensor
    target: Tensor
    weight: Tensor | None
    options: dict[str, Any]

    def with_options(self, options: dict[str, Any]) -> Call:
        return replace(self, options=options)

    def own_score(self) -> Any:
        """The score of a loss of any score, as it is passed."""
        if self.score is None:
            return None
        name, parameters = self.score
        return functools.partial(getattr(customloss.scores, name), **parameters) if (
            parameters
        ) else name  # fmt: skip

    def run(self) -> Tensor:
        operands = (self.input, self.target, self.weight)
        takes_score = self.name in OF_ANY_SCORE
        first = (self.own_score(),) if takes_score else ()
        if self.way == "function":
            return getattr(customloss, f"{self.name}_loss")(*first, *operands, **self.options)
        if takes_score:
            criterion = getattr(customloss, f"{self.name.title()}Loss")(*first, **self.options)
        else:
            criterion = customloss.loss(self.name, **self.options)
        return criterion(*operands) if self.way == "module" else criterion.with_sums(*operands)[0]


# ---- options -------------------------------------------------------------------------------------


def parameter(draw: Draw, name: str, linear: bool) -> Any:
    if name == "smooth":
        top, bottom = draw.choice((1.0, 0.01, 1e-5, 0.0)), draw.choice((1.0, 0.5, 1e-3))
        pair = (top, bottom) if linear or top <= bottom else (bottom, top)
        return draw.choice((0.0, 1.0, 1e-5, 0.25, pair, list(pair)))
    values: dict[str, tuple[Any, ...]] = {
        "beta": (0.0, 0.5, 1.0, 2, 3.0),
        "fp_weight": (0.0, 0.3, 0.5, 1, 2.0),
        "fn_weight": (0.0, 0.3, 0.7, 1.0, 3),
        "recall_weight": (0.0, 0.3, 0.5, 0.8, 1.0),
        "weighting": ("square", "simple", "uniform"),
        "exponent": (0.3, 0.75, 1.0, 2.0),
        "log_floor": (1e-30, 1e-3, 0.4),
        "amplification": (73.0, 10, 4.0),
        "slope": (1.0, -0.5, 3),
        "shift": (0.0, 0.25, -1.0),
    }
    return draw.choice(values[name])


def by_class(draw: Draw, classes: int) -> Any:
    """One number per class: a list, or a tensor that may be learned."""
    values = [draw.choice((0.0, 0.2, 0.5, 1.0, 1.5, 2.0)) for _ in range(classes)]
    if draw.rarely(0.5):
        return values
    tensor = torch.tensor(values, dtype=draw.choice((torch.float32, torch.float64)))
    return tensor.requires_grad_() if draw.rarely(0.4) else tensor


def class_options(draw: Draw, classes: int, weighted: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if weighted and draw.rarely(0.3):
        options["class_weight"] = by_class(draw, classes)
    if draw.rarely(0.15):
        options["classes"] = draw.sample(range(classes), draw.randint(1, classes))
    elif classes > 1 and draw.rarely(0.15):
        options["include_background"] = False
    return options


def link_options(draw: Draw, composed: bool, score: str) -> dict[str, Any]:
    links = ["complement", "complement", "focal", "negative"]
    links += ["log", *(("log_power",) if composed else ())] if score not in CANCELLING else []
    link = draw.choice((*links, "log_cosh") if composed else links)
    options: dict[str, Any] = {} if link == "complement" and draw.rarely(0.5) else {"link": link}
    if link in ("focal", "log_power"):
        options["gamma"] = draw.choice((0.5, 1.0, 1.5, 2))
    if link in ("log", "log_power") and draw.rarely(0.3):
        options["log_floor"] = draw.choice((1e-30, 1e-6, 0.4))
    return options


def averaging(draw: Draw, shape: list[int], compound: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if draw.rarely(0.6):
        words = ("macro", "micro", "weighted") if compound else ("macro", "micro", "weighted",
                                                                 "none", "none")  # fmt: skip
        options["average"] = draw.choice(words)
    if shape[0] and draw.rarely(0.35):
        options["samplewise"] = True
    if draw.rarely(0.5):
        options["reduction"] = draw.choice(("mean", "sum", "none"))
    if draw.rarely(0.4):
        options["absent"] = draw.choice(("score", "skip", "penalize"))
    return options


def beside(draw: Draw, name: str, classes: int, softmax: bool) -> dict[str, Any]:
    """The options of the pointwise part of a compound."""
    options: dict[str, Any] = {}
    entropy = name == "compound" or name in CROSS_ENTROPIES
    focal = name in ("compound", "dice_focal", "focal")
    if entropy and draw.rarely(0.3):
        options["ce_label_smoothing"] = draw.choice((0.0, 0.1, 0.5))
    if focal:
        options |= {} if draw.rarely(0.4) else {"focal_gamma": draw.choice((0.0, 0.5, 1, 2.0, 3.0))}
        options |= {} if draw.rarely(0.7) else {"focal_split": draw.rarely(0.7)}
        if not softmax and draw.rarely(0.4):
            options["focal_alpha"] = draw.choice((0.0, 0.25, 0.5, 1))
    takes_pos_weight = name in ("compound", "dice_bce", "dice_focal", "bce", "focal")
    if takes_pos_weight and not softmax and draw.rarely(0.3):
        own = by_class(draw, classes)
        options["pos_weight"] = draw.choice((2.0, 3, 0.5, own, torch.tensor(1.5)))
    if name in ALONE:
        if draw.rarely(0.3):
            options["reduction"] = draw.choice(("mean", "mean_all", "sum"))
        return options
    if draw.rarely(0.2):
        options["pointwise_class_weight"] = by_class(draw, classes)
    if draw.rarely(0.2):
        options["pointwise_classes"] = draw.sample(range(classes), draw.randint(1, classes))
    if draw.rarely(0.3):
        options["pointwise_reduction"] = draw.choice(("mean", "mean_all", "sum"))
    return options


def weights_of_parts(draw: Draw, name: str) -> dict[str, float]:
    """The weight of each part of a compound, of which one is above 0."""
    options = {}
    for each in WEIGHTS[name]:
        if isinstance(each, tuple) and (name == "compound" or draw.rarely(0.3)):
            options[each[0]] = draw.choice((0.0, 0.5, 1.0, 2))
    if options and not any(options.values()):
        options[draw.choice(tuple(options))] = 1.0
    return options


# ---- a call --------------------------------------------------------------------------------------


def activation_of(draw: Draw, name: str, options: dict[str, Any]) -> str:
    """What the loss is of; an option, unless it is the default."""
    if name in SIGMOID:
        return "sigmoid"
    if name in ("custom_f1", "cross_entropy"):
        return "none" if name == "custom_f1" else "softmax"
    default = "softmax" if name in OF_A_SOFTMAX else "sigmoid"
    words = ("sigmoid", "sigmoid", "none") if name in NO_SOFTMAX else (
        default, default, "sigmoid", "softmax", "none"
    )  # fmt: skip
    activation = draw.choice(words)
    if activation != default or draw.rarely(0.3):
        options["activation"] = activation
    return activation


def drawn_call(seed: int) -> Call:
    draw = Draw(seed)
    name = draw.choice(NAMES)
    options: dict[str, Any] = {}
    activation = activation_of(draw, name, options)
    softmax = activation == "softmax"
    shape = drawn_shape(draw, softmax)
    classes = shape[1] if len(shape) > 1 else 1
    if activation != "none" and name not in SIGMOID and draw.rarely(0.2):
        options["logit_scale"] = draw.choice((2.0, -0.5, 3, 0.25))
        options["logit_offset"] = draw.choice((0.0, 0.25, -1))
    numbers = classes > 1 and draw.rarely(0.6 if softmax else 0.25)
    of_target: dict[str, Any] = {}
    target = (labels(draw, shape, of_target) if numbers
              else dense(draw, shape, activation, of_target))  # fmt: skip
    if name == "custom_f1":
        of_target.pop("nan_targets", None)
        of_target.pop("out_of_range", None)
        target = target.nan_to_num(0) if not numbers else _in_range(target, of_target, classes)
    options |= of_target
    score_name = draw.choice(tuple(SCORES)) if name in OF_ANY_SCORE else name
    options |= loss_options(draw, name, shape, activation, score_name)
    score = scored(draw, score_name, options) if name in OF_ANY_SCORE else None
    unit = activation == "none" or name == "any"
    hard = name in ("bce", "dice_bce", "dice", "jaccard", "tversky", "soft_f1", "weighted_log")
    x = drawn_input(draw, shape, target, unit, hard)
    weight = drawn_weight(draw, shape, numbers)
    x = x.to(draw.choice(DTYPES))
    if draw.rarely(0.3):
        x = with_junk(draw, x, target, weight, options, softmax)
    way = draw.choice(("function", "module", "sums"))
    if way != "function" and draw.rarely(0.5):
        options["check_target"] = False
    return laid_out(draw, Call(name, way, score, x, target, weight, options))


def _in_range(target: Tensor, options: dict[str, Any], classes: int) -> Tensor:
    """Class numbers of which every other than the ignored ones is a class."""
    ignored = options.get("ignore_index")
    ignored = () if ignored is None else ignored
    kept = (target >= 0) & (target < classes)
    for value in (ignored,) if isinstance(ignored, int) else ignored:
        kept = kept | (target == value)
    return torch.where(kept, target, torch.zeros_like(target))


def loss_options(
    draw: Draw, name: str, shape: list[int], activation: str, score: str
) -> dict[str, Any]:
    """The options of a loss beside those of its target and activation."""
    classes = shape[1] if len(shape) > 1 else 1
    if name == "custom_f1":
        return {"beta": draw.choice((0.0, 0.3, 1.0, 1))} if draw.rarely(0.7) else {}
    options: dict[str, Any] = {}
    if draw.rarely(0.25):
        options["label_smoothing"] = draw.choice((0.1, 0.5))
    compound = name in WEIGHTS
    if name not in ALONE:
        options |= averaging(draw, shape, compound)
        weighted = score not in POOLING or options.get("average") == "micro"
        options |= class_options(draw, classes, weighted)
    elif draw.rarely(0.3):
        options["class_weight"] = by_class(draw, classes)
    if name not in LINKED:
        options |= link_options(draw, name not in FUSED, score)
    linear = options.get("link", "complement") in ("complement", "negative") and name not in LINKED
    linear = linear or (name in ("dice_ce", "dice_bce", "dice_focal") and "link" not in options)
    for each in PRESETS.get(name, ()):
        if draw.rarely(0.5):
            options[each] = parameter(draw, each, linear)
    _some_miss_counts(options)
    if compound:
        options |= beside(draw, name, classes, activation == "softmax")
        options |= weights_of_parts(draw, name)
    return options


def scored(draw: Draw, score: str, options: dict[str, Any]) -> Scored | None:
    """The score of a loss of any score; a compound needs none where it weighs 0."""
    if options.get("score_weight") == 0 and draw.rarely(0.5):
        return None
    linear = options.get("link", "complement") in ("complement", "negative")
    wanted = (*PARAMETERS.get(score, ()), *(("smooth",) if score in SMOOTHED else ()))
    parameters = {each: parameter(draw, each, linear) for each in wanted if draw.rarely(0.5)}
    _some_miss_counts(parameters)
    return score, parameters


def _some_miss_counts(parameters: dict[str, Any]) -> None:
    """A Tversky index without any misses is refused."""
    if parameters.get("fp_weight") == 0 and parameters.get("fn_weight") == 0:
        parameters["fn_weight"] = 1.0


def laid_out(draw: Draw, call: Call) -> Call:
    """The same operands at other strides, some of them leaves of a graph."""

    def placed_anew(tensor: Tensor | None) -> Tensor | None:
        layouts = tuple(each for each in LAYOUTS if not each.startswith("expanded"))
        strides = draw.choice(layouts) if draw.rarely(0.4) else "contiguous"
        return None if tensor is None else lay_out(tensor, strides)

    input, target, weight = map(placed_anew, (call.input, call.target, call.weight))
    assert input is not None and target is not None
    if target.is_floating_point() and not holds_numbers(input, target) and draw.rarely(0.3):
        target.requires_grad_()
    if weight is not None and weight.is_floating_point() and draw.rarely(0.4):
        weight.requires_grad_()
    return replace(call, input=input.requires_grad_(), target=target, weight=weight)


def drawn_sums(seed: int) -> Call:
    """A call of ``confusion_sums``."""
    draw = Draw(seed)
    options: dict[str, Any] = {"activation": draw.choice(("sigmoid", "softmax", "softmax", "none"))}
    activation = options["activation"]
    softmax = activation == "softmax"
    shape = drawn_shape(draw, softmax)
    if activation != "none" and draw.rarely(0.3):
        options["logit_scale"] = draw.choice((2.0, -0.5, 3, 0.25))
        options["logit_offset"] = draw.choice((0.0, 0.25, -1))
    numbers = len(shape) > 1 and shape[1] > 1 and draw.rarely(0.6 if softmax else 0.25)
    target = (labels if numbers else functools.partial(dense, activation=activation))(
        draw, shape, options=options
    )
    if draw.rarely(0.3):
        options["average"] = draw.choice(("macro", "micro"))
    if shape[0] and draw.rarely(0.3):
        options["samplewise"] = True
    if draw.rarely(0.3):
        options["label_smoothing"] = draw.choice((0.1, 0.5))
    for word in customloss.scores.SUMS:
        if draw.rarely(0.3):
            options[word] = True
    if options.get("focal"):
        options["focal_gamma"] = draw.choice((0.0, 0.5, 1, 2.0, 3.0))
        options["focal_split"] = draw.rarely(0.3)
    if options.get("log_loss") and draw.rarely(0.3):
        options["log_smoothing"] = draw.choice((0.0, 0.2))
    x = drawn_input(draw, shape, target, activation == "none", hard=not options.get("focal"))
    weight = drawn_weight(draw, shape, numbers)
    x = x.to(draw.choice(DTYPES))
    if draw.rarely(0.3):
        x = with_junk(draw, x, target, weight, options, softmax)
    return laid_out(draw, Call("sums", "function", None, x, target, weight, options))
