"""DTensors with class options or class numbers have the loss and the gradients of the whole tensor.

The options weight classes, choose classes or drop the background, also with a cross-entropy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parts import assert_equal
from ranks import run
from test_dtensor import SHAPE, assert_as_unsharded, batch, mesh_of, shard, whole
from torch import Tensor

import customloss

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no c10d"),
]

SAMPLES, CLASSES = SHAPE[:2]
WEIGHT = (0.5, 2.0, 0.0, 1.5)
TENSOR = torch.tensor(WEIGHT, dtype=torch.float64)
CHOICES: list[dict[str, Any]] = [
    {"class_weight": TENSOR},
    {"class_weight": WEIGHT, "average": "weighted", "link": "log"},
    {"class_weight": TENSOR, "average": "micro", "include_background": False},
    {"include_background": False},
    {"classes": (3, 0), "average": "none", "reduction": "none"},
    {"classes": (3, 0, 1), "class_weight": WEIGHT, "absent": "skip"},
]
SAMPLEWISE: list[dict[str, Any]] = [
    {"samplewise": True, "class_weight": TENSOR},
    {"samplewise": True, "include_background": False, "reduction": "none"},
    {"samplewise": True, "classes": (2, 0), "average": "none", "reduction": "none"},
    {"samplewise": True, "class_weight": WEIGHT, "average": "weighted", "reduction": "sum"},
]


def bound(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    def loss(*operands: Tensor) -> Tensor:
        return function(*operands, **options)

    return loss


def numbers() -> Tensor:
    """Class numbers; a part is ignored, and class 3 is absent from the second sample."""
    torch.manual_seed(3)
    found = torch.randint(0, CLASSES, (SAMPLES, *SHAPE[2:]))
    found[1][found[1] == 3] = 0
    found[:, 0, ::3] = 255
    return found


def beside(dim: int | None) -> list[Any]:
    """The placements of class numbers for logits that are sharded along ``dim``."""
    return shard(None if dim is None else max(dim - 1, 0))


# ---- dense targets ---------------------------------------------------------------------------


def scores_of_a_sigmoid() -> None:
    """Sharded along the samples, a spatial dimension or the classes."""
    mesh = mesh_of(2)
    x, target = batch({})
    for options in CHOICES + SAMPLEWISE:
        groups = CLASSES * (SAMPLES if options.get("samplewise") else 1)
        fused = bound(customloss.soft_f1_loss, **options)
        composed = bound(customloss.fowlkes_mallows_loss, **options)
        for dim in (0, 1, 2, 3, None):
            operands = [(x, shard(dim)), (target, shard(dim))]
            assert_as_unsharded(fused, mesh, operands, 4 * groups)
            present = [(x, shard(dim)), (target + 0.01, shard(dim))]  # a root has no slope at 0
            assert_as_unsharded(composed, mesh, present, 4 * groups)


def compounds_of_a_sigmoid() -> None:
    mesh = mesh_of(2)
    x, target = batch({})
    weight = torch.rand(CLASSES, 1, 1, dtype=torch.float64)
    for options in CHOICES[:4] + CHOICES[5:] + SAMPLEWISE[:2]:
        groups = CLASSES * (SAMPLES if options.get("samplewise") else 1)
        for dim in (0, 1, 2, None):
            operands = [(x, shard(dim)), (target, shard(dim)), (weight, shard(None))]
            for function in (customloss.dice_bce_loss, customloss.dice_focal_loss):
                assert_as_unsharded(bound(function, **options), mesh, operands, 15 * groups)
            loss = bound(customloss.dice_bce_loss, pos_weight=[1.0, 2.0, 3.0, 0.5], **options)
            assert_as_unsharded(loss, mesh, operands, 15 * groups)


# ---- class numbers ---------------------------------------------------------------------------


def softmax_of_class_numbers() -> None:
    mesh = mesh_of(2)
    x, _ = batch({})
    target = numbers()
    for options in CHOICES + SAMPLEWISE:
        options = {"ignore_index": 255, **options}
        groups = CLASSES * (SAMPLES if options.get("samplewise") else 1)
        functions = [bound(customloss.dice_loss, activation="softmax", **options)]
        if options.get("average") != "none":
            functions.append(bound(customloss.dice_ce_loss, **options))
            functions.append(bound(customloss.tversky_ce_loss, label_smoothing=0.1, **options))
        for dim in (0, 2, 3, None):
            operands = [(x, shard(dim)), (target, beside(dim))]
            for loss in functions:
                assert_as_unsharded(loss, mesh, operands, 15 * groups)


def sigmoid_of_class_numbers() -> None:
    """When the classes are sharded, the class numbers are whole on every rank."""
    mesh = mesh_of(2)
    x, _ = batch({})
    target = numbers()
    for options in CHOICES:
        loss = bound(customloss.soft_f1_loss, ignore_index=255, **options)
        for dim in (0, 1, 2, None):
            placed = shard(None) if dim == 1 else beside(dim)
            assert_as_unsharded(loss, mesh, [(x, shard(dim)), (target, placed)], 4 * CLASSES)


def small_dtypes_of_class_numbers() -> None:
    """Neither the number of classes nor ignore_index has to fit in the dtype of the labels."""
    mesh = mesh_of(2)
    for classes, dtype in ((128, torch.int8), (256, torch.uint8), (300, torch.uint8)):
        x = torch.randn(64, classes, dtype=torch.float64)
        target = torch.randint(0, min(classes, torch.iinfo(dtype).max + 1), (64,)).to(dtype)
        for options in ({}, {"ignore_index": -100}, {"ignore_index": 256}):
            loss = bound(customloss.dice_loss, average="micro", **options)
            placed = [(x, shard(1)), (target, shard(None))]
            assert_as_unsharded(loss, mesh, placed, 4 * classes)


# ---- modules, and weights that are learned ---------------------------------------------------


def modules_and_dtypes() -> None:
    """A buffer of weights is a plain tensor, the same on every rank."""
    mesh = mesh_of(2)
    x, _ = batch({})
    criterion = customloss.DiceCELoss(
        class_weight=WEIGHT, include_background=False, ignore_index=255, samplewise=True
    )
    for dtype in (torch.float64, torch.float32):
        for dim in (0, 2):
            operands = [(x.to(dtype), shard(dim)), (numbers(), beside(dim))]
            found = assert_as_unsharded(criterion, mesh, operands)
            assert found.dtype == dtype and list(found.placements) == shard(None)


def first_batches() -> None:
    """A module looks at the values of each rank's own part, and knows the classes of the whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, rank = mesh_of(2), dist.get_rank()
    x, target = batch({})[0], numbers()
    for dim in (0, 1, 2, None):
        placed = shard(None) if dim == 1 else beside(dim)
        cut = distribute_tensor(x, mesh, shard(dim)), distribute_tensor(target, mesh, placed)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*check_target=False")
            customloss.DiceLoss(ignore_index=255)(*cut)
            customloss.DiceLoss(ignore_index=255, classes=[0, 2])(*cut)
        if dim == 2:  # only the first rank has a 255, and the other would wait for it
            continue
        with pytest.raises(
            ValueError, match=r"^target: .*class numbers from 0 to 3 .* got 255; if"
        ):
            customloss.DiceLoss()(*cut)
    mine = torch.zeros(SAMPLES, CLASSES, 1).double()
    dense = DTensor.from_local(mine + 2 * rank, mesh, shard(0), run_check=False)
    logits = DTensor.from_local(mine, mesh, shard(0), run_check=False)
    if rank == 1:
        with pytest.raises(ValueError, match="got 2 everywhere"):
            customloss.DiceLoss()(logits, dense)
    dist.barrier()


