"""From what was read of a batch to its loss. A ratio of the sums is scored by one operator; any
other score, classes that are pooled by weights, and samples that are spread over ranks take torch
operations on the sums, which are a few numbers per group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from customloss import _autograd, _options, _parts, _sharding, reference, scores
from customloss._classes import Classes
from customloss._options import SCORE_ALONE, Composed, Elements, Pointwise, Scoring
from customloss._words import ABSENT, AVERAGES, LINKS, REDUCTIONS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Score = Callable[..., Tensor]
# the rows of the sums to the losses of the groups
OfSums = Callable[[Sequence[Tensor]], Tensor]


class Ratio(NamedTuple):
    """The similarity ``(A tp + s) / (A tp + s + B fp + C fn)``."""

    tp_weight: float
    fp_weight: float
    fn_weight: float
    smooth: float


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

    def loss(
        self,
        name: str,
        score: Ratio | OfSums,
        pointwise: Pointwise = SCORE_ALONE,
        pos_weight: Tensor | None = None,
        told: object = None,
    ) -> Tensor:
        """The loss of every group of elements, averaged; and beside it a pointwise loss, whose
        positives count ``pos_weight`` times. Of the sums of all ranks of a group, which have to
        agree on what is ``told``.
        """
        # weights of classes, or a choice, pool them themselves
        pools = not self.elements.per_class and self.input.dim() > 1
        pools = pools and (
            self.classes is not None or (pos_weight is not None and pos_weight.dim() > 0)
        )
        ratio = score if isinstance(score, Ratio) and pos_weight is None and not pools else None
        if ratio is not None and not self._has_closed_form():
            ratio = None
        if ratio and self.group is None and not self._sharded():
            return self._kept(self._at_once(ratio, pointwise))
        found = self._sums(pools)
        sums = _sharding.whole(found, self.group)
        if self.group is None and self.elements.per_sample and sums.shape[1] == 0:
            raise ValueError(f"input: there is no group to score in shape {list(self.input.shape)}")
        agreed = None
        if self.group is not None:
            agreed = (name, self.elements, sorted(self.options.items()), self.classes, told)
        if ratio:
            loss = self._of_sums(sums, ratio, pointwise, agreed)
        else:
            loss = self._composed(sums, name, score, pointwise, pos_weight, pools, agreed)
        loss = self._kept(loss).to(reference.accumulator(self.input))
        return _sharding.placed_like(found, loss)

    def of_score(self, score: Score) -> Ratio | OfSums:
        """What ``loss`` takes for a similarity."""
        ratio = scores.as_ratio(score)
        if ratio is not None:
            return Ratio(*ratio)
        link, gamma = self.words.link, self.words.gamma
        names = reference.rows(self.elements.extra)
        wanted = [name for word in scores.used_by(score) for name in _options.ROWS[word]]

        def of_sums(sums: Sequence[Tensor]) -> Tensor:
            more = {name: sums[names.index(name)] for name in wanted}
            return scores.linked(_similarity(score, sums[:4], more), link, gamma)

        return of_sums

    def constant(self) -> bool:
        """Whether nobody differentiates by the target or the weight: then neither by their sums."""
        if torch.compiler.is_compiling() or _autograd.transformed():
            return False
        weighted = self.weight is not None and self.weight.requires_grad
        return not (weighted or self.target.requires_grad)

    # ---- steps of loss ---------------------------------------------------------------------------

    def _sums(self, pools: bool) -> Tensor:
        read = {name: value for name, value in self.options.items() if name in _options.ELEMENTS}
        if pools:
            read["average"] = "macro"
        sums: Tensor = torch.ops.customloss.confusion_sums(
            self.input, self.target, self.weight, **read, **self.extra
        )
        return sums

    def _sharded(self) -> bool:
        return _sharding.sharded(self.input, self.target, self.weight)

    def _has_closed_form(self) -> bool:
        """Whether one operator knows all that is asked for, of a ratio."""
        words = self.words
        if words.link not in LINKS or (self.group is not None and self.elements.per_sample):
            return False
        return self.classes is None or (words.average != "none" and not self.classes.learned())

    def _scoring(self, ratio: Ratio) -> Scoring:
        words = self.words
        return Scoring(
            *ratio, words.gamma, LINKS.index(words.link), ABSENT.index(words.absent),
            AVERAGES.index(words.average), REDUCTIONS.index(words.reduction),
        )  # fmt: skip

    def _class_table(self) -> Tensor | None:
        return None if self.classes is None else self.classes.table(self.input)

    def _at_once(self, ratio: Ratio, pointwise: Pointwise) -> Tensor:
        loss: Tensor = torch.ops.customloss.compound(
            self.input, self.target, self.weight, self._class_table(), *self.elements,
            *self._scoring(ratio), *pointwise,
        )  # fmt: skip
        return loss

    def _of_sums(self, sums: Tensor, ratio: Ratio, pointwise: Pointwise, agreed: object) -> Tensor:
        elements, wide = self.elements, reference.accumulator(self.input) == torch.float64
        if self.group is not None:
            from customloss import distributed

            sums = distributed.global_sums(sums, self.group, options=agreed)
        loss: Tensor = torch.ops.customloss.sums_loss(
            sums, self._class_table(), elements.extra, elements.per_sample, wide,
            *self._scoring(ratio), *pointwise,
        )  # fmt: skip
        return loss

    def _kept(self, loss: Tensor) -> Tensor:
        """An input without a class dimension keeps none."""
        kept = self.words.average == self.words.reduction == "none"
        return loss[..., 0] if kept and self.input.dim() == 1 else loss

    def _composed(
        self,
        sums: Tensor,
        name: str,
        score: Ratio | OfSums,
        pointwise: Pointwise,
        pos_weight: Tensor | None,
        pools: bool,
        agreed: object,
    ) -> Tensor:
        words, samplewise = self.words, self.elements.per_sample
        groups = partial(self._groups, name, score, pointwise.score_weight, pools)
        beside = any(pointwise[1:4])
        if self.group is None:
            rows = sums.unbind(0)
            loss = groups(sums, rows).averaged(words.average, samplewise, words.reduction)
        else:
            from customloss import distributed

            part = _parts.totals(sums, groups, words.average, samplewise)
            if beside and samplewise:
                whole = sums.sum(1, keepdim=True)
                part = torch.cat([part, whole.flatten()])
            total = distributed.global_sums(part, self.group, options=agreed)
            if beside:
                rows = (total[2:].reshape(whole.shape) if samplewise else total).unbind(0)
                total = total[:2] if samplewise else total
            loss = _parts.loss(total, groups, words.average, samplewise, words.reduction)
        if not beside:
            return loss
        more = self._pointwise(rows, pointwise, pos_weight)
        return torch.add(more, loss, alpha=pointwise.score_weight)

    def _groups(
        self,
        name: str,
        score: Ratio | OfSums,
        score_weight: float,
        pools: bool,
        sums: Tensor,
        rows: Any = None,
    ) -> _parts.Groups:
        """The losses of the groups of ``[rows, samples, classes]``."""
        classes, weight = self.classes, None
        if classes is not None:
            sums, weight = classes.of(sums, pools)
        elif pools:
            sums = sums.sum(-1, keepdim=True)
        if rows is None or classes is not None or pools:
            rows = sums.unbind(0)
        if not score_weight:
            loss = torch.zeros_like(rows[0])
        else:
            loss = self._ratio_loss(score, rows) if isinstance(score, Ratio) else score(rows)
        if loss.shape[-1] != sums.shape[-1]:  # one for all classes of a sample
            if weight is not None:
                raise ValueError(
                    f"class_weight: expected None for {name!r}, which makes one score of all "
                    "classes (average='micro' weighs what it adds up), got weights"
                )
            rows = sums.sum(-1, keepdim=True).unbind(0)
        counted = None
        if self.words.absent != "score":
            loss, counted = reference.with_absent(loss, rows, self.words.absent)
            counted = counted if self.words.absent == "skip" else None
        return _parts.Groups(loss, rows, counted, weight)

    def _ratio_loss(self, score: Ratio, rows: Any) -> Tensor:
        link, gamma = self.words.link, self.words.gamma
        if link in LINKS:
            return reference.similarity_loss(rows, *score, link, gamma)
        missing = reference.similarity_loss(rows, *score, "complement", 1.0)
        return scores.linked(1 - missing, link, gamma)

    def _pointwise(
        self, rows: Sequence[Tensor], pointwise: Pointwise, pos_weight: Tensor | None
    ) -> Tensor:
        _, log_pos, log_neg, focal, positives, negatives = pointwise
        weight = None
        if self.classes is not None and self.classes.weight is not None:
            weight = self.classes.weight.to(rows[0].dtype)
        if self.constant():
            rows = [*(row.detach() for row in rows[:4]), *rows[4:]]
        return reference.pointwise_loss(
            rows, self.elements.extra, log_pos if pos_weight is None else log_pos * pos_weight,
            log_neg, focal, positives, negatives, weight,
            self.elements.per_sample and self.words.reduction == "none",
        )  # fmt: skip


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
