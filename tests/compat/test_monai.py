"""The drop-ins for MONAI's losses have its numbers, warts included, over drawn option sets."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
from typing import Any

import pytest
import torch
from drop_in_cases import Drawn, compared
from torch import Tensor

from customloss.compat import monai as ours

peers = pytest.importorskip("monai.losses")
unified = pytest.importorskip("monai.losses.unified_focal_loss")

CLASSES = [name for name in ours.__all__ if name not in ("MaskedLoss", "DeepSupervisionLoss")]
# those whose peer rounds float64 to float32 somewhere
ROUNDED = ("Focal", "Generalized", "Masked")


def peer_of(name: str) -> Any:
    return getattr(peers, name, None) or getattr(unified, name)


def classes_of(chance: random.Random, options: dict[str, Any], channels: int) -> int:
    """How many classes are scored."""
    return channels if options.get("include_background", True) or channels == 1 else channels - 1


def weights(chance: random.Random, count: int) -> Any:
    return chance.choice((None, None, 0.7, [round(chance.random(), 3) for _ in range(count)]))


def options_of_score(chance: random.Random) -> dict[str, Any]:
    """What all losses of a score have."""
    activation = chance.choice(("sigmoid", "softmax", "other_act", None))
    options: dict[str, Any] = {
        "include_background": chance.random() < 0.6, "to_onehot_y": chance.random() < 0.5,
        "reduction": chance.choice(("mean", "sum", "none")), "batch": chance.random() < 0.4,
        "smooth_nr": chance.choice((1e-5, 0.0, 1.0)), "smooth_dr": chance.choice((1e-5, 1.0)),
    }  # fmt: skip
    if activation is not None:
        options[activation] = torch.sigmoid if activation == "other_act" else True
    return options


def more_options(
    chance: random.Random, name: str, options: dict[str, Any], channels: int, dtype: torch.dtype
) -> None:
    """What this loss has beside them."""
    scored = classes_of(chance, options, channels)
    forms = {"squared_pred": chance.random() < 0.3, "jaccard": chance.random() < 0.3}
    if name in ("DiceLoss", "MaskedDiceLoss"):
        options |= forms | {"weight": weights(chance, scored)}
    if name == "TverskyLoss":
        options |= {"alpha": chance.choice((0.3, 0.5, 1.0)), "beta": chance.choice((0.7, 0.0))}
    if name in ("DiceLoss", "TverskyLoss", "GeneralizedDiceLoss", "MaskedDiceLoss"):
        options["soft_label"] = chance.random() < 0.3
    if name in ("DiceLoss", "TverskyLoss"):
        options["ignore_index"] = chance.choice((None, None, 0, 1, 255, -1))
    if name.startswith("Generalized"):
        options["w_type"] = chance.choice(("square", "simple", "uniform"))
    if name == "DiceCELoss":
        by_class = torch.tensor([chance.random() for _ in range(channels)], dtype=dtype)
        options |= forms | {
            "weight": chance.choice((None, None, by_class)), "lambda_ce": 0.5,
            "label_smoothing": chance.choice((0.0, 0.1)), "lambda_dice": chance.choice((1.0, 0.5)),
        }  # fmt: skip
    if name == "DiceFocalLoss":
        options |= forms | {"alpha": chance.choice((None, 0.3)), "lambda_focal": 0.5}
    if name in ("DiceFocalLoss", "GeneralizedDiceFocalLoss"):
        options |= {"gamma": chance.choice((2.0, 1.0, 0.5, 0.0)), "weight": weights(chance, scored)}


def of_focal(chance: random.Random, channels: int) -> dict[str, Any]:
    background = chance.random() < 0.6
    scored = channels if background or channels == 1 else channels - 1
    return {
        "include_background": background, "to_onehot_y": chance.random() < 0.5,
        "gamma": chance.choice((2.0, 1.0, 0.5, 0.0)), "use_softmax": chance.random() < 0.5,
        "reduction": chance.choice(("mean", "sum")), "weight": weights(chance, scored),
        "alpha": chance.choice((None, 0.3, [chance.random() for _ in range(scored)])),
        "ignore_index": chance.choice((None, None, 0, 1, 255, -1)),
    }  # fmt: skip


def of_asymmetric(chance: random.Random, name: str) -> dict[str, Any]:
    options = {
        "to_onehot_y": chance.random() < 0.5, "delta": chance.choice((0.7, 0.5)),
        "gamma": chance.choice((0.75, 0.5)), "reduction": chance.choice(("mean", "sum")),
        "ignore_index": chance.choice((None, 0, 1, 255)),
    }  # fmt: skip
    return options | ({"weight": 0.3} if name == "AsymmetricUnifiedFocalLoss" else {})


def target_of(
    chance: random.Random, options: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Class numbers, a mask or a one-hot target, with pixels that are ignored."""
    batch, channels, *spatial = shape
    labels = torch.randint(0, max(channels, 2), (batch, 1, *spatial))
    ignored = options.get("ignore_index")
    holes = torch.rand(labels.shape) < 0.2
    if channels == 1 or options["to_onehot_y"]:
        if ignored is not None and not 0 <= ignored < channels:
            labels[holes] = ignored
        return labels if channels > 1 and chance.random() < 0.5 else labels.to(dtype)
    target = torch.nn.functional.one_hot(labels[:, 0], channels).movedim(-1, 1).to(dtype)
    if ignored is not None:
        target = target * ~holes
    return target.contiguous()


