"""Times the drop-ins of ``customloss.compat`` beside the libraries that they stand for.

    python bench/switch.py [--rounds 31] [--size 96] [--json bench/results/KIND/switch.json]
    python bench/table.py             # writes the table of docs/switch.md from it

A step is the loss and its gradient. Value and gradient are compared with the library in float64
before the clock starts; what differs by more than 1e-4 of the largest number is not timed. Rounds
run in turns as in ``customloss bench`` (README.md here). *Over our own* is what a call of the
drop-in takes more than one of our module, for a batch so small that nothing else counts.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import customloss
from customloss._bench import libraries, machine, measure, report, results
from customloss._bench.cases import Inputs

TOLERANCE = 1e-4
SMALL = (2, 4, 8, 8)
NNUNET = ({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})


class Pair(NamedTuple):
    """A loss of a library, by its module, and the loss of ours that it is."""

    module: str
    name: str
    options: dict[str, Any]
    arguments: tuple[Any, ...]
    own: Callable[[], Any] | None  # None: it is two passes, and no module of ours
    channel: bool  # whether the class numbers have a dimension for it

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]


MONAI = {"softmax": True, "to_onehot_y": True}
PAIRS = {
    "MONAI DiceCELoss": Pair(
        "monai.losses.dice", "DiceCELoss", MONAI, (),
        lambda: customloss.DiceCELoss(samplewise=True, smooth=1e-5), True,
    ),
    "MONAI DiceFocalLoss": Pair(
        "monai.losses.dice", "DiceFocalLoss", MONAI, (),
        None, True,
    ),
    "MONAI DiceLoss": Pair(
        "monai.losses.dice", "DiceLoss", MONAI, (),
        lambda: customloss.DiceLoss(activation="softmax", samplewise=True, smooth=1e-5), True,
    ),
    "nnU-Net DC_and_CE_loss": Pair(
        "nnunetv2.training.loss.compound_losses", "DC_and_CE_loss", {}, NNUNET,
        lambda: customloss.DiceCELoss(smooth=1e-5, include_background=False), True,
    ),
    "smp DiceLoss": Pair(
        "segmentation_models_pytorch.losses.dice", "DiceLoss", {}, ("multiclass",),
        lambda: customloss.DiceLoss(activation="softmax", absent="skip"), False,
    ),
    "smp FocalLoss": Pair(
        "segmentation_models_pytorch.losses.focal", "FocalLoss", {}, ("multiclass",),
        lambda: customloss.FocalLoss(), False,
    ),
}  # fmt: skip
OURS = {
    "monai": "customloss.compat.monai", "nnunetv2": "customloss.compat.nnunet",
    "segmentation_models_pytorch": "customloss.compat.smp",
}  # fmt: skip


def losses(pair: Pair) -> dict[str, Any]:
    """The library's loss and ours under its name."""
    alone = pair.library == "segmentation_models_pytorch"  # the rest of it needs much
    load = libraries.import_alone if alone else importlib.import_module
    theirs = getattr(load(pair.module), pair.name)
    ours = getattr(importlib.import_module(OURS[pair.library]), pair.name)
    return {
        "theirs": theirs(*copy.deepcopy(pair.arguments), **pair.options),
        "ours": ours(*copy.deepcopy(pair.arguments), **pair.options),
    }


def batches(pair: Pair, shape: tuple[int, ...], places: int) -> list[Inputs]:
    """Equal copies of logits and class numbers."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=random)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=random)
    labels = labels if pair.channel else labels[:, 0]
    return [Inputs(logits.clone().requires_grad_(), labels.clone(), 1.0) for _ in range(places)]


def errors(found: dict[str, Any], inputs: Inputs) -> dict[str, float]:
    """How far value and gradient of each are from the library's in float64."""
    answers = {}
    for name in ("exact", "theirs", "ours"):
        dtype = torch.float64 if name == "exact" else torch.float32
        input = inputs.input.detach().to(dtype).requires_grad_()
        value = found["theirs" if name == "exact" else name](input, inputs.target)
        (gradient,) = torch.autograd.grad(value, input)
        answers[name] = (value.detach().double(), gradient.double())
    exact = answers.pop("exact")
    return {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(answer, exact))
        for name, answer in answers.items()
    }


