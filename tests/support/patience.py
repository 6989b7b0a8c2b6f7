"""``pytest --minutes N`` leaves out the tests that would start later, and counts them."""

from __future__ import annotations

import time
from typing import Any

import pytest

_STARTED = time.monotonic()
_REASON = "left out: the {:g} minutes of --minutes were over"


def skip_if_over(minutes: float | None) -> None:
    """Skips the test that is about to start if the time is over."""
    if minutes is not None and time.monotonic() - _STARTED > 60 * minutes:
        pytest.skip(_REASON.format(minutes))


def report(reporter: Any, minutes: float | None) -> None:
    """Says at the end how many tests were left out."""
    if minutes is None:
        return
    reason = _REASON.format(minutes)
    left = sum(reason in str(skip.longrepr) for skip in reporter.stats.get("skipped", ()))
    reporter.write_line(f"{left} tests were left out, as {minutes:g} minutes were over")
