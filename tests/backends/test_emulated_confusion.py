"""The element kernels of csrc/cuda, compiled for the CPU, agree with the reference.

The kernels run with their threads in any order, and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import build
import cases
import pytest
import torch
from cases import INPUT_DTYPES, OPTIONS, Case, short
from emulated import library, needs_a_compiler  # noqa: F401
from judge import assert_right, differentiated, soft_f1
from selection import covering

from customloss._backends import choice
from customloss._spec.arguments import Elements

pytestmark = needs_a_compiler


@pytest.fixture
def emulation(
    library: build.Emulation,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[build.Emulation]:
    """Makes the public operators run on the emulated kernels."""
    monkeypatch.setattr(choice, "primitives", lambda input: library.primitives)
    library.seed(1)
    before = library.launches()
    yield library
    library.wide_index(False)
    assert library.launches() > before, "no kernel of ours was run"


def elements(case: Case) -> int:
    return torch.Size(case.shape).numel()


# The edges of these kernels: a vector has 2, 4 or 8 elements; runs below two vectors are read
# element by element; at most a warp shares a group of up to 128 vectors; a unit has at least 1024
# vectors; tiles have 32 vectors of classes; rows are folded until they hold whole vectors.
SIZES = tuple(
    Case("cuda-" + "x".join(map(str, shape)), shape, reason)
    for shape, reason in (
        ((15,), "one below two vectors of 8"),
        ((16,), "two vectors of 8, four of 4"),
        ((17,), "two vectors of 8 and one element"),
        ((512,), "the largest small group of float32"),
        ((513,), "the smallest group that takes a block"),
        ((8200,), "more than one unit of float32"),
        ((3, 2, 19), "runs that start in the middle of a vector"),
        ((70, 8), "rows of whole vectors"),
        ((5, 9), "fewer rows than a fold"),
        ((67, 9), "folded rows and a remainder"),
        ((64, 12), "one and a half vectors of 8: two rows fold"),
        ((300, 9), "several bands of folded rows"),
        ((9, 256), "the most classes that fold"),
        ((9, 257), "too many classes to fold"),
        ((70, 300), "tiles, the last one narrower"),
        ((3000, 4), "bands"),
        ((2, 3000), "a row of groups in segments"),
    )
)
SMALL = tuple(case for case in (*cases.SIZES, *SIZES) if elements(case) <= 10000)
LARGE = tuple(case for case in (*cases.SIZES, cases.FLUSHED) if elements(case) > 10000)


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_sizes(case: Case, dtype: torch.dtype, emulation: build.Emulation) -> None:
    assert_right(soft_f1, case.build(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_sizes(case: Case, dtype: torch.dtype, emulation: build.Emulation) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", (*cases.MIXED_LAYOUTS, *cases.WEIGHTED), ids=str)
def test_weights_and_layouts(case: Case, dtype: torch.dtype, emulation: build.Emulation) -> None:
    assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64, torch.int64], ids=short)
@pytest.mark.parametrize("shape", [(70, 8), (67, 9), (2, 3, 40)], ids=str)
def test_weight_dtypes(
    shape: tuple[int, ...], weight_dtype: torch.dtype, emulation: build.Emulation
) -> None:
    for dtype in INPUT_DTYPES:
        for kind in ("full", "sample", "class"):
            case = Case("w", shape, weight=kind, weight_dtype=weight_dtype)
            assert_right(soft_f1, case.build(dtype))


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.TARGETS, ids=str)
def test_target_dtypes(case: Case, dtype: torch.dtype, emulation: build.Emulation) -> None:
    assert_right(soft_f1, case.build(dtype))


@pytest.mark.parametrize("case", cases.OPTIONED, ids=str)
def test_options(case: Case, emulation: build.Emulation) -> None:
    assert_right(soft_f1, case.build(torch.float32))


@covering
@pytest.mark.parametrize("option", ["samplewise", "samplewise_micro", "samplewise_weighted",
                                    "samplewise_groups_skip", "micro", "skip"])  # fmt: skip
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_options_by_layout(option: str, layout: str, emulation: build.Emulation) -> None:
    for shape in ((5, 4), (3, 4, 70), (2, 3, 4, 5), (2, 8, 9, 8)):
        case = Case("x", shape, layout=layout, target=None, weight="full", weight_layout=layout,
                    options=OPTIONS[option])  # fmt: skip
        assert_right(soft_f1, case.build(torch.float32))


@covering
@pytest.mark.parametrize("option", ["default", "none", "weighted", "skip", "samplewise_skip",
                                    "samplewise_weighted", "samplewise_groups"])  # fmt: skip
@pytest.mark.parametrize("shape", [(2, 1300), (600, 3), (3, 1100), (1300, 2, 3)], ids=str)
def test_more_groups_than_one_block_finishes(
    shape: tuple[int, ...], option: str, emulation: build.Emulation
) -> None:
    assert_right(soft_f1, Case("groups", shape, options=OPTIONS[option]).build())


@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
def test_every_alignment(dtype: torch.dtype, emulation: build.Emulation) -> None:
    size = 61
    for shift in range(8):
        for target_shift in (0, 1, shift):
            built = Case("a", (size + 16,), target=torch.int64).build(dtype)
            sample = built._replace(
                input=built.input[shift : shift + size],
                target=built.target[target_shift : target_shift + size].bool(),
            )
            assert_right(soft_f1, sample)


# ---- against the CPU operators -----------------------------------------------------------------


@covering
@pytest.mark.parametrize("dtype", INPUT_DTYPES, ids=short)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_primitives_agree_with_the_cpu(
    case: Case, dtype: torch.dtype, emulation: build.Emulation
) -> None:
    sample = case.build(dtype)
    cpu = torch.ops.customloss
    for per_sample in (False, True):
        # A sigmoid with scale 1.5 and offset 0.25. An empty batch has no samples to tell apart.
        per_sample = per_sample and sample.input.shape[0] > 0
        how = Elements(0, 1.5, 0.25, per_sample, sample.input.dim() > 1)
        sums = emulation.confusion(*sample.operands, *how)
        assert sums.dtype == torch.float64
        torch.testing.assert_close(sums, cpu.confusion(*sample.operands, *how), rtol=2e-6, atol=0)
        for wrt in (0, 1, 2) if sample.target.is_floating_point() else (0, 2):
            torch.testing.assert_close(
                emulation.confusion_backward(None, sums, *sample.operands, wrt, *how),
                cpu.confusion_backward(None, sums, *sample.operands, wrt, *how),
                rtol=max(4e-6, torch.finfo(dtype).eps),
                atol=1e-5,
            )


def test_an_integer_target_has_no_gradient(emulation: build.Emulation) -> None:
    sample = Case("integer", (5, 4)).build()
    how = Elements(0, 1.0, 0.0, False, True)
    sums = emulation.confusion(*sample.operands, *how)
    with pytest.raises(RuntimeError, match="integer target"):
        emulation.confusion_backward(None, sums, *sample.operands, 1, *how)


@pytest.mark.parametrize("shape", [(0, 4), (0,), (3, 4, 0), (0, 3, 2)], ids=str)
def test_no_elements(shape: tuple[int, ...], emulation: build.Emulation) -> None:
    assert_right(soft_f1, Case("none", shape).build())
    assert_right(soft_f1, Case("none", shape, options=OPTIONS["skip"]).build())


# ---- NaN ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 9), (40, 8), (3, 4, 50)], ids=str)
def test_nan_spoils_its_group_only(shape: tuple[int, ...], emulation: build.Emulation) -> None:
    input, target, _, _ = Case("nan", shape, target=None).build()
    input[1, 2] = float("nan")
    loss = soft_f1(input, target, average="none", reduction="none")
    assert torch.isnan(loss).nonzero().flatten().tolist() == [2]


@covering
@pytest.mark.parametrize("target_dtype", [torch.bool, None], ids=str)
@pytest.mark.parametrize("shape", [(40, 9), (40, 8), (3, 4, 50), (90,)], ids=str)
def test_weight_zero_removes_a_nan(
    shape: tuple[int, ...], target_dtype: torch.dtype | None, emulation: build.Emulation
) -> None:
    sample = Case("nan", shape, target=target_dtype, weight="mask").build()
    sample.input[sample.weight == 0] = float("nan")
    loss, gradients = differentiated(soft_f1, sample)
    assert torch.isfinite(loss)
    assert (gradients[0][sample.weight == 0] == 0).all()
    clean = sample._replace(input=sample.input.nan_to_num(0.0))
    assert torch.equal(loss, differentiated(soft_f1, clean)[0])


# ---- determinism, indices, launches, memory ----------------------------------------------------

DETERMINED = (
    Case("long", (5000,)),
    Case("planes", (2, 3, 33, 37), weight="full"),
    Case("rows", (300, 9), target=None),
    Case("wide-rows", (70, 300), weight="class"),
    Case("strided", (30, 40), layout="transposed"),
    Case("samples", (40, 21), options=OPTIONS["samplewise_skip"]),
    Case("segments", (3, 700), options=OPTIONS["weighted"]),
)


@pytest.mark.parametrize("case", DETERMINED, ids=str)
def test_same_bits_in_any_order_of_threads(case: Case, emulation: build.Emulation) -> None:
    found = []
    for seed in range(1, 5):
        emulation.seed(seed)
        loss, gradients = differentiated(soft_f1, case.build())
        found.append((loss, *gradients))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("case", (*DETERMINED, *cases.MIXED_LAYOUTS), ids=str)
def test_wide_indices_change_nothing(case: Case, emulation: build.Emulation) -> None:
    loss, gradients = differentiated(soft_f1, case.build())
    emulation.wide_index(True)
    wide_loss, wide_gradients = differentiated(soft_f1, case.build())
    assert torch.equal(loss, wide_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wide_gradients, strict=True))


@pytest.mark.parametrize("option, shape, forward", [
    ("default", (40, 9), 2), ("default", (3, 2000), 2), ("micro", (9000,), 2),
    ("weighted", (40, 9), 2), ("samplewise_skip", (40, 9), 2), ("samplewise_micro", (2000, 5), 2),
    ("weighted", (3, 2000), 3), ("skip", (3, 2000), 3),
])  # fmt: skip
def test_launches(
    option: str, shape: tuple[int, ...], forward: int, emulation: build.Emulation
) -> None:
    sample = Case("launches", shape, options=OPTIONS[option]).build()
    input = sample.input.requires_grad_()
    before = emulation.launches()
    loss = soft_f1(input, sample.target, **sample.options)
    assert emulation.launches() - before == forward
    before = emulation.launches()
    torch.autograd.grad(loss.sum(), input)
    assert emulation.launches() - before == 1


@pytest.mark.parametrize("case", DETERMINED, ids=str)
def test_uninitialised_memory_is_never_read(case: Case, emulation: build.Emulation) -> None:
    loss, gradients = differentiated(soft_f1, case.build())
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    filled_loss, filled_gradients = differentiated(soft_f1, case.build())
    assert torch.equal(loss, filled_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, filled_gradients, strict=True))
