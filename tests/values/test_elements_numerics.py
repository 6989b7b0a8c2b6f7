"""NaN, infinities, extreme logits, overflow and near-perfect scores are handled as documented."""

from __future__ import annotations

import math

import pytest
import torch
from cases import INPUT_DTYPES, INTEGERS, LAYOUTS, Case, lay_out, short
from judge import assert_near, soft_f1
from selection import covering
from torch import Tensor

import customloss
from customloss import reference

NAN, INF = math.nan, math.inf
SHAPES = ((6, 3), (2, 3, 4, 5), (3, 3, 70))


# ---- NaN and infinities --------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("layout", ["contiguous", "class_last", "transposed"])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("where", ["input", "target", "weight"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_spoils_its_group_alone(
    shape: tuple[int, ...], where: str, dtype: torch.dtype, layout: str
) -> None:
    case = Case("x", shape, layout=layout, target=None, weight="full", weight_layout=layout)
    sample = case.build(dtype)
    place = (1, 2, *(0 for _ in shape[2:]))  # sample 1, class 2
    sample.weight[place] = 1.0
    clean = {
        samplewise: soft_f1(*sample.operands, average="none", reduction="none",
                            samplewise=samplewise)
        for samplewise in (False, True)
    }  # fmt: skip
    getattr(sample, where)[place] = NAN
    for samplewise, expected in clean.items():
        sample.input.requires_grad_()
        loss = soft_f1(*sample.operands, average="none", reduction="none", samplewise=samplewise)
        spoiled = torch.zeros(loss.shape, dtype=torch.bool)
        spoiled[(1, 2) if samplewise else 2] = True
        assert torch.equal(loss.isnan(), spoiled)
        assert torch.equal(loss[~spoiled], expected[~spoiled])
        (gradient,) = torch.autograd.grad(loss.sum(), sample.input)
        elements = spoiled if samplewise else spoiled.expand(shape[:2])
        elements = elements.reshape(*shape[:2], *(1 for _ in shape[2:])).expand(shape)
        assert torch.equal(gradient.isnan(), elements & (sample.weight != 0))
        sample.input.requires_grad_(False)
    for average in ("macro", "micro", "weighted"):
        assert soft_f1(*sample.operands, average=average).isnan()


@pytest.mark.parametrize("absent", ["score", "skip", "penalize"])
@pytest.mark.parametrize("target", [torch.bool, *INTEGERS, None], ids=str)
def test_a_nan_is_seen_whatever_the_target_dtype(target: torch.dtype | None, absent: str) -> None:
    """This includes groups without a positive, which ``absent`` may skip or score differently."""
    x = torch.randn(8)
    x[3] = NAN
    for positives in (0, 5):
        t = (torch.arange(8) < positives).to(target or torch.float32)
        loss = soft_f1(x, t, absent=absent)
        assert loss.isnan(), (positives, loss)


@covering
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_0_removes_anything(layout: str, dtype: torch.dtype, value: float) -> None:
    """Whatever a masked element holds, the loss is as without it and its gradient is exactly 0."""
    if layout.startswith("expanded"):
        layout = "contiguous"
    for shape in SHAPES:
        sample = Case("x", shape, layout=layout, target=None, weight="mask").build(dtype)
        masked = sample.weight == 0
        assert masked.any()
        expected = soft_f1(*sample.operands)
        spoiled = sample._replace(
            input=lay_out(sample.input.masked_fill(masked, value), layout),
            target=lay_out(sample.target.masked_fill(masked, NAN), layout),
        )
        for operand in (spoiled.input, spoiled.target):
            operand.requires_grad_()
        for weight in (sample.weight, sample.weight.to(dtype), sample.weight.to(torch.uint8)):
            loss = soft_f1(spoiled.input, spoiled.target, weight)
            assert torch.equal(loss, expected)
            found = torch.autograd.grad(loss, (spoiled.input, spoiled.target))
            for gradient in found:
                assert not gradient[masked].any()
                assert gradient[~masked].isfinite().all()
                assert gradient[~masked].any()


