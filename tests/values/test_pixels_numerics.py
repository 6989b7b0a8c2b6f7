"""Softmax and class numbers stay right with NaN, infinities, extreme logits and long sums."""

from __future__ import annotations

import math

import pytest
import torch
from cases import INPUT_DTYPES, Case, Sample, lay_out, short
from judge import (
    confusion_sums,
    differentiated,
    outer_gradient,
    reference_sums,
    reference_sums_gradients,
    soft_f1,
)
from pixel_cases import EXTRAS, SOFTMAX, numbered, reading
from process import run_python
from selection import covering, one_of_each
from torch import Tensor
from torch.nn.functional import one_hot

from customloss import reference

NAN, INF = math.nan, math.inf
SHAPES = ((70, 5), (2, 3, 9, 7))
EVERY = EXTRAS["every"]


def gradients(x: Tensor, t: Tensor, w: Tensor | None, options: dict) -> tuple[Tensor, ...]:
    """The loss, its gradient by the logits, all sums, their gradient, and of few sums, which have
    loops of their own, the same in one row."""
    x = x.detach().requires_grad_()
    loss = soft_f1(x, t, w, **options)
    (by_loss,) = torch.autograd.grad(loss.sum(), x)
    sums = confusion_sums(x, t, w, **options, **EVERY)
    each = torch.arange(1.0, 1 + len(sums))[:, None, None]
    (by_sums,) = torch.autograd.grad((sums * each).sum(), x)
    few = []
    for extras in ("log_loss-hard", "log_loss", "log_loss-support", "focal", "log_loss-focal"):
        own = confusion_sums(x, t, w, **options, **EXTRAS[extras])
        few += [own.detach(), *torch.autograd.grad((own * each[: len(own)]).sum(), x)]
    return loss.detach(), by_loss, sums.detach(), by_sums, torch.cat([f.flatten() for f in few])


# ---- NaN and infinities --------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["contiguous", "class_last", "transposed", "sliced"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_what_is_ignored_never_leaks(
    activation: str, layout: str, dtype: torch.dtype, value: float
) -> None:
    """A pixel has no effect if its number is ignored or no class, or if its weight is 0."""
    for shape in SHAPES:
        own = {"activation": activation, "ignore_index": 1}
        case = numbered("x", shape, layout=layout, weight="pixel", options=own)
        x, t, w, options = case.build(dtype)
        removed = (t == 1) | (t < 0) | (t >= shape[1]) | (w == 0).squeeze(1)
        removed = removed.unsqueeze(1).expand(shape)
        assert removed.any()
        assert not removed.all()
        clean, spoiled = (lay_out(x.masked_fill(removed, v), layout) for v in (0.0, value))
        expected = gradients(clean, t, w, options)
        found = gradients(spoiled, t, w, options)
        for own, wanted in zip(found, expected):
            assert torch.equal(own, wanted)
        for gradient in (found[1], found[3]):
            assert not gradient[removed].any()
            assert gradient[~removed].any()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["sigmoid-ignored", "sigmoid-ignored-soft", "none-ignored"])
@pytest.mark.parametrize("layout", ["contiguous", "class_last", "stepped"])
def test_an_ignored_element_never_leaks(layout: str, name: str, value: float) -> None:
    """With a dense target only the element is ignored, and the others of its pixel count."""
    for shape in SHAPES:
        case = reading(name, shape, layout=layout, weight="class")
        x, t, w, options = case.build()
        w = w + 0.1
        removed = t == options["ignore_index"]
        clean, spoiled = (lay_out(x.masked_fill(removed, v), layout) for v in (0.0, value))
        expected = gradients(clean, t, w, options)
        found = gradients(spoiled, t, w, options)
        for own, wanted in zip(found, expected):
            assert torch.equal(own, wanted)
        assert not found[1][removed].any()
        assert (found[1][~removed] != 0).all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weight_0_hides_a_soft_pixel(value: float) -> None:
    """Logits and targets of a pixel of weight 0 change neither the sums nor any gradient."""
    x, t, w, _ = Case("x", (60, 4), kind="shares", target=None, weight="pixel").build(torch.float64)
    removed = (w == 0).expand(x.shape)
    assert removed.any()
    found = []
    for fill in (value, 0.0):
        leaves = [x.masked_fill(removed, fill), t.masked_fill(removed, NAN if fill else 0.0), w]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        sums = confusion_sums(*leaves, **SOFTMAX, log_loss=True, squares=True)
        found.append([sums.detach(), *torch.autograd.grad(sums.square().sum(), leaves)])
    for own, wanted in zip(found[0][:3], found[1]):
        assert torch.equal(own, wanted)
    assert found[0][3].isfinite().all()
    for gradient in found[0][1:3]:
        assert not gradient[removed].any()


