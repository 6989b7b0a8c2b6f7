"""``CustomF1Loss``: a weighted sum of log precision and log recall of probabilities. It calls the
weight of recall β."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from customloss import scores
from customloss._spec import checks
from customloss._spec.options import CheckTarget
from customloss.losses.base import Loss
from customloss.losses.composed import confusion_loss
from customloss.losses.keywords import known_only

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@known_only
def custom_f1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    ignore_index: int | Sequence[int] | None = None,
    check_target: bool = False,
    process_group: ProcessGroup | str | None = None,
) -> Tensor:
    """See :class:`customloss.CustomF1Loss`, where ``beta`` is explained."""
    checks.number("beta", beta, at_least=0, at_most=1)
    return confusion_loss(
        partial(_custom_f1, recall_weight=beta), input, target, weight, activation="none",
        average="micro", link="log", ignore_index=ignore_index, check_target=check_target,
        process_group=process_group,
    )  # fmt: skip


def _custom_f1(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, recall_weight: float) -> Tensor:
    """``exp(-CustomF1Loss)``."""
    precision, recall = tp / (tp + fp + 1e-10), tp / (tp + fn + 1e-10)
    return scores.power(precision, 1 - recall_weight) * scores.power(recall, recall_weight)


class CustomF1Loss(Loss, name="custom_f1"):
    """``-[(1-β) log precision + β log recall]`` of PROBABILITIES, over the flattened batch.

    precision = tp / (tp + fp + 1e-10) and recall = tp / (tp + fn + 1e-10), of all elements
    together. β, in [0, 1], is the weight of recall: not the β of Fβ, which has no upper bound. The
    other losses call it ``recall_weight``; :class:`LogPrecisionRecallLoss` is this loss of logits,
    with all options.

    Degenerate minima, at which a network may settle (see
    :func:`customloss.log_precision_recall_loss`):

    * β = 1 is -log recall: predicting 1 everywhere is perfect. β = 0 is -log precision: any
      prediction on positives alone is perfect, however small.
    * In between, an untrained network is driven towards 1 everywhere, where the sigmoid has no
      slope left to return. A larger β makes that more likely: above 0.7 add binary cross-entropy.
    * A batch without positives (or with tp = 0) has a loss of 69 (log 1e30) and no gradient.

    Args:
        beta: the weight of recall, in [0, 1].
        ignore_index, check_target, process_group: see :func:`customloss.soft_f1_loss`. The call
            takes a ``weight`` of the elements too, as that of every loss.

    Example::

        criterion = customloss.CustomF1Loss(beta=1)
        criterion(torch.tensor([0.9, 0.1, 0.5, 0.3]), torch.tensor([1, 0, 1, 0]))   # 0.3567
    """

    function = staticmethod(custom_f1_loss)

    @known_only
    def __init__(
        self,
        beta: float = 1.0,
        *,
        ignore_index: int | Sequence[int] | None = None,
        check_target: CheckTarget = "once",
        process_group: ProcessGroup | str | None = None,
    ) -> None:
        super().__init__(
            beta=beta,
            ignore_index=ignore_index,
            check_target=check_target,
            process_group=process_group,
        )
