"""Softmax, class numbers and extras pass PyTorch's checks and take no more memory than promised."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import cases
import pixel_cases
import pytest
import torch
from cases import LAYOUTS, Case, lay_out, short
from judge import assert_right, assert_sums_right, confusion_sums, differentiated, soft_f1
from measured import allocated
from pixel_cases import EXTRAS, SOFTMAX, numbered, reading
from process import INSTRUCTION_SETS, run_python
from selection import covering
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from customloss import reference
from customloss._spec import options as spec_options
from customloss._spec.words import ACTIVATIONS

ops = torch.ops.customloss
F64 = torch.float64


# ---- contracts -----------------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", pixel_cases.FEW[::3], ids=str)
def test_opcheck(case: Case, requires_grad: bool) -> None:
    sample = case.build(F64, requires_grad=requires_grad)
    torch.library.opcheck(ops.soft_f1.default, sample.operands, sample.options)
    options = {k: v for k, v in sample.options.items() if k != "reduction"}
    for extra in (EXTRAS["hard"], EXTRAS["every"]):
        torch.library.opcheck(ops.confusion_sums.default, sample.operands, {**options, **extra})


@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-smoothed-shares", "none-ignored"])
def test_opcheck_primitives(name: str) -> None:
    x, t, w, options = reading(name, (4, 3, 2), weight="pixel").build()
    t = t.unsqueeze(1) if t.dim() < x.dim() else t
    activation = ACTIVATIONS.index(options.get("activation", "sigmoid"))
    more = (options.get("ignore_index"), options.get("label_smoothing", 0.0))
    for extra in (0, 31):
        elements = (activation, 1.0, 0.0, False, True, *more, extra, 2.0, False, None, 1, 0)
        torch.library.opcheck(ops.confusion.default, (x, t, w, *elements))
        sums = ops.confusion(x, t, w, *elements)
        for wrt, operand in enumerate((x, t, w)):
            if operand.is_floating_point():
                arguments = (None, torch.rand_like(sums), x, t, w, wrt, *elements)
                torch.library.opcheck(ops.confusion_backward.default, arguments)
    scoring = (2.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 0, 0, 0, 0)
    elements = (activation, 1.0, 0.0, False, True, *more, 0, 2.0, False, None, 1, 0)
    torch.library.opcheck(ops.confusion_score.default, (x, t, w, *elements, *scoring))


@pytest.mark.parametrize("case", (*pixel_cases.FEW, *pixel_cases.READ[1::3]), ids=str)
def test_fake_tensors_are_shaped_as_real_ones(case: Case) -> None:
    def run(operands: tuple, options: dict) -> list[tuple]:
        loss = soft_f1(*operands, **options)
        own = {k: v for k, v in options.items() if k != "reduction"}
        sums = confusion_sums(*operands, **own, **EXTRAS["every"])
        wanted = [t for t in operands if t is not None and t.requires_grad]
        found = torch.autograd.grad(loss.sum() + sums.sum(), wanted)
        return [(each.shape, each.dtype, each.stride()) for each in (loss, sums, *found)]

    for dtype in (torch.float32, torch.bfloat16, F64):
        real = case.build(dtype, requires_grad=True)
        expected = run(real.operands, real.options)
        with FakeTensorMode() as mode:
            fake = tuple(None if t is None else mode.from_tensor(t) for t in real.operands)
            assert run(fake, real.options) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=short)
def test_gradients_have_the_strides_of_their_operand(layout: str, dtype: torch.dtype) -> None:
    for shape in ((4, 3), (2, 3, 4, 5)):
        sample = reading("softmax-shares", shape, layout=layout).build(dtype, requires_grad=True)
        for operand in (sample.input, sample.target):
            loss = soft_f1(*sample.operands, **sample.options)
            (gradient,) = torch.autograd.grad(loss, operand)
            assert gradient.stride() == torch.empty_like(operand).stride()
            assert gradient.dtype == operand.dtype


# ---- transforms ----------------------------------------------------------------------------------


def drawn(*shape: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, *shape, dtype=F64, generator=generator)
    # some of these name no class, or will be ignored
    t = torch.randint(-1, shape[1] + 1, (batch, shape[0], *shape[2:]), generator=generator)
    w = torch.rand(batch, shape[0], 1, *shape[2:], dtype=F64, generator=generator) + 0.1
    return x, t, w


STRAYS = {"out_of_range": "ignore"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {**SOFTMAX, **STRAYS},
    "ignored": {**SOFTMAX, "ignore_index": (-1, 1), "label_smoothing": 0.1, **STRAYS},
    "samplewise": {**SOFTMAX, "samplewise": True, "average": "weighted", **STRAYS},
    "sigmoid": {"average": "micro", **STRAYS},
}


def stacked(function: Callable, in_dims: tuple, *given: Tensor) -> Tensor:
    return torch.stack([
        function(*(g if d is None else g.select(d, i) for g, d in zip(given, in_dims)))
        for i in range(3)
    ])  # fmt: skip


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (1, 1, 2), (0, 1, None)]
)
@pytest.mark.parametrize("option", OPTIONS)
def test_vmap_over_labels(option: str, in_dims: tuple) -> None:
    def own(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return soft_f1(x, t, w, **OPTIONS[option])

    def judge(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return reference.soft_f1(x, t, w, **OPTIONS[option])

    for shape in ((4, 3), (2, 5, 3, 2)):
        given = [
            full[0] if dim is None else full.movedim(0, dim)
            for full, dim in zip(drawn(*shape), in_dims)
        ]
        found = vmap(own, in_dims)(*given)
        torch.testing.assert_close(found, stacked(judge, in_dims, *given))


def test_vmap_over_the_kept_dim_of_labels_and_of_the_sums() -> None:
    x, t, w = drawn(4, 3, 2)
    options = {**SOFTMAX, **STRAYS, **EXTRAS["every"]}
    for numbers in (t, t.unsqueeze(2)):
        found = vmap(lambda x, t, w: confusion_sums(x, t, w, **options))(x, numbers, w)
        expected = stacked(lambda *g: confusion_sums(*g, **options), (0, 0, 0), x, numbers, w)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_derivatives(option: str) -> None:
    x, t, w = (each[0] for each in drawn(4, 3))
    tangent = torch.randn_like(x)

    def of(op: Callable) -> dict[str, Any]:
        def loss(x: Tensor) -> Tensor:
            return op(x, t, w, **OPTIONS[option])

        return {
            "grad": grad(loss)(x),
            "jvp": jvp(loss, (x,), (tangent,)),
            "jacrev": jacrev(loss)(x),
            "hessian": hessian(loss)(x),
            "reverse over forward": jacrev(jacfwd(loss))(x),
            "by weight": grad(lambda w: op(x, t, w, **OPTIONS[option]))(w),
        }

    own, expected = of(soft_f1), of(reference.soft_f1)
    for name, wanted in expected.items():
        torch.testing.assert_close(own[name], wanted, msg=lambda text, name=name: f"{name}: {text}")
    by_kernel = x.clone().requires_grad_()
    soft_f1(by_kernel, t, w, **OPTIONS[option]).backward()
    torch.testing.assert_close(own["grad"], by_kernel.grad)


def test_derivatives_of_the_further_sums() -> None:
    x, t, _ = (each[0] for each in drawn(4, 3))

    def total(x: Tensor) -> Tensor:
        sums = confusion_sums(x, t, **SOFTMAX, **EXTRAS["every"])
        return (sums * torch.arange(1.0, 1 + len(sums), dtype=F64)[:, None, None]).sum()

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    torch.testing.assert_close(grad(total)(x), first.detach())
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    by_hessian = 2 * hessian(total)(x).reshape(12, 12) @ first.detach().flatten()
    torch.testing.assert_close(second.flatten(), by_hessian)
    torch.testing.assert_close(vmap(grad(total))(x[None])[0], first.detach())


# ---- memory --------------------------------------------------------------------------------------


@covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["softmax-numbers", "softmax-shares", "sigmoid-ignored"])
def test_no_hidden_copy(name: str, layout: str, dtype: torch.dtype) -> None:
    case = reading(name, (4, 6, 60, 70), layout=layout, weight="pixel", weight_layout=layout)
    sample = case.build(dtype)
    x = sample.input.requires_grad_()
    few = 8192  # sums of 6 groups and their derivatives; any copy takes at least 200 kB
    for op, extra in ((soft_f1, {}), (confusion_sums, EXTRAS["every"])):
        options = {**sample.options, **extra}
        assert sum(allocated(partial(op, *sample.operands, **options))) <= few
        result = op(*sample.operands, **options)
        backward = allocated(partial(torch.autograd.grad, result, x, torch.ones_like(result)))
        assert sum(backward) <= x.numel() * x.element_size() + few


def kept_for_backward(function: Callable) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return saved


@pytest.mark.parametrize("label", pixel_cases.LABEL_DTYPES, ids=short)
def test_class_numbers_are_kept_as_they_came(label: torch.dtype) -> None:
    """They are saved neither as int64 nor as one-hot, and otherwise only a few numbers are."""
    sample = numbered("x", (8, 5, 12, 11), target=label, weight="pixel").build()
    sample.input.requires_grad_()
    callers = {t.data_ptr() for t in sample.operands}
    for samplewise, groups in ((False, 5), (True, 40)):
        saved = kept_for_backward(
            partial(soft_f1, *sample.operands, **sample.options, samplewise=samplewise)
        )
        assert label in {t.dtype for t in saved}
        others = [t for t in saved if t.data_ptr() not in callers]
        assert sum(t.numel() for t in others) <= 4 * groups
        assert all(t.untyped_storage().nbytes() <= 8 * 4 * groups for t in others)


PEAK = """
import torch, customloss

