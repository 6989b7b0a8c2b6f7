"""A score of the user's own works as a loss, by itself, by name and from another package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import OPTIONS, Case
from judge import differentiated
from paths import ROOT
from torch import Tensor, nn
from torch.autograd import gradcheck

import customloss
from customloss.losses import named_scores

F64 = torch.float64


def f2(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return 5 * tp / (5 * tp + fp + 4 * fn)


# ---- ConfusionLoss -------------------------------------------------------------------------------


# beta and smooth are options of particular scores.
@pytest.mark.parametrize("option", [o for o in OPTIONS if not {"beta", "smooth"} & {*OPTIONS[o]}])
def test_a_score_of_ones_own_takes_every_option(option: str) -> None:
    options = OPTIONS[option]
    sample = Case("x", (6, 4, 3), target=None, weight="full", options=options).build(F64)
    if "activation" in options:
        sample = sample._replace(input=sample.input.sigmoid())
    own = customloss.ConfusionLoss(f2, **options)
    loss, gradients = differentiated(own, sample._replace(options={}))
    expected, wanted = differentiated(partial(customloss.soft_f1_loss, beta=2.0), sample)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-14)


def test_it_sees_float64_sums_per_sample_and_class() -> None:
    seen = []

    def look(*sums: Tensor) -> Tensor:
        seen.extend((tuple(each.shape), each.dtype) for each in sums)
        return sums[0]

    x = torch.zeros(6, 4, dtype=torch.bfloat16)
    loss = customloss.confusion_loss(look, x, torch.ones(6, 4))
    assert loss.dtype == torch.float32
    customloss.confusion_loss(look, x, torch.ones(6, 4), samplewise=True)
    customloss.confusion_loss(look, x, torch.ones(6, 4), average="micro")
    assert seen == [((1, 4), F64)] * 4 + [((6, 4), F64)] * 4 + [((1, 1), F64)] * 4


def test_gradcheck_and_compile() -> None:
    sample = Case("x", (5, 3), target=None, weight="full").build(F64, requires_grad=True)
    x, t, w = sample.operands
    w = (w.detach() + 0.1).requires_grad_()
    loss = customloss.ConfusionLoss(f2, link="log")
    assert gradcheck(loss, (x, t, w), check_forward_ad=True, nondet_tol=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(differentiated(compiled, sample), differentiated(loss, sample))


def test_a_registered_score_gets_the_sums_it_asks_for() -> None:
    @customloss.scores.uses("squares")
    def cosine(
        tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, p2: Tensor, t2: Tensor, tp2: Tensor
    ) -> Tensor:
        return tp / (p2 * t2).sqrt()

    customloss.register_score("cosine", cosine)
    x, t, w = Case("x", (6, 4), target=None, weight="full").build(F64).operands
    p = x.sigmoid()
    expected = (w * p * t).sum(0) / ((w * p * p).sum(0) * (w * t * t).sum(0)).sqrt()
    for loss in (customloss.loss("cosine"), customloss.ConfusionLoss(partial(cosine))):
        torch.testing.assert_close(loss(x, t, w), 1 - expected.mean())
    both = customloss.CompoundLoss(cosine, cross_entropy_weight=1.0)(x, t, w)
    bce = nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    torch.testing.assert_close(both, 1 - expected.mean() + (w * bce).sum() / w.sum())


def test_a_score_may_be_a_module_or_a_partial() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_beta = nn.Parameter(torch.zeros(()))

        def forward(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
            squared = (2 * self.log_beta).exp()
            return (1 + squared) * tp / ((1 + squared) * tp + fp + squared * fn)

    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    loss = customloss.ConfusionLoss(Learned())
    assert len(list(loss.parameters())) == 1
    loss(x, t).backward()
    assert loss.score.log_beta.grad is not None
    fixed = customloss.ConfusionLoss(partial(customloss.scores.fbeta, beta=2.0), average="micro")
    assert "fbeta" in repr(fixed) and "average='micro'" in repr(fixed)
    torch.testing.assert_close(
        fixed(x, t), customloss.soft_f1_loss(x, t, beta=2.0, average="micro")
    )


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (lambda tp, fp, fn, tn: 0.5, TypeError, r"float 0\.5"),
    "nothing": (lambda tp, fp, fn, tn: None, TypeError, "NoneType"),
    "a mean": (lambda tp, fp, fn, tn: tp.mean(), ValueError, r"shape \[\]"),
    "a class less": (lambda tp, fp, fn, tn: tp[:, :2], ValueError, r"shape \[1, 2\]"),
    "a comparison": (lambda tp, fp, fn, tn: tp > fp, ValueError, r"torch\.bool"),
    "out of the graph": (
        lambda tp, fp, fn, tn: torch.tensor(tp.tolist()), ValueError, "left the graph",
    ),
    "detached": (lambda tp, fp, fn, tn: tp.detach(), ValueError, "without a gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_score_is_named_and_what_it_returned(name: str) -> None:
    score, expected, text = WRONG[name]
    score.__name__ = "my_score"
    x = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(expected, match=rf"^score 'my_score': expected .*{text}"):
        customloss.ConfusionLoss(score)(x, torch.ones(6, 4))
    with pytest.raises(TypeError, match=r"^score: expected a function"):
        customloss.ConfusionLoss(2)  # type: ignore[arg-type]


def test_a_graph_break_names_the_line() -> None:
    def my_score(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return tp / (tp + fp + fn) if fp.sum().item() > 0 else tp

    torch._dynamo.reset()
    compiled = torch.compile(customloss.ConfusionLoss(my_score), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="my_score"):
        compiled(torch.randn(6, 4), torch.ones(6, 4))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_name_is_registered_for_one_test(turn: str) -> None:
    """Two functions of one name, or a snippet of the docs, would else spoil a later test."""
    customloss.register_score("of_one_test", lambda tp, fp, fn, tn: tp)


def test_registered_scores() -> None:
    assert customloss.register_score("f2", f2) is f2
    customloss.register_score("f2", f2)  # again, as a reloaded module does
    assert "f2" in customloss.loss_names()
    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    loss = customloss.loss("f2", average="micro", link="log")
    expected = customloss.soft_f1_loss(x, t, beta=2.0, average="micro", link="log")
    torch.testing.assert_close(loss(x, t), expected)
    assert isinstance(customloss.loss("dice", smooth=1.0), customloss.DiceLoss)
    for name, score, error, text in (
        ("f2", lambda *sums: sums[0], ValueError, "already registered, for the score 'f2'"),
        ("dice", f2, ValueError, "a loss of customloss"),
        ("recall", f2, ValueError, "a score of customloss"),
        ("f3", 3, TypeError, "^score"),
        (3, f2, TypeError, "^name"),
        ("", f2, ValueError, "^name: expected one by which the score is asked for, got ''"),
        ("", None, ValueError, "^name: expected one by which"),
    ):
        with pytest.raises(error, match=text):
            customloss.register_score(name, score)
    for score in (f2, None):
        with pytest.raises(TypeError, match=r"^overwrite: expected True or False, got 'no'$"):
            customloss.register_score("f2", score, overwrite="no")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^name: expected one of \('any', .*, got 'f9'"):
        customloss.loss("f9")
    for near, meant in (("dcie", "dice"), ("DiceLoss", "dice"), ("dice_loss", "dice"),
                        ("tverksy", "tversky")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"got '{near}'; did you mean '{meant}'\?"):
            customloss.loss(near)
    for other, meant in (("f1", "soft_f1"), ("lovasz", "jaccard"), ("BCEWithLogitsLoss", "bce")):
        with pytest.raises(ValueError, match=rf"; did you mean '{meant}'\? customloss.loss_names"):
            customloss.loss(other)


def test_names_work_wherever_a_score_does() -> None:
    customloss.register_score("f2", f2)
    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    scores = customloss.scores
    named = {"f2": f2, "jaccard": scores.jaccard, "mcc": scores.mcc, "recall": scores.recall}
    for name, score in named.items():
        more = {"cross_entropy_weight": 0.5}
        for own, expected in (
            (customloss.confusion_loss(name, x, t), customloss.confusion_loss(score, x, t)),
            (customloss.compound_loss(name, x, t, **more),
             customloss.compound_loss(score, x, t, **more)),
            (customloss.ConfusionLoss(name)(x, t), customloss.ConfusionLoss(score)(x, t)),
            (customloss.CompoundLoss(name, **more)(x, t),
             customloss.CompoundLoss(score, **more)(x, t)),
            (customloss.loss(name)(x, t), customloss.ConfusionLoss(score)(x, t)),
        ):  # fmt: skip
            torch.testing.assert_close(own, expected, rtol=0, atol=0)
    assert {"recall", "f2", "dice"} <= {*customloss.loss_names()}
    assert repr(customloss.ConfusionLoss("recall")) == "ConfusionLoss(recall)"
    for near, meant in (("dcie", "dice"), ("iou", "jaccard"), ("soft_f1", "fbeta"),
                        ("JaccardLoss", "jaccard"), ("ratio", None)):  # fmt: skip
        text = rf"^score: expected a score or its name, got '{near}'; did you mean '{meant}'\? help"
        text = rf"^score: expected one of .*'{near}'$" if meant is None else text
        for call in (customloss.confusion_loss, customloss.compound_loss):
            with pytest.raises(ValueError, match=text):
                call(near, x, t)
        for make in (customloss.ConfusionLoss, customloss.CompoundLoss):
            with pytest.raises(ValueError, match=text):
                make(near)
    with pytest.raises(TypeError, match=r"^score: expected a function of .* or the name"):
        customloss.confusion_loss(3, x, t)  # type: ignore[arg-type]


def test_a_score_that_weighs_nothing_is_not_asked_for() -> None:
    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    options: dict[str, float] = {"score_weight": 0.0, "cross_entropy_weight": 1.0}
    expected = nn.functional.binary_cross_entropy_with_logits(x, t.float())
    torch.testing.assert_close(customloss.compound_loss(None, x, t, **options), expected)
    torch.testing.assert_close(customloss.CompoundLoss(None, **options)(x, t), expected)
    with pytest.raises(TypeError, match=r"^score: expected a score, as score_weight is 1.0"):
        customloss.compound_loss(None, x, t)
    with pytest.raises(TypeError, match=r"^score: expected a score, as score_weight is 0.5"):
        customloss.CompoundLoss(None, score_weight=0.5, cross_entropy_weight=1.0)


def test_parameters_of_a_named_score() -> None:
    def power(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor, *, exponent: float = 1.0) -> Tensor:
        return (tp / (tp + fp + fn)) ** exponent

    customloss.register_score("power", power)
    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    own = customloss.loss("power", average="micro", score_options={"exponent": -2.0})
    expected = customloss.confusion_loss(partial(power, exponent=-2.0), x, t, average="micro")
    torch.testing.assert_close(own(x, t), expected)
    customloss.register_score("any_sums", lambda *sums, at=0: sums[at] / sum(sums))
    own = customloss.loss("any_sums", score_options={"at": 3})
    assert own(x, t) != customloss.loss("any_sums")(x, t)
    own = customloss.loss("fbeta", score_options={"beta": 2.0, "smooth": 1.0})
    torch.testing.assert_close(own(x, t), customloss.soft_f1_loss(x, t, beta=2.0, smooth=1.0))
    for name, given, error, text in (
        ("power", {"expnent": 2.0}, TypeError, "^expnent: no option of the score 'power'; did you"),
        ("fbeta", {"beta": -1.0}, ValueError, "^beta: .*>= 0"),
        ("power", [2.0], TypeError, "^score_options: expected a dict .* got list"),
        ("dice", {"smooth": 1.0}, TypeError, "^score_options: expected None for 'dice', whose"),
        ("mcc", {"smooth": 1.0}, TypeError, "^score_options: expected None for 'mcc', whose"),
        ("recall", {"beta": 1.0}, TypeError, "^beta: no option of the score 'recall'.* are smooth"),
    ):
        with pytest.raises(error, match=text):
            customloss.loss(name, score_options=given)
    with pytest.raises(TypeError, match=r"^name: expected a string, got 3"):
        customloss.loss(3)  # type: ignore[arg-type]


def test_a_cell_that_runs_again() -> None:
    for _ in range(2):

        @customloss.register_score("scaled", overwrite=True)
        def scaled(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
            return tp / (tp + fp + fn)

        assert customloss.loss("scaled").score is scaled
    with pytest.raises(ValueError, match="overwrite=True replaces it"):
        customloss.register_score("scaled", f2)
    with pytest.raises(ValueError, match="a loss of customloss"):
        customloss.register_score("dice", f2, overwrite=True)


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, error in (("no_such_module:score", ImportError), ("math:pi", TypeError)):
        point = EntryPoint("x", value, named_scores.ENTRY_POINTS)
        monkeypatch.setattr(named_scores, "entry_points", lambda points=(point,), **_: points)
        with pytest.raises(error, match=f"^name: the plug-in of 'x', '{value}'"):
            customloss.loss("x")


@pytest.mark.parametrize("name", ["dice", "recall"])
def test_a_plugin_of_a_taken_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, "a:score", named_scores.ENTRY_POINTS)]
    monkeypatch.setattr(named_scores, "entry_points", lambda **_: points)
    with pytest.warns(UserWarning, match=f"'a:score' is refused: '{name}' is a name of customloss"):
        assert name in customloss.loss_names()
    x, t = torch.randn(6, 4), torch.rand(6, 4) < 0.5
    own = customloss.confusion_loss(getattr(customloss.scores, name), x, t)
    torch.testing.assert_close(customloss.loss(name)(x, t), own)


def test_two_plugins_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    group = named_scores.ENTRY_POINTS
    points = [EntryPoint("x", f"{module}:score", group) for module in ("a", "b")]
    monkeypatch.setattr(named_scores, "entry_points", lambda **_: points)
    with pytest.raises(ValueError, match="several plug-ins: a:score, b:score"):
        customloss.loss("x")


def test_the_example_is_installed_and_found(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "customloss_recall_at", source)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "-q", "--target", site, source],
        check=True,
    )  # fmt: skip
    (documented,) = re.findall(r"```python\n(.*?)```", (source / "README.md").read_text(), re.S)
    code = f"""
import torch, customloss
assert "recall_at_90" in customloss.loss_names()
{documented}
x = torch.randn(64, 3, requires_grad=True)
loss = customloss.loss("recall_at_90", average="micro")(x, torch.rand(64, 3) < 0.3)
loss.backward()
print(repr(customloss.loss("recall_at_90")), bool(x.grad.isfinite().all()))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ConfusionLoss(recall_at_90) True"
