"""What the losses share: modules that keep options."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from customloss import distributed
from customloss._backends import choice
from customloss._ops.modes import holds_values
from customloss.distributed import is_group
from customloss.losses import classes, help_text, keywords
from customloss.losses.first_batch import ONCE, FirstBatch, warn_caller
from customloss.losses.named_sums import ConfusionSums, ExtendedSums, SumsTaker

if TYPE_CHECKING:
    from typing_extensions import Self

# The losses of the package by name, as ``customloss.loss`` knows them.
LOSSES: dict[str, type[Loss]] = {}


# What the weights are called in the state dicts of torch, nnU-Net and MONAI.
_PEERS = {
    "class_weight": ("weight", "dice.class_weight"),
    "pointwise_class_weight": ("ce.weight", "cross_entropy.weight", "focal.class_weight"),
    "pos_weight": ("bce.pos_weight", "binary_cross_entropy.pos_weight"),
}
_CLASS_WEIGHTS = ("class_weight", "pointwise_class_weight")
_WEIGHTS = (*_CLASS_WEIGHTS, "pos_weight")


def _differs(value: Any, default: Any) -> bool:
    """Whether an option is not at its default. 1 and 1.0 are one number, True is none; a tensor or
    an array, whose comparison would be one, is never a default."""
    if value is default:
        return False
    for kinds in ((int, float), (str,)):
        if isinstance(value, kinds) and isinstance(default, kinds):
            return isinstance(value, bool) or isinstance(default, bool) or value != default
    return True


class HoldsGroup(nn.Module):
    """A module that may hold a process group, which lives in this process alone: copies of the
    module share it, and pickling says what to do."""

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        attributes = vars(twin)
        attributes.update(vars(self))
        # the same tensors and modules, until one of both sets others
        for name in ("_parameters", "_buffers", "_modules"):
            attributes[name] = dict(attributes[name])
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo.update((id(value), value) for value in vars(self).values() if is_group(value))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if any(is_group(value) for value in vars(self).values()):
            raise TypeError(
                f"process_group: {type(self).__name__} cannot be pickled with a ProcessGroup, "
                "which lives in this process alone: pass process_group='world', or make the module "
                "on each rank with the group of that rank"
            )
        return vars(self).copy()


class Loss(HoldsGroup):
    """The base of all losses: ``forward`` calls a function with options, which are attributes.

    ``class_weight``, ``pointwise_class_weight`` and ``pos_weight`` are kept as buffers, or as the
    ``nn.Parameter`` that was given: they move with ``.to()``, and are in the state dict. Integers
    become float64, as those of a list do, so that weights which are loaded later keep their
    fractions. A state dict without them leaves them as they are; in their place it may have those
    of ``torch.nn.CrossEntropyLoss``, ``torch.nn.BCEWithLogitsLoss`` (``[C]``, or ``[C, 1, 1]`` as
    for images), nnU-Net or MONAI. Weights for a loss that was made without are unexpected keys, as
    for any module.

    Shape:
        - input ``[N]``, ``[N, C]`` or ``[N, C, *spatial]``; target the same, or class numbers
          ``[N, *spatial]``; weight, if any, broadcastable to the input, or ``[N, *spatial]``.
        - output: a scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep.
    """

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]]
    _passed: ClassVar[dict[str, Any]]  # without ``check_target``, which becomes False
    check_target: Any = False  # where a function has no such option

    def __init_subclass__(cls, name: str | None = None) -> None:
        """The options and their defaults are those of the function.

        ``name`` is what ``customloss.loss`` calls a loss of the package.
        """
        super().__init_subclass__()
        if name is not None:
            LOSSES[name] = cls
        if "function" not in vars(cls):
            return
        shown = inspect.signature(cls.function).parameters.values()
        options = {p.name: p for p in shown if p.kind is p.KEYWORD_ONLY}
        if "check_target" in options:  # a module, unlike a function, has a first batch
            once = inspect.Parameter("check_target", inspect.Parameter.KEYWORD_ONLY, default=ONCE)
            options["check_target"] = once
        cls.defaults = {name: option.default for name, option in options.items()}
        cls._passed = {n: default for n, default in cls.defaults.items() if n != "check_target"}
        # shown by help: what __init__ takes by position, then every option of the function
        if "__init__" in vars(cls):
            cls.__init__ = keywords.by_name(cls.__init__, cls.defaults)  # type: ignore[method-assign]
        _, *listed = inspect.signature(cls.__init__).parameters.values()
        listed = [p for p in listed if p.kind is p.POSITIONAL_OR_KEYWORD]
        names = {p.name for p in listed}
        more = [option for name, option in options.items() if name not in names]
        cls.__signature__ = inspect.Signature([*listed, *more])  # type: ignore[attr-defined]
        cls.__doc__ = help_text.documented(
            vars(cls)["__doc__"], cls.function.__name__, cls.defaults
        )

    def __init__(self, **options: Any) -> None:
        super().__init__()
        if not hasattr(self, "function"):
            raise TypeError(
                f"{type(self).__name__}: expected one of the losses, such as SoftF1Loss; this is "
                "their common type, for isinstance and for annotations"
            )
        keywords.check_known(options, list(self.defaults), type(self))
        for name, value in {**self.defaults, **options}.items():
            setattr(self, name, keywords.as_plain(value))
        self._first_batch = FirstBatch()
        ours = type(self).function.__module__.partition(".")[0] == "customloss"
        if ours and not is_compiling():
            self._try_options(type(self).function, options)
            self._warn_of_reduction()

    def __setattr__(self, name: str, value: Any) -> None:
        """Weights that are set later are checked and kept as those of the constructor are; a
        parametrization of torch looks after its own."""
        if name in _WEIGHTS and name in self.defaults and not hasattr(type(self), name):
            self._keep_weights(name, keywords.as_plain(value))
        else:
            super().__setattr__(name, value)

    def _keep_weights(self, name: str, value: Any) -> None:
        """Keeps weights as a buffer or a parameter, and one number for all classes as it is."""
        single = value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, (int, float))
        by_class = name in _CLASS_WEIGHTS or not single
        if value is not None and by_class:
            value = classes.as_tensor(name, value)
        if isinstance(value, Tensor):
            classes.check_values(name, value)
            value = classes.as_floating(value)
        for held in (self._parameters, self._buffers, vars(self)):
            held.pop(name, None)
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Tensor) or name in _CLASS_WEIGHTS:
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def _try_options(self, function: Callable[..., Tensor], given: Iterable[str]) -> None:
        """Raises what the first batch would raise about the options, on a pixel that is no data.
        Only those that were given are tried, so that no message is about others."""
        options: dict[str, Any] = {name: getattr(self, name) for name in given}
        asked = options.get("check_target")
        if asked is True or asked == ONCE:  # there is no batch yet
            del options["check_target"]
        group = options.get("process_group")
        if not isinstance(group, distributed.Adder):
            # a rank that is no member may still make the module, and "world" may be yet to come
            distributed.check_group(group)
        options["process_group"] = "local"
        count = 2
        for name in ("classes", "pointwise_classes"):
            counted = options.get(name)
            if isinstance(counted, Sequence) and all(isinstance(each, int) for each in counted):
                if any(number < 0 for number in counted):  # how many there are is not known yet
                    raise ValueError(f"{name}: expected numbers >= 0, got {min(counted)}")
                count = max([count, *(number + 1 for number in counted)])
        for name in _WEIGHTS:
            value = options.get(name)
            if isinstance(value, Tensor):  # it may be on a device that this check should not touch
                options[name] = [1.0] * len(value) if value.dim() else 1.0
                count = len(value) if value.dim() else count
        input = torch.zeros(1, count, device="cpu", dtype=torch.float64)
        shape = (1,) if count > 1 else (1, 1)  # a class number, where there are classes
        target = torch.zeros(shape, device="cpu", dtype=torch.uint8)
        with torch.no_grad(), choice.backend("auto"):
            function(input, target, None, **options)

    def _warn_of_reduction(self) -> None:
        """Of an option that asks to keep numbers of which the others leave one."""
        average, kept = getattr(self, "average", "none"), getattr(self, "samplewise", False)
        if getattr(self, "reduction", "") == "none" and average != "none" and not kept:
            compound = "pointwise_class_weight" in self.defaults  # it refuses average="none"
            per_class = "" if compound else "average='none' keeps one per class, "
            warn_caller(
                f"reduction: 'none' keeps nothing with average={average!r} and samplewise=False, "
                f"which leave one number: {per_class}samplewise=True keeps one per sample"
            )

    def options(self) -> dict[str, Any]:
        """The keyword arguments for the function."""
        return {name: getattr(self, name) for name in self.defaults}

    def _changed(self) -> dict[str, Any]:
        """The options that are not at their defaults: for those that are, a call has less to do.
        Until a batch was checked, that is asked for as well."""
        changed = {
            name: value
            for name, default in self._passed.items()
            if _differs(value := getattr(self, name), default)
        }
        # compiled code checks nothing, and must not depend on what ran before
        if self.check_target is not False and not is_compiling():
            asked = self._first_batch if self.check_target == ONCE else self.check_target
            if asked is not self._first_batch or not self._first_batch.done:
                changed["check_target"] = asked
        return changed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        *_, errors = more
        for name, value in (*self._buffers.items(), *self._parameters.items()):
            key = prefix + name
            if value is None:
                continue
            if key not in state_dict:
                state_dict[key] = self._of_peers(state_dict, prefix, name, value)
            if name in _WEIGHTS:
                saved = _by_class(state_dict[key], value)
                if saved is None:
                    errors.append(
                        f"{key}: expected one number per class, of shape [C], or [C, 1, 1] and "
                        f"[1, C, 1, 1] as torch broadcasts it, got {list(state_dict[key].shape)}"
                    )
                state_dict[key] = value if saved is None else saved
        super()._load_from_state_dict(state_dict, prefix, *more)

    def _of_peers(
        self, state_dict: dict[str, Any], prefix: str, name: str, value: Tensor
    ) -> Tensor:
        """Takes these weights out of the state dict of a peer; ``value`` if it has none."""
        others = _PEERS.get(name, ())
        last = _CLASS_WEIGHTS[getattr(self, _CLASS_WEIGHTS[1], None) is not None]
        if name == last == "class_weight":  # it is about both parts
            others = (*others, *_PEERS["pointwise_class_weight"])
        if name == last and "pos_weight" not in self.defaults:
            others = (*others, *_PEERS["pos_weight"])  # MONAI has the weights of its classes there
        keys = [prefix + other for other in others if prefix + other in state_dict]
        found: list[Tensor] = [state_dict[key] for key in keys]
        if not found or not all(torch.equal(found[0], each) for each in found):
            return value  # unlike ones stay there, as unexpected keys
        for key in keys:
            del state_dict[key]
        return found[0]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_first_batch"] = self._first_batch.done  # names no class of ours
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        first_batch = FirstBatch()
        first_batch.done = bool(state.get("_first_batch", False))
        state = {**state, "_first_batch": first_batch}
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """The loss at these options."""
        return type(self).function(input, target, weight, **options)

    @keywords.known_only
    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            input: logits (or probabilities, ``activation="none"``), ``[N]``, ``[N, C]`` or
                ``[N, C, *spatial]``; float32, float64, float16 or bfloat16.
            target: the shape of ``input``; bool, integer or float. Or class numbers,
                ``[N, *spatial]`` or ``[N, 1, *spatial]``.
            weight: per-element weight or mask, broadcastable to ``input``, or ``[N, *spatial]``.

        Returns:
            A scalar, or what ``average``, ``samplewise`` and ``reduction="none"`` keep; float64
            for float64 input, else float32.

        Raises:
            TypeError, ValueError: operands that do not fit; the message names the argument.
        """
        return self._loss(input, target, weight, self._changed())

    @keywords.known_only
    def with_sums(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, *, hard: bool = False
    ) -> tuple[Tensor, ConfusionSums | ExtendedSums]:
        """The loss, and the sums that it was made of, of one pass over the data.

        Args:
            input, target, weight: those of a call.
            hard: also count decisions, p > 1/2 or the largest of a softmax, in the same pass.

        Returns:
            ``(loss, sums)``. The loss has its gradient. The sums are those of
            :func:`customloss.confusion_sums` with the options of this loss, float64 and detached:
            tp, fp, fn and tn, and what else the loss needed. ``sums.hard`` are the counts if
            ``hard``. With a ``process_group`` they are those of all ranks; only with
            ``samplewise=True`` they are those of the samples of this rank.

        Raises:
            TypeError: the loss is part of an ``accumulate`` or a :class:`customloss.StreamingLoss`,
                whose sums are those of several batches.

        Example::

            criterion = customloss.DiceCELoss()
            loss, sums = criterion.with_sums(logits, target, hard=True)
            epoch = sums.hard + epoch  # 0 before the first batch
            f1 = customloss.scores.dice(*epoch)
        """
        options = self._changed()
        group = options.get("process_group")
        if isinstance(group, distributed.Adder):
            raise TypeError(
                "with_sums: expected a loss of single batches, got one whose sums are those of "
                "several: that of an accumulate or StreamingLoss"
            )
        if not isinstance(hard, bool):
            raise TypeError(f"hard: expected True or False, got {hard!r}")
        taker = SumsTaker(group, hard)
        loss = self._loss(input, target, weight, {**options, "process_group": taker})
        return loss, taker.named()

    def added_by(self, adder: object) -> Loss:
        """A copy with ``adder`` as process group; moving its buffers leaves this loss alone, its
        parameters are those of this loss."""
        twin = copy.copy(self)
        vars(twin)["process_group"] = adder  # nn.Module would make it a submodule
        return twin

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        changed = []
        for name, value in self.options().items():
            if isinstance(value, distributed.Adder):  # the module that holds this one
                continue
            if isinstance(value, Tensor):
                changed.append(f"{name}={_short(value)}")
            elif _differs(value, self.defaults[name]):
                long = isinstance(value, (tuple, list)) and len(value) > _MOST_SHOWN
                changed.append(f"{name}={_short(value) if long else repr(value)}")
        return ", ".join(changed)


