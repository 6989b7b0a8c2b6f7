"""The loss works in export, packages, checkpointing and steps with loss scaling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from process import run_python
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import customloss

# Export and inductor raise these warnings about torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


class Scored(nn.Module):
    """A model together with its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(8, 4)
        self.criterion = customloss.SoftF1Loss(beta=2.0)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.layer(x).tanh(), target)


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 8), torch.rand(rows, 4) < 0.4


def exported() -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2, max=1024)
    return torch.export.export(Scored(), batch(), dynamic_shapes=({0: rows}, {0: rows}))


def ours(program: torch.export.ExportedProgram) -> list[str]:
    """The nodes that call this package."""
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name for name in called if name.startswith("customloss")]


def test_the_loss_is_one_node() -> None:
    program = exported()
    assert ours(program) == ["customloss.soft_f1.default"]
    x, target = batch(11)
    assert torch.equal(program.module()(x, target), Scored()(x, target))


class Segmented(nn.Module):
    """A segmenter together with its loss of class numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Conv2d(2, 4, 1)
        self.criterion = customloss.DiceCELoss()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.layer(x), target)


def test_a_height_may_be_the_number_of_classes() -> None:
    """Shapes of unequal rank are not compared size by size, which would tell H and C apart."""
    height = torch.export.Dim("height", min=2, max=1024)
    x, target = torch.randn(3, 2, 6, 5), torch.randint(0, 4, (3, 6, 5))
    shapes = ({2: height}, {1: height})
    program = torch.export.export(Segmented(), (x, target), dynamic_shapes=shapes)
    for size in (4, 3, 9):
        x, target = torch.randn(3, 2, size, 5), torch.randint(0, 4, (3, size, 5))
        torch.testing.assert_close(program.module()(x, target), Segmented()(x, target))


@pytest.mark.parametrize("decomposed", [False, True])
def test_it_stays_one_when_saved_and_loaded(decomposed: bool, tmp_path: Path) -> None:
    """Decomposition leaves one node too, the primitive that computes sums and score."""
    program = exported()
    if decomposed:
        program = program.run_decompositions()
    torch.export.save(program, tmp_path / "scored.pt2")
    program = torch.export.load(tmp_path / "scored.pt2")
    assert ours(program) == [f"customloss.{'confusion_score' if decomposed else 'soft_f1'}.default"]
    x, target = batch(11)
    torch.testing.assert_close(program.module()(x, target), Scored()(x, target))


@pytest.mark.slow
def test_a_compiled_package_runs_in_a_fresh_process(tmp_path: Path) -> None:
    package = torch._inductor.aoti_compile_and_package(
        exported(), package_path=str(tmp_path / "scored.pt2")
    )
    x, target = batch(11)
    torch.save((x, target), tmp_path / "batch.pt")
    found = run_python(
        f"""if True:
        import torch, customloss
        x, target = torch.load({str(tmp_path / "batch.pt")!r})
        print(float(torch._inductor.aoti_load_package({package!r})(x, target)))
        """
    )
    assert found.returncode == 0, found.stderr
    torch.testing.assert_close(torch.tensor(float(found.stdout)), Scored()(x, target).detach())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed(use_reentrant: bool) -> None:
    """The loss and the gradients are the same when the forward is recomputed."""
    model, (x, target) = Scored(), batch()
    found = []
    for function in (model, lambda *a: checkpoint(model, *a, use_reentrant=use_reentrant)):
        model.zero_grad()
        inner = x.clone().requires_grad_()
        loss = function(inner, target)
        loss.backward()
        found.append((loss.detach(), inner.grad, model.layer.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_scaled_half_precision() -> None:
    """Scaled fp16 gradients are those of float32, and a step that overflows is skipped."""
    layer, (x, target) = nn.Linear(8, 4), batch(64)
    customloss.soft_f1_loss(layer(x), target).backward()
    expected = layer.weight.grad.clone()
    before = layer.weight.detach().clone()
    for scale, fits in ((2.0**12, True), (2.0**40, False)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = layer(x)
            loss = customloss.soft_f1_loss(logits, target)
        assert logits.dtype == torch.float16 and loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if fits:
            torch.testing.assert_close(layer.weight.grad, expected, rtol=0.02, atol=1e-4)
        else:
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(layer.weight, before)
            assert scaler.get_scale() == scale / 2


# ---- ONNX ----------------------------------------------------------------------------------------

LOSSES = {
    "soft_f1": customloss.SoftF1Loss(beta=2.0),
    "log": customloss.DiceLoss(link="log", average="micro"),
    "skip": customloss.TverskyLoss(absent="skip", average="weighted", samplewise=True),
    "composed": customloss.MCCLoss(),
    "sums": customloss.SquaredDiceLoss(smooth=1.0),
    "focal": customloss.DiceFocalLoss(class_weight=[1.0, 2.0, 3.0, 4.0]),
    "numbers": customloss.DiceCELoss(ignore_index=1, label_smoothing=0.1),
}


def segmented(name: str) -> tuple[Segmented, tuple[Tensor, Tensor]]:
    """A model with this loss, and a batch."""
    model = Segmented()
    model.criterion = LOSSES[name]
    numbers = torch.randint(0, 4, (3, 6, 5))
    masks = torch.rand(3, 4, 6, 5) < 0.4
    return model.eval(), (torch.randn(3, 2, 6, 5), numbers if name == "numbers" else masks)


@pytest.mark.parametrize("name", LOSSES)
def test_for_onnx_the_loss_becomes_torch_operations(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.onnx.export goes about it, without the packages that it needs."""
    model, batch = segmented(name)
    expected = model(*batch)
    program = torch.export.export(model, batch)
    assert ours(program)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    decomposed = program.run_decompositions()
    assert not ours(decomposed)
    torch.testing.assert_close(decomposed.module()(*batch), expected)
    again = torch.export.export(model, batch).run_decompositions()
    assert not ours(again)
    assert torch.equal(model(*batch), expected)  # and nothing changes for who computes


@pytest.mark.filterwarnings("ignore:.*axis name.*will not be used:UserWarning")  # torch's own
@pytest.mark.parametrize("name", ["skip", "focal", "numbers"])
def test_onnx_computes_the_same(name: str) -> None:
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, batch = segmented(name)
    height = torch.export.Dim("height", min=2, max=1024)
    shapes = ({2: height}, {batch[1].dim() - 2: height})
    program = torch.onnx.export(model, batch, dynamo=True, dynamic_shapes=shapes, verbose=False)
    graph = program.model_proto.graph
    x, target = torch.randn(3, 2, 9, 5), torch.cat([batch[1], batch[1]], -2).narrow(-2, 0, 9)
    given = {put.name: each.numpy() for put, each in zip(graph.input, (x, target), strict=True)}
    (found,) = ReferenceEvaluator(program.model_proto).run(None, given)
    torch.testing.assert_close(torch.as_tensor(found), model(x, target).detach())