def test_what_is_ignored_is_hidden_under_transforms_and_twice() -> None:
    x, t, w, options = numbered(
        "x", (30, 4), weight="pixel", options={"ignore_index": 2, "label_smoothing": 0.1}
    ).build(torch.float64)
    removed = ((t == 2) | (t < 0) | (t >= 4) | (w == 0).squeeze(1))[:, None].expand(x.shape)
    x = x.masked_fill(removed, NAN).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return soft_f1(x, t, w, **options)

    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    for gradient in (first.detach(), second, torch.func.grad(loss)(x.detach())):
        assert not gradient[removed].any()
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_a_nan_spoils_every_class_of_its_sample(dtype: torch.dtype) -> None:
    """A softmax reads all classes of a pixel, but other samples are other groups."""
    x, t, _, _ = numbered("x", (3, 4, 20)).build(dtype)
    t = t.clamp(0, 3)
    clean = soft_f1(x, t, **SOFTMAX, samplewise=True, reduction="none")
    x[1, 2, 7] = NAN
    loss = soft_f1(x, t, **SOFTMAX, samplewise=True, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.equal(loss[::2], clean[::2])
    groups = soft_f1(x, t, **SOFTMAX, samplewise=True, average="none", reduction="none")
    assert groups[1].isnan().all()
    assert soft_f1(x, t, **SOFTMAX).isnan()


@pytest.mark.parametrize("extra", ["log_loss", "squares", "distance", "focal"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_a_nan_is_seen_in_every_further_sum(
    dtype: torch.dtype, activation: str, extra: str
) -> None:
    x = torch.rand(40, 3).to(dtype)
    x[20, 1] = NAN
    sums = confusion_sums(x, torch.full((40, 3), 0.25), activation=activation, **EXTRAS[extra])
    seen = sums[4:, 0, 1].isnan()
    assert seen.all() if extra == "distance" else seen.any()


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("classes", [3, 17])
def test_masked_classes(classes: int, dtype: torch.dtype) -> None:
    """A logit of -inf rules its class out, as if the class did not exist."""
    x, t, _, _ = numbered("x", (50, classes)).build(dtype)
    t = t.clamp(0, classes - 2)
    masked = x.clone()
    masked[:, -1] = -INF
    loss, by_loss, sums, by_sums, _ = gradients(masked, t, None, SOFTMAX)
    assert torch.isfinite(torch.cat([loss.reshape(1), by_loss.flatten(), by_sums.flatten()])).all()
    assert not by_loss[:, -1].any()
    assert not by_sums[:, -1].any()
    if classes > 3:
        few = gradients(x[:, :-1].contiguous(), t, None, SOFTMAX)
        torch.testing.assert_close(sums[:, :, :-1], few[2], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(by_sums[:, :-1], few[3], rtol=4e-3, atol=1e-5)
    assert sums[0, 0, -1] == sums[1, 0, -1] == 0


def test_class_numbers_are_compared_in_all_of_their_bits() -> None:
    """A number of 64 bits is not the class, nor the ignored value, with the same lower half."""
    x, t = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    alias = (1 << 32) + 1
    assert torch.equal(
        confusion_sums(x, t, **SOFTMAX, ignore_index=alias), confusion_sums(x, t, **SOFTMAX)
    )
    spoiled, without = t.clone(), confusion_sums(x[:3], t[:3], **SOFTMAX)
    spoiled[3] = alias
    for options in ({"ignore_index": alias}, {"out_of_range": "ignore"}):
        assert torch.equal(confusion_sums(x, spoiled, **SOFTMAX, **options), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=short)
def test_the_focal_loss_of_pixels_that_are_sure(dtype: torch.dtype) -> None:
    """Next to p = 1 what is raised to gamma keeps its digits."""
    t = torch.arange(50) % 3
    x = 18.0 * one_hot(t, 3).to(dtype)
    rest = 2 * math.exp(-18.0)
    q, loss = rest / (1 + rest), math.log1p(rest)
    expected = one_hot(t, 3).sum(0) * q**2 * loss
    found = confusion_sums(x, t, **SOFTMAX, focal=True)[4, 0]
    torch.testing.assert_close(found, expected.double(), rtol=2e-6, atol=0)


def test_a_choice_of_infinitely_sure_classes() -> None:
    """If only one class is not ruled out, its p is 1 and neither loss nor gradient is NaN."""
    x = torch.tensor([[-INF, 2.0, -INF], [0.5, -INF, -INF], [-INF, -INF, -3.0]])
    loss, by_loss, sums, by_sums, _ = gradients(x, torch.tensor([1, 0, 2]), None, SOFTMAX)
    assert loss == 0
    assert not by_loss.any()
    assert by_sums.isfinite().all()
    assert sums[:4, 0].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [2, 2, 2]]
    assert not sums[4:6].any()
    wrong = confusion_sums(x, torch.tensor([0, 0, 0]), **SOFTMAX, log_loss=True)
    assert wrong[4, 0, 0] == INF


# ---- digits --------------------------------------------------------------------------------------


def confident(classes: int, gap: float, pixels: int = 600) -> tuple[Tensor, Tensor]:
    """Logits that are sure of a class at every pixel, and wrong at one pixel in 50."""
    generator = torch.Generator().manual_seed(classes)
    t = torch.randint(classes, (pixels,), generator=generator)
    sure = torch.where(torch.arange(pixels) % 50 == 7, (t + 1) % classes, t)
    # The differences of these are exact, so that all error is that of the kernel.
    noise = torch.randint(64, (pixels, classes), generator=generator) / 64
    return gap * (2 * one_hot(sure, classes) - 1) + noise, t


@covering
@pytest.mark.parametrize("gap", [4.0, 8.0, 15.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 4, 17, 105])
def test_confident_predictions_keep_their_digits(classes: int, gap: float) -> None:
    """Near p = 1, fn, the log-losses and all gradients of float32 agree with float64."""
    x, t = confident(classes, gap)
    wide = x.double()[:, :, None]
    elements = ("softmax", 1.0, 0.0, True, True, None, 0.0, 1)
    expected = reference.confusion(wide, t[:, None, None], None, *elements)
    # Every pixel is its own group, so that no large term hides a small one.
    own = confusion_sums(x[:, :, None], t[:, None], **SOFTMAX, log_loss=True, samplewise=True)
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-37)
    for extra in ({}, {"log_loss": True}, EVERY):
        sample = Sample(x, t, None, {**SOFTMAX, **extra})
        factors = outer_gradient(reference_sums(sample)) - 1
        judged = reference_sums_gradients(sample, factors)
        _, (gradient,) = differentiated(confusion_sums, sample, factors)
        # The terms of the surest class are as small as its q, and so must its error be.
        allowed = 3e-6 * judged.terms[0] + 1e-37
        assert ((gradient - judged.gradients[0]).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-shares", "sigmoid-ignored-soft"])
def test_what_all_four_sums_have_in_common_cancels(name: str) -> None:
    """tp + fp + fn + tn is constant, so a number added to all four derivatives changes nothing."""
    x, t, _, options = reading(name, (60, 4)).build(torch.float32)
    leaf = x.requires_grad_()
    sums = confusion_sums(leaf, t, **options)
    own = torch.randn(sums.shape, dtype=sums.dtype, generator=torch.Generator().manual_seed(0))
    plain, shifted = (
        torch.autograd.grad(sums, leaf, own + common, retain_graph=True)[0]
        for common in (0.0, 2.0**24)
    )
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-8)
    assert plain.any()


@pytest.mark.parametrize("gap", [1e-2, 1e-7, 1e-12, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=short)
def test_a_nearly_perfect_score_keeps_its_digits(dtype: torch.dtype, gap: float) -> None:
    logit = torch.tensor(-math.log(gap) / 2, dtype=torch.float64).to(dtype)
    t = torch.arange(900) % 3
    x = torch.where(one_hot(t, 3) == 1, logit, -logit).requires_grad_()
    loss = soft_f1(x, t, **SOFTMAX)
    small = torch.exp(-2 * logit.double())
    q = 2 * small / (1 + 2 * small)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert float(loss.detach()) == pytest.approx(float(q), rel=tolerance)
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient[one_hot(t, 3) == 0] > 0).all()


@pytest.mark.parametrize("logit", [1e4, 60.0, 88.0, 750.0])
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_extreme_logits_have_finite_gradients(dtype: torch.dtype, logit: float) -> None:
    for signs in ([[1, -1, -1]], [[1, 1, -1]], [[-1, -1, -1]], [[1, 1, 1]]):
        x = (torch.tensor(signs) * logit).to(dtype).expand(9, 3).contiguous()
        for link in ("complement", "log", "negative"):
            options = {**SOFTMAX, "link": link}
            loss, by_loss, sums, by_sums = gradients_of(x, torch.arange(9) % 3, options)
            for each in (loss, by_loss, sums, by_sums):
                assert each.isfinite().all()


def gradients_of(x: Tensor, t: Tensor, options: dict) -> tuple[Tensor, ...]:
    """As ``gradients``, but without the options of a loss for the sums."""
    leaf = x.detach().requires_grad_()
    loss = soft_f1(leaf, t, **options)
    (by_loss,) = torch.autograd.grad(loss, leaf)
    _, _, sums, by_sums, _ = gradients(x, t, None, SOFTMAX)
    return loss.detach(), by_loss, sums, by_sums


# ---- length --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("side", [24, pytest.param(64, marks=pytest.mark.slow)])
def test_volumes_of_halves(side: int, dtype: torch.dtype) -> None:
    """64^3 terms in a half, for which other libraries return negative losses or NaN."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(4, (1, side, side, side), generator=generator, dtype=torch.uint8)
    for sharpness in (0.5, 3.0, 20.0):
        x = torch.randn(1, 4, side, side, side, generator=generator)
        x = (x + sharpness * one_hot(t.long(), 4).movedim(-1, 1)).to(dtype)
        expected = reference.soft_f1(x.double(), t, **SOFTMAX)
        leaf = x.clone().requires_grad_()
        loss = soft_f1(leaf, t, **SOFTMAX)
        assert 0 <= float(loss.detach()) <= 1
        assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5, rel=1e-5)
        assert torch.autograd.grad(1e4 * loss, leaf)[0].isfinite().all()


def check_rare(pixels: int, classes: int) -> None:
    """All classes but one have probabilities near 1e-4, which a float32 sum would lose."""
    x = torch.full((pixels, classes), -9.2)
    x[:, 0] = 0
    x += 0.01 * torch.randn(classes, generator=torch.Generator().manual_seed(pixels))
    t = (torch.arange(pixels) % 1000 == 0).to(torch.uint8)
    own = confusion_sums(x, t, **SOFTMAX, log_loss=True)[:, 0]
    p = x[0].double().softmax(0)
    hits = one_hot(t.long(), classes).sum(0)
    expected = torch.stack([
        hits * p, (pixels - hits) * p, hits * (1 - p), (pixels - hits) * (1 - p), -hits * p.log(),
        torch.zeros(classes),
    ])  # fmt: skip
    torch.testing.assert_close(own, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("classes", [2, 4, 33])
def test_many_small_probabilities(classes: int) -> None:
    """Equal terms round in the same direction, so errors could grow with the number of terms."""
    check_rare(1 << 17, classes)


@one_of_each()
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_many_small_probabilities_on_other_instruction_sets(isa: str) -> None:
    """These have fewer lanes, so there are more additions in each."""
    code = f"""
import torch
import customloss
import test_pixels_numerics as numerics
assert torch.ops.customloss.cpu_isa() == "{isa}"
for classes in (2, 4, 33):
    numerics.check_rare(1 << 17, classes)
"""
    done = run_python(code, CUSTOMLOSS_CPU_ISA=isa)
    if "this processor does not have it" in done.stderr:
        pytest.skip(f"this processor does not have {isa}")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_very_many_small_probabilities(classes: int) -> None:
    check_rare(1 << 24, classes)
