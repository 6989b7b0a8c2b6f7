"""The benchmark of the drop-ins times what is right, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("monai.losses")
import switch

NAME = "MONAI DiceCELoss"


def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The table of a run with one pair."""
    path = tmp_path / "switch.json"
    monkeypatch.setattr(switch, "PAIRS", {NAME: switch.PAIRS[NAME]})
    monkeypatch.setattr(
        sys, "argv", ["switch.py", "--size", "8", "--rounds", "2", "--json", str(path)]
    )
    switch.main()
    return str(switch.markdown(path))


def test_a_row_has_times_and_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (line for line in saved(tmp_path, monkeypatch).splitlines() if NAME in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3].count("×") == 1 and cells[4].endswith("0.0×") and cells[5].endswith(" µs")


def test_what_differs_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = switch.losses

    def wrong(pair: Any) -> dict[str, Any]:
        found: dict[str, Any] = losses(pair)
        ours = found["ours"]
        return {**found, "ours": lambda input, target: ours(input, target) * 1.001}

    monkeypatch.setattr(switch, "losses", wrong)
    assert f"| {NAME} | not timed: the answers differ |" in saved(tmp_path, monkeypatch)


def test_each_pair_is_the_loss_of_ours_that_it_is_compared_with() -> None:
    for pair in switch.PAIRS.values():
        if pair.own is None or pair.library == "nnunetv2":  # whose loss is -Dice, and not 1 - Dice
            continue
        try:
            found = switch.losses(pair)
        except ImportError:
            continue
        (inputs,) = switch.batches(pair, switch.SMALL, 1)
        value = pair.own()(inputs.input, inputs.target)
        torch.testing.assert_close(found["ours"](inputs.input, inputs.target), value)
