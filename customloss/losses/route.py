"""The ways from a batch to its loss, and which one a call takes.

=================  =============================================================================
FUSED              One operator reads the batch and makes the loss of it.
SUMS_THEN_LOSS     One operator adds up the sums, another makes the loss of them. In between the
                   sums of other ranks, or of a mesh of DTensors, are added. ``with_sums`` takes it
                   instead of FUSED.
COMPOSED           The sums, and torch operations on them, which are a few numbers per group: for
                   what the operators lack, like scores that are no ratio, learned class weights, or
                   ``samplewise`` with a process group.
=================  =============================================================================

On every way the data is read once forward and once backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from customloss import distributed, scores
from customloss._ops import calls, is_dtensor, modes, totals
from customloss._spec import options
from customloss._spec.arguments import ClassWeights, GroupSums, Pointwise
from customloss._spec.options import Ratio
from customloss._spec.words import FUSED_LINKS
from customloss.losses import classes
from customloss.losses import hidden as hidden_classes
from customloss.losses.formula import Formula
from customloss.losses.named_sums import SumsTaker
from customloss.losses.request import Request
from customloss.reference import losses as reference
from customloss.reference.sums import Extra, accumulator


class Route(Enum):
    """The ways of the table above."""

    FUSED = "fused"
    SUMS_THEN_LOSS = "sums then loss"
    COMPOSED = "composed"


def route(request: Request, formula: Formula) -> Route:
    """The way that a call takes."""
    if not _has_closed_form(request, formula):
        return Route.COMPOSED
    if request.ranks is not None or request.sharded():
        return Route.SUMS_THEN_LOSS
    return Route.FUSED


def _has_closed_form(request: Request, formula: Formula) -> bool:
    """Whether the operators can compute this loss."""
    words = request.words
    asked = [each for each in (request.classes, request.pointwise_classes) if each is not None]
    if not isinstance(formula.score, Ratio) or words.link not in FUSED_LINKS:
        return False
    if formula.pos_weight is not None or pools_classes(request, formula):
        return False
    if formula.pointwise_size is not None:  # operators take numbers
        return False
    if request.ranks is not None and request.elements.per_sample:
        return False
    return not asked or (words.average != "none" and not any(each.learned() for each in asked))


def pools_classes(request: Request, formula: Formula) -> bool:
    """Whether the classes are one group and yet have to be told apart: because only some of them
    are scored, or because their numbers are weighted before they are added."""
    if request.options.get("average") != "micro":
        return False
    pos_weight = formula.pos_weight
    by_class = request.classes is not None or request.pointwise_classes is not None
    return by_class or (pos_weight is not None and pos_weight.dim() > 0)


def loss(request: Request, formula: Formula) -> Tensor:
    """The loss of a call, whichever way it takes."""
    taker = request.ranks if isinstance(request.ranks, SumsTaker) else None
    if taker is not None:
        request = _for_taker(request, taker)
    request = _differentiable(request, formula)
    way = route(request, formula)
    if way is Route.FUSED and taker is None:
        return _without_class(request, fused(request, formula))
    sums = _sums(request, pools_classes(request, formula))
    whole = is_dtensor.local(sums)  # every rank has all of them
    if taker is not None:
        micro = request.options.get("average") == "micro"
        taker.take(whole, request.elements, micro or request.data.input.dim() == 1)
    result = _of_sums(request, formula, whole)
    result = _without_class(request, result).to(accumulator(request.data.input))
    return is_dtensor.placed_like(sums, result)


def _for_taker(request: Request, taker: SumsTaker) -> Request:
    """The request of a call whose sums are handed out: with hard counts if they are asked for, and
    without ranks if there is none to add sums of."""
    ranks = taker if distributed.group_size(taker.process_group) > 1 else None
    elements, extra = request.elements, request.extra
    if taker.hard:
        elements = elements._replace(extra=elements.extra | Extra.HARD)
        extra = {**extra, "hard": True}
    return request._replace(ranks=ranks, elements=elements, extra=extra)


def _differentiable(request: Request, formula: Formula) -> Request:
    """Before a transform differentiates the reference, what is not finite is replaced in classes
    that do not count. Elsewhere the kernels see to that, without a pass of its own."""
    if torch.compiler.is_compiling() or not modes.differentiates():
        return request
    table = _class_table(request)
    if table is None:
        return request
    parts = (bool(formula.pointwise.score_weight), formula.pointwise.present())
    hidden = classes.hidden(table, *parts)
    data, lost = hidden_classes.without_elements(request.data, request.elements, hidden)
    kept = [None if each is None else each.without(lost)
            for each in (request.classes, request.pointwise_classes)]  # fmt: skip
    return request._replace(data=data, classes=kept[0], pointwise_classes=kept[1])


def _of_sums(request: Request, formula: Formula, sums: Tensor) -> Tensor:
    """The loss of the sums of this process."""
    if request.pointwise_alone and request.ranks is not None and formula.pointwise.present():
        scored = Pointwise(formula.pointwise.score_weight)
        # the weights of positives stay in both: they may be why the classes of ``sums`` are apart
        of_score = formula._replace(pointwise=scored, pointwise_size=None)
        alone = formula._replace(pointwise=formula.pointwise._replace(score_weight=0.0))
        ranks = request.ranks
        part = ranks.of_part(sums) if isinstance(ranks, distributed.Adder) else sums
        own = _of_sums(request._replace(ranks=None), alone, part)
        return own + _of_sums(request, of_score, sums)
    if route(request, formula) is Route.COMPOSED:
        return composed(request, formula, sums)
    return sums_then_loss(request, formula, sums)


def _without_class(request: Request, loss: Tensor) -> Tensor:
    kept = (request.words.average, request.words.reduction)
    return reference.without_class_dim(loss, *kept, request.data.input.dim() > 1)


# ---- the ways ------------------------------------------------------------------------------------


def fused(request: Request, formula: Formula) -> Tensor:
    """FUSED: the operator ``compound``."""
    assert isinstance(formula.score, Ratio)
    return calls.call(
        "compound", request.data, ClassWeights(_class_table(request)), request.elements,
        request.words.scoring(formula.score), formula.pointwise,
    )  # fmt: skip


def sums_then_loss(request: Request, formula: Formula, sums: Tensor) -> Tensor:
    """SUMS_THEN_LOSS: the operator ``sums_loss``, of the sums of all ranks."""
    assert isinstance(formula.score, Ratio)
    if request.ranks is not None:
        sums = distributed.global_sums(sums, request.ranks, options=_must_agree(request, formula))
    elements = request.elements
    wide = accumulator(request.data.input) == torch.float64
    group_sums = GroupSums(sums, _class_table(request), elements.extra, elements.per_sample, wide)
    scoring = request.words.scoring(formula.score)
    return calls.call("sums_loss", group_sums, scoring, formula.pointwise)


def composed(request: Request, formula: Formula, sums: Tensor) -> Tensor:
    """COMPOSED: torch operations on the sums."""
    words, samplewise = request.words, request.elements.per_sample
    groups_of = partial(_groups, request, formula)
    has_pointwise = formula.pointwise.present()
    if request.ranks is None:
        rows = sums.unbind(0)
        result = groups_of(sums, rows).averaged(words.average, samplewise, words.reduction)
    else:
        part = totals.of_part(sums, groups_of, words.average, samplewise)
        adds_sums = has_pointwise and samplewise
        if adds_sums:
            # the pointwise loss is one of the whole batch, so it needs the sums as well
            of_batch = sums.sum(1, keepdim=True)
            sizes = (part.numel(), of_batch.numel())
            part = torch.cat([part, of_batch.flatten()])
        total = distributed.global_sums(part, request.ranks, options=_must_agree(request, formula))
        if adds_sums:
            total, of_batch = total.split(sizes)
            rows = of_batch.reshape(sums.shape[0], 1, -1).unbind(0)
        elif has_pointwise:
            rows = total.unbind(0)
        result = totals.loss(total, groups_of, words.average, samplewise, words.reduction)
    score_weight = formula.pointwise.score_weight
    if has_pointwise:
        return torch.add(_pointwise(request, formula, rows), result, alpha=score_weight)
    return result if score_weight == 1 else score_weight * result


# ---- steps of the ways ---------------------------------------------------------------------------


def _sums(request: Request, pools: bool) -> Tensor:
    """Calls ``confusion_sums``; with ``pools`` it keeps the classes apart, to be pooled later."""
    ranks = request.ranks.process_group if isinstance(request.ranks, SumsTaker) else request.ranks
    if request.sharded() and not isinstance(ranks, (type(None), distributed.Adder)):
        raise ValueError(
            "process_group: expected None for DTensors, whose mesh says which ranks share the "
            f"batch, got {ranks!r}"
        )
    read = {name: value for name, value in request.options.items() if name in options.ELEMENTS}
    if pools:
        read["average"] = "macro"
    sums: Tensor = torch.ops.customloss.confusion_sums(*request.data, **read, **request.extra)
    if request.ranks is None and request.elements.per_sample and sums.shape[1] == 0:
        shape = list(request.data.input.shape)
        raise ValueError(f"input: there is no group to score in shape {shape}")
    return sums


def _class_table(request: Request) -> Tensor | None:
    return classes.table(request.data.input, request.classes, request.pointwise_classes)


def _must_agree(request: Request, formula: Formula) -> dict[str, object] | None:
    """What has to be equal on every rank for their sums to mean the same, by name; None unless it
    is asked for, since it reads tensors."""
    if not distributed.DEBUG or torch.compiler.is_compiling():
        return None
    scored = request.classes or classes.ALL
    named = {
        "loss": formula.name, **options.LOSS, **request.options, **request.extra,
        "class_weight": scored.weight, "runs of classes": scored.runs,
    }  # fmt: skip
    for values in formula.must_agree:
        if hasattr(values, "_asdict"):
            named |= values._asdict()
        else:
            named |= values if isinstance(values, dict) else dict(zip(*values))
    return {name: _listed(value) for name, value in named.items()}


def _listed(value: Any) -> Any:
    """Tensors as lists: the repr of a tensor is shortened, and names its device."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_listed(each) for each in value]
    return value


