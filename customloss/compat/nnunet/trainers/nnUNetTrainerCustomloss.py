"""A trainer of nnU-Net whose loss is ours, which nnU-Net finds by its name::

    export nnUNet_extTrainer=$(python -m customloss nnunet-trainers)
    nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainerCustomloss

nnU-Net imports this file by itself, in every process of a training, so that it also works with
several GPUs.
"""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from customloss.compat.patching import patch


class nnUNetTrainerCustomloss(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's own trainer, but for its loss."""

    def _build_loss(self) -> Any:
        """The loss that nnU-Net builds, out of ours."""
        with patch("nnunet", quiet=True):
            return super()._build_loss()