def learned_weights() -> None:
    """Every rank has the gradient that one process has."""
    from torch.distributed.tensor import distribute_tensor

    mesh = mesh_of(2)
    alone = batch({})[0], numbers()

    def outcome(function: Callable[..., Tensor], *operands: Tensor) -> tuple[Tensor, Tensor]:
        weight = TENSOR.clone().requires_grad_()
        options = {"activation": "softmax", "ignore_index": 255, "class_weight": weight}
        loss = function(*operands, **options)
        loss.backward()
        return loss.detach(), weight.grad

    for function in (customloss.dice_loss, customloss.dice_ce_loss):
        expected, wanted = outcome(function, *alone)
        for dim in (0, 2, None):
            placed = shard(dim), beside(dim)
            cut = [distribute_tensor(x, mesh, each) for x, each in zip(alone, placed)]
            loss, own = outcome(function, *cut)
            assert_equal(whole(loss), expected, (function, dim))
            assert_equal(own, wanted, (function, dim))


def two_dimensions() -> None:
    mesh = mesh_of(2, 2)
    x, target = batch({})
    for first, second in ((0, 1), (1, 0), (0, 2), (None, 1), (0, 0)):
        placed = shard(first, second)
        for options in CHOICES[:4]:
            loss = bound(customloss.dice_bce_loss, **options)
            assert_as_unsharded(loss, mesh, [(x, placed), (target, placed)], 15 * CLASSES)


def class_numbers() -> None:
    """Class numbers of another rank's classes are negatives, and are not ignored."""
    mesh = mesh_of(2)
    torch.manual_seed(3)
    numbers = torch.randint(-1, SHAPE[1] + 1, (SHAPE[0], *SHAPE[2:]))  # some name no class
    for options in (
        {"activation": "softmax"},
        {"activation": "softmax", "average": "micro", "ignore_index": 2, "label_smoothing": 0.1},
        {},
        {"average": "weighted", "ignore_index": 2, "label_smoothing": 0.1},
        {"activation": "none", "average": "micro"},
    ):

        def loss(*operands: Tensor, options: dict = options) -> Tensor:
            return customloss.soft_f1_loss(*operands, out_of_range="ignore", **options)

        x, _ = batch(options)
        for dim in (0, 1, 2, None):
            if dim == 1 and options.get("activation") == "softmax":
                continue
            own = {0: 0, 2: 1}.get(dim)
            with customloss.backend("reference"):
                assert_as_unsharded(loss, mesh, [(x, shard(dim)), (numbers, shard(own))], 16)
            kept = numbers.unsqueeze(1)
            own = None if dim == 1 else dim
            with customloss.backend("reference"):
                assert_as_unsharded(loss, mesh, [(x, shard(dim)), (kept, shard(own))], 16)


def test_dense_targets() -> None:
    run(2, scores_of_a_sigmoid, compounds_of_a_sigmoid)


def test_class_numbers() -> None:
    run(
        2,
        class_numbers,
        softmax_of_class_numbers,
        sigmoid_of_class_numbers,
        small_dtypes_of_class_numbers,
    )


def test_modules_and_learned_weights() -> None:
    run(2, modules_and_dtypes, first_batches, learned_weights)


@pytest.mark.slow
def test_a_mesh_of_two_dimensions() -> None:
    run(4, two_dimensions)
