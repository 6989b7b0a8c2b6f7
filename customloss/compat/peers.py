"""The libraries whose losses :func:`customloss.patch` can replace."""

from __future__ import annotations

import importlib.metadata
from typing import NamedTuple


class Peer(NamedTuple):
    """A library, and where its losses and ours are."""

    distribution: str  # what pip calls it
    versions: tuple[str, ...]  # the beginnings of those that the drop-ins were compared with
    ours: str  # the module of our drop-ins
    modules: tuple[str, ...]  # where the library defines the names
    stay: tuple[
        str, ...
    ] = ()  # names of ours that refuse every call, or are no loss of this family

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def _in(package: str, *modules: str) -> tuple[str, ...]:
    return tuple(f"{package}.{module}" for module in modules)


PEERS = {
    "monai": Peer(
        "monai", ("1.6.",), "customloss.compat.monai",
        _in(
            "monai.losses", "dice", "tversky", "focal_loss", "mcc_loss", "unified_focal_loss",
            "spatial_mask", "ds_loss",
        ),
    ),
    "nnunet": Peer(
        "nnunetv2", ("2.8.",), "customloss.compat.nnunet",
        _in("nnunetv2.training.loss", "dice", "compound_losses", "deep_supervision"),
        stay=("DC_and_topk_loss", "RobustCrossEntropyLoss", "softmax_helper_dim1"),
    ),
    "smp": Peer(
        "segmentation-models-pytorch", ("0.6.",), "customloss.compat.smp",
        _in(
            "segmentation_models_pytorch.losses", "dice", "jaccard", "tversky", "focal", "mcc",
            "soft_bce", "soft_ce",
        ),
    ),
    "toolbelt": Peer(
        "pytorch-toolbelt", ("0.8.",), "customloss.compat.toolbelt",
        _in("pytorch_toolbelt.losses", "dice", "jaccard", "soft_f1", "focal"),
    ),
    "kornia": Peer(
        "kornia", ("0.9.",), "customloss.compat.kornia",
        _in("kornia.losses", "dice", "tversky", "focal"),
    ),
    "torchvision": Peer(
        "torchvision", ("0.28.",), "customloss.compat.torchvision",
        ("torchvision.ops.focal_loss",),
    ),
    # of its models only those whose formulas were compared with ours
    "transformers": Peer(
        "transformers", ("5.24.",), "customloss.compat.transformers",
        _in(
            "transformers", "loss.loss_for_object_detection",
            "models.maskformer.modeling_maskformer", "models.mask2former.modeling_mask2former",
            "models.oneformer.modeling_oneformer", "models.eomt.modeling_eomt",
        ),
    ),
}  # fmt: skip
