"""The kernels of csrc/cuda/pixel_element.cuh, run on the CPU, agree with the reference."""

from __future__ import annotations

from typing import Any

import build
import pytest
import torch
from emulated import library, needs_a_compiler  # noqa: F401
from probabilities import coefficients, ends, slopes
from selection import covering
from test_emulated_pixel import EVERY, How, Operands, check, emulation, operands  # noqa: F401

from customloss import reference

pytestmark = needs_a_compiler

LOG_LOSS, FOCAL = 1, 8
EXTRAS = (0, LOG_LOSS, FOCAL)
# Planes have long, short and odd runs. Rows are unaligned, folded, or cut into tiles.
PLANES = ((2, 3, 5, 33), (1, 1, 1500), (3, 2, 16, 8), (2, 10, 40))
ROWS = ((70, 8), (70, 9), (9, 300), (200, 1))


TARGETS = ("soft", "hard", "bytes", "bool", "long")
WEIGHTS = (None, "element", "elements", "sample", "class", "pixel")


def given(
    shape: tuple[int, ...], dtype: torch.dtype, target: str, weight: str | None, **more: Any
) -> Operands:
    kind = "bytes" if target in ("bool", "long") else target
    made = operands(shape, dtype=dtype, target=kind, weight=weight, **more)
    if target == "bool":
        return made._replace(target=made.target == 1)
    if target == "long":
        return made._replace(target=made.target.long())
    if target == "hard":
        return made._replace(target=made.target.float())
    return made


@covering
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shapes_targets_and_weights(
    dtype: torch.dtype,
    extra: int,
    activation: str,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    for index, shape in enumerate((*PLANES, *ROWS)):
        target = TARGETS[(index + extra + (activation == "none")) % len(TARGETS)]
        weight = WEIGHTS[(index + extra // 2) % len(WEIGHTS)]
        ignored = None if target == "bool" else (None, 255, 0)[index % 3]
        how = How(activation, 1.25 if activation == "sigmoid" else 1.0, 0.0, index % 4 == 1,
                  index % 5 != 2, ignored, (0.0, 0.1)[index % 2], extra, 1.5, index % 6 == 5,
                  (None, 0.2, 0.0)[index % 3])  # fmt: skip
        layout = ("contiguous", "shifted", "last")[index % 3] if len(shape) > 2 else "contiguous"
        made = given(shape, dtype, target, weight, layout=layout, ignore_index=ignored,
                     probabilities=activation == "none")  # fmt: skip
        check(emulation, made, how)


@pytest.mark.parametrize("shape", [*PLANES, *ROWS], ids=str)
def test_the_order_of_threads_and_wide_indices_change_nothing(
    shape: tuple[int, ...],
    emulation: build.Emulation,  # noqa: F811
) -> None:
    for extra, weight in ((LOG_LOSS, "element"), (FOCAL, None)):
        made = operands(shape, dtype=torch.bfloat16, target="bytes", weight=weight,
                        ignore_index=255)  # fmt: skip
        how = How("sigmoid", ignore_index=255, extra=extra, label_smoothing=0.1)
        found = []
        for seed in (1, 2, 3):
            emulation.seed(seed)
            emulation.wide_index(seed == 3)
            sums = emulation.confusion(*made, *how.arguments())
            by = emulation.confusion_backward(None, sums, *made, 0, *how.arguments())
            found.append((sums, by))
        for sums, by in found[1:]:
            assert torch.equal(sums, found[0][0])
            assert torch.equal(by, found[0][1])


@covering
@pytest.mark.parametrize("shape", [(2, 3, 40), (70, 9), (64, 8)], ids=str)
@pytest.mark.parametrize("extra", EXTRAS)
def test_nothing_leaks_from_what_does_not_count(
    shape: tuple[int, ...],
    extra: int,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    made = operands(shape, target="soft", weight="elements", ignore_index=255)
    how = How("sigmoid", ignore_index=255, extra=extra, label_smoothing=0.05)
    assert made.weight is not None
    removed = ~made.weight
    gone = (made.target == 255) | removed
    clean = emulation.confusion(*made, *how.arguments())
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled = made._replace(
            input=made.input.masked_fill(gone, value),
            target=made.target.masked_fill(removed, value),
        )
        assert torch.equal(emulation.confusion(*spoiled, *how.arguments()), clean)
        by = emulation.confusion_backward(None, clean, *spoiled, 0, *how.arguments())
        assert torch.isfinite(by).all()
        assert (by[gone] == 0).all()


def test_one_launch_and_one_more_to_pool(emulation: build.Emulation) -> None:  # noqa: F811
    """As for elements without extras, no pass over pixels comes first."""
    for shape, units in (((4, 3, 64), 1), ((1, 1, 20000), 2), ((600, 8), 2)):
        made = operands(shape, target="bytes")
        how = How("sigmoid", extra=LOG_LOSS, per_sample=units == 1)
        before = emulation.launches()
        sums = emulation.confusion(*made, *how.arguments())
        assert emulation.launches() - before == units
        before = emulation.launches()
        emulation.confusion_backward(None, sums, *made, 0, *how.arguments())
        assert emulation.launches() - before == 1


def test_long_sums_keep_their_digits(emulation: build.Emulation) -> None:  # noqa: F811
    """Equal terms, as of a fresh model, round in the same direction; float32 sums must be short."""
    x = torch.full((1, 1, 1 << 18), 0.3)
    t = torch.zeros(x.shape, dtype=torch.uint8)
    how = How("sigmoid", extra=LOG_LOSS)
    sums = emulation.confusion(x, t, None, *how.arguments()).flatten()
    p = torch.sigmoid(x[0, 0, :1].double())
    exact = x.numel() * torch.stack([p - p, p, p - p, 1 - p, p - p, -torch.log1p(-p)]).flatten()
    torch.testing.assert_close(sums, exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("extra", [LOG_LOSS, FOCAL, LOG_LOSS | FOCAL, EVERY])
def test_slopes_of_probabilities_at_their_ends(
    extra: int,
    gamma: float,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    """Below its floor a logarithm has no slope: in the kernels of elements, and of pixels."""
    for dtype in (torch.float32, torch.float64):
        p, t = ends(dtype)
        how = How("none", extra=extra, focal_gamma=gamma)
        parts = (0.75 if extra & LOG_LOSS else 0.0, 0.5 if extra & FOCAL else 0.0)
        by = coefficients(extra, *parts)
        found = emulation.confusion_backward(None, by, p, t, None, 0, *how.arguments())
        rtol = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(found, slopes(p, t, *parts, gamma), rtol=rtol, atol=1e-36)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_an_infinite_focal_loss_that_weighs_nothing(
    gamma: float,
    emulation: build.Emulation,  # noqa: F811
) -> None:
    """It spoils no gradient, and neither does the positive that a sure negative might have been."""
    x, t = torch.tensor([[-torch.inf, 1.0, -torch.inf]]), torch.tensor([[1.0, 1.0, 0.0]])
    how = How("sigmoid", extra=FOCAL, focal_gamma=gamma)
    by = torch.zeros(6, 1, 3, dtype=torch.float64)
    by[5] = 0.5  # focal_neg
    by[4, 0, 2] = 0.25  # focal_pos
    for wrt, name in enumerate(("input", "target")):
        found = emulation.confusion_backward(None, by, x, t, None, wrt, *how.arguments())
        assert found.isfinite().all()
        wanted = reference.confusion_backward(
            by, x, t, None, name, "sigmoid", 1.0, 0.0, False, True,
            extra=FOCAL, focal_gamma=gamma,
        )  # fmt: skip
        torch.testing.assert_close(found, wanted)
