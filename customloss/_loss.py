"""The two ways to a loss, behind every function of ``functional.py``.

A ratio of the sums is one fused operator (:func:`ratio_loss`). Any other score is composed of torch
operations on the sums, which are a few numbers per group (:func:`confusion_loss`). Either way the
data is read once forward and once backward. Over the ranks of a process group every loss is
composed, since the sums of all ranks have to be added up in between.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from customloss import _checks, _options, reference, scores
from customloss._options import Composed, Elements, Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

Score = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_F = TypeVar("_F", bound=Callable[..., Any])

_SCORED = {name: value for name, value in _options.LOSS.items() if name != "smooth"}


def takes(options: type) -> Callable[[_F], _F]:
    """Spells ``**options`` out in the signature that ``help`` and ``inspect`` show."""
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _options.FUNCTION.items()
        if name in options.__annotations__
    ]

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def prepared(
    input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> ProcessGroup | None:
    """Checks what no operator can, and takes out of the options what no operator knows."""
    _checks.are_tensors(input, target, weight)
    if options.pop("check_target", False):
        _checks.target_values(target)
    group: ProcessGroup | None = options.pop("process_group", None)
    if group is not None:
        from customloss import distributed

        # alone, a rank has nothing to add: the fused operator serves it
        if not isinstance(group, distributed.Adder) and distributed.group_size(group) == 1:
            return None
    return group


def ratio_loss(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> Tensor:
    """The operator ``name``, a row of ``_options.RATIOS``; over ranks the same, composed."""
    group = prepared(input, target, weight, options)
    if group is None:
        try:
            loss: Tensor = getattr(torch.ops.customloss, name)(input, target, weight, **options)
        except RuntimeError:
            _checks.option_types(options, {**_options.RATIOS[name].defaults, **_options.LOSS})
            raise
        return loss
    _checks.option_types(options, {**_options.RATIOS[name].defaults, **_options.LOSS})
    elements, scoring = _options.for_ratio(name, input.dim(), **options)
    words = scoring.words()

    def of_sums(sums: Tensor) -> Tensor:
        return reference.similarity_loss(sums, *scoring[:4], words.link, words.gamma)

    return _composed_loss(name, of_sums, input, target, weight, elements, words, options, group)


@takes(Options)
def confusion_loss(
    score: Score,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """The loss of any score of the soft confusion sums: forward and backward one pass each.

    Args:
        score: ``score(tp, fp, fn, tn)`` in torch operations, as those of ``customloss.scores``. It
            gets float64 tensors ``[samples, classes]`` (1 where they are pooled) and returns the
            similarity of every group in that shape, or one per sample, ``[samples, 1]``; 1 is
            perfect. Where it may divide 0 by 0, use ``customloss.scores.ratio``.
        input, target, weight: see :func:`soft_f1_loss`, as are the options.
        link: also ``"log_cosh"`` log cosh(1 - s) and ``"log_power"`` (-log s)^gamma; see
            ``customloss.scores.linked``.

    Returns:
        As :func:`soft_f1_loss`.

    Raises:
        TypeError, ValueError: the score returned no tensor, or one of another shape, or one that
            has no gradient by the sums; the message names the score.

    Example::

        def f2(tp, fp, fn, tn):
            return 5 * tp / (5 * tp + fp + 4 * fn)

        customloss.confusion_loss(f2, logits, target, average="micro", link="log").backward()
    """
    given: dict[str, Any] = {**options}
    group = prepared(input, target, weight, given)
    _checks.option_types(given, _SCORED)
    elements, words = _options.for_score(input.dim(), **given)

    def of_sums(sums: Tensor) -> Tensor:
        return scores.linked(_similarity(score, sums), words.link, words.gamma)

    name = score_name(score)
    return _composed_loss(name, of_sums, input, target, weight, elements, words, given, group)


def _composed_loss(
    name: str,
    of_sums: Callable[[Tensor], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    elements: Elements,
    words: Composed,
    options: dict[str, Any],
    group: ProcessGroup | None,
) -> Tensor:
    """The sums, over all ranks of a group; the loss of every group of elements; their average."""
    read = {name: value for name, value in options.items() if name in _options.SUMS}
    sums = torch.ops.customloss.confusion_sums(input, target, weight, **read)

    def groups(sums: Tensor) -> tuple[Tensor, Tensor]:
        loss = of_sums(sums)
        if loss.shape[-1] != sums.shape[-1]:  # one for all classes of a sample
            sums = sums.sum(-1, keepdim=True)
        return reference.with_absent(loss, sums, words.absent)

    if group is None:
        loss, counted = groups(sums)
        loss = reference.average_groups(
            loss, sums, counted, words.average, elements.per_sample, words.reduction
        )
    else:
        from customloss import _parts, distributed

        part = _parts.totals(sums, groups, words.average, elements.per_sample)
        agreed = (name, elements, sorted(options.items()))
        total = distributed.global_sums(part, group, options=agreed)
        loss = _parts.loss(total, groups, words.average, elements.per_sample, words.reduction)
    if words.average == words.reduction == "none" and not elements.per_class:
        loss = loss[..., 0]
    return loss.to(reference.accumulator(input))


def _similarity(score: Score, sums: Tensor) -> Tensor:
    """What the score says of the sums, if that can be a similarity."""
    found: Any = score(*sums.unbind(0))
    samples, classes = sums.shape[1:]
    if not isinstance(found, Tensor):
        got: object = f"{type(found).__name__} {found!r}"
    elif tuple(found.shape) not in ((samples, classes), (samples, 1)):
        got = f"one of shape {list(found.shape)}"
    elif not found.is_floating_point():
        got = f"one of {found.dtype}"
    elif sums.requires_grad and not found.requires_grad:
        got = "one without a gradient: it left the graph of torch operations"
    else:
        return found
    kind = ValueError if isinstance(found, Tensor) else TypeError
    raise kind(
        f"score {score_name(score)!r}: expected a floating tensor [{samples}, {classes}], one "
        f"similarity per sample and class, or [{samples}, 1], computed from the sums, got {got}"
    )


def score_name(score: object) -> str:
    """What messages call a score."""
    while isinstance(score, partial):
        score = score.func
    return str(getattr(score, "__name__", type(score).__name__))


def at(score: Callable[..., Tensor], **parameters: float) -> Score:
    """A score at these parameters."""
    _options.bounded(**parameters)
    return partial(score, **parameters)
