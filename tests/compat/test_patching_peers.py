"""Every row of the table of libraries is true: the names are there, they are ours while patched,
whether the library was imported before or is imported later, and its own again afterwards."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import like_torchvision
import pytest
import toolbelt_losses
import torch
from process import run_python

import customloss
from customloss._bench.libraries import import_alone
from customloss.compat.patching.imports import AfterImport
from customloss.compat.patching.peers import PEERS, Peer

# compat has more than what stands for a name of the library
NOT_REPLACED = {
    "nnunet": {"DC_and_topk_loss", "softmax_helper_dim1"},  # refused; known by its name
    "toolbelt": {"CrossEntropyFocalLoss", "FocalLoss"},  # refused by default
}
TORCHVISION = find_spec("torchvision") is not None
ALONE = ("nnunet", "smp")  # whose packages import much that need not be installed
NAMES = [(peer, module, name) for peer, row in PEERS.items() for module, names in row.names.items()
         for name in names]  # fmt: skip


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    customloss.unpatch()
    assert not any(isinstance(finder, AfterImport) for finder in sys.meta_path)
    for name in set(sys.modules) - set(before):  # the next test imports them anew
        if name.startswith(
            ("torchvision", "nnunetv2", "segmentation_models_pytorch", "pytorch_toolbelt")
        ):
            del sys.modules[name]


@pytest.fixture
def installed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision is there for the tests that are about it."""
    given = getattr(request.node, "callspec", None)
    if not TORCHVISION and (given is None or given.params["peer"] == "torchvision"):
        monkeypatch.syspath_prepend(like_torchvision.write(tmp_path))


def module_of(peer: str, name: str) -> ModuleType:
    """A module of a library, which is skipped where it is not installed."""
    if find_spec(PEERS[peer].package) is None:
        pytest.skip(f"needs {PEERS[peer].distribution}")
    if peer == "toolbelt":
        return cast(ModuleType, toolbelt_losses.load(name.rpartition(".")[2]))
    return import_alone(name) if peer in ALONE else importlib.import_module(name)


def parameters(loss: Any) -> list[tuple[str, Any]]:
    """Names and defaults; those of transformers depend on the model, and ``strict`` is ours."""
    found = inspect.signature(loss).parameters.values()
    words = {"labels": "targets", "num_masks": "num_boxes"}
    return [(words.get(each.name, each.name), each.default) for each in found
            if each.name != "strict" and each.kind is not each.VAR_KEYWORD]  # fmt: skip


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("peer", "module", "name"), NAMES)
def test_a_name_is_there_with_our_signature(peer: str, module: str, name: str) -> None:
    theirs = getattr(module_of(peer, module), name)
    assert theirs.__module__ == module
    own = getattr(importlib.import_module(PEERS[peer].ours), name)
    assert isinstance(theirs, type) == isinstance(own, type)
    expected, given = parameters(theirs), parameters(own)
    assert [each[0] for each in given] == [each[0] for each in expected]
    for (word, own_default), (_, default) in zip(given, expected):
        same = own_default == default or getattr(default, "__name__", 0) == getattr(
            own_default, "__name__", 1
        )
        assert same, f"{word}: {own_default} and {default}"


@pytest.mark.parametrize("peer", PEERS)
def test_all_of_our_drop_ins_are_in_the_table(peer: str) -> None:
    row = PEERS[peer]
    ours = importlib.import_module(row.ours)
    public = {
        name for name, value in vars(ours).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(row.ours)
        and (isinstance(value, type) or inspect.isfunction(value))
    }  # fmt: skip
    listed = [name for names in row.names.values() for name in names]
    assert set(listed) == public - NOT_REPLACED.get(peer, set())
    classes = [name for name in listed if isinstance(getattr(ours, name), type)]
    assert len(classes) == len(set(classes))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("later", [False, True], ids=["imported before", "imported later"])
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer not in ("monai", "transformers")])
def test_names_are_ours_while_patched(peer: str, later: bool) -> None:
    row = PEERS[peer]
    ours = importlib.import_module(row.ours)
    if find_spec(row.package) is None:
        pytest.skip(f"needs {row.distribution}")
    if later:
        for name in [name for name in sys.modules if name.partition(".")[0] == row.package]:
            del sys.modules[name]
        customloss.patch(peer, quiet=True)
        assert row.package not in sys.modules
        modules = {name: module_of(peer, name) for name in row.names}
    else:
        modules = {name: module_of(peer, name) for name in row.names}
        customloss.patch(peer, quiet=True)
    for module, names in row.names.items():
        for name in names:
            assert getattr(modules[module], name) is getattr(ours, name)
        assert modules[module].__spec__.loader is modules[module].__loader__  # type: ignore[union-attr]
        assert inspect.getsource(modules[module])
    package = sys.modules.get(next(iter(row.names)).rpartition(".")[0])
    customloss.unpatch(peer)
    for module, names in row.names.items():
        for name in names:
            theirs = getattr(modules[module], name)
            assert theirs.__module__ == module
            assert getattr(package, name, theirs) is theirs


