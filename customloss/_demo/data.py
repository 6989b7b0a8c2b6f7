"""Four small problems from data that comes with scikit-learn: nothing is downloaded."""

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
    """Data and its splits. A *split* is one fold of one seed; all are trained at once."""

    name: str
    positive: str  # what is to be found
    features: Tensor  # [rows, features]
    target: Tensor  # [classes, rows], bool
    train: Tensor  # [splits, rows], bool; the other rows are the test fold
    inner: Tensor  # [splits, inner folds, rows], bool; the rest of train is held out by that fold
    seeds: range  # splits = seeds x folds, folds fastest
    steps: int  # of Adam, full batch
    learning_rate: float
    standardise: bool  # by mean and sd of the rows that a model is trained on
    strengths: tuple[float, ...]  # of L2, to choose from; the first is none
    hidden: int | None = None  # units of the hidden layer; None for a linear model

    @property
    def prevalence(self) -> float:
        return float(self.target.float().mean())


def _train_masks(labels: np.ndarray, seeds: range, folds: int, used: int) -> np.ndarray:
    """The first ``used`` of each seed's ``folds`` stratified splits: ``[seeds * used, rows]``."""
    masks = np.zeros((len(seeds) * used, len(labels)), dtype=bool)
    for place, seed in enumerate(seeds):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for fold, (train, _) in enumerate(islice(splitter.split(labels, labels), used)):
            masks[place * used + fold, train] = True
    return masks


def _inner_masks(labels: np.ndarray, outer: np.ndarray, seeds: range, folds: int) -> np.ndarray:
    """Stratified folds of the train rows alone: ``[splits, folds, rows]``."""
    masks = np.zeros((len(outer), folds, len(labels)), dtype=bool)
    for split, mask in enumerate(outer):
        rows = np.flatnonzero(mask)
        seed = seeds[split * len(seeds) // len(outer)]
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for fold, (train, _) in enumerate(splitter.split(rows, labels[rows])):
            masks[split, fold, rows[train]] = True
    return masks


def diabetes(percentile: int, seeds: range) -> Problem:
    """442 patients: is the progression of the disease above its ``percentile``?"""
    features, progression = load_diabetes(return_X_y=True)
    target = progression > np.percentile(progression, percentile)
    train = _train_masks(target, seeds, folds=5, used=5)
    return Problem(
        name=f"diabetes > P{percentile}",
        positive=f"progression above its {percentile}th percentile",
        features=torch.from_numpy(features).float(),
        target=torch.from_numpy(target)[None],
        train=torch.from_numpy(train),
        inner=torch.from_numpy(_inner_masks(target, train, seeds, folds=5)),
        seeds=seeds,
        steps=1000,
        learning_rate=0.1,
        standardise=True,
        strengths=(0.0, 0.001, 0.01, 0.1, 1.0),
    )


def digits(seeds: range) -> Problem:
    """1797 digits of 8x8 pixels: ten one-vs-rest questions, half the images to learn from."""
    images, labels = load_digits(return_X_y=True)
    train = _train_masks(labels, seeds, folds=2, used=1)
    return Problem(
        name="digits",
        positive="one digit against the other nine, ten times; F1 is their mean (macro)",
        features=torch.from_numpy(images / 16).float(),
        target=torch.from_numpy(labels)[None] == torch.arange(10)[:, None],
        train=torch.from_numpy(train),
        inner=torch.from_numpy(_inner_masks(labels, train, seeds, folds=3)),
        seeds=seeds,
        steps=300,
        learning_rate=0.03,
        standardise=False,
        strengths=(0.0, 0.001, 0.01),
        hidden=32,
    )


def problems(seeds: range) -> list[Problem]:
    """Few positives, more of them, and half: what soft-F1 gains depends on it. And ten classes."""
    return [*(diabetes(percentile, seeds) for percentile in (90, 80, 50)), digits(seeds)]
