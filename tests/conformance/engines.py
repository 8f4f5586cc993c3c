"""The engines under test, and the clock they are tested by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.clock import Clock
from storage.model import Store
from storage.sqlite import SqliteStore


class FakeClock:
    """A Clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._moment = 1_800_000_000_000

    def now(self) -> int:
        return self._moment

    def wall(self, moment: int) -> int:
        return moment

    def advance(self, seconds: float) -> None:
        self._moment += round(seconds * 1000)


def _sqlite(directory: Path, clock: Clock) -> Store:
    return SqliteStore(directory / "queue.db", clock=clock)


# Opens the store that lies in a directory, or begins one there. A further engine is a further line.
ENGINES: dict[str, Callable[[Path, Clock], Store]] = {
    "sqlite": _sqlite,
}
