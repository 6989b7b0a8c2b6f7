"""A module looks at the values of its first batches: when, with how many waits, and where never."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_batches import XC, T, X, Y, logits, mask, numbers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import customloss
from customloss._spec import batch_checks

SOFTMAX = {"activation": "softmax"}


@pytest.fixture
def reads() -> Iterator[list[batch_checks.Batch]]:
    """The batches whose values were read."""
    seen: list[batch_checks.Batch] = []
    found = batch_checks.found

    def counted(batch: batch_checks.Batch) -> Any:
        seen.append(batch)
        return found(batch)

    with patch.object(batch_checks, "found", counted):
        yield seen


def test_once_always_or_never(reads: list[Any]) -> None:
    for option, times in ((None, 1), ("once", 1), (True, 3), (False, 0)):
        reads.clear()
        options = {} if option is None else {"check_target": option}
        criterion = customloss.DiceLoss(**options)
        for _ in range(3):
            criterion(X, T)
        assert len(reads) == times, option
    for option in ("onse", None, 1):
        with pytest.raises(ValueError, match=r"^check_target: expected True or False, or 'once' "):
            customloss.DiceLoss(check_target=option)
    with pytest.raises(ValueError, match=r"^check_target: expected .* got 'once'"):
        customloss.dice_loss(X, T, check_target="once")


def test_until_a_positive_that_counts(reads: list[Any]) -> None:
    """A batch without one says little of its labels, so that more are looked at, but no more than
    eight. A batch that is refused is not counted."""
    none, hides = torch.zeros_like(T), {"ignore_index": 7}
    for options, operands in (
        ({}, (X, none)), ({}, (X, T, (~T).float())), (SOFTMAX, (XC, Y * 0)),
        (hides, (X, torch.where(T, 7, 0))), ({"class_weight": [1.0, 0.0, 1.0]}, (
            XC, mask(2, 3, 6) & (torch.arange(3)[:, None] == 1)
        )),
    ):  # fmt: skip
        reads.clear()
        criterion = customloss.DiceLoss(**options)
        for _ in range(2):
            criterion(*operands)
        wrong = operands[1].int() * 0 + 255
        with pytest.raises(ValueError, match="255"):
            criterion(operands[0], wrong)
        for _ in range(8):
            criterion(*operands)
        assert len(reads) == 9
        criterion(operands[0], T if options in ({}, hides) else operands[1])
        assert len(reads) == 9
    reads.clear()
    criterion = customloss.DiceLoss()
    for target in (none, none, T, T, none):
        criterion(X, target)
    assert len(reads) == 3


def test_a_label_that_is_no_class_is_no_positive(reads: list[Any]) -> None:
    criterion = customloss.DiceCELoss(out_of_range="ignore")
    for last, looks in ((255, 1), (3, 2), (-1, 3), (2, 4), (2, 4)):
        criterion(XC, torch.where(Y == 1, last, 0))
        assert len(reads) == looks


def test_the_batches_before_a_positive_warn_once() -> None:
    criterion = customloss.DiceLoss()
    with pytest.warns(UserWarning, match=r"^weight: expected numbers >= 0"):
        criterion(X, torch.zeros_like(T), -torch.ones(6))
    criterion(X, torch.zeros_like(T), -2 * torch.ones(6))
    with pytest.warns(UserWarning, match=r"^weight: expected something that counts"):
        criterion(X, T, torch.zeros(6))
    # a warning that was turned into an error was not seen
    criterion = customloss.DiceLoss()
    for _ in range(2):
        with pytest.raises(UserWarning, match=r"^weight"):
            criterion(X, T, -torch.ones(6))


def test_the_option_can_be_set_later(reads: list[Any]) -> None:
    criterion = customloss.DiceLoss()
    criterion.check_target = False
    criterion(X, T)
    assert not reads
    criterion.check_target = "".join(("on", "ce"))  # another object than the default
    criterion(X, T)
    criterion(X, T)
    assert len(reads) == 1
    criterion.check_target = True
    criterion(X, T)
    assert len(reads) == 2
    assert repr(criterion) == "DiceLoss(check_target=True)"


def test_an_empty_batch_is_no_first_one(reads: list[Any]) -> None:
    criterion = customloss.DiceLoss()
    criterion(XC[:0], Y[:0])
    assert not reads
    criterion(XC, Y)
    assert len(reads) == 1


def test_a_refused_batch_is_looked_at_again() -> None:
    criterion = customloss.DiceLoss()
    for _ in range(2):
        with pytest.raises(ValueError, match="255"):
            criterion(X, T.int() * 255)
    criterion(X, T)
    criterion(X, T.int() * 255)  # that was the first batch


def test_copies_have_seen_what_the_original_saw(reads: list[Any]) -> None:
    criterion = customloss.DiceLoss()
    unseen = copy.deepcopy(criterion)
    criterion(X, T)
    for same in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        same(X, T)
    assert len(reads) == 1
    unseen.load_state_dict(criterion.state_dict())
    unseen(X, T)
    assert len(reads) == 2
    pickle.loads(pickle.dumps(customloss.DiceLoss()))(X, T)
    assert len(reads) == 3


def test_modules_that_hold_a_loss(reads: list[Any]) -> None:
    """The first batch, the first micro-batch and every output of the first batch."""
    stream = customloss.StreamingLoss(customloss.DiceLoss())
    with pytest.raises(ValueError, match="255"):
        stream(X, T.int() * 255)
    stream(X, T)
    stream(X, T)
    assert len(reads) == 2
    with customloss.accumulate(customloss.DiceLoss()) as batch:
        for _ in range(2):
            batch.add(X, T)
        for _ in range(2):
            batch.loss(X, T)
    assert len(reads) == 3
    criterion = customloss.DeepSupervision(customloss.DiceLoss())
    with pytest.raises(ValueError, match=r"255.*\(output 0\)"):
        criterion([X, X], [T.int() * 255, T])
    with pytest.raises(ValueError, match=r"255.*\(output 1\)"):
        criterion([X, X], [T, T.int() * 255])
    reads.clear()
    for _ in range(2):
        criterion([X, X, X], [T, T, T])
    assert [batch.coarse for batch in reads] == [False, True, True]


def test_what_is_resized_is_not_judged_by_its_shape() -> None:
    """The finest output tells how shapes are read. A coarser target may have its height and width
    equal to the number of classes, and nothing left of it but what is ignored."""
    y = numbers(4, 2, 16, 16)
    y[:, 1::4] = 255
    y[:, ::4] = 255  # the coarsest target is ignored altogether
    x = [logits(2, 4, 16 >> i, 16 >> i) for i in range(3)]
    for resize, targets in (("nearest", y), (None, [y[:, :: 2**i, :: 2**i] for i in range(3)])):
        criterion = customloss.DeepSupervision(
            customloss.DiceLoss(activation="softmax", ignore_index=255), resize=resize
        )
        criterion(x, targets)
    # no output has the size of the target
    criterion = customloss.DeepSupervision(customloss.DiceCELoss(), resize="nearest")
    criterion([logits(2, 4, 4, 4)], numbers(4, 2, 16, 16))


def test_values_of_every_output_are_judged() -> None:
    """Its labels, and its input; of one mistake there is one warning."""
    x, y = [logits(2, 4, 16 >> i, 16 >> i) for i in range(3)], numbers(4, 2, 16, 16)
    criterion = customloss.DeepSupervision(customloss.DiceCELoss())
    with pytest.raises(ValueError, match=r"from 1 to 4.*\(output 1\)$"):
        criterion(x[:2], [y, numbers(4, 2, 8, 8) + 1])
    criterion = customloss.DeepSupervision(customloss.DiceCELoss(), resize="nearest")
    with pytest.warns(UserWarning, match=r"^input: .* are these probabilities") as caught:
        criterion([x[0], x[1].softmax(1), x[2].softmax(1)], y)
    assert len(caught) == 1


def test_what_holds_no_values_is_not_read(reads: list[Any]) -> None:
    """Transforms, fake and meta tensors, compiled and exported code; the next batch is."""
    criterion = customloss.DiceLoss()
    torch.vmap(criterion)(X, T)
    torch.func.grad(criterion)(X, T)
    criterion(X.to("meta"), T.to("meta"))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(X), mode.from_tensor(T)
        criterion(*fake)
    criterion(*fake)
    torch.compile(criterion, backend="eager", fullgraph=True)(X, T)
    torch.export.export(criterion, (X, T), strict=False)
    customloss.dice_loss(X.to("meta"), T.to("meta"), check_target=True)
    compiled = torch.compile(customloss.dice_loss, backend="eager", fullgraph=True)
    compiled(X, T, check_target=True)
    assert not reads
    criterion(X, T)
    assert len(reads) == 1


@pytest.mark.parametrize("method", ["__call__", "with_sums"])
def test_a_compiled_module_waits_for_nothing(reads: list[Any], method: str) -> None:
    """It is one graph, in which no value is brought to the host, and the same before and after the
    module has seen its first batch."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    criterion = customloss.DeepSupervision(customloss.DiceCELoss(), resize="nearest")
    compiled = torch.compile(getattr(criterion, method), backend=backend, fullgraph=True)
    x = [logits(2, 3, 8 >> i, 6 >> i) for i in range(2)]
    y = numbers(3, 2, 8, 6)
    compiled(x, y)
    criterion(x, y)
    assert len(reads) == 2
    compiled(x, y)
    assert len(graphs) == 1
    waits = {"item", "tolist", "_local_scalar_dense", "is_nonzero", "nonzero", "equal"}
    assert graphs[0].graph.nodes
    assert not [node for node in graphs[0].graph.nodes if str(node.target).split(".")[0] in waits]
    assert len(reads) == 2
    torch._dynamo.reset()


