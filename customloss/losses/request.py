"""A call of a loss, checked: what is read of a batch, who shares it, and how groups are averaged.

Options are checked once for each distinct set, and the ones that no operator knows are taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from customloss import distributed
from customloss._ops import is_dtensor
from customloss._ops.modes import transformed
from customloss._spec import checks, operands, options
from customloss._spec.arguments import Data, Elements
from customloss._spec.options import Ratio, ScoringWords
from customloss.losses import classes, first_batch
from customloss.losses.classes import Classes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_F = TypeVar("_F", bound=Callable[..., Any])


class Request(NamedTuple):
    """A call of a loss, without its formula."""

    data: Data  # as the caller passed it
    elements: Elements
    words: ScoringWords
    options: dict[str, Any]  # those of the public operators
    extra: dict[str, Any]  # the further sums, as ``confusion_sums`` takes them
    group: ProcessGroup | distributed.Adder | None
    classes: Classes | None  # None: all of them count alike
    beside: Classes | None = None  # the same of the pointwise loss
    pointwise_alone: bool = False  # whether that is of this rank's part of the batch alone

    def sharded(self) -> bool:
        """Whether the operands are DTensors."""
        return is_dtensor.sharded(*self.data)

    def constant_sums(self) -> bool:
        """Whether tp + fn and fp + tn are known to need no gradient: they depend on targets and
        weights alone, and pooled on those of the classes."""
        if torch.compiler.is_compiling() or transformed():
            return False
        if self.classes is not None and self.classes.learned():
            return False
        _, target, weight = self.data
        return not (target.requires_grad or (weight is not None and weight.requires_grad))


class ExtraNumbers(NamedTuple):
    """What the extra sums depend on beside the options of every loss."""

    focal_gamma: float = 2.0
    focal_split: bool = False
    log_smoothing: float | None = None


PLAIN = ExtraNumbers()
# pointwise_class_weight and pointwise_classes
BesideClasses = tuple[object, object]
_ALIKE = (None, None)

# two options whose types the dispatcher does not tell apart: it takes True for 1, and 1 for True
_AMBIGUOUS = ("ignore_index", "samplewise")
# and those that no operator knows
_BEYOND_OPERATORS = frozenset(options.FUNCTION) - frozenset(options.LOSS) | {*_AMBIGUOUS}


def prepared(
    input: Tensor, target: Tensor, weight: Tensor | None, given: dict[str, Any]
) -> tuple[ProcessGroup | distributed.Adder | None, Classes | None]:
    """Checks what no operator checks, and takes out of ``given`` what no operator knows."""
    operands.are_tensors(input, target, weight)
    is_dtensor.ready(input)
    for name, value in given.items():
        if name in _BEYOND_OPERATORS or isinstance(value, Tensor):
            break
    else:
        _warn_of_parts(input)
        return None, None
    checks.option_types({name: given[name] for name in _AMBIGUOUS if name in given}, options.LOSS)
    if isinstance(given.get("ignore_index"), list):  # options are looked up, so they are hashed
        given["ignore_index"] = tuple(given["ignore_index"])
    first_batch.check(given.pop("check_target", False), Data(input, target, weight), given)
    asked = classes.asked_for(input, given)
    for name, value in given.items():
        if isinstance(value, Tensor):  # the dispatcher would read it, and lose its gradient
            raise TypeError(
                f"{name}: expected a number or word, got a Tensor, which would get no gradient: "
                f"pass {name}.item()"
            )
    group = given.pop("process_group", None)
    if isinstance(group, distributed.Adder):
        if group.process_group is None:
            _warn_of_parts(input)
    elif group is None:
        _warn_of_parts(input)
    else:
        group = distributed.resolved(group)
        # A group of one rank has nothing to add, so the fused operator serves it.
        group = group if distributed.group_size(group) > 1 else None
    return group, asked


def _warn_of_parts(input: Tensor) -> None:
    """Of a loss without a process group; DTensors know their ranks themselves."""
    if distributed.warning_due() and not is_dtensor.sharded(input, input, None):
        distributed.warn_of_parts()


def readable(input: Tensor, target: Tensor) -> Tensor:
    """The target as kernels read it: class numbers that came as floats become integers.

    MONAI loads and resizes labels so, ``[N, 1, *spatial]``. The shape says what they are, since a
    dense target of several classes has the shape of the input. Numbers that are not whole are no
    labels. On the CPU they raise; elsewhere, where nothing may wait, they become a label that no
    class has.
    """
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.requires_grad:
        return target
    if not isinstance(input, Tensor) or not input.dim() == target.dim() > 2:
        return target
    if target.shape[1] != 1 or input.shape[1] == 1 or target.shape[2:] != input.shape[2:]:
        return target
    numbers = target.to(torch.int32)
    whole = numbers == target
    if _may_look(input, target):
        if not bool(whole.all()):
            raise ValueError(
                "target: expected whole class numbers in a float target of shape "
                f"{list(target.shape)}, got {target[~whole][0].item()}: labels are resized with "
                "mode='nearest', and a dense target has the shape of input"
            )
        return numbers
    return torch.where(whole, numbers, torch.iinfo(torch.int32).min)


def _may_look(input: Tensor, target: Tensor) -> bool:
    """Whether Python may branch on the target: nothing waits, and it is an ordinary tensor."""
    if torch.compiler.is_compiling() or not target.is_cpu or transformed():
        return False
    return not (torch._C._len_torch_dispatch_stack() or is_dtensor.sharded(input, target, None))


def of_ratio(
    operator: str, data: Data, given: dict[str, Any], group: Any, asked: Classes | None
) -> tuple[Request, Ratio]:
    """A call of a loss that an operator computes; its options went through ``prepared``."""
    elements, ratio, words = _for_ratio(operator, data.input.dim(), **given)
    return Request(data, elements, words, given, {}, group, asked), ratio


def of_score(
    data: Data,
    given: dict[str, Any],
    words: tuple[str, ...] = (),
    numbers: ExtraNumbers = PLAIN,
    beside: BesideClasses | None = None,
) -> Request:
    """A call of the loss of any score; ``words`` are those of the extra sums that it needs,
    ``numbers`` what these depend on, and ``beside`` the weights and the choice of classes of the
    pointwise loss, if there is one."""
    data = data._replace(target=readable(data.input, data.target))
    class_weight = given.get("class_weight")
    group, asked = prepared(*data, given)
    rank = data.input.dim()
    elements, scoring_words, extra = _for_score(rank, words, numbers, **given)
    of_pointwise = None
    if beside is not None and (class_weight is not None or beside != _ALIKE):
        of_pointwise = classes.beside(data.input, class_weight, *beside)
    return Request(data, elements, scoring_words, given, extra, group, asked, of_pointwise)


def bad_options(operator: str, given: dict[str, Any]) -> None:
    """After the dispatcher refused a call: raises an error if the options are at fault."""
    checks.option_types(given, {**options.PARAMETERS[operator], **options.LOSS})


def once(check: _F) -> _F:
    """Calls a pure function of options once for each distinct set of them."""
    cached = lru_cache(maxsize=1024, typed=True)(check)

    @wraps(check)
    def checked(*given: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():  # dynamo does not trace through a cache
            return check(*given, **keywords)
        try:
            return cached(*given, **keywords)
        except TypeError:  # an unhashable option: the check names it
            return check(*given, **keywords)

    return cast(_F, checked)


_SCORED = {name: value for name, value in options.LOSS.items() if not name.startswith("smooth")}


@once
def _for_score(
    rank: int, words: tuple[str, ...], numbers: ExtraNumbers, /, **given: Any
) -> tuple[Elements, ScoringWords, dict[str, Any]]:
    checks.option_types(given, _SCORED)
    elements, scoring_words = options.for_score(rank, **given)
    extra: dict[str, Any] = {word: True for word in options.ROWS if word in words}
    needed = numbers._asdict() if words else {}
    elements = elements._replace(extra=options.extra_bits(extra), **needed)
    return elements, scoring_words, extra | needed


@once
def _for_ratio(operator: str, rank: int, **given: Any) -> tuple[Elements, Ratio, ScoringWords]:
    bad_options(operator, given)
    return options.for_ratio(operator, rank, **given)
