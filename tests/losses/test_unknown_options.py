"""An option that a loss does not list is refused, by its function and its module, with the cure."""

from __future__ import annotations

import inspect
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
            # custom_f1_loss has no further options, so Python itself refuses them
            with pytest.raises(TypeError, match=f"{option}: no option of |argument '{option}'"):
                of(**{option: value}) if of is module else of(X, T, **{option: value})


HINTS = {
    "dice_loss(X, T, beta=2.0)": "soft_f1_loss has beta",
    "dice_loss(X, T, alpha=0.3)": "tversky_loss has fp_weight",
    "tversky_loss(X, T, alpha=0.3)": "here it is fp_weight and fn_weight",
    "soft_f1_loss(X, T, bta=2.0)": r"did you mean beta\?",
    "DiceLoss(averge='micro')": r"did you mean average\?",
    "DiceLoss(sigmoid=True)": "activation='sigmoid'",
    "DiceCELoss(to_onehot_y=True)": "class numbers are read as they are",
    "DiceCELoss(lambda_ce=0.5)": "here it is ce_weight",
    "DiceLoss(weight=[1.0, 2.0])": "here it is class_weight",
    "DiceLoss(batch=True)": "samplewise, its opposite",
    "DiceLoss(smooth_nr=1.0)": r"here it is smooth=\(smooth_nr, smooth_dr\)",
    "DiceLoss(eps=1e-7)": r"smooth=\(0, eps\) for the denominator",
    "compound_loss(customloss.scores.dice, X, T, gama=2.0)": r"did you mean gamma\?",
}


@pytest.mark.parametrize("call", HINTS)
def test_the_cure(call: str) -> None:
    with pytest.raises(TypeError, match=HINTS[call]):
        eval(f"customloss.{call}", {"customloss": customloss, "X": X, "T": T})


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
