"""What every test shares: the import path, seeds and threads, and which tests are run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# --import-mode=importlib leaves the path alone, and the tests share the files of support/
sys.path.insert(0, str(Path(__file__).parent / "support"))

import paths

sys.path[:1] = map(str, paths.IMPORTED)

import patience  # noqa: E402
import selection  # noqa: E402

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, help="start no test later than this many minutes")
    parser.addoption(
        "--shard", help="K/N: of the selected tests every N-th, beginning with the K-th"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    selection.mark_more(items)
    yield  # here -m and -k take their choice
    shard = config.getoption("shard")
    items[:] = selection.one_shard(items, shard) if shard else selection.in_order(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    patience.skip_if_over(item.config.getoption("minutes"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    patience.told(terminalreporter, config.getoption("minutes"))
