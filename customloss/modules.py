"""The losses as ``torch.nn.Module``: the functions of ``functional.py`` with their options kept."""

from __future__ import annotations

from torch import Tensor, nn

from customloss import functional


class SoftF1Loss(nn.Module):
    r"""The soft-F1 (Fβ) loss; see :func:`customloss.soft_f1_loss` for every option.

    .. math:: L = \frac{fp + \beta^2 fn}{(1 + \beta^2)\,tp + fp + \beta^2 fn + s}

    Shape:
        - input ``[N]``, ``[N, C]`` or ``[N, C, *spatial]``; target the same.
        - output: a scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep.

    Example::

        loss = customloss.SoftF1Loss(beta=2.0)
        loss(logits, target).backward()
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        activation: str = "sigmoid",
        average: str = "macro",
        samplewise: bool = False,
        reduction: str = "mean",
        smooth: float = 0.0,
        absent: str = "score",
        link: str = "complement",
        gamma: float = 1.0,
        logit_scale: float = 1.0,
        logit_offset: float = 0.0,
        check_target: bool = False,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.activation = activation
        self.average = average
        self.samplewise = samplewise
        self.reduction = reduction
        self.smooth = smooth
        self.absent = absent
        self.link = link
        self.gamma = gamma
        self.logit_scale = logit_scale
        self.logit_offset = logit_offset
        self.check_target = check_target

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.soft_f1_loss(
            input,
            target,
            weight,
            beta=self.beta,
            activation=self.activation,
            average=self.average,
            samplewise=self.samplewise,
            reduction=self.reduction,
            smooth=self.smooth,
            absent=self.absent,
            link=self.link,
            gamma=self.gamma,
            logit_scale=self.logit_scale,
            logit_offset=self.logit_offset,
            check_target=self.check_target,
        )

    def extra_repr(self) -> str:
        return f"beta={self.beta}, average={self.average!r}, absent={self.absent!r}"
