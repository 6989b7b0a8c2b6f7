"""The training demo has the right thresholds and folds, and its sentences follow the numbers."""

from __future__ import annotations

import statistics

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from customloss._demo import data, report, train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models are small. A fixture in conftest.py restores the number of threads."""
    torch.set_num_threads(1)


def test_folds_cover_each_row_once_a_seed() -> None:
    problem = data.diabetes(90, seeds=2)
    tested = (~problem.train).reshape(2, 5, -1).sum(1)
    assert torch.equal(tested, torch.ones_like(tested))
    assert problem.prevalence == pytest.approx(0.1, abs=0.002)


def test_models_do_not_see_each_other() -> None:
    one = train.run(data.diabetes(90, seeds=1), steps=20)
    two = train.run(data.diabetes(90, seeds=2), steps=20)
    for method in train.METHODS:
        assert two[method][0] == pytest.approx(one[method][0], abs=1e-6)


def test_best_threshold_is_the_best_there_is() -> None:
    logits = torch.randn(3, 2, 40)
    target = torch.rand(2, 40) < 0.3
    rows = torch.rand(3, 1, 40) < 0.7
    found = train.f1(logits > train.best_threshold(logits, target, rows), target, rows)
    tried = [train.f1(logits > cut, target, rows) for cut in torch.linspace(-3, 3, 400)]
    assert (found >= torch.stack(tried).amax(0) - 1e-6).all()


def test_f1_of_nothing_found_where_nothing_is() -> None:
    nothing = torch.zeros(1, 1, 4, dtype=torch.bool)
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    assert train.f1(nothing, nothing[0], everything).item() == 1
    assert train.f1(everything, nothing[0], everything).item() == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([0.5] * 9 + [0.3], [0.4] * 10, "is above BCE at 0.5 (+.080 ± .063, higher in 9 of 10"),
        ([0.5, 0.52] * 5, [0.4] * 10, "is above BCE at 0.5 (+.110 ± .011, higher in 10 of 10"),
        ([0.3, 0.31] * 5, [0.4] * 10, "is below BCE at 0.5 (−.095 ± .005, higher in 0 of 10"),
        ([0.4, 0.5] * 5, [0.45] * 10, "not reliably different from BCE at 0.5 (+.000 ± .053"),
    ],
)
def test_the_sentence_follows_the_numbers(
    ours: list[float], theirs: list[float], said: str
) -> None:
    problem = data.diabetes(90, seeds=10)
    scores = {report.OURS: ours, report.PLAIN: theirs, report.ADJUSTED: ours}
    written = report.sentence(problem, scores)
    assert said in written
    assert "not reliably different from BCE with a tuned threshold (+.000 ± .000" in written


def test_the_conclusion_names_every_problem() -> None:
    problems = data.problems(seeds=2)
    low, high = [0.4, 0.4], [0.5, 0.51]
    results = [
        (problems[0], {report.OURS: high, report.PLAIN: low}),
        (problems[1], {report.OURS: low, report.PLAIN: low}),
        (problems[2], {report.OURS: low, report.PLAIN: high}),
    ]
    assert report.conclusion(results) == (
        "At the threshold 0.5, soft-F1 against BCE: a reliably higher F1 on diabetes > P90; "
        "a reliably lower one on digits; no reliable difference on diabetes > P80."
    )


@pytest.mark.slow
def test_p90_gains_at_the_default_threshold() -> None:
    scores = train.run(data.diabetes(90, seeds=5))
    gain = report.difference(scores[report.OURS], scores[report.PLAIN])
    assert gain.reliable
    assert 0.05 < gain.mean < 0.25
    assert statistics.fmean(scores[report.OURS]) > 0.45
