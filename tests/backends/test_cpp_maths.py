"""The header maths of csrc agrees with NumPy for one element, one group and all groups."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from score_cases import Case, coefficients_by_formula, loss_by_formula, product

from customloss._spec.words import ABSENT, AVERAGES, FUSED_LINKS, REDUCTIONS, WRT

pytest_plugins = ["cpp_build"]


def ulps(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The error in units of the last place of `found`'s type; `expected` is more precise."""
    unit = np.spacing(np.abs(expected).astype(found.dtype))
    return np.abs(found - expected) / unit


# ---- one element: exp_minus, probability ---------------------------------------------------


def test_exp_minus_float32(maths: Any) -> None:
    """The bound that element.h states, over every binade and the whole range."""
    smallest = np.finfo(np.float32).tiny
    a = np.concatenate(
        [np.linspace(0, 87.3, 2_000_003), np.geomspace(1e-38, 87.3, 300_007), np.arange(88.0)]
    ).astype(np.float32)
    expected = np.exp(-a.astype(np.float64))
    normal = expected >= smallest
    found = maths.exp_minus(a)
    assert (np.abs(found - expected) / expected)[normal].max() < 2e-7
    assert ulps(found, expected)[normal].max() <= 3.0


def test_exp_minus_float64(maths: Any) -> None:
    a = np.concatenate([np.linspace(0, 707.9, 1_000_003), np.geomspace(1e-300, 707.9, 100_003)])
    expected = np.exp(-a.astype(np.longdouble))
    assert ulps(maths.exp_minus(a), expected).max() <= 2.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_minus_at_its_ends(maths: Any, dtype: type) -> None:
    def at(*values: float) -> np.ndarray:
        return maths.exp_minus(np.array(values, dtype))

    assert at(0.0)[0] == 1.0
    assert at(-0.0)[0] == 1.0
    assert (at(1e4, 1e30, np.inf) == 0.0).all(), "exactly 0, no subnormal left over"
    assert np.isnan(at(np.nan)).all()
    assert at(np.finfo(dtype).smallest_subnormal)[0] == 1.0
    # A result that would be subnormal is flushed, to 0 or to nearly the smallest normal number.
    end = np.linspace(80, 120, 40_001) if dtype is np.float32 else np.linspace(700, 760, 60_001)
    found = maths.exp_minus(end.astype(dtype))
    assert (np.diff(found) <= 0).all(), "decreasing across the end of the range"
    assert ((found == 0) | (found >= 0.5 * np.finfo(dtype).tiny)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.5, -0.75), (-1.0, 3.0)])
