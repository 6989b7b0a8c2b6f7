"""Paths of the repository and the tests, and the folders whose files are imported by name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
EMULATION = TESTS / "support" / "cuda_emulation"
ROOMS = ("losses", "values", "ops", "batches", "backends", "compat", "project")
# The rooms are included because a process that a test starts imports the test's file by name.
IMPORTED = (TESTS / "support", EMULATION, *(TESTS / room for room in ROOMS), ROOT / "bench")
