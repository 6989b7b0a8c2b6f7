"""Which implementation computes the sums: chosen by the device, or by the user."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss import _checks, _fallback, _load

NAMES = ("auto", "cuda", "triton", "reference")

_chosen = "auto"


class Implementation(NamedTuple):
    """The primitives with one contract; see ``_ops.py`` for their schemas."""

    confusion: Any
    confusion_score: Any
    confusion_backward: Any
    sums_score: Any


class backend:
    """Chooses the backend from here on, or inside a ``with`` block.

    ``"auto"`` takes the compiled kernels of the input's device, Triton where there are none, and
    the reference where there is neither. ``"cuda"``, ``"triton"`` and ``"reference"`` insist: a
    choice that cannot be met raises ``RuntimeError``, here or at the call. The environment
    variable ``CUSTOMLOSS_BACKEND`` sets the first choice. Code that is compiled or exported under
    ``"triton"`` runs what ``"auto"`` would.

    Example::

        customloss.backend("triton")
        with customloss.backend("reference"):
            loss = customloss.soft_f1_loss(logits, target)
    """

    def __init__(self, name: str) -> None:
        _checks.one_of("backend", name, NAMES)
        if name == "cuda" and not _load.loaded("_C_cuda"):
            raise RuntimeError(f'backend "cuda" is not available: {_load.status.get("_C_cuda")}')
        if name == "triton":
            _triton()
        global _chosen
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self._previous


def current_backend() -> str:
    """The backend's name, ``"auto"`` unless one was chosen."""
    return _chosen


def choose_from_environment() -> None:
    """Applies ``CUSTOMLOSS_BACKEND``."""
    name = os.environ.get("CUSTOMLOSS_BACKEND")
    if name:
        backend(name)


def _triton() -> Any:
    try:
        from customloss.kernels import confusion
    except ImportError as error:
        raise RuntimeError(f'backend "triton" is not available: {error}') from error
    return confusion


def _dispatched() -> Implementation:
    ops = torch.ops.customloss
    return Implementation(*(getattr(ops, name).default for name in Implementation._fields))


def implementation(input: Tensor) -> Implementation:
    """The primitives to call for this input."""
    # what is traced has to be an operator; it runs where the dispatcher has it run
    if _chosen == "auto" or (_chosen == "triton" and torch._C._len_torch_dispatch_stack()):
        return _AUTO
    if _chosen == "cuda":
        if input.device.type != "cuda":
            raise RuntimeError(f'backend "cuda" needs a CUDA tensor, got one on {input.device}')
        return _AUTO
    module: Any = _fallback
    if _chosen == "triton":
        module = _triton()
        module.require(input.device)
    return Implementation(*(getattr(module, name) for name in Implementation._fields))


_AUTO: Implementation


def ready() -> None:
    """Called once the operators are defined."""
    global _AUTO
    _AUTO = _dispatched()
