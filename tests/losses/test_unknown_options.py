"""An option that a loss does not list is refused, by its function and its module, with the cure."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import customloss
from customloss._spec import options as spec
from customloss.losses.base import LOSSES

X, T = torch.zeros(4, 3), torch.ones(4, 3)
# Every option of any loss, at a value that some loss takes.
EVERY: dict[str, Any] = {
    **{name: value for name, value in spec.FUNCTION.items() if value is not None},
    "beta": 1.0, "fp_weight": 0.5, "fn_weight": 0.5, "recall_weight": 0.5, "weighting": "square",
    "focal_gamma": 2.0, "dice_weight": 1.0, "ce_weight": 1.0, "pos_weight": 1.0,
    "amplification": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_signature_does_not_show_is_refused(name: str) -> None:
    """``dice_loss(..., beta=2.0)`` would otherwise be the loss of F2."""
    module = LOSSES[name]
    for of in (module.function, module):
        shown = inspect.signature(of).parameters
        for option, value in EVERY.items():
            if option in shown:
                continue
            with pytest.raises(TypeError, match=f"^{option}: no option of "):
                of(**{option: value}) if of is module else of(X, T, **{option: value})


def complaint(call: str, error: type[Exception]) -> str:
    """What the error of a call says."""
    names = {**vars(customloss), "customloss": customloss, "torch": torch, "X": X, "T": T}
    with pytest.raises(error) as caught:
        eval(call, names)
    return str(caught.value)


# A call, and what its error says. After the cure it names the help, and no list of options.
CURES = {
    "dice_loss(X, T, beta=2.0)": "soft_f1_loss has beta",
    "DiceLoss(beta=2.0)": "SoftF1Loss has beta",
    "dice_loss(X, T, alpha=0.3)": "tversky_loss has fp_weight",
    "tversky_loss(X, T, alpha=0.3)": "here it is fp_weight and fn_weight",
    "FocalLoss(alpha=0.25)": "here it is focal_alpha",
    "DiceFocalLoss(alpha=0.25)": "here it is focal_alpha",
    "FocalTverskyLoss(gamma=0.75)": "here it is exponent, the power itself: 1/gamma of the paper",
    "ExpLogDiceLoss(gamma=0.3)": "here it is exponent;",
    "FocalLoss(gamma=2.0)": "here it is focal_gamma",
    "soft_f1_loss(X, T, bta=2.0)": "did you mean beta?",
    "DiceLoss(averge='micro')": "did you mean average?",
    "DiceLoss(sigmoid=True)": "here it is activation='sigmoid'",
    "DiceLoss(task='multiclass')": "here it is activation='sigmoid'",
    "DiceCELoss(to_onehot_y=True)": "class numbers are read as they are",
    "DiceCELoss(lambda_ce=0.5)": "here it is ce_weight",
    "DiceCELoss(pos_weight=2.0)": "a softmax has class_weight; DiceBCELoss and BCELoss have pos",
    "dice_ce_loss(X, T, pos_weight=2.0)": "dice_bce_loss and bce_loss have pos_weight",
    "CrossEntropyLoss(pos_weight=2.0)": "a softmax has class_weight; BCELoss has pos_weight",
    "DiceLoss(pos_weight=2.0)": "BCELoss and DiceBCELoss have pos_weight",
    "DiceCELoss(log_dice=True)": "here it is link='log'",
    "DiceCELoss(squared_pred=True)":
        'CompoundLoss("squared_dice", cross_entropy_weight=1, activation="softmax")',
    "DiceFocalLoss(jaccard=True)": 'CompoundLoss("jaccard", focal_weight=1, activation="sigmoid")',
    "dice_bce_loss(X, T, jaccard=True)": 'compound_loss("jaccard", cross_entropy_weight=1, act',
    "DiceLoss(squared_pred=True)": "a loss of its own, SquaredDiceLoss",
    "AnyLoss(L=73)": "here it is amplification",
    "SigmoidF1Loss(S=-1)": "here it is slope=-S",
    "SigmoidF1Loss(E=0)": "here it is shift=E",
    "GeneralizedDiceLoss(w_type='square')": "here it is weighting='square'",
    "DiceLoss(threshold=0.5)": "confusion_sums(..., hard=True)",
    "DiceLoss(zero_division=0)": "here it is absent",
    "DiceCELoss(soft_dice_kwargs={})": "give its entries as options",
    "DiceCELoss(ce_kwargs={})": "give its entries as options",
    "CrossEntropyLoss(activation='sigmoid')": "BCELoss is that of a sigmoid",
    "CrossEntropyLoss(average='macro')": "it is one number for all classes",
    "SigmoidF1Loss(activation='softmax')": "it is that of a sigmoid",
    "AnyLoss(activation='sigmoid')": "its input are probabilities",
    "DiceLoss(weight=[1.0, 2.0])": "here it is class_weight",
    "DiceLoss(mask=T)": "is an argument of the call",
    "DiceLoss(batch=True)": "samplewise, its opposite",
    "DiceLoss(smooth_nr=1.0)": "here it is smooth=(smooth_nr, smooth_dr)",
    "DiceLoss(eps=1e-7)": "smooth=(0, eps) for the denominator",
    "compound_loss(customloss.scores.dice, X, T, gama=2.0)": "did you mean gamma?",
    # parameters of what is given first
    "ConfusionLoss(scores.fbeta, beta=2.0)":
        "it is a parameter of the score 'fbeta': functools.partial(score, beta=2.0)",
    "CompoundLoss(scores.fbeta, beta=2.0)": "functools.partial(score, beta=2.0)",
    "confusion_loss('fbeta', X, T, beta=2.0)": "functools.partial(score, beta=2.0)",
    "compound_loss(scores.fbeta, X, T, beta=2.0)": "functools.partial(score, beta=2.0)",
    "loss('fbeta', beta=2.0)": 'score_options={"beta": 2.0}',
    "deep_supervision_loss(customloss.dice_ce_loss, [X], [T], smooth=1e-5)":
        "it is a parameter of the loss 'dice_ce_loss': functools.partial(loss, smooth=1e-05)",
    "DeepSupervision(customloss.DiceLoss(), smooth=1e-5)":
        "it is an option of the module: DiceLoss(smooth=1e-05)",
    # what is no loss
    "confusion_sums(X, T, softmax=True)": "here it is activation=",
    "confusion_sums(X, T, reduction='mean')": "sums are not averaged",
    "confusion_sums(X, T, hards=True)": "hard=True counts decisions",
    "confusion_sums(X, T, process_group='world')": "customloss.distributed.global_sums",
    "DeepSupervision(customloss.DiceLoss(), weight_factors=[1])": "here it is weights",
    "DeepSupervision(customloss.DiceLoss(), weight_mode='exp')": "here it is weights",
    "custom_f1_loss(X, T, sigmoid=True)": "its input are probabilities",
    # operands
    "DiceLoss()(preds=X, target=T)": "here it is input",
    "DiceLoss()(X, T, mask=T)": "here it is weight",
    "DiceLoss()(X, T, sample_weight=T)": "here it is weight",
    "DiceLoss()(X, T, average='micro')":
        "it is an option of the module: DiceLoss(average='micro')",
    "DiceLoss().with_sums(X, T, hards=True)": "hard=True counts decisions",
    "DeepSupervision(customloss.DiceLoss())([X], [T], mask=T)": "here it is weight",
    "dice_loss(preds=X, target=T)": "here it is input",
    "dice_loss(X, y_true=T)": "here it is target",
}  # fmt: skip


@pytest.mark.parametrize("call", CURES)
def test_the_cure_of_an_unknown_keyword(call: str) -> None:
    text = complaint(call, TypeError)
    assert CURES[call] in text
    assert re.search(r"help\(customloss\.[\w.]+\) lists the (options|arguments)$", text), text
    assert "logit_offset" not in text


def test_without_a_cure_all_are_listed() -> None:
    assert ", logit_offset, " in complaint("DiceLoss(nonsense=1)", TypeError)
    assert "there are input, target, weight" in complaint("DiceLoss()(X, T, zzz=1)", TypeError)
    text = complaint("customloss.losses.named_scores.with_parameters('mcc', scores.mcc, {'k': 1})",
                     TypeError)  # fmt: skip
    assert text.endswith("k: no option of the score 'mcc'; it has none")


def test_chance_is_no_cure() -> None:
    """``log_dice`` shares many letters with ``logit_scale``."""
    assert "did you mean" not in complaint("DiceLoss(scaling=1)", TypeError)


VALUES = {
    "DiceLoss(average=None)": (TypeError, "got None; 'none' keeps the classes"),
    "dice_loss(X, T, average=None)": (TypeError, "got None; 'none' keeps the classes"),
    "confusion_sums(X, T, average=None)": (TypeError, "got None; 'none' keeps the classes"),
    "DiceLoss(reduction=None)": (TypeError, "got None; 'none' keeps what the average leaves"),
    "DiceLoss(activation=None)": (TypeError, "'none' reads probabilities"),
    "DiceLoss(average='samples')": (ValueError, "samplewise=True, average='micro'"),
    "DiceLoss(average='binary')": (ValueError, "an input [N]"),
    "DiceLoss(average='marco')": (ValueError, "did you mean 'macro'?"),
    "CrossEntropyLoss(reduction='none')": (ValueError, "torch.nn.functional.cross_entropy"),
    "CrossEntropyLoss(reduction=None)": (TypeError, "torch.nn.functional.cross_entropy"),
    "DiceCELoss(pointwise_reduction='none')": (ValueError, "torch.nn.functional.cross_entropy"),
    "DiceLoss(reduction='batchmean')": (ValueError, "'mean' is over what the average leaves"),
    "BCELoss(reduction='batchmean')": (ValueError, "'mean' is over all that counts, and the 'sum'"),
    "DiceCELoss(pointwise_reduction='batchmean')": (ValueError, "'mean' is over all that counts"),
    "BCELoss(activation='sigmod')": (ValueError, "did you mean 'sigmoid'?"),
    "BCELoss(activation=None)": (TypeError, "('sigmoid', 'none'), got None; 'none' reads prob"),
    "BCELoss(activation='logits')": (ValueError, "; logits take 'sigmoid', probabilities 'none'"),
    "DiceLoss(activation='logits')": (ValueError, "; logits take 'sigmoid' or 'softmax', prob"),
}


@pytest.mark.parametrize("call", VALUES)
def test_the_cure_of_an_unknown_word(call: str) -> None:
    error, cure = VALUES[call]
    assert cure in complaint(call, error)


@pytest.mark.parametrize("loss", ["BCELoss", "DiceBCELoss", "WeightedLogLoss"])
def test_only_what_the_loss_accepts_is_meant(loss: str) -> None:
    text = complaint(f"{loss}(activation='softmx')", ValueError)
    assert text == "activation: expected one of ('sigmoid', 'none'), got 'softmx'"
    assert "did you mean 'softmax'?" in complaint("DiceLoss(activation='softmx')", ValueError)


OPERANDS = {
    "dice_loss([X, X], T)": "got list: customloss.DeepSupervision scores the outputs",
    "DiceLoss()({'aux': X, 'out': X}, T)": "got dict: pass input['out']",
    "dice_ce_loss({'logits': X}, T)": "got dict: pass input['logits']",
    "confusion_sums(X, [T, T])": "got list: pass torch.stack",
    "dice_loss(X, torch.ones(4, 3).numpy())": "got ndarray: torch.as_tensor(target)",
}


@pytest.mark.parametrize("call", OPERANDS)
def test_the_cure_of_what_is_no_tensor(call: str) -> None:
    text = complaint(call, TypeError)
    assert re.match("(input|target): expected a torch.Tensor, got ", text)
    assert OPERANDS[call] in text


# Options by position, as torch's losses take their weights.
POSITIONS = {
    "DiceLoss(1e-5)": "expected its options by name, as in DiceLoss(smooth=...), got 1e-05 by",
    "CrossEntropyLoss(torch.ones(3))": "CrossEntropyLoss(class_weight=...), got Tensor by position",
    "BCELoss([1.0, 2.0])": "BCELoss(class_weight=...), got [1.0, 2.0] by position",
    "DiceLoss('softmax')": "DiceLoss(activation=...), got 'softmax' by position",
    "CustomF1Loss(1.0, 255)": "got 255 by position",
    "ConfusionLoss('dice', 'micro')": "ConfusionLoss(activation=...), got 'micro' by position",
}


@pytest.mark.parametrize("call", POSITIONS)
def test_options_are_given_by_name(call: str) -> None:
    assert POSITIONS[call] in complaint(call, TypeError)


def test_a_constructor_of_ones_own_takes_what_it_says() -> None:
    class Sharp(customloss.DiceLoss):
        def __init__(self, power: float, *more: float) -> None:
            super().__init__(logit_scale=power)

    assert Sharp(2.0, 3.0).logit_scale == 2.0


NAMES = {
    "F1Loss": "SoftF1Loss", "IoULoss": "JaccardLoss", "FBetaLoss": "SoftF1Loss",
    "BCEWithLogitsLoss": "BCELoss", "LovaszLoss": "JaccardLoss", "f1_loss": "soft_f1_loss",
    "diceloss": "dice_loss",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_package(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"'{name}'; did you mean '{NAMES[name]}'\?$"):
        getattr(customloss, name)


def test_names_of_scores() -> None:
    for other, ours in (("f1", "dice"), ("iou", "jaccard"), ("f_score", "fbeta")):
        with pytest.raises(AttributeError, match=f"'{other}'; here it is {ours}$"):
            getattr(customloss.scores, other)
    for module in (customloss, customloss.scores):
        assert not hasattr(module, "nonsense")


def test_sums_that_were_not_asked_for() -> None:
    sums = customloss.confusion_sums(X, T)
    for name, word in (("hard", "hard"), ("p2", "squares"), ("log_loss_pos", "log_loss")):
        with pytest.raises(AttributeError, match=f"'{name}': pass {word}=True to confusion_sums"):
            getattr(sums, name)
    assert not hasattr(sums, "nonsense")


def test_the_words_of_others_are_loaded_by_errors_alone() -> None:
    code = (
        "import sys, torch, customloss as c; x = torch.zeros(4, 3); c.DiceLoss()(x, x)\n"
        "print('customloss._spec.unknown' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_the_exponent_of_a_focal_loss_is_named() -> None:
    """``gamma`` is the exponent of ``link``, and other libraries call the focal one so."""
    refused = pytest.raises(ValueError, match=r"^gamma: .*focal_gamma")
    for gamma in (2.0, 1.0):  # 1 is the default, but it was meant for the focal loss, which has 2
        for call in (
            lambda gamma: customloss.DiceFocalLoss(gamma=gamma),
            lambda gamma: customloss.dice_focal_loss(X, T, gamma=gamma, link="log"),
            lambda gamma: customloss.CompoundLoss("dice", focal_weight=1.0, gamma=gamma),
        ):
            with refused:
                call(gamma)
    for focal in (customloss.DiceFocalLoss, customloss.FocalLoss):
        with pytest.raises((TypeError, ValueError), match=r"^gamma: .*focal_gamma"):
            focal(gamma=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^gamma: expected 1 unless link='focal'.*[^a-z_]$"):
        customloss.SoftF1Loss(gamma=2.0)
    own = customloss.DiceFocalLoss(link="focal", gamma=2.0, focal_gamma=1.0)(X, T)
    parts = customloss.dice_loss(X, T, link="focal", gamma=2.0)
    parts = parts + customloss.focal_loss(X, T, focal_gamma=1.0)
    torch.testing.assert_close(own, parts)
    torch.testing.assert_close(
        customloss.DiceFocalLoss(link="focal", gamma=1.0)(X, T), customloss.DiceFocalLoss()(X, T)
    )
