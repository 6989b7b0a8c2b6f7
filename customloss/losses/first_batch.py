"""When the values of a batch are checked: each time, once, or never.

``_spec/batch_checks.py`` has what is checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from customloss._ops import is_dtensor
from customloss._ops.modes import holds_values
from customloss._spec import batch_checks, checks, operands
from customloss._spec.arguments import Data, Elements
from customloss._spec.batch_checks import Batch
from customloss._spec.words import SIGMOID, SOFTMAX
from customloss.reference.sums import is_class_index

# what ``check_target`` is by default in a module
ONCE = "once"


class FirstBatch:
    """Whether a module has seen the batch that it checks. Until ``done``, the module passes this to
    its function as ``check_target``. Copies of a module take it with them."""

    def __init__(self) -> None:
        self.done = False


def check(
    asked: object, data: Data, given: dict[str, Any], counted: Callable[[], Tensor | None]
) -> None:
    """Raises or warns of what is wrong with the values of a batch, if ``asked``, the option
    ``check_target``, says so. The other options, ``given``, say how the values are read, and
    ``counted`` which classes count, None for all.

    Nothing is checked where there are no values, or nothing may wait for them: while compiling or
    tracing, under transforms, for meta tensors, while a CUDA graph is captured.
    """
    if not isinstance(asked, (bool, FirstBatch)):
        raise ValueError(
            f"check_target: expected True or False, or {ONCE!r} in a module, got {asked!r}"
        )
    if asked is False or not holds_values(data.input):
        return
    batch = _batch(data, given, counted, exact=asked is True)
    if batch is None or batch.input.numel() == 0:
        return
    with torch.no_grad():
        errors, warnings = batch_checks.found(batch)
    if errors:
        raise ValueError(errors[0])
    for text in warnings:
        _warn(f"{text} (check_target=False turns the checks off)")
    if isinstance(asked, FirstBatch):
        asked.done = True


def _batch(
    data: Data, given: dict[str, Any], counted: Callable[[], Tensor | None], exact: bool
) -> Batch | None:
    """The batch as a pass reads it. None if its shapes or dtypes are wrong, which the operator is
    about to say, or if DTensors are cut in different ways, so that local parts tell nothing."""
    activation = given.get("activation", "sigmoid")
    softmax = SOFTMAX if activation == "softmax" else SIGMOID
    try:
        whole = operands.checked(*data, Elements(softmax, 1.0, 0.0, False, False))
    except (TypeError, ValueError):
        return None
    labels = is_class_index(whole.input, whole.target)
    input, target = is_dtensor.local(whole.input), is_dtensor.local(whole.target)
    weight = None if whole.weight is None else is_dtensor.local(whole.weight)
    for part in (target, *(() if weight is None else (weight,))):
        if not operands.broadcasts(part.shape, input.shape):
            return None
    ignored = checks.ignored(given.get("ignore_index")) or ()
    # a local part may have only some of the classes
    has_classes = input.dim() > 1 and input.shape[1] == whole.input.shape[1]
    return Batch(
        input,
        target,
        weight,
        shape=tuple(whole.input.shape),
        labels=labels,
        activation=activation,
        scale=given.get("logit_scale", 1.0),
        offset=given.get("logit_offset", 0.0),
        ignored=ignored,
        ignores_out_of_range=given.get("out_of_range") == "ignore",
        ignores_nan=given.get("nan_targets") == "ignore",
        counted=counted() if has_classes else None,
        exact=exact,
    )


_PACKAGE, _TORCH = (f"{Path(file).parent}" for file in (Path(__file__).parent, torch.__file__))


def _warn(text: str) -> None:
    """A warning that shows the line of the caller, outside of this package and of torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, _TORCH)):
        level, frame = level + 1, frame.f_back
    warn(text, UserWarning, stacklevel=level)
