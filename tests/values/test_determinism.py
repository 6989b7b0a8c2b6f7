"""The bits are the same on every run, on any number of threads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import Case, Sample
from judge import soft_f1
from process import INSTRUCTION_SETS, run_python
from selection import covering

import customloss
from customloss.reference.sums import added, mean

# Larger than one unit of work, so that there is work for several threads.
LARGE = (
    Case("long", (300_007,), target=None, weight="full"),
    Case("rows", (40_009, 7), weight="class"),
    Case("many-classes", (301, 1031), target=torch.uint8),
    Case("images", (3, 5, 120, 121), target=None),
    Case("classes-last", (3, 5, 120, 121), layout="class_last", weight="full",
         weight_layout="class_last"),
    Case("short-rows", (9001, 3, 5), target=torch.int64),
    Case("samples", (300, 4, 120), options={"samplewise": True}, weight="sample"),
)  # fmt: skip


def outcome(sample: Sample) -> list[torch.Tensor]:
    leaves = [None if t is None else t.detach() for t in sample.operands]
    wanted = [t.requires_grad_() for t in leaves if t is not None and t.is_floating_point()]
    loss = soft_f1(*leaves, **sample.options)
    sums = torch.ops.customloss.confusion_sums(*sample.operands)
    return [loss.detach(), sums, *torch.autograd.grad(loss, wanted)]


def assert_same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.numpy().tobytes() == theirs.numpy().tobytes()


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_the_same_bits_on_1_2_and_4_threads(case: Case, dtype: torch.dtype) -> None:
    sample = case.build(dtype)
    torch.set_num_threads(1)
    expected = outcome(sample)
    for threads in (2, 4, 3):
        torch.set_num_threads(threads)
        assert_same_bits(outcome(sample), expected)


@pytest.mark.parametrize("shape", [(37,), (7001, 1), (1,), (), (1, 1)], ids=str)
def test_the_gradient_by_a_broadcast_weight_has_the_same_bits(shape: tuple[int, ...]) -> None:
    x, t = torch.randn(7001, 37), torch.rand(7001, 37) > 0.5
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        weight = torch.linspace(0.5, 1, torch.Size(shape).numel()).reshape(shape).requires_grad_()
        loss = torch.ops.customloss.soft_f1(x, t, weight, average="micro")
        found.append(torch.autograd.grad(loss, weight)[0])
    for other in found[1:]:
        assert_same_bits([found[0]], [other])


@pytest.mark.parametrize("case", LARGE[:5], ids=str)
def test_the_same_bits_over_20_runs(case: Case) -> None:
    torch.set_num_threads(4)
    sample = case.build()
    expected = outcome(sample)
    for _ in range(19):
        assert_same_bits(outcome(sample), expected)


def test_allowed_where_determinism_is_demanded() -> None:
    torch.use_deterministic_algorithms(True)
    sample = Case("x", (40, 5), target=None, weight="class").build(requires_grad=True)
    soft_f1(*sample.operands).backward()


def test_forward_is_the_same_with_and_without_gradients() -> None:
    for case in LARGE:
        sample = case.build()
        expected = soft_f1(*sample.operands, **sample.options)
        with_gradient = soft_f1(*case.build(requires_grad=True).operands, **sample.options)
        assert torch.equal(with_gradient.detach(), expected)


# The losses of very many groups, which are added up in torch: every average, and what is beside it.
MANY_GROUPS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "samples": ("mcc", {"samplewise": True, "average": "weighted"}, (33001, 2)),
    "kept": ("mcc", {"samplewise": True, "average": "none", "absent": "skip"}, (33001, 2)),
    "classes": ("g_mean", {}, (3, 40003)),
    "classes that weigh": ("mcc", {"class_weight": "any"}, (3, 40003)),
    "classes that are skipped": ("mcc", {"absent": "skip"}, (3, 40003)),
    "one score of all classes": ("generalized_dice", {}, (3, 40003)),
    "correlation": ("multiclass_mcc", {"activation": "sigmoid"}, (3, 40003)),
    "pointwise": ("dice_bce", {"pos_weight": "any", "class_weight": "any"}, (3, 40003)),
    "a weight of one number": ("dice", {}, (300, 401)),
}  # fmt: skip


@pytest.mark.parametrize("name", MANY_GROUPS)
def test_many_groups_have_the_same_bits_on_any_number_of_threads(name: str) -> None:
    loss, options, shape = MANY_GROUPS[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    t = (torch.rand(shape, generator=generator) < 0.4).double()
    w = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    numbers = torch.rand(shape[1], dtype=torch.float64, generator=generator) + 0.5
    given = {key: numbers if value == "any" else value for key, value in options.items()}
    criterion, found = customloss.loss(loss, **given), set()
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        value = criterion(x, t, w)
        gradients = torch.autograd.grad(value.sum(), (x, w))
        found.add(b"".join(each.detach().numpy().tobytes() for each in (value, *gradients)))
    assert len(found) == 1


# Losses of one group, of several, and of one pixel with very many classes. Those of a softmax are
# given targets that do not add up to 1.
TWICE: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "one group": ("soft_f1", {}, (70_001,)),
    "pooled classes": ("soft_f1", {"average": "micro"}, (35_000, 2)),
    "every class": ("dice_bce", {}, (2, 3, 130, 131)),
    "one sample": ("dice", {}, (1, 70_001)),
    "distances": ("semimetric_dice", {}, (70_001,)),
    "one channel": ("dice_focal", {}, (1, 1, 300, 301)),
    "softmax": ("dice_ce", {"check_target": False}, (2, 3, 130, 131)),
    "one pixel": ("cross_entropy", {"check_target": False}, (1, 70_001)),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("weight", [None, "one number", "full"])
def test_second_derivatives_have_the_same_bits(name: str, weight: str | None) -> None:
    """By every pair of operands: what one number was broadcast to has a long sum for a gradient."""
    loss, options, shape = TWICE[name]
    generator = torch.Generator().manual_seed(3)
    sizes = {"one number": (1,) * len(shape), "full": shape}
    shapes = (shape, shape, *([sizes[weight]] if weight else []))
    given = [torch.rand(each, dtype=torch.float64, generator=generator) for each in shapes]
    given[0] = 4 * given[0] - 2
    directions = [torch.randn(each, dtype=torch.float64, generator=generator) for each in shapes]
    criterion, found = customloss.loss(loss, **options), set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [each.clone().requires_grad_() for each in given]
        once = torch.autograd.grad(criterion(*leaves), leaves, create_graph=True)
        twice = torch.autograd.grad(once, leaves, directions)
        found.add(b"".join(each.detach().numpy().tobytes() for each in (*once, *twice)))
    assert len(found) == 1


def test_a_long_sum_has_the_same_bits_on_any_number_of_threads() -> None:
    """Torch's own sum of one of these has other bits on another number of threads."""
    differs = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(100_001 + seed, dtype=torch.float64, generator=generator).exp()
        own, torchs, means = set(), set(), set()
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            own.add(float(added(values)))
            means.add(float(mean(values[None])))
            torchs.add(float(values.sum()))
        assert len(own) == len(means) == 1
        assert own.pop() == pytest.approx(math.fsum(values.tolist()), rel=1e-14)
        differs += len(torchs) > 1
    assert differs