def call_seconds(loss: Any, inputs: Inputs) -> float:
    start = time.perf_counter()
    loss(inputs.input, inputs.target)
    return time.perf_counter() - start


def over_own(pair: Pair, rounds: int) -> dict[str, float]:
    """The seconds of a call of the drop-in and of our module, the least of many in turns."""
    if pair.own is None:
        return {}
    (inputs,) = batches(pair, SMALL, 1)
    both = {"drop-in": losses(pair)["ours"], "own": pair.own()}
    least = dict.fromkeys(both, float("inf"))
    for loss, _ in itertools.product(both.values(), range(30)):
        loss(inputs.input, inputs.target).backward()
    for _ in range(100 * rounds):
        for name, loss in both.items():
            least[name] = min(least[name], call_seconds(loss, inputs))
    return least


def measured(name: str, pair: Pair, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """One row."""
    found = losses(pair)
    copies = batches(pair, shape, 3)
    off = errors(found, copies[0])
    row: dict[str, Any] = {"name": name, "shape": list(shape), "errors": off, "rounds": 0}
    if max(off.values()) > TOLERANCE:
        return row
    tasks = {each: measure.task(loss, "forward+backward") for each, loss in found.items()}
    row["seconds"] = measure.interleave(tasks, copies, rounds=rounds, seconds=60.0)
    row["rounds"] = len(row["seconds"]["ours"])
    row["kept"] = {each: measure.saved_bytes(loss, copies[0]) for each, loss in found.items()}
    row["logits"] = copies[0].input.nbytes
    row["call"] = over_own(pair, rounds)
    return row


def markdown(path: Path) -> str:
    """The table of docs/switch.md."""
    document = results.load(path)
    shape = document["rows"][0]["shape"]
    lines = [
        f"A step (loss and gradient) of logits `{shape}`, float32, and int64 class numbers: "
        "median (10th–90th percentile; mean). *Kept* is what autograd saves from forward to "
        "backward beyond the logits and the target, as a multiple of the logits. *Over our own* "
        f"is what a call takes more than that of our own module, at `{list(SMALL)}`.",
        "",
        "| loss | library | drop-in | ratio | kept: library, drop-in | over our own |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in document["rows"]:
        if "seconds" not in row:
            lines.append(f"| {row['name']} | not timed: the answers differ | | | | |")
            continue
        theirs, ours = row["seconds"]["theirs"], row["seconds"]["ours"]
        kept = [f"{row['kept'][each] / row['logits']:.1f}×" for each in ("theirs", "ours")]
        call = row["call"]
        more = f"{1e6 * (call['drop-in'] - call['own']):.0f} µs" if call else "two passes"
        cells = (
            row["name"], report._time(results.spread(theirs)), report._time(results.spread(ours)),
            report.ratio_words(results.ratio(theirs, ours)), ", ".join(kept), more,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", report.heading(document), "", report.origin(document)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--size", type=int, default=96, help="of the volumes")
    parser.add_argument("--json", type=Path, default=Path("out/switch.json"))
    given = parser.parse_args()
    shape = (2, 4, given.size, given.size, given.size)
    header = machine.describe(torch.device("cpu"))
    rows = [measured(name, pair, shape, given.rounds) for name, pair in PAIRS.items()]
    header["load_average_after"] = machine.load_average()
    document: Any = {
        "schema": results.SCHEMA, "made": machine.provenance(), "machine": header,
        "suite": "switch", "rows": rows,
    }  # fmt: skip
    document["made"]["command"] = f"python bench/switch.py --json {given.json}"
    results.save(document, given.json)
    print(markdown(given.json))


if __name__ == "__main__":
    main()
