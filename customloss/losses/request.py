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
from customloss._ops.modes import is_constant, transformed
from customloss._spec import checks, operands, options
from customloss._spec.arguments import Data, Elements
from customloss._spec.options import Ratio, ScoringWords
from customloss.losses import classes, first_batch, float_labels
from customloss.losses.classes import Classes
from customloss.reference.sums import ROWS

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
    ranks: ProcessGroup | distributed.Adder | None  # who shares the batch
    classes: Classes | None  # None: all of them count alike
    pointwise_classes: Classes | None = None  # the same of the pointwise loss
    pointwise_alone: bool = False  # whether that is of this rank's part of the batch alone

    def sharded(self) -> bool:
        """Whether the operands are DTensors."""
        return is_dtensor.sharded(*self.data)

    def constant_sums(self) -> bool:
        """Whether tp + fn and fp + tn are known to need no gradient: they depend on targets and
        weights alone, and pooled on those of the classes."""
        if torch.compiler.is_compiling():
            return False
        _, target, weight = self.data
        if transformed():
            of_classes = None if self.classes is None else self.classes.weight
            given = (target, weight, of_classes)
            return all(each is None or is_constant(each) for each in given)
        if self.classes is not None and self.classes.learned():
            return False
        return not (target.requires_grad or (weight is not None and weight.requires_grad))


class ExtraNumbers(NamedTuple):
    """What the extra sums depend on beside the options of every loss."""

    focal_gamma: float = 2.0
    focal_split: bool = False
    log_smoothing: float | None = None


DEFAULT_NUMBERS = ExtraNumbers()


class Parts(NamedTuple):
    """Which parts a loss has, and the classes of the pointwise one."""

    score: bool = True
    pointwise: bool = False
    class_weight: object = None  # pointwise_class_weight
    classes: object = None  # pointwise_classes
    pos_weight: object = None


SCORE_ALONE = Parts()

# two options whose types the dispatcher does not tell apart: it takes True for 1, and 1 for True
_AMBIGUOUS = ("ignore_index", "samplewise")
# and those that no operator knows
_BEYOND_OPERATORS = frozenset(options.FUNCTION) - frozenset(options.LOSS) | {*_AMBIGUOUS}


def prepared(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    given: dict[str, Any],
    parts: Parts = SCORE_ALONE,
) -> tuple[ProcessGroup | distributed.Adder | None, Classes | None, Classes | None]:
    """Checks what no operator checks, and takes out of ``given`` what no operator knows.

    Returns the ranks that share the batch, the classes of the score, and those of the pointwise
    loss."""
    operands.are_tensors(input, target, weight)
    is_dtensor.ready(input)
    for_operators = _BEYOND_OPERATORS.isdisjoint(given)
    if for_operators and not any(isinstance(value, Tensor) for value in given.values()):
        _warn_of_parts(input)
        return None, None, _of_pointwise(input, None, parts)
    checks.option_types({name: given[name] for name in _AMBIGUOUS if name in given}, options.LOSS)
    if isinstance(given.get("ignore_index"), list):  # options are looked up, so they are hashed
        given["ignore_index"] = tuple(given["ignore_index"])
    looks, class_weight = given.pop("check_target", False), given.get("class_weight")
    asked = classes.asked_for(input, given)
    of_pointwise = _of_pointwise(input, class_weight, parts)
    if looks is not False:
        table = classes.table(input, asked, of_pointwise)
        counting = None if table is None else ~classes.hidden(table, parts.score, parts.pointwise)
        of_classes = {
            "class_weight": class_weight, "pointwise_class_weight": parts.class_weight,
            "pos_weight": parts.pos_weight,
        }  # fmt: skip
        first_batch.check(looks, Data(input, target, weight), given, counting, of_classes)
    for name, value in given.items():
        if isinstance(value, Tensor):  # the dispatcher would read it, and lose its gradient
            raise TypeError(
                f"{name}: expected a number or word, got a Tensor, which would get no gradient: "
                f"pass {name}.item()"
            )
    ranks = given.pop("process_group", None)
    if isinstance(ranks, distributed.Adder):
        if ranks.process_group is None:
            _warn_of_parts(input)
    elif ranks is None:
        _warn_of_parts(input)
    else:
        ranks = distributed.resolved(ranks)
        # A group of one rank has nothing to add, so the fused operator serves it.
        ranks = ranks if distributed.group_size(ranks) > 1 else None
    return ranks, asked, of_pointwise


def _of_pointwise(input: Tensor, class_weight: object, parts: Parts) -> Classes | None:
    """The classes of the pointwise loss, if there is one that does not count all of them alike."""
    shares = class_weight is not None and parts.pointwise
    if not shares and parts.class_weight is None and parts.classes is None:
        return None
    return classes.of_pointwise(input, class_weight, parts.class_weight, parts.classes)


def _warn_of_parts(input: Tensor) -> None:
    """Of a loss without a process group; DTensors know their ranks themselves."""
    if distributed.warning_due() and not is_dtensor.sharded(input, input, None):
        distributed.warn_of_parts(first_batch.warn_caller)


def of_ratio(
    operator: str, data: Data, given: dict[str, Any], ranks: Any, asked: Classes | None
) -> tuple[Request, Ratio]:
    """A call of a loss that an operator computes; its options went through ``prepared``."""
    elements, ratio, words = _for_ratio(operator, data.input.dim(), **given)
    return Request(data, elements, words, given, {}, ranks, asked), ratio


def of_score(
    data: Data,
    given: dict[str, Any],
    words: tuple[str, ...] = (),
    numbers: ExtraNumbers = DEFAULT_NUMBERS,
    parts: Parts = SCORE_ALONE,
) -> Request:
    """A call of the loss of any score; ``words`` are those of the extra sums that it needs, and
    ``numbers`` what these depend on."""
    data = float_labels.read(data, given)
    ranks, asked, of_pointwise = prepared(*data, given, parts)
    rank = data.input.dim()
    elements, scoring_words, extra = _for_score(rank, words, numbers, **given)
    return Request(data, elements, scoring_words, given, extra, ranks, asked, of_pointwise)


def bad_options(operator: str, given: dict[str, Any]) -> None:
    """After the dispatcher refused a call: raises an error if the options are at fault."""
    checks.option_types(given, {**options.PARAMETERS[operator], **options.LOSS})


def cached(check: _F) -> _F:
    """Calls a pure function of options once for each distinct set of them."""
    from_cache = lru_cache(maxsize=1024, typed=True)(check)

    @wraps(check)
    def checked(*given: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():  # dynamo does not trace through a cache
            return check(*given, **keywords)
        try:
            return from_cache(*given, **keywords)
        except TypeError:  # an unhashable option: the check names it
            return check(*given, **keywords)

    return cast(_F, checked)


_SCORED = {name: value for name, value in options.LOSS.items() if not name.startswith("smooth")}


@cached
def _for_score(
    rank: int, words: tuple[str, ...], numbers: ExtraNumbers, /, **given: Any
) -> tuple[Elements, ScoringWords, dict[str, Any]]:
    checks.option_types(given, _SCORED)
    elements, scoring_words = options.for_score(rank, **given)
    extra: dict[str, Any] = {word: True for word in ROWS if word in words}
    needed = numbers._asdict() if words else {}
    elements = elements._replace(extra=options.extra_bits(extra), **needed)
    return elements, scoring_words, extra | needed


@cached
def _for_ratio(operator: str, rank: int, **given: Any) -> tuple[Elements, Ratio, ScoringWords]:
    bad_options(operator, given)
    return options.for_ratio(operator, rank, **given)