def test_weight_0_removes_a_nan_from_the_gradient_of_a_broadcast_weight() -> None:
    """A NaN in a class of weight 0 spoils no gradient of the weight, not even that of its class."""
    sample = Case("x", (6, 3), target=None).build(torch.float64)
    x = sample.input.clone()
    x[2, 1] = NAN
    for op in (soft_f1, reference.soft_f1):
        weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(op(x, sample.target, weight, average="micro"), weight)
        assert gradient.isfinite().all(), op


def test_weight_0_hides_a_nan_under_transforms_and_twice() -> None:
    sample = Case("x", (6, 3), target=None, weight="mask").build(torch.float64)
    masked = sample.weight == 0
    x = sample.input.masked_fill(masked, NAN).requires_grad_()
    (first,) = torch.autograd.grad(soft_f1(x, sample.target, sample.weight), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    by_transform = torch.func.grad(soft_f1)(x.detach(), sample.target, sample.weight)
    for gradient in (first.detach(), second, by_transform):
        assert not gradient[masked].any()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_infinite_logits_are_exact(dtype: torch.dtype) -> None:
    x = torch.tensor([INF, INF, INF, -INF, -INF, -INF, -INF], dtype=dtype, requires_grad=True)
    t = torch.tensor([1, 1, 0, 1, 0, 0, 0])
    sums = customloss.confusion_sums(x, t)
    assert [each.item() for each in sums] == [2, 1, 1, 3]
    loss = soft_f1(x, t)
    assert loss.item() == pytest.approx(2 / 6, rel=1e-7)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    perfect = torch.where(t == 1, INF, -INF).to(dtype)
    assert soft_f1(perfect, t) == 0
    assert soft_f1(-perfect, t) == 1


@covering
@pytest.mark.parametrize("link", ["complement", "log", "focal", "negative"])
@pytest.mark.parametrize("logit", [1e4, -1e4, 88.0, -88.0, 750.0, -750.0])
@pytest.mark.parametrize("targets", ["none", "all", "mixed"])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_extreme_logits_have_finite_gradients(
    dtype: torch.dtype, targets: str, logit: float, link: str
) -> None:
    t = {"none": torch.zeros(9), "all": torch.ones(9), "mixed": torch.arange(9) % 2}[targets]
    gamma = 0.5 if link == "focal" else 1.0
    for sign in (1, torch.tensor([1, -1, 1, 1, -1, -1, 1, 1, -1])):
        x = (torch.full((9,), logit) * sign).to(dtype).requires_grad_()
        soft = t.to(dtype).requires_grad_()
        for absent in ("score", "skip", "penalize"):
            loss = soft_f1(x, soft, link=link, gamma=gamma, absent=absent)
            assert loss.isfinite()
            assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, soft)))
            # A bool target may have its own loops, which must flush to 0 where the others do: a
            # group that is predicted empty is 0 / 0, but one predicted almost empty has loss 1.
            hard = soft_f1(x, t.bool(), link=link, gamma=gamma, absent=absent)
            torch.testing.assert_close(hard, loss, rtol=1e-6, atol=1e-18, check_dtype=False)


