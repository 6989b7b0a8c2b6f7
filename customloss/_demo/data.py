"""Three small problems from data that comes with scikit-learn: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Data and its splits. A *model* is one fold of one seed; all are trained at once."""

    name: str
    positive: str  # what is to be found
    features: Tensor  # [rows, features], standardised
    target: Tensor  # [classes, rows], bool
    train: Tensor  # [models, rows], bool; the other rows are the test fold
    seeds: int  # models = seeds x folds, folds fastest
    steps: int  # of Adam, full batch
    learning_rate: float
    hidden: int | None = None  # units of the hidden layer; None for a linear model

    @property
    def prevalence(self) -> float:
        return float(self.target.float().mean())


def _standardised(features: np.ndarray) -> Tensor:
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread == 0, 1, spread)
    return torch.from_numpy(scaled).float()


def _train_masks(labels: np.ndarray, seeds: int, folds: int, used: int) -> Tensor:
    """The first ``used`` of each seed's ``folds`` stratified splits: ``[seeds * used, rows]``."""
    masks = np.zeros((seeds * used, len(labels)), dtype=bool)
    for seed in range(seeds):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for fold, (train, _) in enumerate(islice(splitter.split(labels, labels), used)):
            masks[seed * used + fold, train] = True
    return torch.from_numpy(masks)


def diabetes(percentile: int, seeds: int) -> Problem:
    """442 patients: is the progression of the disease above its ``percentile``?"""
    features, progression = load_diabetes(return_X_y=True)
    target = progression > np.percentile(progression, percentile)
    return Problem(
        name=f"diabetes > P{percentile}",
        positive=f"progression above its {percentile}th percentile",
        features=_standardised(features),
        target=torch.from_numpy(target)[None],
        train=_train_masks(target, seeds, folds=5, used=5),
        seeds=seeds,
        steps=1000,
        learning_rate=0.1,
    )


def digits(seeds: int) -> Problem:
    """1797 digits of 8x8 pixels: ten one-vs-rest questions, half the images to learn from."""
    images, labels = load_digits(return_X_y=True)
    return Problem(
        name="digits",
        positive="one digit against the other nine, ten times; F1 is their mean (macro)",
        features=torch.from_numpy(images / 16).float(),
        target=torch.from_numpy(labels)[None] == torch.arange(10)[:, None],
        train=_train_masks(labels, seeds, folds=2, used=1),
        seeds=seeds,
        steps=300,
        learning_rate=0.03,
        hidden=32,
    )


def problems(seeds: int) -> list[Problem]:
    """Both P90 and P80, because one gains from soft-F1 and the other does not."""
    return [diabetes(90, seeds), diabetes(80, seeds), digits(seeds)]
