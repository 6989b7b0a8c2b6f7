"""The losses of other libraries: MONAI, nnU-Net, segmentation_models_pytorch (smp) and kornia.

They are imported when they are built. Of nnU-Net and smp only the losses are imported: the packages
around those need networks, image readers and more, so that ``pip install --no-deps`` is enough.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from customloss._bench import formulas
from customloss._bench.cases import Case
from customloss._bench.formulas import (
    HALF_ONLY,
    LABELS_ONLY,
    Loss,
    Unavailable,
    accumulator,
    cheap_sigmoid,
    cheap_softmax,
    narrow,
    one_hot,
    require,
    with_beside,
)


class Library(NamedTuple):
    """``typed`` is its name on a command line, ``package`` what is imported."""

    family: str
    typed: str
    package: str
    install: str  # what pip is told


LIBRARIES = (
    Library("MONAI", "monai", "monai", "monai"),
    Library("nnU-Net", "nnunet", "nnunetv2", "--no-deps nnunetv2"),
    Library("smp", "smp", "segmentation_models_pytorch", "--no-deps segmentation-models-pytorch"),
    Library("kornia", "kornia", "kornia", "kornia"),
)

CLASS_DIM_ONLY = "needs a class dimension"
SPACE_ONLY = "needs spatial dimensions"
SAMPLEWISE_NEVER = "sums over the batch only"
SAMPLEWISE_ONLY = "a Dice per sample only"
FLOAT32_ONLY = "float32 only"
NO_FOCAL = "no focal loss"

# all that a form may answer where it does not apply
REASONS = formulas.REASONS | {
    CLASS_DIM_ONLY, SPACE_ONLY, SAMPLEWISE_NEVER, SAMPLEWISE_ONLY, FLOAT32_ONLY, NO_FOCAL,
}  # fmt: skip


def missing(family: str) -> str | None:
    """Why a family cannot race at all, and what to do; None if it can."""
    for library in LIBRARIES:
        if library.family == family and importlib.util.find_spec(library.package) is None:
            return _not_installed(library.package)
    return None


def versions() -> dict[str, str | None]:
    """The installed version of every library, or None."""
    found: dict[str, str | None] = {}
    for library in LIBRARIES:
        distribution = library.install.split()[-1]
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[distribution] = None
    return found


# ---- imports ---------------------------------------------------------------------------------


@contextmanager
def _bare_packages(name: str) -> Iterator[None]:
    """The packages above ``name`` without what their ``__init__`` would run, for a while.

    Finding the first package executes nothing, and the folders below it follow from its own. A
    package that is loaded already stays as it is.
    """
    parents = name.split(".")[:-1]
    bare: list[str] = []
    try:
        for depth in range(1, len(parents) + 1):
            package = ".".join(parents[:depth])
            if sys.modules.get(package) is None:
                module = ModuleType(package)
                module.__path__ = list(_folders(package))
                sys.modules[package] = module
                bare.append(package)
        yield
    finally:
        for package in bare:
            del sys.modules[package]


def _folders(package: str) -> list[str]:
    """Where the modules of a package are."""
    above, _, last = package.rpartition(".")
    if above:
        return [f"{folder}/{last}" for folder in sys.modules[above].__path__]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return list(spec.submodule_search_locations)


def import_alone(name: str) -> Any:
    """``package.sub.module`` without the ``__init__`` of any package above it.

    The module itself stays in ``sys.modules``, where ``torch.compile`` looks for it.
    """
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _bare_packages(name):
            return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(_what_to_install(name.split(".")[0], error)) from None


def import_whole(name: str) -> Any:
    """``name`` as usual."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(_what_to_install(name.split(".")[0], error)) from None


def _what_to_install(top: str, error: ImportError) -> str:
    missing = (error.name or top).split(".")[0]
    if missing == top:
        return _not_installed(top)
    return f"{top} needs {missing} (pip install {missing})"


def _not_installed(package: str) -> str:
    to_install = {library.package: library.install for library in LIBRARIES}
    return f"not installed (pip install {to_install.get(package, package)})"


# ---- MONAI -----------------------------------------------------------------------------------


def monai(case: Case) -> Loss:
    """Its own Dice, Dice+CE or Dice+focal, with sums over the batch unless they are per sample."""
    require(len(case.shape) > 1, CLASS_DIM_ONLY)
    losses = import_whole("monai.losses")
    options = {"batch": not case.samplewise, "smooth_nr": 0.0, "smooth_dr": 0.0}
    names = {"": "DiceLoss", "cross_entropy": "DiceCELoss", "focal": "DiceFocalLoss"}
    kind = getattr(losses, names[case.beside])
    if case.labels is None:
        masks: Loss = kind(sigmoid=True, **options)
        if not case.beside:
            return masks
        return lambda input, target: masks(input, target.to(input.dtype))
    loss: Loss = kind(softmax=True, to_onehot_y=True, **options)
    return lambda input, target: loss(input, target.unsqueeze(1))


def in_float32(build: Callable[[Case], Loss]) -> Callable[[Case], Loss]:
    """The same on ``input.float()``, for libraries that add up in the dtype of their input."""

    def form(case: Case) -> Loss:
        require(case.dtype.itemsize == 2, HALF_ONLY)
        loss = build(case)
        return lambda input, target: loss(input.float(), target)

    return form


