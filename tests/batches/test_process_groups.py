"""What a process group may be: a group, "world", "local" or None; and modules that hold one."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parts import assert_equal
from ranks import run
from torch import Tensor, nn

import customloss

pytestmark = pytest.mark.distributed


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    return logits, torch.rand(6, 3, generator=generator) < 0.4


def of_this_rank(of_all: Tensor) -> Tensor:
    return of_all[2 * dist.get_rank() :][:2] if dist.get_rank() == 0 else of_all[2:]


# ---- words -----------------------------------------------------------------------------------


def world_is_the_default_group() -> None:
    """For functions and modules, also compiled, of every way to the loss."""
    logits, target = batch()
    x, t = of_this_rank(logits), of_this_rank(target)
    for name, options in (("soft_f1", {}), ("mcc", {}), ("dice_bce", {"class_weight": [1.0, 2, 3]}),
                          ("dice", {"samplewise": True})):  # fmt: skip
        expected = customloss.loss(name, **options)(logits, target)
        criterion = customloss.loss(name, process_group="world", **options)
        assert_equal(criterion(x, t), expected, name)
        function: Any = type(criterion).function
        assert_equal(function(x, t, process_group="world", **options), expected, name)
        again = pickle.loads(pickle.dumps(criterion))
        assert_equal(again(x, t), expected, name)
    compiled = torch.compile(
        customloss.SoftF1Loss(process_group="world"), fullgraph=True, backend="aot_eager"
    )
    assert_equal(compiled(x, t), customloss.soft_f1_loss(logits, target))
    with customloss.accumulate(customloss.SoftF1Loss(process_group="world")) as parts:
        parts.add(x, t)
        assert_equal(parts.loss(x, t), customloss.soft_f1_loss(logits, target))
    total = customloss.distributed.global_sums(x.sum(0), "world")
    assert_equal(total, logits.sum(0))


def parts_are_warned_of_once() -> None:
    x, t = batch()
    quiet = (
        lambda: customloss.SoftF1Loss(process_group="local")(x, t),
        lambda: customloss.dice_ce_loss(x, t, process_group="local"),
        lambda: customloss.mcc_loss(x, t, process_group=dist.group.WORLD),
        lambda: customloss.confusion_sums(x, t),
        lambda: customloss.SoftF1Loss(process_group="world"),
        lambda: customloss.accumulate(customloss.DiceLoss(process_group="local")).add(x, t),
        lambda: torch.compile(customloss.soft_f1_loss, fullgraph=True, backend="eager")(x, t),
        lambda: customloss.SoftF1Loss()(*map(replicated, (x, t))),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="process_group")
        for call in quiet:
            call()
    for call in (
        lambda: customloss.soft_f1_loss(x, t),
        lambda: customloss.dice_bce_loss(x, t, class_weight=[1.0, 2.0, 3.0]),
        lambda: customloss.accumulate(customloss.DiceLoss()).add(x, t),
    ):
        with pytest.warns(
            UserWarning, match=r"^process_group is None.*2 ranks.*'world'.*'local'"
        ) as w:
            call()
        assert w[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
        customloss.distributed._to_warn = True  # as in a process that starts


def replicated(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (2,))
    return distribute_tensor(tensor, mesh, [Replicate()])


def test_words() -> None:
    run(2, world_is_the_default_group)


def test_a_loss_of_a_part_is_warned_of_once() -> None:
    run(2, parts_are_warned_of_once)


def test_a_single_process_is_not_warned(alone: dist.ProcessGroup) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        customloss.SoftF1Loss()(*batch())


def test_words_before_there_is_a_group() -> None:
    x, t = batch()
    criterion = customloss.SoftF1Loss(process_group="world")  # the group may still come
    with pytest.raises(ValueError, match=r"^process_group: 'world' .*init_process_group"):
        criterion(x, t)
    local = customloss.SoftF1Loss(process_group="local")(x, t)
    torch.testing.assert_close(local, customloss.soft_f1_loss(x, t), rtol=0, atol=0)
    for make in (customloss.SoftF1Loss, customloss.CustomF1Loss):
        with pytest.raises(ValueError, match=r"^process_group: expected .*'world'.* got 'wrold'"):
            make(process_group="wrold")


# ---- copies and pickles ----------------------------------------------------------------------


def modules(group: dist.ProcessGroup) -> list[nn.Module]:
    own = customloss.DiceCELoss(process_group=group, class_weight=[1.0, 2.0, 3.0])
    return [own, customloss.StreamingLoss(own), customloss.DeepSupervision(own)]


def groups_in(module: nn.Module) -> list[object]:
    held = [vars(each).get("process_group") for each in module.modules()]
    return [each for each in held if customloss.distributed.is_group(each)]


def test_copies_share_the_group(alone: dist.ProcessGroup) -> None:
    for module in modules(alone):
        for twin in (copy.copy(module), copy.deepcopy(module), copy.deepcopy([module])[0]):
            assert twin is not module
            assert groups_in(twin) == [alone]
        deep = copy.deepcopy(module)
        for one, other in zip(module.buffers(), deep.buffers(), strict=True):
            assert one is not other
            torch.testing.assert_close(one, other)
    streaming = copy.deepcopy(modules(alone)[1])
    x = torch.randn(4, 3, requires_grad=True)
    streaming(x, torch.tensor([0, 1, 2, 0])).backward()
    assert (streaming.steps == 1).all()  # the copy adds to its own state
    assert streaming.loss.process_group is streaming


def test_pickling_says_what_to_do(alone: dist.ProcessGroup) -> None:
    for module in modules(alone):
        for save in (pickle.dumps, lambda each: torch.save(each, io.BytesIO())):
            with pytest.raises(TypeError, match=r"^process_group: .*'world'.*on each rank"):
                save(module)


def test_a_module_without_a_group_is_pickled() -> None:
    for group in (None, "world", "local"):
        own = customloss.DiceLoss(process_group=group, class_weight=[1.0, 2.0, 3.0])
        again = pickle.loads(pickle.dumps(own))
        assert again.options().keys() == own.options().keys()
        assert again.process_group == group
        torch.testing.assert_close(again.class_weight, own.class_weight)
