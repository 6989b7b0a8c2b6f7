"""Every loss of the package as a formula of the sums of ``oracle.py``, in plain float64 torch,
written from docs/losses.md and docs/absent.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from oracle import READING, ChosenSums, Noise, Sums, placed, read
from torch import Tensor

DEFAULTS: dict[str, Any] = {
    **READING, "average": "macro", "samplewise": False, "reduction": "mean", "absent": "score",
    "link": "complement", "gamma": 1.0, "log_floor": 1e-30, "class_weight": None, "classes": None,
    "include_background": True, "pos_weight": None, "ce_label_smoothing": None,
    "focal_alpha": None, "pointwise_class_weight": None, "pointwise_classes": None,
    "pointwise_reduction": "mean",
}  # fmt: skip


class Similarity(NamedTuple):
    value: Tensor
    complement: Tensor  # 1 - value
    exact: bool  # whether the complement keeps its digits near 0


# ---- scores --------------------------------------------------------------------------------------


def _ratio(hit: Tensor, miss: Tensor) -> Similarity:
    """hit / (hit + miss); 0 / 0 is 1, with gradient 0."""
    whole = hit + miss
    empty = whole == 0
    safe = torch.where(empty, torch.ones_like(whole), whole)
    one, zero = torch.ones_like(whole), torch.zeros_like(whole)
    return Similarity(
        torch.where(empty, one, hit / safe), torch.where(empty, zero, miss / safe), True
    )


def _smoothed(hit: Tensor, miss: Tensor, smooth: Any) -> Similarity:
    top, bottom = smooth if isinstance(smooth, (tuple, list)) else (smooth, smooth)
    return _ratio(hit + top, miss + (bottom - top))


def _value(value: Tensor) -> Similarity:
    return Similarity(value, 1 - value, False)


def _power(base: Tensor, exponent: Any) -> Tensor:
    """base ** exponent, which is 0 with gradient 0 at 0, and 1 for exponent 0."""
    if exponent == 0:
        return torch.ones_like(base)
    zero = base <= 0
    safe = torch.where(zero, torch.ones_like(base), base)
    return torch.where(zero, torch.zeros_like(base), safe**exponent)


def _by_root(value: Tensor, squared: Tensor) -> Tensor:
    """value / sqrt(squared), and 0 where the root is 0."""
    undefined = squared == 0
    root = torch.where(undefined, torch.ones_like(squared), squared).sqrt()
    return torch.where(undefined, torch.zeros_like(root), value / root)


def fbeta(s: Any, beta: float = 1.0, smooth: Any = 0.0) -> Similarity:
    return _smoothed((1 + beta**2) * s["tp"], s["fp"] + beta**2 * s["fn"], smooth)


def tversky(
    s: Any, fp_weight: float = 0.5, fn_weight: float = 0.5, smooth: Any = 0.0
) -> Similarity:
    return _smoothed(s["tp"], fp_weight * s["fp"] + fn_weight * s["fn"], smooth)


def jaccard(s: Any, smooth: Any = 0.0) -> Similarity:
    return _smoothed(s["tp"], s["fp"] + s["fn"], smooth)


def precision(s: Any, smooth: Any = 0.0) -> Similarity:
    return _smoothed(s["tp"], s["fp"], smooth)


def recall(s: Any, smooth: Any = 0.0) -> Similarity:
    return _smoothed(s["tp"], s["fn"], smooth)


def specificity(s: Any, smooth: Any = 0.0) -> Similarity:
    found = _smoothed(s["tn"], s["fp"], smooth)
    return found._replace(exact=False)


def squared_dice(s: Any, smooth: Any = 0.0) -> Similarity:
    found = _smoothed(2 * s["tp"], s["p2"] + s["t2"] - 2 * s["tp"], smooth)
    return found._replace(exact=False)


def semimetric_dice(s: Any, smooth: Any = 0.0) -> Similarity:
    found = _smoothed(2 * s["common"], s["distance"], smooth)
    return found._replace(exact=False)


def semimetric_jaccard(s: Any, smooth: Any = 0.0) -> Similarity:
    found = _smoothed(s["common"], s["distance"], smooth)
    return found._replace(exact=False)


def semimetric_tversky(
    s: Any, fp_weight: float = 0.5, fn_weight: float = 0.5, smooth: Any = 0.0
) -> Similarity:
    miss = fp_weight * s["distance_pos"] + fn_weight * s["distance_neg"]
    return _smoothed(s["common"], miss, smooth)._replace(exact=False)


def fowlkes_mallows(s: Any, recall_weight: float = 0.5, smooth: Any = 0.0) -> Similarity:
    of_precision = _power(precision(s, smooth).value, 1 - recall_weight)
    return _value(of_precision * _power(recall(s, smooth).value, recall_weight))


def balanced_accuracy(s: Any) -> Similarity:
    return _value((recall(s).value + specificity(s).value) / 2)


def g_mean(s: Any) -> Similarity:
    return _value(_power(recall(s).value * specificity(s).value, 0.5))


def mcc(s: Any) -> Similarity:
    tp, fp, fn, tn = s["tp"], s["fp"], s["fn"], s["tn"]
    squared = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return _value(_by_root(tp * tn - fp * fn, squared))


def multiclass_mcc(s: Any) -> Similarity:
    tp, fp, fn, tn = s["tp"], s["fp"], s["fn"], s["tn"]
    covariance = (tp * tn - fp * fn).sum(1, keepdim=True)
    predicted = ((tp + fp) * (fn + tn)).sum(1, keepdim=True)
    actual = ((tp + fn) * (fp + tn)).sum(1, keepdim=True)
    return _value(_by_root(covariance, predicted * actual))


def generalized_dice(s: Any, weighting: str = "square", smooth: Any = 0.0) -> Similarity:
    support = (s["tp"] + s["fn"]).detach()
    power = {"square": 2, "simple": 1, "uniform": 0}[weighting]
    w = torch.where(support > 0, support, torch.ones_like(support)) ** -power
    most = torch.where(support > 0, w, torch.zeros_like(w)).amax(1, keepdim=True)
    most = torch.where(most > 0, most, torch.ones_like(most))
    w = torch.where(support > 0, w, most)
    hit = (2 * w * s["tp"]).sum(1, keepdim=True)
    return _smoothed(hit, (w * (s["fp"] + s["fn"])).sum(1, keepdim=True), smooth)


def custom_f1(s: Any, recall_weight: float) -> Similarity:
    of_precision = s["tp"] / (s["tp"] + s["fp"] + 1e-10)
    of_recall = s["tp"] / (s["tp"] + s["fn"] + 1e-10)
    return _value(_power(of_precision, 1 - recall_weight) * _power(of_recall, recall_weight))


SCORES: dict[str, Callable[..., Similarity]] = {
    "dice": lambda s, smooth=0.0: fbeta(s, smooth=smooth),
    **{
        each.__name__: each
        for each in (
            fbeta, tversky, jaccard, precision, recall, specificity, squared_dice,
            semimetric_dice, semimetric_jaccard, semimetric_tversky, fowlkes_mallows,
            balanced_accuracy, g_mean, mcc, multiclass_mcc, generalized_dice,
        )
    },
}  # fmt: skip
POOLING = ("multiclass_mcc", "generalized_dice")  # these make one score of all classes


# ---- from similarities to a loss -----------------------------------------------------------------


def linked(s: Similarity, o: Mapping[str, Any], noise: Noise) -> Tensor:
    link = o["link"]
    far = s.complement if s.exact and link != "log_cosh" else noise.near_one(s.complement)
    if link == "negative":
        return -s.value
    if link in ("log", "log_power"):
        near = s.value > 0.5
        by_far = -torch.log1p(-torch.where(near, far, torch.zeros_like(far)))
        log = torch.where(near, by_far, -s.value.clamp_min(o["log_floor"]).log())
        return log if link == "log" else _power(log, o["gamma"])
    if link == "focal":
        return far if o["gamma"] == 1 else _power(far, o["gamma"])
    return torch.log1p(2 * torch.sinh(far / 2) ** 2) if link == "log_cosh" else far


def _mean(loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over the last dim, and whether anything counts; 0 if nothing does."""
    total = weight.sum(-1)
    safe = torch.where(total == 0, torch.ones_like(total), total)
    mean = (weight * loss).sum(-1) / safe
    return torch.where(total == 0, torch.zeros_like(mean), mean), (total != 0).double()


