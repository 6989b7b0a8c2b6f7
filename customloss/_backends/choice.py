"""Which backend computes the primitives: chosen by the device of the input, or by the user.

A backend is a row of ``BACKENDS``, and a module with the functions of :class:`Backend`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from customloss._backends import libraries, plain
from customloss._spec import checks
from customloss._spec.arguments import (
    PRIMITIVES,
    SCORE_ALONE,
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
    grouped,
    on_one_device,
)


class Backend(Protocol):
    """The functions that a backend has to have; ``PRIMITIVES`` lists the groups they take.

    It may also have ``confusion_score(data, elements, scoring)``, which does the work of the first
    two in one call, for a score that is a ratio. By default ``confusion_score`` calls these two.
    """

    def confusion(self, data: Data, elements: Elements) -> Tensor:
        """The sums ``[rows, samples, classes]``, float64: one pass over the data."""

    def sums_score(
        self, group_sums: GroupSums, scoring: Scoring, pointwise: Pointwise
    ) -> tuple[Tensor, Tensor]:
        """The loss of sums that exist already, and its gradient by them."""

    def confusion_backward(
        self, incoming: Incoming, data: Data, wrt: Wrt, elements: Elements
    ) -> Tensor:
        """The gradient by one operand: one pass over the data."""


class Primitives(NamedTuple):
    """The functions of a backend, with one flat list of arguments in place of groups.

    The compiled kernels are operators, which take flat arguments, so they are called directly.
    """

    confusion: Callable[..., Tensor]
    confusion_score: Callable[..., tuple[Tensor, Tensor]]
    confusion_backward: Callable[..., Tensor]
    sums_score: Callable[..., tuple[Tensor, Tensor]]


def primitives_of(backend: Backend) -> Primitives:
    """The functions of a backend, with the default ``confusion_score`` if it has none."""

    def confusion_score(data: Data, elements: Elements, scoring: Scoring) -> tuple[Tensor, Tensor]:
        sums = backend.confusion(data, elements)
        wide = data.input.dtype == torch.float64
        group_sums = GroupSums(sums, None, elements.extra, elements.per_sample, wide)
        loss, coefficients = backend.sums_score(group_sums, scoring, SCORE_ALONE)
        return plain.without_classes(loss, elements, scoring), coefficients

    functions: dict[str, Callable[..., Any]] = {
        "confusion": backend.confusion,
        "confusion_score": getattr(backend, "confusion_score", confusion_score),
        "confusion_backward": backend.confusion_backward,
        "sums_score": backend.sums_score,
    }
    return Primitives(
        **{
            name: grouped(on_one_device(function, PRIMITIVES[name]), PRIMITIVES[name])
            for name, function in functions.items()
        }
    )


def operators_of(ops: Any) -> Primitives:
    """The primitives that a library registered as operators."""
    return Primitives(*(getattr(ops, name).default for name in Primitives._fields))


# ---- the rows ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A backend that can be chosen."""

    load: Callable[[], Primitives]  # raises RuntimeError with the reason if it cannot
    refusal: Callable[[torch.device], str | None]  # why it cannot serve a device
    # A trace records operators only. It cannot record a backend that is not made of operators: then
    # it records the primitives, and the dispatcher chooses their kernels when the trace runs.
    traceable: bool = True


def _dispatched() -> Primitives:
    """The operators themselves: the dispatcher finds the kernels of the input's device."""
    return operators_of(torch.ops.customloss)


def _compiled_cuda() -> Primitives:
    if not libraries.loaded("_C_cuda"):
        raise RuntimeError(f'backend "cuda" is not available: {libraries.status.get("_C_cuda")}')
    return _dispatched()


def _cuda_refusal(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None
    return f'backend "cuda" needs a CUDA tensor, got one on {device}'


def _triton_module() -> Any:
    try:
        from customloss.kernels import confusion
    except ImportError as error:
        raise RuntimeError(f'backend "triton" is not available: {error}') from error
    return confusion


def _triton_refusal(device: torch.device) -> str | None:
    refusal: str | None = _triton_module().refusal(device)
    return refusal


def _never(device: torch.device) -> None:
    return None


BACKENDS = {
    "auto": Row(_dispatched, _never),
    "cuda": Row(_compiled_cuda, _cuda_refusal),
    "triton": Row(lambda: primitives_of(_triton_module()), _triton_refusal, traceable=False),
    "reference": Row(lambda: primitives_of(plain), _never),
}


# ---- the choice ----------------------------------------------------------------------------------

_chosen = "auto"
_loaded: dict[str, Primitives] = {}


def _load(name: str) -> Primitives:
    """The primitives of a row, loaded once."""
    if name not in _loaded:
        _loaded[name] = BACKENDS[name].load()
    return _loaded[name]


def primitives(input: Tensor) -> Primitives:
    """The primitives to call for this input."""
    if _chosen == "auto":
        return _loaded["auto"]
    row = BACKENDS[_chosen]
    if not row.traceable and torch._C._len_torch_dispatch_stack():
        return _loaded["auto"]
    refusal = row.refusal(input.device)
    if refusal is not None:
        raise RuntimeError(refusal)
    return _load(_chosen)


class backend:
    """Chooses the backend from here on, or inside a ``with`` block.

    ``"auto"`` takes the compiled kernels of the input's device, Triton where there are none, and
    the reference where there is neither. ``"cuda"``, ``"triton"`` and ``"reference"`` have no
    substitute: a choice that cannot be met raises ``RuntimeError``, here or at the call. The
    environment variable ``CUSTOMLOSS_BACKEND`` sets the first choice. Code that is compiled or
    exported under ``"triton"`` runs what ``"auto"`` would choose.

    Example::

        customloss.backend("triton")
        with customloss.backend("reference"):
            loss = customloss.soft_f1_loss(logits, target)
    """

    def __init__(self, name: str) -> None:
        checks.one_of("backend", name, BACKENDS)
        _load(name)
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


def ready() -> None:
    """Called once the operators are defined; applies ``CUSTOMLOSS_BACKEND``."""
    _load("auto")
    name = os.environ.get("CUSTOMLOSS_BACKEND")
    if name:
        checks.one_of("CUSTOMLOSS_BACKEND", name, BACKENDS)
        backend(name)
