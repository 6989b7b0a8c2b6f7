"""Every group of arguments in csrc/arguments.h has the fields of its Python twin, and their types.

Options that users write in words are compared as well: the typed signatures with the tables of
defaults.
"""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import pytest
import torch
from paths import ROOT
from process import run_python

from customloss._backends import libraries
from customloss._spec import options
from customloss._spec.arguments import (
    Data,
    Elements,
    GroupSums,
    Incoming,
    Pointwise,
    Scoring,
    Wrt,
)

GROUPS: dict[str, Any] = {
    group.__name__: group
    for group in (Data, Elements, Scoring, Pointwise, Incoming, Wrt, GroupSums)
}
CSRC = ROOT / "csrc"
OPERATORS = {
    "confusion": "confusion",
    "confusion_score": "confusion",
    "confusion_backward": "confusion",
    "sums_score": "score",
}

pytestmark = pytest.mark.skipif(
    not CSRC.is_dir(), reason="needs the source tree, not an installed package"
)


def source(name: str) -> str:
    """The text of a file of csrc, without comments."""
    return re.sub(r"//.*", "", (CSRC / name).read_text())


def body(name: str, struct: str) -> str:
    found = re.search(rf"^struct {struct}\b[^;{{]*{{\n(.*?)^}};", source(name), re.M | re.S)
    assert found is not None, struct
    return found[1]


def declared(name: str, struct: str) -> list[str]:
    """The members of a struct in the order of their declarations."""
    lines = re.findall(r"^  [\w:<>]+ (\w+(?:, \w+)*);", body(name, struct), re.M)
    return [member for line in lines for member in line.split(", ")]


def taken(struct: str) -> list[str]:
    """The members of a group in the order in which its constructor takes them."""
    return re.findall(r"(\w+)(?:\(| = )in\.take<", body("arguments.h", struct))


def test_every_group_is_there() -> None:
    found = re.search(r"^namespace arguments {\n(.*?)^} *$", source("arguments.h"), re.M | re.S)
    assert found is not None
    assert re.findall(r"^struct (\w+)", found[1], re.M) == list(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_members_are_taken_in_the_order_of_the_fields(group: str) -> None:
    assert taken(group) == list(GROUPS[group]._fields)


@pytest.mark.parametrize("group", GROUPS)
def test_members_are_declared_in_the_order_of_the_fields(group: str) -> None:
    """Two of the groups are declared in headers that do not include torch."""
    if group == "Scoring":
        score, *rest = declared("average.h", "Scoring")
        assert score == "score"
        members = [*declared("score.h", "Score"), *rest]
    elif group == "Pointwise":
        members = declared("score.h", "Factors")
    else:
        members = declared("arguments.h", group)
    assert members == list(GROUPS[group]._fields)


@pytest.mark.parametrize("backend", ["cpu/{}.cpp", "cuda/{}.cu"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_groups_of_an_operator_are_its_schema(operator: str, backend: str) -> None:
    text = source(backend.format(OPERATORS[operator]))
    found = re.search(rf"^[\w:<>, ]+ {operator}\(([^)]*)\) {{", text, re.M)
    assert found is not None
    groups = re.findall(r"\barguments::(\w+)", found[1])
    fields = [field for group in groups for field in GROUPS[group]._fields]
    schema = getattr(torch.ops.customloss, operator).default._schema
    assert [argument.name for argument in schema.arguments] == fields


# What a field of each Python type may be in C++. Words and flags are integers in Python.
TYPES: dict[Any, str] = {
    torch.Tensor: "Tensor",
    torch.Tensor | None: "std::optional<Tensor>",
    bool: "bool",
    float: "double",
    float | None: "std::optional<double>",
    tuple[int, ...] | None: "std::optional<std::vector<int64_t>>",
    int: "unsigned|Activation|Link|Absent|Average|Reduction|OutOfRange|NanTargets|customloss::Wrt",
}


@pytest.mark.parametrize("group", GROUPS)
def test_members_have_the_types_of_the_fields(group: str) -> None:
    read = re.findall(r"(\w+)(?:\(| = )in\.take<([^()]+)>\(\)", body("arguments.h", group))
    kinds = get_type_hints(GROUPS[group])
    assert [name for name, _ in read] == list(kinds)
    for name, kind in read:
        assert re.fullmatch(TYPES[kinds[name]], kind), (name, kinds[name], kind)


@pytest.mark.parametrize(
    "typed, table, beside",
    [
        (options.Options, options.FUNCTION, {"smooth"}),
        (options.Reading, options.SUMS, {*options.EXTRA}),
    ],
    ids=["losses", "confusion_sums"],
)
def test_typed_options_are_those_of_the_tables(
    typed: type, table: dict[str, Any], beside: set[str]
) -> None:
    """An option that is in a table alone would be accepted, and not be shown by help.

    ``beside`` are options that signatures spell out themselves, as ``smooth`` of the losses.
    """
    more = {"check_target", "dtype"} if typed is options.Reading else set()
    assert set(typed.__annotations__) - more == set(table) - beside


ALL = "x, x, None, 0, 1.0, 0.0, False, False, None, 0.0, 0, 2.0, False, None, 0, 0"


@pytest.mark.skipif(not libraries.loaded("_C"), reason="needs the compiled library")
@pytest.mark.parametrize(
    "right, wrong, given, error",
    [
        ("", "", ALL, None),
        (", int nan_targets)", ")", ALL.removesuffix(", 0"), "has fewer arguments"),
        (", int nan_targets)", ", int nan_targets, Tensor other)", f"{ALL}, x", "has more"),
        ("-> Tensor", "-> (Tensor, Tensor)", ALL, "has 2 results, the kernel 1"),
    ],
    ids=("as it is", "fewer arguments", "more arguments", "more results"),
)
def test_another_schema_is_an_error(right: str, wrong: str, given: str, error: str | None) -> None:
    """Runs in a process of its own, which declares the operator with another schema."""
    schema = str(torch.ops.customloss.confusion.default._schema).removeprefix("customloss::")
    assert right in schema
    done = run_python(
        "import torch\n"
        "library = torch.library.Library('customloss', 'FRAGMENT')\n"
        f"library.define({schema.replace(right, wrong)!r})\n"
        f"torch.ops.load_library({str(libraries.paths['_C'])!r})\n"
        "x = torch.ones(3)\n"
        f"torch.ops.customloss.confusion({given})\n"
    )
    if error is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1 and f"customloss: the schema {error}" in done.stderr
