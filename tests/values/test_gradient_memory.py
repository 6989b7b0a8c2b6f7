"""The memory of a freed CPU gradient is kept for the next one, within bounds, and never shared."""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from process import run_python

import customloss

MIB = 1 << 20
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "one_sample": lambda x: x[:1],
    "sliced": lambda x: x[..., 1:],
    "expanded": lambda x: x[:1].expand_as(x),
}

keeps = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
    reason="needs Linux and torch 2.11",
)


@pytest.fixture(autouse=True)
def _empty() -> None:
    customloss.empty_cache()


def kept() -> int:
    bytes_kept: int = torch.ops.customloss.cpu_gradient_cache()[1]
    return bytes_kept


def gradient(mib: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A gradient of so many MiB, the only one that is alive of its call."""
    torch.manual_seed(seed)
    x = torch.randn(mib * MIB // dtype.itemsize).to(dtype).requires_grad_()
    (found,) = torch.autograd.grad(customloss.soft_f1_loss(x, x.detach() > 1), x)
    return found


@keeps
def test_the_next_gradient_takes_the_memory_of_a_freed_one() -> None:
    first, expected = gradient(seed=1), gradient(seed=2)
    place = first.data_ptr()
    del first
    assert kept() == 4 * MIB
    again = gradient(seed=2)
    assert again.data_ptr() == place
    assert torch.equal(again, expected)
    assert kept() == 0


# of 1 MiB at least, with tails that fill no register
WRITTEN = {
    "masks": ((5, 1, 611, 217), "dice_loss", {}),
    "columns": ((140001, 5), "dice_loss", {}),
    "masks and logs": ((3, 2, 411, 217), "dice_bce_loss", {}),
    "class numbers": ((2, 5, 301, 217), "dice_ce_loss", {"ignore_index": 0}),
    "class numbers, focal": ((2, 5, 301, 217), "dice_focal_loss", {"activation": "softmax"}),
    "many classes": ((3, 40, 83, 79), "dice_ce_loss", {}),
    "hidden classes": ((2, 5, 301, 217), "dice_loss", {"activation": "softmax", "classes": [1, 3]}),
}


@keeps
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_element_of_kept_memory_is_written(name: str, dtype: torch.dtype) -> None:
    """Torch fills fresh memory with NaN where algorithms have to be deterministic. Kept memory is
    not filled, which makes no difference."""
    shape, function, options = WRITTEN[name]
    numbers = function == "dice_ce_loss" or options.get("activation") == "softmax"
    torch.manual_seed(1)
    x = torch.randn(shape).to(dtype).requires_grad_()
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    target = labels if numbers else torch.rand(shape) > 0.7

    def found() -> torch.Tensor:
        loss = getattr(customloss, function)(x, target, **options)
        return torch.autograd.grad(loss, x)[0]

    first = found()
    place, expected = first.data_ptr(), first.clone()
    assert expected.isfinite().all()
    first.fill_(torch.nan)
    del first
    again = found()
    assert again.data_ptr() == place
    assert torch.equal(again, expected)


@keeps
def test_memory_that_somebody_holds_is_not_taken() -> None:
    first = gradient(seed=1)
    view, array = first[5:9], first.numpy()
    before = array.copy()
    del first
    assert gradient(seed=2).data_ptr() != view.data_ptr() - 5 * 4
    assert (array == before).all()
    del array
    assert torch.equal(view, torch.from_numpy(before[5:9]))


@keeps
def test_only_a_gradient_of_about_the_size_takes_it() -> None:
    del (first := [gradient(64)])[:]
    assert kept() == 64 * MIB
    smaller = gradient(16)
    assert kept() == 64 * MIB
    nearly = gradient(60)
    assert kept() == 0
    assert smaller.numel() * 4 == 16 * MIB
    assert nearly.numel() * 4 == 60 * MIB
    assert not first


@keeps
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_strides_are_those_of_empty_like(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 3, 256, 256)).requires_grad_()
    target = x.detach() > 0
    for _ in range(2):  # in fresh memory, and in memory that was kept
        (found,) = torch.autograd.grad(customloss.soft_f1_loss(x, target), x)
        assert found.stride() == torch.empty_like(x).stride()
        (right,) = torch.autograd.grad(
            customloss.soft_f1_loss(x.double(), target), x, materialize_grads=True
        )
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-12)
        found = right = None


def test_small_gradients_are_left_to_malloc() -> None:
    x = torch.randn(1000, requires_grad=True)
    customloss.soft_f1_loss(x, x.detach() > 0).backward()
    x.grad = None
    assert kept() == 0


@keeps
def test_empty_cache_gives_it_back_and_says_how_much() -> None:
    for mib in (4, 8):
        gradient(mib)
    assert "12 MiB kept" in str(customloss.build_info())
    assert customloss.empty_cache() == 12 * MIB
    assert customloss.empty_cache() == 0
    assert "gradient cache   0 MiB kept" in str(customloss.build_info())


BOUNDED = """
import torch, customloss
def gradient(mib):
    x = torch.randn(mib << 18, requires_grad=True)
    return torch.autograd.grad(customloss.soft_f1_loss(x, x.detach() > 0), x)[0]
held = [gradient(mib) for mib in (2, 4, 8, 16)]
del held
limit, kept = torch.ops.customloss.cpu_gradient_cache()
print(limit, kept, customloss.build_info().gradient_cache)
gradient(2).resize_(1 << 20)
"""


@keeps
@pytest.mark.parametrize(
    ("limit", "most"), [(0, 0), (1, 0), (6 * MIB, 6 * MIB), (64 * MIB, 30 * MIB)]
)
def test_no_more_is_kept_than_the_limit(limit: int, most: int) -> None:
    done = run_python(BOUNDED, CUSTOMLOSS_GRADIENT_CACHE=str(limit))
    said = done.stdout.split(maxsplit=2)
    assert int(said[0]) == limit
    assert 0 < int(said[1]) <= most or int(said[1]) == most == 0
    assert said[2].strip() == "turned off" if limit == 0 else "MiB at most" in said[2]
    # torch's own memory can be resized; memory of ours says why it cannot
    assert done.returncode == 0 if limit == 0 else "not resizable" in done.stderr


@pytest.mark.parametrize("word", ["-1", "1G", "0x10", "9" * 19])
def test_another_word_is_refused_at_once(word: str) -> None:
    done = run_python("import customloss", CUSTOMLOSS_GRADIENT_CACHE=word)
    assert done.returncode != 0
    assert "ValueError: CUSTOMLOSS_GRADIENT_CACHE: expected a number of bytes" in done.stderr


@keeps
def test_a_torch_without_the_function_keeps_nothing(tmp_path: Path) -> None:
    """As torch 2.10: the library asks for a function of another name, which is nowhere."""
    package = Path(customloss.__file__).parent
    shutil.copytree(package, tmp_path / "customloss")
    library = tmp_path / "customloss" / "_C.abi3.so"
    known = library.read_bytes()
    assert b"\0torch_from_blob\0" in known
    library.write_bytes(known.replace(b"\0torch_from_blob\0", b"\0torch_from_glob\0"))
    code = BOUNDED + "print(customloss.build_info().cpu)"
    done = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    limit, kept, *_ = done.stdout.split()
    assert int(limit) > 0
    assert int(kept) == 0
    assert str(library) in done.stdout


def test_threads_that_free_and_take_at_once() -> None:
    expected = [gradient(2, seed) for seed in range(4)]
    wrong: list[int] = []
    inputs = []
    for seed in range(4):
        torch.manual_seed(seed)
        inputs.append(torch.randn(2 * MIB // 4))

    def work(own: int) -> None:
        x = inputs[own].clone().requires_grad_()
        for _ in range(40):
            (found,) = torch.autograd.grad(customloss.soft_f1_loss(x, x.detach() > 1), x)
            if not torch.equal(found, expected[own]):
                wrong.append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, torch, customloss
torch.set_num_threads(1)
x = torch.randn(1 << 20, requires_grad=True)
def gradient():
    return torch.autograd.grad(customloss.soft_f1_loss(x, x.detach() > 0), x)[0]
expected = gradient().clone()
held = gradient()
child = os.fork()
right = torch.equal(gradient(), expected) and torch.equal(held, expected)
if child == 0:
    held.zero_()
    os._exit(0 if right else 1)
status = os.waitpid(child, 0)[1]
assert right and status == 0, (right, status)
assert torch.equal(held, expected)
print("both are right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_blocks_of_its_own() -> None:
    done = run_python(FORK)
    assert done.stdout.strip() == "both are right", done.stderr


FORKS = """
import os, signal, threading, torch, customloss
torch.set_num_threads(1)
x = torch.randn(1 << 20)
target = x > 0
over = []
def churn():
    while not over:
        leaf = x.detach().requires_grad_()
        losses = [customloss.soft_f1_loss(leaf, target) for _ in range(8)]
        gradients = [torch.autograd.grad(loss, leaf) for loss in losses]
        del gradients
        customloss.empty_cache()
threading.Thread(target=churn, daemon=True).start()
for _ in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        customloss.empty_cache()
        customloss.build_info()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("a child hung")
        break
over.append(True)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_beside_a_thread_that_empties_the_cache_hangs_in_no_child() -> None:
    """Pages of 4 KiB take long to give back, and the lock is held meanwhile."""
    done = run_python(FORKS, CUSTOMLOSS_HUGE_PAGES="0")
    assert done.stdout.strip() == "done", done.stderr


def test_a_gradient_may_outlive_everything() -> None:
    code = (
        "import torch, customloss, sys\n"
        "x = torch.randn(1 << 20, requires_grad=True)\n"
        "customloss.soft_f1_loss(x, x.detach() > 0).backward()\n"
        "sys.keep = x.grad\n"
        "torch.keep = x\n"
        "print('done')"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


def test_it_is_a_tensor_like_any_other() -> None:
    found = gradient()
    expected = found.clone()
    buffer = io.BytesIO()
    torch.save(found, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), expected)
    shared = found.clone().share_memory_()
    found.share_memory_()
    assert torch.equal(found, shared)
    found.untyped_storage().copy_(expected.untyped_storage())
    found.mul_(2).resize_(5)
    assert torch.equal(found, expected[:5] * 2)
