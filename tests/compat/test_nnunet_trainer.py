"""Our trainer, and nnU-Net's own trainers while they are patched, build our losses through the code
of nnU-Net; packages that it imports beside are stand-ins where they are not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from process import run_python

from customloss.compat.nnunet.trainer_folder import FOLDER

pytestmark = pytest.mark.skipif(find_spec("nnunetv2") is None, reason="needs nnunetv2")

SCRIPT = Path(__file__).parents[1] / "support" / "nnunet_trainers.py"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ran = run_python(code, nnUNet_compile="f", **environment)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_nnunet_finds_our_trainer_and_its_losses_are_those_of_nnunet(tmp_path: Path) -> None:
    """Regions or labels, with and without an ignore label, batch Dice, ddp, deep supervision."""
    given = {"nnUNet_extTrainer": str(FOLDER), "nnUNet_results": str(tmp_path)}
    assert "compared 32" in run("import nnunet_trainers; nnunet_trainers.compare()", **given).stdout


def command(name: str, folder: Path) -> list[str]:
    code = (
        "import sys\nfrom customloss.compat.patching.command import main\n"
        f"main(['nnunet', '--quiet', '--', {str(SCRIPT)!r}])"
    )
    ran = run(code, NAME=name, nnUNet_results=str(folder))
    return [line for line in ran.stdout.splitlines() if line.startswith(("customloss.", "nnunetv2.",
                                                                         "ce "))]  # fmt: skip


def test_the_command_gives_our_losses_to_nnunets_own_trainer(tmp_path: Path) -> None:
    ours = "customloss.compat.nnunet"
    assert command("nnUNetTrainer", tmp_path) == [
        f"{ours}.deep_supervision.DeepSupervisionWrapper {ours}.compounds.DC_and_CE_loss "
        f"{ours}.dice.MemoryEfficientSoftDiceLoss",
        f"ce {ours}.compounds",
    ]


def test_a_loss_that_we_do_not_have_stays_and_its_dice_is_ours(tmp_path: Path) -> None:
    ours = "customloss.compat.nnunet"
    assert command("nnUNetTrainerDiceTopK10Loss", tmp_path) == [
        f"{ours}.deep_supervision.DeepSupervisionWrapper "
        f"nnunetv2.training.loss.compound_losses.DC_and_topk_loss {ours}.dice.SoftDiceLoss",
        "ce nnunetv2.training.loss.robust_ce_loss",
    ]


def test_the_folder_is_printed_and_holds_the_trainer_alone() -> None:
    module = "customloss.compat.nnunet.trainer_folder"
    ran = run_python(f"import runpy; runpy.run_module({module!r}, run_name='__main__')")
    assert ran.stdout == f"{FOLDER}\n"
    files = {path.name for path in FOLDER.glob("*.py")}
    assert files == {"__init__.py", "nnUNetTrainerCustomloss.py"}
    assert sys.modules.get("nnunetv2.training.nnUNetTrainer") is None
