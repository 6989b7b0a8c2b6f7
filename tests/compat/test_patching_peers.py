"""``patch`` for every library, before and after its import, and the command for whole scripts."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import customloss
from customloss.compat import on_import, patching
from customloss.compat.peers import PEERS

TRANSFORMERS = {
    "transformers.loss.loss_for_object_detection": {"dice_loss", "sigmoid_focal_loss"},
    "transformers.models.maskformer.modeling_maskformer": {"dice_loss", "sigmoid_focal_loss"},
    "transformers.models.mask2former.modeling_mask2former": {
        "dice_loss", "sigmoid_cross_entropy_loss",
    },
    "transformers.models.oneformer.modeling_oneformer": {
        "dice_loss", "sigmoid_cross_entropy_loss",
    },
    "transformers.models.eomt.modeling_eomt": {"dice_loss", "sigmoid_cross_entropy_loss"},
}  # fmt: skip


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python of its own, in which nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip


def test_the_modules_of_every_library_are_those_of_its_drop_ins() -> None:
    for peer in PEERS.values():
        ours = importlib.import_module(peer.ours)
        assert set(peer.stay) <= set(ours.__all__)


@pytest.mark.parametrize("name", ["kornia", "nnunet"])
def test_every_drop_in_has_a_name_to_stand_for(name: str) -> None:
    peer = PEERS[name]
    pytest.importorskip(peer.modules[0])
    for module in peer.modules:
        importlib.import_module(module)
    with customloss.patch(name, quiet=True) as made:
        assert made.later == ()
        ours = importlib.import_module(peer.ours)
        expected = {getattr(ours, word) for word in ours.__all__ if word not in peer.stay}
        assert {each.now for each in patching._ACTIVE[name]} == expected
    assert not on_import._FINDER.waiting and on_import._FINDER not in sys.meta_path


@pytest.mark.more
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_the_formulas_of_transformers_that_were_compared_are_replaced() -> None:
    for module in TRANSFORMERS:
        importlib.import_module(module)
    with customloss.patch("transformers", quiet=True) as made:
        for module, names in TRANSFORMERS.items():
            own = {
                name.rpartition(".")[2] for name in made.replaced if name.startswith(f"{module}.")
            }
            assert own == names
    assert set(PEERS["transformers"].modules) == set(TRANSFORMERS)


LATE = """
import sys, customloss
made = customloss.patch("kornia")
assert "kornia" not in sys.modules and not made.replaced and len(made.later) == 3
import kornia
from kornia.losses import DiceLoss, tversky_loss
assert DiceLoss is kornia.losses.dice.DiceLoss is customloss.compat.kornia.DiceLoss
assert tversky_loss.__module__ == "customloss.compat.kornia"
assert "kornia.losses.dice.DiceLoss" in made.replaced and not made.later
assert kornia.losses.dice.__spec__.loader.get_source(kornia.losses.dice.__name__)
customloss.unpatch("kornia")
assert DiceLoss is not kornia.losses.DiceLoss and not made.replaced
"""


@pytest.mark.skipif(find_spec("kornia") is None, reason="needs kornia")
def test_a_library_that_is_imported_later_is_replaced_then() -> None:
    ran = run(LATE)
    assert ran.returncode == 0, ran.stderr
    assert "when they are imported: kornia.losses.dice" in ran.stdout
    assert "customloss.patch('kornia'): kornia.losses.dice" in ran.stdout


def stand_in(folder: Path, package: str, version: str, files: dict[str, str]) -> None:
    """An installed package with these files."""
    for name, text in files.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


VISION = {
    "__init__.py": "from . import ops\n",
    "ops/__init__.py": "from .focal_loss import sigmoid_focal_loss\n",
    "ops/focal_loss.py": "def sigmoid_focal_loss(inputs, targets):\n    return 'theirs'\n",
}


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("first", ["patch", "import"])
def test_torchvision_by_a_package_of_its_layout(tmp_path: Path, first: str) -> None:
    stand_in(tmp_path, "torchvision", "0.28.0", VISION)
    lines = ["import customloss; customloss.patch('torchvision')", "import torchvision.ops as ops"]
    lines = lines if first == "patch" else lines[::-1]
    check = (
        "assert ops.sigmoid_focal_loss is ops.focal_loss.sigmoid_focal_loss\n"
        "assert ops.sigmoid_focal_loss is customloss.compat.torchvision.sigmoid_focal_loss\n"
        "customloss.unpatch('all')\n"
        "assert ops.sigmoid_focal_loss(1, 2) == ops.focal_loss.sigmoid_focal_loss(1, 2) == 'theirs'"
    )
    ran = run("\n".join([*lines, check]), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_all_leaves_an_untested_version_alone_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    with pytest.warns(UserWarning, match="its losses are left alone") as told:
        assert customloss.patch("all").replaced == ()
    assert len(told) == len(PEERS)
    assert any("expected kornia 0.9.*" in str(each.message) for each in told)


# ---- the command -------------------------------------------------------------------------------

SCRIPT = """
import sys
from kornia.losses import DiceLoss
import beside
print(DiceLoss.__module__, __name__, __file__, *sys.argv)
assert sys.modules["__main__"].DiceLoss is DiceLoss
sys.exit(len(sys.argv))
"""


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "customloss", "patch", *arguments],
        capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "train.py").write_text(SCRIPT)
    (tmp_path / "job" / "beside.py").write_text("")
    return tmp_path


@pytest.mark.skipif(find_spec("kornia") is None, reason="needs kornia")
def test_a_script_is_run_as_python_runs_it(folder: Path) -> None:
    ran = command("kornia", "--quiet", "--", "job/train.py", "--epochs", "3", cwd=folder)
    assert ran.returncode == 3, ran.stderr
    said = "customloss.compat.kornia __main__ job/train.py job/train.py --epochs 3"
    assert ran.stdout.split() == said.split()


@pytest.mark.skipif(find_spec("kornia") is None, reason="needs kornia")
def test_a_module_is_run_as_python_runs_it(folder: Path) -> None:
    ran = command("kornia", "--quiet", "--", "-m", "train", "x", cwd=folder / "job")
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.startswith("customloss.compat.kornia __main__")


def test_an_error_of_the_script_passes_through(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise KeyError('of the script')")
    ran = command("--quiet", "--", "fails.py", cwd=tmp_path)
    assert ran.returncode == 1 and "KeyError: 'of the script'" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--", "none.py"], 1, "got none.py: no such file"),
        (["monai"], 2, "expected -- and a script behind it"),
        (["--", "-m"], 2, "expected -- and a script behind it"),
        (["monay", "--", "x.py"], 2, "peer: expected one of"),
        (["--help"], 0, "Processes that the script starts anew are not patched"),
    ],
)
def test_what_is_missing_is_told(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    ran = command(*arguments, cwd=tmp_path)
    assert ran.returncode == code
    assert said in " ".join((ran.stdout + ran.stderr).split())
