"""The maths of csrc/pixel.h agrees with NumPy: logarithms, powers, sums and derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from probabilities import coefficients, ends, slopes

from customloss import reference
from customloss._spec.words import WRT

pytest_plugins = ["cpp_build"]

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
GAMMAS = pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
# The relative errors that the header states, or a few roundings.
EVERY = int(sum(reference.Extra))
BOUND = {np.float32: 2e-7, np.float64: 5e-16}


def wider(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64 if values.dtype == np.float32 else np.longdouble)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error."""
    return float((np.abs(found - expected) / np.abs(expected)).max())


@DTYPES
def test_log(maths: Any, dtype: type) -> None:
    """The bound holds in every binade, and around 1, where the logarithm is 0."""
    tiny, most = np.finfo(dtype).tiny, np.finfo(dtype).max
    y = np.concatenate([
        np.geomspace(tiny, most / 2, 400_003), np.linspace(0.5, 2.0, 400_003),
        1 + np.geomspace(1e-7, 0.3, 50_001), 1 - np.geomspace(1e-7, 0.3, 50_001),
    ]).astype(dtype)  # fmt: skip
    y = y[(y != 1) & np.isfinite(y)]
    assert off(maths.log_of(y), np.log(wider(y))) < BOUND[dtype]
    assert maths.log_of(np.ones(1, dtype))[0] == 0
    # The logarithm of a subnormal number only has to be large.
    least = np.array([np.finfo(dtype).smallest_subnormal], dtype)
    assert -800 < maths.log_of(least)[0] < -87


@DTYPES
def test_log1p(maths: Any, dtype: type) -> None:
    u = np.concatenate([np.geomspace(1e-30, 1, 300_001), np.linspace(0, 2000, 100_003)[1:]])
    u = u.astype(dtype)
    assert off(maths.log1p_of(u), np.log1p(wider(u))) < 2 * BOUND[dtype]
    assert maths.log1p_of(np.zeros(1, dtype))[0] == 0


@DTYPES
@GAMMAS
def test_power(maths: Any, dtype: type, gamma: float) -> None:
    base = np.concatenate([np.linspace(0, 1, 100_001)[1:], np.geomspace(1e-10, 1, 100_001)])
    base = base.astype(dtype)
    expected = wider(base) ** gamma
    # The logarithm is rounded before it is multiplied, so the error grows with gamma |log base|.
    size = 1 + gamma * np.abs(np.log(wider(base)))
    error = np.abs(maths.power_of(base, gamma) - expected) / expected
    assert (error / size).max() < BOUND[dtype]
    ends = maths.power_of(np.array([0.0, 1.0], dtype), gamma)
    assert ends[0] == (1 if gamma == 0 else 0)
    assert ends[1] == 1


@DTYPES
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.5, -0.75), (-1.0, 3.0)])
def test_outcome_of_a_logit(maths: Any, dtype: type, scale: float, offset: float) -> None:
    x = np.linspace(-25, 25, 100_001).astype(dtype)
    z = wider(dtype(scale) * (x - dtype(offset)))
    p, q, positive, negative, decided = maths.outcome(x, scale, offset)
    bound = 5 * BOUND[dtype]
    assert off(p, 1 / (1 + np.exp(-z))) < bound
    assert off(q, 1 / (1 + np.exp(z))) < bound
    assert off(positive, np.logaddexp(0, -z)) < bound, "-log p has the digits of a small one"
    assert off(negative, np.logaddexp(0, z)) < bound
    sure = np.abs(z) > 1e-6  # next to 1/2 rounding decides
    np.testing.assert_array_equal(decided[sure], z[sure] > 0)


@DTYPES
def test_outcome_at_its_ends(maths: Any, dtype: type) -> None:
    x = np.array([np.inf, -np.inf, 0.0, np.nan, 1e4, -1e4], dtype)
    p, q, positive, negative, decided = maths.outcome(x)
    np.testing.assert_array_equal(p, [1, 0, 0.5, np.nan, 1, 0])
    np.testing.assert_array_equal(q, [0, 1, 0.5, np.nan, 0, 1])
    np.testing.assert_allclose(positive, [0, np.inf, np.log(2), np.nan, 0, 1e4], rtol=1e-6)
    np.testing.assert_allclose(negative, [np.inf, 0, np.log(2), np.nan, 1e4, 0], rtol=1e-6)
    np.testing.assert_array_equal(decided, [1, 0, 0, 0, 1, 0])
    # Logarithms of probabilities have a floor.
    p, q, positive, negative, _ = maths.outcome(np.array([0.0, 1.0, 0.25], dtype), sigmoid=False)
    floor = -np.log(reference.PROBABILITY_FLOOR)
    np.testing.assert_allclose(positive, [floor, 0, np.log(4)], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(negative, [0, floor, -np.log(0.75)], rtol=1e-6, atol=1e-30)


# ---- every sum -----------------------------------------------------------------------------------


def elements(dtype: type, sigmoid: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(0, 3, 257) if sigmoid else random.uniform(0.01, 0.99, 257)
    t = np.where(random.uniform(0, 1, 257) < 0.5, random.uniform(0, 1, 257) > 0.5,
                 random.uniform(0, 1, 257))  # fmt: skip
    return x.astype(dtype), t.astype(dtype)


SMOOTHINGS = pytest.mark.parametrize("smoothing", [(1, 0, 1, 0), (0.9, 0.05, 0.75, 0.25)])
FORMS = pytest.mark.parametrize("split", [False, True])


def expected_shares(
    x: np.ndarray, given: np.ndarray, gamma: float, sigmoid: bool, split: bool, smoothing: Any
) -> np.ndarray:
    """The sums by their definitions, in the order of ``reference.rows``."""
    p, q = (1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))) if sigmoid else (x, 1 - x)
    on, off, log_on, log_off = smoothing
    t, log_t = given * (on - off) + off, given * (log_on - log_off) + log_off
    u, missed, alarm = 1 - t, -np.log(p), -np.log(q)
    one, other = (q, p) if split else (t * q + u * p,) * 2
    hit = p > 0.5
    found = {
        "tp": t * p, "fp": u * p, "fn": t * q, "tn": u * q,
        "log_loss_pos": log_t * missed, "log_loss_neg": (1 - log_t) * alarm,
        "p2": p * p, "t2": t * t, "tp2": t * p * p, "common": np.minimum(p, t),
        "distance_pos": np.maximum(p - t, 0), "distance_neg": np.maximum(t - p, 0),
        "focal_pos": t * missed * one**gamma, "focal_neg": u * alarm * other**gamma,
        "hard_tp": given * hit, "hard_fp": (1 - given) * hit, "hard_fn": given * ~hit,
        "hard_tn": (1 - given) * ~hit, "support": given,
    }  # fmt: skip
    return np.stack([found[name] for name in reference.rows(EVERY)])


