"""The operator is as near to the reference as its dtype allows, and no worse than eager."""

from __future__ import annotations

import itertools

import cases
import numpy as np
import pytest
import torch
from cases import INPUT_DTYPES, OPTIONS, TARGET_DTYPES, Case, Sample, of_function, short
from judge import assert_near, reference_loss, soft_f1
from selection import covering
from torch import Tensor

import customloss
from customloss import reference
from customloss._spec import options as spec_options


def check(case: Case, dtype: torch.dtype) -> None:
    sample = case.build(dtype)
    loss = soft_f1(*sample.operands, **sample.options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(loss, reference_loss(sample), dtype, str(case))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*cases.SIZES, cases.FLUSHED), ids=str)
def test_sizes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*cases.MIXED_LAYOUTS, *cases.WEIGHTED), ids=str)
def test_weights_and_layouts(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.TARGETS, ids=str)
def test_target_dtypes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.OPTIONED, ids=str)
def test_options(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("option", ["micro", "samplewise_groups", "samplewise_micro"])
def test_options_by_layout(option: str, layout: str) -> None:
    for shape in ((5, 4), (3, 4, 70), (2, 3, 4, 5)):
        check(
            Case("x", shape, layout=layout, target=None, weight="full", weight_layout=layout,
                 options=OPTIONS[option]),
            torch.float32,
        )  # fmt: skip


@pytest.mark.parametrize("target", TARGET_DTYPES, ids=short)
def test_hard_targets_agree_whatever_their_dtype(target: torch.dtype) -> None:
    """0 and 1 are the same numbers in every dtype, so the loss differs by rounding at most."""
    sample = Case("one", (300, 5)).build()
    expected = soft_f1(sample.input, sample.target)
    assert_near(soft_f1(sample.input, sample.target.to(target)), expected.double(), torch.float32)


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("average", ["macro", "micro", "none"])
def test_confusion_sums(average: str, samplewise: bool, dtype: torch.dtype) -> None:
    for case in (
        Case("rows", (33, 5), target=None, weight="class"),
        Case("images", (3, 2, 9, 7), layout="class_last", weight="full"),
        Case("vector", (1100,), target=torch.int16),
    ):
        sample = case.build(dtype)
        wide = sample.as_double()
        sums = customloss.confusion_sums(*sample.operands, average=average, samplewise=samplewise)
        raw = torch.ops.customloss.confusion_sums(
            *sample.operands, average=average, samplewise=samplewise
        )
        per_class = average != "micro" and sample.input.dim() > 1
        expected = reference.confusion(*wide.operands, "sigmoid", 1.0, 0.0, samplewise, per_class)
        assert raw.dtype == torch.float64
        assert_near(raw, expected, dtype)
        kept = [sample.input.shape[0]] if samplewise else []
        kept += [sample.input.shape[1]] if per_class else []
        for own, wanted in zip(sums, expected):
            assert own.shape == torch.Size(kept)
            assert own.dtype == reference.accumulator(sample.input)
            assert_near(own, wanted.reshape(kept), dtype)
        doubles = customloss.confusion_sums(*sample.operands, dtype=torch.float64)
        assert doubles.tp.dtype == torch.float64


def test_the_module_and_the_function_are_the_operator() -> None:
    sample = Case("one", (6, 4), target=None, weight="full", options=OPTIONS["everything"]).build()
    expected = soft_f1(*sample.operands, **sample.options)
    by_function = customloss.soft_f1_loss(*sample.operands, **sample.options)
    by_module = customloss.SoftF1Loss(**sample.options)(*sample.operands)
    assert torch.equal(by_function, expected)
    assert torch.equal(by_module, expected)


def test_the_module_knows_every_option_of_the_function() -> None:
    import inspect

    function = inspect.signature(customloss.soft_f1_loss).parameters
    module = inspect.signature(customloss.SoftF1Loss).parameters
    options = {n: p.default for n, p in function.items() if n not in ("input", "target", "weight")}
    # a module, unlike a function, has a first batch
    of_module = {**options, "check_target": "once"}
    assert {n: p.default for n, p in module.items()} == of_module
    schema = torch.ops.customloss.soft_f1.default._schema
    own = {a.name: a.default_value for a in schema.arguments if a.kwarg_only}
    # Options that act on the sums of the classes, or outside the operator, are not in its schema.
    for name in (*spec_options.CLASSES, "check_target", "process_group"):
        del options[name]
    assert own.pop("smooth_denominator") is None  # functions take a pair of numbers for smooth
    assert own == options


@pytest.mark.parametrize("option", OPTIONS)
def test_the_module_passes_every_option_on(option: str) -> None:
    options = OPTIONS[option]
    sample = Case("one", (6, 4), target=None, options=options).build()
    loss = customloss.SoftF1Loss(**of_function(options))(sample.input, sample.target)
    assert torch.equal(loss, soft_f1(sample.input, sample.target, **options))


# ---- the error budget ----------------------------------------------------------------------------


def eager(input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The usual implementation: the formula in PyTorch, in the dtype of the input."""
    p = input.sigmoid()
    t = target.to(p.dtype)
    w = torch.ones_like(p) if weight is None else weight.to(p.dtype)
    dims = [dim for dim in range(p.dim()) if dim != 1]
    tp, fp, fn = ((w * share).sum(dims) for share in (t * p, (1 - t) * p, t * (1 - p)))
    return ((fp + fn) / (2 * tp + fp + fn)).mean()


def exact(sample: Sample) -> tuple[np.longdouble, np.ndarray]:
    """The same loss and its gradient in extended precision, which can judge float64 too."""
    wide = sample.as_double()
    x, t = (tensor.numpy().astype(np.longdouble) for tensor in (wide.input, wide.target))
    w = np.ones_like(x) if wide.weight is None else wide.weight.numpy().astype(np.longdouble)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    shares = (w * t * p, w * (1 - t) * p, w * t * q)
    tp, fp, fn = (share.sum(axes, keepdims=True) for share in shares)
    whole = 2 * tp + fp + fn
    by_tp, by_miss = -2 * (fp + fn) / whole**2, 2 * tp / whole**2
    gradient = w * p * q * (t * (by_tp - by_miss) + (1 - t) * by_miss) / x.shape[1]
    return ((fp + fn) / whole).mean(), gradient


@covering
@pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="numpy's longdouble is float64 on this platform"
)
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize(
    "case",
    (
        Case("rows", (700, 5), target=None),
        Case("weighted", (300, 7), weight="full"),
        Case("long", (70000, 2)),
        Case("images", (2, 3, 40, 40), target=None),
        Case("classes-last", (2, 3, 40, 40), layout="class_last"),
    ),
    ids=str,
)
def test_error_budget(case: Case, dtype: torch.dtype) -> None:
    """The error is at most twice that of eager PyTorch in the same dtype, plus one rounding.

    Eager may hit a single loss by luck, so the largest errors over several seeds are compared.
    """
    worst = {"own loss": 0.0, "eager loss": 0.0, "own gradient": 0.0, "eager gradient": 0.0}
    for seed in range(12):
        sample = case.build(dtype, seed=seed)
        loss, gradient = exact(sample)
        largest = np.abs(gradient).max()
        for who, op in (("own", soft_f1), ("eager", eager)):
            input = sample.input.detach().requires_grad_()
            own = op(input, sample.target, sample.weight)
            (by_input,) = torch.autograd.grad(own, input)
            off = abs(float(own.detach()) - loss) / loss
            worst[f"{who} loss"] = max(worst[f"{who} loss"], float(off))
            off = np.abs(by_input.double().numpy() - gradient).max() / largest
            worst[f"{who} gradient"] = max(worst[f"{who} gradient"], float(off))
    unit = torch.finfo(reference.accumulator(sample.input)).eps / 2
    assert worst["own loss"] <= 2 * worst["eager loss"] + unit, worst
    unit = torch.finfo(dtype).eps / 2
    assert worst["own gradient"] <= 2 * worst["eager gradient"] + unit, worst


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_every_finite_logit(dtype: torch.dtype) -> None:
    """The probability alone, with one element per group, from subnormal to overflow."""
    info = torch.finfo(dtype)
    powers = torch.logspace(-30, 9, 400, base=2, dtype=torch.float64)
    near = torch.linspace(-90, 90, 3001, dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, info.tiny, info.max, info.min, 87.5, 88.8], dtype=near.dtype)
    logits = torch.cat([powers, -powers, near, special]).to(dtype)
    ones = torch.ones_like(logits)
    sums = torch.ops.customloss.confusion_sums(logits, ones, samplewise=True)
    tp, fp, fn, tn = sums[:, :, 0]
    p, q = torch.sigmoid(logits.double()), torch.sigmoid(-logits.double())
    # e^-a is flushed to 0 where it would be subnormal.
    floor = {torch.float64: 1e-307}.get(dtype, 2e-38)
    relative = 1e-14 if dtype == torch.float64 else 5e-7
    torch.testing.assert_close(tp, p, rtol=relative, atol=floor)
    torch.testing.assert_close(fn, q, rtol=relative, atol=floor)
    assert not fp.any() and not tn.any()


def test_option_products() -> None:
    """All combinations of average, reduction, absent and link agree to 13 digits in float64."""
    sample = Case("few", (3, 4, 2), target=torch.bool, weight="full").build(torch.float64)
    none = sample._replace(target=torch.zeros_like(sample.target))
    for average, samplewise, reduction, absent, link in itertools.product(
        ("macro", "micro", "weighted", "none"),
        (False, True),
        ("mean", "sum", "none"),
        ("score", "skip", "penalize"),
        ("complement", "log", "focal", "negative"),
    ):
        options = {
            "average": average, "samplewise": samplewise, "reduction": reduction,
            "absent": absent, "link": link, "gamma": 1.3 if link == "focal" else 1.0,
        }  # fmt: skip
        for one in (sample, none):
            loss = soft_f1(*one.operands, **options)
            expected = reference.soft_f1(*one.operands, **options)
            torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-15, msg=f"{options}")
