"""The training demo has the right thresholds and folds, and its sentences follow the numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from customloss._demo import data, report, train
from customloss._demo.train import Method

RESULTS = Path(__file__).parents[2] / "bench" / "results"
ONE, TWO = range(1), range(2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models are small. A fixture in conftest.py restores the number of threads."""
    torch.set_num_threads(1)


def test_folds_cover_each_row_once_a_seed() -> None:
    problem = data.diabetes(90, TWO)
    tested = (~problem.train).reshape(2, 5, -1).sum(1)
    assert torch.equal(tested, torch.ones_like(tested))
    assert problem.prevalence == pytest.approx(0.1, abs=0.002)
    assert data.diabetes(50, ONE).prevalence == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("place", [0, 3], ids=["diabetes", "digits"])
def test_inner_folds_hold_each_train_row_out_once_and_have_no_test_row(place: int) -> None:
    problem = data.problems(TWO)[place]
    held_out = (problem.train[:, None] & ~problem.inner).sum(1)
    assert torch.equal(held_out, problem.train.long())
    assert not (problem.inner & ~problem.train[:, None]).any()


def test_a_seed_is_the_same_wherever_it_stands() -> None:
    both, second = data.digits(range(4, 6)), data.digits(range(5, 6))
    assert torch.equal(both.train[1:], second.train)
    assert torch.equal(both.inner[1:], second.inner)
    weights = [train.Models(problem, problem.train).weights for problem in (both, second)]
    for one, other in zip(*weights):
        assert torch.equal(one[1:], other)


def test_models_do_not_see_each_other() -> None:
    one = train.run(data.diabetes(90, ONE), steps=20)
    two = train.run(data.diabetes(90, TWO), steps=20)
    for method in train.METHODS:
        assert two[method][0] == pytest.approx(one[method][0], abs=1e-6)


def test_features_are_standardised_on_the_rows_trained_on() -> None:
    problem = data.diabetes(90, ONE)
    models = train.Models(problem, problem.train)
    torch.nn.init.normal_(models.weights[0])
    torch.nn.init.normal_(models.biases[0])
    for model, rows in enumerate(problem.train):
        seen = problem.features[rows].double()
        scaled = (problem.features - seen.mean(0)) / seen.std(0, correction=0)
        by_hand = models.weights[0][model].double() @ scaled.mT + models.biases[0][model]
        found = models(problem.features)[model].double()
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)  # float32


def test_pos_weight_is_that_of_the_rows_trained_on() -> None:
    problem = data.diabetes(90, ONE)
    rows = torch.cat([problem.train, problem.inner.flatten(0, 1)])
    weighted = train.weights("weighted BCE", problem.target, rows)[:, 0]
    rooted = train.weights("root-weighted BCE", problem.target, rows)[:, 0]
    positive = problem.target[0]
    for model, mask in enumerate(rows):
        ratio = int((mask & ~positive).sum()) / int((mask & positive).sum())
        assert weighted[model, mask & positive].unique().item() == pytest.approx(ratio)
        assert rooted[model, mask & positive].unique().item() == pytest.approx(ratio**0.5)
        assert (weighted[model, mask & ~positive] == 1).all()
        assert (weighted[model, ~mask] == 0).all()


def test_the_weighted_bce_is_that_of_torch() -> None:
    """Up to its scale, which is the sum of the weights here."""
    problem = data.diabetes(90, ONE)
    weight = train.weights("weighted BCE", problem.target, problem.train)
    logits = torch.randn(5, 1, problem.target.shape[1])
    found = train.LOSSES["weighted BCE"](logits, problem.target.float().expand(5, 1, -1), weight)
    for model, rows in enumerate(problem.train):
        target = problem.target[0, rows].float()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[model, 0, rows],
            target,
            pos_weight=(1 - target).sum() / target.sum(),
            reduction="sum",
        )
        assert found[model, 0] == pytest.approx(float(expected / weight[model].sum()), rel=1e-5)


# ---- thresholds and strengths ----------------------------------------------------------------


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


