"""Invariances and identities of the element-wise losses hold for random numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from judge import soft_f1
from torch import Tensor

import customloss

SEEDS = st.integers(0, 2**31 - 1)
ROWS, COLUMNS = st.integers(1, 40), st.integers(1, 6)
# tinier ones than 1e-100 are refused
BETAS = st.just(0.0) | st.floats(1e-100, 8.0)
LINKS = st.sampled_from(["complement", "log", "negative", "focal"])
F64 = torch.float64


def drawn(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, soft targets, weights; every group has a positive and a negative share."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, columns, generator=generator, dtype=F64)
    t = torch.rand(rows, columns, generator=generator, dtype=F64)
    w = torch.rand(rows, columns, generator=generator, dtype=F64) + 0.01
    return x, t, w


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@given(SEEDS, ROWS, COLUMNS, LINKS, BETAS)
def test_permutation(seed: int, rows: int, columns: int, link: str, beta: float) -> None:
    """The order of samples does not matter, and that of classes does not matter to their mean."""
    x, t, w = drawn(seed, rows, columns)
    loss = soft_f1(x, t, w, link=link, beta=beta)
    some = torch.randperm(rows)
    close(soft_f1(x[some], t[some], w[some], link=link, beta=beta), loss)
    some = torch.randperm(columns)
    close(soft_f1(x[:, some], t[:, some], w[:, some], link=link, beta=beta), loss)
    one = soft_f1(x, t, w, average="none", reduction="none")
    close(soft_f1(x[:, some], t[:, some], w[:, some], average="none", reduction="none"), one[some])


@given(SEEDS, ROWS, ROWS, COLUMNS)
def test_sums_of_parts_add_up(seed: int, rows: int, more: int, columns: int) -> None:
    x, t, w = drawn(seed, rows + more, columns)
    whole = torch.stack(customloss.confusion_sums(x, t, w))
    parts = [
        torch.stack(customloss.confusion_sums(x[part], t[part], w[part]))
        for part in (slice(None, rows), slice(rows, None))
    ]
    close(parts[0] + parts[1], whole)


@given(SEEDS, ROWS, COLUMNS)
def test_the_sums_share_out_the_weight(seed: int, rows: int, columns: int) -> None:
    x, t, w = drawn(seed, rows, columns)
    tp, fp, fn, tn = customloss.confusion_sums(x, t, w)
    close(tp + fp, (w * x.sigmoid()).sum(0))
    close(tp + fn, (w * t).sum(0))
    close(tp + fp + fn + tn, w.sum(0))


@given(SEEDS, ROWS, COLUMNS, LINKS, BETAS, st.integers(2, 4))
def test_duplication(
    seed: int, rows: int, columns: int, link: str, beta: float, times: int
) -> None:
    """Repeating the data, or multiplying every weight, does not change the loss."""
    x, t, w = drawn(seed, rows, columns)
    loss = soft_f1(x, t, w, link=link, beta=beta)
    again = (each.repeat(times, 1) for each in (x, t, w))
    close(soft_f1(*again, link=link, beta=beta), loss)
    close(soft_f1(x, t, times * w, link=link, beta=beta), loss)


@given(SEEDS, ROWS, COLUMNS)
def test_f1_is_dice(seed: int, rows: int, columns: int) -> None:
    x, t, _ = drawn(seed, rows, columns)
    p = x.sigmoid()
    dice = 2 * (p * t).sum(0) / (p.sum(0) + t.sum(0))
    close(soft_f1(x, t, average="none", reduction="none"), 1 - dice)


@given(SEEDS, ROWS, COLUMNS, BETAS)
def test_f_beta_is_the_harmonic_mean(seed: int, rows: int, columns: int, beta: float) -> None:
    x, t, w = drawn(seed, rows, columns)
    tp, fp, fn, _ = customloss.confusion_sums(x, t, w)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    score = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    close(soft_f1(x, t, w, beta=beta, average="none", reduction="none"), 1 - score)


@given(SEEDS, ROWS, BETAS, st.floats(0.1, 4.0))
def test_raising_beta_weighs_recall_more(seed: int, rows: int, beta: float, more: float) -> None:
    """The score moves from precision towards recall as beta grows."""
    x, t, w = drawn(seed, rows, 1)
    tp, fp, fn, _ = customloss.confusion_sums(x, t, w)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    low, high = (1 - soft_f1(x, t, w, beta=each) for each in (beta, beta + more))
    assert torch.sign(high - low).item() == torch.sign(recall - precision).item()


@given(SEEDS, ROWS, COLUMNS, st.floats(0.1, 8.0))
def test_prediction_and_target_trade_places_as_beta_is_mirrored(
    seed: int, rows: int, columns: int, beta: float
) -> None:
    """Swapping p and t swaps fp and fn, and precision and recall: F_beta becomes F_(1/beta)."""
    x, t, w = drawn(seed, rows, columns)
    p = x.sigmoid()
    close(
        soft_f1(p, t, w, beta=beta, activation="none"),
        soft_f1(t, p, w, beta=1 / beta, activation="none"),
    )


@given(SEEDS, ROWS, COLUMNS, st.booleans(), st.sampled_from(["macro", "micro", "weighted", "none"]))
def test_the_loss_lies_between_0_and_1(
    seed: int, rows: int, columns: int, samplewise: bool, average: str
) -> None:
    x, t, w = drawn(seed, rows, columns)
    t = (t < 0.3).to(F64)
    for absent in ("score", "skip", "penalize"):
        for smooth in (0.0, 1.0):
            loss = soft_f1(
                x, t, w, average=average, samplewise=samplewise, absent=absent, smooth=smooth,
                reduction="none",
            )  # fmt: skip
            assert (loss >= 0).all()
            assert (loss <= 1 + 1e-12).all()


@given(SEEDS, ROWS, COLUMNS)
def test_links_are_functions_of_one_score(seed: int, rows: int, columns: int) -> None:
    x, t, w = drawn(seed, rows, columns)

    def of(**options: object) -> Tensor:
        return soft_f1(x, t, w, average="none", reduction="none", **options)

    loss = of()
    close(of(link="negative"), loss - 1)
    close(of(link="log"), -torch.log1p(-loss))
    close(of(link="focal", gamma=2.5), loss**2.5)
    close(of(link="focal", gamma=1.0), loss)


@given(SEEDS, ROWS, COLUMNS, LINKS, BETAS, st.booleans())
def test_euler(
    seed: int, rows: int, columns: int, link: str, beta: float, samplewise: bool
) -> None:
    """A ratio is homogeneous of degree 0 in its sums, so Σ s dL/ds is 0.

    The weights scale the sums, so Σ w dL/dw over a group is 0 too.
    """
    x, t, w = drawn(seed, rows, columns)
    w.requires_grad_()
    loss = soft_f1(x, t, w, link=link, beta=beta, samplewise=samplewise)
    (gradient,) = torch.autograd.grad(loss, w)
    terms = w.detach() * gradient
    by_group = terms if samplewise else terms.sum(0)
    bound = 1e-12 * max(1.0, float(terms.abs().max()) * rows)
    assert (by_group.abs() <= bound).all()


@given(SEEDS, st.integers(2, 40), COLUMNS, LINKS)
def test_weight_0_is_removal(seed: int, rows: int, columns: int, link: str) -> None:
    x, t, w = drawn(seed, rows, columns)
    left = torch.rand(rows) < 0.5
    assume(left.any())
    masked = w * left[:, None]
    close(soft_f1(x, t, masked, link=link), soft_f1(x[left], t[left], w[left], link=link))


@given(SEEDS, ROWS, COLUMNS)
def test_the_reductions_are_means_and_sums(seed: int, rows: int, columns: int) -> None:
    x, t, w = drawn(seed, rows, columns)
    groups = soft_f1(x, t, w, average="none", samplewise=True, reduction="none")
    assert groups.shape == (rows, columns)
    close(soft_f1(x, t, w, samplewise=True, reduction="none"), groups.mean(1))
    close(soft_f1(x, t, w, samplewise=True), groups.mean())
    close(soft_f1(x, t, w, samplewise=True, reduction="sum"), groups.mean(1).sum())
    close(soft_f1(x, t, w, average="none", samplewise=True, reduction="sum"), groups.sum())
    for row in range(rows):
        one = soft_f1(x[row], t[row], w[row])
        close(soft_f1(x, t, w, average="micro", samplewise=True, reduction="none")[row], one)


@given(SEEDS, ROWS, COLUMNS)
def test_micro_of_one_class_is_macro_and_dimensions_may_be_folded(
    seed: int, rows: int, columns: int
) -> None:
    x, t, w = drawn(seed, rows, columns)
    close(soft_f1(x, t, w, average="micro"), soft_f1(x.flatten(), t.flatten(), w.flatten()))
    close(soft_f1(x[:, :1], t[:, :1]), soft_f1(x[:, 0], t[:, 0]))
    spatial = [each.T.reshape(1, columns, rows, 1) for each in (x, t, w)]
    close(soft_f1(*spatial), soft_f1(x, t, w))


@given(SEEDS, ROWS, COLUMNS, st.floats(0.05, 20.0), st.floats(-5.0, 5.0))
def test_the_affine_map_is_that_of_the_logit(
    seed: int, rows: int, columns: int, scale: float, offset: float
) -> None:
    x, t, w = drawn(seed, rows, columns)
    own = soft_f1(x, t, w, logit_scale=scale, logit_offset=offset)
    close(own, soft_f1(scale * (x - offset), t, w))
    close(own, soft_f1((scale * (x - offset)).sigmoid(), t, w, activation="none"))
    # Negating the scale turns p into 1 - p, which swaps tp with fn and fp with tn.
    flipped = customloss.confusion_sums(x, t, w, logit_scale=-scale, logit_offset=offset)
    straight = customloss.confusion_sums(x, t, w, logit_scale=scale, logit_offset=offset)
    close(torch.stack(flipped), torch.stack(straight)[[2, 3, 0, 1]])


@given(SEEDS, ROWS, COLUMNS, st.just(0.0) | st.floats(1e-200, 100.0))
def test_smoothing_pulls_the_loss_down(seed: int, rows: int, columns: int, smooth: float) -> None:
    x, t, w = drawn(seed, rows, columns)
    tp, fp, fn, _ = customloss.confusion_sums(x, t, w)
    own = soft_f1(x, t, w, smooth=smooth, average="none", reduction="none")
    close(own, (fp + fn) / (2 * tp + fp + fn + smooth))
    assert (own <= soft_f1(x, t, w, average="none", reduction="none") + 1e-12).all()


@given(SEEDS, st.integers(2, 40), COLUMNS)
def test_a_better_prediction_has_a_smaller_loss(seed: int, rows: int, columns: int) -> None:
    """The gradient raises positives and lowers negatives, and a step against it lowers the loss."""
    x, t, _ = drawn(seed, rows, columns)
    hard = (t < 0.4).double()
    hard[0], hard[1] = 1, 0
    x.requires_grad_()
    loss = soft_f1(x, hard)
    (gradient,) = torch.autograd.grad(loss, x)
    assert ((gradient < 0) == (hard == 1)).all()
    assert soft_f1(x.detach() - 1e-3 * gradient, hard) < loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_invariances_hold_in_lower_precision(dtype: torch.dtype) -> None:
    for seed in range(20):
        x, t, w = (each.to(dtype) for each in drawn(seed, 33, 4))
        some = torch.randperm(33)
        loss = soft_f1(x, t, w)
        torch.testing.assert_close(soft_f1(x[some], t[some], w[some]), loss, rtol=1e-6, atol=0)
        again = [each.repeat(3, 1) for each in (x, t, w)]
        torch.testing.assert_close(soft_f1(*again), loss, rtol=1e-6, atol=0)
