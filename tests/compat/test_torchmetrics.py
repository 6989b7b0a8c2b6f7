"""Metrics of torchmetrics, updated with the hard sums of a loss and with predictions."""

import random
import warnings

import pytest
import torch

import customloss
from customloss.compat.torchmetrics import update

peer = pytest.importorskip("torchmetrics")
segmentation = pytest.importorskip("torchmetrics.segmentation")

SCORES = ("F1Score", "FBetaScore", "Precision", "Recall", "Specificity")
MATRICES = ("JaccardIndex", "MatthewsCorrCoef")


def same(metric, other):
    """Two metrics compute the same, and are left in the same state."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = metric.compute(), other.compute()
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert metric._update_count == other._update_count
    for name in other._defaults:
        states = [getattr(each, name) for each in (metric, other)]
        if isinstance(states[0], list):
            states = [torch.cat(each) for each in states]
            if states[0].shape != states[1].shape:
                states = [each.sum(0) for each in states]
        assert states[0].dtype == states[1].dtype and torch.equal(*states), name


def agreeing(task, kind, seed):
    draw = random.Random(f"{task} {kind} {seed}")
    torch.manual_seed(draw.randrange(1 << 30))
    classes = 1 if task == "Binary" else draw.choice((2, 3, 5))
    spatial = draw.choice(((), (7,), (4, 3)))
    ignore = draw.choice((None, None, -1, 255))
    given = {"ignore_index": ignore}
    if kind == "FBetaScore":
        given["beta"] = draw.choice((0.5, 2.0))
    if task != "Binary":
        given["num_classes" if task == "Multiclass" else "num_labels"] = classes
        if kind != "MatthewsCorrCoef":
            given["average"] = draw.choice(("micro", "macro", "weighted", "none", None))
    activation = "softmax" if task == "Multiclass" else "sigmoid"
    criterion = customloss.DiceLoss(
        activation=activation, samplewise=draw.random() < 0.3, check_target=False,
        **({} if ignore is None else {"ignore_index": ignore}),
    )  # fmt: skip
    metric, other = (getattr(peer.classification, task + kind)(**given) for _ in range(2))
    for _ in range(draw.choice((1, 3))):
        input = torch.randn(4, classes, *spatial) * 3
        shape = (4, *spatial) if task == "Multiclass" else tuple(input.shape)
        target = torch.randint(0, classes if task == "Multiclass" else 2, shape)
        if ignore is not None:
            target = target.masked_fill(torch.rand(shape) < 0.2, ignore)
        _, sums = criterion.with_sums(input, target, hard=True)
        update(metric, draw.choice((sums, sums.hard)))
        other.update(input if task == "Multiclass" else input.sigmoid(), target)
    same(metric, other)


CASES = [
    (task, kind)
    for task in ("Binary", "Multiclass", "Multilabel")
    for kind in (*SCORES, *MATRICES)
    if task != "Multiclass" or kind in SCORES
]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_a_metric_is_that_of_the_predictions(task, kind):
    for seed in range(16):
        agreeing(task, kind, seed)


@pytest.mark.more
@pytest.mark.parametrize(("task", "kind"), CASES)
def test_hundreds_of_option_sets_agree(task, kind):
    for seed in range(1000, 1080):
        agreeing(task, kind, seed)


@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("level", ["samplewise", "global"])
@pytest.mark.parametrize("samplewise", [True, False])
def test_the_dice_score_of_segmentation(average, include_background, level, samplewise):
    if level == "samplewise" and not samplewise:
        return
    given = {
        "num_classes": 4, "average": average, "include_background": include_background,
        "aggregation_level": level, "input_format": "index",
    }  # fmt: skip
    metric, other = (segmentation.DiceScore(**given) for _ in range(2))
    criterion = customloss.DiceLoss(activation="softmax", samplewise=samplewise)
    torch.manual_seed(0)
    for _ in range(3):
        input, target = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5))
        target[0] = 1
        update(metric, criterion.with_sums(input, target, hard=True)[1])
        other.update(input.argmax(1), target)
    same(metric, other)


def test_what_was_computed_is_forgotten_and_reset_empties_the_states():
    metric = peer.classification.BinaryF1Score()
    criterion = customloss.DiceLoss()
    input, target = torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[1], [1], [1]])
    update(metric, criterion.with_sums(input, target, hard=True)[1])
    assert metric.compute() == pytest.approx(0.8)
    update(metric, criterion.with_sums(-input, target, hard=True)[1])
    assert metric.compute() == pytest.approx(2 / 3)
    metric.reset()
    assert metric.tp == 0 and metric._update_count == 0


def test_what_is_refused():
    softmax = customloss.DiceLoss(activation="softmax")
    input, target = torch.randn(3, 4, 5), torch.randint(0, 4, (3, 5))
    sums = softmax.with_sums(input, target, hard=True)[1]
    of = peer.classification
    refusals = {
        "which class was taken for which": of.MulticlassJaccardIndex(num_classes=4),
        "taken for which": of.MulticlassMatthewsCorrCoef(num_classes=4),
        "top_k=2": of.MulticlassF1Score(num_classes=4, top_k=2),
        "multidim_average": of.MulticlassF1Score(num_classes=4, multidim_average="samplewise"),
        "threshold=0.3": of.MultilabelF1Score(num_labels=4, threshold=0.3),
        "a whole batch": segmentation.DiceScore(num_classes=4),
        "a MeanSquaredError": peer.MeanSquaredError(),
    }
    for message, metric in refusals.items():
        with pytest.raises(NotImplementedError, match=message):
            update(metric, sums)
    metric = of.MulticlassF1Score(num_classes=5)
    with pytest.raises(ValueError, match="expected those of 5 classes"):
        update(metric, sums)
    with pytest.raises(ValueError, match="one class for a binary metric"):
        update(of.BinaryF1Score(), sums)
    with pytest.raises(ValueError, match="hard=True"):
        update(of.MulticlassF1Score(num_classes=4), softmax.with_sums(input, target)[1])
    weighted = softmax.with_sums(input, target, torch.full((3, 1, 5), 0.3), hard=True)[1]
    with pytest.raises(ValueError, match="whole numbers"):
        update(of.MulticlassF1Score(num_classes=4), weighted)
