"""The two ways to a loss, behind every function of ``functional.py``.

A ratio of the sums is one fused operator (:func:`ratio_loss`). Any other loss is made in two steps:
the sums, and what ``_score.py`` makes of them. Either way the data is read once forward and once
backward. Over the ranks of a process group every loss takes two steps, since the sums of all ranks
have to be added up in between, and so does one whose classes do not all count alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from customloss import _checks, _classes, _options, _sharding, scores
from customloss._classes import Classes
from customloss._options import Composed, Elements, Options, Scoring
from customloss._score import Ratio, Score, Sums, score_name

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

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
) -> tuple[ProcessGroup | None, Classes | None]:
    """Checks what no operator can, and takes out of the options what no operator knows."""
    _checks.are_tensors(input, target, weight)
    _sharding.ready(input)
    if isinstance(options.get("ignore_index"), bool):
        raise TypeError(f"ignore_index: expected an integer or None, got {options['ignore_index']}")
    if options.pop("check_target", False):
        _checks.target_values(input, target, options.get("ignore_index"))
    classes = _classes.asked_for(input, options)
    group: ProcessGroup | None = options.pop("process_group", None)
    if group is not None:
        from customloss import distributed

        # alone, a rank has nothing to add: the fused operator serves it
        if not isinstance(group, distributed.Adder) and distributed.group_size(group) == 1:
            group = None
    return group, classes


def ratio_loss(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> Tensor:
    """The operator ``name``, a row of ``_options.RATIOS``; over ranks, or if classes count
    differently, the same, composed."""
    group, classes = prepared(input, target, weight, options)
    if group is None and classes is None:
        try:
            loss: Tensor = getattr(torch.ops.customloss, name)(input, target, weight, **options)
        except RuntimeError:
            _checks.option_types(options, {**_options.RATIOS[name].defaults, **_options.LOSS})
            raise
        return loss
    elements, scoring = _ratio(name, input.dim(), **options)
    sums = Sums(input, target, weight, elements, scoring.words(), options, group, classes)
    return sums.loss(name, Ratio(*scoring[:4]))


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
            gets float64 tensors ``[samples, classes]`` (1 where they are pooled, else those that
            are scored) and returns the similarity of every group in that shape, or one per sample,
            ``[samples, 1]``; 1 is perfect. Where it may divide 0 by 0, use
            ``customloss.scores.ratio``; if it needs more sums than these four,
            ``customloss.scores.uses``.
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
    sums = read(input, target, weight, {**options}, scores.used_by(score))
    return sums.loss(score_name(score), sums.of_score(score))


def read(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
    words: Collection[str] = (),
    focal_gamma: float = 2.0,
) -> Sums:
    """The options of a composed loss are checked; ``words`` are those of the extra sums."""
    group, classes = prepared(input, target, weight, options)
    elements, composed = _score(input.dim(), **options)
    extra: dict[str, Any] = {word: True for word in _options.ROWS if word in words}
    if "focal" in extra:
        extra["focal_gamma"] = focal_gamma
    if extra:
        gamma = focal_gamma if "focal" in extra else elements.focal_gamma
        elements = elements._replace(extra=_options.extra_bits(extra), focal_gamma=gamma)
    return Sums(input, target, weight, elements, composed, options, group, classes, extra)


def _once(check: _F) -> _F:
    """Options are checked once for each distinct set."""
    cached = lru_cache(maxsize=1024, typed=True)(check)

    @wraps(check)
    def checked(*given: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():  # which knows no caches
            return check(*given, **options)
        try:
            return cached(*given, **options)
        except TypeError:  # of a value that has no hash, and no option has
            return check(*given, **options)

    return cast(_F, checked)


@_once
def _score(rank: int, **options: Any) -> tuple[Elements, Composed]:
    _checks.option_types(options, _SCORED)
    return _options.for_score(rank, **options)


@_once
def _ratio(name: str, rank: int, **options: Any) -> tuple[Elements, Scoring]:
    _checks.option_types(options, {**_options.RATIOS[name].defaults, **_options.LOSS})
    return _options.for_ratio(name, rank, **options)


def at(score: Callable[..., Tensor], **parameters: float) -> Score:
    """A score at these parameters."""
    _options.bounded(**parameters)
    return partial(score, **parameters)
