"""A bundle of MONAI that names a loss by its class alone finds ours while MONAI is patched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def find_ours(
    module: ModuleType, replaced: Sequence[Any]
) -> tuple[type, str, Callable[..., dict[str, list[str]]]]:
    """What the table of ``monai.bundle.ComponentLocator`` is made by, ours included.

    MONAI lists the classes of a module whose ``__module__`` is that module. Ours have another one,
    and are listed where they stand, so that ``"_target_": "DiceCELoss"`` is
    ``monai.losses.dice.DiceCELoss``, whatever that stands for at the time. A table that was made
    while MONAI was patched is therefore right also after it was undone.

    Args:
        module: ``monai.bundle.config_item``.
        replaced: the names that stand for ours; read in every call.

    Returns:
        The class, the name of its method, and what shall be in its place.
    """
    locator: Any = module.ComponentLocator
    theirs = locator._find_classes_or_functions

    def with_ours(self: Any, modnames: Sequence[str] | str) -> dict[str, list[str]]:
        table: dict[str, list[str]] = theirs(self, modnames)
        searched = {modnames} if isinstance(modnames, str) else set(modnames)
        for each in replaced:
            place = each.owner.__name__
            if place in searched and each.before.__module__ == place:
                places = table.setdefault(each.name, [])
                if place not in places:
                    places.append(place)
        return table

    return locator, "_find_classes_or_functions", with_ours
