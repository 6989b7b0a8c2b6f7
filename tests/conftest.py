"""What every test file shares: the import path, seeds, threads and how a number is judged."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# --import-mode=importlib leaves the path alone, and the tests share the files of support/
sys.path.insert(0, str(Path(__file__).parent / "support"))

import paths

sys.path[:1] = map(str, paths.IMPORTED)

# the same examples on every run: a failure is reproduced by running the test again
hypothesis.settings.register_profile(
    "customloss", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.load_profile("customloss")


with warnings.catch_warnings():
    # torch's own forward mode warns once, when its first use imports torch.jit decompositions
    warnings.simplefilter("ignore")
    torch.func.jvp(torch.sigmoid, (torch.zeros(1),), (torch.ones(1),))


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test begins with one seed, and leaves threads and determinism as they were."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
