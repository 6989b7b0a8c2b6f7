"""The published numbers of the AnyLoss paper's perceptrons on load_breast_cancer are reproduced.

Han et al., "AnyLoss", KDD 2024, and their released 10CV_Perceptron_102datasets(12282023).csv, data
set 33. Their protocol: malignant is positive; features standardised over all rows, ddof 1; a bias
column; weights start at 0; 1000 steps of gradient descent on the whole of the train fold;
stratified 10-fold with seed 2; threshold 1/2; learning rates 0.1 (BCE), 0.01 (F1), and 0.005 (F0.5
and F2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from selection import one_of_each
from sklearn import metrics
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

import customloss

# accuracy, F1, F0.5, F2, G-mean, balanced accuracy: means over the folds
PUBLISHED = {
    "bce": (0.9807, 0.9734, 0.9806, 0.9667, 0.9767, 0.9771),
    "f1": (0.9789, 0.9709, 0.9767, 0.9656, 0.9752, 0.9756),
    "f0.5": (0.9737, 0.9624, 0.9782, 0.9477, 0.9655, 0.9665),
    "f2": (0.9666, 0.9554, 0.9525, 0.9593, 0.9654, 0.9659),
}
RATES = {"bce": 0.1, "f1": 0.01, "f0.5": 0.005, "f2": 0.005}


def any_loss(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    loss = customloss.AnyLoss(beta=beta)
    return lambda logits, target: loss(logits.sigmoid(), target)


LOSSES = {
    "bce": torch.nn.functional.binary_cross_entropy_with_logits,
    "f1": any_loss(1.0),
    "f0.5": any_loss(0.5),
    "f2": any_loss(2.0),
}


def g_mean(truth: np.ndarray, found: np.ndarray) -> float:
    recalls = metrics.recall_score(truth, found, average=None)
    return float(np.sqrt(recalls.prod()))


METRICS = (
    metrics.accuracy_score,
    metrics.f1_score,
    partial(metrics.fbeta_score, beta=0.5),
    partial(metrics.fbeta_score, beta=2.0),
    g_mean,
    metrics.balanced_accuracy_score,
)


@one_of_each(lambda name: name == "bce")
@pytest.mark.parametrize("name", PUBLISHED)
def test_any_loss_on_breast_cancer(name: str) -> None:
    data = load_breast_cancer()
    y = (data.target == 0).astype(int)
    x = (data.data - data.data.mean(0)) / data.data.std(0, ddof=1)
    x = np.hstack([np.ones((len(x), 1)), x])
    folds = StratifiedKFold(10, shuffle=True, random_state=2).split(x, y)
    scores = []
    for train, test in folds:
        rows, target = torch.tensor(x[train]), torch.tensor(y[train], dtype=torch.float64)
        theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        for _ in range(1000):
            (gradient,) = torch.autograd.grad(LOSSES[name](rows @ theta, target), theta)
            theta.data.sub_(gradient, alpha=RATES[name])
        found = (torch.tensor(x[test]) @ theta.detach() > 0).numpy().astype(int)
        scores.append([metric(y[test], found) for metric in METRICS])
    assert tuple(np.round(np.mean(scores, 0), 4).tolist()) == PUBLISHED[name]