@DTYPES
@GAMMAS
@FORMS
@SMOOTHINGS
@pytest.mark.parametrize("sigmoid", [True, False])
def test_shares(
    maths: Any, dtype: type, gamma: float, sigmoid: bool, smoothing: Any, split: bool
) -> None:
    x, t = elements(dtype, sigmoid)
    expected = expected_shares(wider(x), wider(t), gamma, sigmoid, split, smoothing)
    found = maths.shares(x, t, gamma, sigmoid, split, smoothing)
    scale = np.maximum(np.abs(expected), 1e-3)
    assert (np.abs(found - expected) / scale).max() < 500 * BOUND[dtype]
    assert np.median(np.abs(found - expected) / scale) < BOUND[dtype]


@GAMMAS
@pytest.mark.parametrize("sigmoid", [True, False])
@FORMS
@SMOOTHINGS
@pytest.mark.parametrize("wrt", WRT)
def test_gradients_are_the_derivatives_of_the_shares(
    maths: Any, wrt: str, gamma: float, sigmoid: bool, smoothing: Any, split: bool
) -> None:
    x, t = elements(np.float64, sigmoid)
    by = np.random.default_rng(1).normal(size=len(reference.rows(EVERY)))
    by[-5:] = 0 if wrt == "input" else by[-5:]  # hard counts and the support have no slope
    found = maths.pixel_gradient(WRT.index(wrt), x, t, gamma, list(by), sigmoid, split, smoothing)

    def total(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return by @ expected_shares(x, t, gamma, sigmoid, split, smoothing).astype(np.longdouble)

    wide_x, wide_t, step = x.astype(np.longdouble), t.astype(np.longdouble), np.longdouble(1e-6)
    if wrt == "weight":
        expected = total(wide_x, wide_t)
    elif wrt == "input":
        expected = (total(wide_x + step, wide_t) - total(wide_x - step, wide_t)) / (2 * step)
    else:
        expected = (total(wide_x, wide_t + step) - total(wide_x, wide_t - step)) / (2 * step)
    np.testing.assert_allclose(found, expected.astype(float), rtol=1e-7, atol=1e-7)


def test_gradients_stay_finite_where_logarithms_do_not(maths: Any) -> None:
    """p = 0 or 1 that agrees with the target leads to 0 log 0 and to powers of 0."""
    ones = [1.0] * len(reference.rows(EVERY))
    for dtype in (np.float32, np.float64):
        for sigmoid, x in ((True, [np.inf, -np.inf, 1e4, -1e4]), (False, [1.0, 0.0, 1.0, 0.0])):
            t = np.array([1, 0, 1, 0], dtype)
            for gamma in (0.0, 0.5, 1.0, 2.0):
                for wrt in (0, 2):
                    found = maths.pixel_gradient(wrt, np.array(x, dtype), t, gamma, ones, sigmoid)
                    assert np.isfinite(found).all(), (dtype, sigmoid, gamma, wrt, found)


@GAMMAS
def test_slopes_of_probabilities_at_their_ends(maths: Any, gamma: float) -> None:
    """Below its floor a logarithm has no slope."""
    by = coefficients(EVERY, 0.75, 0.5)[:, 0, 0].tolist()
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        p, t = (each[:, 0].contiguous() for each in ends(dtype))
        found = maths.pixel_gradient(0, p.numpy(), t.numpy(), gamma, by, False)
        expected = slopes(p, t, 0.75, 0.5, gamma).numpy()
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-36)


def test_the_rows_are_those_of_the_reference(maths: Any) -> None:
    for extra in range(EVERY + 1):
        names = reference.rows(extra)
        assert maths.rows_of(extra) == len(names)
        for one in reference.Extra:
            if extra & one:
                first = reference.EXTRA_ROWS[one][0]
                assert names[maths.row_of(extra, int(one))] == first
