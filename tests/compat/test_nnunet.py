"""The drop-ins for nnU-Net's losses, against nnU-Net's own."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn

from customloss._bench.libraries import Unavailable, import_alone
from customloss.compat import nnunet

FLOAT32 = 1e-5  # also of float64, whose Dice nnU-Net rounds to float32


def theirs(name: str) -> Any:
    """A class or function of nnU-Net."""
    modules = {"softmax_helper_dim1": "utilities.helpers"}
    modules |= dict.fromkeys(("DC_and_CE_loss", "DC_and_BCE_loss"), "training.loss.compound_losses")
    modules["DeepSupervisionWrapper"] = "training.loss.deep_supervision"
    module = modules.get(name, "training.loss.dice")
    try:
        return getattr(import_alone(f"nnunetv2.{module}"), name)
    except Unavailable as error:
        pytest.skip(str(error))


def squeezed(x: Tensor) -> Tensor:
    """An ``apply_nonlin`` that nobody knows."""
    return x.tanh() * 0.5 + 0.5


def same(own: Any, peer: Any, x: Tensor, *batch: Any) -> None:
    """Loss and gradient of both are the same."""
    results = []
    for loss in (own, peer):
        input = x.detach().clone().requires_grad_()
        value = loss(input, *batch)
        results.append((value, *torch.autograd.grad(value, input)))
    (a, da), (b, db) = results
    assert a.shape == b.shape
    torch.testing.assert_close(a.double(), b.double(), rtol=FLOAT32, atol=FLOAT32)
    torch.testing.assert_close(da, db, rtol=FLOAT32, atol=FLOAT32 * max(1.0, db.abs().max().item()))


def same_parts(own: nn.Module, peer: nn.Module) -> None:
    """State dict and attributes have the same names."""
    assert set(own.state_dict()) == set(peer.state_dict())
    public = {name for name in vars(peer) if not name.startswith("_")} - {"training"}
    assert {name for name in public if not hasattr(own, name)} == set()


def drawn_labels(draw: random.Random, shape: torch.Size, ignored: int | None) -> Tensor:
    """Class numbers ``[B, 1, *spatial]``, some of which are ignored."""
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))
    if ignored is not None:
        labels[torch.rand(labels.shape) < draw.choice([0.3, 1.0])] = ignored
    dtypes = [torch.int64, torch.float32, torch.int16, torch.uint8]
    return labels.to(draw.choice(dtypes[: 3 if ignored == -1 else 4]))


def drawn_masks(draw: random.Random, shape: torch.Size) -> Tensor:
    """A mask for each class."""
    return (torch.rand(shape) < 0.4).to(draw.choice([torch.bool, torch.float32, torch.uint8]))


def dice_options(draw: random.Random, clip: bool = False) -> dict[str, Any]:
    options = {
        "batch_dice": draw.random() < 0.5, "do_bg": draw.random() < 0.5,
        "smooth": draw.choice([0.0, 1e-5, 1.0]), "ddp": False,
    }  # fmt: skip
    return {**options, "clip_tp": draw.choice([None, 1e-3, 2.0])} if clip else options


def of_dice(draw: random.Random, x: Tensor) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
    name = draw.choice(["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"])
    options = dice_options(draw, clip=name == "SoftDiceLoss")
    nonlin = draw.choice(
        [nnunet.softmax_helper_dim1, torch.sigmoid, nn.Softmax(1), nn.Sigmoid(), squeezed]
    )
    if x.shape[1] == 1:
        options["do_bg"] = True
    y = drawn_masks(draw, x.shape)
    if x.shape[1] > 1 and draw.random() < 0.6:
        y = drawn_labels(draw, x.shape, None)
    if draw.random() < 0.3 and y.shape[1] == 1:
        y = y[:, 0]
    mask = (torch.rand(x.shape[0], 1, *x.shape[2:]) < draw.choice([0.0, 0.7])).to(
        draw.choice([torch.bool, torch.float32])
    )
    batch = draw.choice([(y,), (y, mask)])
    return name, {"apply_nonlin": nonlin, **options}, batch


def of_ce(draw: random.Random, x: Tensor) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
    ce: dict[str, Any] = {"label_smoothing": draw.choice([0.0, 0.1])}
    if draw.random() < 0.4:
        ce["weight"] = torch.rand(x.shape[1], dtype=x.dtype) + 0.1
    if draw.random() < 0.3:
        ce["reduction"] = "sum"
    ignored = draw.choice([None, None, 255, -1, x.shape[1], 1])
    if ignored is None and draw.random() < 0.3:
        ce["ignore_index"] = draw.choice([0, 1, -100, 77])
    options = {
        "soft_dice_kwargs": dice_options(draw), "ce_kwargs": ce, "ignore_label": ignored,
        "weight_ce": draw.choice([1, 0.5, 0]), "weight_dice": draw.choice([1, 0.3]),
        "dice_class": draw.choice(["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"]),
    }  # fmt: skip
    if options["weight_ce"]:
        options["weight_dice"] = draw.choice([1, 0.3, 0])
    return "DC_and_CE_loss", options, (drawn_labels(draw, x.shape, ignored),)


def of_bce(draw: random.Random, x: Tensor) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
    bce: dict[str, Any] = {}
    if draw.random() < 0.4:
        shape = draw.choice([(x.shape[1], *[1] * (x.dim() - 2)), (1,), ()])
        bce["pos_weight"] = torch.rand(shape, dtype=x.dtype) + 0.5
    if draw.random() < 0.3:
        bce["reduction"] = "sum"
    ignoring = draw.random() < 0.5
    dice = dice_options(draw)
    dice["do_bg"] |= x.shape[1] == 1
    options = {
        "soft_dice_kwargs": dice, "bce_kwargs": bce, "use_ignore_label": ignoring,
        "weight_ce": draw.choice([1, 0.5, 0]), "weight_dice": draw.choice([1, 0.3]),
        "dice_class": draw.choice(["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"]),
    }  # fmt: skip
    if options["weight_ce"]:
        options["weight_dice"] = draw.choice([1, 0.3, 0])
    target = drawn_masks(draw, torch.Size((x.shape[0], x.shape[1] + ignoring, *x.shape[2:])))
    if ignoring and draw.random() < 0.2:
        target[:, -1] = 1
    return "DC_and_BCE_loss", options, (target,)


DRAWN = {"dice": of_dice, "ce": of_ce, "bce": of_bce}


def made(module: Any, name: str, options: dict[str, Any]) -> Any:
    """A loss of nnU-Net (``module`` None) or of ours."""
    options = copy.deepcopy(options)
    if "dice_class" in options:
        kind = options["dice_class"]
        options["dice_class"] = theirs(kind) if module is None else getattr(module, kind)
    return (theirs(name) if module is None else getattr(module, name))(**options)


def agreeing(kind: str, seed: int, trials: int) -> Counter[str]:
    """Draws calls, and counts what nnU-Net takes, and in what ours agrees."""
    draw = random.Random(f"{kind} {seed}")
    counts: Counter[str] = Counter()
    for _ in range(trials):
        spatial = draw.choice([(5,), (4, 3), (3, 2, 4)])
        channels = draw.choice([2, 3, 4] if kind == "ce" else [1, 2, 3, 4])
        x = torch.randn(draw.choice([1, 2, 3]), channels, *spatial,
                        dtype=draw.choice([torch.float32, torch.float64]))  # fmt: skip
        name, options, batch = DRAWN[kind](draw, x)
        peer = made(None, name, options)
        try:
            value = peer(x.clone().requires_grad_(), *batch)
            finite = torch.isfinite(torch.as_tensor(value)).item()
        except (RuntimeError, IndexError, ValueError):
            continue  # a call that nnU-Net does not take
        if not finite:
            continue
        own = made(nnunet, name, options)
        same_parts(own, peer)
        if isinstance(value, Tensor):
            same(own, peer, x, *batch)
        else:  # the number 0, where nothing counts
            assert own(x, *batch) == value == 0
        counts[name] += 1
    return counts


@pytest.mark.parametrize("kind", DRAWN)
def test_agrees(kind: str) -> None:
    counts = agreeing(kind, seed=0, trials=100)
    assert counts.total() >= 80  # so that the test says something


@pytest.mark.more
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", DRAWN)
def test_agrees_in_thousands(kind: str, seed: int) -> None:
    assert agreeing(kind, seed, trials=700).total() >= 560


def test_float64_is_kept() -> None:
    """nnU-Net rounds its sums to float32; ours are the formula to the last digits."""
    x, y = torch.randn(2, 3, 6, dtype=torch.float64), torch.randint(0, 3, (2, 1, 6))
    p, t = x.softmax(1), nn.functional.one_hot(y[:, 0], 3).movedim(-1, 1)
    expected = -((2 * (p * t).sum(2) + 1) / (p.sum(2) + t.sum(2) + 1)).mean()
    own = nnunet.SoftDiceLoss(nnunet.softmax_helper_dim1)(x, y)
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """nnU-Net multiplies in the dtype of the input; ours is the loss of what the input holds."""
    x, y = torch.randn(2, 3, 64, 64).to(dtype), torch.randint(0, 3, (2, 1, 64, 64))
    own = nnunet.MemoryEfficientSoftDiceLoss(nnunet.softmax_helper_dim1, batch_dice=True)
    torch.testing.assert_close(own(x, y), own(x.float(), y))


# ---- the nonlinearity ----------------------------------------------------------------------------


def calls_of(nonlin: Any) -> int:
    """How often a function is called by a loss that has it, made to look like the one given."""
    loss = nnunet.SoftDiceLoss(nonlin)
    loss(torch.randn(2, 3, 5), torch.randint(0, 3, (2, 1, 5)))
    return nonlin.calls


class Named:
    """A function of some name that counts its calls."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__qualname__, self.calls = module, name, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.softmax(1)


