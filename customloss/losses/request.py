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
from customloss.losses import classes
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
    group: ProcessGroup | None
    classes: Classes | None  # None: all of them count alike

    def sharded(self) -> bool:
        """Whether the operands are DTensors."""
        return is_dtensor.sharded(*self.data)

    def constant_sums(self) -> bool:
        """Whether tp + fn and fp + tn are known to need no gradient: they depend on targets and
        weights alone."""
        if torch.compiler.is_compiling() or transformed():
            return False
        _, target, weight = self.data
        return not (target.requires_grad or (weight is not None and weight.requires_grad))


# two options whose types the dispatcher does not tell apart: it takes True for 1, and 1 for True
_AMBIGUOUS = ("ignore_index", "samplewise")
# and those that no operator knows
_BEYOND_OPERATORS = frozenset(options.FUNCTION) - frozenset(options.LOSS) | {*_AMBIGUOUS}


def prepared(
    input: Tensor, target: Tensor, weight: Tensor | None, given: dict[str, Any]
) -> tuple[ProcessGroup | None, Classes | None]:
    """Checks what no operator checks, and takes out of ``given`` what no operator knows."""
    operands.are_tensors(input, target, weight)
    is_dtensor.ready(input)
    for name, value in given.items():
        if name in _BEYOND_OPERATORS or isinstance(value, Tensor):
            break
    else:
        return None, None
    checks.option_types({name: given[name] for name in _AMBIGUOUS if name in given}, options.LOSS)
    if given.pop("check_target", False):
        operands.target_values(input, target, given.get("ignore_index"))
    asked = classes.asked_for(input, given)
    for name, value in given.items():
        if isinstance(value, Tensor):  # the dispatcher would read it, and lose its gradient
            raise TypeError(
                f"{name}: expected a number or word, got a Tensor, which would get no gradient: "
                f"pass {name}.item()"
            )
    group: ProcessGroup | None = given.pop("process_group", None)
    # A group of one rank has nothing to add, so the fused operator serves it.
    if group is not None and not isinstance(group, distributed.Adder):
        group = group if distributed.group_size(group) > 1 else None
    return group, asked


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
    focal_gamma: float = 2.0,
) -> Request:
    """A call of the loss of any score; ``words`` are those of the extra sums that it needs."""
    group, asked = prepared(*data, given)
    rank = data.input.dim()
    elements, scoring_words, extra = _for_score(rank, words, focal_gamma, **given)
    return Request(data, elements, scoring_words, given, extra, group, asked)


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
    rank: int, words: tuple[str, ...], focal_gamma: float, /, **given: Any
) -> tuple[Elements, ScoringWords, dict[str, Any]]:
    checks.option_types(given, _SCORED)
    elements, scoring_words = options.for_score(rank, **given)
    extra: dict[str, Any] = {word: True for word in options.ROWS if word in words}
    if "focal" in extra:
        extra["focal_gamma"] = focal_gamma
        elements = elements._replace(focal_gamma=focal_gamma)
    return elements._replace(extra=options.extra_bits(extra)), scoring_words, extra


@once
def _for_ratio(operator: str, rank: int, **given: Any) -> tuple[Elements, Ratio, ScoringWords]:
    bad_options(operator, given)
    return options.for_ratio(operator, rank, **given)
