"""A 3-D training with MONAI's losses and with ours under their names: the same curve, in less time.

python examples/switch_monai.py [--steps 40] [--size 32] [--out out]

Balls in noise are segmented in float64, so that the curves can be compared to many digits: by a
UNet with DiceCELoss, and by a DynUNet with DeepSupervisionLoss around it. With nnU-Net installed a
third training has its loss. MONAI's deep supervision rounds the logits to float32, and nnU-Net the
sums of its Dice, so that these two curves agree to fewer digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import customloss

CLASSES = 3
Loss = Callable[[Any, Any], Tensor]


class Run(NamedTuple):
    """What a training left."""

    losses: list[float]
    seconds: float  # of the loss and its gradient, in the median step
    kept: int  # bytes that the loss keeps for its backward pass, beyond its inputs


def batch(size: int, samples: int = 2) -> tuple[Tensor, Tensor]:
    """Images and class numbers ``[samples, 1, size, size, size]``."""
    random = np.random.RandomState(0)
    pairs = [
        monai.data.create_test_image_3d(
            size, size, size, num_objs=4, rad_max=size // 4, rad_min=size // 8,
            num_seg_classes=CLASSES - 1, random_state=random,
        )
        for _ in range(samples)
    ]  # fmt: skip
    images, labels = (np.stack(each)[:, None] for each in zip(*pairs))
    return torch.from_numpy(images).double(), torch.from_numpy(labels).long()


def unet() -> nn.Module:
    return monai.networks.nets.UNet(3, 1, CLASSES, channels=(8, 16, 32), strides=(2, 2))


class DeepNet(nn.Module):
    """A DynUNet, which gives a list of logits: the whole, and one from a coarser layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = monai.networks.nets.DynUNet(
            3, 1, CLASSES, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2),
            filters=(8, 16, 32), deep_supervision=True, deep_supr_num=1,
        )  # fmt: skip

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images).unbind(1))


def monai_loss() -> Loss:
    return monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)


def deep_monai_loss() -> Loss:
    return monai.losses.DeepSupervisionLoss(monai_loss(), weight_mode="exp")


def nnunet_loss() -> Loss:
    from nnunetv2.training.loss import compound_losses, deep_supervision

    whole = compound_losses.DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}
    )
    deep = deep_supervision.DeepSupervisionWrapper(whole, [2 / 3, 1 / 3])
    return lambda logits, labels: deep(logits, [labels] * len(logits))


def kept_by(loss: Loss, logits: Any, labels: Tensor) -> int:
    """The bytes that autograd keeps from forward to backward, beyond the logits and the labels."""
    given = logits if isinstance(logits, list) else [logits]
    known = {each.untyped_storage().data_ptr() for each in (*given, labels)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss(logits, labels)
    del value
    return sum(kept.values())


def train(make_net: Callable[[], nn.Module], make_loss: Callable[[], Loss], patched: bool,
          steps: int, size: int) -> Run:  # fmt: skip
    torch.manual_seed(0)
    images, labels = batch(size)
    net = make_net().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    peer = "nnunet" if make_loss is nnunet_loss else "monai"
    with customloss.patch(peer, quiet=True) if patched else nullcontext():
        loss = make_loss()
    losses, seconds, kept = [], [], 0
    for step in range(steps):
        found = net(images)
        logits = [each.detach().requires_grad_() for each in found] if isinstance(
            found, list) else found.detach().requires_grad_()  # fmt: skip
        if not step:
            kept = kept_by(loss, logits, labels)
        start = time.perf_counter()
        value = loss(logits, labels)
        value.backward()
        seconds.append(time.perf_counter() - start)
        of_net = found if isinstance(found, list) else [found]
        of_loss = logits if isinstance(logits, list) else [logits]
        torch.autograd.backward(of_net, [each.grad for each in of_loss])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return Run(losses, sorted(seconds)[steps // 2], kept)


def figure(runs: dict[str, tuple[Run, Run]], path: Path) -> None:
    chart, axes = plt.subplots(2, len(runs), figsize=(4.5 * len(runs), 6), squeeze=False)
    for column, (name, (theirs, ours)) in enumerate(runs.items()):
        above, below = axes[:, column]
        above.plot(theirs.losses, linewidth=5, color="0.8", label="theirs")
        above.plot(ours.losses, color="C0", label="patched")
        above.set(title=name, ylabel="loss")
        above.legend()
        below.semilogy([max(gap, 1e-17) for gap in gaps(theirs, ours)], color="C3")
        below.set(xlabel="step", ylabel="relative difference", ylim=(1e-17, 1))
    chart.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=120)


def gaps(theirs: Run, ours: Run) -> list[float]:
    return [abs(a - b) / abs(a) for a, b in zip(theirs.losses, ours.losses)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=32, help="of the images, a multiple of 4")
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    trainings = {
        "MONAI, DiceCELoss": (unet, monai_loss),
        "MONAI, deep supervision": (DeepNet, deep_monai_loss),
    }
    if find_spec("nnunetv2") is not None:
        trainings["nnU-Net, DC_and_CE_loss"] = (DeepNet, nnunet_loss)
    runs = {}
    for name, (net, loss) in trainings.items():
        theirs, ours = (train(net, loss, each, given.steps, given.size) for each in (False, True))
        runs[name] = (theirs, ours)
        print(
            f"{name}: loss {ours.losses[0]:.6f} -> {ours.losses[-1]:.6f}, differs by at most "
            f"{max(gaps(theirs, ours)):.1e} of it in {given.steps} steps; the loss and its "
            f"gradient took {1e3 * theirs.seconds:.2f} ms, patched {1e3 * ours.seconds:.2f} ms; "
            f"kept for backward: {theirs.kept / 1e6:.2f} MB, patched {ours.kept / 1e6:.2f} MB"
        )
    figure(runs, given.out / "switch_monai.png")
    print(f"The curves lie on each other in {given.out / 'switch_monai.png'}.")


if __name__ == "__main__":
    main()