def averaged(
    loss: Tensor, s: ChosenSums, o: Mapping[str, Any], class_weight: Tensor | None
) -> Tensor:
    """From losses ``[samples, classes]`` to what the caller asked for."""
    pools = loss.shape[1] != s["tp"].shape[1]
    rows = {name: s[name].sum(1, keepdim=True) if pools else s[name]
            for name in ("positives", "fp", "whole")}  # fmt: skip
    missing = rows["positives"] == 0
    weight = torch.ones_like(loss) if class_weight is None else class_weight.expand(loss.shape)
    if o["absent"] == "skip":
        loss = torch.where(missing, torch.zeros_like(loss), loss)
        weight = weight * (~missing).double()
    if o["absent"] == "penalize":
        negatives = rows["whole"] - rows["positives"]
        safe = torch.where(negatives == 0, torch.ones_like(negatives), negatives)
        rate = torch.where(negatives == 0, torch.zeros_like(safe), rows["fp"] / safe)
        loss = torch.where(missing, rate, loss)
    if o["average"] == "weighted":
        weight = weight * rows["positives"]
    if o["average"] == "none":
        if o["reduction"] == "mean":
            return _mean(loss.flatten(), weight.flatten())[0]
        if class_weight is not None:
            loss = loss * class_weight
        if o["reduction"] == "sum":
            return loss.sum()
        return loss if o["samplewise"] else loss[0]
    loss, counts = _mean(loss, weight)
    if o["reduction"] == "mean":
        return _mean(loss, counts)[0]
    if o["reduction"] == "sum":
        return loss.sum()
    return loss if o["samplewise"] else loss[0]


