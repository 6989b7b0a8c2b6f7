"""Loss and gradient from one call, for inputs so small that calls are what costs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from customloss._bench.analytic import compiled, passes_of
from customloss._bench.cases import Case
from customloss._bench.formulas import LATENCY_ONLY, Loss, as_bytes, require

Both = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]


class _AtOnce(torch.autograd.Function):
    """The gradient is made with the loss, and then scaled."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, both: Both) -> Tensor:
        loss, gradient = both(input.detach(), target)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return ctx.saved_tensors[0] * slopes[0], None, None


def apply(input: Tensor, target: Tensor, both: Both) -> Tensor:
    """The loss that ``both`` returns before its gradient."""
    return cast(Tensor, _AtOnce.apply(input, as_bytes(target), both))


def both_of(case: Case) -> Both:
    """Both passes as one function, before it is compiled."""
    require(case.latency, LATENCY_ONLY)
    passes = passes_of(case)

    def both(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        viewed = passes.view(input), passes.view(target)
        loss, *kept = passes.forward(*viewed)
        gradient = passes.backward(torch.ones_like(loss), *viewed, *kept)
        return loss, passes.undo(gradient, input)

    return both


def at_once_form(case: Case, **options: Any) -> Loss:
    """With ``options`` of torch.compile."""
    program = compiled(both_of(case), **options)
    return lambda input, target: apply(input, target, program)


class _Module(nn.Module):
    def __init__(self, both: Both) -> None:
        super().__init__()
        self.both = both

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(input, target)


def package_form(case: Case) -> Loss:
    """Exported and compiled ahead of time, so that nothing of torch.compile is left in a call.

    What is loaded is called without the function around it that sorts the arguments of any call.
    """
    both = both_of(case)
    loader: Any = None

    def program(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal loader
        if loader is None:
            loader = packaged(both, input, target)
        loss, gradient = loader.boxed_run([input, target])
        return loss, gradient

    return lambda input, target: apply(input, target, program)


def packaged(both: Both, *example: Tensor) -> Any:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
        exported = torch.export.export(_Module(both), example)
        path = str(Path(folder) / "both.pt2")
        return aoti_load_package(aoti_compile_and_package(exported, package_path=path)).loader
