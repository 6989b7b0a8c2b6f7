"""Soft-F1 in a Hugging Face Trainer, and gradient accumulation of the loss of the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import customloss

criterion = customloss.SoftF1Loss()


class Tagger(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


def f1(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A compute_loss_func, for steps without micro-batches."""
    return criterion(outputs["logits"], labels)


class ExactTrainer(Trainer):
    """With gradient_accumulation_steps=k, k micro-batches train as one batch."""

    loss_is_scaled_for_ga = True  # the Trainer must not divide: the gradients add up as they are

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, count = super().get_batch_samples(*args, **kwargs)
        self.batch = customloss.accumulate(criterion)
        with torch.no_grad():  # first the sums of all micro-batches of this step
            for sample in samples:
                inputs = self._prepare_inputs(dict(sample))
                self.batch.add(self.model(inputs["x"])["logits"], inputs["labels"])
        return samples, count

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **more: Any) -> Tensor:
        return self.batch.loss(model(inputs["x"])["logits"], inputs["labels"])


def train(kind: type[Trainer], size: int, steps: int, **more: Any) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(64, 16), Tagger(16, 4)
    target = x @ torch.randn(16, 4) > 4
    data = [{"x": one, "labels": other} for one, other in zip(x, target)]
    arguments = TrainingArguments(
        per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=10,
        learning_rate=5.0, optim="sgd", use_cpu=True, save_strategy="no", report_to=[],
        disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    before = f1(model(x), target)
    kind(model=model, args=arguments, train_dataset=data, **more).train()
    print(f"{steps} x {size} samples: loss {before:.6f} -> {f1(model(x), target):.6f}")


if __name__ == "__main__":
    train(Trainer, 64, 1, compute_loss_func=f1)
    train(ExactTrainer, 16, 4)
