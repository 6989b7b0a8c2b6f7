"""The libraries whose losses can be replaced, and the names of these losses."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Peer(NamedTuple):
    """A library, and where it defines what our drop-ins stand for.

    A name is listed with the module that defines it, and only if the drop-in was compared with that
    very definition: another function of the same name, as the focal loss of Grounding DINO, stays.
    """

    title: str  # as its authors spell it
    distribution: str  # what pip calls it
    package: str  # what is imported
    versions: tuple[str, ...]  # the beginnings of those that the drop-ins were compared with
    ours: str  # the module of our drop-ins, which have the same names
    names: dict[str, tuple[str, ...]]  # by the module that defines them
    # of a module that looks for losses in its own way: "module:function" of ours, which makes it
    # find ours, and returns what it replaced as (owner, name, now)
    more: Mapping[str, str] = MappingProxyType({})

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def modules(self) -> tuple[str, ...]:
        """The modules in which something is replaced."""
        return (*self.names, *self.more)


_OF_MASKS = ("dice_loss", "sigmoid_cross_entropy_loss")
_OF_DETECTION = ("dice_loss", "sigmoid_focal_loss")

PEERS = {
    "monai": Peer(
        "MONAI", "monai", "monai", ("1.6.",), "customloss.compat.monai",
        {
            "monai.losses.dice": (
                "DiceCELoss", "DiceFocalLoss", "DiceLoss", "GeneralizedDiceFocalLoss",
                "GeneralizedDiceLoss", "MaskedDiceLoss",
            ),
            "monai.losses.ds_loss": ("DeepSupervisionLoss",),
            "monai.losses.focal_loss": ("FocalLoss",),
            "monai.losses.mcc_loss": ("MCCLoss",),
            "monai.losses.spatial_mask": ("MaskedLoss",),
            "monai.losses.tversky": ("TverskyLoss",),
            "monai.losses.unified_focal_loss": (
                "AsymmetricFocalLoss", "AsymmetricFocalTverskyLoss", "AsymmetricUnifiedFocalLoss",
            ),
        },
        {"monai.bundle.config_item": "customloss.compat.monai.bundles:find_ours"},
    ),
    # DC_and_topk_loss stays, as we have no cross-entropy of the worst pixels; its Dice is ours
    "nnunet": Peer(
        "nnU-Net", "nnunetv2", "nnunetv2", ("2.8.",), "customloss.compat.nnunet",
        {
            "nnunetv2.training.loss.compound_losses": ("DC_and_BCE_loss", "DC_and_CE_loss"),
            "nnunetv2.training.loss.deep_supervision": ("DeepSupervisionWrapper",),
            "nnunetv2.training.loss.dice": ("MemoryEfficientSoftDiceLoss", "SoftDiceLoss"),
            "nnunetv2.training.loss.robust_ce_loss": ("RobustCrossEntropyLoss",),
        },
    ),
    "smp": Peer(
        "segmentation_models_pytorch", "segmentation-models-pytorch", "segmentation_models_pytorch",
        ("0.6.",), "customloss.compat.smp",
        {
            "segmentation_models_pytorch.losses.dice": ("DiceLoss",),
            "segmentation_models_pytorch.losses.focal": ("FocalLoss",),
            "segmentation_models_pytorch.losses.jaccard": ("JaccardLoss",),
            "segmentation_models_pytorch.losses.mcc": ("MCCLoss",),
            "segmentation_models_pytorch.losses.soft_bce": ("SoftBCEWithLogitsLoss",),
            "segmentation_models_pytorch.losses.soft_ce": ("SoftCrossEntropyLoss",),
            "segmentation_models_pytorch.losses.tversky": ("TverskyLoss",),
        },
    ),
    # its focal loss of a softmax stays, as ours refuses it by default
    "toolbelt": Peer(
        "pytorch-toolbelt", "pytorch-toolbelt", "pytorch_toolbelt", ("0.8.",),
        "customloss.compat.toolbelt",
        {
            "pytorch_toolbelt.losses.dice": ("DiceLoss",),
            "pytorch_toolbelt.losses.focal": ("BinaryFocalLoss",),
            "pytorch_toolbelt.losses.jaccard": ("JaccardLoss",),
            "pytorch_toolbelt.losses.soft_f1": ("BinarySoftF1Loss", "SoftF1Loss"),
        },
    ),
    "kornia": Peer(
        "kornia", "kornia", "kornia", ("0.9.",), "customloss.compat.kornia",
        {
            "kornia.losses.dice": ("DiceLoss", "dice_loss"),
            "kornia.losses.focal": (
                "BinaryFocalLossWithLogits", "FocalLoss", "binary_focal_loss_with_logits",
                "focal_loss",
            ),
            "kornia.losses.tversky": ("TverskyLoss", "tversky_loss"),
        },
    ),
    # one and the same file in all of these versions
    "torchvision": Peer(
        "torchvision", "torchvision", "torchvision", ("0.25.", "0.26.", "0.27.", "0.28.", "0.29."),
        "customloss.compat.torchvision",
        {"torchvision.ops.focal_loss": ("sigmoid_focal_loss",)},
    ),
    # Grounding DINO has a focal loss of its own, which is another formula, and stays
    "transformers": Peer(
        "transformers", "transformers", "transformers", ("5.24.",),
        "customloss.compat.transformers",
        {
            "transformers.loss.loss_for_object_detection": _OF_DETECTION,
            "transformers.loss.loss_rf_detr": ("sigmoid_cross_entropy_loss",),
            "transformers.models.eomt.modeling_eomt": _OF_MASKS,
            "transformers.models.eomt_dinov3.modeling_eomt_dinov3": _OF_MASKS,
            "transformers.models.mask2former.modeling_mask2former": _OF_MASKS,
            "transformers.models.maskformer.modeling_maskformer": _OF_DETECTION,
            "transformers.models.oneformer.modeling_oneformer": _OF_MASKS,
            "transformers.models.videomt.modeling_videomt": _OF_MASKS,
        },
    ),
}  # fmt: skip
