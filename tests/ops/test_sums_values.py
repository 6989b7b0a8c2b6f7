"""``sums_score`` has the loss and the gradient of the reference and of the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flat
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from score_cases import (
    BESIDE,
    F64,
    WEIGHTS,
    Case,
    case_of,
    coefficients_by_formula,
    loss_by_formula,
    product,
    scoring,
    sums_of,
)
from selection import covering
from torch import Tensor

from customloss._spec.arguments import Pointwise
from customloss._spec.words import ABSENT, AVERAGES, FUSED_LINKS, REDUCTIONS

ops = torch.ops.customloss
NAN = float("nan")


def assert_near(found: tuple[Tensor, Tensor], expected: tuple[Any, Any], what: object) -> None:
    """Compares loss and coefficients; a coefficient may be a difference of terms that cancel."""
    for own, wanted in zip(found, expected, strict=True):
        wanted = torch.as_tensor(wanted, dtype=F64)
        most = float(wanted.abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(
            own, wanted, rtol=1e-12, atol=1e-13 * most, msg=lambda text: f"{what}: {text}"
        )


# ---- values and coefficients ---------------------------------------------------------------------


@covering
@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("average", AVERAGES)
def test_the_reference(average: str, reduction: str, link: str) -> None:
    for name, case in product(average, reduction, link):
        found = ops.sums_score(*case.arguments())
        assert_near(found, flat.sums_score(*case.arguments()), name)


@covering
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("average", AVERAGES)
def test_the_formulas(average: str, reduction: str) -> None:
    """The formulas share no code with the reference: they are NumPy, group by group."""
    for link, every in zip(FUSED_LINKS, (23, 29, 31, 37)):
        for name, case in list(product(average, reduction, link))[::every]:
            found = ops.sums_score(*case.arguments())
            expected = loss_by_formula(case, case.sums.numpy()), coefficients_by_formula(case)
            assert_near(found, expected, (link, name))


@pytest.mark.parametrize("primitive", [ops.sums_score, flat.sums_score], ids=["C", "Python"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("average", AVERAGES)
def test_nothing_is_asked_for(
    average: str, reduction: str, per_sample: bool, primitive: Callable
) -> None:
    """Without a score and a pointwise loss, the loss is zeros in the shape of the score's."""
    how = scoring(average=average, reduction=reduction)
    sums = sums_of(9, 3 if per_sample else 1)
    sums[:] = NAN
    case = Case(sums, None, 9, per_sample, how, Pointwise(0.0))
    loss, coefficients = primitive(*case.arguments())
    assert not loss.any() and not coefficients.any()
    shape = ops.sums_score(*case._replace(pointwise=Pointwise()).arguments())[0].shape
    assert loss.shape == shape


@pytest.mark.parametrize("beside", ["alone", "every"])
@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_few_groups_or_none(samples: int, classes: int, beside: str) -> None:
    for average in AVERAGES if beside == "alone" else AVERAGES[:2]:
        for reduction in REDUCTIONS:
            kind = "none" if average == "none" else "any"
            case = case_of(beside, kind, samples, classes, average=average, reduction=reduction)
            found = ops.sums_score(*case.arguments())
            assert found[1].shape == case.sums.shape
            assert_near(found, flat.sums_score(*case.arguments()), (average, reduction))
            if not samples * classes:
                assert not found[0].any()


def test_float32_is_rounded_once() -> None:
    for reduction in REDUCTIONS:
        case = case_of(reduction=reduction)
        wide, by_wide = ops.sums_score(*case.arguments())
        loss, coefficients = ops.sums_score(*case.arguments(wide=False))
        assert loss.dtype == torch.float32 and coefficients.dtype == F64
        assert torch.equal(loss, wide.float()) and torch.equal(coefficients, by_wide)


def test_the_sums_are_left_as_they_are() -> None:
    case = case_of("every", "some are 0", average="weighted")
    copies = case.sums.clone(), case.class_weight.clone()
    ops.sums_score(*case.arguments())
    assert torch.equal(case.sums, copies[0]) and torch.equal(case.class_weight, copies[1])