def test_a_capture_is_not_waited_for(reads: list[Any]) -> None:
    """While a CUDA graph is captured nothing may wait; here the test says that one is."""
    criterion = customloss.DiceLoss()
    with patch("customloss._ops.modes.ordinary_tensors", lambda device: False):
        criterion(X, T)
    assert not reads
    criterion(X, T)
    assert len(reads) == 1


def test_one_transfer_and_no_copy_of_the_input() -> None:
    """Where nothing seems wrong there is one ``tolist``, and no tensor of the input's size."""

    class Largest(TorchDispatchMode):
        """The size of the largest tensor that is made, views aside."""

        elements = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple) else (result,):
                if isinstance(each, Tensor) and not each._is_view():
                    self.elements = max(self.elements, each.numel())
            return result

    batch = batch_checks.Batch(
        XC, torch.where(Y == 2, 255, Y)[:, None], torch.ones(2, 1, 6), (2, 3, 6), True, "softmax",
        1.0, 0.0, (255,), False, False, torch.float64, False,
    )  # fmt: skip
    rows = torch.nn.functional.one_hot(Y).movedim(-1, 1)
    plain = batch._replace(target=rows, weight=None, labels=False, ignored=())
    hiding = plain._replace(
        activation="sigmoid", weight=~mask(2, 3, 6), ignored=(7,), counting=torch.arange(3) > 0
    )
    transfers: list[Tensor] = []
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        transfers.append(tensor)
        return tolist(tensor)

    for each, copies in ((batch, False), (plain, False), (hiding, True)):
        transfers.clear()
        with patch.object(Tensor, "tolist", counted), Largest() as made:
            assert batch_checks.found(each) == ([], {}, True)
        assert len(transfers) == 1
        assert (made.elements >= XC.numel()) == copies


