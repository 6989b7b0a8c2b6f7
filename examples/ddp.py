"""Two processes train on macro soft-F1 of the global batch, and end where one process would.

    torchrun --nproc-per-node 2 examples/ddp.py      # on GPUs (nccl) if there are enough, else gloo

Each rank has its own shard of the data, and the shards differ in size. The sums of all ranks are
added up in one all-reduce of 4 numbers per class. So every rank prints the same loss, and the
parameters follow those of a single process that sees the whole batch. Nothing is scaled by the
number of ranks.
"""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import customloss

SAMPLES, FEATURES, CLASSES, STEPS = 512, 16, 4, 50


def start() -> torch.device:
    """Joins the group that torchrun describes, and returns the device of this rank."""
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(rank)
        dist.init_process_group("nccl")
        return torch.device("cuda", rank)
    dist.init_process_group("gloo")
    return torch.device("cpu")


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples with rare labels that a linear model can find; the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    scores = x @ torch.randn(FEATURES, CLASSES, generator=generator)
    return x.to(device), (scores > 6.0).to(device)


def train(model: nn.Module, criterion: nn.Module, x: Tensor, target: Tensor) -> list[float]:
    """Trains, and returns the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def linear(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES).to(device)


def compare(device: torch.device) -> None:
    """Trains on all ranks together, and on rank 0 once more by itself."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x, target = data(device)
    # the shards differ in size: rank r has r + 1 parts of the data
    cuts = [SAMPLES * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    own = slice(cuts[rank], cuts[rank + 1])

    model = DistributedDataParallel(linear(device))
    criterion = customloss.SoftF1Loss(process_group="world")  # the only line that is new
    losses = train(model, criterion, x[own], target[own])
    print(f"rank {rank}: {own.stop - own.start} samples, loss {losses[0]:.6f} -> {losses[-1]:.6f}")

    if rank == 0:
        alone = train(linear(device), customloss.SoftF1Loss(), x, target)
        print(f"one process: {SAMPLES} samples, loss {alone[0]:.6f} -> {alone[-1]:.6f}")


def main() -> None:
    device = start()
    compare(device)
    gc.collect()  # a gloo group that something still refers to can abort Python at exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