def drawing(name: str) -> Any:
    """Draws calls of a loss."""

    def draw(chance: random.Random) -> Drawn:
        spatial = chance.choice(((5,), (4, 3), (3, 2, 4)))
        channels = chance.choice((1, 2, 3, 4))
        dtype = chance.choice((torch.float32, torch.float64))
        takes_probabilities = name.startswith("Asymmetric")
        if takes_probabilities:
            spatial, channels = spatial if len(spatial) > 1 else (4, 3), 2
            options = of_asymmetric(chance, name)
        elif name == "FocalLoss":
            options = of_focal(chance, channels)
        else:
            options = options_of_score(chance)
            more_options(chance, name, options, channels, dtype)
            activations = {"sigmoid", "softmax", "other_act"} & options.keys()
            # logits that are scored as they are mean nothing, and cancel
            takes_probabilities = not activations or ("softmax" in options and channels == 1)
        shape = (chance.choice((1, 2, 3)), channels, *spatial)
        input = torch.randn(shape, dtype=dtype)
        input = input.sigmoid() if takes_probabilities else input
        target = target_of(chance, options, shape, dtype)
        operands: tuple[Any, ...] = (target,)
        if name == "MaskedDiceLoss":
            mask = torch.rand(chance.choice((1, shape[0])), 1, *spatial) > 0.3
            operands = (target, mask if chance.random() < 0.5 else mask.to(dtype))
        exact = dtype == torch.float64 and not any(word in name for word in ROUNDED)
        exact = exact and not (options.get("squared_pred") or options.get("soft_label"))
        return Drawn(options, input, operands, 1e-10 if exact else 1e-5)

    return draw


@pytest.mark.parametrize("name", CLASSES)
def test_a_drop_in_has_the_numbers_of_its_peer(name: str) -> None:
    outcome = compared(getattr(ours, name), peer_of(name), drawing(name), 60, seed=1)
    assert outcome.accepted == 60
    assert not outcome.differences, outcome.differences[0]


@pytest.mark.more
@pytest.mark.parametrize("name", CLASSES)
def test_a_drop_in_has_the_numbers_of_its_peer_over_many_options(name: str) -> None:
    outcome = compared(getattr(ours, name), peer_of(name), drawing(name), 1500, seed=2)
    assert outcome.accepted == 1500
    assert not outcome.differences, outcome.differences[0]


@pytest.mark.parametrize("name", ours.__all__)
def test_a_constructor_has_the_words_of_its_peer(name: str) -> None:
    expected = inspect.signature(peer_of(name)).parameters
    found = dict(inspect.signature(getattr(ours, name)).parameters)
    assert found.pop("strict").default is True
    assert list(found) == list(expected)
    for word, parameter in expected.items():
        default = getattr(parameter.default, "value", parameter.default)  # of an enumeration
        assert found[word].default == default, word
        assert found[word].kind == parameter.kind, word


@pytest.mark.parametrize("name", CLASSES)
def test_a_drop_in_can_be_copied_and_saved(name: str) -> None:
    criterion = getattr(ours, name)()
    probabilities = torch.rand(2, 2, 4, 4)
    target = torch.nn.functional.one_hot(torch.randint(0, 2, (2, 4, 4)), 2).movedim(-1, 1).float()
    expected = criterion(probabilities, target, *_mask(name))
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(twin(probabilities, target, *_mask(name)), expected)


