"""Where nnU-Net finds the trainer of this name; see customloss/compat/nnunet/trainer.py."""

from customloss.compat.nnunet.trainer import nnUNetTrainerCustomloss

__all__ = ("nnUNetTrainerCustomloss",)
