"""The two ways to a loss, behind every function of ``functional.py``.

A ratio of the sums is one fused operator (:func:`ratio_loss`). Any other score is composed of torch
operations on the sums, which are a few numbers per group (:func:`confusion_loss`). Either way the
data is read once forward and once backward. Over the ranks of a process group every loss is
composed, since the sums of all ranks have to be added up in between, and so is a loss whose classes
do not all count alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from customloss import _autograd, _checks, _classes, _options, _parts, _sharding, reference, scores
from customloss._classes import Classes
from customloss._options import Composed, Elements, Options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

Score = Callable[..., Tensor]
# the rows of the sums to the losses of the groups
OfSums = Callable[[Sequence[Tensor]], Tensor]
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
    _checks.option_types(options, {**_options.RATIOS[name].defaults, **_options.LOSS})
    elements, scoring = _options.for_ratio(name, input.dim(), **options)
    sums = Sums(input, target, weight, elements, scoring.words(), options, group, classes)
    return sums.loss(name, sums.ratio_loss(*scoring[:4]))


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
    return sums.loss(score_name(score), sums.similarity_loss(score))


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
    if torch.compiler.is_compiling():  # which knows no caches
        elements, composed = _checked(input.dim(), **options)
    else:
        try:
            elements, composed = _cached(input.dim(), **options)
        except TypeError:  # of a value that has no hash, and no option has
            elements, composed = _checked(input.dim(), **options)
    extra: dict[str, Any] = {word: True for word in _options.ROWS if word in words}
    if "focal" in extra:
        extra["focal_gamma"] = focal_gamma
    return Sums(input, target, weight, elements, composed, options, group, classes, extra)


def _checked(rank: int, **options: Any) -> tuple[Elements, Composed]:
    _checks.option_types(options, _SCORED)
    return _options.for_score(rank, **options)


_cached = lru_cache(maxsize=1024, typed=True)(_checked)


class Sums(NamedTuple):
    """A loss up to its score: what is read of the data, and how groups become one number."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    elements: Elements
    words: Composed
    options: dict[str, Any]  # as the operator takes them
    group: ProcessGroup | None
    classes: Classes | None
    extra: dict[str, Any] = {}  # noqa: RUF012 (a default that nobody writes to)

    def places(self) -> dict[str, int]:
        """Where among the sums the extra ones are."""
        names = [name for word in self.extra for name in _options.ROWS.get(word, ())]
        return {name: 4 + place for place, name in enumerate(names)}

    def similarity_loss(self, score: Score) -> OfSums:
        """The loss of a similarity, as a function of the sums."""
        link, gamma = self.words.link, self.words.gamma
        places = self.places() if self.extra else {}
        wanted = [name for word in scores.used_by(score) for name in _options.ROWS[word]]

        def of_sums(sums: Sequence[Tensor]) -> Tensor:
            more = {name: sums[places[name]] for name in wanted}
            return scores.linked(_similarity(score, sums[:4], more), link, gamma)

        return of_sums

    def ratio_loss(
        self, tp_weight: float, fp_weight: float, fn_weight: float, smooth: float
    ) -> OfSums:
        """The loss of a similarity ``(A tp + s) / (A tp + s + B fp + C fn)``."""
        link, gamma = self.words.link, self.words.gamma

        def of_sums(sums: Any) -> Tensor:
            if link in ("log", "focal", "negative"):
                return reference.similarity_loss(
                    sums, tp_weight, fp_weight, fn_weight, smooth, link, gamma
                )
            tp, fp, fn = sums[:3]
            missing = _complement(tp, fp, fn, tp_weight, fp_weight, fn_weight, smooth)
            return missing if link == "complement" else scores.linked(1 - missing, link, gamma)

        return of_sums

    def constant(self) -> bool:
        """Whether nobody differentiates by the target or the weight: then neither by their sums."""
        if torch.compiler.is_compiling() or _autograd.transformed():
            return False
        weighted = self.weight is not None and self.weight.requires_grad
        return not (weighted or self.target.requires_grad)

    def loss(
        self,
        name: str,
        of_sums: OfSums,
        pointwise: Callable[[Sequence[Tensor], bool], Tensor] | None = None,
        score_weight: float = 1.0,
        keep_classes: bool = False,
        told: object = None,
    ) -> Tensor:
        """The sums, over all ranks of a group; the loss of every group of elements; their average.

        ``of_sums`` makes the losses of the groups of ``[rows, samples, classes]``. ``pointwise`` is
        a loss to add to ``score_weight`` times their average: of all, or of each sample. Ranks have
        to agree on what is ``told``.
        """
        input, _, _, elements, words, options, group, classes, extra = self
        read = {name: value for name, value in options.items() if name in _options.ELEMENTS}
        # a weight of classes, or a choice, pools them itself
        pools = not elements.per_class and input.dim() > 1
        pools = pools and (classes is not None or keep_classes)
        if pools:
            read["average"] = "macro"
        found = torch.ops.customloss.confusion_sums(
            input, self.target, self.weight, **read, **extra
        )
        sums = _sharding.whole(found, group)
        average, samplewise, reduction = words.average, elements.per_sample, words.reduction

        def groups(sums: Tensor, rows: Any = None) -> _parts.Groups:
            weight = None
            if classes is not None:
                sums, weight = classes.of(sums, pools)
            elif pools:
                sums = sums.sum(-1, keepdim=True)
            if rows is None or classes is not None or pools:
                rows = sums.unbind(0)
            loss = of_sums(rows)
            if loss.shape[-1] != sums.shape[-1]:  # one for all classes of a sample
                if weight is not None:
                    raise ValueError(
                        f"class_weight: expected None for {name!r}, which makes one score of all "
                        "classes (average='micro' weighs what it adds up), got weights"
                    )
                rows = sums.sum(-1, keepdim=True).unbind(0)
            counted = None
            if words.absent != "score":
                loss, counted = reference.with_absent(loss, rows, words.absent)
                counted = counted if words.absent == "skip" else None
            return _parts.Groups(loss, rows, counted, weight)

        if group is None:
            if samplewise and sums.shape[1] == 0:
                raise ValueError(f"input: there is no group to score in shape {list(input.shape)}")
            rows = sums.unbind(0)
            loss = groups(sums, rows).averaged(average, samplewise, reduction)
        else:
            from customloss import distributed

            part = _parts.totals(sums, groups, average, samplewise)
            if pointwise and samplewise:
                whole = sums.sum(1, keepdim=True)
                part = torch.cat([part, whole.flatten()])
            agreed = (name, elements, sorted(options.items()), extra, classes, told)
            total = distributed.global_sums(part, group, options=agreed)
            if pointwise:
                rows = (total[2:].reshape(whole.shape) if samplewise else total).unbind(0)
                total = total[:2] if samplewise else total
            loss = _parts.loss(total, groups, average, samplewise, reduction)
        if average == reduction == "none" and input.dim() == 1:
            loss = loss[..., 0]
        if pointwise:
            more = pointwise(rows, samplewise and reduction == "none")
            loss = torch.add(more, loss, alpha=score_weight)
        return _sharding.placed_like(found, loss.to(reference.accumulator(input)))


def _complement(
    tp: Tensor, fp: Tensor, fn: Tensor, a: float, b: float, c: float, smooth: float
) -> Tensor:
    """``(b fp + c fn) / (a tp + s + b fp + c fn)``, 0 / 0 = 0 as is its gradient; in few steps."""
    miss = torch.add(fp if b == 1 else b * fp, fn, alpha=c)
    hit = tp if a == 1 else a * tp
    hit = hit + smooth if smooth else hit
    whole = hit + miss
    empty = whole == 0
    return (miss / whole.masked_fill(empty, 1)).masked_fill(empty, 0)


def _similarity(score: Score, sums: Sequence[Tensor], more: dict[str, Tensor]) -> Tensor:
    """What the score says of the sums, if that can be a similarity."""
    found: Any = score(*sums, **more)
    samples, classes = sums[0].shape
    if not isinstance(found, Tensor):
        got: object = f"{type(found).__name__} {found!r}"
    elif tuple(found.shape) not in ((samples, classes), (samples, 1)):
        got = f"one of shape {list(found.shape)}"
    elif not found.is_floating_point():
        got = f"one of {found.dtype}"
    elif sums[0].requires_grad and not found.requires_grad:
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
