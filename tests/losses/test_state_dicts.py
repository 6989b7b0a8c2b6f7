"""Class weights are in the state dict, and those of other libraries' checkpoints carry over."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customloss

W = torch.tensor([1.0, 2.0, 3.0])
OLD = [4.0, 5.0, 6.0]


class Model(nn.Module):
    """A network that keeps its loss."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.criterion = criterion


class NnUNetLoss(nn.Module):
    """The names in the state dict of nnU-Net's DC_and_CE_loss."""

    def __init__(self) -> None:
        super().__init__()
        self.ce = nn.CrossEntropyLoss(weight=W)


def monai(name: str, **options: Any) -> nn.Module:
    losses = pytest.importorskip("monai.losses")
    module: nn.Module = getattr(losses, name)(**options)
    return module


def weights(criterion: Any) -> Tensor:
    found: Tensor = criterion.class_weight
    return found


def test_they_are_saved_and_loaded() -> None:
    for make in (customloss.DiceLoss, customloss.MCCLoss, customloss.DiceCELoss):
        saved = Model(make(class_weight=W)).state_dict()
        assert {*saved} == {"head.weight", "head.bias", "criterion.class_weight"}
        saved = pickle.loads(pickle.dumps(saved))
        model = Model(make(class_weight=OLD))
        model.load_state_dict(saved)
        assert weights(model.criterion).tolist() == W.tolist()
    own = customloss.DiceBCELoss(class_weight=OLD, pos_weight=OLD)
    own.load_state_dict({"pos_weight": W})
    assert own.pos_weight.tolist() == W.tolist()
    assert weights(own).tolist() == OLD
    inner = customloss.StreamingLoss(customloss.DiceLoss(class_weight=W)).state_dict()
    assert inner["loss.class_weight"].tolist() == W.tolist()


@pytest.mark.parametrize("option", ["class_weight", "pointwise_class_weight", "pos_weight"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_have_room_for_fractions(option: str, dtype: torch.dtype) -> None:
    """Weights of integers have the dtype of a list, and what is loaded is not truncated."""
    fractions = [0.5, 1.5, 2.0]
    saved = customloss.DiceBCELoss(**{option: fractions}).state_dict()
    own = customloss.DiceBCELoss(**{option: torch.ones(3, dtype=dtype)})
    listed = customloss.DiceBCELoss(**{option: [1, 1, 1]})
    assert getattr(own, option).dtype == getattr(listed, option).dtype == torch.float64
    own.load_state_dict(saved)
    assert getattr(own, option).tolist() == fractions
    assert customloss.DiceBCELoss(**{option: W}).state_dict()[option].dtype == W.dtype


def test_one_integer_has_room_for_a_fraction() -> None:
    own = customloss.BCELoss(pos_weight=torch.tensor(2))
    own.load_state_dict({"pos_weight": torch.tensor(0.5)})
    assert own.pos_weight.item() == 0.5


@pytest.mark.parametrize("option", ["class_weight", "pointwise_class_weight", "pos_weight"])
def test_weights_that_are_set_later(option: str) -> None:
    """They are kept, checked and used as those that are given to the constructor."""
    np = pytest.importorskip("numpy")
    x, t = torch.randn(8, 3), torch.rand(8, 3) > 0.5
    own, start = customloss.DiceBCELoss(), {"none": None, "list": OLD, "parameter": nn.Parameter(W)}
    given = {
        "list": OLD, "array": np.array(OLD), "integers": torch.tensor([1, 2, 3]),
        "tensor": W, "parameter": nn.Parameter(W.clone()), "none": None,
    }  # fmt: skip
    for before in start.values():
        for value in given.values():
            made = customloss.DiceBCELoss(**{option: value})
            setattr(own, option, before)
            setattr(own, option, value)
            torch.testing.assert_close(own.state_dict(), made.state_dict(), rtol=0, atol=0)
            for kind in ("named_parameters", "named_buffers"):
                names = [[name for name, _ in getattr(each, kind)()] for each in (own, made)]
                assert names[0] == names[1]
            assert repr(own) == repr(made)
            torch.testing.assert_close(own(x, t), made(x, t))
    setattr(own, option, OLD)
    for wrong in ([1.0, -1.0], torch.ones(3, 1, 1), "balanced"):
        with pytest.raises((TypeError, ValueError), match=f"^{option}: expected"):
            setattr(own, option, wrong)
        assert getattr(own, option).tolist() == OLD


def test_a_copy_has_weights_of_its_own() -> None:
    own = customloss.DiceBCELoss(class_weight=OLD, pos_weight=nn.Parameter(W.clone()))
    twin = copy.copy(own)
    assert twin.class_weight is own.class_weight
    assert twin.pos_weight is own.pos_weight
    twin.class_weight, twin.pos_weight = W, None
    assert own.class_weight.tolist() == OLD
    assert {*own.state_dict()} == {"class_weight", "pos_weight"}


def test_one_weight_that_is_set_later() -> None:
    own = customloss.BCELoss(pos_weight=OLD)
    own.pos_weight = 3.0
    assert own.pos_weight == 3.0
    assert not own.state_dict()
    own.pos_weight = torch.tensor(3)
    assert own.state_dict() == {"pos_weight": torch.tensor(3.0)}


def test_weights_may_be_parametrized() -> None:
    """torch takes the parameter away and answers for its name with a property."""
    parametrize = torch.nn.utils.parametrize
    own = customloss.DiceLoss(class_weight=nn.Parameter(W.clone()))
    parametrize.register_parametrization(own, "class_weight", nn.Softplus(), unsafe=True)
    torch.testing.assert_close(own.class_weight, nn.functional.softplus(W))
    own(torch.randn(8, 3), torch.rand(8, 3) > 0.5).backward()
    assert own.parametrizations.class_weight.original.grad.any()
    with pytest.raises(RuntimeError, match="right_inverse"):
        own.class_weight = W  # what torch says of a parametrization that has no inverse


def test_an_old_state_dict_has_none() -> None:
    saved = Model(customloss.DiceLoss()).state_dict()
    assert {*saved} == {"head.weight", "head.bias"}
    for assign in (False, True):
        model = Model(customloss.DiceLoss(class_weight=OLD))
        model.load_state_dict(saved, assign=assign)
        assert weights(model.criterion).tolist() == OLD
    customloss.DiceLoss(class_weight=OLD).load_state_dict({})


def test_weights_that_the_loss_was_made_without() -> None:
    saved = Model(customloss.DiceLoss(class_weight=W)).state_dict()
    model = Model(customloss.DiceLoss())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*criterion.class_weight"):
        model.load_state_dict(saved)
    model.load_state_dict(saved, strict=False)
    assert model.criterion.class_weight is None
    with pytest.raises(RuntimeError, match=r"size mismatch for criterion.class_weight"):
        Model(customloss.DiceLoss(class_weight=[1.0, 2.0])).load_state_dict(saved)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.CrossEntropyLoss(weight=W),
        NnUNetLoss,
        lambda: monai("DiceCELoss", softmax=True, weight=W),
        lambda: monai("DiceFocalLoss", softmax=True, weight=W),
        lambda: monai("DiceLoss", softmax=True, weight=W),
    ],
    ids=["torch", "nnunet", "monai_ce", "monai_focal", "monai_dice"],
)
def test_those_of_others_carry_over(make: Any) -> None:
    saved = Model(make()).state_dict()
    assert len(saved) > 2
    before = {**saved}
    model = Model(customloss.DiceCELoss(class_weight=OLD))
    model.load_state_dict(saved)
    assert weights(model.criterion).tolist() == W.tolist()
    assert {*saved} == {*before}  # the state dict of the caller is as it was
    torch.testing.assert_close(model.head.weight, saved["head.weight"])


