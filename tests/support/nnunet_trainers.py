"""nnU-Net's real trainers, made of plans alone, without data; for a process of its own, since they
are imported with stand-ins for what is not installed."""

from __future__ import annotations

import itertools
import os
import tempfile
from typing import Any

import stand_ins
import torch
import torch.distributed as dist
from torch import Tensor

stand_ins.install()

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name  # noqa: E402

LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def trainer(
    kind: Any, *, regions: bool = False, ignore: bool = False, batch_dice: bool = True,
    ddp: bool = False, deep: bool = True,
) -> Any:  # fmt: skip
    """A trainer as nnU-Net makes it."""
    labels = {**(REGIONS if regions else LABELS), **({"ignore": 3} if ignore else {})}
    dataset = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    if regions:
        dataset["regions_class_order"] = [1, 2]
    strides = [[1, 1], [2, 2], [2, 2], [2, 2]]  # an output each, but for the last
    configuration = {
        "batch_dice": batch_dice, "patch_size": [16, 16], "data_identifier": "none",
        "architecture": {"network_class_name": "none", "_kw_requires_import": [],
                         "arch_kwargs": {"strides": strides}},
    }  # fmt: skip
    plans = {
        "continue_training": False, "dataset_name": "Dataset001_none", "plans_name": "plans",
        "label_manager": "LabelManager", "configurations": {"2d": configuration},
    }  # fmt: skip
    made = kind(plans, "2d", 0, dataset, torch.device("cpu"))
    made.is_ddp, made.enable_deep_supervision = ddp, deep
    return made


def batch(made: Any, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and targets of every resolution, or of one."""
    torch.manual_seed(seed)
    manager, inputs, targets = made.label_manager, [], []
    heads = manager.num_segmentation_heads
    for size in (16, 8, 4)[: None if made.enable_deep_supervision else 1]:
        inputs.append(torch.randn(2, heads, size, size, requires_grad=True))
        if manager.has_regions:
            channels = heads + manager.has_ignore_label
            targets.append((torch.rand(2, channels, size, size) < 0.4).float())
        else:
            targets.append(torch.randint(0, 3 + manager.has_ignore_label, (2, 1, size, size)))
    return inputs, targets


def value_and_gradients(made: Any, seed: int) -> list[Tensor | None]:
    """The loss that a trainer builds, of a batch, and its gradients."""
    inputs, targets = batch(made, seed)
    deep = made.enable_deep_supervision
    loss = made._build_loss()(*((inputs, targets) if deep else (inputs[0], targets[0])))
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [loss.detach(), *gradients]


def classes(loss: Any) -> list[type]:
    """The classes of a loss and of what is in it."""
    inner = getattr(loss, "loss", loss)
    return [type(each) for each in (loss, inner, getattr(inner, "dc", inner))]


def compare() -> None:
    """Our trainer builds our losses, and they are those of nnU-Net's trainer, for all options."""
    ours = recursive_find_trainer_class_by_name("nnUNetTrainerCustomloss")
    assert ours.__module__ == "customloss.compat.nnunet.trainer" and issubclass(ours, nnUNetTrainer)
    names = ("regions", "ignore", "batch_dice", "ddp", "deep")
    compared = 0
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for seed, values in enumerate(itertools.product((False, True), repeat=len(names))):
            options = dict(zip(names, values))
            own, theirs = trainer(ours, **options), trainer(nnUNetTrainer, **options)
            assert all(each.__module__.startswith("customloss") for each in
                       classes(own._build_loss()))  # fmt: skip
            assert all(each.__module__.startswith("nnunetv2") for each in
                       classes(theirs._build_loss()))  # fmt: skip
            for a, b in zip(value_and_gradients(own, seed), value_and_gradients(theirs, seed)):
                assert (a is None) == (b is None), options
                if a is not None and b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=str(options))
            compared += 1
        dist.destroy_process_group()
    print(f"compared {compared}")


def run() -> None:
    """What ``nnUNetv2_train -tr NAME`` does up to its loss."""
    made = trainer(recursive_find_trainer_class_by_name(os.environ["NAME"]))
    loss = made._build_loss()
    print(*(f"{each.__module__}.{each.__name__}" for each in classes(loss)))
    inner = getattr(loss, "loss", loss)
    print("ce", type(getattr(inner, "ce", None)).__module__)
    inputs, targets = batch(made, 0)
    loss(inputs, targets).backward()


if __name__ in ("__main__", "__mp_main__"):
    run()
