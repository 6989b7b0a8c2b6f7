"""When the values of a batch are checked: each time, once, or never.

``_spec/batch_checks.py`` has what is checked, of numbers that ``_spec/batch_values.py`` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from customloss._ops import is_dtensor
from customloss._ops.modes import holds_values
from customloss._spec import batch_checks, checks, operands
from customloss._spec.arguments import Data, Elements
from customloss._spec.batch_values import Batch
from customloss._spec.words import SIGMOID, SOFTMAX
from customloss.reference.sums import is_class_index, sums_dtype

# what ``check_target`` is by default in a module
ONCE = "once"
# A batch without a positive looks alike whatever its labels mean: more are looked at, up to these.
MOST_BATCHES = 8


class FirstBatch:
    """What a module has seen of the batches that it checks: until one had a positive that counts,
    and at most ``MOST_BATCHES``. Until ``done``, the module passes this to its function as
    ``check_target``. Copies of a module take it with them."""

    def __init__(self) -> None:
        self.done = False
        self.warned: set[str] = set()  # the mistakes that it was warned of
        self._seen = 0

    def saw(self, has_positives: bool) -> None:
        """Called after each batch that was looked at, and not refused."""
        self._seen += 1
        self.done = has_positives or self._seen >= MOST_BATCHES


class Outputs:
    """The outputs of one batch, each scored by itself at a resolution of its own. All of them are
    looked at, and together they are one batch."""

    def __init__(self) -> None:
        self.coarse = False  # whether the shape of the next target says little
        self._seen: dict[FirstBatch, bool] = {}

    def saw(self, first: FirstBatch, has_positives: bool) -> None:
        """Called after each output that was looked at."""
        self._seen[first] = has_positives or self._seen.get(first, False)

    def end(self) -> None:
        """Called after the last output."""
        for first, has_positives in self._seen.items():
            first.saw(has_positives)


_outputs: ContextVar[Outputs | None] = ContextVar("outputs", default=None)


@contextmanager
def outputs() -> Iterator[Outputs]:
    """Within it the calls of a loss are about the outputs of one batch. An output that is refused
    leaves the batch unseen."""
    batch = Outputs()
    token = _outputs.set(batch)
    try:
        yield batch
    finally:
        _outputs.reset(token)
    batch.end()


def check(
    asked: object,
    data: Data,
    given: dict[str, Any],
    counting: Tensor | None = None,
    of_classes: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Raises or warns of what is wrong with the values of a batch, if ``asked``, the option
    ``check_target``, says so. The other options, ``given``, say how the values are read, and
    ``counting`` which classes count; None: all of them. ``of_classes`` are the weights of classes.

    Nothing is checked where there are no values, or nothing may wait for them: while compiling or
    tracing, under transforms, for meta tensors, while a CUDA graph is captured.
    """
    if not isinstance(asked, (bool, FirstBatch)):
        raise ValueError(
            f"check_target: expected True or False, or {ONCE!r} in a module, got {asked!r}"
        )
    if asked is False or not holds_values(data.input):
        return
    batch = _batch(data, given, counting, exact=asked is True)
    if batch is None or batch.input.numel() == 0:
        return
    weights = {n: is_dtensor.local(w) for n, w in of_classes.items() if isinstance(w, Tensor)}
    here = ((n, w) for n, w in weights.items() if w.device == batch.input.device and w.numel())
    batch = batch._replace(of_classes=tuple(here))
    with torch.no_grad():
        errors, warnings, has_positives = batch_checks.found(batch)
    if errors:
        raise ValueError(errors[0])
    warn_of(warnings, asked)
    if isinstance(asked, FirstBatch):
        of_batch = _outputs.get()
        if of_batch is None:
            asked.saw(has_positives)
        else:
            of_batch.saw(asked, has_positives)


def warn_of(mistakes: Mapping[str, str], asked: object) -> None:
    """Warns of the mistakes of a batch, of each once if a module asked; ``asked`` is the option
    ``check_target``."""
    warned = asked.warned if isinstance(asked, FirstBatch) else set()
    for mistake, text in mistakes.items():
        if mistake not in warned:
            warn_caller(f"{text} (check_target=False turns the checks off)")
            warned.add(mistake)


def _batch(data: Data, given: dict[str, Any], counting: Tensor | None, exact: bool) -> Batch | None:
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
    if counting is not None and input.shape[1:2] != whole.input.shape[1:2]:
        return None  # of the classes of this part it is not known whether they count
    of_batch = _outputs.get()
    ignored = checks.ignored(given.get("ignore_index")) or ()
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
        wide=sums_dtype(input.device),
        exact=exact,
        counting=counting,
        coarse=of_batch is not None and of_batch.coarse,
    )


_PACKAGE, _TORCH = (f"{Path(file).parent}" for file in (Path(__file__).parent, torch.__file__))


def warn_caller(text: str) -> None:
    """A warning that shows the line of the caller, outside of this package and of torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, _TORCH)):
        level, frame = level + 1, frame.f_back
    warn(text, UserWarning, stacklevel=level)
