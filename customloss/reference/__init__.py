"""The specification: every operator in plain PyTorch, written to be read, not to be fast.

Lives here: ``sums.py``, what every element adds to the sums; ``gradients.py``, the gradients of
these; ``losses.py``, how the sums become a loss. They judge the kernels, serve devices that have
none, and are what ``torch.func`` transforms and second derivatives differentiate.
May import: nothing of the package.
Start with ``sums.confusion``, then ``losses.sums_loss``.
"""

from customloss.reference.gradients import confusion_backward
from customloss.reference.losses import (
    SIMILARITY_FLOOR,
    average_groups,
    pointwise_loss,
    similarity_loss,
    soft_f1,
    sums_loss,
    with_absent,
)
from customloss.reference.sums import (
    EXTRA_ROWS,
    PROBABILITY_FLOOR,
    ROWS,
    Extra,
    Operands,
    Probability,
    accumulator,
    confusion,
    group_dims,
    group_shape,
    is_class_index,
    log_losses,
    operands,
    power,
    probability,
    rows,
    shares,
)

__all__ = [
    "EXTRA_ROWS",
    "PROBABILITY_FLOOR",
    "ROWS",
    "SIMILARITY_FLOOR",
    "Extra",
    "Operands",
    "Probability",
    "accumulator",
    "average_groups",
    "confusion",
    "confusion_backward",
    "group_dims",
    "group_shape",
    "is_class_index",
    "log_losses",
    "operands",
    "pointwise_loss",
    "power",
    "probability",
    "rows",
    "shares",
    "similarity_loss",
    "soft_f1",
    "sums_loss",
    "with_absent",
]
