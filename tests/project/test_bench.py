"""The benchmark checks answers before it times them, and counts bytes and ratios right."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import Tensor

pytest.importorskip("rich")

from rich.console import Console

from customloss import reference
from customloss._bench import cases, gate, measure, report, rivals, run

_CPU = torch.device("cpu")
_FAST = run.Settings(rounds=2, seconds=0.0, repeat=2, compile=False)


def _wrong_value(input: Tensor, target: Tensor) -> Tensor:
    return 1.1 * reference.soft_f1(input, target)


def _wrong_gradient(input: Tensor, target: Tensor) -> Tensor:
    loss = reference.soft_f1(input, target)
    return loss.detach() + 1.1 * (loss - loss.detach())


def _nan_gradient(input: Tensor, target: Tensor) -> Tensor:
    loss = reference.soft_f1(input, target)
    return loss.detach() + float("nan") * (loss - loss.detach()).nan_to_num(0.0)


def _text(document: run.Document) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report.renderable(document))
    return str(captured.get())


@pytest.mark.parametrize("wrong", [_wrong_value, _wrong_gradient, _nan_gradient])
def test_no_speedup_is_shown_when_ours_is_wrong(
    monkeypatch: pytest.MonkeyPatch, wrong: rivals.Loss
) -> None:
    monkeypatch.setattr(rivals, "_ours", lambda case: wrong)
    document = run.run("smoke", _CPU, _FAST)
    for row in document["rows"]:
        for entry in row["entries"].values():
            assert entry["speedup"] is None
        assert row["entries"][rivals.OURS]["seconds"] is None
    for text in (_text(document), report.markdown(document)):
        assert "×" not in text
        assert report.WITHHELD in text
        assert "customloss, image float32: wrong: value off by" in text
        assert "No speed-up is claimed" in text


def test_a_wrong_rival_is_withheld_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_monai", lambda case: _wrong_value)
    row = run.run_case(cases.SMOKE[0], _CPU, _FAST)[0]
    assert row["entries"]["MONAI"]["speedup"] is None
    assert row["entries"]["MONAI"]["why_not"].startswith("wrong: value off by 1.0e-01")
    assert row["entries"][rivals.EAGER]["speedup"] is not None
    assert row["entries"][rivals.OURS]["speedup"] == [1.0, 1.0, 1.0]


def test_a_rival_that_fails_is_a_result_and_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(case: cases.Case) -> rivals.Loss:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(rivals, "_monai", fails)
    row = run.run_case(cases.SMOKE[0], _CPU, _FAST)[0]
    assert row["entries"]["MONAI"]["why_not"] == "failed: RuntimeError: no compiler"
    monkeypatch.setattr(rivals, "_ours", fails)
    with pytest.raises(RuntimeError, match="no compiler"):
        run.run_case(cases.SMOKE[0], _CPU, _FAST)


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_the_gate_agrees_with_the_reference(case: cases.Case) -> None:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    double = inputs.input.detach().double().requires_grad_()
    activation = "sigmoid" if case.labels is None else "softmax"
    value = reference.soft_f1(double, inputs.target, activation=activation)
    if case.labels is not None and case.beside:
        value = value + torch.nn.functional.cross_entropy(double, inputs.target.long())
    elif case.beside:
        p, t = double.sigmoid(), inputs.target
        right_p = torch.where(t, p, 1 - p)
        gamma = 2 if case.beside == "focal" else 0
        value = value - ((1 - right_p) ** gamma * right_p.log()).mean()
    (gradient,) = torch.autograd.grad(inputs.scale * value, double)
    assert right.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(right.gradient, gradient, rtol=1e-10, atol=0)
    assert gate.check(rivals.rivals(_CPU, compile=False)[0].build(case), inputs, right).passed


@pytest.mark.parametrize("case", cases.SMOKE, ids=lambda case: case.name)
def test_every_form_of_the_formula_is_right_or_says_no(case: cases.Case) -> None:
    inputs = cases.make_inputs(case, _CPU)
    right = gate.expected(case, inputs)
    for rival in rivals.rivals(_CPU, compile=False):
        if rival.family == rivals.EAGER:
            judged = run.judge(rival, case, inputs, right)
            no = ("one group only", "masks only", "class numbers only")
            assert judged.loss is not None or judged.why_not in no


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float32, 5, 9), (torch.bfloat16, 3, 5)]
)
def test_bytes_of_an_element(dtype: torch.dtype, forward: int, backward: int) -> None:
    case = cases.Case("", (1000,), dtype)
    moved = [case.moved_bytes(which) / 1000 for which in cases.PASSES]
    assert moved == [forward, backward, forward + backward]


def test_the_roof_of_a_pass() -> None:
    case = cases.Case("", (1000,), torch.float32)
    samples = {measure.READ_ROOF: [1.0], measure.COPY_ROOF: [3.0], measure.REUSE_ROOF: [2.0]}
    least = [run.roof(case, which, samples).seconds for which in cases.PASSES]  # of 4000 bytes
    assert least == pytest.approx([1.25, 3.25, 4.5])


def test_inputs_that_rotate_hold_the_same_numbers_and_outgrow_the_cache() -> None:
    case = cases.SMOKE[1]
    count = cases.copies_needed(case, cache_bytes=2 * case.read_bytes)
    copies = cases.copies(cases.make_inputs(case, _CPU), count)
    assert count == 6
    assert len({each.input.data_ptr() for each in copies}) == count
    for each in copies:
        assert torch.equal(each.input, copies[0].input)
        assert each.input.stride() == each.target.stride() == copies[0].input.stride()


def test_ratios_are_paired() -> None:
    assert measure.ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]).median == 2.0


def test_the_verdict_counts_only_what_the_spread_agrees_on() -> None:
    ratios = [[2.0, 1.5, 2.5], [1.1, 0.9, 1.3], [0.5, 0.4, 0.6]]
    document: Any = {
        "rows": [
            {"case": name, "which": "forward", "entries": {"eager": {"speedup": ratio}}}
            for name, ratio in zip("abc", ratios)
        ]
    }
    assert report.verdict(document) == (
        "Against the fastest other right answer of each of 3 rows, customloss is faster in 1, "
        "slower in 1 and level in 1; 1.10× in the median row, least in c forward (0.50× against "
        "eager)."
    )


def test_saved_bytes_leave_out_the_callers_tensors() -> None:
    inputs = cases.make_inputs(cases.SMOKE[0], _CPU)
    ours = measure.saved_bytes(torch.ops.customloss.soft_f1.default, inputs)
    eager = measure.saved_bytes(rivals.formula_sums, inputs)
    assert ours <= 64
    assert eager >= inputs.input.nbytes


def test_committed_tables_are_up_to_date() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("table", ROOT / "bench" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    table: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.main(["--check"]) == 0
