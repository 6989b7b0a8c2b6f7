"""A small package with the names and the layout of torchvision 0.28, for tests of what replaces a
library's losses: it is there also where torchvision is not, and imports in no time."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "torchvision-0.28.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0+cpu\n"
    ),
    "torchvision/__init__.py": "from torchvision import models, ops\n",
    "torchvision/ops/__init__.py": "from .focal_loss import sigmoid_focal_loss\n",
    "torchvision/ops/focal_loss.py": '''\
import torch


def sigmoid_focal_loss(
    inputs: torch.Tensor, targets: torch.Tensor, alpha: float = 0.25, gamma: float = 2,
    reduction: str = "none",
) -> torch.Tensor:
    """A name, and no loss."""
    return inputs
''',
    "torchvision/models/__init__.py": "",
    "torchvision/models/detection/__init__.py": "",
    "torchvision/models/detection/retinanet.py": "from ...ops import sigmoid_focal_loss\n",
}


def write(folder: Path) -> Path:
    """Writes the package, and what pip would note of it, into a folder for Python's path."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
