"""``patch`` replaces the names of a peer everywhere, says so, and can be undone."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import customloss
from customloss.compat import monai as ours
from customloss.compat import patching

losses = pytest.importorskip("monai.losses")
ORIGINAL = losses.DiceCELoss


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    customloss.unpatch("all")
    assert losses.DiceCELoss is ORIGINAL


@pytest.fixture
def script() -> Iterator[Any]:
    """A module of a user who imported the loss under two names."""
    module: Any = ModuleType("a_users_script")
    exec("from monai.losses import DiceCELoss, DiceLoss as Overlap", vars(module))
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_names_are_replaced_wherever_they_were_imported(script: Any) -> None:
    made = customloss.patch("monai")
    assert script.DiceCELoss is ours.DiceCELoss and script.Overlap is ours.DiceLoss
    assert losses.DiceCELoss is losses.dice.DiceCELoss is ours.DiceCELoss
    assert losses.dice_ce is ours.DiceCELoss  # its other name
    from monai.losses import TverskyLoss

    assert TverskyLoss is ours.TverskyLoss
    assert "a_users_script.Overlap" in made.replaced


def test_every_drop_in_has_a_name_to_stand_for() -> None:
    customloss.patch("monai", quiet=True)
    replaced = {each.now for each in patching._ACTIVE["monai"]}
    assert replaced == {getattr(ours, name) for name in ours.__all__}


def test_a_patch_says_what_it_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    made = customloss.patch("monai")
    assert "monai.losses.dice.DiceCELoss" in capsys.readouterr().out
    assert "monai.losses.DiceCELoss" in made.replaced and "names replaced" in repr(made)
    customloss.patch("monai", quiet=True)
    assert capsys.readouterr().out == ""


def test_a_second_patch_adds_what_was_imported_since(script: Any) -> None:
    first = customloss.patch("monai", quiet=True)
    script.DiceCELoss = ORIGINAL
    second = customloss.patch("monai", quiet=True)
    assert script.DiceCELoss is ours.DiceCELoss
    assert set(first.replaced) <= set(second.replaced)
    customloss.unpatch("monai")
    assert script.DiceCELoss is ORIGINAL
    customloss.unpatch("monai")  # nothing is left to undo


def test_a_block_is_undone_also_after_an_error(script: Any) -> None:
    def fail() -> None:
        with customloss.patch("monai", quiet=True):
            assert script.DiceCELoss is ours.DiceCELoss
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert script.DiceCELoss is ORIGINAL


def test_what_somebody_else_set_in_between_is_left_alone(script: Any) -> None:
    customloss.patch("monai", quiet=True)
    script.Overlap = None
    customloss.unpatch("monai")
    assert script.Overlap is None and script.DiceCELoss is ORIGINAL


def test_numbers_are_the_same_after_a_patch() -> None:
    x, t = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 1, 6, 6))
    expected = losses.DiceCELoss(softmax=True, to_onehot_y=True)(x, t)
    with customloss.patch("monai", quiet=True):
        criterion = losses.DiceCELoss(softmax=True, to_onehot_y=True)
    assert isinstance(criterion, ours.DiceCELoss)
    torch.testing.assert_close(criterion(x, t), expected)


def test_a_bundle_that_names_a_loss_by_its_path_finds_ours() -> None:
    """MONAI's configurations name their components."""
    from monai.bundle import ConfigParser

    config = {"loss": {"_target_": "monai.losses.DiceCELoss", "softmax": True, "to_onehot_y": True}}
    with customloss.patch("monai", quiet=True):
        assert isinstance(ConfigParser(config).get_parsed_content("loss"), ours.DiceCELoss)


def test_another_version_is_refused_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.0")
    with pytest.raises(RuntimeError, match=r"expected monai 1\.6\.\*.*got 9\.0: any_version=True"):
        customloss.patch("monai")
    assert losses.DiceCELoss is ORIGINAL
    customloss.patch("monai", any_version=True, quiet=True)
    assert losses.DiceCELoss is ours.DiceCELoss


def test_a_peer_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install monai; its losses are in custom"):
        customloss.patch("monai")
    assert customloss.patch("all").replaced == ()


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="peer: expected one of"):
        customloss.patch("monay")
