"""The focal loss of ``torchvision.ops``, in its words, with the same numbers.

``alpha`` is ``focal_alpha`` (-1: None), ``gamma`` is ``focal_gamma``, and ``reduction="mean"`` is
``pointwise_reduction="mean_all"``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from customloss.compat.drop_in import plain, refused
from customloss.losses.parts import compound

__all__ = ("sigmoid_focal_loss",)


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2,
    reduction: str = "none", *, strict: bool = True,
) -> Tensor:  # fmt: skip
    """Lin's focal loss of logits and targets of one shape, any shape.

    A wart: torchvision's ``alpha`` weighs an element by α t + (1 - α)(1 - t) as a whole, also one
    with a soft target. As nobody can see that the targets of a float tensor are hard, that weight
    is made before, which is one more pass over the targets. Targets of bools or integers are one
    pass. ``strict=False`` mends it: one pass, in which α weighs t log p, and 1 - α the other part.
    With hard targets all of these are the same.

    Where ours differs: the loss of float16 and bfloat16 is float32, and the mean of nothing is 0.

    Raises:
        NotImplementedError: ``reduction="none"``, the default of torchvision.
        ValueError: ``alpha`` is not -1, and not in [0, 1]; or no such reduction; or two shapes.
    """
    if reduction == "none":
        raise refused("sigmoid_focal_loss", "reduction='none', a loss for every element,",
                      "take 'mean', or 'sum' and divide it")  # fmt: skip
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    if alpha != -1 and not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], or -1 for none, got {alpha}")
    inputs, targets = plain(inputs), plain(targets)
    if inputs.shape != targets.shape:
        raise ValueError(
            f"targets: expected the shape of inputs {list(inputs.shape)}, got {list(targets.shape)}"
        )
    options: dict[str, Any] = {
        "focal_gamma": gamma,
        "pointwise_reduction": "sum" if reduction == "sum" else "mean_all",
    }
    weight = None
    if strict and targets.is_floating_point() and alpha not in (-1, 0.5):
        weight = (targets.detach() * (2 * alpha - 1)).add_(1 - alpha)
    elif alpha != -1:
        options["focal_alpha"] = float(alpha)
    if not inputs.dim():
        inputs, targets = inputs.view(1), targets.view(1)
        weight = weight if weight is None else weight.view(1)
    return compound(None, inputs, targets, weight, options, 0.0, focal_weight=1.0)