def _groups(request: Request, formula: Formula, sums: Tensor, rows: Any = None) -> totals.Groups:
    """The losses of the groups of ``sums``; ``rows`` is ``sums.unbind(0)``, if it was made."""
    pools = pools_classes(request, formula)
    weight = None
    if request.classes is not None:
        sums, weight = request.classes.of(sums, pools)
    elif pools:
        sums = sums.sum(-1, keepdim=True)
    if rows is None or request.classes is not None or pools:
        rows = sums.unbind(0)
    if not formula.pointwise.score_weight:
        loss = torch.zeros_like(rows[0])
    elif isinstance(formula.score, Ratio):
        loss = _ratio_loss(request, formula.score, rows)
    else:
        loss = formula.score(rows)
    if loss.shape[-1] != sums.shape[-1]:  # the score makes one loss of all classes
        if weight is not None:
            raise ValueError(
                f"class_weight: expected None for {formula.name!r}, which makes one score of all "
                "classes (average='micro' weighs what it adds up), got weights"
            )
        rows = sums.sum(-1, keepdim=True).unbind(0)
    counted = None
    if request.words.absent != "score":
        loss, counted = reference.with_absent(loss, rows, request.words.absent)
        counted = counted if request.words.absent == "skip" else None
    return totals.Groups(loss, rows, counted, weight)