@pytest.mark.parametrize("name", ["ce.weight", "cross_entropy.weight", "focal.class_weight"])
def test_those_of_the_other_part(name: str) -> None:
    """Where the parts have weights of their own, each takes its own."""
    for given in ({}, {"class_weight": OLD}):
        own = customloss.DiceCELoss(pointwise_class_weight=OLD, **given)
        assert {*own.state_dict()} == {"pointwise_class_weight", *given}
        own.load_state_dict({name: W})
        assert own.pointwise_class_weight.tolist() == W.tolist()
        if given:
            assert weights(own).tolist() == OLD
            own.load_state_dict({name: W, "dice.class_weight": 2 * W})
            assert weights(own).tolist() == (2 * W).tolist()


def test_positives_of_others() -> None:
    saved = {"bce.pos_weight": W}
    own = customloss.DiceBCELoss(pos_weight=OLD)
    own.load_state_dict(saved)
    assert own.pos_weight.tolist() == W.tolist()


def test_unlike_ones_of_others_are_not_chosen_from() -> None:
    own = customloss.DiceCELoss(class_weight=OLD)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        own.load_state_dict({"weight": W, "ce.weight": 2 * W})
    assert weights(own).tolist() == OLD


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1), (1, 3), (1, 3, 1, 1), (1, 3, 1, 1, 1)])
@pytest.mark.parametrize("key", ["pos_weight", "bce.pos_weight"])
def test_positives_as_torch_broadcasts_them(key: str, shape: tuple[int, ...]) -> None:
    saved = Model(nn.BCEWithLogitsLoss(pos_weight=W.reshape(shape))).state_dict()
    saved[f"criterion.{key}"] = saved.pop("criterion.pos_weight")
    for assign in (False, True):
        model = Model(customloss.DiceBCELoss(pos_weight=OLD))
        model.load_state_dict(saved, assign=assign)
        assert model.criterion.pos_weight.tolist() == W.tolist()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 3, 1), (3, 1, 3), (2, 1, 1), (3, 2)])
def test_positives_of_something_else(shape: tuple[int, ...]) -> None:
    model = Model(customloss.DiceBCELoss(pos_weight=OLD))
    saved = Model(nn.BCEWithLogitsLoss(pos_weight=torch.ones(shape))).state_dict()
    words = r"criterion.pos_weight: expected one number per class.*\[C, 1, 1\].*got "
    with pytest.raises(RuntimeError, match=words + re.escape(str([*shape]))) as refused:
        model.load_state_dict(saved)
    assert "size mismatch" not in str(refused.value)
    assert model.criterion.pos_weight.tolist() == OLD


def test_one_positive_weight() -> None:
    for own in (torch.tensor(1.0), torch.ones(1)):
        model = Model(customloss.BCELoss(pos_weight=own))
        saved = Model(nn.BCEWithLogitsLoss(pos_weight=torch.full((1, 1, 1), 2.0))).state_dict()
        model.load_state_dict(saved)
        assert torch.equal(model.criterion.pos_weight, 2 * torch.ones_like(own))
