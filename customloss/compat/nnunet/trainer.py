"""A trainer for nnU-Net's command line, whose losses are ours; it needs nnunetv2.

nnU-Net finds a trainer by the name of its class, in its own folders and in those that the variable
``nnUNet_extTrainer`` lists. ``python -m customloss.compat.nnunet.trainer_folder`` prints ours.
"""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from customloss.compat.patching.patch import patch


class FusedLosses:
    """Before a trainer of nnU-Net in a list of bases, it makes that trainer's losses ours.

    The trainer builds its loss as always, while nnU-Net's names of the losses stand for ours: the
    Dice and the cross-entropy, of regions or of labels, the ignore label, the weights of deep
    supervision and what they are over several GPUs are those of that trainer. A loss that we do not
    have, as that of the worst pixels, stays nnU-Net's.

    Raises:
        RuntimeError: nnunetv2 is installed in a version that the losses were not compared with.

    Example::

        class nnUNetTrainerNoMirroringCustomloss(FusedLosses, nnUNetTrainerNoMirroring):
            pass
    """

    def _build_loss(self) -> Any:
        with patch("nnunet", quiet=True):
            return super()._build_loss()  # type: ignore[misc]


class nnUNetTrainerCustomloss(FusedLosses, nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's default trainer: ``nnUNetv2_train ... -tr nnUNetTrainerCustomloss``."""
