"""A LightningModule with the exact soft-F1 of the global batch.

With ``devices=2`` the batch is that of both processes.
"""

from __future__ import annotations

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import customloss


class Tagger(lightning.LightningModule):
    """Finds 4 labels from 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(16, 4)

    def setup(self, stage: str) -> None:
        # not in __init__: only after that does Lightning start the process group
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        self.criterion = customloss.SoftF1Loss(process_group=group)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, target = batch
        loss = self.criterion(self.model(x), target)
        self.log("loss", loss)  # the same on every rank, so sync_dist is not needed
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        x, target = batch
        self.log("val_loss", self.criterion(self.model(x), target), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    data = TensorDataset(x, x @ torch.randn(16, 4) > 4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=5, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    model = Tagger()
    before, _, after = (
        trainer.validate(model, DataLoader(data, 256), verbose=False),
        trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True)),
        trainer.validate(model, DataLoader(data, 256), verbose=False),
    )
    print("loss {val_loss:.6f}".format(**before[0]), "-> {val_loss:.6f}".format(**after[0]))


if __name__ == "__main__":
    main()