def _ratio_loss(request: Request, ratio: Ratio, rows: Any) -> Tensor:
    link, gamma, log_floor = request.words.link, request.words.gamma, request.words.log_floor
    if link in FUSED_LINKS:
        return reference.similarity_loss(rows, *ratio, link, gamma, log_floor)
    if link == "log_power":  # 1 - complement would lose a similarity below 1e-16
        log = reference.similarity_loss(rows, *ratio, "log", 1.0, log_floor)
        return scores.power(log, gamma)
    complement = reference.similarity_loss(rows, *ratio, "complement", 1.0)
    return scores.linked(1 - complement, link, gamma)


def _pointwise(request: Request, formula: Formula, rows: Sequence[Tensor]) -> Tensor:
    """The loss beside the score, of the rows of the whole batch."""
    factors, pos_weight = formula.pointwise, formula.pos_weight
    weight = None
    if request.pointwise_classes is not None:
        table = _class_table(request)
        assert table is not None
        weight = table[1].to(rows[0].dtype)
    if request.constant_sums():
        rows = [*(row.detach() for row in rows[:4]), *rows[4:]]
    by_name: dict[str, float | Tensor] = factors._asdict()
    del by_name["score_weight"]
    if pos_weight is not None:
        # a float32 weight times a factor would be rounded once more
        pos_weight = pos_weight.to(rows[0].dtype)
        for positives in ("log_pos", "focal_pos"):  # a part that is not there has no row
            by_name[positives] = by_name[positives] * pos_weight if by_name[positives] else 0.0
    lost = reference.pointwise_loss(
        rows,
        request.elements.extra,
        [*by_name.values()],
        class_weight=weight,
        keep_samples=request.elements.per_sample and request.words.reduction == "none",
    )
    return lost if formula.pointwise_size is None else lost / formula.pointwise_size