def high():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) * 1024, int(fields["VmRSS"].split()[0]) * 1024

torch.set_num_threads(2)
for side in (16, 128):
    x = torch.randn(1, 4, side, side, side, dtype=torch.{dtype})
    t = torch.randint(4, (1, side, side, side), dtype=torch.uint8)
    x = x.to(memory_format=torch.{layout}).requires_grad_()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    before = high()[1]
    loss = torch.ops.customloss.soft_f1(x, t, activation="softmax", label_smoothing=0.1)
    forward = high()[0] - before
    loss.backward()
    both = high()[0] - before
print(forward, both, x.numel() * x.element_size())
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from /proc (Linux)"
)
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float32", "contiguous_format"), ("bfloat16", "channels_last_3d")]
)
def test_the_peak_is_one_gradient(dtype: str, layout: str) -> None:
    done = run_python(PEAK.format(dtype=dtype, layout=layout))
    assert done.returncode == 0, done.stderr
    forward, both, gradient = map(int, done.stdout.split())
    spare = 6 << 20  # for the tiles of two threads, stacks and code
    assert forward <= spare, forward
    assert both <= gradient + spare, (both, gradient)


# ---- determinism ---------------------------------------------------------------------------------

LARGE = (
    numbered("pixels", (40_009, 3), weight="pixel"),
    numbered("volumes", (2, 4, 30, 31, 33), target=torch.uint8),
    numbered("classes-last", (3, 5, 120, 121), layout="class_last"),
    numbered("many-classes", (301, 1031), options={"label_smoothing": 0.1}),
    reading("softmax-shares", (3, 16, 60, 61), weight="full"),
    reading("sigmoid-ignored", (300, 4, 120), options={"samplewise": True}),
)


