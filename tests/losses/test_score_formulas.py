"""Every score has the value and gradient of its textbook formula, also at the edges.

Identities between scores hold, and scikit-learn is a second judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from selection import covering
from sklearn import metrics
from torch import Tensor

import customloss
from customloss import scores

F64 = torch.float64


# The score, its parameters, and the textbook formula of tp, P = Σp, T = Σt and N, the total.
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


# The same for formulas of P = Σp, T = Σt, R = Σpt, p2 = Σp², t2 = Σt² and A = Σ|p - t|.
EXTENDED: dict[str, tuple[Callable, dict[str, Any], Callable]] = {
    "squared_dice": (
        scores.squared_dice, {"smooth": 0.3},
        lambda P, T, R, p2, t2, A: (2 * R + 0.3) / (p2 + t2 + 0.3),
    ),
    "semimetric_dice": (
        scores.semimetric_dice, {"smooth": 0.3},
        lambda P, T, R, p2, t2, A: (P + T - A + 0.3) / (P + T + 0.3),
    ),
    "semimetric_jaccard": (
        scores.semimetric_jaccard, {"smooth": 0.3},
        lambda P, T, R, p2, t2, A: (P + T - A + 0.6) / (P + T + A + 0.6),
    ),
    "semimetric_tversky": (
        scores.semimetric_tversky, {"fp_weight": 0.3, "fn_weight": 1.2, "smooth": 0.1},
        lambda P, T, R, p2, t2, A: ((P + T - A) / 2 + 0.1)
        / ((P + T - A) / 2 + 0.3 * (P - T + A) / 2 + 1.2 * (T - P + A) / 2 + 0.1),
    ),
}  # fmt: skip


def soft_labels(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x, t = torch.randn(2, *shape, dtype=F64, generator=generator).unbind(0)
    return x.requires_grad_(), t.sigmoid()


@pytest.mark.parametrize("name", EXTENDED)
def test_value_and_gradient_of_what_needs_more_sums(name: str) -> None:
    score, parameters, formula = EXTENDED[name]
    x, t = soft_labels(9, 4)
    w = torch.rand(9, 1, dtype=F64)
    p = x.sigmoid()
    sums = [(w * each).sum(0) for each in (p, t, p * t, p * p, t * t, (p - t).abs())]
    for own, expected in (
        (customloss.confusion_loss(partial(score, **parameters), x, t, w), (1 - formula(*sums))),
        (customloss.loss(name, **parameters)(x, t, w), (1 - formula(*sums))),
    ):
        torch.testing.assert_close(own, expected.mean(), rtol=1e-13, atol=1e-14)
        pair = [torch.autograd.grad(each.mean(), x, retain_graph=True)[0]
                for each in (own, expected)]  # fmt: skip
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 1.0), (0.3, 1.7)])
def test_semimetric_at_hard_and_at_soft_labels(weights: tuple[float, float]) -> None:
    """With hard labels it is Tversky; with soft labels it is perfect at p = t and nowhere else."""
    x, t = soft_labels(50, 4)
    options = {"fp_weight": weights[0], "fn_weight": weights[1]}
    for hard in ((t > 0.5).to(F64), torch.ones_like(t), torch.zeros_like(t)):
        own = customloss.semimetric_tversky_loss(x, hard, **options)
        expected = customloss.tversky_loss(x, hard, **options)
        torch.testing.assert_close(own, expected, rtol=1e-13, atol=1e-14)
        pair = [torch.autograd.grad(each, x)[0] for each in (own, expected)]
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-14)
    for dtype in (torch.float32, F64):
        for link in ("complement", "log"):
            for own in (t.to(dtype), (0.9 * t).to(dtype)):
                loss = customloss.semimetric_tversky_loss(
                    own, t.to(dtype), activation="none", link=link, **options
                )
                assert (loss == 0) == torch.equal(own, t.to(dtype))
    products = customloss.dice_loss(t, t, activation="none")
    assert products > 0.2  # the Dice loss is not 0 at p = t
    p, q = x.detach().sigmoid(), t
    least, most = torch.minimum(p, q).sum(0), (p - q).clamp_min(0).sum(0)
    score = least / (least + weights[0] * most + weights[1] * (q - p).clamp_min(0).sum(0))
    torch.testing.assert_close(
        customloss.semimetric_tversky_loss(x, t, **options), (1 - score).mean()
    )


def test_squared_dice_is_least_at_soft_labels() -> None:
    _, t = soft_labels(50, 4)
    assert abs(float(customloss.squared_dice_loss(t, t, activation="none"))) < 1e-15
    residue = ((0.7 * t - t) ** 2).sum(0) / ((0.7 * t) ** 2 + t**2).sum(0)
    own = customloss.squared_dice_loss(0.7 * t, t, activation="none")
    torch.testing.assert_close(own, residue.mean())


# ---- the weighted log loss -----------------------------------------------------------------------


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_weighted_log_loss_textbook(w: float, average: str) -> None:
    x, t = soft_labels(9, 4)
    weight = torch.rand(9, 4, dtype=F64)
    p = x.sigmoid()
    each = -weight * (w * t * p.log() + (1 - w) * (1 - t) * (1 - p).log())
    expected = each.sum(0) / weight.sum(0)
    if average == "micro":
        expected = each.sum() / weight.sum()
    elif average == "weighted":
        support = (weight * t).sum(0)
        expected = (support * expected).sum() / support.sum()
    elif average == "macro":
        expected = expected.mean()
    own = customloss.weighted_log_loss(
        x, t, weight, recall_weight=w, average=average, reduction="none"
    )
    torch.testing.assert_close(own, expected, rtol=1e-13, atol=1e-15)
    pair = [torch.autograd.grad(one.sum(), x)[0] for one in (own, expected)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-15)


def test_weighted_log_loss_is_a_cross_entropy() -> None:
    x, t = soft_labels(9, 4)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    own = customloss.weighted_log_loss(x, t, recall_weight=0.8, average="micro")
    torch.testing.assert_close(own, 0.2 * bce(x, t, pos_weight=torch.tensor(4.0)))
    both = customloss.weighted_log_loss(x, t, average="micro", samplewise=True)
    torch.testing.assert_close(2 * both, bce(x, t))
    with pytest.raises(ValueError, match=r"^activation: .*compound_loss"):
        customloss.weighted_log_loss(x, t, activation="softmax")
    with pytest.raises(ValueError, match=r"^recall_weight: expected a number in \[0, 1\]"):
        customloss.weighted_log_loss(x, t, recall_weight=1.5)


def test_f_optimal_weight_moves_the_threshold_to_one_half() -> None:
    """With the w of the best F*, {η > 1 - w} reaches F*, and so does p > 1/2 of the minimiser."""
    generator = torch.Generator().manual_seed(1)
    eta = torch.rand(4000, dtype=F64, generator=generator) ** 3
    for beta in (0.5, 1.0, 2.0):
        thresholds = torch.linspace(0.005, 0.995, 199, dtype=F64)
        inside = eta > thresholds[:, None]
        tp, fp, fn = ((inside * eta).sum(1), (inside * (1 - eta)).sum(1), (~inside * eta).sum(1))
        f = scores.fbeta(tp, fp, fn, tp, beta=beta)
        w = customloss.f_optimal_weight(f.max(), beta)
        assert abs(float(1 - w) - float(thresholds[f.argmax()])) < 0.006
        p = w * eta / (w * eta + (1 - w) * (1 - eta))  # the minimiser of the loss
        hit = p > 0.5
        reached = scores.fbeta(
            (hit * eta).sum(), (hit * (1 - eta)).sum(), (~hit * eta).sum(), tp[0], beta=beta
        )
        assert float(reached) == pytest.approx(float(f.max()), rel=1e-4)
    x = torch.zeros(1, dtype=F64, requires_grad=True)
    loss = customloss.weighted_log_loss(x, torch.full((1,), 0.3, dtype=F64), recall_weight=0.7)
    assert abs(float(torch.autograd.grad(loss, x)[0])) < 1e-15  # p = 1/2 at η = 1 - w
    assert customloss.f_optimal_weight(0.6) == pytest.approx(0.7)
    best = torch.tensor([0.6, 0.2], requires_grad=True)
    assert not customloss.f_optimal_weight(best).requires_grad
    for wrong in ({"score": 1.5}, {"score": 0.5, "beta": -1.0}):
        with pytest.raises(ValueError, match=f"^{[*wrong][-1]}: expected"):
            customloss.f_optimal_weight(**wrong)
    with pytest.raises(TypeError, match=r"^score: expected a number"):
        customloss.f_optimal_weight("best")


# ---- what a score asks for -----------------------------------------------------------------------


@scores.uses("squares")
def cosine(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, **more: Tensor) -> Tensor:
    assert list(more) == ["p2", "t2", "tp2"]
    return tp / (more["p2"] * more["t2"]).sqrt()


@scores.uses("hard", "distance")
class Mixed(torch.nn.Module):
    """A learned mixture of hard accuracy and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))

    def forward(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, **more: Tensor) -> Tensor:
        assert list(more) == ["hard_tp", "hard_fp", "hard_fn", "hard_tn",
                              "common", "distance_pos", "distance_neg"]  # fmt: skip
        whole = sum(more[f"hard_{name}"] for name in ("tp", "fp", "fn", "tn"))
        decided = (more["hard_tp"] + more["hard_tn"]) / whole
        distance = more["distance_pos"] + more["distance_neg"]
        return self.share * decided + (1 - self.share) * (1 - distance / whole)