def _mask(name: str) -> tuple[Tensor, ...]:
    return (torch.ones(2, 1, 4, 4, dtype=torch.bool),) if name == "MaskedDiceLoss" else ()


def test_weights_are_in_the_state_dict_and_are_read_again_when_they_change() -> None:
    first = ours.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.tensor([1.0, 2.0, 3.0]))
    other = ours.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.tensor([3.0, 0.5, 1.0]))
    x, t = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    before = first(x, t)
    first.load_state_dict(other.state_dict())
    assert before != other(x, t)
    torch.testing.assert_close(first(x, t), other(x, t))
    peer = peers.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.ones(3))
    peer.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(x, t), peer(x, t))


def test_an_attribute_that_is_set_later_counts() -> None:
    x, t = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    criterion = ours.DiceLoss(softmax=True, to_onehot_y=True)
    criterion.include_background = False
    peer = peers.DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    torch.testing.assert_close(criterion(x, t), peer(x, t))


def test_a_tensor_of_monai_is_taken() -> None:
    from monai.data import MetaTensor

    x, t = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5)).float()
    criterion = ours.DiceCELoss(softmax=True, to_onehot_y=True)
    input = x.clone().requires_grad_()
    loss = criterion(input, MetaTensor(t))
    assert type(loss) is Tensor
    loss.backward()
    torch.testing.assert_close(loss.detach(), criterion(x, t))


# ---- wrappers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_mode", ("exp", "same", "two"))
@pytest.mark.parametrize("sizes", ((16, 8, 4), (15, 8, 4)), ids=("halves", "other"))
def test_deep_supervision_has_the_numbers_of_its_peer(weight_mode: str, sizes: Any) -> None:
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, n, n, requires_grad=True) for n in sizes]
    target = torch.randint(0, 3, (2, 1, sizes[0], sizes[0])).float()
    losses = []
    for library in (ours, peers):
        loss = library.DiceCELoss(softmax=True, to_onehot_y=True)
        criterion = library.DeepSupervisionLoss(loss, weight_mode)
        losses.append(criterion(outputs, target))
        losses[-1].backward()
        assert criterion.get_weights(3) == peers.DeepSupervisionLoss(loss, weight_mode).get_weights(
            3
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert losses[0].dtype == losses[1].dtype
    single = ours.DeepSupervisionLoss(ours.DiceCELoss(softmax=True, to_onehot_y=True))
    torch.testing.assert_close(single(outputs[0], target), single([outputs[0]], target))


def test_labels_of_few_bits_are_not_interpolated_as_floats() -> None:
    outputs = [torch.randn(1, 3, n, n) for n in (8, 4)]
    target = torch.randint(0, 3, (1, 1, 8, 8))
    criterion = ours.DeepSupervisionLoss(ours.DiceCELoss(softmax=True, to_onehot_y=True))
    expected = criterion(outputs, target.float())
    torch.testing.assert_close(criterion(outputs, target.to(torch.uint8)), expected)


def test_a_mask_multiplies_what_a_loss_is_given() -> None:
    x, t = torch.randn(2, 3, 5, 5), torch.rand(2, 3, 5, 5).round()
    mask = (torch.rand(2, 1, 5, 5) > 0.4).float()
    found = ours.MaskedLoss(ours.DiceLoss, sigmoid=True)(x, t, mask)
    expected = peers.MaskedLoss(peers.DiceLoss, sigmoid=True)(x, t, mask)
    torch.testing.assert_close(found, expected)


# ---- warts, and what mends them ------------------------------------------------------------------


def test_a_dice_of_a_sigmoid_keeps_the_cross_entropy_of_a_softmax_unless_mended() -> None:
    x, t = torch.randn(2, 3, 5, 5), torch.rand(2, 3, 5, 5).round()
    dice = ours.DiceLoss(sigmoid=True)(x, t)
    of_softmax = torch.nn.functional.cross_entropy(x, t)
    of_sigmoid = torch.nn.functional.binary_cross_entropy_with_logits(x, t)
    torch.testing.assert_close(ours.DiceCELoss(sigmoid=True)(x, t), dice + of_softmax)
    mended = ours.DiceCELoss(sigmoid=True, strict=False)
    torch.testing.assert_close(mended(x, t), dice + of_sigmoid)


def test_a_focal_loss_beside_a_softmax_is_that_of_a_sigmoid_unless_mended() -> None:
    x, t = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    options = {"softmax": True, "to_onehot_y": True}
    dice = ours.DiceLoss(**options)(x, t)
    focal = ours.FocalLoss(to_onehot_y=True)(x, t)
    torch.testing.assert_close(ours.DiceFocalLoss(**options)(x, t), dice + focal)
    p_true = x.softmax(1).gather(1, t)
    focal = (-((1 - p_true) ** 2) * p_true.log()).mean()
    torch.testing.assert_close(ours.DiceFocalLoss(**options, strict=False)(x, t), dice + focal)


def test_outside_of_a_mask_nothing_counts_if_mended() -> None:
    x, t = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    mask = torch.rand(2, 1, 5, 5) > 0.4
    options: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    kept = ours.MaskedDiceLoss(**options)(x, t, mask)
    mended = ours.MaskedDiceLoss(**options, strict=False)(x, t, mask)
    assert kept > mended
    one_hot = torch.nn.functional.one_hot(t[:, 0], 3).movedim(-1, 1).float()
    torch.testing.assert_close(ours.MaskedDiceLoss(softmax=True)(x, one_hot, mask), mended)


def test_a_soft_target_of_a_focal_loss_has_the_form_that_the_docs_say() -> None:
    """MONAI's (1 - p_t)^γ is sigmoid(-x (2 t - 1))^γ, which is another number for soft targets."""
    x, t = torch.randn(2, 3, 5), torch.rand(2, 3, 5)
    p = x.sigmoid()
    wrong = t * (1 - p) + (1 - t) * p
    bce = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    torch.testing.assert_close(ours.FocalLoss()(x, t), (wrong**2 * bce).mean())
    assert abs(peers.FocalLoss()(x, t) - ours.FocalLoss()(x, t)) > 1e-3


def test_float16_is_right_where_its_peer_is_not() -> None:
    """MONAI adds float16 up in float16: a sum above 65504 is infinite."""
    x = torch.full((1, 1, 300, 300), 6.0, dtype=torch.float16)
    t = torch.ones(1, 1, 300, 300, dtype=torch.float16)
    loss = ours.DiceLoss(sigmoid=True)(x, t)
    expected = peers.DiceLoss(sigmoid=True)(x.double(), t.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-6)
    theirs = peers.DiceLoss(sigmoid=True)(x, t)
    assert not abs(theirs.double() - expected) < 1e-3


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("FocalLoss", "AsymmetricFocalLoss"))
def test_a_loss_for_every_voxel_is_refused(name: str) -> None:
    criterion = getattr(ours, name)(reduction="none")
    with pytest.raises(NotImplementedError, match=r"reduction='none'.*'mean' or 'sum'"):
        criterion(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3).round())


