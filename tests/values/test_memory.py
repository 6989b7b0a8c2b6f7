"""Backward keeps only the caller's tensors, and the peak memory of a step is one gradient."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from cases import Case
from judge import soft_f1
from measured import kept_for_backward
from process import run_python
from selection import one_of_each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "class_last", "sliced", "expanded_class"])
@pytest.mark.parametrize("weight", [None, "full", "class"])
def test_only_the_callers_tensors_are_saved(
    weight: str | None, layout: str, dtype: torch.dtype
) -> None:
    sample = Case("x", (8, 5, 12, 11), layout=layout, target=None, weight=weight).build(dtype)
    sample.input.requires_grad_()
    callers = {t.data_ptr() for t in sample.operands if t is not None}
    for samplewise, groups in ((False, 5), (True, 40)):
        saved = kept_for_backward(partial(soft_f1, *sample.operands, samplewise=samplewise))
        others = [t for t in saved if t.data_ptr() not in callers]
        assert sum(t.numel() for t in others) <= 4 * groups
        assert all(t.untyped_storage().nbytes() <= 8 * 4 * groups for t in others)


def test_confusion_sums_save_nothing_of_their_own() -> None:
    sample = Case("x", (8, 5), target=None, weight="full").build(requires_grad=True)
    saved = kept_for_backward(lambda: torch.ops.customloss.confusion_sums(*sample.operands))
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in sample.operands}


def test_without_a_gradient_nothing_is_saved() -> None:
    sample = Case("x", (8, 5), target=None).build()
    assert not kept_for_backward(lambda: soft_f1(*sample.operands))
    sample.input.requires_grad_()
    with torch.no_grad():
        assert not kept_for_backward(lambda: soft_f1(*sample.operands))


def test_nothing_is_kept_alive_after_backward() -> None:
    import gc
    import weakref

    sample = Case("x", (8, 5), target=None, weight="full").build(requires_grad=True)
    loss = soft_f1(*sample.operands)
    loss.backward()
    alive = [weakref.ref(tensor) for tensor in sample.operands]
    del sample, loss
    gc.collect()
    assert not any(reference() is not None for reference in alive)


LEAK = """
import torch, customloss
from cases import Case
from customloss._spec.arguments import Elements

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

ops = torch.ops.customloss
x, t, w, _ = Case("x", (8, 4), weight="full").build(requires_grad=True)
labels = torch.zeros(8, dtype=torch.int64)
how = Elements(0, 1.0, 0.0, False, True, ignore_index=(7,))

def refused():  # by the kernel itself, below the checks in Python
    try:
        ops.confusion(x.detach(), t[:, :2], None, *how)
    except RuntimeError:
        return
    raise SystemExit("not refused")

calls = {
    "plain": lambda: ops.soft_f1(x, t),
    "with a weight": lambda: ops.soft_f1(x, t, w).backward(),
    "with ignore_index": lambda: ops.soft_f1(x, labels, ignore_index=3, activation="softmax"),
    "refused": refused,
}
for name, call in calls.items():
    for _ in range(1000):
        call()
    before = resident()
    for _ in range(20000):
        call()
    print(name, resident() - before, sep=": ")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc (Linux)")
def test_20000_small_calls_leak_nothing() -> None:
    """A leaked tensor, or the box of an optional number, takes at least 16 bytes of every call."""
    done = run_python(LEAK)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert int(line.rpartition(": ")[2]) < 16 * 20000, line


PEAK = """
import torch, customloss
from cases import Case

def peak():
    # the process's high-water mark also counts what C++ allocates without torch
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) * 1024, int(fields["VmRSS"].split()[0]) * 1024

def reset():
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")

torch.set_num_threads(2)
for warm in (True, False):
    shape = (64, 8) if warm else {shape}
    case = Case("x", shape, layout={layout!r}, weight="full", weight_layout={layout!r})
    x, t, w, _ = case.build(torch.{dtype})
    x.requires_grad_()
    reset()
    before = peak()[1]
    loss = customloss.soft_f1_loss(x, t, w)
    forward = peak()[0] - before
    loss.backward()
    both = peak()[0] - before
print(forward, both, x.numel() * x.element_size())
"""


@one_of_each(lambda dtype: dtype)
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from /proc (Linux)"
)
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((1 << 21, 4), "contiguous", "float32"),
        ((1 << 23,), "stepped", "bfloat16"),
        ((8, 4, 512, 512), "class_last", "float32"),
    ],
)
def test_the_peak_is_one_gradient(shape: tuple[int, ...], layout: str, dtype: str) -> None:
    done = run_python(PEAK.format(shape=shape, layout=layout, dtype=dtype))
    assert done.returncode == 0, done.stderr
    forward, both, gradient = map(int, done.stdout.split())
    spare = 4 << 20  # for stacks, and for code that runs for the first time
    assert forward <= spare, forward
    assert both <= gradient + spare, (both, gradient)
