"""Every score: its textbook formula, its gradient, scikit-learn, identities, and the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sklearn import metrics
from torch import Tensor

import customloss
from customloss import scores

F64 = torch.float64


# score, its parameters, and the formula as it is printed in the textbook, of P = Σp and T = Σt
TEXTBOOK: dict[str, tuple[Callable, dict[str, Any], Callable]] = {
    "f1": (scores.fbeta, {}, lambda tp, P, T, N: 2 * tp / (P + T)),
    "f2": (scores.fbeta, {"beta": 2.0}, lambda tp, P, T, N: 5 * tp / (P + 4 * T)),
    "f_smooth": (
        scores.fbeta, {"beta": 0.5, "smooth": 0.3},
        lambda tp, P, T, N: (1.25 * tp + 0.3) / (P + 0.25 * T + 0.3),
    ),
    "dice": (
        scores.dice, {"smooth": 1.0}, lambda tp, P, T, N: (2 * tp + 1) / (P + T + 1),
    ),
    "tversky": (
        scores.tversky, {"fp_weight": 0.3, "fn_weight": 0.7, "smooth": 0.1},
        lambda tp, P, T, N: (tp + 0.1) / (tp + 0.3 * (P - tp) + 0.7 * (T - tp) + 0.1),
    ),
    "jaccard": (scores.jaccard, {}, lambda tp, P, T, N: tp / (P + T - tp)),
    "precision": (scores.precision, {}, lambda tp, P, T, N: tp / P),
    "recall": (scores.recall, {}, lambda tp, P, T, N: tp / T),
    "specificity": (scores.specificity, {}, lambda tp, P, T, N: (N - P - T + tp) / (N - T)),
    "fowlkes_mallows": (
        scores.fowlkes_mallows, {}, lambda tp, P, T, N: (tp / P * tp / T).sqrt(),
    ),
    "geometric": (
        scores.fowlkes_mallows, {"recall_weight": 0.8, "smooth": 0.2},
        lambda tp, P, T, N: ((tp + 0.2) / (P + 0.2)) ** 0.2 * ((tp + 0.2) / (T + 0.2)) ** 0.8,
    ),
    "balanced_accuracy": (
        scores.balanced_accuracy, {},
        lambda tp, P, T, N: (tp / T + (N - P - T + tp) / (N - T)) / 2,
    ),
    "g_mean": (
        scores.g_mean, {}, lambda tp, P, T, N: (tp / T * (N - P - T + tp) / (N - T)).sqrt(),
    ),
    "mcc": (
        scores.mcc, {},
        lambda tp, P, T, N: (N * tp - P * T) / (P * T * (N - P) * (N - T)).sqrt(),
    ),
    **{
        f"generalized_dice_{weighting}": (
            scores.generalized_dice, {"weighting": weighting, "smooth": 0.1},
            lambda tp, P, T, N, k=k: (2 * (tp * T.detach() ** -k).sum(-1, keepdim=True) + 0.1)
            / (((P + T) * T.detach() ** -k).sum(-1, keepdim=True) + 0.1),
        )
        for weighting, k in (("square", 2.0), ("simple", 1.0), ("uniform", 0.0))
    },
}  # fmt: skip


def some_sums(*shape: int) -> Tensor:
    return torch.rand(4, *shape, dtype=F64, generator=torch.Generator().manual_seed(3)) + 0.1


@pytest.mark.parametrize("name", TEXTBOOK)
def test_value_and_gradient_of_the_textbook(name: str) -> None:
    score, parameters, formula = TEXTBOOK[name]
    sums = some_sums(2, 5).requires_grad_()
    tp, fp, fn, tn = sums.unbind(0)
    own = score(tp, fp, fn, tn, **parameters)
    expected = formula(tp, tp + fp, tp + fn, tp + fp + fn + tn)
    torch.testing.assert_close(own, expected, rtol=1e-13, atol=1e-14)
    (found,) = torch.autograd.grad(own.sum(), sums)
    (wanted,) = torch.autograd.grad(expected.sum(), sums)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    if score is not scores.generalized_dice:  # whose weights have no gradient
        leaves = [each.detach().clone().requires_grad_() for each in sums]
        assert torch.autograd.gradcheck(partial(score, **parameters), leaves, check_forward_ad=True)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_euler(name: str) -> None:
    """A ratio does not change when all sums are scaled: Σ s dS/ds = 0."""
    score, parameters, _ = TEXTBOOK[name]
    if parameters.get("smooth"):
        parameters = {**parameters, "smooth": 0.0}
    sums = some_sums(2, 5).requires_grad_()
    (found,) = torch.autograd.grad(score(*sums, **parameters).sum(), sums)
    total = (found * sums.detach()).sum((0, 2))
    torch.testing.assert_close(total, torch.zeros(2, dtype=F64), rtol=0, atol=1e-13)


# ---- hard predictions ----------------------------------------------------------------------------

SKLEARN: dict[str, tuple[Callable, Callable]] = {
    "f1": (scores.fbeta, metrics.f1_score),
    "dice": (scores.dice, metrics.f1_score),
    "f2": (partial(scores.fbeta, beta=2.0), partial(metrics.fbeta_score, beta=2.0)),
    "f_half": (partial(scores.fbeta, beta=0.5), partial(metrics.fbeta_score, beta=0.5)),
    "precision": (scores.precision, metrics.precision_score),
    "recall": (scores.recall, metrics.recall_score),
    "specificity": (scores.specificity, partial(metrics.recall_score, pos_label=0)),
    "jaccard": (scores.jaccard, metrics.jaccard_score),
    "mcc": (scores.mcc, metrics.matthews_corrcoef),
    "balanced_accuracy": (scores.balanced_accuracy, metrics.balanced_accuracy_score),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_hard_predictions_are_scikit_learns(name: str) -> None:
    score, judge = SKLEARN[name]
    generator = torch.Generator().manual_seed(5)
    for positives in (0.1, 0.5, 0.8):
        t = torch.rand(60, generator=generator) < positives
        p = torch.where(torch.rand(60, generator=generator) < 0.7, t, ~t)
        loss = customloss.confusion_loss(
            score, p.double(), t, activation="none", link="negative", average="micro"
        )
        assert -float(loss) == pytest.approx(judge(t.numpy(), p.numpy()), abs=1e-15)


# ---- identities ----------------------------------------------------------------------------------


def test_identities() -> None:
    sums = some_sums(3, 4)
    f1, d, j = scores.fbeta(*sums), scores.dice(*sums), scores.jaccard(*sums)
    close = partial(torch.testing.assert_close, rtol=1e-14, atol=0)
    close(f1, d)
    close(j, d / (2 - d))
    for beta in (0.5, 1.0, 3.0):
        a, b = 1 / (1 + beta**2), beta**2 / (1 + beta**2)
        close(scores.fbeta(*sums, beta=beta), scores.tversky(*sums, fp_weight=a, fn_weight=b))
    close(scores.tversky(*sums, smooth=0.5), scores.dice(*sums, smooth=1.0))
    close(scores.fowlkes_mallows(*sums, recall_weight=0.0), scores.precision(*sums))
    close(scores.fowlkes_mallows(*sums, recall_weight=1.0), scores.recall(*sums))
    close(scores.g_mean(*sums) ** 2, scores.recall(*sums) * scores.specificity(*sums))
    one = sums[:, :, :1]
    close(scores.generalized_dice(*one), scores.dice(*one))


def test_harmonic_geometric_arithmetic() -> None:
    sums = some_sums(50, 4)
    precision, recall = scores.precision(*sums), scores.recall(*sums)
    for w in (0.1, 0.5, 0.9):
        harmonic = scores.fbeta(*sums, beta=math.sqrt(w / (1 - w)))
        geometric = scores.fowlkes_mallows(*sums, recall_weight=w)
        assert (harmonic <= geometric + 1e-15).all()
        assert (geometric <= (1 - w) * precision + w * recall + 1e-15).all()


def test_beta_and_recall_weight_are_about_recall() -> None:
    tp, fp, fn, tn = torch.tensor([4.0, 1.0, 3.0, 9.0], dtype=F64)  # recall below precision
    for score, parameter in ((scores.fbeta, "beta"), (scores.fowlkes_mallows, "recall_weight")):
        values = [float(score(tp, fp, fn, tn, **{parameter: x})) for x in (0.0, 0.3, 0.6, 1.0)]
        assert values == sorted(values, reverse=True)
        assert values[0] == float(scores.precision(tp, fp, fn, tn))
    for beta in (0.25, 2.0):
        mirrored = scores.fbeta(tp, fn, fp, tn, beta=1 / beta)
        torch.testing.assert_close(scores.fbeta(tp, fp, fn, tn, beta=beta), mirrored)


def test_absent_class_of_generalized_dice() -> None:
    """It weighs as much as the rarest class; without any class all weigh 1."""
    tp, fn = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    fp, tn = torch.tensor([[1.0, 1.0, 3.0]]), torch.ones(1, 3)
    w = torch.tensor([1 / 16, 1 / 4, 1 / 4])
    expected = 2 * (w * tp).sum() / (w * (2 * tp + fp + fn)).sum()
    torch.testing.assert_close(scores.generalized_dice(tp, fp, fn, tn), expected.reshape(1, 1))
    nothing = torch.zeros(1, 3)
    assert scores.generalized_dice(nothing, fp, nothing, tn).tolist() == [[0.0]]
    assert scores.generalized_dice(nothing, nothing, nothing, tn).tolist() == [[1.0]]
    with pytest.raises(ValueError, match=r"^weighting"):
        scores.generalized_dice(tp, fp, fn, tn, weighting="cubic")


# ---- links ---------------------------------------------------------------------------------------


def test_links() -> None:
    s = torch.tensor([0.2, 0.7], dtype=F64)
    for link, gamma, expected in (
        ("complement", 1.0, 1 - s), ("log", 1.0, -s.log()), ("focal", 1.0, 1 - s),
        ("focal", 0.75, (1 - s) ** 0.75), ("negative", 1.0, -s),
        ("log_cosh", 1.0, (1 - s).cosh().log()), ("log_power", 0.3, (-s.log()) ** 0.3),
    ):  # fmt: skip
        torch.testing.assert_close(scores.linked(s, link, gamma), expected, rtol=1e-14, atol=1e-15)
    with pytest.raises(ValueError, match=r"^link"):
        scores.linked(s, "tanh")


@pytest.mark.parametrize("link", scores.LINKS)
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_links_are_finite_from_worst_to_perfect(link: str, gamma: float) -> None:
    s = torch.tensor([-1.0, 0.0, 1e-300, 1.0, 1 + 2e-16], dtype=F64, requires_grad=True)
    loss = scores.linked(s, link, gamma)
    (slope,) = torch.autograd.grad(loss.sum(), s)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    if link != "negative":
        assert abs(float(loss.detach()[3])) < 1e-15
    nan = scores.linked(torch.tensor(math.nan), link, gamma)
    assert nan.isnan()  # is not hidden


# ---- the edges: maths.md 1.2 ---------------------------------------------------------------------

EDGES = {
    # logits, targets
    "nothing at all": ([], []),
    "no positive, predicted empty": ([-1e4, -1e4], [0, 0]),
    "no positive": ([0.5, -1.0, 2.0], [0, 0, 0]),
    "all positive": ([0.5, -1.0, 2.0], [1, 1, 1]),
    "no hit": ([-1e4, -1e4, 1.0], [1, 1, 0]),
    "all missed": ([-1e4, 1e4], [1, 0]),
    "perfect": ([1e4, -1e4, 1e4], [1, 0, 1]),
    "nearly perfect": ([40.0, -40.0], [1, 0]),
    "everything": ([1e4, 1e4, 1e4], [1, 0, 1]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", customloss.loss_names())
def test_finite_at_the_edges(name: str, edge: str) -> None:
    values, target = EDGES[edge]
    for dtype in (torch.float32, F64):
        x = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = customloss.loss(name)(
            x.sigmoid() if name == "custom_f1" else x, torch.tensor(target, dtype=torch.bool)
        )
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if edge == "perfect" and name != "any":
            assert abs(float(loss.detach())) < 1e-9
            assert not gradient.any()


SMOOTH = {
    # with s = 1/2, T = 0 and P = 2: the loss and dL/dP, P/(P+s) and s/(P+s)² or their logs
    "dice": ({}, 2 / 2.5, 0.5 / 2.5**2),
    "tversky": ({"fp_weight": 1.0}, 2 / 2.5, 0.5 / 2.5**2),
    "jaccard": ({}, 2 / 2.5, 0.5 / 2.5**2),
    "soft_f1": ({"link": "log"}, math.log(2.5 / 0.5), 1 / 2.5),
    "log_precision_recall": ({"recall_weight": 0.25}, 0.75 * math.log(2.5 / 0.5), 0.75 / 2.5),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_without_a_positive(name: str) -> None:
    options, value, slope = SMOOTH[name]
    p = torch.tensor([0.5, 0.5, 1.0], dtype=F64, requires_grad=True)
    loss = customloss.loss(name, smooth=0.5, activation="none", **options)(p, torch.zeros(3))
    (gradient,) = torch.autograd.grad(loss, p)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    assert gradient.tolist() == pytest.approx([slope] * 3, rel=1e-12)
