"""The trainer that nnU-Net finds by its name builds nnU-Net's loss out of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from customloss.compat import nnunet

dice = pytest.importorskip("nnunetv2.training.loss.dice")
compounds = pytest.importorskip("nnunetv2.training.loss.compound_losses")
deep = pytest.importorskip("nnunetv2.training.loss.deep_supervision")

NAME = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
FILE = Path(nnunet.TRAINERS) / "nnUNetTrainerCustomloss.py"


@pytest.fixture
def trainer() -> Iterator[Any]:
    """The class, over nnU-Net's own ``_build_loss``. The rest of its trainer, which needs a dozen
    more packages, is left out."""
    spec = find_spec("nnunetv2")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "training" / "nnUNetTrainer" / "nnUNetTrainer.py"
    tree = ast.parse(path.read_text())
    (whole,) = (each for each in tree.body if isinstance(each, ast.ClassDef))
    whole.bases = []
    whole.body = [each for each in whole.body if getattr(each, "name", "") == "_build_loss"]
    assert whole.body
    module: Any = ModuleType(NAME)
    for source, words in (
        (compounds, ("DC_and_CE_loss", "DC_and_BCE_loss")),
        (deep, ("DeepSupervisionWrapper",)),
        (dice, ("MemoryEfficientSoftDiceLoss",)),
    ):
        for word in words:
            setattr(module, word, getattr(source, word))
    module.np, module.torch = np, torch
    exec(compile(ast.Module([whole], []), str(path), "exec"), vars(module))
    module.nnUNetTrainer.__module__ = NAME
    before = {name: sys.modules.get(name) for name in (NAME, NAME.rpartition(".")[0])}
    sys.modules[NAME.rpartition(".")[0]] = ModuleType(NAME.rpartition(".")[0])
    sys.modules[NAME] = module
    found = spec_from_file_location("nnUNetTrainerCustomloss", FILE)
    assert found is not None and found.loader is not None
    own = module_from_spec(found)
    found.loader.exec_module(own)
    yield own.nnUNetTrainerCustomloss
    for name, earlier in before.items():
        sys.modules.pop(name)
        if earlier is not None:
            sys.modules[name] = earlier


def built(kind: Any, regions: bool, ignored: bool, supervised: bool) -> Any:
    """The loss that a trainer of this kind builds."""
    of = object.__new__(kind)
    of.label_manager = SimpleNamespace(
        has_regions=regions, ignore_label=(2 if not regions else 3) if ignored else None
    )
    of.configuration_manager = SimpleNamespace(batch_dice=True)
    of.is_ddp, of.enable_deep_supervision = False, supervised
    of._do_i_compile = lambda: False
    of._get_deep_supervision_scales = lambda: [[1, 1]] * 3
    return of._build_loss()


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_it_builds_the_loss_of_nnunet_out_of_ours(
    trainer: Any, regions: bool, ignored: bool, supervised: bool
) -> None:
    ours = built(trainer, regions, ignored, supervised)
    theirs = built(trainer.__mro__[1], regions, ignored, supervised)
    assert type(ours).__module__.startswith("customloss.compat.nnunet")
    assert type(theirs).__module__.startswith("nnunetv2.")
    logits = [torch.randn(2, 2, 8 // n, 8 // n, requires_grad=True) for n in (1, 2, 4)]
    if regions:
        targets = [torch.randint(2, (2, 2 + ignored, *x.shape[2:])).float() for x in logits]
    else:
        targets = [torch.randint(2 + ignored, (2, 1, *x.shape[2:])).float() for x in logits]
    inputs = (logits, targets) if supervised else (logits[0], targets[0])
    values = [loss(*inputs) for loss in (ours, theirs)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
    of = logits[:2] if supervised else logits[:1]
    for mine, other in zip(*(torch.autograd.grad(value, of) for value in values)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_command_names_the_folder() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "customloss", "nnunet-trainers"], capture_output=True, text=True
    )
    assert (Path(ran.stdout.strip()) / FILE.name).is_file()
