"""``with_sums`` returns the loss and the sums that it was made of, of one pass over the data."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import PROBABILITIES
from parts import assert_equal
from ranks import run
from selection import one_of_each
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import customloss
from customloss.losses.base import LOSSES

CLASSES = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "micro": {"average": "micro"},
    "samples": {"samplewise": True},
    "kept": {"samplewise": True, "average": "micro", "reduction": "none"},
    "weighted classes": {"average": "micro", "class_weight": [1.0, 2.0, 3.0]},
    "chosen classes": {"classes": (2, 0)},
    "ignored": {"ignore_index": 1},
}
# the sums beside tp, fp, fn and tn
NEEDED = {
    "dice_ce": ("log_loss",), "dice_bce": ("log_loss",), "tversky_ce": ("log_loss",),
    "weighted_log": ("log_loss",), "dice_focal": ("focal",), "squared_dice": ("squares",),
    "cross_entropy": ("log_loss",), "bce": ("log_loss",), "focal": ("focal",),
    "semimetric_dice": ("distance",), "semimetric_jaccard": ("distance",),
    "semimetric_tversky": ("distance",),
}  # fmt: skip
# one class in every pixel
CLASS_NUMBERS = ("dice_ce", "tversky_ce", "cross_entropy", "multiclass_mcc")
# what these losses set themselves
SET: dict[str, dict[str, Any]] = {
    "custom_f1": {"activation": "none", "average": "micro"},
    "any": {"logit_scale": 73.0, "logit_offset": 0.5},
    "cross_entropy": {"activation": "softmax"},
}


class Passes(TorchDispatchMode):
    """Counts the passes over the data."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        if function.namespace == "customloss":
            self.count += function._opname in ("confusion", "confusion_score")
        return function(*arguments, **(options or {}))


def batch(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, CLASSES, 4, dtype=dtype, generator=generator)
    weight = torch.rand(6, CLASSES, 4, dtype=dtype, generator=generator)
    x = x.sigmoid() if name in PROBABILITIES else x
    if name in CLASS_NUMBERS:
        target = torch.randint(0, CLASSES, (6, 4), generator=generator)
    else:
        target = (torch.rand(6, CLASSES, 4, generator=generator) < 0.4).to(torch.uint8)
    return x.requires_grad_(), target, weight


def tensors(sums: Any) -> list[Tensor]:
    """All of them, in order."""
    found = []
    for each in sums:
        found += tensors(each) if isinstance(each, tuple) else [each] if each is not None else []
    return found


CASES = [
    (name, option)
    for name, loss in LOSSES.items()
    for option, options in OPTIONS.items()
    if {*options} <= {*loss.defaults} and not (name == "generalized_dice" and "class" in option)
]


@pytest.mark.parametrize("hard", [False, True])
@one_of_each(lambda name, option: option)
@pytest.mark.parametrize(("name", "option"), CASES)
def test_loss_and_sums(name: str, option: str, hard: bool) -> None:
    options = OPTIONS[option]
    criterion = customloss.loss(name, **options)
    x, target, weight = batch(name)
    expected = criterion(x, target, weight)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    with Passes() as passes:
        loss, sums = criterion.with_sums(x, target, weight, hard=hard)
    assert passes.count == 1
    assert_equal(loss, expected)
    assert_equal(torch.autograd.grad(loss.sum(), x)[0], wanted)

    known = criterion.options()
    words = ("activation", "average", "samplewise", "ignore_index")
    read = {word: known[word] for word in words if word in known} | SET.get(name, {})
    more = dict.fromkeys(NEEDED.get(name, ()), True)
    again = customloss.confusion_sums(x, target, weight, hard=hard, **more, **read)
    assert type(sums) is type(again)
    assert [each is None for each in sums] == [each is None for each in again]
    for own, other in zip(tensors(sums), tensors(again), strict=True):
        assert own.dtype == torch.float64
        assert not own.requires_grad
        # weighted classes are told apart until they are pooled, in another order of additions
        torch.testing.assert_close(own, other, rtol=1e-15 if "class" in option else 0, atol=0)