def test_sigmoid(maths: Any, dtype: type, scale: float, offset: float) -> None:
    x = np.linspace(-25, 25, 200_001).astype(dtype)  # |z| < 70: no result is subnormal
    wide = np.float64 if dtype is np.float32 else np.longdouble
    # The kernel rounds scale (x - offset) once or twice; what follows is judged from that z.
    z = (dtype(scale) * (x - dtype(offset))).astype(wide)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    found = maths.probability(x, scale, offset)
    assert ulps(found[0], p).max() <= 5  # 3 of exp_minus, 2 roundings
    assert ulps(found[1], q).max() <= 5, "the complement has its own digits, it is not 1 - p"
    np.testing.assert_allclose(found[2], scale * p * q, rtol=8 * np.finfo(dtype).eps)
    assert np.abs(found[0].astype(wide) + found[1] - 1).max() <= np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_of_extreme_logits(maths: Any, dtype: type) -> None:
    x = np.array([np.inf, 1e4, 0.0, -1e4, -np.inf, np.nan], dtype)
    p, q, slope = maths.probability(x)
    np.testing.assert_array_equal(p, [1, 1, 0.5, 0, 0, np.nan])
    np.testing.assert_array_equal(q, [0, 0, 0.5, 1, 1, np.nan])
    np.testing.assert_array_equal(slope, [0, 0, 0.25, 0, 0, np.nan])
    # Here 1 - p would have lost every digit.
    twenty = np.array([20.0], dtype)
    np.testing.assert_allclose(maths.probability(twenty)[1], np.exp(-20.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_activation(maths: Any, dtype: type) -> None:
    x = np.linspace(0, 1, 1001).astype(dtype)
    p, q, slope = maths.probability(x, sigmoid=False)
    np.testing.assert_array_equal(p, x)
    np.testing.assert_array_equal(q, 1 - x)
    np.testing.assert_array_equal(slope, np.ones_like(x))


# ---- one element: share, gradient ----------------------------------------------------------


def elements(dtype: type, hard: bool, seed: int = 0) -> tuple[np.ndarray, ...]:
    """p, q, t, w and dp/dx of 257 elements, some of weight 0."""
    random = np.random.default_rng(seed)
    p = random.uniform(0, 1, 257).astype(dtype)
    t = random.uniform(0, 1, 257)
    t = (t > 0.6 if hard else t).astype(dtype)
    w = np.where(random.uniform(0, 1, 257) < 0.2, 0, random.uniform(-1, 3, 257)).astype(dtype)
    return p, 1 - p, t, w, p * (1 - p)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_share(maths: Any, dtype: type, weighted: bool, hard: bool) -> None:
    p, q, t, w, _ = elements(dtype, hard)
    found = maths.share(p, q, t, w if weighted else None, hard)
    by = w.astype(np.float64) if weighted else 1.0
    p, q, t = (array.astype(np.float64) for array in (p, q, t))
    expected = np.stack([by * t * p, by * (1 - t) * p, by * t * q, by * (1 - t) * q])
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("wrt", WRT)
def test_weight_zero_removes_an_element(maths: Any, wrt: str, hard: bool) -> None:
    bad = np.array([np.nan, np.inf, -np.inf], np.float32)
    t, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert (maths.share(bad, bad, t, zero, hard) == 0).all()
    if wrt != "weight":
        prob = np.stack([bad, bad, bad])
        found = maths.gradient(WRT.index(wrt), prob, t, zero, [1.0, 2.0, 3.0, 4.0], hard)
        assert (found == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("wrt", WRT)
def test_gradient_is_the_derivative_of_the_shares(
    maths: Any, dtype: type, weighted: bool, hard: bool, wrt: str
) -> None:
    p, q, t, w, slope = elements(dtype, hard)
    by = np.array([0.7, -1.3, 0.4, 2.1])
    found = maths.gradient(
        WRT.index(wrt), np.stack([p, q, slope]), t, w if weighted else None, list(by), hard
    )
    p, q, t, w, slope = (array.astype(np.float64) for array in (p, q, t, w, slope))
    w = w if weighted else np.ones_like(w)
    # d(tp, fp, fn, tn) by the operand, written out from the definition of the sums
    derivative = {
        "input": [w * t * slope, w * (1 - t) * slope, -w * t * slope, -w * (1 - t) * slope],
        "target": [w * p, -w * p, w * q, -w * q],
        "weight": [t * p, (1 - t) * p, t * q, (1 - t) * q],
    }[wrt]
    expected = by @ np.stack(derivative)
    np.testing.assert_allclose(found, expected, rtol=0, atol=32 * np.finfo(dtype).eps)


# ---- one group -----------------------------------------------------------------------------

F1, F2, TVERSKY = (2.0, 1.0, 1.0), (5.0, 1.0, 4.0), (1.0, 0.3, 0.7)
WEIGHTS = {"f1": F1, "f2": F2, "jaccard": (1.0, 1.0, 1.0), "tversky": TVERSKY}
SUMS = [(3.0, 1.5, 2.25, 7.0), (1e-6, 2.0, 3.0, 1.0), (1e9, 1e-3, 1e-4, 5.0), (0.0, 1.0, 2.0, 3.0)]


def score(
    weights: tuple[float, ...],
    link: str,
    smooth: float = 0.0,
    gamma: float = 1.0,
    absent: str = "score",
    smooth_denominator: float | None = None,
    log_floor: float = 1e-30,
) -> tuple[Any, ...]:
    denominator = smooth if smooth_denominator is None else smooth_denominator
    words = FUSED_LINKS.index(link), ABSENT.index(absent)
    return (*weights, smooth, denominator, gamma, log_floor, *words)


def expected_loss(weights: tuple[float, ...], link: str, smooth: float, gamma: float, sums: Any):
    """The loss by its definition, in the widest type."""
    tp, fp, fn = (np.longdouble(value) for value in sums[:3])
    hit, miss = weights[0] * tp + smooth, weights[1] * fp + weights[2] * fn
    similarity, complement = hit / (hit + miss), miss / (hit + miss)
    if link == "log":
        return np.log1p(miss / hit) if similarity >= 1e-30 else -np.log(np.longdouble(1e-30))
    return {
        "complement": complement,
        "focal": complement**gamma,
        "negative": -similarity,
    }[link]


@pytest.mark.parametrize("sums", SUMS, ids=str)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_group_loss(
    maths: Any, weights: tuple[float, ...], link: str, smooth: float, sums: tuple[float, ...]
) -> None:
    gamma = 0.75 if link == "focal" else 1.0
    value, _, support, counted = maths.group(score(weights, link, smooth, gamma), sums)
    expected = float(expected_loss(weights, link, smooth, gamma, sums))
    assert value == pytest.approx(expected, rel=1e-14)
    assert support == sums[0] + sums[2]
    assert counted


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_group_gradient_is_the_derivative(
    maths: Any, weights: tuple[float, ...], link: str, smooth: float
) -> None:
    gamma = 2.5 if link == "focal" else 1.0
    for sums in SUMS[:2]:
        _, found, _, _ = maths.group(score(weights, link, smooth, gamma), sums)
        for i in range(4):
            step = np.longdouble(max(sums[i], 1e-6)) * np.longdouble(1e-5)
            up, down = list(map(np.longdouble, sums)), list(map(np.longdouble, sums))
            up[i] += step
            down[i] -= step
            slope = expected_loss(weights, link, smooth, gamma, up)
            slope = (slope - expected_loss(weights, link, smooth, gamma, down)) / (2 * step)
            assert found[i] == pytest.approx(float(slope), rel=1e-7, abs=1e-12), (sums, i)


def test_near_a_perfect_score_no_digit_is_lost(maths: Any) -> None:
    """1 - 2 tp / (p + t) would be 0 here."""
    value, _, _, _ = maths.group(score(F1, "complement"), (1e9, 1e-12, 2e-12, 0.0))
    assert value == pytest.approx(3e-12 / (2e9 + 3e-12), rel=1e-15)


@pytest.mark.parametrize("link", FUSED_LINKS)
def test_an_empty_group_predicted_empty_is_perfect(maths: Any, link: str) -> None:
    value, grad, support, counted = maths.group(score(F1, link), (0.0, 0.0, 0.0, 9.0))
    assert value == (-1.0 if link == "negative" else 0.0)
    assert grad == [0.0] * 4
    assert support == 0.0
    assert counted


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradient_of_a_perfect_group_is_finite(maths: Any, gamma: float) -> None:
    value, grad, _, _ = maths.group(score(F1, "focal", gamma=gamma), (5.0, 0.0, 0.0, 1.0))
    assert value == 0.0
    assert np.isfinite(grad).all()


def test_log_without_any_hit_stays_finite(maths: Any) -> None:
    value, grad, _, _ = maths.group(score(F1, "log"), (0.0, 3.0, 4.0, 1.0))
    assert value == pytest.approx(30 * np.log(10), rel=1e-15)
    assert grad == [0.0] * 4  # a floored similarity does not change


def test_absent(maths: Any) -> None:
    sums = (0.0, 2.0, 0.0, 6.0)
    value, grad, _, counted = maths.group(score(F1, "complement", absent="score"), sums)
    assert (value, counted) == (1.0, True)
    value, grad, _, counted = maths.group(score(F1, "complement", absent="skip"), sums)
    assert (value, grad, counted) == (0.0, [0.0] * 4, False)
    value, grad, _, counted = maths.group(score(F1, "complement", absent="penalize"), sums)
    # the soft false-positive rate, fp / (fp + tn)
    assert (value, counted) == (0.25, True)
    assert grad == pytest.approx([0.0, 6 / 64, 0.0, -2 / 64])
    # with a positive target none of the three matters
    present = (1.0, 2.0, 0.5, 6.0)
    assert len({repr(maths.group(score(F1, "log", absent=a), present)) for a in ABSENT}) == 1


@pytest.mark.parametrize("link", FUSED_LINKS)
def test_nan_and_inf_pass_through_a_group(maths: Any, link: str) -> None:
    assert np.isnan(maths.group(score(F1, link), (np.nan, 1.0, 1.0, 1.0))[0])
    assert np.isnan(maths.group(score(F1, link, gamma=2.0), (1.0, np.nan, 1.0, 1.0))[0])


# ---- all groups ----------------------------------------------------------------------------


def expected_average(
    losses: np.ndarray, support: np.ndarray, counted: np.ndarray, average: str, reduction: str
) -> np.ndarray:
    """The loss from losses of groups, ``[samples, classes]``, as documented."""
    if average == "none":
        kept, mask = losses, counted
    else:
        weight = counted * (support if average == "weighted" else 1.0)
        total = weight.sum(1)
        mask = total > 0
        kept = np.where(mask, (weight * losses).sum(1) / np.where(mask, total, 1.0), 0.0)
    if reduction == "none":
        return np.where(mask, kept, 0.0).ravel()
    total = np.where(mask, kept, 0.0).sum()
    return np.array([total if reduction == "sum" else total / max(mask.sum(), 1)])


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_average(maths: Any, average: str, reduction: str, absent: str) -> None:
    sums = np.random.default_rng(1).uniform(0.1, 5, (4, 3, 4))
    sums[[0, 2], 1, 2] = 0.0  # one group without positives
    sums[[0, 2], 2, :] = 0.0  # a whole sample without positives
    how = score(F1, "complement", absent=absent)

    def loss_of(sums: np.ndarray) -> np.ndarray:
        groups = np.array(
            [[maths.group(how, tuple(sums[:, s, c])) for c in range(4)] for s in range(3)],
            dtype=object,
        )
        losses, support, counted = (groups[..., i].astype(float) for i in (0, 2, 3))
        return expected_average(losses, support, counted.astype(bool), average, reduction)

    codes = AVERAGES.index(average), REDUCTIONS.index(reduction)
    found, grads = maths.average(how, *codes, sums)
    expected = loss_of(sums)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    # The gradient of the sum of all losses is compared with central differences. Groups without
    # positives are left out: they sit on a kink, where a difference would mix the two sides.
    for i, s, c in itertools.product(range(4), range(2), range(4)):
        if sums[0, s, c] == 0.0:
            continue
        up, down = sums.copy(), sums.copy()
        up[i, s, c] += 1e-6
        down[i, s, c] -= 1e-6
        slope = (loss_of(up).sum() - loss_of(down).sum()) / 2e-6
        assert grads[i, s, c] == pytest.approx(slope, rel=1e-6, abs=1e-9), (i, s, c)


def test_a_mean_over_nothing_is_zero(maths: Any) -> None:
    sums = np.zeros((4, 2, 3))
    how = score(F1, "complement", absent="skip")
    for average, reduction in itertools.product(range(3), range(3)):
        found, grads = maths.average(how, average, reduction, sums)
        assert not np.any(found)
        assert not grads.any()


# ---- all groups, and a pointwise loss beside them ------------------------------------------------


def compound(maths: Any, case: Case) -> tuple[np.ndarray, np.ndarray]:
    weight = None if case.class_weight is None else case.class_weight.numpy()
    losses, grads = maths.compound(
        case.scoring[:9], *case.scoring[9:], case.extra, case.pointwise, case.sums.numpy(), weight
    )
    return np.array(losses), grads


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compound(maths: Any, average: str, reduction: str) -> None:
    for link, every in zip(FUSED_LINKS, (41, 43, 47, 53)):
        for name, case in list(product(average, reduction, link))[::every]:
            losses, grads = compound(maths, case)
            expected = loss_by_formula(case, case.sums.numpy()).ravel()
            np.testing.assert_allclose(losses, expected, rtol=1e-12, err_msg=name)
            slopes = coefficients_by_formula(case)
            least = 1e-13 * np.abs(slopes).max()
            np.testing.assert_allclose(grads, slopes, rtol=1e-12, atol=least, err_msg=name)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compound_of_nothing_more_is_the_average(maths: Any, average: str, reduction: str) -> None:
    """Rows that are not read change nothing.

    The two functions are compiled apart, so products may be fused differently.
    """
    for _, case in product(average, reduction, "complement"):
        if any(case.pointwise[1:4]) or case.class_weight is not None:
            continue
        case = case._replace(pointwise=case.pointwise._replace(score_weight=1.0))
        losses, grads = compound(maths, case)
        four = np.ascontiguousarray(case.sums.numpy()[:4])
        expected, by_four = maths.average(case.scoring[:9], *case.scoring[9:], four)
        np.testing.assert_allclose(losses, expected, rtol=1e-15)
        np.testing.assert_allclose(grads[:4], by_four, rtol=1e-13, atol=1e-16)
        assert not grads[4:].any()


def test_compound_leaves_its_sums(maths: Any) -> None:
    for _, case in product("weighted", "none", "log"):
        copy = case.sums.clone()
        compound(maths, case)
        assert case.sums.equal(copy)