# ---- the pointwise part --------------------------------------------------------------------------


def pointwise(
    sums: Sums, o: Mapping[str, Any], v: Tensor, ce_weight: float, focal_weight: float, size: int
) -> Tensor:
    """A cross-entropy and a focal loss of all classes, weighted by v."""
    softmax = o["activation"] == "softmax"
    pos_weight = 1.0 if o["pos_weight"] is None else o["pos_weight"]
    if isinstance(pos_weight, list):
        pos_weight = torch.tensor(pos_weight, dtype=torch.float64)
    alpha = o["focal_alpha"]
    of_pos, of_neg = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    lost = torch.zeros_like(sums["tp"])
    if ce_weight:
        lost = lost + ce_weight * pos_weight * sums["log_loss_pos"]
        lost = lost if softmax else lost + ce_weight * sums["log_loss_neg"]
    if focal_weight:
        lost = lost + focal_weight * pos_weight * of_pos * sums["focal_pos"]
        lost = lost if softmax else lost + focal_weight * of_neg * sums["focal_neg"]
    lost, counted = (v * lost).sum(1), (v * sums["support" if softmax else "whole"]).sum(1)
    each = o["samplewise"] and o["reduction"] == "none"
    if not each:
        lost, counted = lost.sum(), counted.sum()
    if o["pointwise_reduction"] == "sum":
        return lost
    if o["pointwise_reduction"] == "mean_all":
        return lost / max(size // len(lost) if each and len(lost) else size, 1)
    empty = counted == 0
    return torch.where(empty, torch.zeros_like(lost), lost / torch.where(empty, 1.0, counted))


# ---- the losses ----------------------------------------------------------------------------------

# the score of a loss, where it is not named after it
SCORE_OF: dict[str, str] = {
    "soft_f1": "fbeta", "any": "fbeta", "sigmoid_f1": "fbeta", "focal_tversky": "tversky",
    "log_cosh_dice": "dice", "exp_log_dice": "dice", "log_precision_recall": "fowlkes_mallows",
    "dice_ce": "dice", "dice_bce": "dice", "dice_focal": "dice", "tversky_ce": "tversky",
}  # fmt: skip
# what score, cross-entropy and focal loss weigh: a number, or an option and its default
WEIGHTS: dict[str, tuple[Any, Any, Any]] = {
    "compound": (("score_weight", 1.0), ("cross_entropy_weight", 0.0), ("focal_weight", 0.0)),
    "dice_ce": (("dice_weight", 1.0), ("ce_weight", 1.0), 0.0),
    "dice_bce": (("dice_weight", 1.0), ("bce_weight", 1.0), 0.0),
    "dice_focal": (("dice_weight", 1.0), 0.0, ("focal_weight", 1.0)),
    "tversky_ce": (("tversky_weight", 1.0), ("ce_weight", 1.0), 0.0),
    "cross_entropy": (0.0, 1.0, 0.0),
    "bce": (0.0, 1.0, 0.0),
    "focal": (0.0, 0.0, 1.0),
}
ALONE = ("cross_entropy", "bce", "focal")  # a pointwise loss without a score
OF_A_SOFTMAX = ("dice_ce", "tversky_ce", "multiclass_mcc", "cross_entropy")  # by default
# what a loss means by its own options: other options, or other defaults
MEANT: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "any": lambda o: {"logit_scale": o.get("amplification", 73.0), "logit_offset": 0.5},
    "sigmoid_f1": lambda o: {
        "logit_scale": o.get("slope", 1.0), "logit_offset": -o.get("shift", 0.0),
    },
    "focal_tversky": lambda o: {
        "fp_weight": 0.3, "fn_weight": 0.7, **o, "link": "focal", "gamma": o.get("exponent", 0.75),
    },
    "exp_log_dice": lambda o: {"link": "log_power", "gamma": o.get("exponent", 0.3)},
    "log_cosh_dice": lambda o: {"link": "log_cosh"},
    "log_precision_recall": lambda o: {"link": "log"},
    "custom_f1": lambda o: {
        "activation": "none", "average": "micro", "link": "log",
        "recall_weight": o.get("beta", 1.0),
    },
    **{
        name: lambda o: {"pointwise_reduction": o.get("reduction", "mean"), "reduction": "mean"}
        for name in ALONE
    },
}  # fmt: skip