@pytest.mark.parametrize("loss", ["BCE", "weighted BCE", "soft-F1"])
def test_labels_of_test_rows_change_no_threshold_and_no_strength(loss: str) -> None:
    problem = data.diabetes(80, ONE)
    split = 1
    changed = problem.target ^ ~problem.train[split]
    assert not torch.equal(changed, problem.target)
    outer = problem.train.numpy()
    inner = data._inner_masks(changed[0].numpy(), outer, ONE, folds=5)
    assert torch.equal(torch.from_numpy(inner)[split], problem.inner[split])
    other = dataclasses.replace(problem, target=changed)
    fits = [train.fit(each, loss, 40, lambda: None) for each in (problem, other)]
    for method in train.METHODS:
        if method.loss != loss:
            continue
        one, two = (train.choose(p, method, f) for p, f in zip((problem, other), fits))
        assert one.strength[split] == two.strength[split]
        torch.testing.assert_close(one.cut[split], two.cut[split])


def _scores_by_hand(logits: Tensor, target: Tensor) -> dict[float, float]:
    """F1 of each threshold half way between two logits."""
    ordered = logits.sort().values
    cuts = [*((ordered[1:] + ordered[:-1]) / 2).tolist(), float(ordered[0]) - 1]
    scores = {}
    for cut in cuts:
        found = logits > cut
        either = int(found.sum() + target.sum())
        scores[cut] = 2 * int((found & target).sum()) / either
    return scores


def test_out_of_fold_threshold_is_what_a_loop_finds() -> None:
    problem, split, steps = data.diabetes(90, ONE), 2, 60
    rows, target = problem.train[split], problem.target[0]
    fits = train.fit(problem, "BCE", steps, lambda: None)
    logits = torch.full(target.shape, torch.nan)
    for trained_on in problem.inner[split]:
        alone = dataclasses.replace(problem, train=trained_on[None], inner=trained_on[None, None])
        left_out = rows & ~trained_on
        logits[left_out] = train.fit(alone, "BCE", steps, lambda: None).whole[0, 0, 0, left_out]
    scores = _scores_by_hand(logits[rows], target[rows])
    out_of_fold = train.choose(problem, Method("BCE", train.OUT_OF_FOLD), fits).cut[split].item()
    in_fold = train.choose(problem, Method("BCE", train.IN_FOLD), fits).cut[split].item()
    nearest = min(scores, key=lambda cut: abs(cut - out_of_fold))
    assert out_of_fold == pytest.approx(nearest, abs=1e-4)
    assert scores[nearest] == max(scores.values())
    assert abs(out_of_fold - in_fold) > 1e-3


def test_the_strength_is_chosen_by_held_out_rows() -> None:
    """Two strengths: the second is right where a fold held a train row out, the first elsewhere."""
    problem = dataclasses.replace(data.diabetes(80, ONE), strengths=(0.0, 1.0))
    right = torch.where(problem.target, 2.0, -2.0).expand(1, 5, 1, -1)
    whole = torch.cat([right, -right])
    fits = train.Fits(whole, held_out=torch.where(problem.train[:, None], -whole, whole))
    for loss in ("BCE", "weighted BCE", "soft-F1"):
        for threshold in (train.AT_HALF, train.OUT_OF_FOLD):
            with_l2 = train.choose(problem, Method(loss, threshold, l2=True), fits)
            without = train.choose(problem, Method(loss, threshold), fits)
            assert (with_l2.strength == 1).all()
            assert (without.strength == 0).all()


# ---- sentences -------------------------------------------------------------------------------

RIVAL = Method("weighted BCE", train.OUT_OF_FOLD, l2=True)
HELPED = Method("soft-F1", train.AT_HALF, l2=True)


