"""A call that fails made smaller, and printed as code that anyone can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from drawn_calls import OF_ANY_SCORE, Call
from oracle import holds_numbers
from torch import Tensor

MOST_TRIES = 300


def leaf(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(like.requires_grad)


# ---- smaller -------------------------------------------------------------------------------------


def smaller(call: Call, fails: Callable[[Call], bool]) -> Call:
    """The call with as few options and elements as still fail."""
    tries = 0
    changed = True
    while changed:
        changed = False
        for other in _simpler(call):
            tries += 1
            if tries > MOST_TRIES:
                return call
            if fails(other):
                call, changed = other, True
                break
    return call


def _simpler(call: Call) -> Iterator[Call]:
    """Calls that are simpler in one thing."""
    if call.way != "function":
        yield replace(call, way="function")
    for name in call.options:
        rest = {each: value for each, value in call.options.items() if each != name}
        yield call.with_options(rest)
    if call.weight is not None:
        yield replace(call, weight=None)
    yield from _fewer_elements(call)
    if call.input.dtype != torch.float64:
        yield replace(call, input=leaf(call.input.double(), call.input))
    for operand in ("target", "weight"):
        tensor = getattr(call, operand)
        if tensor is not None and tensor.requires_grad:
            yield replace(call, **{operand: tensor.detach()})


def _fewer_elements(call: Call) -> Iterator[Call]:
    """Half of the samples or places, in each dimension, then one less."""
    x, target, weight = call.input, call.target, call.weight
    if weight is not None and weight.dim() != x.dim():
        of_pixels = x.dim() > 2 and weight.shape == (x.shape[0], *x.shape[2:])
        of_pixels = of_pixels and (holds_numbers(x, target) or x.shape[1] == 1)
        full = weight.unsqueeze(1) if of_pixels else weight.expand(x.shape)
        yield replace(call, weight=leaf(full, weight))
        return
    if weight is not None and weight.dim() == x.dim():
        shape = [size if dim != 1 or x.dim() == 1 else weight.shape[1]
                 for dim, size in enumerate(x.shape)]  # fmt: skip
        weight = leaf(weight.expand(shape), weight)
    for dim in (d for d in range(x.dim()) if d != 1):
        size = x.shape[dim]
        for part in {size // 2, 1} if size > 1 else ():
            for start in (0, size - part):
                yield replace(
                    call,
                    input=leaf(x.narrow(dim, start, part), x),
                    target=leaf(target.narrow(_dim_of(target, x, dim), start, part), target),
                    weight=None
                    if weight is None
                    else leaf(weight.narrow(dim, start, part), weight),
                )


def _dim_of(target: Tensor, input: Tensor, dim: int) -> int:
    """The dimension of a target, which may lack that of the classes."""
    return dim - 1 if dim and target.dim() < input.dim() else dim


# ---- printed -------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    learned = ", requires_grad=True" if value.requires_grad else ""
    return f"torch.tensor({value.detach().tolist()!r}, dtype={value.dtype}{learned})"


def code(call: Call) -> str:
    """The call as a program."""
    lines = ["import functools, torch, customloss", "inf, nan = float('inf'), float('nan')"]
    for name in ("input", "target", "weight"):
        value = getattr(call, name)
        shape = "" if value is None or value.numel() else f".reshape({list(value.shape)})"
        lines.append(f"{name} = {_shown(value)}{shape}")
    options = [f"{name}={_shown(value)}" for name, value in call.options.items()]
    first = [_score(call)] if call.name in OF_ANY_SCORE else []
    operands = ["input", "target", "weight"]
    if call.name == "sums":
        lines.append(f"sums = customloss.confusion_sums({', '.join([*operands, *options])})")
        return "\n".join([*lines, "print(sums)"])
    if call.way == "function":
        arguments = ", ".join([*first, *operands, *options])
        lines.append(f"loss = customloss.{call.name}_loss({arguments})")
    else:
        name = f"{call.name.title()}Loss" if first else "loss"
        made = ", ".join([*(first or [repr(call.name)]), *options])
        lines.append(f"criterion = customloss.{name}({made})")
        method = "criterion" if call.way == "module" else "criterion.with_sums"
        picked = "" if call.way == "module" else "[0]"
        lines.append(f"loss = {method}(input, target, weight){picked}")
    lines += ["loss.sum().backward()", "print(loss, input.grad)"]
    return "\n".join(lines)


def _score(call: Call) -> str:
    if call.score is None:
        return "None"
    name, parameters = call.score
    given = ", ".join(f"{each}={value!r}" for each, value in parameters.items())
    return f"functools.partial(customloss.scores.{name}, {given})" if given else repr(name)
