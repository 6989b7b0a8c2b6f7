"""Weights of classes that are given as parameters stay parameters, and learn, in every loss."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import customloss
from customloss.losses.base import LOSSES

INF, NAN = float("inf"), float("nan")
W = (0.5, 1.5, 2.0)
NAMES = ("class_weight", "pointwise_class_weight", "pos_weight")
# the losses that make one score of all classes take weights where they add the classes up
ONE_SCORE = ("generalized_dice", "multiclass_mcc")
CASES = [
    (name, option)
    for name, loss in LOSSES.items()
    for option in NAMES
    if option in loss.defaults and not (name in ONE_SCORE and option != "class_weight")
]
POOLED = [
    name
    for name, option in CASES
    if option == "class_weight" and "average" in LOSSES[name].defaults
]


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor(W, dtype=torch.float64))


def batch(module: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    if isinstance(module, customloss.AnyLoss):
        x = x.sigmoid()
    softmax = isinstance(module, customloss.CrossEntropyLoss) or (
        module.options().get("activation") == "softmax"
    )
    if softmax:
        return x, torch.randint(0, 3, (4, 5), generator=generator)
    return x, (torch.rand(4, 3, 5, generator=generator) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize(("name", "option"), CASES)
def test_they_learn(name: str, option: str, samplewise: bool) -> None:
    """Value and gradient are those of the same numbers as a list, by central differences."""
    more: dict[str, Any] = {"average": "micro"} if name in ONE_SCORE else {}
    if "samplewise" in LOSSES[name].defaults:
        more["samplewise"] = samplewise
    weight = parameter()
    module = customloss.loss(name, **{option: weight}, **more)
    assert getattr(module, option) is weight
    assert dict(module.named_parameters()) == {option: weight}
    assert {*module.state_dict()} == {option}
    data = batch(module)

    def at(numbers: Tensor) -> float:
        return float(customloss.loss(name, **{option: numbers.tolist()}, **more)(*data))

    loss = module(*data)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(at(weight.detach()), rel=1e-12)
    assert weight.grad is not None
    for k, step in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
        slope = (at(weight.detach() + step) - at(weight.detach() - step)) / 2e-6
        assert float(weight.grad[k]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("samplewise", [False, True])
@pytest.mark.parametrize("name", POOLED)
def test_they_learn_where_classes_are_pooled(name: str, samplewise: bool) -> None:
    """``average="micro"`` weighs the sums before they are added, those that divide too."""
    module = customloss.loss(name, average="micro")
    more = {"samplewise": samplewise, "average": "micro"}
    x, t = batch(module)
    if t.dim() < x.dim():
        t = torch.nn.functional.one_hot(t, 3).movedim(-1, 1)

    def loss(weight: Any) -> Tensor:
        return customloss.loss(name, class_weight=weight, **more)(x, t).sum()

    weight = torch.tensor(W, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(weight), weight)
    for k, step in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
        up, down = (loss((weight.detach() + sign * step).tolist()) for sign in (1, -1))
        assert float(found[k]) == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("options", [
    {"nan_targets": "ignore"}, {"ignore_index": 255}, {"weight": 0.0}, {"input": INF},
])  # fmt: skip
@pytest.mark.parametrize("name", ["dice", "dice_bce", "mcc"])
def test_a_weight_of_0_beside_elements_that_do_not_count(name: str, options: Any) -> None:
    """A transform finds the derivative that backward has: nothing of the class is lost with an
    element that does not count, nor with an infinite logit that has a finite loss."""
    x, w = torch.randn(4, 3, dtype=torch.float64), torch.ones(4, 3)
    t = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    options = dict(options)
    if "nan_targets" in options:
        t[0, 0] = NAN
    elif "ignore_index" in options:
        x[0, 0], t[0, 0], w[0, 0] = NAN, 255, INF
    elif "weight" in options:
        x[0, 0], t[0, 0], w[0, 0] = NAN, NAN, options.pop("weight")
    else:
        x[0, 0] = options.pop("input")  # and t is 1

    def loss(weight: Tensor) -> Tensor:
        function = getattr(customloss, f"{name}_loss")
        return function(x, t, w, class_weight=weight, **options)

    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(loss(weight), weight)
    assert wanted[0] != 0
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), wanted)


def test_they_are_saved_loaded_moved_and_copied() -> None:
    module = customloss.DiceCELoss(class_weight=parameter(), pointwise_class_weight=parameter())
    names = ["class_weight", "pointwise_class_weight"]
    assert [name for name, _ in module.named_parameters()] == names
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert [name for name, _ in twin.named_parameters()] == names
        assert twin.class_weight is not module.class_weight
    for assign in (False, True):
        saved = {"weight": torch.ones(3), "ce.weight": 3 * torch.ones(3)}
        module.load_state_dict(saved, assign=assign)
        assert isinstance(module.class_weight, nn.Parameter)
        assert module.class_weight.tolist() == [1, 1, 1]
        assert module.pointwise_class_weight.tolist() == [3, 3, 3]
    module.half()
    assert module.class_weight.dtype == torch.half
    assert isinstance(module.class_weight, nn.Parameter)


def test_of_a_stream_they_are_those_of_the_loss() -> None:
    criterion = customloss.DiceLoss(class_weight=parameter())
    stream = customloss.StreamingLoss(criterion)
    assert [*stream.parameters()] == [criterion.class_weight]
    stream(*batch(criterion)).backward()
    assert criterion.class_weight.grad.isfinite().all()
