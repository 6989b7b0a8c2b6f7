"""The drop-ins of kornia's losses beside the installed kornia."""

import copy
import inspect
import pickle
import random

import pytest
import torch

import customloss.compat.kornia as ours

peer = pytest.importorskip("kornia.losses")

MODULES = ("DiceLoss", "TverskyLoss", "FocalLoss", "BinaryFocalLossWithLogits")
FUNCTIONS = {
    "DiceLoss": "dice_loss", "TverskyLoss": "tversky_loss", "FocalLoss": "focal_loss",
    "BinaryFocalLossWithLogits": "binary_focal_loss_with_logits",
}  # fmt: skip


def drawn(kind, draw):
    """Options, an input and a target that the peer accepts."""
    batch, classes = draw.choice((1, 2, 3)), draw.choice((2, 3, 5))
    dtype = draw.choice((torch.float32, torch.float64))
    pointwise = "Focal" in kind
    spatial = draw.choice(((), (5,), (3, 4), (2, 3, 2))) if pointwise else (4, 3)
    ignore = draw.choice(({}, {"ignore_index": None}, {"ignore_index": 255}, {"ignore_index": 0}))
    options = dict(ignore)
    weights = torch.rand(classes, dtype=dtype) + 0.1
    if draw.random() < 0.2:
        weights[draw.randrange(classes)] = 0
    if kind != "TverskyLoss" and draw.random() < 0.5:
        options["weight"] = draw.choice((weights, torch.nn.Parameter(weights.clone())))
    if kind == "DiceLoss":
        options |= {"average": draw.choice(("micro", "macro"))}
        options["eps"] = draw.choice((1e-8, 0.0, 1.0))
        if options["eps"] == 0 and isinstance(options.get("weight"), torch.nn.Parameter):
            # where a sample then has no class of a weight above 0, ours has no gradient by it
            options["weight"].data.clamp_(min=0.1)
    if kind == "TverskyLoss":
        options |= {"alpha": draw.choice((0.3, 0.5, 1.0)), "beta": draw.choice((0.5, 0.7, 1.0))}
        options["eps"] = draw.choice((1e-8, 0.0, 1.0))
    if pointwise:
        options["alpha"] = draw.choice((None, 0.25, 0.5, 1.0))
        options["reduction"] = draw.choice(("mean", "sum"))
        options["gamma"] = draw.choice((0.0, 0.5, 1.0, 2.0, 3.3))
    if kind == "BinaryFocalLossWithLogits":
        if draw.random() < 0.4:
            options["pos_weight"] = torch.rand(classes, dtype=dtype) * 3
        shape = (batch, classes, *spatial)
        target = draw.choice((torch.randint(0, 2, shape), torch.rand(shape, dtype=dtype)))
    else:
        shape = (batch, *spatial)
        target = torch.randint(0, draw.choice((classes, 2)), shape)
    index = options.get("ignore_index", -100)
    if index is not None and draw.random() < 0.7:
        target = target.masked_fill(torch.rand(shape) < 0.3, index)
        if draw.random() < 0.3:
            target[0] = index
    return options, torch.randn(batch, classes, *spatial, dtype=dtype) * 2, target


def result(criterion, input, target):
    input = input.clone().requires_grad_()
    loss = criterion(input, target)
    learned = list(criterion.parameters())
    return loss, torch.autograd.grad(loss, (input, *learned), allow_unused=True)


def agreeing(kind, seed):
    """One drawn set of options, of the module and of the function."""
    draw = random.Random(f"{kind} {seed}")
    torch.manual_seed(draw.randrange(1 << 30))
    options, input, target = drawn(kind, draw)
    theirs, mine = (getattr(each, kind)(**options) for each in (peer, ours))
    assert list(theirs.state_dict()) == list(mine.state_dict())
    expected, slopes = result(theirs, input, target)
    loss, gradients = result(mine, input, target)
    tolerance = 1e-10 if input.dtype == torch.float64 else 1e-5
    scale = max(1.0, expected.abs().item())
    where = {"atol": tolerance * scale, "rtol": tolerance}
    assert loss.shape == expected.shape and loss.dtype == expected.dtype
    torch.testing.assert_close(loss, expected, **where)
    for gradient, slope in zip(gradients, slopes):
        gradient, slope = (torch.zeros(()) if g is None else g for g in (gradient, slope))
        torch.testing.assert_close(*torch.broadcast_tensors(gradient.to(slope), slope), **where)
    function = getattr(ours, FUNCTIONS[kind])(input, target, **options)
    assert torch.equal(function, loss)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("part", range(3))
def test_numbers_and_gradients_are_those_of_kornia(kind, part):
    for seed in range(25 * part, 25 * (part + 1)):
        agreeing(kind, seed)


@pytest.mark.more
@pytest.mark.parametrize("kind", MODULES)
def test_thousands_of_option_sets_agree(kind):
    for seed in range(1000, 1600):
        agreeing(kind, seed)


