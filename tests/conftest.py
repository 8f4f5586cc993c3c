"""What tests share: a real service, and a queue in it that no other test uses."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator

import pytest

from tests.live import LiveServer

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """A run in the background of a shell ignores SIGINT, and so would the processes that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """One service for all tests that leave it running; a test that kills its service starts its own."""
    with LiveServer() as live:
        yield live


@pytest.fixture
def queue() -> str:
    """A fresh queue's name."""
    return f"test-{next(_numbers)}"