# ---- nnU-Net ---------------------------------------------------------------------------------


def nnunet(case: Case, probabilities: Callable[[Tensor], Tensor] | None = None) -> Loss:
    """Its losses for class numbers and for regions. They return -Dice, and so get 1 added.

    It sums over dim 2 and up; of a matrix, where there is none, torch then sums over everything.
    Dice is of ``probabilities`` of the logits, if they are given.
    """
    require(len(case.shape) > 2, SPACE_ONLY)
    require(case.beside != "focal", NO_FOCAL)
    kind = import_alone("nnunetv2.training.loss.dice").MemoryEfficientSoftDiceLoss

    def dice(apply_nonlin: Callable[[Tensor], Tensor], **options: Any) -> Any:
        return kind(apply_nonlin=probabilities or apply_nonlin, **options)

    options = {
        "batch_dice": not case.samplewise, "do_bg": True, "smooth": 0.0, "ddp": False,
    }  # fmt: skip
    compound = import_alone("nnunetv2.training.loss.compound_losses") if case.beside else None
    if case.labels is None:
        if compound is not None:
            masks: Loss = compound.DC_and_BCE_loss({}, options, dice_class=dice)
        else:
            masks = dice(apply_nonlin=torch.sigmoid, **options)
        return lambda input, target: 1 + masks(input, target)
    if compound is not None:
        labels: Loss = compound.DC_and_CE_loss(options, {}, dice_class=dice)
    else:
        softmax = import_alone("nnunetv2.utilities.helpers").softmax_helper_dim1
        labels = dice(apply_nonlin=softmax, **options)
    return lambda input, target: 1 + labels(input, target.unsqueeze(1))


def nnunet_exp2(case: Case) -> Loss:
    """With probabilities from powers of two, which Inductor computes where they are needed."""
    return nnunet(case, cheap_sigmoid if case.labels is None else cheap_softmax)


# ---- smp -------------------------------------------------------------------------------------


def _smp_dice(case: Case, mode: str, from_logits: bool) -> Loss:
    require(len(case.shape) > 1, CLASS_DIM_ONLY)
    require(not case.samplewise, SAMPLEWISE_NEVER)
    module = import_alone("segmentation_models_pytorch.losses.dice")
    loss: Loss = module.DiceLoss(mode, from_logits=from_logits, smooth=0.0, eps=0.0)
    return loss


def _smp_of_logits(case: Case) -> Loss:
    if case.labels is None:
        return _smp_dice(case, "multilabel", True)
    loss = _smp_dice(case, "multiclass", True)
    return lambda input, target: loss(input, target.long())


def smp(case: Case) -> Loss:
    """Its Dice, which takes tp from an L1 norm.

    On the CPU ``torch.linalg.vector_norm`` adds up a float32 tensor in running sums of float32,
    which lose digits as they grow (``abs().sum()`` does not), so that the gate refuses it for large
    inputs. ``smp_in_float64`` is the form that is right.
    """
    return with_beside(_smp_of_logits(case), case)


def smp_in_float64(case: Case) -> Loss:
    """Dice of ``input.double()``; a loss beside it keeps the dtype of the input."""
    require(case.dtype == torch.float32, FLOAT32_ONLY)
    loss = _smp_of_logits(case)
    return with_beside(lambda input, target: loss(input.double(), target), case)


def smp_of_probabilities(case: Case) -> Loss:
    """Dice of a sigmoid, or of a softmax in float64 and a one-hot target, which torch computes."""
    loss = _smp_dice(case, "multilabel", False)

    def of_masks(input: Tensor, target: Tensor) -> Tensor:
        return loss(input.sigmoid(), target)

    def of_labels(input: Tensor, target: Tensor) -> Tensor:
        return loss(input.double().softmax(1), one_hot(target, input))

    return with_beside(of_masks if case.labels is None else of_labels, case)


def smp_exp2(case: Case) -> Loss:
    """Dice of probabilities from powers of two, in the dtype that is added up in."""
    loss = _smp_dice(case, "multilabel", False)

    def of_masks(input: Tensor, target: Tensor) -> Tensor:
        return loss(cheap_sigmoid(input.to(accumulator(input))), target)

    def of_labels(input: Tensor, target: Tensor) -> Tensor:
        p = cheap_softmax(input.to(accumulator(input)))
        return loss(p, one_hot(narrow(target), input))

    return with_beside(of_masks if case.labels is None else of_labels, case)


# ---- kornia ----------------------------------------------------------------------------------


def kornia(case: Case) -> Loss:
    """Its Dice of class numbers, which is per sample; of one sample that is the same."""
    require(case.labels is not None, LABELS_ONLY)
    require(len(case.shape) > 2, SPACE_ONLY)
    require(case.samplewise or case.shape[0] == 1, SAMPLEWISE_ONLY)
    dice_loss = import_whole("kornia.losses").dice_loss

    def loss(input: Tensor, target: Tensor) -> Tensor:
        # images only: further dims become rows, which is a view
        planes = input.reshape(*input.shape[:2], -1, input.shape[-1])
        labels = target.reshape(input.shape[0], -1, input.shape[-1]).long()
        value: Tensor = dice_loss(planes, labels, average="macro", eps=0.0)
        return value

    return with_beside(loss, case)
