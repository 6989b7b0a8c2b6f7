"""Names, signatures, operator schemas and error texts are those of public_surface.json."""

from __future__ import annotations

import enum
import inspect
import json
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import customloss
from customloss.losses import named_scores

COMMITTED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "public_surface.json").read_text()
)
MODULES = ("distributed", "reference", "scores")


def described(value: object) -> str:
    """The kind of a public object and its signature."""
    if isinstance(value, types.ModuleType):
        return "module"
    kind = "class" if isinstance(value, type) else "function" if callable(value) else "value"
    if kind == "value":
        return f"value {value!r}"
    if isinstance(value, type) and issubclass(value, enum.Enum):
        return f"enum {list(value.__members__)}"  # its signature depends on the version of Python
    return f"{kind} {inspect.signature(value)}"  # type: ignore[arg-type]


def names() -> dict[str, str]:
    """The public names: those of the package, and those that its public modules define."""
    found = {name: described(getattr(customloss, name)) for name in customloss.__all__}
    for module in MODULES:
        for name, value in vars(getattr(customloss, module)).items():
            defined = getattr(value, "__module__", "").startswith("customloss")
            if not name.startswith("_") and defined:
                found[f"{module}.{name}"] = described(value)
    return found


def schemas() -> dict[str, str]:
    """The schema of every operator; an exported program holds names and schemas."""
    prefix = "customloss::"
    every = torch._C._jit_get_all_schemas()
    return {s.name.removeprefix(prefix): str(s) for s in every if s.name.startswith(prefix)}


def complaint(call: str) -> str:
    """The error that a bad call raises."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator)
    t = (torch.rand(4, 3, generator=generator) > 0.5).float()
    # Other tests in this process may have registered scores, which some messages list.
    try:
        with patch.dict(named_scores.registered, clear=True):
            eval(call, {"customloss": customloss, "torch": torch, "x": x, "t": t})
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def surface(calls: list[str]) -> dict[str, dict[str, str]]:
    """The whole public surface, as it is now."""
    errors = {call: complaint(call) for call in calls}
    return {"names": names(), "operators": schemas(), "errors": errors}


def test_the_names_of_the_package() -> None:
    """The package has these names, no more and no less."""
    before = {name for name in COMMITTED["names"] if "." not in name}
    assert set(customloss.__all__) == before


@pytest.mark.parametrize("name", COMMITTED["names"])
def test_signatures(name: str) -> None:
    assert names()[name] == COMMITTED["names"][name]


def test_schemas() -> None:
    assert schemas() == COMMITTED["operators"]


@pytest.mark.parametrize("call", COMMITTED["errors"])
def test_error_texts(call: str) -> None:
    assert complaint(call) == COMMITTED["errors"][call]


def main() -> None:
    """Rewrites public_surface.json, for an intended change of the public surface."""
    path: Any = Path(__file__).parent / "public_surface.json"
    path.write_text(json.dumps(surface(list(COMMITTED["errors"])), indent=1) + "\n")


if __name__ == "__main__":
    main()