def test_scores_get_what_they_ask_for() -> None:
    x, t = soft_labels(9, 4)
    p, t = x.sigmoid(), (t > 0.5).to(F64)
    wrapped = partial(partial(cosine))
    assert scores.used_by(wrapped) == scores.used_by(cosine) == ("squares",)
    assert scores.used_by(Mixed()) == ("hard", "distance")
    assert scores.used_by(scores.dice) == ()
    expected = 1 - ((p * t).sum(0) / ((p * p).sum(0) * (t * t).sum(0)).sqrt()).mean()
    for score in (cosine, wrapped):
        torch.testing.assert_close(customloss.confusion_loss(score, x, t), expected)
    accuracy = ((p > 0.5) == (t > 0)).to(F64).mean()
    own = customloss.ConfusionLoss(Mixed())(x, t)
    torch.testing.assert_close(own, 1 - accuracy / 2 - (1 - (p - t).abs().mean()) / 2)
    by_x = torch.autograd.grad(own, x)[0]  # hard counts have no gradient
    torch.testing.assert_close(by_x, torch.autograd.grad((p - t).abs().mean() / 2, x)[0])
    with pytest.raises(ValueError, match=r"^uses: expected one of .*'squares'.*got 'cubes'"):
        scores.uses("cubes")


@pytest.mark.parametrize("score", [partial(scores.squared_dice, smooth=1.0), Mixed()])
def test_scores_of_more_sums_compile_and_vmap(score: Any) -> None:
    torch._dynamo.reset()
    loss = customloss.ConfusionLoss(score, link="log")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    x, t = soft_labels(9, 4)
    own, expected = compiled(x, t), loss(x, t)
    torch.testing.assert_close(own, expected)
    pair = [torch.autograd.grad(each, x)[0] for each in (own, expected)]
    torch.testing.assert_close(*pair)
    x, t = x.detach().reshape(3, 3, 4), t.reshape(3, 3, 4)
    each = torch.stack([torch.func.grad(loss)(a, b) for a, b in zip(x, t)])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x, t), each)


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
    if score is not scores.generalized_dice:  # its weights have no gradient
        leaves = [each.detach().clone().requires_grad_() for each in sums]
        assert torch.autograd.gradcheck(partial(score, **parameters), leaves, check_forward_ad=True)


