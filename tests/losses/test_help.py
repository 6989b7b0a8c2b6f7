"""``help`` of a public object says where it is found, which shapes it takes and what it can do."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import re
import types

import pytest
import torch

import customloss
from customloss.losses import help_text
from customloss.losses.base import LOSSES

MODULES = [getattr(customloss, name) for name in customloss.__all__]
LOSS_MODULES = [
    each for each in MODULES if isinstance(each, type) and issubclass(each, customloss.Loss)
]


@pytest.mark.parametrize("name", customloss.__all__)
def test_a_public_name_is_one_of_the_package(name: str) -> None:
    value = getattr(customloss, name)
    if isinstance(value, types.ModuleType):
        assert value.__name__ == f"customloss.{name}"
    else:
        assert value.__module__ == "customloss"
        assert pickle.loads(pickle.dumps(value)) is value


def test_older_pickles_load() -> None:
    """A pickle holds the name of a class, which was that of its file."""
    assert pickle.loads(b"ccustomloss.losses.ratios\nSoftF1Loss\n.") is customloss.SoftF1Loss
    assert pickle.loads(b"ccustomloss.losses.sums\nConfusionSums\n.") is customloss.ConfusionSums
    saved = pickle.dumps(customloss.DiceLoss())
    assert b"customloss.losses" not in saved


@pytest.mark.parametrize("loss", LOSS_MODULES, ids=lambda loss: loss.__name__)
def test_help_has_shapes_and_a_line_for_every_option(loss: type[customloss.Loss]) -> None:
    if loss is customloss.Loss:
        return
    shown = pydoc.plain(pydoc.render_doc(loss))
    assert "[N, C, *spatial]" in shown
    doc = inspect.getdoc(loss) or ""
    for option, default in loss.defaults.items():
        if loss is customloss.CustomF1Loss:  # it explains its own
            assert f"{option}" in doc
        else:
            meaning = help_text.meanings(loss.function.__name__, loss.defaults)[option]
            assert f"\n    {option}={default!r}: {meaning}.\n" in f"{doc}\n"
    assert max(len(line) for line in doc.splitlines()) <= 100
    assert "Args:" in (inspect.getdoc(loss.forward) or "")
    assert "Args:" in (inspect.getdoc(loss.with_sums) or "")


def test_help_does_not_list_what_is_refused() -> None:
    for loss, takes in ((customloss.DiceLoss, True), (customloss.DiceCELoss, False)):
        (line,) = [each for each in (loss.__doc__ or "").splitlines() if "average=" in each]
        assert ('"none"' in line) == takes
        if not takes:
            with pytest.raises(ValueError, match=r"^average: "):
                loss(average="none")


@pytest.mark.parametrize("loss", LOSS_MODULES, ids=lambda loss: loss.__name__)
def test_help_lists_the_activations_that_are_taken(loss: type[customloss.Loss]) -> None:
    lines = [each for each in (loss.__doc__ or "").splitlines() if re.match(" +activation=", each)]
    p, target = torch.full((3, 3), 1 / 3), torch.eye(3)
    score = [customloss.scores.jaccard] if "score" in inspect.signature(loss).parameters else []
    for line in lines:
        for activation in ("sigmoid", "softmax", "none"):
            if f'"{activation}"' in line:
                loss(*score, activation=activation)(p, target)
            else:
                with pytest.raises(ValueError, match=r"^activation: "):
                    loss(*score, activation=activation)(p, target)


def test_every_line_is_of_an_option() -> None:
    known = {
        option for loss in LOSS_MODULES if loss is not customloss.Loss for option in loss.defaults
    }
    assert {*help_text.OPTIONS} == known


def test_the_common_type_is_no_loss() -> None:
    with pytest.raises(TypeError, match=r"^Loss: expected one of the losses, such as .*isinstance"):
        customloss.Loss()
    assert all(issubclass(loss, customloss.Loss) for loss in LOSSES.values())
    for module in (customloss.StreamingLoss, customloss.DeepSupervision, customloss.CustomF1Loss):
        assert inspect.getdoc(module.forward) != inspect.getdoc(torch.nn.Module.forward)


def test_the_package_says_what_to_begin_with() -> None:
    """Names that there are, on less than a screen."""
    text = inspect.getdoc(customloss) or ""
    _, _, table = text.partition("Begin with these:")
    rows = [line for line in table.partition("Every loss")[0].splitlines() if line[:1].isalpha()]
    names = [name for row in rows for name in re.split(r" {2,}", row)[0].split(", ")]
    assert {"SoftF1Loss", "ConfusionLoss", "accumulate", "scores"} < set(names)
    assert set(names) <= set(customloss.__all__)
    assert len(text.splitlines()) < 40
    # there has to be help of each
    assert all(inspect.getdoc(getattr(customloss, name)) for name in names)
