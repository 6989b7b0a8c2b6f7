"""A score that cannot take the sums is refused when a loss is made of it, with the cure."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customloss
from customloss import scores

X, T = torch.randn(4, 3), torch.rand(4, 3) > 0.5


def without_squares(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, p2: Tensor) -> Tensor:
    return tp / p2


@scores.uses("hard")
def without_hard(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return tp


class Parts(nn.Module):
    """A score that is a module."""

    def forward(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return tp / (tp + fp + fn)


class TooFew(nn.Module):
    def forward(self, tp: Tensor, fp: Tensor) -> Tensor:
        return tp / (tp + fp)


def at(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, recall: float) -> Tensor:
    return tp * recall


WRONG: dict[str, tuple[Any, str]] = {
    "too few": (lambda tp, fp: tp, "score '<lambda>': expected a function of .*got one of tp, fp"),
    "a module": (TooFew(), "score 'TooFew': expected a function of .*got one of tp, fp"),
    "not declared": (without_squares, r'score .*p2 would not be given: add @.*uses\("squares"\)'),
    "not taken": (without_hard, r'score .*keywords of uses\("hard"\), .*without hard_tp, '),
    "no value": (at, r"score 'at': recall would not be given: functools.partial\(score, recall="),
    "a loss": (customloss.DiceLoss(), "score 'DiceLoss': .*a loss of .*, whose score is 'dice'"),
    "a function": (customloss.soft_f1_loss, "score 'soft_f1_loss': .* whose score is 'fbeta'"),
    "a class": (customloss.JaccardLoss, "score: .*, got a loss .*, whose score is 'jaccard'"),
    "torch": (nn.BCELoss(), "score 'BCELoss': .*got a loss of input and target$"),
    "a class of scores": (Parts, r"score: .* got the class Parts: Parts\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_score_is_checked_when_a_loss_is_made(what: str) -> None:
    score, text = WRONG[what]
    for make in (
        customloss.ConfusionLoss,
        partial(customloss.CompoundLoss, cross_entropy_weight=1.0),
        partial(customloss.register_score, "of_this_test"),
    ):
        with pytest.raises(TypeError, match=f"^{text}"):
            make(score)
    assert "of_this_test" not in customloss.loss_names()


@pytest.mark.parametrize("what", ["too few", "a module", "not declared", "not taken", "no value"])
def test_a_function_says_so_too(what: str) -> None:
    score, text = WRONG[what]
    with pytest.raises(TypeError, match=f"^{text}"):
        customloss.confusion_loss(score, X, T)


def test_an_error_of_the_score_itself_is_kept() -> None:
    def broken(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        raise TypeError("of my own")

    with pytest.raises(TypeError, match=r"^of my own$"):
        customloss.ConfusionLoss(broken)(X, T)


def test_what_is_right_is_taken() -> None:
    for score in (
        Parts(), partial(at, recall=0.5), lambda *sums: sums[0], scores.squared_dice,
        partial(scores.fbeta, beta=2.0), lambda tp, fp, fn, tn, k=1.0, **more: tp,
    ):  # fmt: skip
        customloss.ConfusionLoss(score)


CLASSES = {
    "DeepSupervision(DiceCELoss)": "DiceCELoss",
    "deep_supervision_loss(DiceCELoss, [X], [T])": "DiceCELoss",
    "accumulate(DiceLoss)": "DiceLoss",
    "StreamingLoss(DiceLoss)": "DiceLoss",
}


@pytest.mark.parametrize("call", CLASSES)
def test_a_class_is_no_loss(call: str) -> None:
    name = CLASSES[call]
    with pytest.raises(TypeError, match=rf"^loss: .*, got the class {name}: {name}\(\)$"):
        eval(f"customloss.{call}".replace("(D", "(customloss.D"),
             {"customloss": customloss, "X": X, "T": T})  # fmt: skip
