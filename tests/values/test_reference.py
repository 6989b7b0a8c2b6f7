"""The reference agrees with numbers computed by hand, exact rationals and other libraries.

The exact rationals are a second specification; the libraries are scikit-learn and torchmetrics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction as F
from typing import Any

import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics
from torch import Tensor

from customloss import reference


def halves(rows: list[list[int]], by: int = 4) -> Tensor:
    """Small integers divided by a power of two, which every floating dtype holds exactly."""
    return torch.tensor(rows, dtype=torch.float64) / by


# ---- by hand -------------------------------------------------------------------------------------

# probabilities in quarters, hard targets:       class 0           class 1
#   3/4 -> 1   1/4 -> 0                     tp 3/4 + 1/2 = 5/4     tp 1/4
#   1/2 -> 1   1/4 -> 1                     fp 1/4                 fp 1/4 + 1/2 = 3/4
#   1/4 -> 0   1/2 -> 0                     fn 1/4 + 1/2 = 3/4     fn 3/4
#                                           tn 3/4                 tn 3/4 + 1/2 = 5/4
P = halves([[3, 1], [2, 1], [1, 2]])
T = torch.tensor([[1, 0], [1, 1], [0, 0]])
NONE = {"activation": "none"}

BY_HAND: dict[str, tuple[dict[str, Any], Any]] = {
    # (fp + fn) / (2 tp + fp + fn): (1/4 + 3/4) / (10/4 + 1) = 2/7 and (6/4) / (2/4 + 6/4) = 3/4
    "classes": ({"average": "none", "reduction": "none"}, [F(2, 7), F(3, 4)]),
    "macro": ({}, F(29, 56)),
    "sum": ({"average": "none", "reduction": "sum"}, F(29, 28)),
    # tp 6/4, fp 1, fn 6/4: (5/2) / (3 + 5/2)
    "micro": ({"average": "micro"}, F(5, 11)),
    # support 2 and 1
    "weighted": ({"average": "weighted"}, (2 * F(2, 7) + F(3, 4)) / 3),
    # beta 2: (fp + 4 fn) / (5 tp + fp + 4 fn) = (13/4) / (38/4) and (15/4) / (20/4)
    "beta 2": ({"average": "none", "reduction": "none", "beta": 2.0}, [F(13, 38), F(3, 4)]),
    # beta 0, precision alone: fp / (tp + fp)
    "beta 0": ({"average": "none", "reduction": "none", "beta": 0.0}, [F(1, 6), F(3, 4)]),
    # s = 1/2 in the denominator alone: 1 / (4) and (6/4) / (10/4)
    "smooth": ({"average": "none", "reduction": "none", "smooth": 0.5}, [F(1, 4), F(3, 5)]),
    "negative": ({"link": "negative"}, F(29, 56) - 1),
    "focal": ({"average": "none", "reduction": "none", "link": "focal", "gamma": 2.0},
              [F(4, 49), F(9, 16)]),
    # of each sample: 1 - 2 tp / (2 tp + fp + fn); the third has no positive, so its loss is 1
    "samples": ({"average": "micro", "samplewise": True, "reduction": "none"},
                [F(2, 8), F(5, 11), F(1)]),
    "samples, skip": ({"average": "micro", "samplewise": True, "absent": "skip"},
                      (F(2, 8) + F(5, 11)) / 2),
    # the third's false-positive rate: (1/4 + 1/2) / 2
    "samples, penalize": (
        {"average": "micro", "samplewise": True, "absent": "penalize", "reduction": "none"},
        [F(2, 8), F(5, 11), F(3, 8)],
    ),
}  # fmt: skip


def expected_tensor(value: Any) -> Tensor:
    values = [float(each) for each in value] if isinstance(value, list) else float(value)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    options, value = BY_HAND[name]
    loss = reference.soft_f1(P, T, **NONE, **options)
    torch.testing.assert_close(loss, expected_tensor(value), rtol=1e-15, atol=0)


def test_logarithm_by_hand() -> None:
    loss = reference.soft_f1(P, T, **NONE, link="log", average="none", reduction="none")
    expected = torch.tensor([math.log(7 / 5), math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-15, atol=0)


def test_sums_by_hand() -> None:
    sums = reference.confusion(P, T, None, "none", 1.0, 0.0, False, True)[:, 0]
    assert (4 * sums).tolist() == [[5, 1], [1, 3], [3, 3], [3, 5]]


def test_sigmoid_by_hand() -> None:
    """Logits log(3), 0, -log(3) are probabilities 3/4, 1/2, 1/4; scaling and moving is undone."""
    third = math.log(3)
    x = torch.tensor([[third, -third], [0.0, -third], [-third, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        reference.soft_f1(x, T), expected_tensor(F(29, 56)), rtol=1e-15, atol=0
    )
    moved = reference.soft_f1(x / 2 + 1, T, logit_scale=2.0, logit_offset=1.0)
    torch.testing.assert_close(moved, expected_tensor(F(29, 56)), rtol=1e-15, atol=0)


def test_weights_by_hand() -> None:
    """Weights 1, 2, 0: class 0 has tp 3/4 + 1, fn 1/4 + 1; class 1 tp 1/2, fp 1/4, fn 3/2."""
    weight = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64)
    loss = reference.soft_f1(P, T, weight, **NONE, average="none", reduction="none")
    expected = expected_tensor([F(5, 4) / (F(7, 2) + F(5, 4)), F(7, 4) / F(11, 4)])
    torch.testing.assert_close(loss, expected, rtol=1e-15, atol=0)


def test_empty_groups_by_hand() -> None:
    """0 / 0 has loss 0, similarity 1, and no gradient by anything."""
    p = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    for link, value in (("complement", 0), ("log", 0), ("negative", -1), ("focal", 0)):
        for absent in ("score", "penalize", "skip"):
            if absent == "skip" or (absent == "penalize" and link == "negative"):
                value = 0
            loss = reference.soft_f1(p, t, w, **NONE, link=link, absent=absent)
            assert loss == value, (link, absent)
            for gradient in torch.autograd.grad(loss, (p, t, w)):
                assert not gradient.any(), (link, absent)


# ---- a second specification, in rationals --------------------------------------------------------


def exact(p: Tensor, t: Tensor, w: Tensor, options: dict[str, Any]) -> Any:
    """The loss of ``[N, C]`` probabilities, in loops over exact rationals."""
    groups: dict[tuple[int, int], list[F]] = {}
    samplewise, average = options["samplewise"], options["average"]
    for n, c in itertools.product(*map(range, p.shape)):
        key = (n if samplewise else 0, 0 if average == "micro" else c)
        own = groups.setdefault(key, [F(0)] * 4)
        pi, ti, wi = (F(float(each[n, c])) for each in (p, t, w))
        for i, share in enumerate((pi * ti, pi * (1 - ti), (1 - pi) * ti, (1 - pi) * (1 - ti))):
            own[i] += wi * share
    squared = F(options["beta"]) ** 2
    rows: dict[int, list[tuple[F, F]]] = {}
    for (n, _), (tp, fp, fn, tn) in groups.items():
        hit, miss = (1 + squared) * tp + F(options["smooth"]), fp + squared * fn
        similarity = hit / (hit + miss) if hit + miss else F(1)
        loss = -similarity if options["link"] == "negative" else 1 - similarity
        counts = F(1)
        if tp + fn == 0 and options["absent"] == "skip":
            loss = counts = F(0)
        if tp + fn == 0 and options["absent"] == "penalize":
            loss = fp / (fp + tn) if fp + tn else F(0)
        if average == "weighted":
            counts *= tp + fn
        rows.setdefault(n, []).append((loss, counts))

    def mean(pairs: list[tuple[F, F]]) -> tuple[F, F]:
        total = sum(counts for _, counts in pairs)
        return (sum(x * counts for x, counts in pairs) / total if total else F(0)), F(total != 0)

    if average == "none":
        kept = [pair for row in rows.values() for pair in row]
    else:
        kept = [mean(row) for row in rows.values()]
    if options["reduction"] == "mean":
        return mean(kept)[0]
    if options["reduction"] == "sum":
        return sum(loss for loss, _ in kept)
    return [loss for loss, _ in kept]


CHOICES = {
    "average": ("macro", "micro", "weighted", "none"),
    "samplewise": (False, True),
    "reduction": ("mean", "sum", "none"),
    "absent": ("score", "skip", "penalize"),
    "link": ("complement", "negative"),
}


@pytest.mark.parametrize("choice", list(itertools.product(*CHOICES.values())), ids=str)
def test_against_exact_rationals(choice: tuple) -> None:
    generator = torch.Generator().manual_seed(3)
    p = torch.randint(0, 9, (4, 3), generator=generator).double() / 8
    t = torch.randint(0, 5, (4, 3), generator=generator).double() / 4
    w = torch.randint(0, 3, (4, 3), generator=generator).double()
    t[:, 1] = 0  # a class without a positive
    t[2] = 0  # a sample without a positive
    w[3] = 0  # a sample that does not count at all
    for beta, smooth in ((1.0, 0.0), (2.0, 0.0), (0.5, 0.25)):
        options = dict(zip(CHOICES, choice)) | {"beta": beta, "smooth": smooth}
        loss = reference.soft_f1(p, t, w, **NONE, **options)
        expected = expected_tensor(exact(p, t, w, options))
        torch.testing.assert_close(loss.reshape(-1), expected.reshape(-1), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2), (2, 3, 2, 2)])
@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_gradient_formulas_are_the_derivatives(
    per_class: bool, samplewise: bool, shape: tuple[int, ...]
) -> None:
    """``confusion_backward`` is what autograd derives from ``confusion``."""
    per_class = per_class and len(shape) > 1
    for activation, scale, offset in (("sigmoid", 1.0, 0.0), ("sigmoid", 2.0, 0.5), ("none", 1, 0)):
        operands = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        elements = (activation, scale, offset, samplewise, per_class)
        sums = reference.confusion(*operands, *elements)
        grad = torch.randn_like(sums)
        expected = torch.autograd.grad(sums, operands, grad)
        for wrt, wanted in zip(("input", "target", "weight"), expected):
            own = reference.confusion_backward(grad, *operands, wrt, *elements)
            torch.testing.assert_close(own, wanted)


def test_weighted_average_moves_with_the_support_of_an_absent_class() -> None:
    """d/ds of sum(s l) / sum(s) at s = 0 is (l - mean) / sum(s), which is not 0."""
    p = torch.rand(6, 2, dtype=torch.float64)
    t = torch.tensor([[1.0, 0.0]] * 6, dtype=torch.float64, requires_grad=True)
    loss = reference.soft_f1(p, t, average="weighted")
    (gradient,) = torch.autograd.grad(loss, t)
    step = torch.zeros_like(t)
    step[2, 1] = 1e-7
    nudged = reference.soft_f1(p, t.detach() + step, average="weighted")
    numeric = (nudged - loss.detach()) / 1e-7
    torch.testing.assert_close(gradient[2, 1], numeric, rtol=1e-5, atol=0)


# ---- scikit-learn and torchmetrics ---------------------------------------------------------------


def hard(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(shape, generator=generator) < 0.4).long()
    flipped = (torch.rand(shape, generator=generator) < 0.3).long()
    return target ^ flipped, target


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_fbeta_of_hard_predictions_is_scikit_learns(average: str, beta: float) -> None:
    for seed in range(5):
        p, t = hard((40, 5), seed)
        score = sklearn.metrics.fbeta_score(
            t, p, beta=beta, average=None if average == "none" else average, zero_division=1.0
        )
        loss = reference.soft_f1(
            p.double(), t, **NONE, beta=beta, average=average,
            reduction="none" if average == "none" else "mean",
        )  # fmt: skip
        torch.testing.assert_close(1 - loss, torch.as_tensor(score, dtype=torch.float64))


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        (sklearn.metrics.precision_score, lambda tp, fp, fn: tp / (tp + fp)),
        (sklearn.metrics.recall_score, lambda tp, fp, fn: tp / (tp + fn)),
        (sklearn.metrics.jaccard_score, lambda tp, fp, fn: tp / (tp + fp + fn)),
    ],
)
def test_scores_of_the_sums_are_scikit_learns(metric: Callable, score: Callable) -> None:
    p, t = hard((60, 4), 1)
    tp, fp, fn, tn = reference.confusion(p.double(), t, None, "none", 1.0, 0.0, False, True)[:, 0]
    torch.testing.assert_close(
        score(tp, fp, fn), torch.as_tensor(metric(t, p, average=None), dtype=torch.float64)
    )
    table = torch.as_tensor(sklearn.metrics.multilabel_confusion_matrix(t, p)).double()
    assert torch.equal(torch.stack([tn, fp, fn, tp], 1).reshape(-1, 2, 2), table)


def test_precision_and_recall_are_the_ends_of_beta() -> None:
    p, t = hard((50,), 4)
    precision = 1 - reference.soft_f1(p.double(), t, **NONE, beta=0.0)
    recall = 1 - reference.soft_f1(p.double(), t, **NONE, beta=1e6)
    assert float(precision) == pytest.approx(sklearn.metrics.precision_score(t, p))
    assert float(recall) == pytest.approx(sklearn.metrics.recall_score(t, p), rel=1e-9)


def test_samplewise_micro_is_scikit_learns_samples() -> None:
    """A sample without positives and predictions is 0 / 0, which is 1 on both sides."""
    p, t = hard((40, 6), 2)
    score = sklearn.metrics.f1_score(t, p, average="samples", zero_division=1.0)
    loss = reference.soft_f1(p.double(), t, **NONE, average="micro", samplewise=True)
    assert float(1 - loss) == pytest.approx(score)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_samplewise_is_torchmetrics(average: str) -> None:
    """``[N, C, L]``: a score per sample, averaged over the classes of the sample."""
    p, t = hard((7, 4, 30), 3)
    score = torchmetrics.multilabel_fbeta_score(
        p, t, beta=2.0, num_labels=4, average=average, multidim_average="samplewise"
    )
    loss = reference.soft_f1(
        p.double(), t, **NONE, beta=2.0, average=average, samplewise=True, reduction="none"
    )
    torch.testing.assert_close((1 - loss).float(), score)


def test_absent_classes_are_scikit_learns_zero_division() -> None:
    """A class with predictions but no positive has F = 0; one with neither is 0 / 0, which is 1."""
    p, t = hard((30, 3), 5)
    t[:, 1:], p[:, 2] = 0, 0
    score = sklearn.metrics.f1_score(t, p, average=None, zero_division=1.0)
    loss = reference.soft_f1(p.double(), t, **NONE, average="none", reduction="none")
    torch.testing.assert_close(1 - loss, torch.as_tensor(score))
    assert score.tolist()[1:] == [0.0, 1.0]