def test_the_softmax_of_nnunet_is_known_by_its_name() -> None:
    assert calls_of(Named("nnunetv2.utilities.helpers", "softmax_helper_dim1")) == 0


@pytest.mark.parametrize("name", ["softmax_helper_dim0", "softmax_helper_dim1"])
def test_another_function_is_called(name: str) -> None:
    assert calls_of(Named("elsewhere", name)) == 1


def test_the_softmax_of_nnunet() -> None:
    known = theirs("softmax_helper_dim1")
    x, y = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 1, 5))
    same(nnunet.SoftDiceLoss(known), theirs("SoftDiceLoss")(known, ddp=False), x, y)


# ---- the compounds -------------------------------------------------------------------------------


def compounds() -> list[tuple[str, dict[str, Any], Tensor]]:
    dice = {"smooth": 1e-5, "batch_dice": True, "ddp": False}
    labels = torch.randint(0, 3, (2, 1, 5))
    masks = torch.rand(2, 3, 5) < 0.5
    return [
        ("DC_and_CE_loss", {"soft_dice_kwargs": dice, "ce_kwargs": {}, "ignore_label": 1}, labels),
        ("DC_and_BCE_loss", {"soft_dice_kwargs": dice, "bce_kwargs": {}}, masks),
    ]


def passes(loss: Tensor) -> int:
    """How many nodes of the graph hand a gradient to a leaf."""
    nodes, found = {loss.grad_fn}, 0
    todo = list(nodes)
    while todo:
        for node, _ in todo.pop().next_functions:
            found += getattr(node, "variable", None) is not None
            if node is not None and node not in nodes:
                nodes.add(node)
                todo.append(node)
    return found


