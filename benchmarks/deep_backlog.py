"""as backlog, at 10,000,000 messages: minutes and gigabytes, so only when it is named."""

from __future__ import annotations

from benchmarks.backlog import at_sizes
from benchmarks.report import Found

SIZES = ((1_000, 0), (10_000_000, 0))


def deep_backlog() -> list[Found]:
    return at_sizes(SIZES)