@pytest.mark.usefixtures("installed")
def test_torchvisions_own_imports_are_ours_and_restored() -> None:
    """``torchvision.ops`` and a model take the name from the module that defines it."""
    from customloss.compat.torchvision import sigmoid_focal_loss

    customloss.patch("torchvision", quiet=True)
    ops, model = "torchvision.ops", "torchvision.models.detection.retinanet"
    modules = [importlib.import_module(name) for name in (ops, model)]
    assert all(each.sigmoid_focal_loss is sigmoid_focal_loss for each in modules)
    customloss.unpatch()
    assert all(each.sigmoid_focal_loss.__module__ == f"{ops}.focal_loss" for each in modules)


def definitions(path: Path) -> Iterator[str]:
    """The mask losses that a file defines."""
    if "dice_loss" not in (text := path.read_text()) and "sigmoid_" not in text:
        return
    for node in ast.parse(text).body:
        wanted = ("dice_loss", "sigmoid_focal_loss", "sigmoid_cross_entropy_loss")
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            yield node.name


def test_the_table_has_every_mask_loss_of_transformers_but_another_formula() -> None:
    package = find_spec("transformers")
    if package is None or package.origin is None:
        pytest.skip("needs transformers")
    root = Path(package.origin).parent
    found = set()
    for path in [*root.glob("loss/*.py"), *root.glob("models/*/modeling_*.py")]:
        module = ".".join(("transformers", *path.relative_to(root).with_suffix("").parts))
        found |= {(module, name) for name in definitions(path)}
    listed = {(module, name) for module, names in PEERS["transformers"].names.items()
              for name in names}  # fmt: skip
    assert found - listed == {("transformers.loss.loss_grounding_dino", "sigmoid_focal_loss")}
    assert listed <= found


IN_TRANSFORMERS = """
import sys, torch, customloss
from customloss.compat import transformers as ours
import transformers
made = customloss.patch("transformers", quiet=True)
assert "transformers.loss.loss_for_object_detection" not in sys.modules  # nothing was imported
from transformers.models.mask2former import modeling_mask2former as model
from transformers.loss import loss_for_object_detection as detection, loss_rt_detr, loss_rf_detr
from transformers.loss import loss_grounding_dino
assert detection.dice_loss is not model.dice_loss  # they stand for two functions
first, second = {detection.dice_loss, model.dice_loss} - {ours.dice_loss}, ours.dice_loss
assert len(first) == 1 and first.pop().__wrapped__ is second
assert loss_rt_detr.dice_loss is loss_rf_detr.dice_loss is detection.dice_loss
assert loss_rt_detr.sigmoid_focal_loss is detection.sigmoid_focal_loss
assert loss_grounding_dino.sigmoid_focal_loss.__module__ == loss_grounding_dino.__name__
x, t = torch.randn(3, 9), torch.rand(3, 9).round()
values = [f(x, t, 2) for f in (model.dice_loss, model.sigmoid_cross_entropy_loss,
                               detection.sigmoid_focal_loss)]
named = model.dice_loss(inputs=x, labels=t, num_masks=2)
assert "transformers.loss.loss_rf_detr.sigmoid_cross_entropy_loss" in made.replaced["transformers"]
import pickle
assert pickle.loads(pickle.dumps(model.dice_loss)) is model.dice_loss
customloss.unpatch()
for module in (detection, loss_rt_detr, loss_rf_detr):
    assert module.dice_loss.__module__ == detection.__name__, module
    assert not hasattr(module.dice_loss, "__wrapped__")
assert model.dice_loss.__module__ == model.__name__ and not hasattr(model.dice_loss, "__wrapped__")
expected = [f(x, t, 2) for f in (model.dice_loss, model.sigmoid_cross_entropy_loss,
                                 detection.sigmoid_focal_loss)]
torch.testing.assert_close(values, expected)
torch.testing.assert_close(named, expected[0])
"""


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_lazy_modules_of_transformers() -> None:
    """In a process of its own, in which none of them was imported."""
    ran = run_python(IN_TRANSFORMERS)
    assert ran.returncode == 0, ran.stderr


def test_a_patch_before_the_import_imports_nothing_of_the_libraries() -> None:
    packages = sorted({row.package for row in PEERS.values()})
    ran = run_python(
        "import sys, warnings, customloss\nwarnings.simplefilter('ignore')\n"
        "customloss.patch('all')\n"
        f"print([name for name in {packages} if name in sys.modules])"
    )
    assert ran.stdout.endswith("[]\n"), ran.stderr


@pytest.mark.skipif(find_spec("kornia") is None, reason="needs kornia")
def test_a_function_has_the_same_numbers_while_patched() -> None:
    import kornia.losses as losses

    x, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 3, (2, 4, 4))
    expected = losses.dice_loss(x, t), losses.focal_loss(x, t, alpha=0.25, reduction="mean")
    with customloss.patch("kornia", quiet=True):
        own = losses.dice_loss(x, t), losses.focal_loss(x, t, alpha=0.25, reduction="mean")
        assert losses.dice_loss.__module__ == "customloss.compat.kornia"
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_rows_are_complete() -> None:
    for name, row in PEERS.items():
        assert isinstance(row, Peer) and all(each.endswith(".") for each in row.versions), name
        assert all(each.partition(".")[0] == row.package for each in row.modules())