@pytest.mark.parametrize("case", [0, 1])
def test_one_pass(case: int) -> None:
    name, options, target = compounds()[case]
    x = torch.randn(2, 3, 5, requires_grad=True)
    assert passes(made(nnunet, name, options)(x, target)) == 1
    kind = theirs("SoftDiceLoss")
    assert passes(getattr(nnunet, name)(**options, dice_class=kind)(x, target)) == 2


@pytest.mark.parametrize("case", [0, 1])
def test_after_the_trainer_has_compiled_the_dice(case: int) -> None:
    """``loss.dc = torch.compile(loss.dc)``, as the trainer does."""
    name, options, target = compounds()[case]
    own, peer = made(nnunet, name, options), made(None, name, options)
    own.dc = torch.compile(own.dc, backend="eager")
    same(own, peer, torch.randn(2, 3, 5), target)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_with_the_dice_of_nnunet(case: int, compiled: bool) -> None:
    """Two passes, of which one is nnU-Net's."""
    name, options, target = compounds()[case]
    kind = theirs("MemoryEfficientSoftDiceLoss")
    peer = theirs(name)(**options, dice_class=kind)
    own = getattr(nnunet, name)(**options, dice_class=kind)
    if compiled:
        own.dc = torch.compile(own.dc, backend="eager")
    same(own, peer, torch.randn(2, 3, 5), target)


