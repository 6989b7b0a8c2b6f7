"""What the drop-ins share: refusals that name an option of the peer, plain tensors, scores at the
numbers of a peer, and the numbers in a buffer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.loss import _Loss

from customloss.losses.formula import Score
from customloss.losses.request import cached


class DropIn(_Loss):
    """A loss in the words of a peer: its constructor, its attributes and its state dict.

    The attributes are read in every call, so that to change one has the effect that it has in the
    peer. With ``strict=True``, the default, the numbers are those of the peer; what
    ``strict=False`` mends is said by each class.
    """

    strict: bool

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script: {type(self).__name__} calls fused operators, which TorchScript "
            "cannot compile; torch.compile and torch.export can"
        )


def refused(owner: object, said: str, way: str) -> NotImplementedError:
    """The error for what a peer can do and we cannot, with the nearest ``way``."""
    name = owner if isinstance(owner, str) else type(owner).__name__
    return NotImplementedError(f"{name}: {said} is not there; {way}")


def plain(operand: Any) -> Any:
    """A tensor without the subclass of a peer, such as MONAI's MetaTensor, whose Python would run
    for every operation; one that computes by itself, as a DTensor does, is left alone."""
    kind = type(operand)
    if kind is Tensor or kind is nn.Parameter or not isinstance(operand, Tensor):
        return operand
    computes = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    return operand if computes else operand.as_subclass(Tensor)


@cached
def at(score: Callable[..., Tensor], **parameters: Any) -> Score:
    """A score at these parameters: one object for each set, since formulas are kept by score."""
    return partial(score, **parameters)


class Numbers:
    """The numbers in a tensor, which are read from its device again only when it has changed."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._version = -1
        self._numbers: tuple[float, ...] = ()

    def of(self, tensor: Tensor) -> tuple[float, ...]:
        """One number for each element."""
        if is_compiling() and self._of is not None:  # constants of the graph
            return self._numbers
        if tensor is not self._of or tensor._version != self._version:
            self._of, self._version = tensor, tensor._version
            self._numbers = tuple(map(float, tensor.detach().flatten().tolist()))
        return self._numbers