def test_a_score_of_ones_own_and_a_compound() -> None:
    @customloss.scores.uses("squares", "hard")
    def own(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, **more: Tensor) -> Tensor:
        return 2 * tp / (more["p2"] + more["t2"] + more["hard_fp"])

    x, target, weight = batch("x", torch.float32)
    for criterion in (
        customloss.ConfusionLoss(own), customloss.CompoundLoss(own, cross_entropy_weight=0.5),
    ):  # fmt: skip
        loss, sums = criterion.with_sums(x, target, weight)
        assert_equal(loss, criterion(x, target, weight))
        assert loss.dtype == torch.float32
        assert loss.requires_grad
        again = customloss.confusion_sums(
            x, target, weight, squares=True, hard=True, dtype=torch.float64,
            log_loss=isinstance(criterion, customloss.CompoundLoss),
        )  # fmt: skip
        for mine, other in zip(tensors(sums), tensors(again), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_over_an_epoch_and_compiled() -> None:
    criterion = customloss.DiceCELoss()
    x, target, _ = batch("dice_ce")
    epoch: Any = 0
    for part in (slice(0, 2), slice(2, 6)):
        epoch = criterion.with_sums(x[part], target[part], hard=True)[1] + epoch
    for own, whole in zip(
        tensors(epoch), tensors(criterion.with_sums(x, target, hard=True)[1]), strict=True
    ):
        torch.testing.assert_close(own, whole)
    compiled = torch.compile(criterion.with_sums, fullgraph=True, backend="aot_eager")
    loss, sums = compiled(x, target, hard=True)
    assert_equal(loss, criterion(x, target))
    torch.testing.assert_close(sums, criterion.with_sums(x, target, hard=True)[1])


def test_what_has_no_sums() -> None:
    x, target, _ = batch("x")
    parts = customloss.StreamingLoss(customloss.DiceLoss())
    with pytest.raises(TypeError, match=r"^with_sums: expected a loss of single batches"):
        parts.loss.with_sums(x, target)
    with pytest.raises(TypeError, match=r"^hard: expected True or False, got 1"):
        customloss.DiceLoss().with_sums(x, target, hard=1)  # type: ignore[arg-type]


def of_all_ranks() -> None:
    x, target, weight = batch("x")
    part = slice(0, 2) if dist.get_rank() == 0 else slice(2, 6)
    for name in ("dice", "mcc", "dice_bce"):
        for option in ("default", "micro", "weighted classes", "samples"):
            alone = customloss.loss(name, **OPTIONS[option])
            criterion = customloss.loss(name, process_group="world", **OPTIONS[option])
            loss, sums = criterion.with_sums(x[part], target[part], weight[part], hard=True)
            expected, whole = alone.with_sums(x, target, weight, hard=True)
            assert_equal(loss, expected, (name, option))
            for own, other in zip(tensors(sums), tensors(whole), strict=True):
                assert_equal(own, other[part] if option == "samples" else other, (name, option))


@pytest.mark.distributed
def test_the_sums_are_those_of_all_ranks() -> None:
    run(2, of_all_ranks)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_hard_counts_are_those_of_the_labels_themselves(activation: str, weighted: bool) -> None:
    """Label smoothing is about the loss; a metric of smoothed labels would be no metric."""
    x, _, weight = batch("x", torch.float32)
    x = x.detach()
    labels = torch.randint(0, CLASSES, (6, 4), generator=torch.Generator().manual_seed(2))
    every = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1)
    w = weight[:, :1].round(decimals=2) if weighted else None
    decided = x > 0 if activation == "sigmoid" else x == x.amax(1, keepdim=True)
    each = torch.ones_like(every) if w is None else w.double()
    one, other = every * each, (1 - every) * each
    expected = [one * decided, other * decided, one * ~decided, other * ~decided]
    expected = [each.sum((0, 2), dtype=torch.float64) for each in expected]
    for target in (labels, every):
        options = {"activation": activation, "label_smoothing": 0.3, "hard": True}
        found = customloss.confusion_sums(x, target, w, **options).hard
        torch.testing.assert_close([*found], expected, rtol=1e-6, atol=0)
    _, sums = customloss.DiceLoss(activation=activation, label_smoothing=0.3).with_sums(
        x, labels, w, hard=True
    )
    torch.testing.assert_close([*sums.hard], expected, rtol=1e-6, atol=0)


def test_sums_of_unlike_batches_are_not_added() -> None:
    x, target, _ = batch("x")
    plain = customloss.confusion_sums(x, target)
    more = customloss.confusion_sums(x, target, hard=True)
    fewer = customloss.confusion_sums(x[:, :1], target[:, :1])
    samples = customloss.confusion_sums(x, target, samplewise=True)
    others = customloss.confusion_sums(x[:2], target[:2], samplewise=True)
    with pytest.raises(ValueError, match=r"^sums: expected the same sums .* got hard of one alone"):
        plain + more
    with pytest.raises(ValueError, match=r"^sums: expected the same sums .* got hard, p2, t2, tp2"):
        more + customloss.confusion_sums(x, target, squares=True)
    for one, other, shapes in (
        (plain, fewer, r"\[3\] and \[1\]"), (more.hard, fewer, r"\[3\] and \[1\]"),
        (samples, others, r"\[6, 3\] and \[2, 3\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^sums: expected the same groups .* tp .*{shapes}"):
            one + other
    with pytest.raises(TypeError):
        operator.add((1, 2), plain)
    assert_equal(sum([plain, plain]).tp, 2 * plain.tp)


def test_sums_times_a_number() -> None:
    """They are scaled, and not repeated as a tuple is."""
    x, target, _ = batch("x")
    for sums in (
        customloss.confusion_sums(x, target),
        customloss.confusion_sums(x, target, hard=True, support=True),
    ):
        for scaled in (sums * 2, 2 * sums, sums * 2.0, torch.tensor(2.0) * sums):
            assert type(scaled) is type(sums)
            for name, value in sums._asdict().items():
                found = getattr(scaled, name)
                assert (found is None) == (value is None)
                for one, other in zip(found or (), value or ()) if name == "hard" else ():
                    assert_equal(one, 2 * other)
                if name != "hard" and value is not None:
                    assert_equal(found, 2 * value)
        mean = 0.75 * sums + 0.25 * sums
        torch.testing.assert_close(mean.tp, sums.tp)
        for wrong in (True, "2", [2], sums):
            with pytest.raises(TypeError):
                sums * wrong
