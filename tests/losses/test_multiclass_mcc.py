"""``multiclass_mcc`` is Gorodkin's R_K: by its textbook formula, and by scikit-learn."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from sklearn import metrics
from torch import Tensor

import customloss
from customloss import scores

F64 = torch.float64


def textbook(p: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """R_K of probabilities and one-hot targets ``[pixels, classes]``, as it is defined."""
    s, hit = w.sum(), (w * p * t).sum()
    P, T = (w * p).sum(0), (w * t).sum(0)
    return (s * hit - (P * T).sum()) / ((s * s - (P * P).sum()) * (s * s - (T * T).sum())).sqrt()


def batch(classes: int = 5, pixels: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(0, classes, (pixels,), generator=generator)
    x = torch.randn(pixels, classes, dtype=F64, generator=generator)
    x = x + 2.0 * torch.nn.functional.one_hot(y, classes)
    return x.requires_grad_(), y, torch.rand(pixels, 1, dtype=F64, generator=generator) + 0.1


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_value_and_gradient(classes: int, backend: str) -> None:
    x, y, w = batch(classes)
    t = torch.nn.functional.one_hot(y, classes).to(F64)
    expected = 1 - textbook(x.softmax(1), t, w)
    (wanted,) = torch.autograd.grad(expected, x)
    for target in (y, t):
        with customloss.backend(backend):
            loss = customloss.multiclass_mcc_loss(x, target, w)
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scikit_learn(classes: int) -> None:
    x, y, w = batch(classes)
    guess = x.argmax(1)
    p = torch.nn.functional.one_hot(guess, classes).to(F64)
    loss = customloss.multiclass_mcc_loss(p, y, w, activation="none")
    judge = metrics.matthews_corrcoef(y, guess, sample_weight=w[:, 0])
    assert 1 - float(loss) == pytest.approx(judge, abs=1e-12)
    ignored = y == 0
    loss = customloss.multiclass_mcc_loss(p, y, w, activation="none", ignore_index=0)
    judge = metrics.matthews_corrcoef(y[~ignored], guess[~ignored], sample_weight=w[~ignored, 0])
    assert 1 - float(loss) == pytest.approx(judge, abs=1e-12)


def test_two_classes_are_the_binary_one() -> None:
    x, y, w = batch(2)
    own = customloss.multiclass_mcc_loss(x, y, w)
    p = x.softmax(1)[:, 1:]
    other = customloss.mcc_loss(p, y[:, None], w, activation="none")
    torch.testing.assert_close(own, other, rtol=1e-12, atol=0)


def test_samples_and_reductions() -> None:
    x, y, w = batch(4)
    x, y, w = (each.detach().unflatten(0, (3, 20)).movedim(-1, 1) if each.dim() == 2
               else each.unflatten(0, (3, 20)) for each in (x, y, w))  # fmt: skip
    each = torch.stack([
        customloss.multiclass_mcc_loss(x[i : i + 1], y[i : i + 1], w[i : i + 1]) for i in range(3)
    ])  # fmt: skip
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        own = customloss.multiclass_mcc_loss(x, y, w, samplewise=True, reduction=reduction)
        torch.testing.assert_close(own, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("case", ["one class is predicted", "one class is there", "nothing"])
def test_undefined_is_0(case: str) -> None:
    """As scikit-learn has it; the loss is 1 with gradient 0."""
    p, y = torch.zeros(6, 3, dtype=F64), torch.tensor([0, 1, 2, 0, 1, 2])
    p[torch.arange(6), y] = 1.0
    options: dict[str, Any] = {"activation": "none"}
    if case == "one class is predicted":
        p = torch.zeros(6, 3, dtype=F64).index_fill_(1, torch.tensor(1), 1.0)
        assert metrics.matthews_corrcoef(y, p.argmax(1)) == 0
    elif case == "one class is there":
        y = torch.ones(6, dtype=torch.int64)
        assert metrics.matthews_corrcoef(y, p.argmax(1)) == 0
    else:
        options["ignore_index"], y = 1, torch.ones(6, dtype=torch.int64)
    p.requires_grad_()
    loss = customloss.multiclass_mcc_loss(p, y, **options)
    assert float(loss.detach()) == 1
    assert not torch.autograd.grad(loss, p)[0].any()


def test_nothing_cancels() -> None:
    """Nearly all pixels are of one class: s² - Σ T² would lose all digits of the others."""
    sums = {"tp": [10**14, 3], "fp": [1, 2], "fn": [2, 1], "tn": [3, 10**14]}
    tp, fp, fn, tn = (list(map(Fraction, each)) for each in sums.values())
    cov = sum(a * d - b * c for a, b, c, d in zip(tp, fp, fn, tn))
    predicted = sum((a + b) * (c + d) for a, b, c, d in zip(tp, fp, fn, tn))
    actual = sum((a + c) * (b + d) for a, b, c, d in zip(tp, fp, fn, tn))
    own = scores.multiclass_mcc(*(torch.tensor([each], dtype=F64) for each in sums.values()))
    assert own.shape == (1, 1)
    assert float(own) ** 2 == pytest.approx(float(cov**2 / (predicted * actual)), rel=1e-14)


def test_the_module_is_found_by_name() -> None:
    x, y, w = batch()
    for criterion in (customloss.MulticlassMCCLoss(), customloss.loss("multiclass_mcc")):
        assert torch.equal(criterion(x, y, w), customloss.multiclass_mcc_loss(x, y, w))
