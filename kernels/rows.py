"""The rows of the further sums, for compiled code: the one place here that knows their order.

A test compares it with ``reference.rows``. Triton compiles no loop over a table, so the bits of
``reference.Extra`` and the numbers of their rows are spelt out.
"""

from __future__ import annotations

import triton


@triton.constexpr_function
def rows_of(extra):
    """The number of sums, tp to tn included."""
    logs, squares, distance = extra & 1, (extra >> 1) & 1, (extra >> 2) & 1
    focal, hard, support = (extra >> 3) & 1, (extra >> 4) & 1, (extra >> 5) & 1
    return 4 + 2 * logs + 3 * squares + 3 * distance + 2 * focal + 4 * hard + support


@triton.constexpr_function
def row_of(extra, one):
    """The first row of the extra ``one``, a single bit, among the sums of ``extra``."""
    return rows_of(extra & (one - 1))
