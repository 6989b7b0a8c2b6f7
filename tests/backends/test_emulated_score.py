"""The kernels of csrc/cuda/score.cuh, run on the CPU, agree with the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import build
import pytest
import sums_cases
import torch
from emulated import library, needs_a_compiler  # noqa: F401
from selection import covering
from sums_cases import CLASS_WEIGHTS, EVERY, LOGS, POINTWISE, How, assert_right
from torch import Tensor

from customloss import reference
from customloss._spec.arguments import Elements, Pointwise, Scoring
from customloss._spec.words import INPUT, TARGET

pytestmark = needs_a_compiler


@pytest.fixture
def emulation(library: build.Emulation) -> Iterator[build.Emulation]:  # noqa: F811
    torch.manual_seed(0)
    library.seed(1)
    before = library.launches()
    yield library
    assert library.launches() > before, "no kernel of ours was run"


# A slice has room for 1024 groups: whole rows of classes, or a segment of one row. A thread has up
# to four groups of it, up to 32 threads add up a row, and a second launch has at most 512 blocks.
SHAPES = {
    (1, 1): "one group",
    (2, 3): "a few",
    (1, 257): "one row, more groups than threads",
    (4, 256): "rows that fill a slice",
    (340, 3): "more rows than threads",
    (1, 1024): "the longest row of one slice",
    (1025, 1): "one row too many",
    (5, 600): "one row in every slice",
    (11, 300): "three rows in every slice but the last",
    (1, 1025): "a segment of one group",
    (3, 2500): "segments of several rows",
}
HOWS = (
    How(),
    How(average="none", reduction="none"),
    How(average="none", absent="skip", link="log"),
    How(average="weighted", absent="skip", reduction="sum", weights="some"),
    How(reduction="none", absent="skip", pointwise="cross-entropy"),
    How(reduction="none", pointwise="binary", weights="some", wide=False),
    How(average="weighted", pointwise="both", weights="first", link="focal"),
    How(pointwise="focal", absent="penalize", link="negative", wide=False),
    How(pointwise="no-score", reduction="sum"),
)


@covering
@pytest.mark.parametrize("how", HOWS, ids=lambda how: "-".join(map(str, how)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int], how: How, emulation: build.Emulation) -> None:
    assert_right(emulation.sums_score, how, shape)


@pytest.mark.parametrize("shape, how", [
    ((520, 513), How(average="weighted", pointwise="both", weights="some")),
    ((520, 513), How(reduction="none", absent="skip", pointwise="focal")),
    *(pytest.param((2, 270000), how, marks=pytest.mark.slow) for how in (
        How(average="weighted", absent="skip", pointwise="binary", weights="some"),
        How(reduction="none", pointwise="cross-entropy", weights="first"),
    )),
], ids=str)  # fmt: skip
def test_more_slices_than_blocks(
    shape: tuple[int, int], how: How, emulation: build.Emulation
) -> None:
    assert_right(emulation.sums_score, how, shape)


@covering
@pytest.mark.parametrize("weights", CLASS_WEIGHTS)
@pytest.mark.parametrize("pointwise", POINTWISE)
def test_options(pointwise: str, weights: str, emulation: build.Emulation) -> None:
    for how in sums_cases.every(weights, pointwise):
        assert_right(emulation.sums_score, how, (3 if how.per_sample else 1, 5))


@covering
@pytest.mark.parametrize("shape", [(4, 3), (1, 1100), (600, 2)], ids=str)
@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_a_class_without_weight_is_as_if_not_there(
    average: str, shape: tuple[int, int], emulation: build.Emulation
) -> None:
    how = How(average=average, absent="skip", weights="first")
    sums, weight = how.sums(shape), how.class_weight(shape[1])
    sums[:, :, 0] = math.nan
    loss, coefficients = emulation.sums_score(sums, weight, *how.arguments())
    assert weight is not None and torch.isfinite(loss)
    assert (coefficients[:, :, 0] == 0).all() and torch.isfinite(coefficients).all()
    rest = emulation.sums_score(
        sums[..., 1:].contiguous(), weight[:, 1:].contiguous(), *how.arguments()
    )
    torch.testing.assert_close(loss, rest[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(coefficients[..., 1:], rest[1], rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("shape", [(4, 3), (3, 1100), (600, 2)], ids=str)
def test_a_nan_is_seen(shape: tuple[int, int], emulation: build.Emulation) -> None:
    how = How(reduction="none", pointwise="cross-entropy", weights="first")
    sums, weight = how.sums(shape), how.class_weight(shape[1])
    sums[:, 1, 1] = math.nan
    loss, _ = emulation.sums_score(sums, weight, *how.arguments())
    assert torch.isnan(loss).nonzero().flatten().tolist() == [1]
    loss, _ = emulation.sums_score(sums, weight, *how._replace(reduction="sum").arguments())
    assert torch.isnan(loss)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1100)], ids=str)
def test_without_weight_the_score_is_not_seen(
    shape: tuple[int, int], emulation: build.Emulation
) -> None:
    how = How(pointwise="no-score")
    extra, per_sample, wide, *rest = how.arguments()
    size = len(Scoring._fields)
    broken = (math.nan, *rest[1:size], *rest[size:])
    sums = how.sums(shape)
    found = emulation.sums_score(sums, None, extra, per_sample, wide, *broken)
    expected = emulation.sums_score(sums, None, *how.arguments())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.isfinite(found[0]) and (found[1][0] == 0).all()


@covering
@pytest.mark.parametrize("shape", [(2, 3), (1500, 1), (2, 1100)], ids=str)
@pytest.mark.parametrize("pointwise", POINTWISE)
def test_nothing_counts(pointwise: str, shape: tuple[int, int], emulation: build.Emulation) -> None:
    how = How(absent="skip", pointwise=pointwise, weights="some")
    sums = torch.zeros_like(how.sums(shape))
    loss, coefficients = emulation.sums_score(sums, how.class_weight(shape[1]), *how.arguments())
    assert (loss == 0).all()
    if pointwise == "undivided":  # the slope of a sum that nothing divides does not depend on it
        row = reference.rows(how.arguments()[0]).index("focal_neg")
        coefficients = torch.cat((coefficients[:row], coefficients[row + 1 :]))
    assert (coefficients == 0).all()


def test_no_groups(library: build.Emulation) -> None:  # noqa: F811
    for shape, how in (
        ((0, 3), How(reduction="none")), ((2, 0), How(reduction="none", weights="some")),
        ((0, 3), How(pointwise="both")), ((2, 0), How(average="none", reduction="none")),
    ):  # fmt: skip
        found = library.sums_score(how.sums(shape), how.class_weight(shape[1]), *how.arguments())
        shapes = [loss.shape for loss in found]
        kept = shape if how.average == "none" else shape[:1]
        assert shapes == [kept if how.reduction == "none" else (), how.sums(shape).shape]
        assert not found[0].any()


@pytest.mark.parametrize("how, message", [
    (How(average="none", weights="some"), "have no weights"),
    (How(average="none", pointwise="focal"), "have no weights"),
], ids=str)  # fmt: skip
def test_kept_classes_have_no_weights(how: How, message: str, library: build.Emulation) -> None:  # noqa: F811
    with pytest.raises(RuntimeError, match=message):
        library.sums_score(how.sums((2, 3)), how.class_weight(3), *how.arguments())


def test_a_pointwise_loss_needs_its_sums(library: build.Emulation) -> None:  # noqa: F811
    sums = How().sums((2, 3))
    for pointwise in (Pointwise(1.0, 1.0), Pointwise(1.0, 0.0, 1.0), Pointwise(1.0, focal_pos=1.0),
                      Pointwise(1.0, focal_neg=1.0), Pointwise(1.0, support=1.0)):  # fmt: skip
        how = (*How().arguments()[: -len(pointwise)], *pointwise)
        with pytest.raises(RuntimeError, match="needs"):
            library.sums_score(sums, None, *how)


# ---- determinism, launches, memory -------------------------------------------------------------

DETERMINED = (
    ((6, 40), How(average="weighted", pointwise="both", weights="some")),
    ((1, 700), How(absent="skip", pointwise="binary")),
    ((900, 7), How(reduction="none", pointwise="focal", weights="some")),
    ((3, 2500), How(average="weighted", absent="skip", pointwise="cross-entropy")),
    ((3, 2500), How(reduction="none", weights="some")),
)  # fmt: skip


@pytest.mark.parametrize("shape, how", DETERMINED, ids=str)
def test_same_bits_in_any_order_of_threads(
    shape: tuple[int, int], how: How, emulation: build.Emulation
) -> None:
    sums, weight = how.sums(shape), how.class_weight(shape[1])
    found = []
    for seed in range(1, 6):
        emulation.seed(seed)
        found.append(emulation.sums_score(sums, weight, *how.arguments()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape, how", DETERMINED, ids=str)
def test_uninitialised_memory_is_never_read(
    shape: tuple[int, int], how: How, emulation: build.Emulation
) -> None:
    sums, weight = how.sums(shape), how.class_weight(shape[1])
    found = emulation.sums_score(sums, weight, *how.arguments())
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    filled = emulation.sums_score(sums, weight, *how.arguments())
    assert all(torch.equal(a, b) for a, b in zip(found, filled, strict=True))


@pytest.mark.parametrize("shape, launches", [
    ((1, 5), 1), ((8, 105), 1), ((1, 1024), 1), ((1024, 1), 1), ((1, 1025), 2), ((205, 5), 2),
], ids=str)  # fmt: skip
def test_launches(shape: tuple[int, int], launches: int, emulation: build.Emulation) -> None:
    how = How(average="weighted", pointwise="both", weights="some")
    before = emulation.launches()
    emulation.sums_score(how.sums(shape), how.class_weight(shape[1]), *how.arguments())
    assert emulation.launches() - before == launches


# ---- the gradient by the data ------------------------------------------------------------------


def gradients(
    emulation: build.Emulation, wrt: int, coefficients: Tensor, x: Tensor, t: Tensor, *how: Any
) -> tuple[Tensor, Tensor]:
    """Gradients by coefficients of few bits, and by these plus a large part common to four."""
    common = torch.randint(-(2**20), 2**20, coefficients.shape[1:]).double()
    more = coefficients.clone()
    more[:4] += common
    return (
        emulation.confusion_backward(None, coefficients, x, t, None, wrt, *how),
        emulation.confusion_backward(None, more, x, t, None, wrt, *how),
    )


@covering
@pytest.mark.parametrize("extra", [0, LOGS, EVERY])
@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 90), (1, 20, 70), (60, 20), (5, 300)], ids=str)
@pytest.mark.parametrize("kind", ["classes", "soft"])
def test_what_all_four_have_in_common_is_not_seen(
    kind: str, shape: tuple[int, ...], activation: int, extra: int, emulation: build.Emulation
) -> None:
    """Rounded to float32, ``common`` would change the last digits of the gradient."""
    x = torch.rand(shape) * 0.9 + 0.05
    t = torch.rand(shape)
    if kind == "classes":
        t = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))
    how = Elements(activation, 1.0, 0.0, False, True, extra=extra)
    sums = emulation.confusion(x, t, None, *how)
    coefficients = torch.randint(-(2**20), 2**20, sums.shape).double() / 2**20
    for wrt in (INPUT,) if kind == "classes" else (INPUT, TARGET):
        found, other = gradients(emulation, wrt, coefficients, x, t, *how)
        assert found.abs().max() > 0
        assert torch.equal(found, other)
