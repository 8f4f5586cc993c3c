"""What tests share: a real service, and a queue in it that no other test uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.live import LiveServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """One service for all tests that leave it running; a test that kills its service starts its own."""
    with LiveServer() as live:
        yield live


@pytest.fixture
def queue() -> str:
    """A fresh queue's name."""
    return f"test-{next(_numbers)}"
