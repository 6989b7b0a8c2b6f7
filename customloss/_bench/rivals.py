"""Against whom: the same loss as others would write it, each in its fastest correct form.

A family ("eager", "torch.compile", ...) may have several forms; ``run`` times all that pass the
gate and reports the fastest. Every form computes ``mean over classes of 1 - 2 tp / (Σp + Σt)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customloss._bench.cases import Case

Loss = Callable[[Tensor, Tensor], Tensor]

OURS = "customloss"
EAGER = "eager"
COMPILED = "torch.compile"
FAMILIES = (OURS, EAGER, COMPILED, "MONAI", "smp")


class Unavailable(Exception):
    """Why a rival is not in the race."""


@dataclass(frozen=True)
class Rival:
    family: str
    form: str
    build: Callable[[Case], Loss]


def _ours(case: Case) -> Loss:
    loss: Loss = torch.ops.customloss.soft_f1.default
    return loss


# ---- the formula in plain PyTorch ------------------------------------------------------------


def _accumulator(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _group_dims(input: Tensor) -> list[int]:
    """What is summed over: everything but the classes in dim 1."""
    return [dim for dim in range(input.dim()) if dim != 1]


def formula_sums(input: Tensor, target: Tensor) -> Tensor:
    """Product and sums; half dtypes are added up in float32, else float16 overflows."""
    dims, dtype = _group_dims(input), _accumulator(input)
    p = input.sigmoid()
    tp = (p * target).sum(dims, dtype=dtype)
    return (1 - 2 * tp / (p.sum(dims, dtype=dtype) + target.sum(dims))).mean()


def formula_where(input: Tensor, target: Tensor) -> Tensor:
    """A mask in place of the product."""
    dims, dtype = _group_dims(input), _accumulator(input)
    p = input.sigmoid()
    tp = torch.where(target, p, 0).sum(dims, dtype=dtype)
    return (1 - 2 * tp / (p.sum(dims, dtype=dtype) + target.sum(dims))).mean()


def formula_dot(input: Tensor, target: Tensor) -> Tensor:
    """A dot product, which saves a pass; one group only."""
    p = input.to(_accumulator(input)).sigmoid().flatten()
    tp = torch.dot(p, target.flatten().to(p.dtype))
    return 1 - 2 * tp / (p.sum() + torch.count_nonzero(target))


def formula_dot_in_own_dtype(input: Tensor, target: Tensor) -> Tensor:
    """All in the input's dtype: right in bfloat16 to its two digits, overflows in float16."""
    p = input.sigmoid().flatten()
    tp = torch.dot(p, target.flatten().to(p.dtype))
    return 1 - 2 * tp / (p.sum() + torch.count_nonzero(target))


def _one_group(formula: Loss) -> Callable[[Case], Loss]:
    def build(case: Case) -> Loss:
        if len(case.shape) > 1 and case.shape[1] > 1:
            raise Unavailable("one group only")
        return formula

    return build


def _compiled(formula: Loss, **options: Any) -> Callable[[Case], Loss]:
    def build(case: Case) -> Loss:
        loss: Loss = torch.compile(formula, dynamic=False, **options)
        return loss

    return build


# ---- libraries -------------------------------------------------------------------------------


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"not installed ({error})") from None


def _monai(case: Case) -> Loss:
    if len(case.shape) < 2:
        raise Unavailable("needs a class dimension")
    losses = _library("monai.losses")
    loss: Loss = losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=0.0, smooth_dr=0.0)
    return loss


def _smp(case: Case) -> Loss:
    if len(case.shape) < 2:
        raise Unavailable("needs a class dimension")
    losses = _library("segmentation_models_pytorch.losses")
    loss: Loss = losses.DiceLoss("multilabel", from_logits=True, smooth=0.0, eps=0.0)
    return loss


def rivals(device: torch.device, *, compile: bool = True) -> list[Rival]:
    """Everyone who may race on this device, ours first."""
    found = [
        Rival(OURS, "op", _ours),
        Rival(EAGER, "sums", lambda case: formula_sums),
        Rival(EAGER, "where", lambda case: formula_where),
        Rival(EAGER, "dot", _one_group(formula_dot)),
        Rival(EAGER, "dot in own dtype", _one_group(formula_dot_in_own_dtype)),
        Rival("MONAI", "DiceLoss", _monai),
        Rival("smp", "DiceLoss", _smp),
    ]
    if compile:
        found.append(Rival(COMPILED, "default", _compiled(formula_sums)))
    if compile and device.type == "cuda":
        tuned = {"max_autotune": True, "coordinate_descent_tuning": True}
        found.append(Rival(COMPILED, "tuned", _compiled(formula_sums, options=tuned)))
    return found