@covering
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=short)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_the_same_bits_on_1_2_and_4_threads(case: Case, dtype: torch.dtype) -> None:
    sample = case.build(dtype)
    further = sample._replace(options={**sample.options, **EXTRAS["log_loss-hard"]})

    def bits() -> list[bytes]:
        found = []
        for op, one in ((soft_f1, sample), (confusion_sums, further)):
            value, gradients = differentiated(op, one)
            found += [each.numpy().tobytes() for each in (value, *gradients)]
        return found

    torch.set_num_threads(1)
    expected = bits()
    for threads in (2, 4, 3, 4):
        torch.set_num_threads(threads)
        assert bits() == expected


JUDGED = """
import torch, customloss, pixel_cases, zlib
from judge import assert_right, assert_sums_right, confusion_sums, differentiated, soft_f1
assert torch.ops.customloss.cpu_isa() == {isa!r}
small = [case for case in pixel_cases.SIZES if torch.Size(case.shape).numel() < 50_000]
cases = (*small, *pixel_cases.LABELS, *pixel_cases.WEIGHTED[::3], *pixel_cases.READ)
dtypes = (torch.float32, torch.bfloat16, torch.float32, torch.float64, torch.float16)
extras = list(pixel_cases.EXTRAS.values())
for i, case in enumerate(cases):
    sample = case.build(dtypes[i % 5])
    assert_right(soft_f1, sample)
    assert_sums_right(sample, **extras[i % len(extras)])
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_is_right(isa: str) -> None:
    done = run_python(JUDGED.format(isa=isa), CUSTOMLOSS_CPU_ISA=isa)
    if "this processor does not have it" in done.stderr:
        pytest.skip(f"this processor does not have {isa}")
    assert done.returncode == 0, done.stderr[-2000:]


# ---- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", pixel_cases.FEW, ids=str)
def test_operands_are_not_changed(case: Case) -> None:
    sample = case.build(F64)
    copies = [None if t is None else t.clone() for t in sample.operands]
    differentiated(soft_f1, sample)
    torch.testing.assert_close(sample.operands, tuple(copies), rtol=0, atol=0, equal_nan=True)


def test_an_unaligned_start() -> None:
    """Every offset within a cache line, of logits and of class numbers."""
    for offset in range(17):
        x = torch.randn(1, 3, 130 + offset)[..., offset:]
        t = torch.randint(3, (1, 130 + offset), dtype=torch.uint8)[:, offset:]
        sample = numbered("x", (1, 3, 130)).build()._replace(input=x, target=t)
        assert_right(soft_f1, sample)
        assert_sums_right(sample._replace(input=lay_out(x, "class_last")), log_loss=True)


@pytest.mark.slow
def test_opcheck_of_every_sample() -> None:
    """All checks of opcheck, both public operators, and all cases of moderate size."""
    everything = (*cases.SIZES, *cases.MIXED_LAYOUTS, *cases.TARGETS, *cases.WEIGHTED,
                  *cases.OPTIONED)  # fmt: skip
    pixels = (
        case
        for value in vars(pixel_cases).values()
        if isinstance(value, tuple)
        for case in value
        if isinstance(case, Case)
    )
    found = {case.name: case for case in (*everything, *pixels) if math.prod(case.shape) < 20000}
    for case in found.values():
        # gradcheck cannot change single elements of a leaf of stride 0
        expanded = "expanded" in f"{case.layout}{case.target_layout}{case.weight_layout}"
        sample = case.build(torch.float64, requires_grad=not expanded)
        torch.library.opcheck(ops.soft_f1.default, sample.operands, sample.options)
        read = {name: sample.options[name] for name in spec_options.SUMS if name in sample.options}
        torch.library.opcheck(ops.confusion_sums.default, sample.operands, read)
