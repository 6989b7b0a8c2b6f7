"""The rivals: the same loss as others would write it, each in its fastest correct form.

A family ("eager", "torch.compile", ...) may have several forms; ``run`` times all that pass the
gate and reports the fastest. Every form computes ``mean over classes of 1 - 2 tp / (Σp + Σt)``, and
adds the mean cross-entropy or focal loss where the case has one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import customloss
from customloss._bench.cases import Case

Loss = Callable[[Tensor, Tensor], Tensor]

OURS = "customloss"
EAGER = "eager"
COMPILED = "torch.compile"
FAMILIES = (OURS, EAGER, COMPILED, "MONAI", "nnU-Net", "smp", "kornia")


class Unavailable(Exception):
    """Raised where a rival is not in the race, with the reason."""


@dataclass(frozen=True)
class Rival:
    family: str
    form: str
    build: Callable[[Case], Loss]


def _ours(case: Case) -> Loss:
    if case.beside:
        if case.labels is not None:
            return customloss.dice_ce_loss
        return customloss.dice_focal_loss if case.beside == "focal" else customloss.dice_bce_loss
    op: Any = torch.ops.customloss.soft_f1.default
    loss: Loss = op if case.labels is None else partial(op, activation="softmax")
    return loss


# ---- the formula in plain PyTorch ------------------------------------------------------------


def _accumulator(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _group_dims(input: Tensor) -> list[int]:
    """The dims to sum over: all but the classes in dim 1."""
    return [dim for dim in range(input.dim()) if dim != 1]


def formula_sums(input: Tensor, target: Tensor) -> Tensor:
    """A product and sums; half dtypes are added up in float32, else float16 overflows."""
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
    """All in the dtype of the input: right to two digits in bfloat16, overflows in float16."""
    p = input.sigmoid().flatten()
    tp = torch.dot(p, target.flatten().to(p.dtype))
    return 1 - 2 * tp / (p.sum() + torch.count_nonzero(target))


def _one_group(formula: Loss) -> Callable[[Case], Loss]:
    def build(case: Case) -> Loss:
        if len(case.shape) > 1 and case.shape[1] > 1:
            raise Unavailable("one group only")
        return _with(formula, case)

    return build


def _binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    functional = torch.nn.functional
    return functional.binary_cross_entropy_with_logits(input, target.to(input.dtype))


def _binary_focal(input: Tensor, target: Tensor) -> Tensor:
    """γ = 2, without α."""
    functional = torch.nn.functional
    t = target.to(input.dtype)
    missed = functional.binary_cross_entropy_with_logits(input, t, reduction="none")
    return (missed * (input.sigmoid() - t) ** 2).mean()


def _with(formula: Loss, case: Case) -> Loss:
    """A formula plus the loss that the case has beside it."""
    if not case.beside:
        return formula
    beside: Loss = _binary_focal if case.beside == "focal" else _binary_cross_entropy
    if case.labels is not None:
        beside = _cross_entropy
    return lambda input, target: formula(input, target) + beside(input, target)


def _of_masks(formula: Loss, **options: Any) -> Callable[[Case], Loss]:
    """Compiled with ``options`` of torch.compile, if there are any."""

    def build(case: Case) -> Loss:
        if case.labels is not None:
            raise Unavailable("masks only")
        loss = _with(formula, case)
        compiled: Loss = torch.compile(loss, **options) if options else loss
        return compiled

    return build


# ---- the same for a softmax and class numbers --------------------------------------------------


def labels_compared(input: Tensor, target: Tensor) -> Tensor:
    """The one-hot target is a comparison, so that no int64 one-hot tensor is made."""
    dims, dtype = _group_dims(input), _accumulator(input)
    p = input.softmax(1)
    numbers = torch.arange(input.shape[1], device=input.device)
    t = target.unsqueeze(1) == numbers.reshape(-1, *(1 for _ in input.shape[2:]))
    tp = torch.where(t, p, 0).sum(dims, dtype=dtype)
    return (1 - 2 * tp / (p.sum(dims, dtype=dtype) + t.sum(dims))).mean()


def labels_gathered(input: Tensor, target: Tensor) -> Tensor:
    """The probabilities of the true classes, gathered and added up class by class."""
    dims, dtype = _group_dims(input), _accumulator(input)
    p, target = input.softmax(1), target.long()
    hit = p.gather(1, target.unsqueeze(1)).to(dtype).flatten()
    zero = torch.zeros(input.shape[1], dtype=dtype, device=input.device)
    tp = zero.index_add(0, target.flatten(), hit)
    support = torch.bincount(target.flatten(), minlength=input.shape[1])
    return (1 - 2 * tp / (p.sum(dims, dtype=dtype) + support)).mean()


def _cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(input, target.long())


def _of_labels(formula: Loss, **options: Any) -> Callable[[Case], Loss]:
    """Compiled with ``options`` of torch.compile, if there are any."""

    def build(case: Case) -> Loss:
        if case.labels is None:
            raise Unavailable("class numbers only")
        loss = _with(formula, case)
        compiled: Loss = torch.compile(loss, **options) if options else loss
        return compiled

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
    options: dict[str, Any] = {"batch": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
    names = {"": "DiceLoss", "cross_entropy": "DiceCELoss", "focal": "DiceFocalLoss"}
    kind = getattr(losses, names[case.beside])
    if case.labels is None:
        masks: Loss = kind(sigmoid=True, **options)
        if not case.beside:
            return masks
        return lambda input, target: masks(input, target.to(input.dtype))
    loss: Loss = kind(softmax=True, to_onehot_y=True, **options)
    return lambda input, target: loss(input, target.unsqueeze(1))


def _smp(case: Case) -> Loss:
    if len(case.shape) < 2:
        raise Unavailable("needs a class dimension")
    losses = _library("segmentation_models_pytorch.losses")
    mode = "multilabel" if case.labels is None else "multiclass"
    loss: Loss = losses.DiceLoss(mode, from_logits=True, smooth=0.0, eps=0.0)
    return _with(loss, case)


def rivals(device: torch.device, *, compile: bool = True) -> list[Rival]:
    """All implementations that may race on this device, ours first."""
    found = [
        Rival(OURS, "op", _ours),
        Rival(EAGER, "sums", _of_masks(formula_sums)),
        Rival(EAGER, "where", _of_masks(formula_where)),
        Rival(EAGER, "dot", _one_group(formula_dot)),
        Rival(EAGER, "dot in own dtype", _one_group(formula_dot_in_own_dtype)),
        Rival(EAGER, "compared", _of_labels(labels_compared)),
        Rival(EAGER, "gathered", _of_labels(labels_gathered)),
        Rival("MONAI", "DiceLoss", _monai),
        Rival("smp", "DiceLoss", _smp),
    ]
    if compile:
        found.append(Rival(COMPILED, "default", _of_masks(formula_sums, dynamic=False)))
        for name, formula in (("compared", labels_compared), ("gathered", labels_gathered)):
            found.append(Rival(COMPILED, name, _of_labels(formula, dynamic=False)))
    if compile and device.type == "cuda":
        tuned = {"max_autotune": True, "coordinate_descent_tuning": True}
        options = {"dynamic": False, "options": tuned}
        found.append(Rival(COMPILED, "tuned", _of_masks(formula_sums, **options)))
        found.append(Rival(COMPILED, "tuned compared", _of_labels(labels_compared, **options)))
    return found