def test_no_graph_and_the_same_loss() -> None:
    x = X.clone().requires_grad_()
    first, second = (customloss.DiceLoss(check_target=each)(x, T) for each in ("once", False))
    assert torch.equal(first, second)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        customloss.DiceLoss()(X, T)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("dice", "class_weight"), ("mcc", "class_weight"), ("dice_bce", "pointwise_class_weight"),
        ("bce", "pos_weight"), ("focal", "class_weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_weights_of_classes_that_were_not_known_before(
    name: str, option: str, wrong: float
) -> None:
    """Learned ones, and those on another device, where a constructor would wait for them."""
    x, t = torch.randn(8, 3), torch.rand(8, 3) > 0.5
    weight = torch.nn.Parameter(torch.tensor([1.0, wrong, 2.0]))
    criterion = customloss.loss(name, **{option: weight})
    with pytest.raises(
        ValueError, match=rf"^{option}: expected finite numbers >= 0, got {wrong:g}"
    ):
        criterion(x, t)
    with torch.no_grad():
        weight[1] = 0.0
    criterion(x, t)


def hits(tp: torch.Tensor, fp: torch.Tensor, fn: torch.Tensor, tn: torch.Tensor) -> torch.Tensor:
    return tp


@pytest.mark.parametrize("link", ["log", "focal", "log_cosh", "log_power"])
@pytest.mark.parametrize("compound", [False, True])
def test_a_similarity_above_1_is_noticed_once(link: str, compound: bool) -> None:
    """The logarithm of a sum is no loss, and a power of 1 - s is 0 there, without a gradient."""
    x, t = torch.randn(64, 3) + 2, torch.rand(64, 3) > 0.2
    if compound:
        criterion = customloss.CompoundLoss(hits, cross_entropy_weight=1.0, link=link)
    else:
        criterion = customloss.ConfusionLoss(hits, link=link)
    with pytest.warns(UserWarning, match=rf"^score 'hits': .*at most 1 with link='{link}', got \d"):
        criterion(x, t)
    criterion(x, t)  # warnings are errors in these tests


def skill(tp: torch.Tensor, fp: torch.Tensor, fn: torch.Tensor, tn: torch.Tensor) -> torch.Tensor:
    """Peirce's, in [-1, 1]."""
    return (tp * tn - fp * fn) / ((tp + fn) * (fp + tn))


@pytest.mark.parametrize("link", customloss.scores.LOG_LINKS)
@pytest.mark.parametrize("compound", [False, True])
def test_a_similarity_below_0_is_noticed_once(link: str, compound: bool) -> None:
    """Its logarithm is that of the floor: the loss is constant, without a gradient."""
    t = torch.rand(64, 3) > 0.5
    x = torch.where(t, -3.0, 3.0)
    if compound:
        criterion = customloss.CompoundLoss(skill, cross_entropy_weight=1.0, link=link)
    else:
        criterion = customloss.ConfusionLoss(skill, link=link)
    said = rf"^score 'skill': .*at least 0 with link='{link}' .*got -0\.9\d+: link='complement'"
    with pytest.warns(UserWarning, match=said):
        criterion(x, t)
    criterion(x, t)


