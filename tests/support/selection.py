"""Which cases `make test` runs, and which wait for `make test-rest`: those marked ``more``.

A case is ``more`` where `make test` has others of its kind. Two decorators of a test say so, beside
the parameters that they choose from.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import pytest

# `make test` keeps of the product of the parameters as many combinations as the longest list has
# values: every value of every list is in at least one of them.
covering = pytest.mark.covering


def one_of_each(*kinds: Callable[..., Hashable]) -> pytest.MarkDecorator:
    """`make test` keeps a case that is the first of a kind; a kind is a function of parameters.

    With no function, all cases are of one kind.
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
        given = item.callspec.params
        of = {
            (kind, kind(*(given[name] for name in inspect.signature(kind).parameters)))
            for kind in kinds
        }
        kept.append(not of <= seen)
        seen |= of
    return kept


def _diagonal(family: list[Any]) -> list[bool]:
    # Of each list the place of every item's value in it, which is the order of first appearance.
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
    """Every place comes up in the first ``length`` steps. Neighbouring lists are run through in
    opposite directions, and shifted at every turn: so two lists of one length are mixed."""
    return ((-step if number % 2 else step) + number * (step // length)) % length


def _lists(item: Any) -> list[tuple[str, ...]]:
    """The names of the parameters; those that are given together are one list."""
    found: list[tuple[str, ...]] = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        found.append(tuple(re.findall(r"\w+", names) if isinstance(names, str) else names))
    alone = set(item.callspec.params).difference(*found)
    return [*found, *((name,) for name in sorted(alone))]


def one_shard(items: list[pytest.Item], shard: str) -> list[pytest.Item]:
    """Of shards "0/4" to "3/4" the named one; neighbours go to different shards."""
    number, _, count = shard.partition("/")
    return items[int(number) :: int(count)]


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """What takes long comes late, and what builds wheels comes last."""
    late = ("slow", "sanitize", "packaging")

    def rank(item: pytest.Item) -> int:
        return max((late.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in late),
                   default=0)  # fmt: skip

    return sorted(items, key=rank)
