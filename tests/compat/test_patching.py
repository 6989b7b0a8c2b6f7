"""``patch`` replaces the names of a peer everywhere, says so, and can be undone."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from process import run_python

import customloss
from customloss.compat import monai as ours
from customloss.compat.patching import patch as patching
from customloss.compat.patching.peers import PEERS

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
    assert "a_users_script.Overlap" in made.replaced["monai"]


def test_every_drop_in_has_a_name_to_stand_for() -> None:
    customloss.patch("monai", quiet=True)
    replaced = {each.now for each in patching._ACTIVE["monai"].replaced}
    replaced = {each for each in replaced if isinstance(each, type)}
    assert replaced == {getattr(ours, name) for name in ours.__all__}


def test_a_patch_says_what_it_replaced(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = customloss.patch("monai")
    said = capsys.readouterr().out
    assert said.startswith(f"customloss.patch: MONAI {PEERS['monai'].version()}, replaced: Asymm")
    assert "a_users_script.Overlap" in said and repr(made) == said.strip()
    assert max(map(len, said.splitlines())) <= 104
    assert "monai.losses.DiceCELoss" in made.replaced["monai"]
    customloss.patch("monai", quiet=True)
    assert capsys.readouterr().out == ""
    customloss.unpatch("monai")
    assert made.replaced == {"monai": ()} and "MONAI, undone" in repr(made)


def test_a_second_patch_adds_what_was_imported_since(script: Any) -> None:
    first = customloss.patch("monai", quiet=True)
    script.DiceCELoss = ORIGINAL
    second = customloss.patch("monai", quiet=True)
    assert script.DiceCELoss is ours.DiceCELoss
    assert first.replaced == second.replaced and first.peers == ("monai",)
    count = len(first.replaced["monai"])
    customloss.patch("monai", quiet=True)
    assert len(first.replaced["monai"]) == count
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


def test_a_block_in_a_patch_leaves_the_patch(script: Any) -> None:
    customloss.patch("monai", quiet=True)
    with customloss.patch("monai", quiet=True):
        pass
    assert script.DiceCELoss is losses.DiceCELoss is ours.DiceCELoss


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


SHORT = {"loss": {"_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True}}


def test_a_bundle_that_names_a_loss_by_its_class_finds_ours() -> None:
    from monai.bundle import ComponentLocator, ConfigParser

    theirs = ComponentLocator._find_classes_or_functions
    before = ComponentLocator()
    before.get_component_module_name("DiceCELoss")  # makes its table
    with customloss.patch("monai", quiet=True):
        parser = ConfigParser(SHORT)
        assert isinstance(parser.get_parsed_content("loss"), ours.DiceCELoss)
        for name, place in (("DiceCELoss", "dice"), ("dice_ce", "dice"), ("MaskedLoss",) * 2):
            place = {"MaskedLoss": "spatial_mask"}.get(place, place)
            for locator in (before, during := ComponentLocator()):
                assert locator.get_component_module_name(name) == f"monai.losses.{place}"
        excluding = ComponentLocator(excludes=["monai.losses"])
        assert excluding.get_component_module_name("DiceCELoss") is None
    assert ComponentLocator._find_classes_or_functions is theirs
    assert during.get_component_module_name("DiceCELoss") == "monai.losses.dice"
    assert isinstance(ConfigParser(SHORT).get_parsed_content("loss"), ORIGINAL)


def test_a_bundle_that_is_imported_later_finds_ours() -> None:
    ran = run_python(
        "import customloss\ncustomloss.patch('monai', quiet=True)\n"
        "from monai.bundle import ConfigParser\n"
        f"print(type(ConfigParser({SHORT}).get_parsed_content('loss')).__module__)"
    )
    assert ran.stdout.endswith("customloss.compat.monai.compounds\n"), ran.stderr


def test_another_version_is_refused_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.0")
    with pytest.raises(RuntimeError, match=r"expected monai 1\.6\.\*.*got 9\.0: any_version=True"):
        customloss.patch("monai")
    assert losses.DiceCELoss is ORIGINAL
    customloss.patch("monai", any_version=True, quiet=True)
    assert losses.DiceCELoss is ours.DiceCELoss


def test_all_leaves_a_version_that_was_not_tested_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"monai": "1.6.9", "kornia": "9.0", "transformers": "1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.warns(UserWarning, match="leaves as they are: kornia 9.0, where") as caught:
        made = customloss.patch("all", quiet=True)
    assert len(caught) == 1 and caught[0].filename == __file__
    said = str(caught[0].message)
    assert "transformers 1.0, where 5.24.* was tested" in said and "any_version=True" in said
    assert made.peers == ("monai",) and losses.DiceCELoss is ours.DiceCELoss
    customloss.unpatch()
    made = customloss.patch("all", any_version=True, quiet=True)
    assert made.peers == ("monai", "kornia", "transformers")


def test_nothing_is_replaced_if_one_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata, "version", {"monai": "1.6.0", "kornia": "9.0"}.__getitem__
    )
    with pytest.raises(RuntimeError, match=r"got 9\.0"):
        customloss.patch("monai", "kornia", quiet=True)
    assert losses.DiceCELoss is ORIGINAL


def test_a_name_that_the_library_does_not_define_itself_stays_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = type("TverskyLoss", (), {})
    monkeypatch.setattr("monai.losses.tversky.TverskyLoss", other)
    with pytest.warns(UserWarning, match=r"monai.losses.tversky does not define TverskyLoss"):
        customloss.patch("monai", quiet=True)
    assert sys.modules["monai.losses.tversky"].TverskyLoss is other
    assert losses.DiceCELoss is ours.DiceCELoss


def test_a_peer_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install monai; its losses are in custom"):
        customloss.patch("monai")
    made = customloss.patch("all")
    assert made.replaced == {} and "none of these libraries is installed" in repr(made)


def test_another_name_is_refused() -> None:
    for refuse in (customloss.patch, customloss.unpatch):
        with pytest.raises(ValueError, match="peer: expected one of"):
            refuse("monay")
    with pytest.raises(ValueError, match="peers: expected one or more of monai, nnunet"):
        customloss.patch()