# How many numbers of an option a repr shows; torch prints none of its buffers.
_MOST_SHOWN = 8


def _short(values: Tensor | Sequence[float]) -> str:
    """Numbers as a repr shows them: of many the first two, the last and how many there are. The
    shape, where there are none to read, as on the meta device."""
    if isinstance(values, Tensor) and not holds_values(values):
        return f"<{list(values.shape)} on {values.device}>"
    if isinstance(values, Tensor) and values.dim() == 0:
        return f"{values.item():.4g}"
    count = values.numel() if isinstance(values, Tensor) else len(values)
    many = count > _MOST_SHOWN
    ends = [values[0], values[1], values[-1]] if many else [*values]
    numbers = [each.item() if isinstance(each, Tensor) else each for each in ends]
    shown = [f"{each:.4g}" if isinstance(each, float) else str(each) for each in numbers]
    if not many:
        return f"[{', '.join(shown)}]"
    return f"[{shown[0]}, {shown[1]}, …, {shown[2]}] ({count})"


def _by_class(saved: Tensor, own: Tensor) -> Tensor | None:
    """Saved weights in the shape of ``own``, one number per class, where they may lie as torch
    broadcasts them along an input ``[N, C, *spatial]``. None if they mean something else; those of
    one dimension stay as they are, whatever their number."""
    shape = list(saved.shape)
    if len(shape) <= 1:
        return saved
    of_class = shape[1:] if shape[0] == 1 else shape
    fits = of_class[0] == own.numel() and all(size == 1 for size in of_class[1:])
    return saved.reshape(own.shape) if fits else None
