"""Calls of the operators that take groups, past the dispatcher where it would do nothing: the way
through it takes as long as a small batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from customloss._ops.modes import transformed

functions: dict[str, Callable[..., Tensor]] = {}  # of the operators, by name; register.py fills it

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter))


def only_passed_on(operands: Iterable[Tensor]) -> bool:
    """Whether the dispatcher would only call the operator's Python function, so that we may call it
    ourselves. Not so in traces, transforms and modes, under a profiler of this thread, nor for
    tensor subclasses."""
    if torch.compiler.is_compiling() or transformed():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._get_tracing_state() is not None or torch._C._autograd._profiler_enabled():
        return False
    return all(type(each) in _PLAIN_TYPES for each in operands)


def call(operator: str, *groups: Iterable[Any]) -> Tensor:
    """``torch.ops.customloss.<operator>`` of groups of arguments."""
    arguments = [*chain.from_iterable(groups)]
    if only_passed_on(each for each in arguments if isinstance(each, Tensor)):
        return functions[operator](*groups)
    result: Tensor = getattr(torch.ops.customloss, operator)(*arguments)
    return result
