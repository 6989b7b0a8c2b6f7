"""Tensors that are made of options are kept between steps, within a number of bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from customloss.losses import classes


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """The latest are kept, within a number of bytes; the last one whatever its size."""
    recent = classes.Recent(most_bytes=1000, most_entries=5)
    made = []

    def ask(name: str, count: int) -> Tensor:
        def make() -> Tensor:
            made.append(name)
            return torch.zeros(count)

        return recent.get((name,), make)

    first = ask("a", 100)
    assert ask("a", 100) is first
    ask("b", 100)
    ask("a", 100)
    ask("c", 100)  # 1200 bytes: b, which was asked for longest ago, goes
    ask("a", 100)
    assert made == ["a", "b", "c"]
    ask("b", 100)
    assert made == ["a", "b", "c", "b"]
    big = ask("big", 10_000)
    assert ask("big", 10_000) is big
    ask("a", 100)
    assert made[4:] == ["big", "a"]
    for name in "ghijkl":
        ask(name, 1)
    assert len(recent._tensors) == 5
    assert recent._bytes == sum(each.nbytes for each in recent._tensors.values())
    recent.clear()
    ask("l", 1)
    assert made[-2:] == ["l", "l"]


def test_tables_of_many_classes_are_not_all_kept() -> None:
    """Those of large vocabularies added up to 480 MiB."""
    x, count = torch.zeros(1, 2**17), 2**17
    recent = classes._chosen.forget.__self__
    recent.clear()
    for first in range(16):  # 2 MiB each
        classes._chosen(x, (((first, count),), None), count, torch.float64)
    held = sum(tensor.nbytes for tensor in recent._tensors.values())
    assert 2**22 <= held <= 2**24
    recent.clear()
