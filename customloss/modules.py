"""The losses as ``torch.nn.Module``: the functions of ``functional.py`` with their options kept."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from customloss import _classes, functional
from customloss._loss import confusion_loss
from customloss._options import Averaging, Grouping, Options
from customloss._score import Score, score_name

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack


class Loss(nn.Module):
    """What the losses share: ``forward`` calls a function with the options, kept as attributes.

    ``class_weight`` is kept as a buffer: it moves with ``.to()``, and is not in the state dict.

    Shape:
        - input ``[N]``, ``[N, C]`` or ``[N, C, *spatial]``; target the same, or class numbers
          ``[N, *spatial]``; weight, if any, broadcastable to the input.
        - output: a scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep.
    """

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        """The options and their defaults are those of the function."""
        super().__init_subclass__()
        if "function" not in vars(cls):
            return
        shown = inspect.signature(cls.function).parameters.values()
        options = {p.name: p for p in shown if p.kind is p.KEYWORD_ONLY}
        cls.defaults = {name: option.default for name, option in options.items()}
        # shown by help: what __init__ takes by position, then every option of the function
        _, *own = inspect.signature(cls.__init__).parameters.values()
        own = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        more = [option for name, option in options.items() if name not in {p.name for p in own}]
        cls.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name not in self.defaults:
                known = ", ".join(self.defaults)
                raise TypeError(f"{name}: no option of {type(self).__name__}; there are {known}")
        for name, value in {**self.defaults, **options}.items():
            weighs = name == "class_weight" and value is not None
            if weighs or (name == "pos_weight" and isinstance(value, Sequence)):
                value = _classes.as_tensor(name, value)
            if isinstance(value, Tensor) or name == "class_weight":
                # an option as the others are, so not in the state dict; but it moves with .to()
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        """What the function is called with."""
        return {name: getattr(self, name) for name in self.defaults}

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return type(self).function(input, target, weight, **self.options())

    def added_by(self, adder: object) -> Loss:
        """This loss with another ``process_group``, and with buffers that move by themselves."""
        twin = copy.copy(self)
        own = vars(twin)
        own["process_group"] = adder  # not as a submodule
        own["_buffers"] = dict(self._buffers)
        return twin

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        changed = []
        for name, value in self.options().items():
            if isinstance(value, Tensor):
                changed.append(f"{name}={value.tolist()}")
            elif value is not self.defaults[name] and value != self.defaults[name]:
                changed.append(f"{name}={value!r}")
        return ", ".join(changed)


# ---- ratios --------------------------------------------------------------------------------------


class SoftF1Loss(Loss):
    r"""The soft-F1 (Fβ) loss; see :func:`customloss.soft_f1_loss` for every option.

    .. math:: L = \frac{fp + \beta^2 fn}{(1 + \beta^2)\,tp + fp + \beta^2 fn + s}

    Example::

        loss = customloss.SoftF1Loss(beta=2.0)
        loss(logits, target).backward()
    """

    function = staticmethod(functional.soft_f1_loss)

    def __init__(
        self, *, beta: float = 1.0, smooth: float = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(beta=beta, smooth=smooth, **options)


class DiceLoss(Loss):
    r"""The soft Dice loss, which is soft-F1; see :func:`customloss.dice_loss`.

    .. math:: L = \frac{fp + fn}{2\,tp + fp + fn + s}
    """

    function = staticmethod(functional.dice_loss)

    def __init__(self, *, smooth: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


class TverskyLoss(Loss):
    r"""The Tversky loss, with weights a of fp and b of fn; see :func:`customloss.tversky_loss`.

    .. math:: L = \frac{a\,fp + b\,fn}{tp + a\,fp + b\,fn + s}
    """

    function = staticmethod(functional.tversky_loss)

    def __init__(
        self,
        *,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        smooth: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, **options)


class JaccardLoss(Loss):
    r"""The soft Jaccard (IoU) loss; see :func:`customloss.jaccard_loss`.

    .. math:: L = \frac{fp + fn}{tp + fp + fn + s}
    """

    function = staticmethod(functional.jaccard_loss)

    def __init__(self, *, smooth: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(smooth=smooth, **options)


class FocalTverskyLoss(Loss):
    r"""A power of the Tversky loss of every group; see :func:`customloss.focal_tversky_loss`.

    .. math:: L = \left(\frac{a\,fp + b\,fn}{tp + a\,fp + b\,fn + s}\right)^{exponent}
    """

    function = staticmethod(functional.focal_tversky_loss)

    def __init__(
        self,
        *,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        exponent: float = 0.75,
        smooth: float = 0.0,
        **options: Unpack[Grouping],
    ) -> None:
        super().__init__(
            fp_weight=fp_weight, fn_weight=fn_weight, exponent=exponent, smooth=smooth, **options
        )


class AnyLoss(Loss):
    """Soft-Fβ of sharpened PROBABILITIES; see :func:`customloss.any_loss`."""

    function = staticmethod(functional.any_loss)

    def __init__(
        self, *, beta: float = 1.0, amplification: float = 73.0, **options: Unpack[Averaging]
    ) -> None:
        super().__init__(beta=beta, amplification=amplification, **options)


class SigmoidF1Loss(Loss):
    """Soft-F1 of logits scaled and shifted; see :func:`customloss.sigmoid_f1_loss`."""

    function = staticmethod(functional.sigmoid_f1_loss)

    def __init__(
        self, *, slope: float = 1.0, shift: float = 0.0, **options: Unpack[Averaging]
    ) -> None:
        super().__init__(slope=slope, shift=shift, **options)


# ---- other scores --------------------------------------------------------------------------------


class LogCoshDiceLoss(Loss):
    """``log cosh(1 - Dice)``; see :func:`customloss.log_cosh_dice_loss`."""

    function = staticmethod(functional.log_cosh_dice_loss)

    def __init__(self, *, smooth: float = 0.0, **options: Unpack[Grouping]) -> None:
        super().__init__(smooth=smooth, **options)


class ExpLogDiceLoss(Loss):
    """``(-log Dice)^exponent``; see :func:`customloss.exp_log_dice_loss`."""

    function = staticmethod(functional.exp_log_dice_loss)

    def __init__(
        self, *, exponent: float = 0.3, smooth: float = 0.0, **options: Unpack[Grouping]
    ) -> None:
        super().__init__(exponent=exponent, smooth=smooth, **options)


class FowlkesMallowsLoss(Loss):
    """``1 - precision^(1-w) recall^w``; see :func:`customloss.fowlkes_mallows_loss`."""

    function = staticmethod(functional.fowlkes_mallows_loss)

    def __init__(
        self, *, recall_weight: float = 0.5, smooth: float = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(recall_weight=recall_weight, smooth=smooth, **options)


class LogPrecisionRecallLoss(Loss):
    """``-(1-w) log precision - w log recall``; see :func:`customloss.log_precision_recall_loss`
    and its warning of degenerate minima."""

    function = staticmethod(functional.log_precision_recall_loss)

    def __init__(
        self, *, recall_weight: float = 0.5, smooth: float = 0.0, **options: Unpack[Grouping]
    ) -> None:
        super().__init__(recall_weight=recall_weight, smooth=smooth, **options)


class CustomF1Loss(Loss):
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
      slope left to return. The larger β, the easier: above 0.7 add binary cross-entropy.
    * A batch without positives (or with tp = 0) has a loss of 69 (log 1e30) and no gradient.

    Args:
        beta: the weight of recall, in [0, 1].
        check_target, process_group: see :func:`customloss.soft_f1_loss`.

    Example::

        criterion = customloss.CustomF1Loss(beta=1)
        criterion(torch.tensor([0.9, 0.1, 0.5, 0.3]), torch.tensor([1, 0, 1, 0]))   # 0.3567
    """

    function = staticmethod(functional.custom_f1_loss)

    def __init__(
        self,
        beta: float = 1.0,
        *,
        check_target: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(beta=beta, check_target=check_target, process_group=process_group)


class GeneralizedDiceLoss(Loss):
    """Dice of the weighted sum over classes; see :func:`customloss.generalized_dice_loss`."""

    function = staticmethod(functional.generalized_dice_loss)

    def __init__(
        self, *, weighting: str = "square", smooth: float = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(weighting=weighting, smooth=smooth, **options)


class _ScoreLoss(Loss):
    """A loss without options of its own."""

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)


class BalancedAccuracyLoss(_ScoreLoss):
    """``1 - (recall + specificity) / 2``; see :func:`customloss.balanced_accuracy_loss`."""

    function = staticmethod(functional.balanced_accuracy_loss)


class GMeanLoss(_ScoreLoss):
    """``1 - sqrt(recall specificity)``; see :func:`customloss.g_mean_loss`."""

    function = staticmethod(functional.g_mean_loss)


class MCCLoss(_ScoreLoss):
    """``1 - MCC``, Matthews' correlation; see :func:`customloss.mcc_loss`."""

    function = staticmethod(functional.mcc_loss)


class ConfusionLoss(Loss):
    """The loss of a score of your own; see :func:`customloss.confusion_loss`.

    Example::

        def f2(tp, fp, fn, tn):
            return 5 * tp / (5 * tp + fp + 4 * fn)

        criterion = customloss.ConfusionLoss(f2, average="micro", link="log")
        criterion(logits, target).backward()
    """

    function = staticmethod(confusion_loss)

    def __init__(self, score: Score, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if not callable(score):
            raise TypeError(f"score: expected a function of tp, fp, fn, tn, got {score!r}")
        self.score = score  # a score that is itself a module becomes a part of this one

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        function: Any = type(self).function
        result: Tensor = function(self.score, input, target, weight, **self.options())
        return result

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (score_name(self.score), super().extra_repr())))