# ---- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
def test_a_half_gradient_is_that_of_float32_rounded_to_nearest(
    dtype: torch.dtype, hard: bool
) -> None:
    """Ties to even, infinities, numbers that are subnormal in float16, and a tail."""
    x = torch.cat([3 * torch.randn(900), torch.tensor([-12.0, 9.0, 0.0])]).to(dtype)
    target = torch.rand(x.shape) > 0.7 if hard else torch.rand(x.shape)
    for slope in (1.0, 64.0, 1e8):
        half, single = x.clone().requires_grad_(), x.float().requires_grad_()
        (slope * soft_f1(half, target)).backward()
        (slope * soft_f1(single, target)).backward()
        assert torch.equal(half.grad, single.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
@pytest.mark.parametrize("shape", [(1 << 18,), (1 << 17, 3), (2, 2, 400, 401)])
def test_sums_beyond_the_largest_half(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """float16 ends at 65504, and bfloat16 cannot count beyond 256; the sums here are larger."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    t = torch.rand(shape, generator=generator) < 0.7
    sums = customloss.confusion_sums(x, t)
    per_class = len(shape) > 1
    elements = ("sigmoid", 1.0, 0.0, False, per_class)
    expected = reference.confusion(x.detach().double(), t, None, *elements)
    assert float(expected.max()) > 40000
    for own, wanted in zip(sums, expected):
        torch.testing.assert_close(
            own.detach().double(), wanted.reshape(own.shape), rtol=1e-6, atol=0
        )
    loss = soft_f1(x, t)
    wanted = reference.soft_f1(x.detach().double(), t)
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-6)
    (gradient,) = torch.autograd.grad(1e4 * loss, x)
    assert gradient.isfinite().all()
    assert gradient.any()


def rare(elements: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Probabilities near 1e-4, with one positive in a thousand."""
    generator = torch.Generator().manual_seed(elements)
    x = torch.randn(elements, generator=generator).sub_(9.2).to(dtype)
    t = torch.randint(1000, (elements,), generator=generator, dtype=torch.int16) == 0
    return x, t


def blockwise(x: Tensor, t: Tensor) -> Tensor:
    """The sums in float64, computed block by block to save memory."""
    sums = torch.zeros(4, dtype=torch.float64)
    for a, b in zip(x.split(1 << 22), t.split(1 << 22)):
        elements = ("sigmoid", 1.0, 0.0, False, False)
        sums += reference.confusion(a.double(), b, None, *elements).reshape(4)
    return sums


def check_rare(elements: int, dtype: torch.dtype, columns: int = 1) -> None:
    x, t = rare(elements, dtype)
    expected = blockwise(x, t)
    if columns > 1:
        x, t = x.view(-1, columns), t.view(-1, columns)
    sums = torch.ops.customloss.confusion_sums(x, t)
    torch.testing.assert_close(sums.sum((1, 2)), expected, rtol=1e-6, atol=0)
    loss = soft_f1(x, t, average="micro")
    tp, fp, fn, _ = expected.tolist()
    assert float(loss) == pytest.approx((fp + fn) / (2 * tp + fp + fn), rel=1e-6)


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("columns", [1, 4, 1024])
def test_many_small_probabilities(columns: int, dtype: torch.dtype) -> None:
    """2^22 terms of 1e-4: a float32 sum that is large enough would not change any more."""
    check_rare(1 << 22, dtype, columns)


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("target", [torch.bool, torch.float32], ids=short)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((100_000,), "contiguous"), ((1100, 1024), "contiguous"), ((30_000, 3), "contiguous"),
     ((300, 4, 700), "contiguous"), ((3, 8, 100, 90), "class_last"), ((5000, 4, 2), "class_last")],
)  # fmt: skip
def test_equal_terms_do_not_drift(
    shape: tuple[int, ...], layout: str, target: torch.dtype, dtype: torch.dtype
) -> None:
    """At the first step of a fresh model every logit is the bias.

    Equal terms round in the same direction, so errors add up; with random terms they average out.
    """
    t = lay_out((torch.arange(torch.Size(shape).numel()) % 5 == 0).view(shape).to(target), layout)
    per_class = len(shape) > 1
    for logit in (-9.2, -10.46, -11.23, -4.6, 0.3):
        x = torch.full(shape, logit).to(dtype)
        expected = reference.confusion(x.double(), t, None, "sigmoid", 1.0, 0.0, False, per_class)
        for weight in (None, torch.full((), 0.7)):
            sums = torch.ops.customloss.confusion_sums(lay_out(x, layout), t, weight)
            wanted = expected if weight is None else expected * weight.double()
            # The product with the weight is another rounding, the same for all elements.
            rtol = 1e-6 if weight is None else 2e-6
            torch.testing.assert_close(sums, wanted, rtol=rtol, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [24, 26, 28])
@pytest.mark.parametrize("columns", [1, 4, 1024])
def test_very_many_small_probabilities(columns: int, exponent: int) -> None:
    check_rare(1 << exponent, torch.bfloat16 if exponent == 28 else torch.float32, columns)


