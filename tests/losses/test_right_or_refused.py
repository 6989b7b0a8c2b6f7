"""Kinds of input on which a loss was once wrong, silent or misleading, each in 200 variations: the
number is right, or the call is refused by a message that says what to do.

`make test` runs the first ten variations of every kind. A failure names its kind and number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import PROBABILITIES
from drawn_operands import Draw
from selection import one_of_each
from torch import nn
from variations import averaging, function, gradient, labels_of, refused, same, shape_of

import customloss
from customloss.losses.base import LOSSES

VARIATIONS = 200
AT_ONCE = 10

NAN = float("nan")
KINDS: dict[str, Callable[[Draw], None]] = {}
# losses by what they take
SIGMOID = ("soft_f1", "dice", "tversky", "jaccard", "focal_tversky", "log_cosh_dice",
           "exp_log_dice", "fowlkes_mallows", "log_precision_recall", "balanced_accuracy",
           "g_mean", "mcc", "squared_dice", "semimetric_dice", "semimetric_jaccard",
           "semimetric_tversky", "weighted_log")  # fmt: skip
COMPOUND = ("dice_bce", "dice_focal", "dice_ce", "tversky_ce")
LABELLED = (*SIGMOID[:-1], *COMPOUND, "cross_entropy", "focal", "generalized_dice",
            "multiclass_mcc")  # fmt: skip
# losses of which no kind draws one: presets of others, or with another vocabulary
ELSEWHERE = ("any", "sigmoid_f1", "custom_f1", "bce")
SEMIMETRIC = ("semimetric_dice", "semimetric_jaccard", "semimetric_tversky")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def kind(check: Callable[[Draw], None]) -> Callable[[Draw], None]:
    KINDS[check.__name__] = check
    return check


def test_every_loss_is_drawn_by_some_kind() -> None:
    assert {*SIGMOID, *LABELLED, *ELSEWHERE} == {*LOSSES}


@one_of_each(lambda name: name)
@pytest.mark.parametrize("first", range(0, VARIATIONS, AT_ONCE))
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # a drawn batch may look odd
def test_right_or_refused(name: str, first: int) -> None:
    for number in range(first, first + AT_ONCE):
        try:
            KINDS[name](Draw(f"{name} {number}"))
        except Exception as error:
            raise AssertionError(f"{name}, variation {number}: {error}") from error


# ---- nothing counts, or nothing of it may be seen ------------------------------------------------


@kind
def pointwise_loss_of_nothing_is_zero(draw: Draw) -> None:
    """Only classes that weigh 0, or only ignored pixels, or a weight of 0 everywhere."""
    shape = shape_of(draw)
    dtype = draw.choice((torch.float64, torch.float32, torch.float16, torch.bfloat16))
    x = (draw.randn(shape) * draw.choice((1.0, 30.0))).to(dtype).requires_grad_()
    y, weight = torch.zeros((shape[0], *shape[2:]), dtype=torch.int64), None
    options: dict[str, Any] = {"label_smoothing": draw.choice((0.0, 0.1, 0.5))}
    why = draw.choice(("class", "ignored", "weight", "dense"))
    if why == "class":
        options["class_weight"] = [0.0, *(draw.choice((1, 0.5)) for _ in range(shape[1] - 1))]
    elif why == "ignored":
        y = torch.full_like(y, 255)
        options["ignore_index"] = draw.choice((255, (7, 255)))
    elif why == "weight":
        y, weight = labels_of(draw, shape), torch.zeros(())
    target = torch.zeros_like(x) if why == "dense" else y
    losses = [
        lambda: customloss.cross_entropy_loss(x, target, weight, **options),
        lambda: customloss.dice_ce_loss(x, target, weight, dice_weight=0.0, **options),
        lambda: customloss.tversky_ce_loss(x, target, weight, tversky_weight=0.0, **options),
        lambda: customloss.compound_loss(
            None, x, target, weight, activation="softmax", score_weight=0.0,
            cross_entropy_weight=0.5, focal_weight=1.0, **options,
        ),
    ]  # fmt: skip
    if why in ("ignored", "weight"):
        losses += [
            lambda: customloss.bce_loss(x, target, weight, **options),
            lambda: customloss.focal_loss(x, target, weight, focal_alpha=0.25, **options),
        ]
    loss = draw.choice(losses)()
    assert loss == 0 and (gradient(loss, x) == 0).all(), (why, float(loss))


@kind
def class_that_does_not_count_may_hold_nan(draw: Draw) -> None:
    """Of weight 0, or not among the chosen: as if it held ordinary numbers."""
    compound = draw.rarely(0.3)
    name = draw.choice(("dice_bce", "dice_focal") if compound else SIGMOID)
    shape = shape_of(draw)
    classes = shape[1]
    hidden = draw.sample(range(classes), draw.randint(1, classes - 1))
    counting = [number for number in range(classes) if number not in hidden]
    options = averaging(draw, compound)
    ways = ["weight", "learned"] + ([] if compound else ["classes"])
    if hidden == [0] and not compound:
        ways.append("background")
    way = draw.choice(ways)
    if way == "classes":
        options["classes"] = draw.sample(counting, len(counting))
    elif way == "background":
        options["include_background"] = False
    else:
        v = torch.tensor([0.0 if number in hidden else draw.choice((0.5, 1.0, 2.0))
                          for number in range(classes)])  # fmt: skip
        options["class_weight"] = v.requires_grad_() if way == "learned" else v.tolist()
    dtype = draw.choice((torch.float64, torch.float32))
    x, t = draw.randn(shape).to(dtype), (draw.rand(shape) > 0.5).to(dtype)
    spoiled = [x.clone(), t.clone()]
    for operand in draw.choice(((0,), (1,), (0, 1))):
        spoiled[operand][:, hidden] = draw.choice((NAN, NAN, float("inf")) if operand == 0 else
                                                  (NAN,))  # fmt: skip
    z = spoiled[0].requires_grad_()
    plain = x.clone().requires_grad_()
    own = function(name)(z, spoiled[1], **options)
    expected = function(name)(plain, t, **options)
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-9)
    found = gradient(own, z)
    torch.testing.assert_close(found, gradient(expected, plain), rtol=1e-5, atol=1e-8)
    assert (found[:, hidden] == 0).all()


@kind
def missing_labels_do_not_count(draw: Draw) -> None:
    """A NaN in a float target is as a weight of 0, alone and beside another weight."""
    name = draw.choice((*SIGMOID, "dice_bce", "dice_focal", "bce", "focal"))
    shape = draw.choice((shape_of(draw), (draw.choice((1, 5, 40)),)))
    x = draw.randn(shape).requires_grad_()
    t = draw.rand(shape) if draw.rarely(0.3) else (draw.rand(shape) > 0.5).double()
    hidden = draw.rand(shape) > draw.choice((0.3, 0.7, 0.0))
    weight = draw.rand(shape) if draw.rarely(0.4) else None
    counts = (~hidden).double() if weight is None else weight * ~hidden
    options: dict[str, Any] = {"label_smoothing": draw.choice((0.0, 0.2))}
    if name not in ("bce", "focal"):
        options |= averaging(draw, name in COMPOUND)
    expected = function(name)(x, t, counts, **options)
    own = function(name)(x, t.masked_fill(hidden, NAN), weight, nan_targets="ignore", **options)
    same(own, expected, x)


# ---- targets that are lost -----------------------------------------------------------------------


def activation_of(draw: Draw, name: str) -> dict[str, Any]:
    """As an option, where the loss has it."""
    if name in ("cross_entropy", "dice_bce"):
        return {}
    return {"activation": draw.choice(("softmax", "sigmoid"))}


@kind
def labels_out_of_range_are_refused(draw: Draw) -> None:
    """By functions and modules, wherever they stand; with ``out_of_range`` they are ignored."""
    name = draw.choice(LABELLED)
    shape = shape_of(draw)
    dtype = draw.choice(INTEGERS)
    y = labels_of(draw, shape, dtype)
    wrong = [shape[1], 100] + ([255] if dtype != torch.int8 else [])
    wrong += [-1, -100] if dtype != torch.uint8 else []
    ignored = draw.choice(wrong)
    label = draw.choice([value for value in wrong if value != ignored])
    y.view(-1)[draw.randrange(y.numel())] = label
    x = draw.randn(shape).requires_grad_()
    options = activation_of(draw, name)
    if draw.rarely(0.4):
        options["ignore_index"] = draw.choice((ignored, [ignored, 77]))
    one = y.unsqueeze(1) if draw.rarely(0.2) else y
    if draw.rarely(0.5):
        refused(lambda: function(name)(x, one, **options), "target", str(label))
    else:
        refused(lambda: customloss.loss(name, **options)(x, one), "target", str(label))
    given = options.pop("ignore_index", ())
    every = (label, *(given if isinstance(given, list) else (given,) if given != () else ()))
    lenient = {**options, "out_of_range": "ignore"}
    own = function(name)(x, one, **lenient)
    same(own, function(name)(x, one, ignore_index=every, **options), x)


@kind
def masks_of_other_numbers_are_refused(draw: Draw) -> None:
    """Masks stored as 0 and 255, and targets of -1 and 1."""
    low, high = draw.choice(((0, 255), (0, 255), (-1, 1), (0, 2), (0, 100)))
    dtypes = [torch.int16, torch.int32, torch.int64, torch.float32, torch.float64]
    dtypes += [torch.uint8] if low == 0 else []
    shape = draw.choice((shape_of(draw), shape_of(draw, classes=1), (draw.choice((2, 30)),)))
    t = draw.rand(shape) < 0.4
    t.view(-1)[draw.randrange(t.numel())] = low == 0  # at least one number is no target
    target = torch.where(t, high, low).to(draw.choice(dtypes))
    x = draw.randn(shape).to(draw.choice((torch.float32, torch.float64, torch.bfloat16)))
    name = draw.choice((*SIGMOID, "dice_bce", "dice_focal", "bce", "focal"))
    word = str(high if low == 0 else low)
    if draw.rarely(0.5):
        refused(lambda: customloss.loss(name)(x, target), "target", word)
    else:
        refused(lambda: function(name)(x, target, check_target=True), "target", word)


@kind
def logits_are_no_probabilities(draw: Draw) -> None:
    """Of ``activation="none"``, and of AnyLoss, whose input is a probability."""
    shape = draw.choice((shape_of(draw), (draw.choice((2, 60)),)))
    x = draw.randn(shape) * 3
    x.view(-1)[draw.randrange(x.numel())] = draw.choice((-0.5, 1.5, 4.0))
    x = x.to(draw.choice((torch.float32, torch.float64, torch.float16)))
    t = draw.rand(shape) > 0.5
    name = draw.choice((*SIGMOID, "dice_bce", "dice_focal", "bce", "focal", "any", "custom_f1"))
    options = {} if name in PROBABILITIES else {"activation": "none"}
    if draw.rarely(0.5):
        refused(lambda: customloss.loss(name, **options)(x, t), "input", "logits")
    else:
        refused(lambda: function(name)(x, t, check_target=True, **options), "input", "logits")


# ---- formulas ------------------------------------------------------------------------------------


@kind
def focal_loss_has_alpha(draw: Draw) -> None:
    """α_t m^γ times the binary cross-entropy, for hard targets and for soft ones."""
    shape = draw.choice((shape_of(draw), (draw.choice((1, 7, 50)),)))
    x = draw.randn(shape).requires_grad_()
    t = draw.rand(shape) if draw.rarely(0.4) else (draw.rand(shape) > 0.7).double()
    gamma, alpha = draw.choice((0.0, 0.5, 1, 2.0, 3.5)), draw.choice((0.0, 0.25, 0.5, 0.9, 1))
    p = x.sigmoid()
    positive = -alpha * t * F.logsigmoid(x)
    missed = p * (1 - t) + (1 - p) * t
    each = missed**gamma * (positive - (1 - alpha) * (1 - t) * F.logsigmoid(-x))
    weight = draw.rand(shape) + 0.1 if draw.rarely(0.5) else None
    expected = each.mean() if weight is None else (weight * each).sum() / weight.sum()
    options = {"focal_alpha": alpha, "focal_gamma": gamma}
    same(customloss.focal_loss(x, t, weight, **options), expected, x)
    own = customloss.dice_focal_loss(x, t, weight, **options)
    same(own, customloss.dice_loss(x, t, weight) + expected, x)


@kind
def smoothing_of_the_cross_entropy_alone(draw: Draw) -> None:
    """Of a compound: its score has the labels as they are."""
    shape = shape_of(draw)
    x, y = draw.randn(shape).requires_grad_(), labels_of(draw, shape)
    by = draw.choice((0.05, 0.1, 0.5))
    shared: dict[str, Any] = {}
    torch_options: dict[str, Any] = {"label_smoothing": by}
    if y.numel() > 3 and draw.rarely(0.4):
        y.view(-1)[: draw.randint(1, 2)] = 255
        shared["ignore_index"] = torch_options["ignore_index"] = 255
    if draw.rarely(0.4):
        v = torch.tensor([draw.choice((0.5, 1.0, 2.0)) for _ in range(shape[1])]).double()
        shared["class_weight"], torch_options["weight"] = v, v
    expected = F.cross_entropy(x, y, **torch_options)
    if not (y != 255).any():
        expected = (0.0 * x).sum()
    name = draw.choice(("dice", "tversky", "jaccard"))
    score = function(name)(x, y, activation="softmax", **shared)
    if name == "jaccard":
        own = customloss.compound_loss(
            "jaccard", x, y, cross_entropy_weight=1.0, activation="softmax",
            ce_label_smoothing=by, **shared,
        )  # fmt: skip
    else:
        own = function(f"{name}_ce")(x, y, ce_label_smoothing=by, **shared)
    same(own, score + expected, x)


@kind
def weight_in_the_shape_of_the_labels(draw: Draw) -> None:
    """Beside class numbers it is one number per pixel, also where it could be broadcast."""
    name = draw.choice(LABELLED)
    shape = shape_of(draw, rank=draw.choice((3, 4, 5)))
    if draw.rarely(0.4):  # N is C, and so on
        shape = (shape[1], *shape[1:2], *(shape[1] for _ in shape[2:]))
    x, y = draw.randn(shape).requires_grad_(), labels_of(draw, shape)
    weight = draw.rand(y.shape) * (draw.rand(y.shape) > 0.2)
    options = activation_of(draw, name)
    own = function(name)(x, y, weight, **options)
    same(own, function(name)(x, y, weight[:, None].expand(shape).contiguous(), **options), x)


@kind
def semimetric_gradient_in_float32(draw: Draw) -> None:
    """Hits far below misses: an absent class, or positives that are rare, under a small smooth."""
    shape = draw.choice((shape_of(draw), (draw.choice((5, 100)),)))
    rare = draw.choice((0.0, 0.0, 0.02))
    t = (draw.rand(shape) < rare).double()
    x = draw.randn(shape) + draw.choice((0.0, 0.0, 3.0))
    name = draw.choice(SEMIMETRIC)
    options = {"smooth": draw.choice((1e-5, 1e-3, 1.0)),
               "link": draw.choice(("complement", "log"))}  # fmt: skip
    found = []
    for dtype in (torch.float32, torch.float64):
        z = x.float().to(dtype).requires_grad_()
        loss = function(name)(z, t.to(dtype), **options)
        found.append((loss.detach().double(), gradient(loss, z).double()))
    (loss, own), (exact, expected) = found
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-7)
    scale = float(expected.abs().max())
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6 * scale + 1e-30)


# ---- sums and streams ----------------------------------------------------------------------------


@kind
def hard_counts_are_counts(draw: Draw) -> None:
    """Without a gradient, exact beyond float32, and added up field by field."""
    shape = draw.choice((shape_of(draw), (draw.choice((1, 30)),)))
    x = draw.randn(shape).to(draw.choice((torch.float32, torch.float64))).requires_grad_()
    softmax = len(shape) > 1 and draw.rarely(0.5)
    if softmax:
        y = labels_of(draw, shape)
        t = F.one_hot(y, shape[1]).movedim(-1, 1).bool()
        decided = x.argmax(1, keepdim=True) == torch.arange(shape[1]).reshape(
            -1, *(1 for _ in shape[2:])
        )
    else:
        y = t = draw.rand(shape) > 0.5
        decided = x > 0
    activation = "softmax" if softmax else "sigmoid"
    counts = customloss.confusion_sums(x, y, hard=True, activation=activation).hard
    assert counts is not None
    dims = [dim for dim in range(len(shape)) if dim != 1]
    wanted = (t & decided, ~t & decided, t & ~decided, ~t & ~decided)
    large = 2.0**24  # where float32 no longer counts
    many = type(counts)(*(torch.full_like(row, large) for row in counts))
    for row, sum_, twice, expected in zip(counts, counts + many, counts + counts, wanted):
        expected = expected.sum(dims)
        assert row.dtype in (torch.int64, torch.float64) and not row.requires_grad
        assert torch.equal(row, expected.to(row.dtype)) and torch.equal(twice, 2 * row)
        assert torch.equal(sum_, expected.to(row.dtype) + large)


@kind
def streaming_prints_casts_and_recovers(draw: Draw) -> None:
    """Casts and batches of NaN leave the state as it is: the loss is that without them."""
    name = draw.choice(("dice", "tversky", "soft_f1", "mcc", "dice_bce", "semimetric_dice"))
    decay = draw.choice((0.0, 0.5, 0.9, 0.99))
    criterion, twin = (customloss.StreamingLoss(customloss.loss(name), decay) for _ in range(2))
    model = nn.Sequential(nn.Linear(3, 3), criterion)
    classes = draw.choice((1, 3, 4))
    for _ in range(draw.randint(2, 5)):
        for _ in range(draw.randint(0, 2)):
            step = draw.choice(("repr", "cast", "nan"))
            if step == "repr":
                assert "StreamingLoss" in repr(criterion) and repr(criterion) in repr(
                    model
                ).replace("\n  ", "\n")
            elif step == "cast":
                model.to(draw.choice((torch.float16, torch.bfloat16, torch.float32)))
            else:
                bad = torch.full((6, classes), draw.choice((NAN, float("inf"))))
                criterion(bad if bad.isnan().any() else bad * 0, bad * 0 == 0)
        x, t = draw.randn((6, classes)), draw.rand((6, classes)) > 0.5
        z, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        same(criterion(z, t), twin(other, t), z, other)


# ---- refused, by name ----------------------------------------------------------------------------

WORDS: dict[str, tuple[str, ...]] = {
    "average": ("macro", "micro", "weighted", "none"),
    "reduction": ("mean", "sum", "none"),
    "absent": ("score", "skip", "penalize"),
    "link": ("complement", "log", "focal", "negative"),
    "activation": ("sigmoid", "softmax", "none"),
    "out_of_range": ("raise", "ignore"),
    "nan_targets": ("propagate", "ignore"),
    "pointwise_reduction": ("mean", "mean_all", "sum"),
}
BAD: dict[str, tuple[Any, ...]] = {
    "beta": (-1, NAN, "two"),
    "smooth": (-1.0, float("inf"), (1.0, 0.0), (1, 2, 3)),
    "fp_weight": (-0.5, None),
    "fn_weight": (-2, NAN),
    "recall_weight": (-0.1, 1.5),
    "exponent": (0.0, -1),
    "gamma": (0, -2.0),
    "log_floor": (0.0, 1.0, -1e-3),
    "label_smoothing": (-0.1, 1.0, 2),
    "ce_label_smoothing": (-0.1, 1.5),
    "focal_gamma": (-1, NAN),
    "focal_alpha": (-0.25, 1.5),
    "ignore_index": (1.5, "255"),
    "samplewise": (1, "yes"),
    "include_background": (0, None),
    "class_weight": ([-1.0, 1.0], 3.0, "balanced"),
    "logit_scale": (NAN, "1"),
    "dice_weight": (-1.0, NAN),
    "tversky_weight": (-0.5,),
    "ce_weight": (-1.0, "1"),
    "bce_weight": (-1,),
    "focal_weight": (-1.0,),
    "pos_weight": (-1.0, "3"),
    "weighting": ("squares", 2),
    "check_target": ("always", 1),
}  # fmt: skip


def misspelt(draw: Draw, word: str) -> str:
    """The word with a letter left out, or two letters exchanged."""
    place = draw.randrange(len(word) - 1)
    if draw.rarely(0.5):
        return word[:place] + word[place + 1 :]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


@kind
def constructors_check(draw: Draw) -> None:
    """A module refuses its options when it is made, by their names."""
    name = draw.choice(sorted(LOSSES))
    defaults = LOSSES[name].defaults
    option = draw.choice([each for each in defaults if each in WORDS or each in BAD])
    if option in BAD:
        value = draw.choice(BAD[option])
        refused(lambda: LOSSES[name](**{option: value}), option)
        return
    alone = option == "reduction" and name in ("cross_entropy", "bce", "focal")
    words = WORDS["pointwise_reduction" if alone else option]
    right = draw.choice(words)
    value = misspelt(draw, right)
    while value in words:
        value = misspelt(draw, right)
    refused(lambda: LOSSES[name](**{option: value}), option, repr(right), repr(value))


@kind
def messages_name_what_was_passed(draw: Draw) -> None:
    """The caller's word for an option, and our word for another library's."""
    shape = shape_of(draw, rank=4)
    x, y = draw.randn(shape), labels_of(draw, shape)
    weights = {
        "dice_ce": ("dice_weight", "ce_weight"), "dice_bce": ("dice_weight", "bce_weight"),
        "dice_focal": ("dice_weight", "focal_weight"),
        "tversky_ce": ("tversky_weight", "ce_weight"),
        "compound": ("score_weight", "cross_entropy_weight", "focal_weight"),
    }  # fmt: skip
    foreign = (
        ("dice_focal", "gamma", "focal_gamma"), ("dice", "alpha", "fp_weight"),
        ("tversky", "alpha", "fp_weight"), ("tversky", "beta", "fn_weight"),
        ("dice", "smooth_nr", "smooth="), ("dice", "eps", "smooth"),
        ("dice", "to_onehot_y", "class numbers"), ("jaccard", "from_logits", "activation"),
        ("dice_ce", "lambda_dice", "dice_weight"), ("dice_ce", "lambda_ce", "ce_weight"),
        ("dice_ce", "batch", "samplewise"), ("dice", "ignore_label", "ignore_index"),
    )  # fmt: skip
    case = draw.choice(("weight", "foreign", "learned"))
    if case == "weight":
        name = draw.choice(tuple(weights))
        option = draw.choice(weights[name])
        given = {option: draw.choice((-1.0, NAN, -1e-3))}
        first = ("dice",) if name == "compound" else ()
        refused(lambda: function(name)(*first, x, y, **given), option)
    elif case == "foreign":
        name, theirs, ours = draw.choice(foreign)
        value = draw.choice((2.0, 0.3))
        module = draw.rarely(0.5)
        make = customloss.loss if module else lambda name, **more: function(name)(x, y, **more)
        refused(lambda: make(name, **{theirs: value}), theirs, ours)
    else:
        name, option = draw.choice((
            ("tversky", "fp_weight"), ("tversky", "fn_weight"), ("soft_f1", "beta"),
            ("dice", "smooth"), ("semimetric_tversky", "fp_weight"), ("tversky_ce", "fn_weight"),
            ("fowlkes_mallows", "recall_weight"), ("focal_tversky", "exponent"),
        ))  # fmt: skip
        learned = torch.tensor(draw.choice((0.3, 1.0)), requires_grad=draw.rarely(0.7))
        options = {option: learned}
        if draw.rarely(0.5):
            options["activation"] = "softmax"
        if draw.rarely(0.3):
            options["class_weight"] = [1.0] * shape[1]
        refused(lambda: function(name)(x, y, **options), option)