def test_a_similarity_below_0_that_is_no_mistake() -> None:
    t = torch.rand(64, 3) > 0.5
    x = torch.where(t, -3.0, 3.0)
    for link in ("complement", "negative", "focal", "log_cosh"):
        customloss.ConfusionLoss(skill, link=link)(x, t)
    customloss.ConfusionLoss(skill, link="log", check_target=False)(x, t)
    customloss.ConfusionLoss("mcc", link="log")(torch.zeros_like(x), t)  # 0, but for rounding
    # 0 is the worst of most scores
    wrong = torch.where(t, -1e4, 1e4)
    customloss.ConfusionLoss("fowlkes_mallows", link="log")(wrong, t)
    customloss.ConfusionLoss(skill, link="log", class_weight=[1.0, 0.0, 0.0])(
        torch.where(torch.arange(3) > 0, x, -x), t
    )


def plain_recall(
    tp: torch.Tensor, fp: torch.Tensor, fn: torch.Tensor, tn: torch.Tensor
) -> torch.Tensor:
    return tp / (tp + fn)


def without_positives(*classes: int) -> tuple[Tensor, Tensor]:
    """A batch of five classes, of which these have no positive."""
    target = torch.ones(6, 5, dtype=torch.bool)
    target[:, list(classes)] = False
    return torch.randn(6, 5), target


@pytest.mark.parametrize(
    ("options", "absent", "named"),
    [
        ({}, (2,), "class 2"),
        ({}, (1, 3, 4), "class 1 and 2 more"),
        ({"classes": (4, 2, 1)}, (2, 3), "class 2"),
        ({"include_background": False}, (0, 3), "class 3"),
        ({"class_weight": [1.0, 0.0, 1.0, 1.0, 1.0]}, (1, 4), "class 4"),
        ({"samplewise": True}, (3,), "class 3 of sample 0 and 5 more"),
        ({"samplewise": True, "average": "micro"}, range(5), "sample 0 and 5 more"),
        ({"average": "micro"}, range(5), "the only group"),
        ({"link": "log"}, (2,), "class 2"),
    ],
)
def test_a_score_that_is_0_by_0(options: Any, absent: Any, named: str) -> None:
    x, t = without_positives(*absent)
    said = rf"^score 'plain_recall': .*got NaN for {named}, whose sums .*customloss\.scores\.ratio"
    criterion = customloss.ConfusionLoss(plain_recall, **options)
    with pytest.warns(UserWarning, match=said):
        assert criterion(x, t).isnan()
    criterion.check_target = True
    with pytest.warns(UserWarning, match=said):
        criterion(x, t)


def test_a_score_of_all_classes_that_is_0_by_0() -> None:
    def skill_of_all(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return (tp / (tp + fn)).mean(-1, keepdim=True)

    with pytest.warns(UserWarning, match=r"^score 'skill_of_all': .*NaN for the only group"):
        customloss.ConfusionLoss(skill_of_all)(*without_positives(1))


def test_what_is_not_the_fault_of_a_score() -> None:
    """Groups that do not count, and sums that are NaN themselves."""
    x, t = without_positives(2)
    for options in (
        {"absent": "skip"}, {"absent": "penalize"}, {"average": "weighted"}, {"classes": (0, 1)},
        {"class_weight": [1.0, 1.0, 0.0, 1.0, 1.0]}, {"check_target": False},
    ):  # fmt: skip
        loss = customloss.ConfusionLoss(plain_recall, **options)(x, t)
        assert loss.isnan() == ("check_target" in options)
    x[0, 0] = float("nan")
    assert customloss.ConfusionLoss(plain_recall)(x[:, :2], t[:, :2]).isnan()
    customloss.ConfusionLoss(customloss.scores.recall)(x[:, 1:], t[:, 1:])


def test_a_similarity_above_1_that_is_meant() -> None:
    x, t = torch.randn(64, 3) + 2, torch.rand(64, 3) > 0.2
    customloss.ConfusionLoss(hits)(x, t)  # linear: the loss is 1 - tp
    customloss.ConfusionLoss(hits, link="negative")(x, t)
    customloss.ConfusionLoss(hits, link="log", check_target=False)(x, t)
    customloss.ConfusionLoss(customloss.scores.fowlkes_mallows, link="log")(x, t)
    perfect = torch.where(t, 40.0, -40.0)
    customloss.ConfusionLoss(customloss.scores.fowlkes_mallows, link="log")(perfect, t)