def batch(classes=3, spatial=(4, 5)):
    torch.manual_seed(0)
    return torch.randn(2, classes, *spatial), torch.randint(0, classes, (2, *spatial))


@pytest.mark.parametrize("kind", MODULES)
def test_attributes_signatures_and_copies(kind):
    for of_peer, of_ours in (
        (getattr(peer, kind), getattr(ours, kind)),
        (getattr(peer, FUNCTIONS[kind]), getattr(ours, FUNCTIONS[kind])),
    ):
        expected = inspect.signature(of_peer).parameters
        found = dict(inspect.signature(of_ours).parameters)
        assert found.pop("strict").default is True
        assert [(p.name, p.default) for p in found.values()] == [
            (p.name, p.default) for p in expected.values()
        ]
    needed = {"TverskyLoss": (0.3, 0.7), "FocalLoss": (0.25,), "BinaryFocalLossWithLogits": (0.25,)}
    criterion = getattr(ours, kind)(*needed.get(kind, ()))
    theirs = getattr(peer, kind)(*needed.get(kind, ()))
    public = {n: v for n, v in vars(theirs).items() if not n.startswith("_") and n != "training"}
    assert {name: getattr(criterion, name) for name in public} == public
    assert repr(criterion) == repr(theirs)
    if "Focal" in kind:
        criterion.reduction = "mean"
    input, target = batch()
    if kind == "BinaryFocalLossWithLogits":
        target = torch.rand(input.shape)
    loss = criterion(input, target)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(input, target), loss)


def test_a_sample_of_ignored_pixels_is_loss_1_and_the_switch_leaves_it_out():
    input, target = batch()
    target[0] = -100
    for kind, options in (("dice_loss", {}), ("dice_loss", {"average": "macro"}),
                          ("tversky_loss", {"alpha": 0.3, "beta": 0.7})):  # fmt: skip
        one = getattr(peer, kind)(input[1:], target[1:], **options)
        strict = getattr(ours, kind)(input, target, **options)
        torch.testing.assert_close(strict, (1 + one) / 2)
        mended = getattr(ours, kind)(input, target, **options, strict=False)
        torch.testing.assert_close(mended, one)


def test_the_focal_mean_is_over_classes_too_and_the_switch_divides_by_what_counts():
    input, target = batch()
    target[0, :2] = -100
    cross_entropy = torch.nn.functional.cross_entropy(input, target)
    strict = ours.focal_loss(input, target, None, 0.0, "mean")
    torch.testing.assert_close(strict, cross_entropy * (target >= 0).float().mean() / 3)
    mended = ours.focal_loss(input, target, None, 0.0, "mean", strict=False)
    torch.testing.assert_close(mended, cross_entropy)
    dense = torch.rand(input.shape)
    dense[0] = -100
    mended = ours.binary_focal_loss_with_logits(input, dense, reduction="mean", strict=False)
    one = peer.binary_focal_loss_with_logits(input[1:], dense[1:], reduction="mean")
    torch.testing.assert_close(mended, one)


def test_other_integers_and_other_numbers_of_dimensions_are_taken():
    input, target = batch(spatial=(2, 3, 4))
    flat = peer.dice_loss(input.flatten(3), target.flatten(2), average="macro")
    torch.testing.assert_close(ours.dice_loss(input, target.to(torch.uint8), "macro"), flat)


def test_float16_is_summed_without_its_rounding():
    input, target = batch(spatial=(64, 64))
    half = input.half()
    exact = peer.dice_loss(half.double(), target, average="macro")
    loss = ours.dice_loss(half, target, average="macro")
    assert loss.dtype == torch.float32
    theirs = peer.dice_loss(half, target, average="macro")
    assert abs(loss.double() - exact) < 1e-6 < abs(theirs.double() - exact)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_what_is_refused():
    input, target = batch()
    with pytest.raises(NotImplementedError, match="reduction='none'"):
        ours.FocalLoss(0.25)(input, target)
    with pytest.raises(NotImplementedError, match="reduction='none'"):
        ours.BinaryFocalLossWithLogits(0.25)(input, torch.rand(input.shape))
    with pytest.raises(NotImplementedError, match="one class"):
        ours.DiceLoss()(input[:, :1], target)
    with pytest.raises(NotImplementedError, match="TorchScript"):
        torch.jit.script(ours.DiceLoss())
    with pytest.raises(ValueError, match="average"):
        ours.dice_loss(input, target, "weighted")
    with pytest.raises(ValueError, match="target"):
        ours.tversky_loss(input, target[:, None], 0.5, 0.5)
    with pytest.raises(ValueError, match="weight: expected 3 numbers"):
        ours.dice_loss(input, target, weight=torch.ones(2))
    with pytest.raises(ValueError, match="reduction"):
        ours.focal_loss(input, target, 0.5, reduction="median")
