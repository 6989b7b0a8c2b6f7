"""Options of the benchmark: ``pytest bench/bench_confusion.py --suite full --no-compile``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from customloss._bench import cases


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("customloss")
    group.addoption("--suite", choices=sorted(cases.SUITES), default="quick")
    group.addoption("--rounds", type=int, default=15, help="samples of each variant")
    group.addoption("--threads", type=int, default=0, help="CPU threads; 0: as torch has them")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """A fixed number of threads, which the results name."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("threads") or before)
    yield torch.get_num_threads()
    torch.set_num_threads(before)
