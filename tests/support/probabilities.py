"""Probabilities at and near 0 and 1, and the slopes of the log-losses there, by formulas.

A logarithm is that of max(p, 1e-30): below this floor it is constant, so its slope is 0.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from customloss import reference

FLOOR = 1e-30
ENDS = (0.0, 1e-31, FLOOR, 1e-20, 0.25, 1.0)
TARGETS = (0.0, 1.0, 0.75)


def ends(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every probability of ENDS with every target, as ``[18, 2]``: two equal classes."""
    pairs = torch.tensor(list(itertools.product(ENDS, TARGETS)), dtype=dtype)
    p, t = pairs.unbind(1)
    return p[:, None].repeat(1, 2), t[:, None].repeat(1, 2)


def slopes(p: Tensor, t: Tensor, log_loss: float, focal: float, gamma: float) -> Tensor:
    """d/dp of ``log_loss`` times the log-loss and ``focal`` times the focal loss of elements."""
    dtype, floor = p.dtype, float(torch.tensor(FLOOR, dtype=p.dtype))
    q = (1 - p).double().numpy()  # as rounded in the dtype of p
    p, t = p.double().numpy(), t.double().numpy()
    u, lost, alarm = 1 - t, -np.log(np.maximum(p, floor)), -np.log(np.maximum(q, floor))
    by_lost = np.where(p < floor, 0, -1 / np.where(p < floor, 1, p))
    by_alarm = np.where(q < floor, 0, 1 / np.where(q < floor, 1, q))
    of_log = t * by_lost + u * by_alarm
    missed = t * q + u * p
    # where a power of 0 has no slope, the logarithm that it is multiplied with is 0
    by_missed = np.where(missed == 0, 0, gamma * np.where(missed == 0, 1, missed) ** (gamma - 1))
    of_focal = missed**gamma * of_log + by_missed * (u - t) * (t * lost + u * alarm)
    return torch.from_numpy(log_loss * of_log + focal * of_focal).to(dtype)


def coefficients(extra: int, log_loss: float, focal: float, classes: int = 2) -> Tensor:
    """The gradient by the sums of ``extra`` whose gradient by p is that of :func:`slopes`."""
    by = {"log_loss": log_loss, "focal": focal}
    rows = [
        next((value for word, value in by.items() if name.startswith(word)), 0.0)
        for name in reference.rows(extra)
    ]
    return torch.tensor(rows, dtype=torch.float64)[:, None, None].repeat(1, 1, classes)