def test_a_dice_with_a_forward_of_its_own_is_called() -> None:
    class Twice(nnunet.SoftDiceLoss):
        def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
            return 2 * super().forward(x, y, loss_mask)

    x, y = torch.randn(2, 3, 5), torch.randint(0, 3, (2, 1, 5))
    dice = nnunet.SoftDiceLoss(nnunet.softmax_helper_dim1)
    own = nnunet.DC_and_CE_loss({}, {}, dice_class=Twice)
    torch.testing.assert_close(own(x, y), 2 * dice(x, y) + own.ce(x, y))


def test_the_arguments_are_left_alone() -> None:
    given: dict[str, Any] = {}
    nnunet.DC_and_CE_loss({}, given, ignore_label=3)
    nnunet.DC_and_BCE_loss(given, {}, use_ignore_label=True)
    assert given == {}


@pytest.mark.parametrize("case", [0, 1])
def test_copies_and_pickles(case: int) -> None:
    name, options, target = compounds()[case]
    weight = {"weight": torch.rand(3)} if case == 0 else {"pos_weight": torch.rand(3, 1)}
    options |= {"ce_kwargs" if case == 0 else "bce_kwargs": weight}
    loss, x = made(nnunet, name, options), torch.randn(2, 3, 5)
    expected = loss(x, target)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(x, target), expected, rtol=0, atol=0)
    peer = made(None, name, options)
    loss.load_state_dict(peer.state_dict())


@pytest.mark.parametrize("case", [0, 1])
def test_compiles_whole(case: int) -> None:
    name, options, target = compounds()[case]
    loss, x = made(nnunet, name, options), torch.randn(2, 3, 5)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, target), loss(x, target))


# ---- warts, and what mends them ------------------------------------------------------------------


def test_wart_nothing_in_a_group_at_smooth_0() -> None:
    x, y, nowhere = torch.randn(1, 3, 5), torch.randint(0, 3, (1, 1, 5)), torch.zeros(1, 1, 5)
    options = {"apply_nonlin": nnunet.softmax_helper_dim1, "smooth": 0.0}
    peer = theirs("SoftDiceLoss")(**options, ddp=False)
    assert peer(x, y, nowhere) == nnunet.SoftDiceLoss(**options)(x, y, nowhere) == 0
    assert nnunet.SoftDiceLoss(**options, strict=False)(x, y, nowhere) == -1


def test_wart_an_ignore_label_multiplies_the_cross_entropy() -> None:
    x, masks = torch.randn(2, 3, 5), (torch.rand(2, 3, 5) < 0.5).float()
    with_none = torch.cat([masks, torch.zeros(2, 1, 5)], 1)
    kinds: dict[str, Any] = {"bce_kwargs": {}, "soft_dice_kwargs": {"ddp": False}}
    plain = nnunet.DC_and_BCE_loss(**kinds, weight_dice=0)(x, masks)
    peer = theirs("DC_and_BCE_loss")(**kinds, weight_dice=0, use_ignore_label=True)
    kinds = {"bce_kwargs": {}, "soft_dice_kwargs": {}}
    kept = nnunet.DC_and_BCE_loss(**kinds, weight_dice=0, use_ignore_label=True)
    mended = nnunet.DC_and_BCE_loss(**kinds, weight_dice=0, use_ignore_label=True, strict=False)
    torch.testing.assert_close(kept(x, with_none), peer(x, with_none))
    torch.testing.assert_close(kept(x, with_none), 3 * plain)
    torch.testing.assert_close(mended(x, with_none), plain)


