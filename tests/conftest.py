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

# With --import-mode=importlib pytest does not change sys.path; the tests import from support/.
sys.path.insert(0, str(Path(__file__).parent / "support"))

import paths

sys.path[:1] = map(str, paths.IMPORTED)

import patience  # noqa: E402
import selection  # noqa: E402

import customloss  # noqa: E402
from customloss.losses import named_scores  # noqa: E402

# The examples are the same on every run, so that running the test again reproduces a failure.
hypothesis.settings.register_profile(
    "customloss", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.load_profile("customloss")


# a plugin of some files that others import from: pytest warns of one that was imported before
pytest.register_assert_rewrite("cpp_build")

with warnings.catch_warnings():
    # The first use of torch's forward mode imports torch.jit decompositions, which warn once.
    warnings.simplefilter("ignore")
    torch.func.jvp(torch.sigmoid, (torch.zeros(1),), (torch.ones(1),))


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test begins with one seed, and leaves threads, determinism and names as they were, also
    those of other libraries that a snippet of the docs replaced."""
    torch.manual_seed(0)
    registered = dict(named_scores.registered)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    customloss.unpatch("all")  # else a comparison with a library would be one with ourselves
    named_scores.registered.clear()
    named_scores.registered.update(registered)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, help="start no test later than this many minutes")
    parser.addoption(
        "--shard", help="K/N: every N-th of the selected tests, beginning with number K"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    selection.mark_more(items)
    yield  # pytest deselects by -m and -k
    shard = config.getoption("shard")
    items[:] = selection.one_shard(items, shard) if shard else selection.in_order(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    patience.skip_if_over(item.config.getoption("minutes"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    patience.report(terminalreporter, config.getoption("minutes"))