def test_rows_that_are_not_read_have_no_coefficients() -> None:
    """A row whose factor is 0 is not read, so that a NaN in it does not matter."""
    for name, kept in (("unread", []), ("negatives", [5]), ("softmax", [4]), ("focal", [4, 5]),
                       ("support", [4, 6])):  # fmt: skip
        case = case_of(name)
        case.sums[[row for row in range(4, case.sums.shape[0]) if row not in kept]] = NAN
        loss, coefficients = ops.sums_score(*case.arguments())
        assert loss.isfinite() and coefficients.isfinite().all()
        rows = [row for row in range(4, case.sums.shape[0]) if coefficients[row].any()]
        assert rows == kept


@covering
@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("average", AVERAGES[:2])
@pytest.mark.parametrize("primitive", [ops.sums_score, flat.sums_score], ids=["C", "Python"])
def test_a_class_that_counts_nothing_is_not_there(
    primitive: Callable[..., Any], average: str, absent: str, link: str
) -> None:
    """A class of weight 0 has no effect, even if it holds a NaN, and its coefficients are 0."""
    for reduction in REDUCTIONS:
        how = {"average": average, "absent": absent, "link": link, "reduction": reduction}
        case = case_of("alone", **how)
        case.class_weight[0, 1] = 0
        case.sums[:, :, 1] = NAN
        loss, coefficients = primitive(*case.arguments())
        assert torch.equal(coefficients[:, :, 1], torch.zeros_like(coefficients[:, :, 1]))
        kept = [0, 2, 3]
        without = case._replace(sums=case.sums[:, :, kept].contiguous(),
                                class_weight=case.class_weight[:, kept].contiguous())  # fmt: skip
        expected = primitive(*without.arguments())
        torch.testing.assert_close(loss, expected[0], rtol=1e-14, atol=0)
        torch.testing.assert_close(coefficients[:, :, kept], expected[1], rtol=1e-14, atol=0)


def test_a_nan_is_seen() -> None:
    """The loss of a sample is NaN if any of its sums that are read is, and so is the mean."""
    for row in range(3):
        case = case_of("alone", "some are 0", reduction="none")
        case.sums[row, 1, 1] = NAN
        loss, coefficients = ops.sums_score(*case.arguments())
        assert loss.isnan().tolist() == [False, True, False]
        assert coefficients[:, [0, 2]].isfinite().all()
        assert ops.sums_score(*case._replace(scoring=scoring()).arguments())[0].isnan()
    for row in (0, 1, 2, 3, 4, 5, 6):
        case = case_of("both", reduction="none", absent="skip")
        case.sums[row, 2, 0] = NAN
        assert ops.sums_score(*case.arguments())[0].isnan().tolist() == [False, False, True]
        assert ops.sums_score(*case._replace(scoring=scoring()).arguments())[0].isnan()
    # Without a score the groups have no loss, but tp to tn still count for the pointwise loss.
    case = case_of("no score")
    case.sums[:2] = 0
    assert ops.sums_score(*case.arguments())[0].isfinite()


WRONG = {
    "float32": lambda s, v: (s.float(), v),
    "strided": lambda s, v: (s.transpose(1, 2).contiguous().transpose(1, 2), v),
    "a row too few": lambda s, v: (s[:6].contiguous(), v),
    "two dims": lambda s, v: (s[:, 0].contiguous(), v),
    "weights of float32": lambda s, v: (s, v.float()),
    "weights of one row": lambda s, v: (s, v[:1].contiguous()),
    "weights of fewer classes": lambda s, v: (s, v[:, :3].contiguous()),
    "strided weights": lambda s, v: (s, v.T.contiguous().T),
}


def test_what_the_primitive_refuses() -> None:
    case = case_of()
    for name, change in WRONG.items():
        with pytest.raises(RuntimeError, match=r"customloss: (sums|weights)"):
            pytest.fail(f"{name}: {ops.sums_score(*change(*case[:2]), *case.how())}")
    for name in ("binary", "focal"):  # their rows are not summed when only distances are
        wrong = case_of(name)._replace(extra=4, sums=sums_of(4))
        with pytest.raises(RuntimeError, match=r"customloss: a (cross-entropy|focal loss) needs"):
            ops.sums_score(*wrong.arguments())
    for weighted, beside in (("any", "alone"), ("none", "both")):
        with pytest.raises(RuntimeError, match="customloss: losses of classes that are kept"):
            ops.sums_score(*case_of(beside, weighted, average="none").arguments())
    with pytest.raises(RuntimeError, match="customloss: sums of samples"):
        ops.sums_score(*case._replace(per_sample=False).arguments())
    with pytest.raises(RuntimeError, match="customloss: unknown sums"):
        ops.sums_score(*case._replace(extra=case.extra | 64).arguments())