# ---- instruction sets ----------------------------------------------------------------------------

JUDGED = """
import zlib
import torch
import customloss
from cases import FLUSHED, MIXED_LAYOUTS, OPTIONED, SIZES, TARGETS, WEIGHTED
from judge import assert_right, differentiated, soft_f1
assert torch.ops.customloss.cpu_isa() == {isa!r}

def checksum(samples):
    found = 0
    for sample in samples:
        loss, gradients = differentiated(soft_f1, sample)
        for each in (loss, *gradients):
            found = zlib.crc32(each.double().contiguous().numpy().tobytes(), found)
    return found

small = [case for case in SIZES if torch.Size(case.shape).numel() < 70_000]
cases = (*small, FLUSHED, *WEIGHTED, *MIXED_LAYOUTS, *TARGETS, *OPTIONED[::8])
dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
samples = [case.build(dtypes[i % 4]) for i, case in enumerate(cases)]
if {judged}:
    for sample in samples:
        assert_right(soft_f1, sample)
torch.set_num_threads(1)
alone = checksum(samples)
torch.set_num_threads(2)
assert checksum(samples) == alone
print(alone)
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_is_right_and_repeats(isa: str) -> None:
    first = run_python(JUDGED.format(isa=isa, judged=True), CUSTOMLOSS_CPU_ISA=isa)
    if "this processor does not have it" in first.stderr:
        pytest.skip(f"this processor does not have {isa}")
    assert first.returncode == 0, first.stderr[-2000:]
    again = run_python(JUDGED.format(isa=isa, judged=False), CUSTOMLOSS_CPU_ISA=isa)
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    "call",
    (
        "soft_f1_loss(torch.zeros(3), torch.zeros(3))",
        # so large that several threads find it out
        "soft_f1_loss(torch.zeros(2**18), torch.zeros(2**18))",
        "dice_ce_loss(torch.zeros(1, 2, 2**18), torch.zeros(1, 2**18, dtype=torch.long))",
    ),
    ids=("small", "large", "softmax"),
)
def test_an_unknown_instruction_set_is_refused(call: str) -> None:
    code = f"import customloss, torch; torch.set_num_threads(2); customloss.{call}"
    done = run_python(code, CUSTOMLOSS_CPU_ISA="mmx")
    assert done.returncode != 0
    known = " or ".join(INSTRUCTION_SETS).replace(" or ", ", ", len(INSTRUCTION_SETS) - 2)
    assert f"CUSTOMLOSS_CPU_ISA=mmx: expected {known}" in done.stderr
