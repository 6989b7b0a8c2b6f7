"""One loss of outputs at several resolutions is their weighted mean or sum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import customloss
from customloss import DeepSupervision, deep_supervision_loss

F64 = torch.float64
LOSS = customloss.DiceCELoss(ignore_index=255)


def outputs(count: int = 3) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits at [8, 8], [4, 4] and so on; class numbers and pixel weights are strided views."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(0, 3, (2, 8, 8), generator=generator)
    y[0, :2] = 255
    w = torch.rand(2, 1, 8, 8, dtype=F64, generator=generator)
    logits = [
        torch.randn(2, 3, 8 >> i, 8 >> i, dtype=F64, generator=generator).requires_grad_()
        for i in range(count)
    ]
    targets = [y[:, :: 2**i, :: 2**i] for i in range(count)]
    return logits, targets, [w[..., :: 2**i, :: 2**i] for i in range(count)]


def test_nnu_nets_weights() -> None:
    logits, targets, weight = outputs()
    parts = torch.stack([LOSS(x, t) for x, t in zip(logits, targets)])
    share = torch.tensor([4 / 7, 2 / 7, 1 / 7], dtype=F64)
    own = DeepSupervision(LOSS)(logits, targets)
    torch.testing.assert_close(own, (share * parts).sum())
    found = torch.autograd.grad(own, logits)
    wanted = torch.autograd.grad((share * parts).sum(), logits)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(deep_supervision_loss(LOSS, logits, targets), own)
    parts = torch.stack([LOSS(x, t, w) for x, t, w in zip(logits, targets, weight)])
    torch.testing.assert_close(DeepSupervision(LOSS)(logits, targets, weight), parts @ share)
    one = DeepSupervision(LOSS)(logits[:1], targets[:1])
    torch.testing.assert_close(one, LOSS(logits[0], targets[0]))


def test_weights_as_they_are() -> None:
    logits, targets, weight = outputs()
    dice = partial(customloss.dice_loss, ignore_index=255)
    own = DeepSupervision(dice, weights=[2, 0.5, 1.0])(
        logits, targets, [weight[0], None, weight[2]]
    )
    expected = sum(
        share * dice(x, t, w)
        for share, x, t, w in zip((2, 0.5, 1), logits, targets, (weight[0], None, weight[2]))
    )
    torch.testing.assert_close(own, expected)


def test_a_loss_of_torchs() -> None:
    logits, targets, _ = outputs()
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    own = DeepSupervision(criterion, weights=(1, 1, 1))(tuple(logits), tuple(targets))
    torch.testing.assert_close(own, sum(criterion(x, t) for x, t in zip(logits, targets)))


def test_an_output_of_weight_0_has_a_gradient_of_zeros() -> None:
    """Such an output is not read, so a NaN in it changes nothing."""
    logits, targets, _ = outputs()
    with torch.no_grad():
        logits[2].fill_(torch.nan)
    loss = DeepSupervision(LOSS, weights=(0.5, 0.5, 0.0))(logits, targets)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in logits)
    assert not logits[2].grad.any()
    assert logits[1].grad.any()


def test_no_target_is_copied() -> None:
    """Strided views of targets reach the operator without a copy."""
    logits, targets, _ = outputs()
    seen: list[int] = []

    def look(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.untyped_storage().data_ptr())
        return customloss.dice_loss(x, t, ignore_index=255)

    deep_supervision_loss(look, logits, targets)
    assert set(seen) == {targets[0].untyped_storage().data_ptr()}


def test_the_module() -> None:
    criterion = DeepSupervision(customloss.DiceLoss(class_weight=[1, 2, 3]), weights=(1, 0))
    assert repr(criterion).startswith("DeepSupervision(\n  weights=(1, 0)\n  (loss): DiceLoss(")
    assert [name for name, _ in criterion.named_buffers()] == ["loss.class_weight"]
    assert repr(DeepSupervision(customloss.DiceLoss())).startswith("DeepSupervision(\n  (loss)")


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 0.5)])
def test_compiles_to_one_graph(weights: Any) -> None:
    logits, targets, _ = outputs()
    criterion = DeepSupervision(LOSS, weights)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    own, expected = compiled(logits, targets), criterion(logits, targets)
    torch.testing.assert_close(own, expected)
    pair = [torch.autograd.grad(each, logits) for each in (own, expected)]
    torch.testing.assert_close(*pair)


def test_second_derivatives() -> None:
    logits, targets, _ = outputs(2)
    logits, targets = [x[..., :2, :2] for x in logits], [y[..., 2:4, 2:4] for y in targets]
    targets[1] = outputs(2)[1][1][..., 1:3, 1:3]
    leaves = [x.detach().requires_grad_() for x in logits]

    def loss(*logits: Tensor) -> Tensor:
        return deep_supervision_loss(LOSS, logits, targets)

    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, leaves)


# ---- what can be wrong ---------------------------------------------------------------------------


def call(**changes: Any) -> Tensor:
    logits, targets, _ = outputs()
    given: dict[str, Any] = {"inputs": logits, "targets": targets, "loss": LOSS, **changes}
    return deep_supervision_loss(**given)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a number": ({"inputs": 3}, TypeError, "inputs: .*sequence.*got int"),
    "one output": ({"inputs": torch.zeros(3, 2)}, ValueError, "targets: expected 1, .*got 3"),
    "no output": ({"inputs": [], "targets": []}, ValueError, "inputs: .*at least one"),
    "too few": ({"targets": [torch.zeros(1)]}, ValueError, "targets: expected 3, .*got 1"),
    "no tensor": ({"targets": [1, 2, 3]}, TypeError, r"targets\[0\]: .*got int"),
    "no target": ({"targets": [None] * 3}, TypeError, r"targets\[0\]: .*got NoneType"),
    "weight": ({"weight": [None] * 2}, ValueError, "weight: expected 3, .*got 2"),
    "one weight": ({"weight": torch.ones(3)}, TypeError, "weight: .*sequence.*got Tensor"),
    "no weight": ({"weight": [None, 1.0, None]}, TypeError, r"weight\[1\]: .*got float"),
    "weights": ({"weights": (1, 2)}, ValueError, "weights: expected 3, .*got 2"),
    "negative": ({"weights": (1, 1, -1)}, ValueError, r"weights\[2\]: .*>= 0, got -1"),
    "words": ({"weights": "111"}, TypeError, "weights: .*sequence of numbers, got str"),
    "one word": ({"weights": (1, "1", 1)}, TypeError, r"weights\[1\]: expected a number"),
    "nothing": ({"weights": (0, 0, 0)}, ValueError, "weights: expected one above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    changes, error, message = WRONG[name]
    with pytest.raises(error, match=f"^{message}"):
        call(**changes)


def test_errors_of_the_loss_name_the_output() -> None:
    targets = outputs()[1]
    targets[1] = targets[0]
    with pytest.raises(ValueError, match=r"^target: .*\[2, 8, 8\] \(output 1\)$"):
        call(targets=targets)
    targets[1] = outputs()[1][1].double()
    with pytest.raises(TypeError, match=r"^target: .*\(output 1\)$"):
        call(targets=targets)


def test_a_stream_would_mix_the_outputs() -> None:
    stream = customloss.StreamingLoss(customloss.DiceLoss())
    with pytest.raises(TypeError, match=r"^loss: .*StreamingLoss"):
        call(loss=stream)


def test_bad_modules() -> None:
    with pytest.raises(TypeError, match=r"^loss: expected a loss module or function, got 'dice'"):
        DeepSupervision("dice")
    with pytest.raises(ValueError, match=r"^weights\[0\]"):
        DeepSupervision(LOSS, weights=(-1.0,))


# ---- one target for all outputs ------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12), (6, 5, 7)])
@pytest.mark.parametrize("kind", ["numbers", "channel", "mask"])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_one_target_is_resized_as_interpolate_does(
    size: tuple[int, ...], kind: str, mode: str
) -> None:
    y = torch.randint(0, 3, (2, *size))
    y[0, 1] = 255
    logits = [
        torch.randn(2, 3, *(side * (3 - i) // 3 for side in size), dtype=F64) for i in range(3)
    ]
    loss = customloss.DiceCELoss(ignore_index=255)
    if kind == "numbers":
        target, as_float = y, y[:, None].double()
    elif kind == "channel":
        target, as_float = y[:, None].to(torch.uint8), y[:, None].double()
    else:
        target = torch.rand(2, 3, *size) < 0.4
        as_float, loss = target.double(), customloss.DiceBCELoss()
    resized = [F.interpolate(as_float, x.shape[2:], mode=mode) for x in logits]
    integers = [each if kind == "mask" else each.long() for each in resized]
    own = DeepSupervision(loss, resize=mode)(logits, target)
    torch.testing.assert_close(own, DeepSupervision(loss)(logits, integers), rtol=0, atol=0)
    function = deep_supervision_loss(loss, logits, target, resize=mode)
    torch.testing.assert_close(function, own, rtol=0, atol=0)
    weight = torch.rand(2, 1, *size, dtype=F64)
    for w in (weight, weight[:, :, :1]):
        shapes = [[size if side > 1 else 1 for size, side in zip(x.shape[2:], w.shape[2:])]
                  for x in logits]  # fmt: skip
        parts = [F.interpolate(w, shape, mode=mode) for shape in shapes]
        torch.testing.assert_close(
            DeepSupervision(loss, resize=mode)(logits, target, w),
            DeepSupervision(loss)(logits, integers, parts),
        )


@pytest.mark.parametrize(("mode", "starts"), [("nearest", (0, 0)), ("nearest-exact", (1, 2))])
def test_a_size_that_divides_takes_no_copy(mode: str, starts: tuple[int, int]) -> None:
    seen = []

    def look(input: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return input.sum()

    y = torch.randint(0, 3, (2, 12, 8))
    logits = [torch.randn(2, 3, 12 >> i, 8 >> i) for i in range(3)]
    DeepSupervision(look, resize=mode)(logits, y)
    assert [each.storage_offset() for each in seen] == [0, *(start * 8 + start for start in starts)]
    assert {each.untyped_storage().data_ptr() for each in seen} == {y.data_ptr()}
    assert [each.dtype for each in seen] == [torch.int64] * 3


def test_how_a_target_may_be_resized() -> None:
    logits, targets, _ = outputs()
    message = r"^targets: .* got Tensor \[2, 8, 8\]; resize='nearest' takes one for all outputs$"
    with pytest.raises(TypeError, match=message):
        DeepSupervision(LOSS)(logits, targets[0])
    with pytest.raises(ValueError, match=r"^resize: expected one of .*'nearest'.*got 'area'"):
        DeepSupervision(LOSS, resize="area")
    with pytest.raises(ValueError, match=r"^targets: expected the 2 spatial dim.* got \[2\]"):
        DeepSupervision(LOSS, resize="nearest")(logits, torch.zeros(2))
    own = DeepSupervision(LOSS, weights=(1, 2, 3), resize="nearest")
    assert "weights=(1, 2, 3), resize='nearest'" in repr(own)
    # targets that fit are taken as they are
    expected = DeepSupervision(LOSS, weights=(1, 2, 3))(logits, targets)
    torch.testing.assert_close(own(logits, targets), expected, rtol=0, atol=0)


def test_a_tensor_is_the_one_output_of_a_model() -> None:
    """As a model gives it in evaluation; ``weights`` are about several."""
    logits, targets, weight = outputs()
    expected = LOSS(logits[0], targets[0])
    for criterion in (DeepSupervision(LOSS), DeepSupervision(LOSS, (0.0, 1.0), "nearest-exact")):
        for given in (targets[0], [targets[0]]):
            torch.testing.assert_close(criterion(logits[0], given), expected, rtol=0, atol=0)
    own = DeepSupervision(LOSS)(logits[0], targets[0], weight[0])
    torch.testing.assert_close(own, LOSS(logits[0], targets[0], weight[0]), rtol=0, atol=0)
    halved = DeepSupervision(LOSS, resize="nearest")(logits[1], targets[0])
    torch.testing.assert_close(halved, LOSS(logits[1], targets[1]), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^target: .*\[2, 4, 4\]$"):  # of no output with a number
        DeepSupervision(LOSS)(logits[0], targets[1])


def test_stacked_targets() -> None:
    """One for each output, of one size; not where the shape is also that of one target for all."""
    x = [torch.randn(2, 3, 5, 4, dtype=F64) for _ in range(4)]
    y = torch.randint(0, 3, (4, 2, 5, 4))
    expected = DeepSupervision(LOSS)(x, list(y))
    torch.testing.assert_close(DeepSupervision(LOSS)(x, y), expected, rtol=0, atol=0)
    dense = torch.rand(4, 2, 3, 5, 4) < 0.5
    own = DeepSupervision(customloss.DiceLoss())(x, dense)
    expected = DeepSupervision(customloss.DiceLoss())(x, list(dense))
    torch.testing.assert_close(own, expected, rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"^targets: .*stacked of 4, got Tensor \[3, 2, 5, 4\]; "):
        DeepSupervision(LOSS)(x, y[:3])
    same = [torch.randn(3, 3, 5, 4) for _ in range(3)]
    with pytest.raises(TypeError, match=r"targets\.unbind\(0\) is one for each$"):
        DeepSupervision(customloss.DiceLoss())(same, torch.rand(3, 3, 5, 4) < 0.5)


@pytest.mark.parametrize("weights", [None, (0.5, 0.25, 0.25), (0, 1, 1)])
def test_the_sums_of_the_first_output(weights: Any) -> None:
    """They are those of ``loss.with_sums``, and the loss and its gradient are those of a call."""
    logits, targets, weight = outputs()
    criterion = DeepSupervision(LOSS, weights)
    for more in ((), (weight,)):
        loss, sums = criterion.with_sums(logits, targets, *more, hard=True)
        expected = criterion(logits, targets, *more)
        torch.testing.assert_close(loss, expected)
        pair = [torch.autograd.grad(each, logits) for each in (loss, expected)]
        torch.testing.assert_close(*pair)
        of_first = LOSS.with_sums(logits[0], targets[0], *(each[0] for each in more), hard=True)
        for own, other in zip(sums.hard, of_first[1].hard):
            torch.testing.assert_close(own, other, rtol=0, atol=0)
        torch.testing.assert_close(sums.tp, of_first[1].tp, rtol=0, atol=0)
    _, alone = DeepSupervision(LOSS, resize="nearest").with_sums(logits[0], targets[0])
    torch.testing.assert_close(alone.fn, LOSS.with_sums(logits[0], targets[0])[1].fn)


def test_what_has_no_sums() -> None:
    logits, targets, _ = outputs()
    for loss, kind in ((customloss.dice_loss, "dice_loss"), (nn.BCELoss(), "BCELoss")):
        with pytest.raises(TypeError, match=f"^with_sums: .* which has sums, got {kind}$"):
            DeepSupervision(loss).with_sums(logits, targets)
    targets[0] = targets[1]
    with pytest.raises(ValueError, match=r"^target: .*\(output 0\)$"):
        DeepSupervision(LOSS).with_sums(logits, targets)


def test_inside_monais_deep_supervision() -> None:
    """It interpolates labels as floats, or as uint8."""
    monai = pytest.importorskip("monai.losses")
    logits = [torch.randn(2, 3, 9 >> i, 8 >> i, dtype=F64) for i in range(3)]
    logits = [x.float().requires_grad_() for x in logits]
    y = torch.randint(0, 3, (2, 1, 9, 8))
    for criterion in (customloss.DiceCELoss(), customloss.DiceLoss(activation="softmax"),
                      customloss.TverskyCELoss(ignore_index=2)):  # fmt: skip
        parts = [
            criterion(x, F.interpolate(y.double(), x.shape[2:], mode="nearest-exact").long())
            for x in logits
        ]
        expected = sum(share * part for share, part in zip((1, 0.5, 0.25), parts))
        for labels in (y.float(), y.to(torch.uint8), y.double()):
            torch.testing.assert_close(
                monai.DeepSupervisionLoss(criterion)(logits, labels), expected
            )