def test_strict_reaches_the_dice() -> None:
    assert not nnunet.DC_and_CE_loss({}, {}, strict=False).dc.strict


def shares() -> list[tuple[Tensor, Tensor]]:
    """What two ranks have: the second has few pixels that count."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 3, 40, generator=generator)
    y = torch.randint(0, 3, (2, 2, 1, 40), generator=generator)
    y[1, :, :, 4:] = 255
    return list(zip(x, y))


KINDS: tuple[dict[str, Any], dict[str, Any]] = ({"batch_dice": True, "smooth": 1e-5}, {})


def on_two_ranks() -> None:
    """The loss, and the gradient that DistributedDataParallel averages."""
    x, y = shares()[dist.get_rank()]
    own = nnunet.DC_and_CE_loss(*KINDS, ignore_label=255)
    same(own, theirs("DC_and_CE_loss")(*KINDS, ignore_label=255), x, y)
    own.dc = torch.compile(own.dc, backend="eager")
    same(own, theirs("DC_and_CE_loss")(*KINDS, ignore_label=255), x, y)
    alone = {**KINDS[0], "batch_dice": False}
    same(nnunet.DC_and_CE_loss(alone, {}, ignore_label=255),
         theirs("DC_and_CE_loss")(alone, {}, ignore_label=255), x, y)  # fmt: skip
    options = {"ignore_label": 255, "dice_class": theirs("SoftDiceLoss")}
    own, peer = (
        kind(*KINDS, **options) for kind in (nnunet.DC_and_CE_loss, theirs("DC_and_CE_loss"))
    )
    same(own, peer, x, y)
    masks = (y == torch.arange(3).view(1, 3, 1)).float()
    same(nnunet.DC_and_BCE_loss({}, KINDS[0]), theirs("DC_and_BCE_loss")({}, KINDS[0]), x, masks)


def mended_on_two_ranks() -> None:
    """With ``strict=False`` a rank has the loss of the whole batch, in both parts."""
    parts = shares()
    whole = nnunet.DC_and_CE_loss({**KINDS[0], "ddp": False}, {}, ignore_label=255)
    expected = whole(*(torch.cat(each) for each in zip(*parts)))
    for kind in (nnunet.SoftDiceLoss, theirs("SoftDiceLoss")):
        own = nnunet.DC_and_CE_loss(*KINDS, ignore_label=255, dice_class=kind, strict=False)
        if dist.get_world_size() > 1:
            torch.testing.assert_close(own(*parts[dist.get_rank()]), expected)


@pytest.mark.distributed
def test_over_ranks() -> None:
    theirs("SoftDiceLoss")
    ranks.run(2, on_two_ranks, mended_on_two_ranks)


# ---- deep supervision ----------------------------------------------------------------------------


def outputs(sizes: tuple[int, ...] = (8, 4, 2)) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [torch.randn(2, 3, n, requires_grad=True) for n in sizes]
    return inputs, [torch.randint(0, 3, (2, 1, n)).float() for n in sizes]


@pytest.mark.parametrize("factors", [(1, 0.5, 0.25), (0.7, 0.3, 0), (1, 1, 1, 1)])
def test_deep_supervision(factors: tuple[float, ...]) -> None:
    inputs, targets = outputs()
    peer = theirs("DeepSupervisionWrapper")(theirs("DC_and_CE_loss")({"ddp": False}, {}), factors)
    own = nnunet.DeepSupervisionWrapper(nnunet.DC_and_CE_loss({}, {}), factors)
    same_parts(own, peer)
    a, b = own(inputs, targets), peer(inputs, targets)
    torch.testing.assert_close(a, b)
    gradients = [torch.autograd.grad(each, inputs, allow_unused=True) for each in (a, b)]
    for one, other in zip(*gradients):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_deep_supervision_without_weights() -> None:
    """nnU-Net raises a TypeError for its own default."""
    inputs, targets = outputs()
    loss = nnunet.DC_and_CE_loss({}, {})
    with pytest.raises(TypeError):
        theirs("DeepSupervisionWrapper")(loss)
    expected = sum(loss(*each) for each in zip(inputs, targets))
    torch.testing.assert_close(nnunet.DeepSupervisionWrapper(loss)(inputs, targets), expected)


def test_wart_an_output_of_weight_0_has_no_gradient() -> None:
    inputs, targets = outputs()
    loss, factors = nnunet.DC_and_CE_loss({}, {}), (1, 0.5, 0)
    nnunet.DeepSupervisionWrapper(loss, factors)(inputs, targets).backward()
    assert inputs[2].grad is None
    nnunet.DeepSupervisionWrapper(loss, factors, strict=False)(inputs, targets).backward()
    assert inputs[2].grad is not None and not inputs[2].grad.any()


# ---- refused -------------------------------------------------------------------------------------


def test_top_k_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"worst pixels.*CompoundLoss"):
        nnunet.DC_and_topk_loss({}, {"k": 10})


@pytest.mark.parametrize("given", [{"reduction": "none"}, {"weight": torch.ones(3, 1)}])
def test_options_of_the_binary_cross_entropy(given: dict[str, Any]) -> None:
    loss = nnunet.DC_and_BCE_loss(given, {})
    with pytest.raises(NotImplementedError, match=r"every pixel|weight of bce_kwargs"):
        loss(torch.randn(2, 3, 5), torch.ones(2, 3, 5))


def test_a_pos_weight_in_space() -> None:
    loss = nnunet.DC_and_BCE_loss({"pos_weight": torch.ones(5)}, {})
    with pytest.raises(NotImplementedError, match=r"pos_weight of shape \[5\].*\[C, 1, 1\]"):
        loss(torch.randn(2, 3, 5), torch.ones(2, 3, 5))


def test_a_cross_entropy_for_every_pixel() -> None:
    loss = nnunet.DC_and_CE_loss({}, {"reduction": "none"})
    with pytest.raises(NotImplementedError, match="take 'mean' or 'sum'"):
        loss(torch.randn(2, 3, 5), torch.zeros(2, 1, 5))


def test_without_space() -> None:
    with pytest.raises(NotImplementedError, match="spatial dimensions"):
        nnunet.SoftDiceLoss()(torch.rand(2, 3), torch.rand(2, 3))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5)])
def test_targets_that_are_no_class_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"class numbers \[B, 1, \*spatial\]"):
        nnunet.DC_and_CE_loss({}, {})(torch.randn(2, 3, 5), torch.zeros(shape))


def test_the_wrong_number_of_masks() -> None:
    with pytest.raises(ValueError, match="expected 4 channels"):
        nnunet.DC_and_BCE_loss({}, {}, use_ignore_label=True)(
            torch.randn(2, 3, 5), torch.zeros(2, 3, 5)
        )


def test_deep_supervision_refuses() -> None:
    with pytest.raises(ValueError, match="one that is not 0"):
        nnunet.DeepSupervisionWrapper(nnunet.SoftDiceLoss(), (0, 0))
    with pytest.raises(TypeError, match="tuples or lists, got Tensor"):
        nnunet.DeepSupervisionWrapper(nnunet.SoftDiceLoss())(torch.rand(1, 2, 3))
    with pytest.raises(ValueError, match="expected 3, got 1"):
        nnunet.DeepSupervisionWrapper(nnunet.SoftDiceLoss(), (1,))(*outputs())


def test_torchscript_is_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match="script"),
        pytest.raises(NotImplementedError, match=r"torch\.compile"),
    ):
        torch.jit.script(nnunet.SoftDiceLoss())
