"""On a GPU nothing waits for the device, and work goes to the current stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gpu
import pytest
import torch
from cases import PROBABILITIES, Case
from gpu import DEVICE, same_bits
from pixel_cases import numbered
from torch import Tensor, nn

import customloss

pytestmark = gpu.MARKS

CLASSES = 4
WEIGHT = (0.5, 2.0, 0.0, 1.5)
# Clock cycles of at least half a second on any GPU, longer than the host takes for any launch.
LONG = 1_500_000_000


@pytest.fixture(params=gpu.BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with gpu.backend(request.param):
        yield


# ---- nothing waits ---------------------------------------------------------------------------


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Makes every wait for the device an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# torch warns once, when the mode is first set.
PROTOTYPE = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")


@PROTOTYPE
def test_waiting_is_seen() -> None:
    x = torch.ones(3, device=DEVICE)
    with nothing_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


class Given:
    """Operands of every kind, made beforehand."""

    def __init__(self) -> None:
        dense = Case("dense", (3, CLASSES, 20, 21), target=None, weight="class")
        self.x, self.soft, self.by_class, _ = dense.build(device=DEVICE)
        sample = numbered("numbers", (3, CLASSES, 20, 21), weight="pixel").build(device=DEVICE)
        self.numbers, self.by_pixel = sample.target, sample.weight
        self.bits = self.soft > 0.6
        self.class_weight = torch.tensor(WEIGHT, device=DEVICE)


SOFTMAX = {"activation": "softmax"}
NO_BACKGROUND = {"include_background": False}
STEPS: dict[str, Callable[[Given, Tensor], Tensor]] = {
    "soft_f1": lambda g, x: customloss.soft_f1_loss(x, g.bits),
    "every option": lambda g, x: customloss.soft_f1_loss(
        x, g.soft, g.by_class, beta=2.0, average="weighted", samplewise=True, smooth=0.3,
        absent="penalize", link="focal", gamma=1.5, logit_scale=1.5, logit_offset=0.5,
    ),
    "class numbers": lambda g, x: customloss.tversky_loss(
        x, g.numbers, g.by_pixel, ignore_index=2, label_smoothing=0.1, **SOFTMAX
    ),
    "skipped groups": lambda g, x: customloss.dice_loss(x, g.bits, absent="skip"),
    "operator": lambda g, x: torch.ops.customloss.soft_f1(x, g.bits, average="micro"),
    "sums": lambda g, x: customloss.confusion_sums(x, g.bits, squares=True, hard=True).tp.sum(),
    "composed": lambda g, x: customloss.mcc_loss(x, g.bits),
    "score of one's own": lambda g, x: customloss.confusion_loss(
        lambda tp, fp, fn, tn: 5 * tp / (5 * tp + fp + 4 * fn), x, g.bits, link="log"
    ),
    "without background": lambda g, x: customloss.dice_loss(
        x, g.numbers, **SOFTMAX, **NO_BACKGROUND
    ),
    "classes": lambda g, x: customloss.dice_loss(x, g.bits, classes=(3, 0, 1)),
    "class_weight, a tensor": lambda g, x: customloss.dice_loss(
        x, g.bits, class_weight=g.class_weight
    ),
    "class_weight, a list": lambda g, x: customloss.dice_loss(x, g.bits, class_weight=[*WEIGHT]),
    "dice_ce": lambda g, x: customloss.dice_ce_loss(x, g.numbers, **NO_BACKGROUND),
    "dice_ce by class, a tensor": lambda g, x: customloss.dice_ce_loss(
        x, g.numbers, g.by_pixel, class_weight=g.class_weight, label_smoothing=0.1
    ),
    "dice_ce by class, a list": lambda g, x: customloss.dice_ce_loss(
        x, g.numbers, class_weight=[*WEIGHT], samplewise=True
    ),
    "dice_bce": lambda g, x: customloss.dice_bce_loss(x, g.bits, pos_weight=3.0),
    "dice_bce, pos_weight a list": lambda g, x: customloss.dice_bce_loss(
        x, g.bits, pos_weight=[1.0, 2.0, 3.0, 4.0]
    ),
    "dice_focal": lambda g, x: customloss.dice_focal_loss(x, g.soft, average="micro"),
    "compound": lambda g, x: customloss.compound_loss(
        customloss.scores.jaccard, x, g.numbers, cross_entropy_weight=0.5, focal_weight=0.5,
        **SOFTMAX,
    ),
    "deep supervision": lambda g, x: customloss.deep_supervision_loss(
        customloss.dice_ce_loss, [x, x[:, :, ::2, ::2]], [g.numbers, g.numbers[:, ::2, ::2]]
    ),
    "no gradient": lambda g, x: customloss.dice_ce_loss(x.detach(), g.numbers) + 0 * x.sum(),
}  # fmt: skip


def differentiate(step: Callable[[Given, Tensor], Tensor], given: Given) -> None:
    leaf = given.x.detach().requires_grad_()
    step(given, leaf).backward()


@PROTOTYPE
@pytest.mark.parametrize("name", STEPS)
def test_functions_do_not_wait(name: str) -> None:
    given = Given()
    differentiate(STEPS[name], given)  # compiled, allocated
    with nothing_waits():
        differentiate(STEPS[name], given)


@PROTOTYPE
@pytest.mark.parametrize("name", customloss.loss_names())
def test_modules_do_not_wait(name: str) -> None:
    given = Given()
    options: list[dict[str, Any]] = [{}]
    # two losses make one score of all classes
    if "class_weight" in customloss.loss(name).defaults and name not in (
        "generalized_dice",
        "multiclass_mcc",
    ):
        options += [{"class_weight": WEIGHT}]
        if "include_background" in customloss.loss(name).defaults:
            options += [{"class_weight": WEIGHT, **NO_BACKGROUND}]
    for chosen in options:
        criterion = customloss.loss(name, **chosen)
        softmax = name == "cross_entropy" or getattr(criterion, "activation", "") == "softmax"
        if softmax:  # the class numbers have some that are none
            criterion = customloss.loss(name, out_of_range="ignore", **chosen)
        criterion = criterion.to(DEVICE)

        def step(given: Given, x: Tensor, criterion: Any = criterion, s: bool = softmax) -> Tensor:
            x = x.sigmoid() if name in PROBABILITIES else x
            return criterion(x, given.numbers if s else given.bits)

        differentiate(step, given)  # checks the first batch, which waits
        with nothing_waits():
            differentiate(step, given)


@PROTOTYPE
def test_every_gradient_and_the_second_do_not_wait() -> None:
    given = Given()
    soft, weight = given.soft.requires_grad_(), given.by_class.requires_grad_()

    def step() -> None:
        leaf = given.x.detach().requires_grad_()
        loss = customloss.soft_f1_loss(leaf, soft, weight)
        found = torch.autograd.grad(loss, (leaf, soft, weight), create_graph=True)
        torch.autograd.grad(sum(each.square().sum() for each in found), leaf)

    step()
    with nothing_waits():
        step()


@PROTOTYPE
def test_micro_batches_do_not_wait() -> None:
    given = Given()
    criterion = customloss.DiceCELoss(out_of_range="ignore", **NO_BACKGROUND).to(DEVICE)
    leaf = given.x.detach().requires_grad_()

    def step() -> None:
        parts = [(leaf[i : i + 1], given.numbers[i : i + 1]) for i in range(3)]
        with customloss.accumulate(criterion) as accumulated:
            for part in parts:
                accumulated.add(*part)
            for part in parts:
                accumulated.loss(*part).backward()

    step()
    with nothing_waits():
        step()


# ---- streams ---------------------------------------------------------------------------------

SAMPLES = (
    Case("elements", (5, 3, 40, 41), target=None, weight="full"),
    Case("columns", (301, 131)),
    numbered("pixels", (2, 5, 40, 41), weight="pixel"),
    numbered("many-classes", (64, 300)),
)
LOSSES = {"fused": customloss.soft_f1_loss, "compound": customloss.dice_ce_loss}


def step_of(name: str) -> Callable[..., list[Tensor]]:
    """The loss, and its gradient times another tensor."""

    def step(x: Tensor, target: Tensor, weight: Tensor | None, upstream: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        loss = LOSSES[name](leaf, target, weight, **({} if target.dim() == x.dim() else SOFTMAX))
        return [loss.detach(), *torch.autograd.grad(loss, leaf, upstream)]

    return step


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    x, target, weight, _ = case.build(device=DEVICE)
    return x, target, weight, torch.tensor(0.5, device=DEVICE)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_work_goes_to_the_current_stream(case: Case, name: str) -> None:
    """The operands are NaN until a long kernel on this stream is over."""
    step, (x, target, weight, upstream) = step_of(name), operands(case)
    expected = step(x, target, weight, upstream)
    late, factor = torch.full_like(x, torch.nan), torch.full_like(upstream, torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        late.copy_(x)
        factor.copy_(upstream)
        found = step(late, target, weight, factor)
        assert not stream.query()  # nothing has waited for it
    stream.synchronize()
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_operands_of_another_stream(case: Case, name: str) -> None:
    """Operands of one stream are read by another that waits for it, and are not freed too early."""
    step, (x, target, weight, upstream) = step_of(name), operands(case)
    expected = step(x, target, weight, upstream)
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(one):
        torch.cuda._sleep(LONG)
        made = x + 0
    other.wait_stream(one)
    with torch.cuda.stream(other):
        found = step(made, target, weight, upstream)
        made.record_stream(other)
    del made
    with torch.cuda.stream(one):
        torch.full_like(x, torch.nan)  # would reuse the memory if it were free
    torch.cuda.current_stream().wait_stream(other)
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_kept_for_the_next_call_is_there_on_every_stream(name: str) -> None:
    """Classes are first chosen on a stream that is far behind, and then on one that is not.

    What is copied to the device has arrived when the first call returns: a copy waits, this once.
    """
    # No other test has as many classes, so nothing is cached. The first call loads all kernels,
    # and chooses other classes.
    classes = (29 if gpu.insists() else 23) + list(LOSSES).index(name)
    loss = LOSSES[name]
    x, numbers = torch.randn(50, classes), torch.randint(0, classes, (50,))
    with customloss.backend("auto"):  # the forced one may have no CPU
        expected = loss(x, numbers, **SOFTMAX, classes=range(2, classes))
    given = x.to(DEVICE), numbers.to(DEVICE)
    loss(*given, **SOFTMAX, classes=range(1, classes))
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    for stream in streams:
        with torch.cuda.stream(stream):  # leaves NaN in memory that is reused
            del [torch.full((64,), torch.nan, device=DEVICE) for _ in range(100)][:]
    torch.cuda.synchronize()
    found = []
    with torch.cuda.stream(streams[0]):
        torch.cuda._sleep(LONG)
        found.append(loss(*given, **SOFTMAX, classes=range(2, classes)))
        torch.cuda._sleep(LONG)
        found.append(loss(*given, **SOFTMAX, classes=range(2, classes)))
    with torch.cuda.stream(streams[1]):
        found.append(loss(*given, **SOFTMAX, classes=range(2, classes)))
    assert not streams[0].query()  # the second call has not waited
    torch.cuda.synchronize()
    for own in found:
        torch.testing.assert_close(own.cpu(), expected)


def test_backward_follows_its_forward() -> None:
    """Backward runs on the stream of its forward, whatever stream calls it.

    It comes after what is queued there, and the caller's stream waits for it.
    """
    x, target, _, upstream = operands(Case("x", (5, 3, 40, 41)))
    leaf = x.detach().requires_grad_()
    expected = torch.autograd.grad(customloss.soft_f1_loss(leaf, target), leaf, upstream)[0]
    factor = torch.full_like(upstream, torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        loss = customloss.soft_f1_loss(leaf, target)
        torch.cuda._sleep(LONG)
        factor.copy_(upstream)
    (gradient,) = torch.autograd.grad(loss, leaf, factor)
    assert not stream.query()
    assert same_bits(gradient, expected)


# ---- devices ---------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: there is no second device")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_another_device_than_the_current_one(case: Case, name: str) -> None:
    step, given = step_of(name), operands(case)
    expected = step(*given)
    assert torch.cuda.current_device() == 0
    found = step(*(each if each is None else each.to("cuda:1") for each in given))
    assert torch.cuda.current_device() == 0
    assert all(each.device == torch.device("cuda:1") for each in found)
    same = torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own.cpu(), wanted.cpu())
        assert same_bits(own, wanted) or not same


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: there is no second device")
def test_operands_of_two_devices_are_refused() -> None:
    x, target, _, _ = operands(SAMPLES[1])
    with pytest.raises(ValueError, match="target: expected device cuda:0"):
        customloss.soft_f1_loss(x, target.to("cuda:1"))


def test_a_model_on_a_stream_of_its_own() -> None:
    """Some steps of training give the same weights as on the default stream."""
    found = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.manual_seed(3)
            layer = nn.Linear(6, CLASSES).to(DEVICE)
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(100, 6, generator=generator).to(DEVICE)
            numbers = torch.randint(0, CLASSES, (100,), generator=generator).to(DEVICE)
            optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
            for _ in range(10):
                optimizer.zero_grad()
                customloss.dice_ce_loss(layer(x), numbers).backward()
                optimizer.step()
            found.append(layer.weight.detach())
        stream.synchronize()
    torch.testing.assert_close(found[0], found[1])
