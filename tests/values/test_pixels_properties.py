"""Invariances of softmax and class numbers hold, and other libraries give the same numbers."""

from __future__ import annotations

import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from judge import confusion_sums, soft_f1
from pixel_cases import EXTRAS, SOFTMAX
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    one_hot,
)

F64 = torch.float64
SEEDS = st.integers(0, 2**31 - 1)
PIXELS, CLASSES = st.integers(1, 40), st.integers(2, 6)
EVERY = EXTRAS["every"]


def drawn(seed: int, pixels: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class numbers, weights of pixels."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(pixels, classes, generator=generator, dtype=F64)
    t = torch.randint(classes, (pixels,), generator=generator)
    w = torch.rand(pixels, 1, generator=generator, dtype=F64) + 0.01
    return x, t, w


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@given(SEEDS, PIXELS)
def test_two_classes_are_the_sigmoid_of_their_difference(seed: int, pixels: int) -> None:
    x, t, w = drawn(seed, pixels, 2)
    own = confusion_sums(x, t, w, **SOFTMAX, log_loss=True, hard=True, focal=True)
    difference = (x[:, 1] - x[:, 0])[:, None]
    binary = confusion_sums(difference, t[:, None], w, log_loss=True, hard=True, focal=True)
    close(own[:4, :, 1:], binary[:4])
    close(own[4].sum(), binary[4:6].sum())
    close(own[6].sum(), binary[6:8].sum())
    close(own[8:, :, 1:], binary[8:])
    # A true positive of one class is a true negative of the other.
    close(own[:4, :, :1], binary[:4].flip(0))


@given(SEEDS, PIXELS, CLASSES, st.sampled_from(["softmax", "sigmoid"]), st.floats(0, 0.9))
def test_class_numbers_are_one_hot_targets(
    seed: int, pixels: int, classes: int, activation: str, smoothing: float
) -> None:
    x, t, w = drawn(seed, pixels, classes)
    dense = one_hot(t, classes).double()
    options = {"activation": activation, **EVERY, "support": False}
    if smoothing:
        # Smoothing spreads class numbers over all classes, but a dense sigmoid target over two
        # outcomes. So the dense target is smoothed here.
        dense = dense * (1 - smoothing) + smoothing / classes
        options["hard"] = False  # decisions are counted with the target before smoothing
    own = confusion_sums(x, t, w, label_smoothing=smoothing, **options)
    close(own, confusion_sums(x, dense, w, **options))


@given(SEEDS, PIXELS, CLASSES)
def test_a_shift_of_all_logits_changes_nothing(seed: int, pixels: int, classes: int) -> None:
    x, t, w = drawn(seed, pixels, classes)
    by = 50 * torch.randn(pixels, 1, dtype=F64)
    own = confusion_sums(x + by, t, w, **SOFTMAX, log_loss=True, focal=True)
    torch.testing.assert_close(
        own, confusion_sums(x, t, w, **SOFTMAX, log_loss=True, focal=True), rtol=1e-9, atol=1e-9
    )


@given(SEEDS, PIXELS, CLASSES)
def test_permutations(seed: int, pixels: int, classes: int) -> None:
    """Permuting classes permutes their sums; the order of pixels and the layout do not matter."""
    x, t, w = drawn(seed, pixels, classes)
    sums = confusion_sums(x, t, w, **SOFTMAX, **EVERY)
    order = torch.randperm(classes)
    renamed = torch.argsort(order)[t]
    close(confusion_sums(x[:, order], renamed, w, **SOFTMAX, **EVERY), sums[:, :, order])
    some = torch.randperm(pixels)
    close(confusion_sums(x[some], t[some], w[some], **SOFTMAX, **EVERY), sums)
    image = confusion_sums(
        x.T[None, :, :, None], t[None, :, None], w.T[None, :, :, None], **SOFTMAX, **EVERY
    )
    close(image, sums)


@given(SEEDS, PIXELS, CLASSES, st.floats(0.01, 0.9))
def test_smoothing_is_linear(seed: int, pixels: int, classes: int, e: float) -> None:
    x, t, w = drawn(seed, pixels, classes)
    for activation in ("softmax", "sigmoid"):
        plain = confusion_sums(x, t, w, activation=activation)
        own = confusion_sums(x, t, w, activation=activation, label_smoothing=e)
        tp, fp, fn, tn = plain
        share = e / classes
        close(own[0], (1 - e) * tp + share * (tp + fp))
        close(own[2], (1 - e) * fn + share * (fn + tn))
        close(own[:2].sum(0), tp + fp)
        close(own[2:].sum(0), fn + tn)
    dense = one_hot(t, classes)
    tp, fp, _, _ = confusion_sums(x, dense, w)
    close(confusion_sums(x, dense, w, label_smoothing=e)[0], (1 - e) * tp + e / 2 * (tp + fp))


@given(SEEDS, PIXELS, CLASSES, st.floats(0, 0.9), st.integers(0, 5))
def test_log_losses_are_pytorchs(
    seed: int, pixels: int, classes: int, e: float, ignored: int
) -> None:
    x, t, w = drawn(seed, pixels, classes)
    options = {**SOFTMAX, "log_loss": True, "label_smoothing": e}
    total = cross_entropy(x, t, reduction="sum", label_smoothing=e)
    close(confusion_sums(x, t, **options)[4].sum(), total)
    total = cross_entropy(x, t, reduction="sum", label_smoothing=e, ignore_index=ignored)
    close(confusion_sums(x, t, ignore_index=ignored, **options)[4].sum(), total)
    soft = x.flip(1).softmax(1)
    close(
        confusion_sums(x, soft, **SOFTMAX, log_loss=True)[4].sum(),
        cross_entropy(x, soft, reduction="sum"),
    )
    weights = torch.rand(classes, dtype=F64)
    total = cross_entropy(x, t, weights, reduction="sum")
    own = confusion_sums(x, t, weights, **SOFTMAX, log_loss=True)[4]
    close(own.sum(), total)
    binary = binary_cross_entropy_with_logits(x, soft, w.expand_as(x), reduction="sum")
    close(confusion_sums(x, soft, w, log_loss=True)[4:6].sum(), binary)


@given(SEEDS, PIXELS, CLASSES, st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]))
def test_focal_sums_are_those_of_the_papers(
    seed: int, pixels: int, classes: int, gamma: float
) -> None:
    x, t, w = drawn(seed, pixels, classes)
    log = log_softmax(x, 1).gather(1, t[:, None])
    focal = (w * (1 - log.exp()) ** gamma * -log).sum()
    own = confusion_sums(x, t, w, **SOFTMAX, focal=True, focal_gamma=gamma)[4:6]
    torch.testing.assert_close(own.sum(), focal, rtol=1e-8, atol=1e-10)
    p, hard = x.sigmoid(), one_hot(t, classes)
    right = torch.where(hard == 1, p, 1 - p)
    own = confusion_sums(x, hard, w, focal=True, focal_gamma=gamma)[4:6]
    torch.testing.assert_close(
        own.sum(), (w * (1 - right) ** gamma * -right.log()).sum(), rtol=1e-8, atol=1e-10
    )


