"""the backlog benchmark with 10,000,000 messages: it takes minutes and gigabytes, so it runs only by name."""

from __future__ import annotations

from benchmarks.backlog import at_sizes
from benchmarks.report import Result

SIZES = ((1_000, 0), (10_000_000, 0))


def deep_backlog() -> list[Result]:
    return at_sizes(SIZES)