Scored = tuple[str, dict[str, Any]]  # the name of a score, and its parameters


def score_of(name: str, own: Scored | None) -> Callable[..., Similarity]:
    """The score of a loss; ``own`` is that of a loss of any score."""
    if name == "custom_f1":
        return custom_f1
    return SCORES[own[0] if own else SCORE_OF.get(name, name)]


def _by_class(values: Any, classes: int) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.ones(classes, dtype=torch.float64) if values is None else torch.tensor(
        values, dtype=torch.float64
    )  # fmt: skip


def _loss_of_score(
    name: str, own: Scored | None, sums: Sums, o: Mapping[str, Any], one_dim: bool
) -> Tensor:
    """The score, linked and averaged."""
    classes = sums["tp"].shape[1]
    chosen = list(range(classes) if o["include_background"] else range(1, classes))
    chosen = chosen if o["classes"] is None else list(o["classes"])
    weighted = o["class_weight"] is not None
    v = _by_class(o["class_weight"], classes)[chosen]
    micro = o["average"] == "micro"
    s = ChosenSums(sums, chosen, v if micro else None)
    if name == "weighted_log":
        w = o.get("recall_weight", 0.5)
        lost = w * s["log_loss_pos"] + (1 - w) * s["log_loss_neg"]
        empty = s["whole"] == 0
        loss = torch.where(
            empty, torch.zeros_like(lost), lost / torch.where(empty, 1.0, s["whole"])
        )
    else:
        score = score_of(name, own)
        takes = list(inspect.signature(score).parameters)[1:]
        parameters = own[1] if own else {key: o[key] for key in takes if key in o}
        loss = linked(score(s, **parameters), o, sums.noise)
    result = averaged(loss, s, o, v if weighted and not micro else None)
    keeps_classes = o["average"] == o["reduction"] == "none"
    return result[..., 0] if keeps_classes and one_dim else result


def loss(
    name: str,
    own: Scored | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: Mapping[str, Any],
    noise: Noise,
) -> Tensor:
    """The loss of this name, of float64 tensors."""
    o = {**DEFAULTS, **({"activation": "softmax"} if name in OF_A_SOFTMAX else {}), **options}
    o |= MEANT.get(name, lambda o: {})(o)
    o["log_smoothing"] = o["ce_label_smoothing"]
    score_weight, ce_weight, focal_weight = (
        options.get(*each) if isinstance(each, tuple) else each
        for each in WEIGHTS.get(name, (1.0, 0.0, 0.0))
    )
    classes = placed(input).shape[1]
    own_weight = o["pointwise_class_weight"]
    v = _by_class(o["class_weight"] if own_weight is None else own_weight, classes)
    if o["pointwise_classes"] is not None:
        v = v * _by_class(None, classes).index_fill(0, _rest(o["pointwise_classes"], classes), 0.0)
    scored = _by_class(o["class_weight"], classes).detach().clone()
    if o["classes"] is not None:
        scored[_rest(o["classes"], classes)] = 0
    if not o["include_background"]:
        scored[0] = 0
    beside = bool(ce_weight or focal_weight)
    hidden = (not score_weight or scored == 0) & (not beside or v.detach() == 0)
    sums = Sums(read(input, target, weight, o, hidden), o["samplewise"], noise)
    total = torch.zeros((), dtype=torch.float64)
    if score_weight:
        total = score_weight * _loss_of_score(name, own, sums, o, input.dim() == 1)
    if beside:
        size = input.numel() // (input.shape[1] if o["activation"] == "softmax" else 1)
        total = total + pointwise(sums, o, v, ce_weight, focal_weight, size)
    return total


def _rest(chosen: Sequence[int], classes: int) -> Tensor:
    """The classes that are not chosen."""
    return torch.tensor([c for c in range(classes) if c not in chosen], dtype=torch.long)
