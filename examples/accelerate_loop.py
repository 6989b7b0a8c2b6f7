"""An Accelerate loop in which micro-batches, on any number of processes, train as one batch.

python examples/accelerate_loop.py       # or: accelerate launch examples/accelerate_loop.py
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import customloss

SAMPLES = 64


def train(accelerator: Accelerator, size: int) -> None:
    """Each step sees all samples, ``size`` of them at a time."""
    torch.manual_seed(0)
    x, model = torch.randn(SAMPLES, 16), nn.Linear(16, 4)
    data = TensorDataset(x, x @ torch.randn(16, 4) > 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, size))
    # built after Accelerator(), which starts the process group
    group = dist.group.WORLD if accelerator.num_processes > 1 else None
    criterion = customloss.SoftF1Loss(process_group=group)

    losses = []
    for _ in range(10):
        micro_batches = list(loader)
        with customloss.accumulate(criterion) as batch:
            with torch.no_grad():
                for x, target in micro_batches:
                    batch.add(model(x), target)
            for number, (x, target) in enumerate(micro_batches, 1):
                last = number == len(micro_batches)
                with nullcontext() if last else accelerator.no_sync(model):
                    loss = batch.loss(model(x), target)
                    accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    accelerator.print(
        f"{len(micro_batches)} x {size} samples: loss {losses[0]:.6f} -> {losses[-1]:.6f}"
    )


def main() -> None:
    # accelerator.backward() divides by gradient_accumulation_steps, so that stays at 1
    accelerator = Accelerator(cpu=True)
    train(accelerator, SAMPLES)
    train(accelerator, SAMPLES // 4)
    accelerator.end_training()


if __name__ == "__main__":
    main()