@given(SEEDS, PIXELS, CLASSES)
def test_micro_soft_f1_is_the_mean_miss(seed: int, pixels: int, classes: int) -> None:
    """Σ fp = Σ fn = Σ (1 - p_true): what the true class of a pixel lacks, other classes have."""
    x, t, _ = drawn(seed, pixels, classes)
    miss = 1 - x.softmax(1).gather(1, t[:, None])
    close(soft_f1(x, t, **SOFTMAX, average="micro"), miss.mean())


@given(SEEDS, PIXELS, CLASSES)
def test_further_sums_are_what_they_say(seed: int, pixels: int, classes: int) -> None:
    x, _, w = drawn(seed, pixels, classes)
    soft = x.flip(0).softmax(1)
    for p, options in ((x.softmax(1), SOFTMAX), (x.sigmoid(), {})):
        own = confusion_sums(x, soft, w, **options, squares=True, distance=True)[4:, 0]
        close(own[0], (w * p * p).sum(0))
        close(own[1], (w * soft * soft).sum(0))
        close(own[2], (w * soft * p * p).sum(0))
        close(own[3], (w * torch.minimum(p, soft)).sum(0))
        close(own[4], (w * (p - soft).clamp_min(0)).sum(0))
        close(own[5], (w * (soft - p).clamp_min(0)).sum(0))


@given(SEEDS, PIXELS, CLASSES, CLASSES)
def test_what_is_ignored_is_removed(seed: int, pixels: int, classes: int, ignored: int) -> None:
    x, t, w = drawn(seed, pixels, classes)
    left = t != ignored
    own = confusion_sums(x, t, w, **SOFTMAX, ignore_index=ignored, **EVERY)
    close(own, confusion_sums(x[left], t[left], w[left], **SOFTMAX, **EVERY))
    close(own, confusion_sums(x, t, w * left[:, None], **SOFTMAX, **EVERY))
    strays = torch.where(left, t, classes)
    close(own, confusion_sums(x, strays, w, **SOFTMAX, **EVERY, out_of_range="ignore"))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 5, 17, 40])
def test_hard_sums_are_scikit_learns(classes: int, dtype: torch.dtype) -> None:
    """The counts are exactly those of the metric; of equal logits the first wins, as in argmax."""
    x, t, _ = drawn(classes, 700, classes)
    x = x.to(dtype)
    for logits in (x, x.round()):
        counts = confusion_sums(logits, t, **SOFTMAX, hard=True)[4:, 0].long()
        labels = list(range(classes))
        table = sklearn.metrics.multilabel_confusion_matrix(t, logits.argmax(1), labels=labels)
        tn, fp, fn, tp = torch.as_tensor(table).reshape(classes, 4).T
        assert torch.equal(counts, torch.stack([tp, fp, fn, tn]))
    dense = one_hot(t, classes)
    counts = confusion_sums(x, dense, hard=True)[4:, 0].long()
    table = sklearn.metrics.multilabel_confusion_matrix(dense, (x > 0).long())
    tn, fp, fn, tp = torch.as_tensor(table).reshape(classes, 4).T
    assert torch.equal(counts, torch.stack([tp, fp, fn, tn]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_invariances_hold_in_lower_precision(dtype: torch.dtype) -> None:
    for seed in range(10):
        x, t, _ = drawn(seed, 333, 4)
        x = x.to(dtype)
        some, order = torch.randperm(333), torch.randperm(4)
        loss = soft_f1(x, t, **SOFTMAX)
        torch.testing.assert_close(soft_f1(x[some], t[some], **SOFTMAX), loss, rtol=2e-6, atol=0)
        renamed = torch.argsort(order)[t]
        torch.testing.assert_close(
            soft_f1(x[:, order], renamed, **SOFTMAX), loss, rtol=2e-6, atol=0
        )
        again = soft_f1(x.repeat(3, 1), t.repeat(3), **SOFTMAX)
        torch.testing.assert_close(again, loss, rtol=2e-6, atol=0)