# ---- digits --------------------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-7, 1e-9, 1e-12, 1e-30])
@pytest.mark.parametrize("link", ["complement", "log"])
@pytest.mark.parametrize("kind", ["vector", "rows", "planes", "classes-last", "soft", "weighted"])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_a_nearly_perfect_score_keeps_its_digits(
    dtype: torch.dtype, kind: str, link: str, gap: float
) -> None:
    """1 - 2 tp / (2 tp + fp + fn) has no digit left at 1e-9 in float32; (fp + fn) / ... has all.

    Sums computed as differences have no digit left either: fn = count - tp, fp = sum p - tp.
    """
    flat = torch.arange(9000) % 7 < 3  # 7 divides no size below, so that every class has positives
    t = {
        "vector": flat,
        "rows": flat.view(3000, 3),
        "planes": flat.view(3, 3, 1000),
        "classes-last": lay_out(flat.view(3, 3, 50, 20), "class_last"),
        "soft": flat.to(dtype),
        "weighted": flat.view(1000, 3, 3).transpose(1, 2),
    }[kind]
    weight = torch.full(t.shape, 0.75) if kind == "weighted" else None
    logit = torch.tensor(-math.log(gap), dtype=torch.float64).to(dtype)
    x = torch.where(t > 0, logit, -logit).requires_grad_()
    positives = t.double().mean([d for d in range(t.dim()) if d != 1 or t.dim() == 1])
    q = torch.sigmoid(-logit.double())
    miss = q / (2 * positives * (1 - q) + q)  # (fp + fn) / (2 tp + fp + fn) of every class
    expected = (torch.log1p(miss / (1 - miss)) if link == "log" else miss).mean()
    loss = soft_f1(x, t, weight, link=link)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert float(loss.detach()) == pytest.approx(float(expected), rel=tolerance, abs=0)
    (gradient,) = torch.autograd.grad(loss, x)
    if dtype != torch.float16:  # its smallest number is 6e-8
        assert (gradient[t > 0] < 0).all()
        assert (gradient[t == 0] > 0).all()


def test_the_complement_is_not_one_minus_p() -> None:
    """1 - p is 0 from a logit of 16.7 on in float32, and from 6.25 on in bfloat16."""
    for dtype, logit in ((torch.bfloat16, 7.0), (torch.float16, 12.0), (torch.float32, 20.0)):
        x = torch.tensor([logit, -logit], dtype=dtype, requires_grad=True)
        loss = soft_f1(x, torch.tensor([True, False]))
        assert float(loss.detach()) == pytest.approx(math.exp(-logit), rel=3e-3)
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.all() if dtype != torch.float16 else gradient.isfinite().all()


def test_focal_slope_at_a_perfect_score_is_0() -> None:
    x = torch.tensor([INF, -INF], requires_grad=True)
    soft = torch.tensor([1.0, 0.0], requires_grad=True)
    for gamma in (0.5, 1.5, 2.0):
        loss = soft_f1(x, soft, link="focal", gamma=gamma)
        assert loss == 0
        for gradient in torch.autograd.grad(loss, (x, soft)):
            assert torch.equal(gradient, torch.zeros(2))


def test_weights_of_any_size() -> None:
    """A common factor of all weights changes nothing, unless numbers overflow or underflow."""
    sample = Case("x", (200, 3), target=None, weight="full").build()
    expected = soft_f1(*sample.operands).double()
    for factor in (2.0**-60, 2.0**40, 2.0**100):
        own = soft_f1(sample.input, sample.target, sample.weight * factor)
        assert_near(own, expected, torch.float32)


# ---- options that round --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 70), (4000, 3), (5000,)], ids=str)
@pytest.mark.parametrize("option", [{"logit_scale": 1 + 1e-9}, {"logit_offset": 1e-50}], ids=str)
def test_options_that_are_defaults_only_in_float32(
    shape: tuple[int, ...], option: dict[str, float]
) -> None:
    """Options that round to the defaults in float32 may not change the sums.

    Whether the loops for the defaults apply is decided once for all precisions.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    t = x > 0.5
    expected = torch.ops.customloss.confusion_sums(x, t)
    actual = torch.ops.customloss.confusion_sums(x, t, **option)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