# ---- properties ----------------------------------------------------------------------------------

CASES = st.builds(
    case_of,
    st.sampled_from(list(BESIDE)),
    st.sampled_from(WEIGHTS),
    st.sampled_from([None, 1, 2, 5]),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 99),
    ratio=st.sampled_from(["dice", "f2", "tversky"]),
    link=st.sampled_from(FUSED_LINKS),
    absent=st.sampled_from(ABSENT),
    average=st.sampled_from(AVERAGES[:2]),
    reduction=st.sampled_from(REDUCTIONS),
)


@given(CASES, st.sampled_from([2.0, 0.37, 1e6]), st.sampled_from([0, 1]))
def test_weights_of_classes_are_relative(case: Case, scale: float, row: int) -> None:
    """Scaling the weights of the score, or those of the pointwise loss, changes nothing."""
    if case.class_weight is None:
        case = case._replace(class_weight=torch.ones(2, case.sums.shape[2], dtype=F64))
        assert_near(
            ops.sums_score(*case.arguments()),
            ops.sums_score(*case._replace(class_weight=None).arguments()), "weights of 1",
        )  # fmt: skip
    scaled = case.class_weight.clone()
    scaled[row] *= scale
    assume(row == 0 or any(case.pointwise[5:]))  # what is not divided grows with its weights
    expected = ops.sums_score(*case.arguments())
    assert_near(ops.sums_score(*case._replace(class_weight=scaled).arguments()), expected, case)


@given(CASES)
def test_twice_all_factors_is_twice_the_loss(case: Case) -> None:
    factors = case.pointwise
    twice = Pointwise(*(2 * factor for factor in factors[:5]), *factors[5:])
    loss, coefficients = ops.sums_score(*case.arguments())
    doubled = ops.sums_score(*case._replace(pointwise=twice).arguments())
    assert torch.equal(doubled[0], 2 * loss) and torch.equal(doubled[1], 2 * coefficients)


@given(CASES)
def test_the_score_and_the_pointwise_loss_add_up(case: Case) -> None:
    factors, alone = case.pointwise, Pointwise(case.pointwise.score_weight)
    if not any(factors[1:5]) or not factors.score_weight:
        return
    parts = [
        ops.sums_score(*case._replace(pointwise=part).arguments())
        for part in (alone, factors._replace(score_weight=0.0))
    ]
    added = [one + other for one, other in zip(*parts)]
    assert_near(ops.sums_score(*case.arguments()), tuple(added), case)


@given(CASES, st.randoms(use_true_random=False))
def test_the_order_of_classes_and_samples_does_not_matter(case: Case, random: Any) -> None:
    samples, classes = (random.sample(range(n), n) for n in case.sums.shape[1:])
    loss, coefficients = ops.sums_score(*case.arguments())
    weight = case.class_weight
    moved = case._replace(
        sums=case.sums[:, samples][:, :, classes].contiguous(),
        class_weight=None if weight is None else weight[:, classes].contiguous(),
    )
    loss = loss[samples] if loss.dim() else loss
    expected = loss, coefficients[:, samples][:, :, classes]
    assert_near(ops.sums_score(*moved.arguments()), expected, case)


@given(CASES)
def test_a_loss_without_units_does_not_grow_with_the_batch(case: Case) -> None:
    """Doubling all sums leaves the loss as it is, so the gradient along the sums is 0 (Euler)."""
    assume(any(case.pointwise[5:]) or not any(case.pointwise[1:5]))
    case = case._replace(scoring=case.scoring._replace(smooth=0.0, smooth_denominator=0.0))
    loss, coefficients = ops.sums_score(*case.arguments())
    doubled = ops.sums_score(*case._replace(sums=2 * case.sums).arguments())
    assert_near(doubled, (loss, coefficients / 2), case)
    along = case.sums * coefficients
    assert abs(along.sum()) <= 1e-13 * max(1.0, float(along.abs().sum()))


def test_the_same_bits_on_1_and_2_threads() -> None:
    case = case_of("every", samples=50, classes=301, average="weighted")
    expected: list[Tensor] = []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        found = list(ops.sums_score(*case.arguments()))
        expected = expected or found
        for own, wanted in zip(found, expected, strict=True):
            assert own.numpy().tobytes() == wanted.numpy().tobytes()