def test_torchscript_is_refused_with_the_way_that_there_is() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.compile"):
        ours.DiceLoss().__prepare_scriptable__()


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: ours.DiceLoss(sigmoid=True, softmax=True), "sigmoid, softmax, other_act"),
        (lambda: ours.DiceLoss(reduction="average"), "reduction: expected"),
        (lambda: ours.DiceCELoss(reduction="none"), "reduction: expected 'mean' or 'sum'"),
        (lambda: ours.DiceCELoss(lambda_ce=-1.0), "lambda_ce: expected a number >= 0"),
        (lambda: ours.GeneralizedDiceLoss(w_type="cubic"), "w_type: expected"),
        (
            lambda: ours.DiceLoss(softmax=True)(torch.randn(2, 3, 4), torch.zeros(2, 1, 4)),
            "target: expected the shape .* to_onehot_y=True",
        ),
        (
            lambda: ours.DiceLoss(weight=[1.0, 2.0])(torch.rand(2, 3, 4), torch.zeros(2, 3, 4)),
            "weight: expected 3 numbers >= 0",
        ),
    ),
)
def test_mistakes_are_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_alpha_that_is_ignored_is_told_as_its_peer_tells_it() -> None:
    input, target = torch.randn(1, 3, 3), torch.ones(1, 3, 3)
    options = {"include_background": False, "use_softmax": True, "alpha": 0.5}
    for kind in (peers.FocalLoss, ours.FocalLoss):
        with pytest.warns(UserWarning, match="scalar `alpha` ignored when using softmax"):
            kind(**options)(input, target)