def _result(scores: train.Scores, name: str = "data", seeds: int = 10) -> report.Result:
    low = {method: [0.1] * seeds for method in train.METHODS}
    return report.Result(name, "what is found", 0.5, list(range(seeds)), low | scores)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([0.5] * 9 + [0.3], [0.4] * 10, "reliably above BCE at 0.5 (+.080 ± .063, higher in 9 of"),
        ([0.5, 0.52] * 5, [0.4] * 10, "reliably above BCE at 0.5 (+.110 ± .011, higher in 10 of"),
        ([0.3, 0.31] * 5, [0.4] * 10, "reliably below BCE at 0.5 (−.095 ± .005, higher in 0 of"),
        ([0.4, 0.5] * 5, [0.45] * 10, "not reliably different from BCE at 0.5 (+.000 ± .053"),
    ],
)
def test_the_sentence_follows_the_numbers(
    ours: list[float], theirs: list[float], said: str
) -> None:
    best = [0.6, 0.61] * 5
    result = _result({report.OURS: ours, report.PLAIN: theirs, RIVAL: best, HELPED: best})
    written = report.sentence(result)
    assert written.startswith("data (50 % positive): soft-F1 at 0.5 is " + said)
    rival = "weighted BCE + L2 with a threshold tuned out of fold"
    assert f", and reliably below the best form of BCE, {rival} (−." in written
    assert written.endswith(
        "The best form of soft-F1, soft-F1 + L2 at 0.5, is not reliably different from that form "
        "of BCE (+.000 ± .000, higher in 0 of 10 seeds)."
    )


def test_the_sentence_when_the_plain_forms_are_the_best() -> None:
    written = report.sentence(_result({report.OURS: [0.5] * 10, report.PLAIN: [0.4] * 10}))
    assert written == (
        "data (50 % positive): soft-F1 at 0.5 is reliably above BCE at 0.5 (+.100 ± .000, higher "
        "in 10 of 10 seeds), which is the best form of BCE. No other form of soft-F1 has a higher "
        "mean."
    )


def test_one_seed_says_nothing() -> None:
    assert "one seed says nothing" in report.sentence(_result({}, seeds=1))


def test_few_seeds_are_not_called_reliable() -> None:
    result = _result({report.OURS: [0.9] * 4, report.PLAIN: [0.1] * 4}, seeds=4)
    assert not result.difference(report.OURS, report.PLAIN).reliable
    assert report.conclusion([result]).startswith("With fewer than 5 seeds")


def test_the_conclusion_names_every_problem() -> None:
    low, middle, high = [0.4] * 5, [0.45, 0.46, 0.45, 0.46, 0.45], [0.5, 0.51, 0.5, 0.51, 0.5]
    results = [
        _result({report.OURS: high, report.PLAIN: low, RIVAL: middle}, "first", 5),
        _result({report.OURS: low, report.PLAIN: low, RIVAL: middle, HELPED: high}, "second", 5),
        _result({report.OURS: low, report.PLAIN: high, RIVAL: middle}, "third", 5),
        _result({report.OURS: low, report.PLAIN: low}, "fourth", 5),
    ]
    assert report.conclusion(results) == (
        "Soft-F1 at 0.5 against BCE at 0.5: a reliably higher F1 on first; a reliably lower F1 on "
        "third; no reliable difference on second and fourth. "
        "Soft-F1 at 0.5 against the best form of BCE: a reliably higher F1 on first; a reliably "
        "lower F1 on second and third; no reliable difference on fourth. "
        "The best form of soft-F1 against the best form of BCE: a reliably higher F1 on first and "
        "second; a reliably lower F1 on third; no reliable difference on fourth."
    )


@pytest.mark.parametrize(
    ("name", "seeds"),
    [("training.json", range(10)), ("training-seeds-100.json", range(100, 120))],
)
def test_what_is_committed_follows_its_numbers(name: str, seeds: range) -> None:
    document = json.loads((RESULTS / name).read_text())
    results = report.load(document)
    again = report.document(results)
    assert again["conclusion"] == document["conclusion"]
    assert again["problems"] == document["problems"]
    assert [result.name for result in results] == [each.name for each in data.problems(ONE)]
    for result in results:
        assert result.seeds == list(seeds)
        assert set(result.scores) == set(train.METHODS)
        assert all(len(values) == len(seeds) for values in result.scores.values())


@pytest.mark.slow
def test_p90_gains_at_the_default_threshold() -> None:
    problem = data.diabetes(90, range(5))
    result = report.Result.of(problem, train.run(problem))
    gain = result.difference(report.OURS, report.PLAIN)
    assert gain.reliable
    assert 0.05 < gain.mean < 0.25
    assert sum(result.scores[report.OURS]) / 5 > 0.45
