"""Every Python snippet of the README and of docs/ runs as it is printed.

Recipes that are said to be losses of MONAI are those, the tables of docs/losses.md are true, and no
option is left out of the docs.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

import customloss
from customloss._spec import options

SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(SNIPPET.findall(page.read_text()))
]


def run(code: str) -> dict[str, Any]:
    """The names that the snippet leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


def test_the_readme_has_snippets():
    assert any("torch.ops.customloss.soft_f1" in param.values[0] for param in SNIPPETS)


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code):
    run(code)


# ---- links ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names by which headings can be linked, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https:"):
            continue
        file, _, anchor = link.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), link
        assert not anchor or anchor in anchors(to), link


# ---- recipes that are losses of MONAI ------------------------------------------------------------


def recipe(heading: str) -> dict[str, Any]:
    """The names that a recipe leaves."""
    _, _, section = (ROOT / "docs" / "recipes.md").read_text().partition(f"\n## {heading}\n")
    (code,) = SNIPPET.findall(section.partition("\n## ")[0])
    return run(code)


def is_monais(own: torch.Tensor, name: str, *operands: torch.Tensor, **given: Any) -> None:
    losses = pytest.importorskip("monai.losses")
    if not hasattr(losses, name):
        pytest.skip(f"this MONAI has no {name}")
    torch.testing.assert_close(own, getattr(losses, name)(**given)(*operands), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_boundary_loss_is_monais():
    at = recipe("Boundary loss")
    logits, target = at["logits"], at["target"]
    own = at["boundary_loss"](logits, target, at["weight"])
    is_monais(
        own, "BoundaryLoss", logits, target[:, None],
        softmax=True, to_onehot_y=True, include_background=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gamma", [0.25, 0.5])
def test_the_unified_focal_loss_is_monais(gamma):
    at = recipe("Unified focal loss")
    logits, target = at["logits"], at["target"]
    own = at["unified_focal"](logits, target, lam=0.3, gamma=gamma, delta=0.6)
    is_monais(
        own, "AsymmetricUnifiedFocalLoss", logits.softmax(1), target[:, None],
        to_onehot_y=True, weight=0.3, gamma=gamma, delta=0.6,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_dice_and_cross_entropy_or_focal_are_monais():
    at = recipe("The losses of nnU-Net and MONAI")
    logits, target = at["logits"], at["target"]
    given = {
        "to_onehot_y": True, "include_background": False, "smooth_nr": 1e-5, "smooth_dr": 1e-6,
    }  # fmt: skip
    own = at["monai_dice_ce"](logits, target)
    labels = target[:, None]
    is_monais(own, "DiceCELoss", logits, labels, softmax=True, label_smoothing=0.1, **given)
    is_monais(at["monai_dice_focal"], "DiceFocalLoss", logits, labels, sigmoid=True, **given)


MONAI_WORDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "softmax": ("DiceLoss", {"softmax": True}, "DiceLoss", {"activation": "softmax"}),
    "sigmoid": ("DiceLoss", {"sigmoid": True}, "DiceLoss", {}),
    "batch": (
        "DiceLoss", {"sigmoid": True, "batch": True}, "DiceLoss", {"samplewise": False},
    ),
    "include_background": (
        "DiceLoss", {"sigmoid": True, "include_background": False}, "DiceLoss",
        {"include_background": False},
    ),
    "jaccard": (
        "DiceLoss", {"sigmoid": True, "jaccard": True}, "JaccardLoss", {"smooth": (5e-6, 5e-4)},
    ),
    "squared_pred": ("DiceLoss", {"sigmoid": True, "squared_pred": True}, "SquaredDiceLoss", {}),
    "alpha": (
        "TverskyLoss", {"sigmoid": True, "alpha": 0.3, "beta": 0.7}, "TverskyLoss",
        {"fp_weight": 0.3, "fn_weight": 0.7},
    ),
    "lambda_dice": (
        "DiceCELoss", {"softmax": True, "lambda_dice": 0.3, "lambda_ce": 0.6}, "DiceCELoss",
        {"dice_weight": 0.3, "ce_weight": 0.6},
    ),
    "lambda_focal": (
        "DiceFocalLoss", {"sigmoid": True, "lambda_focal": 0.6, "gamma": 1.5, "alpha": 0.3},
        "DiceFocalLoss", {"focal_weight": 0.6, "focal_gamma": 1.5, "focal_alpha": 0.3},
    ),
    "label_smoothing": (
        "DiceCELoss", {"softmax": True, "label_smoothing": 0.2}, "DiceCELoss",
        {"ce_label_smoothing": 0.2},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("word", MONAI_WORDS)
def test_the_words_of_monai_mean_what_the_table_says(word):
    assert f"`{word}" in (ROOT / "docs" / "recipes.md").read_text()
    theirs, given, ours, options = MONAI_WORDS[word]
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    options = {"samplewise": True, "smooth": (1e-5, 1e-3), **options}
    own = getattr(customloss, ours)(**options)(logits, target)
    given = {"to_onehot_y": True, "smooth_nr": 1e-5, "smooth_dr": 1e-3, **given}
    is_monais(own, theirs, logits, target[:, None], **given)


# ---- tables of docs/losses.md --------------------------------------------------------------------


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    _, _, section = (ROOT / "docs" / "losses.md").read_text().partition(f"\n## {heading}\n")
    lines = section[section.index("\n| ") + 1 :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`\"?(\w+)\"?`", cell)


LOSS_FUNCTIONS = [
    name for row in table("All losses") for name in quoted(row[0]) if name.endswith("_loss")
]


def test_every_loss_has_a_row():
    losses = {
        name
        for name in vars(customloss)
        if name.endswith("_loss") and name not in ("confusion_loss", "deep_supervision_loss")
    }
    assert set(LOSS_FUNCTIONS) == losses


@pytest.mark.parametrize(
    "call", [row[1].split("`")[1] for row in table("Which loss for which problem")]
)
def test_the_calls_of_the_first_table_train(call):
    criterion = eval(
        f"customloss.{call}", {"customloss": customloss, "score": customloss.scores.jaccard}
    )
    logits = torch.randn(4, 3, 8, 8, requires_grad=True)
    is_softmax = isinstance(criterion, (customloss.DiceCELoss, customloss.TverskyCELoss))
    target = torch.randint(0, 3, (4, 8, 8)) if is_softmax else torch.rand(4, 3, 8, 8) < 0.3
    if criterion.options().get("ignore_index") is not None:
        target[:, :2] = criterion.ignore_index
    criterion(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


def test_the_defaults_of_tversky_are_those_of_the_table():
    """Those of the focal one differ; rows that say nothing of defaults have those of Tversky."""
    said = {}
    for row in table("All losses"):
        numbers = re.search(r"by default a = (\S+) and b = ([^\s,]+),", row[-1])
        if numbers:
            said[quoted(row[0])[0]] = tuple(map(float, numbers.groups()))
    assert {*said} == {"tversky_loss", "focal_tversky_loss"}
    for name in LOSS_FUNCTIONS:
        parameters = inspect.signature(getattr(customloss, name)).parameters
        if "fp_weight" in parameters:
            defaults = parameters["fp_weight"].default, parameters["fn_weight"].default
            assert defaults == said.get(name, said["tversky_loss"]), name


def lacking() -> dict[str, set[str]]:
    """The functions that lack an option, according to the table."""
    missing: dict[str, set[str]] = {}
    above: set[str] = set()
    for options_cell, functions in table("Which loss has which option"):
        own = set(quoted(functions)) & set(LOSS_FUNCTIONS)
        above = own | above if functions.startswith("the above") else own
        missing.update(dict.fromkeys(quoted(options_cell), above))
    return missing


@pytest.mark.parametrize("function", LOSS_FUNCTIONS)
def test_the_table_of_options_is_true(function):
    parameters = inspect.signature(getattr(customloss, function)).parameters
    assert lacking()
    for option, functions in lacking().items():
        assert (option in parameters) == (function not in functions), option


@pytest.mark.parametrize(
    "function", [name for name in LOSS_FUNCTIONS if name not in lacking()["link"]]
)
@pytest.mark.parametrize("link", [quoted(row[0])[0] for row in table("Links")])
def test_the_table_of_links_is_true(link, function):
    not_for = quoted(table("Links")[-2][2]) if "log_" in link else []
    logits, target = torch.randn(8, 3), torch.randint(0, 3, (8,))
    given = {"score": "dice", "cross_entropy_weight": 1.0} if function == "compound_loss" else {}
    call = getattr(customloss, function)
    if function in not_for:
        with pytest.raises(ValueError, match="link"):
            call(input=logits, target=target, link=link, **given)
    else:
        call(input=logits, target=target, link=link, **given)


@pytest.mark.parametrize("page", ["docs/losses.md", "examples/customloss_recall_at/README.md"])
def test_the_entry_point_is_that_of_the_example(page):
    (lines,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    project = ROOT / "examples" / "customloss_recall_at" / "pyproject.toml"
    assert lines in project.read_text()


# ---- docs/nan.md ---------------------------------------------------------------------------------


def test_what_the_page_says_of_missing_labels_and_of_infinite_logits():
    """``test_float_labels.py`` and ``test_infinite_and_hidden.py`` prove it for every loss."""
    page = " ".join((ROOT / "docs" / "nan.md").read_text().split())
    logits, labels = torch.zeros(1, 3, 2), torch.tensor([[[0.0, float("nan")]]])
    assert "A NaN among class numbers that came as floats does not count with this option" in page
    loss = customloss.dice_ce_loss(logits, labels, nan_targets="ignore")
    torch.testing.assert_close(
        loss, customloss.dice_ce_loss(logits, torch.tensor([[0, 255]]), ignore_index=255)
    )
    assert "without it, it raises on the CPU" in page
    with pytest.raises(ValueError, match="got nan"):
        customloss.dice_ce_loss(logits, labels)
    assert "of a pixel's softmax one is +∞, or all are -∞" in page
    low, high = float("-inf"), float("inf")
    for row, is_nan in (([0, high, 0], True), ([low] * 3, True), ([0, low, low], False)):
        assert customloss.dice_ce_loss(torch.tensor([row]), torch.tensor([0])).isnan() == is_nan


# ---- options -------------------------------------------------------------------------------------


def names(*tables: dict[str, Any]) -> list[str]:
    return sorted({name for table in tables for name in table})


def mentions(text: str, option: str) -> bool:
    return re.search(rf"[`\"]{option}\b", text) is not None


@pytest.mark.parametrize(
    "option", names(options.FUNCTION, options.LOSS, options.POINTWISE, options.SUMS)
)
def test_the_page_of_losses_has_every_option(option):
    assert mentions((ROOT / "docs" / "losses.md").read_text(), option)


@pytest.mark.parametrize("option", names(options.FUNCTION))
def test_the_readme_and_a_docstring_have_every_option_of_all_losses(option):
    assert mentions((ROOT / "README.md").read_text(), option)
    assert re.search(rf"^    (\w+, )*{option}\b.*:", inspect.getdoc(customloss.soft_f1_loss), re.M)


@pytest.mark.parametrize("option", names(options.POINTWISE))
def test_a_docstring_has_every_option_of_compounds(option):
    assert re.search(rf"^    (\w+, )*{option}\b.*:", inspect.getdoc(customloss.compound_loss), re.M)
