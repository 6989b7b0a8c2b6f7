"""The Triton kernels compile for GPUs that are not here, without spills.

A stand-in driver names the target, and every launch stops after compilation. The launchers run
unchanged, so the kernels are compiled and specialised as they would be for a GPU.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from selection import covering
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton_package  # noqa: E402
from compiled_triton import (  # noqa: E402
    Compiled,
    StandIn,
    differences_of_products,
    standing_in,
)

triton_package.load()

from customloss._spec.arguments import (  # noqa: E402
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
)
from customloss._spec.words import (  # noqa: E402
    ABSENT,
    AVERAGES,
    FUSED_LINKS,
    INPUT,
    NONE,
    REDUCTIONS,
    SIGMOID,
    SOFTMAX,
)
from customloss.kernels import confusion as kernels  # noqa: E402
from customloss.kernels import fold, layout, pixel, score  # noqa: E402
from customloss.reference import Extra, rows  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not isinstance(kernels.sums_kernel, triton.JITFunction),
        reason="TRITON_INTERPRET=1: there is nothing to compile",
    ),
]


@pytest.fixture
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Compiled]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    result = Compiled(getattr(request, "param", 90))
    run = triton.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        result.kernels.setdefault(self.fn.__name__, []).append(kernel)
        return kernel

    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    with standing_in(StandIn(result.capability)):
        yield result
        result.check()


def passes(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    per_sample: bool = False,
    per_class: bool = True,
    scale: float = 1.0,
    wrt: int = 0,
    link: str = "complement",
    absent: str = "score",
    average: str = "macro",
    reduction: str = "mean",
) -> None:
    """Makes every launch of a forward and a backward pass."""
    data = Data(input, target, weight)
    elements = Elements(0, scale, 0.0, per_sample, per_class)
    words = (
        FUSED_LINKS.index(link), ABSENT.index(absent), AVERAGES.index(average),
        REDUCTIONS.index(reduction),
    )  # fmt: skip
    kernels.confusion(data, elements)
    scored = kernels.confusion_score(data, elements, Scoring(*SOFT_F1[:5], 2.0, 1e-30, *words))
    kernels.confusion_backward(Incoming(*scored), data, Wrt(wrt), elements)


def empty(shape: tuple[int, ...], dtype: torch.dtype, last: bool = False) -> Tensor:
    memory = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=memory)


IMAGES = (2, 16, 512, 1024)  # chunks of several tiles


@covering
@pytest.mark.parametrize("compiled", [80, 90, 100], indirect=True)
@pytest.mark.parametrize("last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize(
    ("input", "target"),
    [(torch.bfloat16, torch.bool), (torch.float32, torch.uint8), (torch.float64, torch.float64)],
    ids=str,
)
def test_targets(compiled: Compiled, input: torch.dtype, target: torch.dtype, last: bool) -> None:
    passes(empty(IMAGES, input, last), empty(IMAGES, target, last))
    if input != torch.float64:
        # With accesses of 16 bytes a warp moves its bytes in the fewest transactions.
        for name in ("sums_kernel", "gradient_kernel"):
            widths = re.findall(r"ld\.global(?:\.\w+)*?(\.v\d)?\.b(\d+)", compiled.ptx(name))
            assert (".v4", "32") in widths, widths
        assert re.search(r"st\.global(\.\w+)*\.v4\.b32", compiled.ptx("gradient_kernel"))


@pytest.mark.parametrize(
    "target",
    [torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64,
     torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)  # fmt: skip
def test_dtypes(compiled: Compiled, target: torch.dtype) -> None:
    wide = target in (torch.int8, torch.uint64, torch.bfloat16)
    for input in (torch.float16, torch.float64) if wide else (torch.float16,):
        passes(torch.empty(300, 40, dtype=input), torch.empty(300, 40, dtype=target))


@pytest.mark.parametrize("wrt", range(3))
def test_weights(compiled: Compiled, wrt: int) -> None:
    for dtype in (torch.bool, torch.float32):
        passes(
            torch.empty(3, 5, 70, 70),
            torch.empty(3, 5, 70, 70, dtype=torch.bfloat16),
            torch.empty(5, 1, 1, dtype=dtype),
            scale=2.0,
            wrt=wrt,
        )
    input = torch.empty(3, 80, dtype=torch.float64)
    target = torch.empty(3, 80, dtype=torch.bfloat16)
    passes(input, target, torch.empty(3, 1), wrt=wrt)


@covering
@pytest.mark.parametrize("link", FUSED_LINKS)
@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("shape", [(64, 80), (8, 3000)], ids=["one program", "many"])
def test_scores(compiled: Compiled, shape: tuple[int, int], absent: str, link: str) -> None:
    tensors = torch.empty(shape), torch.empty(shape, dtype=torch.bool)
    passes(*tensors, average="weighted", link=link, absent=absent)
    if link == "log":
        passes(*tensors, average="none", reduction="none", link=link, absent=absent)
        passes(*tensors, reduction="sum", per_sample=True, link=link, absent=absent)


SLOW = pytest.mark.slow
EACH = [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)]


@covering
@pytest.mark.parametrize("compiled", EACH, indirect=True)
@pytest.mark.parametrize("extra", [0, int(Extra.LOG_LOSS), int(Extra.FOCAL), int(sum(Extra))])
@pytest.mark.parametrize("shape", [(1, 80), (8, 3000), (700, 4)], ids=str)
def test_sums_scores(compiled: Compiled, shape: tuple[int, int], extra: int) -> None:
    compiled.parked = 16
    sums = torch.empty(len(rows(extra)), *shape, dtype=torch.float64)
    log, focal = float(extra & Extra.LOG_LOSS), float(extra & Extra.FOCAL)
    pointwise = Pointwise(0.5, log, log, focal, focal, 1.0, 1.0)
    for weight in (None, torch.empty(2, shape[1], dtype=torch.float64)):
        group_sums = GroupSums(sums, weight, extra, shape[0] > 1, False)
        for link, (average, reduction) in enumerate(((0, 0), (1, 1), (1, 2), (0, 2))):
            scoring = Scoring(*SOFT_F1[:5], 2.0, 1e-30, link, link % 3, average, reduction)
            score.sums_score(group_sums, scoring, pointwise)
    assert ("score_kernel" in compiled.kernels) == (shape[0] == 1)


# ---- classes that are read together ----------------------------------------------------------


SOFTMAX_BY_CLASS = Elements(SOFTMAX, 1.0, 0.0, False, True)
SOFT_F1 = Scoring(2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)


def pixel_passes(
    input: Tensor, target: Tensor, weight: Tensor | None = None, wrt: int = INPUT, **given: Any
) -> None:
    data, elements = Data(input, target, weight), SOFTMAX_BY_CLASS._replace(**given)
    coefficients = kernels.confusion(data, elements)
    kernels.confusion_backward(Incoming(None, coefficients), data, Wrt(wrt), elements)
    if not elements.extra:
        kernels.confusion_score(data, elements, SOFT_F1)


def labels_of(input: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(input.shape[0], 1, *input.shape[2:], dtype=dtype)


@covering
@pytest.mark.parametrize("compiled", EACH, indirect=True)
@pytest.mark.parametrize("last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("classes", [*(pytest.param(n, marks=SLOW) for n in (2, 8, 20)), 4, 32])
def test_softmax(compiled: Compiled, classes: int, last: bool) -> None:
    for dtype, labels in ((torch.bfloat16, torch.uint8), (torch.float32, torch.int64)):
        input = empty((2, classes, 256, 256), dtype, last)
        pixel_passes(input, labels_of(input, labels), ignore_index=(255,))
        for name in ("pixel_sums_kernel", "pixel_gradient_kernel"):
            # A load has 16 bytes of a plane, or at least four classes of channels_last.
            widths = re.findall(r"ld\.global(?:\.\w+)*?(\.v\d)?\.b(\d+)", compiled.ptx(name))
            widest = max(int(lanes[2:] or 1) * int(width) for lanes, width in widths)
            assert widest >= (8 * dtype.itemsize * min(classes, 4) if last else 128), widths


@covering
@pytest.mark.parametrize("compiled", EACH, indirect=True)
@pytest.mark.parametrize(
    "shape", [(2, 105, 64, 128), *(pytest.param(s, marks=SLOW) for s in ((4096, 1030), (70, 4096)))]
)
def test_many_classes(compiled: Compiled, shape: tuple[int, ...]) -> None:
    if compiled.capability != 90 or shape[1] > 1000:
        kernels = ("softmax_sums_kernel", "softmax_gradient_kernel", "entry_kernel")
        compiled.known = dict(zip(kernels, (8, 8, 16)))
    for dtype, labels in ((torch.bfloat16, torch.uint8), (torch.float32, torch.int64)):
        input = torch.empty(shape, dtype=dtype)
        pixel_passes(input, labels_of(input, labels), ignore_index=(-100,))
    assert "fold_kernel" in compiled.kernels


@covering
@pytest.mark.parametrize("compiled", EACH, indirect=True)
@pytest.mark.parametrize("extra", [0, pytest.param(int(sum(Extra)), marks=SLOW)])
def test_what_a_walk_keeps(compiled: Compiled, extra: int) -> None:
    compiled.parked = 8 if extra else 0
    compiled.known = {"softmax_kept_sums_kernel": 32} if extra else {}  # of all sums at once
    for dtype, labels in ((torch.bfloat16, torch.uint8), (torch.float32, torch.int64)):
        input = empty((2, 105, 512, 512), dtype, last=True)
        pixel_passes(input, labels_of(input, labels), ignore_index=(255,), extra=extra)
        assert "softmax_walk_kernel" not in compiled.kernels or dtype == torch.float32
        input = torch.empty(4096, 32000, dtype=dtype)
        pixel_passes(input, labels_of(input, labels), ignore_index=(255,), extra=extra)
        assert ".v4.b32" in compiled.ptx("softmax_walk_kernel")
    # The kernel that keeps nothing is not needed for either input.
    assert "softmax_sums_kernel" not in compiled.kernels
    assert len(compiled.kernels["softmax_kept_sums_kernel"]) == (4 if extra else 8)


@pytest.mark.parametrize("extra", [*(pytest.param(one, marks=SLOW) for one in Extra), sum(Extra)])
def test_extra_sums(compiled: Compiled, extra: int) -> None:
    for classes in (5, 41):
        input = torch.empty(2, classes, 64, 64)
        pixel_passes(input, labels_of(input, torch.uint8), extra=int(extra))
    binary = torch.empty(2, 1, 100, 64, dtype=torch.float16)
    target = torch.empty(2, 1, 100, 64, dtype=torch.uint8)
    pixel_passes(binary, target, activation=SIGMOID, extra=int(extra), ignore_index=(255,))
    pixel_passes(binary, target, activation=NONE, extra=int(extra), label_smoothing=0.1)
    pixel_passes(binary, target.to(torch.uint64), activation=SIGMOID, ignore_index=(-1, 255))


@covering
@pytest.mark.parametrize(
    "shape", [(3, 4), pytest.param((64, 105, 64), marks=SLOW), pytest.param((70, 4096), marks=SLOW)]
)
def test_the_scale_is_multiplied_after_the_largest_logit_is_taken_away(
    compiled: Compiled, shape: tuple[int, ...]
) -> None:
    """A fused scale * x - largest is not 0 for the largest, because its product is not rounded."""
    compiled.known = dict.fromkeys(("softmax_sums_kernel", "softmax_gradient_kernel"), 16)
    input = torch.empty(shape)
    pixel_passes(input, labels_of(input, torch.int64), scale=2.5)
    kernels = [name for name in compiled.kernels if name.startswith(("pixel", "softmax"))]
    assert len(kernels) >= 2
    for name in kernels:
        assert differences_of_products(compiled.ptx(name)) == [], name


@SLOW
@covering
@pytest.mark.parametrize("wrt", range(3))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_pixel_operands(compiled: Compiled, dtype: torch.dtype, wrt: int) -> None:
    """Dense targets, weights of classes and of pixels, pooled classes and smoothing."""
    extra = int(Extra.LOG_LOSS | Extra.SQUARES)
    compiled.known = {"softmax_gradient_kernel": 184 if dtype == torch.bfloat16 else 0}
    for classes in (6, 40):
        input = torch.empty(3, classes, 21, 5, dtype=dtype)
        for weight in (torch.empty(classes, 1, 1), torch.empty(3, 1, 21, 5, dtype=dtype)):
            pixel_passes(input, input, weight, wrt, label_smoothing=0.1, per_sample=True)
        pixel_passes(input, input, weight, wrt, per_class=False, extra=extra)
    input = torch.empty(40, 300, dtype=dtype)
    target = torch.empty(40, 300, dtype=torch.bfloat16)
    pixel_passes(input, target, input, wrt, activation=SIGMOID, ignore_index=(255,), extra=extra)


@SLOW
def test_64_bit_offsets_by_pixel(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INT32_LIMIT", 0)
    pixel.prepare.cache_clear()
    for classes in (5, 41):
        input = torch.empty(3, classes, 70, 70)
        pixel_passes(input, labels_of(input, torch.uint8), per_sample=True)
    pixel.prepare.cache_clear()


def test_alignment_is_not_assumed() -> None:
    def aligned(input: Tensor) -> int:
        operands = ((input.shape, input.stride()), (input.shape, input.stride()))
        return layout.pixel_plan(operands, False, True, True, 4, 4).aligned

    last = torch.channels_last
    assert aligned(torch.empty(2, 4, 3, 3).to(memory_format=last)) == 4
    assert aligned(torch.empty(2, 6, 3, 3).to(memory_format=last)) == 2
    assert aligned(torch.empty(2, 4, 3, 3)) == 1
    assert aligned(torch.empty(30, 7)[:, :4]) == 1
    assert aligned(torch.empty(30, 6)[:, :4]) == 2
    assert aligned(torch.empty(30, 9)[:, ::2]) == 1


# ---- what a launch costs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "apart"),
    [((4096, 32000), torch.bfloat16, True), ((2, 105, 128, 128, 128), torch.float32, False),
     ((8, 150, 512, 512), torch.float16, False)],
    ids=str,
)  # fmt: skip
def test_partial_sums_are_few_beside_the_data(
    shape: tuple[int, ...], dtype: torch.dtype, apart: bool
) -> None:
    input = torch.empty(shape, dtype=dtype, device="meta")
    input = input.movedim(1, -1).contiguous().movedim(-1, 1)
    operands = ((input.shape, input.stride()), (labels_of(input, dtype).shape, (1,) * len(shape)))
    plan = layout.pixel_plan((*operands, None), False, True, True, 3, dtype.itemsize)
    assert plan.kept and plan.apart == apart
    assert 12 * plan.chunks * plan.samples * plan.classes < 0.04 * input.numel() * dtype.itemsize
    assert plan.per_chunk <= layout.MOST_TILES and plan.programs >= layout.FEWEST_PROGRAMS
    cached = plan.per_chunk * plan.rows * plan.classes * dtype.itemsize
    assert apart or cached <= layout.LOOPED_PIXELS


def test_a_program_adds_up_few_partials(compiled: Compiled) -> None:
    for groups, tile in ((1, 1), (4, 4), (600, 1024), (3000, 512)):
        for chunks in (1, 7, 4096):
            partials = torch.empty(3, chunks, groups)
            left = fold.few(partials, tile)
            assert left.shape[1] * tile <= fold.MOST_PARTIALS
            assert (left is partials) == (chunks * tile <= fold.MOST_PARTIALS)
    sums = fold.total_sums(partials, 2, 1500)
    assert sums.shape == (3, 2, 1500) and sums.dtype == torch.float64


@pytest.mark.parametrize("activation", [SIGMOID, SOFTMAX])
def test_other_batch_sizes_are_not_compiled_again(compiled: Compiled, activation: int) -> None:
    for batch in (3, 6, 7, 16):
        input = torch.empty(batch, 4, 64, 64)
        labels = activation == SOFTMAX
        target = labels_of(input, torch.int64) if labels else torch.empty_like(input)
        data, elements = Data(input, target, None), Elements(activation, 1.0, 0.0, False, True)
        incoming = Incoming(*kernels.confusion_score(data, elements, SOFT_F1))
        kernels.confusion_backward(incoming, data, Wrt(INPUT), elements)
    assert len(compiled.kernels) == 3
    for name, found in compiled.kernels.items():
        # The score has two versions, for up to 16 partial sums and for more.
        assert len({id(kernel) for kernel in found}) <= 1 + (name == "score_kernel"), name


def test_a_launch_is_worked_out_once(compiled: Compiled) -> None:
    pixel.prepare.cache_clear()
    for _ in range(2):
        input = torch.empty(2, 4, 9, 9)
        pixel_passes(input, labels_of(input, torch.int64))
        # Three launches are prepared: sums with tn, sums without it, and the gradient.
        assert pixel.prepare.cache_info().misses == 3
    gone = weakref.ref(input)
    del input
    assert gone() is None


# ---- sizes -----------------------------------------------------------------------------------


def test_odd_sizes_keep_wide_loads(compiled: Compiled) -> None:
    passes(torch.empty(5_000_011), torch.empty(5_000_011, dtype=torch.bool), per_class=False)
    assert ".v4.b32" in compiled.ptx("sums_kernel")


def test_64_bit_offsets(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INT32_LIMIT", 0)
    layout.plan.cache_clear()
    for input in (torch.empty(3, 5, 70, 70), torch.empty(70, 70, 5, 3).permute(3, 2, 0, 1)):
        passes(input, torch.empty(3, 5, 70, 70, dtype=torch.bool), per_sample=True)
    layout.plan.cache_clear()


def test_huge_layouts_are_planned_with_64_bits() -> None:
    def plan_of(*shape: int) -> layout.Plan:
        strides = torch.empty(shape, device="meta").stride()
        return layout.plan(((torch.Size(shape), strides),) * 2, False, True)

    assert not plan_of(8, 4, 1024, 1024).long
    huge = plan_of(1, 1, 65536, 32769)
    assert huge.long
    assert huge.tiles * huge.rows * huge.cols >= 65536 * 32769
    assert huge.per_chunk <= layout.MOST_TILES
