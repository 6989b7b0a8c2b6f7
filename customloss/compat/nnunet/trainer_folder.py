"""The folder in which nnU-Net finds our trainer; as a program, this file prints it, for
``export nnUNet_extTrainer="$(python -m customloss.compat.nnunet.trainer_folder)"``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "external"

if __name__ == "__main__":
    print(FOLDER)