@pytest.mark.parametrize("smooth", [0.0, 0.75, (0.25, 1.5)])
@pytest.mark.parametrize("score", scores._COEFFICIENTS, ids=lambda score: score.__name__)
def test_declared_coefficients_are_those_of_the_score(score: Callable, smooth: Any) -> None:
    """A score with coefficients exists twice: its function, and the ratio that the operators use.

    Parameters take odd values, so that a coefficient that forgets one is seen.
    """
    defaults = {name: value for name, value in score.__kwdefaults__.items() if name != "smooth"}
    given = {name: default + 0.375 * n for n, (name, default) in enumerate(defaults.items(), 1)}
    found = scores.coefficients_of(score, **given, smooth=smooth)
    tp_weight, fp_weight, fn_weight, top, bottom = found
    tp, fp, fn, tn = some_sums(3, 4)
    whole = tp_weight * tp + fp_weight * fp + fn_weight * fn + bottom
    expected = (tp_weight * tp + top) / whole
    torch.testing.assert_close(score(tp, fp, fn, tn, **given, smooth=smooth), expected)
    assert scores.as_ratio(partial(score, **given, smooth=smooth)) is not None


@pytest.mark.parametrize("name", TEXTBOOK)
def test_euler(name: str) -> None:
    """A ratio does not change when all sums are scaled, so Σ s dS/ds = 0."""
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
    """An absent class weighs as much as the rarest present one; if all are absent, all weigh 1."""
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
    assert nan.isnan()  # a NaN is not hidden


# ---- the edges -----------------------------------------------------------------------------------

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


@covering
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", [n for n in customloss.losses.base.LOSSES if n != "cross_entropy"])
def test_finite_at_the_edges(name: str, edge: str) -> None:
    values, target = EDGES[edge]
    softmax = customloss.losses.base.LOSSES[name].defaults.get("activation") == "softmax"
    activation = {"activation": "sigmoid"} if softmax else {}
    for dtype in (torch.float32, F64):
        x = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = customloss.loss(name, **activation, check_target=False)(
            x.sigmoid() if name == "custom_f1" else x, torch.tensor(target, dtype=torch.bool)
        )
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if edge == "perfect" and name != "any":
            assert abs(float(loss.detach())) < 1e-9
            assert not gradient.any()


SMOOTH = {
    # options, loss and dL/dP at s = 1/2, T = 0, P = 2: P/(P+s) and s/(P+s)², or those of the log
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
