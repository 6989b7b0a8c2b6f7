"""Every loss function agrees with its module, and the fused operators with the composed route."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import FEW_OPTIONS, OPTIONS, PROBABILITIES, Case
from judge import differentiated
from selection import covering, one_of_each
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import customloss
from customloss import reference, scores
from customloss._spec import options as spec_options
from customloss.losses import formula
from customloss.losses.base import LOSSES

F64 = torch.float64
# the tests are about values for any numbers, also those that are no probabilities
ANY_DATA: dict[str, Any] = {"check_target": False}
tversky = torch.ops.customloss.tversky
NAMES = tuple(LOSSES)
PLAIN = tuple(name for name in NAMES if name not in FEW_OPTIONS)
# These have a pointwise part, so they have no loss per class; two of them are of a softmax.
COMPOUND = ("dice_ce", "dice_bce", "dice_focal", "tversky_ce")
SINGLE = tuple(name for name in PLAIN if name not in COMPOUND)
# These make one score of all classes.
POOLED = ("generalized_dice", "multiclass_mcc")
# The options of cases.py that every loss has; beta and the link are not among them.
SHARED = ("average", "samplewise", "reduction", "absent", "logit_scale", "logit_offset",
          "activation")  # fmt: skip


def function(name: str) -> Any:
    return getattr(customloss, f"{name}_loss")


def family(name: str) -> str:
    """The file that the loss is in."""
    return Path(inspect.unwrap(LOSSES[name].function).__code__.co_filename).stem


def shared(option: str, name: str) -> dict[str, Any]:
    known = LOSSES[name].defaults
    found = {k: v for k, v in OPTIONS[option].items() if k in SHARED and k in known}
    if name in COMPOUND and found.get("average") == "none":
        found["average"] = "macro"
        found.pop("reduction", None)  # there is nothing left to keep
    return found


# ---- functions and modules -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_module_and_function_agree(name: str) -> None:
    """Names and defaults are equal, both in the signatures that are shown and in the typed ones."""
    cls = LOSSES[name]
    shown = inspect.signature(function(name)).parameters
    options = {n: p.default for n, p in shown.items() if n not in ("input", "target", "weight")}
    assert options["check_target"] is False
    options["check_target"] = "once"  # a module has a first batch
    assert {n: p.default for n, p in inspect.signature(cls).parameters.items()} == options
    assert cls.defaults == options
    typed = inspect.Signature.from_callable(cls.__init__).parameters
    for n, p in typed.items():
        if p.default is not inspect.Parameter.empty:
            assert options[n] == p.default
    sample = Case("x", (6, 4), target=None, weight="full").build(F64)
    x = sample.input.sigmoid() if name in PROBABILITIES else sample.input
    if options.get("activation") == "softmax" or name == "cross_entropy":
        sample.target.copy_(torch.eye(4)[torch.arange(6) % 4])
    module = cls()
    expected = function(name)(x, *sample.operands[1:])
    assert torch.equal(module(x, *sample.operands[1:]), expected)
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), customloss.loss(name)):
        assert torch.equal(same(x, *sample.operands[1:]), expected)
    assert repr(module) == f"{cls.__name__}()"
    with pytest.raises(TypeError, match="averge"):
        cls(averge="micro")
    with pytest.raises(TypeError, match="averge"):
        function(name)(x, sample.target, averge="micro")


@covering
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_options(name: str, option: str) -> None:
    """Every loss takes every option: shapes are those of soft-F1, values and gradients finite."""
    options = shared(option, name)
    for case in (Case("x", (3, 4, 5)), Case("y", (7,), target=None, weight="full")):
        default = {"activation": LOSSES[name].defaults.get("activation")}
        if {**default, **options}["activation"] == "softmax" and case.name == "y":
            continue  # a softmax needs two classes
        sample = case.build(F64)._replace(options={})
        if "activation" in options:
            sample = sample._replace(input=sample.input.sigmoid())
        loss, gradients = differentiated(customloss.loss(name, **options, **ANY_DATA), sample)
        judged = reference.soft_f1(*sample.operands, **options)
        if name not in POOLED:
            assert loss.shape == judged.shape
        assert loss.dtype == F64
        assert loss.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
    x, t, _ = Case("x", (3, 4, 5)).build(torch.float16).operands
    assert customloss.loss(name, **ANY_DATA)(x, t).dtype == torch.float32


def test_what_each_is() -> None:
    """The losses agree with each other and with formulas of the sums."""
    x, t, w = Case("x", (9, 4), target=None, weight="full").build(F64).operands
    tp, fp, fn, tn = customloss.confusion_sums(x, t, w)
    close = torch.testing.assert_close
    dice = 2 * tp / (2 * tp + fp + fn)
    close(customloss.dice_loss(x, t, w), customloss.soft_f1_loss(x, t, w))
    close(customloss.dice_loss(x, t, w), (1 - dice).mean())
    close(customloss.jaccard_loss(x, t, w), (1 - dice / (2 - dice)).mean())
    similarity = tp / (tp + 0.3 * fp + 0.7 * fn)
    close(customloss.tversky_loss(x, t, w, fp_weight=0.3, fn_weight=0.7), (1 - similarity).mean())
    close(customloss.focal_tversky_loss(x, t, w), ((1 - similarity) ** 0.75).mean())
    close(
        customloss.tversky_loss(x, t, w, fp_weight=0.2, fn_weight=0.8),
        customloss.soft_f1_loss(x, t, w, beta=2.0),
    )
    close(customloss.tversky_loss(x, t, w, smooth=0.5), customloss.dice_loss(x, t, w, smooth=1.0))
    close(customloss.log_cosh_dice_loss(x, t, w), (1 - dice).cosh().log().mean())
    close(customloss.exp_log_dice_loss(x, t, w), ((-dice.log()) ** 0.3).mean())
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    close(
        customloss.log_precision_recall_loss(x, t, w, recall_weight=0.8),
        -(0.2 * precision.log() + 0.8 * recall.log()).mean(),
    )
    close(customloss.fowlkes_mallows_loss(x, t, w), (1 - (precision * recall).sqrt()).mean())
    specificity = tn / (tn + fp)
    close(customloss.balanced_accuracy_loss(x, t, w), (1 - (recall + specificity) / 2).mean())
    close(customloss.g_mean_loss(x, t, w), (1 - (recall * specificity).sqrt()).mean())
    whole = (1 / (tp + fn) ** 2 * (2 * tp + fp + fn)).sum()
    close(
        customloss.generalized_dice_loss(x, t, w),
        1 - 2 * (tp / (tp + fn) ** 2).sum() / whole,
    )
    close(
        customloss.generalized_dice_loss(x, t, w, weighting="uniform"),
        customloss.dice_loss(x, t, w, average="micro"),
    )
    close(
        customloss.any_loss(x.sigmoid(), t, w, beta=2.0),
        customloss.soft_f1_loss(73 * (x.sigmoid() - 0.5), t, w, beta=2.0),
    )
    close(
        customloss.sigmoid_f1_loss(x, t, w, slope=9.0, shift=0.1),
        customloss.soft_f1_loss(9 * (x + 0.1), t, w),
    )


def test_custom_f1() -> None:
    p, t = torch.tensor([0.9, 0.1, 0.5, 0.3]), torch.tensor([1, 0, 1, 0])
    assert float(customloss.CustomF1Loss(beta=1)(p, t)) == pytest.approx(0.3567, abs=5e-5)
    precision, recall = 1.4 / (1.8 + 1e-10), 1.4 / (2 + 1e-10)
    for beta in (0.0, 0.3, 1.0):
        loss = customloss.CustomF1Loss(beta)(p.double().reshape(2, 2), t.reshape(2, 2))
        expected = -torch.tensor([precision, recall]).double().log()
        assert float(loss) == pytest.approx(float((1 - beta) * expected[0] + beta * expected[1]))
    everything = torch.ones(4, requires_grad=True)
    assert abs(float(customloss.CustomF1Loss()(everything, t).detach())) < 1e-9
    none = customloss.CustomF1Loss()(everything, torch.zeros(4))
    assert float(none.detach()) == pytest.approx(69.08, abs=0.01)
    assert not torch.autograd.grad(none, everything)[0].any()
    with pytest.raises(ValueError, match=r"^beta: expected a number in \[0, 1\]"):
        customloss.CustomF1Loss(beta=2.0)(p, t)


def test_custom_f1_counts_what_it_is_told_to() -> None:
    p = torch.tensor([[0.9, 0.1], [0.5, 0.3], [0.7, 0.2]], dtype=F64, requires_grad=True)
    t = torch.tensor([[1, 0], [255, 1], [0, 255]])
    w = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    counts = (t != 255) * w
    hits = (p * (t == 1), p * (t == 0), (1 - p) * (t == 1))
    tp, fp, fn = ((counts * each).sum() for each in hits)
    expected = -0.3 * (tp / (tp + fn)).log() - 0.7 * (tp / (tp + fp)).log()
    (wanted,) = torch.autograd.grad(expected, p)
    for loss in (
        customloss.custom_f1_loss(p, t, w, beta=0.3, ignore_index=255),
        customloss.CustomF1Loss(0.3, ignore_index=255)(p, t, w),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        (gradient,) = torch.autograd.grad(loss, p)
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=0)
        assert gradient[1, 0] == gradient[2, 1] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tversky", {"fp_weight": -0.1}), ("tversky", {"fn_weight": float("nan")}),
        ("tversky", {"smooth": -1.0}), ("jaccard", {"link": "log_cosh"}),
        ("focal_tversky", {"exponent": 0.0}), ("exp_log_dice", {"exponent": -1.0}),
        ("fowlkes_mallows", {"recall_weight": 1.1}), ("log_cosh_dice", {"smooth": -1.0}),
        ("mcc", {"average": "mean"}), ("mcc", {"absent": "ignore"}), ("mcc", {"link": "tanh"}),
        ("mcc", {"gamma": 2.0}), ("g_mean", {"reduction": "avg"}),
        ("generalized_dice", {"weighting": "cubic"}), ("generalized_dice", {"smooth": -1.0}),
    ],
)  # fmt: skip
def test_bad_values_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected"):
        customloss.loss(name, **options)(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize(
    "options", [{"average": 3}, {"samplewise": "yes"}, {"gamma": "1"}, {"logit_scale": None}]
)
def test_bad_types_are_named(options: dict[str, Any]) -> None:
    for name in ("tversky", "mcc"):
        with pytest.raises(TypeError, match=f"^{next(iter(options))}: expected"):
            customloss.loss(name, **options)(torch.zeros(4, 3), torch.zeros(4, 3))
    for changes in ({"input": [1.0]}, {"target": None}, {"weight": 0.5}):
        operands = {"input": torch.zeros(4), "target": torch.zeros(4), **changes}
        with pytest.raises(TypeError, match=f"^{next(iter(changes))}: expected"):
            customloss.mcc_loss(**operands)


# ---- fused and composed --------------------------------------------------------------------------


RATIO_SCORES = {"soft_f1": scores.fbeta, "tversky": scores.tversky}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", RATIO_SCORES)
def test_the_fused_operator_is_the_composed_path(name: str, option: str) -> None:
    """The composed route makes similarity and link of torch operations."""
    options = dict(OPTIONS[option])
    own = {"beta": options.pop("beta", 1.0)}
    if name == "tversky":
        own = {"fp_weight": 0.3, "fn_weight": 1.2}
    smooth = options.pop("smooth", 0.0)
    sides = (smooth, options.pop("smooth_denominator", smooth))
    case = Case("x", (6, 4, 3), target=None, weight="full")
    sample = case.build(F64)._replace(options={})
    if "activation" in options:
        sample = sample._replace(input=sample.input.sigmoid())

    def fused(*operands: Tensor) -> Tensor:
        return getattr(torch.ops.customloss, name)(
            *operands, **own, smooth=sides[0], smooth_denominator=sides[1], **options
        )

    def composed(*operands: Tensor) -> Tensor:
        score = formula.at(RATIO_SCORES[name], **own, smooth=sides)
        return customloss.confusion_loss(score, *operands, **options)

    expected, wanted = differentiated(fused, sample)
    loss, gradients = differentiated(composed, sample)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-15)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PLAIN)
def test_adding_nothing_changes_nothing(name: str) -> None:
    """A process group that adds nothing takes the route over ranks, with the same loss."""

    class Nothing(customloss.distributed.Adder):
        def total(self, sums: Tensor, options: object) -> Tensor:
            return sums

    for option in ("default", "micro", "weighted", "none", "skip", "penalize", "samplewise_skip",
                   "samplewise_weighted"):  # fmt: skip
        options = shared(option, name)
        sample = Case("few", (3, 4, 5)).build(F64)._replace(options={})
        loss, gradients = differentiated(
            customloss.loss(name, process_group=Nothing(), **options, **ANY_DATA), sample
        )
        expected, wanted = differentiated(customloss.loss(name, **options, **ANY_DATA), sample)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-15)


# ---- absent classes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SINGLE if n not in POOLED])
def test_absent(name: str) -> None:
    x = Case("x", (8, 3)).build(F64).input
    x = x.sigmoid() if name == "any" else x
    t = torch.rand(8, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    t[:, 1] = False

    def per_class(absent: str) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        loss = customloss.loss(name, absent=absent, average="none", reduction="none")(leaf, t)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    by_score, _ = per_class("score")
    skipped, gradient = per_class("skip")
    assert skipped[1] == 0
    assert not gradient[:, 1].any()
    penalized, gradient = per_class("penalize")
    offset = {"any": {"logit_scale": 73.0, "logit_offset": 0.5}}.get(name, {})
    _, fp, _, tn = customloss.confusion_sums(x, t, **offset)
    torch.testing.assert_close(penalized[1], (fp / (fp + tn))[1])
    assert gradient[:, 1].any()
    for own in (skipped, penalized):
        assert torch.equal(own[[0, 2]], by_score[[0, 2]])
    mean = customloss.loss(name, absent="skip")(x, t)
    torch.testing.assert_close(mean, by_score[[0, 2]].mean())


def test_absent_of_generalized_dice_is_about_all_classes() -> None:
    x, none = torch.randn(8, 3), torch.zeros(8, 3)
    some = none.clone()
    some[0, 0] = 1
    for t, counts in ((none, False), (some, True)):
        loss = customloss.generalized_dice_loss(x, t, absent="skip", average="micro")
        assert (loss != 0) == counts
        rate = customloss.generalized_dice_loss(x, t, absent="penalize")
        expected = x.sigmoid().mean() if not counts else customloss.generalized_dice_loss(x, t)
        torch.testing.assert_close(rate, expected)


# ---- the sums themselves -------------------------------------------------------------------------


def test_extended_sums() -> None:
    x, t, w = Case("x", (3, 4, 5), target=None, weight="full").build(F64).operands
    p = x.sigmoid()
    every = dict.fromkeys(scores.SUMS, True)
    sums = customloss.confusion_sums(x, t, w, focal_gamma=1.5, **every)
    assert isinstance(sums, customloss.ExtendedSums)
    hard, missed = (p > 0.5).to(F64), t * (1 - p) + (1 - t) * p
    expected = {
        "tp": t * p, "fp": (1 - t) * p, "fn": t * (1 - p), "tn": (1 - t) * (1 - p),
        "log_loss_pos": -t * p.log(), "log_loss_neg": -(1 - t) * (1 - p).log(), "p2": p * p,
        "t2": t * t, "tp2": t * p * p, "common": torch.minimum(p, t),
        "distance_pos": (p - t).clamp_min(0), "distance_neg": (t - p).clamp_min(0),
        "focal_pos": -t * missed**1.5 * p.log(),
        "focal_neg": -(1 - t) * missed**1.5 * (1 - p).log(),
        "support": t,
    }  # fmt: skip
    assert set(expected) == set(sums._fields) - {"hard"}, "a sum has no formula here"
    for name, share in expected.items():
        torch.testing.assert_close(getattr(sums, name), (w * share).sum((0, 2)))
    torch.testing.assert_close(sums.distance, (w * (p - t).abs()).sum((0, 2)))
    assert sums.focal is not None
    torch.testing.assert_close(sums.focal, sums.focal_pos + sums.focal_neg)
    shares = (t * hard, (1 - t) * hard, t * (1 - hard), (1 - t) * (1 - hard))
    for own, share in zip(sums.hard, shares, strict=True):
        torch.testing.assert_close(own, (w * share).sum((0, 2)))
    for kept, shape in (({"average": "micro"}, ()), ({"samplewise": True}, (3, 4)),
                        ({"average": "micro", "samplewise": True}, (3,))):  # fmt: skip
        some = customloss.confusion_sums(x, t, w, squares=True, dtype=torch.float32, **kept)
        assert some.p2.shape == some.tp.shape == shape
        assert some.p2.dtype == torch.float32
        assert some.hard is some.distance is some.focal is some.log_loss_pos is None
    assert type(customloss.confusion_sums(x, t, w)) is customloss.ConfusionSums


def test_hard_counts_are_counts() -> None:
    """They hold no graph, count beyond float32, and add up over batches."""
    x, t = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3) > 0.5
    counts = [customloss.confusion_sums(x, t, hard=True).hard for _ in range(3)]
    assert all(each.dtype == F64 and not each.requires_grad for one in counts for each in one)
    total = sum(counts)
    assert type(total) is customloss.ConfusionSums
    assert torch.equal(total.tp, 3 * counts[0].tp)
    assert torch.equal((counts[0] + counts[1]).fn, 2 * counts[0].fn)
    many = torch.ones(2**24 + 1, dtype=torch.bool)
    hard = customloss.confusion_sums(torch.full(many.shape, 3.0), many, hard=True).hard
    assert hard.tp == 2**24 + 1


def test_sums_of_two_batches() -> None:
    x, t = torch.randn(6, 3), torch.rand(6, 3) > 0.5
    parts = [customloss.confusion_sums(*part, squares=True, hard=True)
             for part in zip(x.split(2), t.split(2))]  # fmt: skip
    whole, total = customloss.confusion_sums(x, t, squares=True, hard=True), sum(parts)
    assert type(total) is customloss.ExtendedSums and total.focal is None
    for one, other in zip((*total[:4], total.p2, *total.hard), (*whole[:4], whole.p2, *whole.hard)):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match=r"^sums: expected the same sums of both batches"):
        parts[0] + customloss.confusion_sums(x, t, hard=True)
    with pytest.raises(TypeError):
        operator.add(customloss.confusion_sums(x, t), (1, 2, 3, 4))


def test_words_rows_and_floors_agree() -> None:
    assert reference.ROWS == scores.SUMS
    assert reference.SIMILARITY_FLOOR == scores.LOG_FLOOR


# ---- the operators ----------------------------------------------------------------------------


OWN = {"fp_weight": 0.3, "fn_weight": 0.7}


@covering
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", cases.FEW[:8], ids=str)
def test_opcheck(case: Case, requires_grad: bool) -> None:
    sample = case.build(F64, requires_grad=requires_grad)
    torch.library.opcheck(tversky.default, sample.operands, {**sample.options, **OWN})


def test_every_ratio_is_an_operator() -> None:
    for name, parameters in spec_options.PARAMETERS.items():
        schema = getattr(torch.ops.customloss, name).default._schema
        own = {a.name: a.default_value for a in schema.arguments if a.kwarg_only}
        assert own == {**parameters, **spec_options.LOSS}
        x = torch.randn(5, 3, requires_grad=True)
        assert getattr(torch.ops.customloss, name)(x, torch.ones(5, 3)).grad_fn is not None


def leaves_of(case: Case) -> tuple[Tensor, ...]:
    return case.build(F64, requires_grad=True).operands


CHECKED = [
    (name, option)
    for option in ("default", "weighted", "samplewise_groups", "penalize")
    for name in NAMES
    # these families share all but a few operations, so they get one option each
    if (
        family(name) not in ("compound_presets", "extra_sums")
        or option == ("weighted" if name in COMPOUND else "default")
    )
    # a pointwise loss has no groups
    and (family(name) != "pointwise" or option != "samplewise_groups")
]  # fmt: skip


@one_of_each(lambda name: name, lambda option: option)
@pytest.mark.parametrize(("name", "option"), CHECKED)
def test_gradcheck(name: str, option: str) -> None:
    loss = customloss.loss(name, **shared(option, name), **ANY_DATA)
    if name == "generalized_dice":  # weights that follow the support are constants to autograd
        loss = customloss.loss(name, weighting="uniform", **shared(option, name), **ANY_DATA)
    x, t, w = (each.detach().requires_grad_() for each in leaves_of(
        Case("x", (4, 3), target=None, weight="full")))  # fmt: skip
    if name in PROBABILITIES:
        x = (0.5 + 0.02 * x.detach().tanh()).requires_grad_()
    w = (w.detach() + 0.1).requires_grad_()
    assert gradcheck(loss, (x, t, w), check_forward_ad=True, check_undefined_grad=True,
                     check_grad_dtypes=True, nondet_tol=0.0)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["tversky", "focal_tversky", "mcc", "fowlkes_mallows", "squared_dice", "semimetric_tversky",
     "weighted_log", *COMPOUND],
)  # fmt: skip
def test_gradgradcheck(name: str) -> None:
    x, t, w = leaves_of(Case("x", (3, 2), target=None, weight="full"))
    w = (w.detach() + 0.1).requires_grad_()
    assert gradgradcheck(customloss.loss(name, **ANY_DATA), (x, t, w), nondet_tol=0.0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "custom_f1"])
def test_vmap(name: str) -> None:
    loss = customloss.loss(name, **ANY_DATA)
    x, t = torch.randn(3, 5, 4, dtype=F64), torch.rand(3, 5, 4) < 0.5
    expected = torch.stack([loss(a, b) for a, b in zip(x, t)])
    torch.testing.assert_close(torch.vmap(loss)(x, t), expected)
    across = torch.vmap(torch.func.grad(loss), (1, None))(x.transpose(0, 1), t[0])
    wanted = torch.stack([torch.func.grad(loss)(a, t[0]) for a in x])
    torch.testing.assert_close(across, wanted)
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(wanted[0], torch.autograd.grad(loss(leaf, t[0]), leaf)[0])


# One of the losses that share most operations is enough; test_compound.py has the compounds.
COMPILED = [n for n in NAMES if n not in (*COMPOUND, "semimetric_dice", "semimetric_jaccard")]


@one_of_each(family)
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    module = customloss.loss(name, **ANY_DATA)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((6, 4), (9, 4), (9, 7)):
            sample = Case("x", shape, target=None, weight="class").build(F64)
            x = sample.input.sigmoid() if name == "custom_f1" else sample.input
            sample = sample._replace(input=x)
            loss, gradients = differentiated(compiled, sample)
            expected, wanted = differentiated(module, sample)
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-15)
