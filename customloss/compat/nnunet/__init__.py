"""The losses of nnU-Net 2.8, in its words: the same constructors, state dicts and numbers.

What an nnU-Net loss is in our words::

    apply_nonlin              activation: softmax_helper_dim1, torch.sigmoid, nn.Softmax(1) and
                              nn.Sigmoid() are known; any other function runs before, by itself
    batch_dice                not samplewise
    do_bg                     include_background
    smooth                    smooth, on both sides; the loss is -Dice: link="negative"
    ddp                       process_group="world" with batch_dice, else "local"
    loss_mask                 weight
    ignore_label              ignore_index, of both parts
    weight_dice, weight_ce    score_weight, cross_entropy_weight

Warts that are kept, each with what ``strict=False`` does about it:

* a group with nothing in it scores 0 and not 1 at ``smooth=0``; mended, it scores 1;
* over several ranks the Dice is that of the whole batch but the cross-entropy that of each rank,
  so that pixels of a rank with many ignored ones weigh more; mended, both are of the whole batch;
* ``use_ignore_label`` of :class:`DC_and_BCE_loss` divides by pixels and not by elements, which
  makes the cross-entropy C times as large; mended, it is the mean over elements;
* :class:`DeepSupervisionWrapper` leaves the outputs of weight 0 without a gradient, which
  DistributedDataParallel takes for an unused parameter; mended, they get zeros.

Where ours differs: nnU-Net rounds the sums of its Dice to float32, and ours are float64.

Lives here: dice.py, compounds.py, deep_supervision.py, and a trainer for nnU-Net's command line:
trainer.py, which alone imports nnunetv2, trainer_folder.py and external/, where nnU-Net finds it.
May import: ``losses``, ``scores``, ``distributed``.
Start with ``SoftDiceLoss`` in dice.py.
"""

from __future__ import annotations

from customloss.compat.nnunet.compounds import (
    DC_and_BCE_loss,
    DC_and_CE_loss,
    DC_and_topk_loss,
    RobustCrossEntropyLoss,
)  # fmt: skip
from customloss.compat.nnunet.deep_supervision import DeepSupervisionWrapper
from customloss.compat.nnunet.dice import (
    MemoryEfficientSoftDiceLoss,
    SoftDiceLoss,
    softmax_helper_dim1,
)  # fmt: skip

__all__ = (
    "DC_and_BCE_loss", "DC_and_CE_loss", "DC_and_topk_loss", "DeepSupervisionWrapper",
    "MemoryEfficientSoftDiceLoss", "RobustCrossEntropyLoss", "SoftDiceLoss", "softmax_helper_dim1",
)  # fmt: skip
