"""Which cases `make test` runs, and which wait for `make test-rest`: those marked ``more``.

A case is ``more`` if `make test` already runs others of its kind. Two decorators decide that; they
stand next to the parameters that they choose from.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import pytest

# Of the product of the parameters `make test` keeps as many combinations as the longest list has
# values, chosen so that every value of every list is in at least one of them.
covering = pytest.mark.covering


def one_of_each(*kinds: Callable[..., Hashable]) -> pytest.MarkDecorator:
    """`make test` keeps the first case of every kind; each function maps parameters to a kind.

    Without a function all cases are of one kind.
    """
    return pytest.mark.one_of_each.with_args(*kinds)


def mark_more(items: list[pytest.Item]) -> None:
    """Marks what the two decorators leave out."""
    families: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        families[item.nodeid.partition("[")[0]].append(item)
    for family in families.values():
        chosen = family[0].get_closest_marker("one_of_each")
        if chosen is not None:
            kept = _firsts(family, chosen.args or (lambda: None,))
        elif family[0].get_closest_marker("covering") is not None:
            kept = _diagonal(family)
        else:
            continue
        for item, keep in zip(family, kept):
            if not keep:
                item.add_marker("more")


def _firsts(family: list[Any], kinds: tuple[Callable[..., Hashable], ...]) -> list[bool]:
    seen: set[Any] = set()
    kept = []
    for item in family:
        params = item.callspec.params
        item_kinds = {
            (kind, kind(*(params[name] for name in inspect.signature(kind).parameters)))
            for kind in kinds
        }
        kept.append(not item_kinds <= seen)
        seen |= item_kinds
    return kept


def _diagonal(family: list[Any]) -> list[bool]:
    # For each list, the place of every item's value in it; values are in order of appearance.
    lists = []
    for names in _lists(family[0]):
        values = [tuple(id(item.callspec.params[name]) for name in names) for item in family]
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        lists.append([places[value] for value in values])
    lengths = [1 + max(places) for places in lists]
    kept = {
        tuple(_place(step, number, length) for number, length in enumerate(lengths))
        for step in range(max(lengths))
    }
    return [places in kept for places in zip(*lists)]


def _place(step: int, number: int, length: int) -> int:
    """The place in a list at one step; the first ``length`` steps reach every place.

    Neighbouring lists are walked in opposite directions and are shifted after each walk, so that
    two lists of equal length do not always pair the same values.
    """
    return ((-step if number % 2 else step) + number * (step // length)) % length


def _lists(item: Any) -> list[tuple[str, ...]]:
    """The names of the parameters, grouped by the ``parametrize`` that gives them together."""
    found: list[tuple[str, ...]] = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        found.append(tuple(re.findall(r"\w+", names) if isinstance(names, str) else names))
    alone = set(item.callspec.params).difference(*found)
    return [*found, *((name,) for name in sorted(alone))]


def one_shard(items: list[pytest.Item], shard: str) -> list[pytest.Item]:
    """The tests of one shard, "0/4" to "3/4"; neighbouring tests go to different shards."""
    number, _, count = shard.partition("/")
    return items[int(number) :: int(count)]


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """Slow tests come late, and those that build wheels come last."""
    late = ("slow", "sanitize", "packaging")

    def rank(item: pytest.Item) -> int:
        return max((late.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in late),
                   default=0)  # fmt: skip

    return sorted(items, key=rank)
