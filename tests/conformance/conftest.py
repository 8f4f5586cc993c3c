"""Every test of this directory runs once for each engine, on a store of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.store import Engine, Store
from tests.support.engines import ENGINES, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=ENGINES)
def open_again(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Callable[[], Store]]:
    """Opens the test's data once more, as another process does, or the same one after a restart."""
    opened: list[Engine] = []

    def open_again() -> Store:
        opened.append(ENGINES[request.param](tmp_path, clock))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_again: Callable[[], Store]) -> Store:
    return open_again()
