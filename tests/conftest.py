"""What tests share: a real service, a queue in it that no other test uses, and a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.support.figures import Cells, Tell, tables
from tests.support.live import LiveServer
from tests.support.postgres import Postgres
from tests.support.programs import ProgramMissing

_numbers = itertools.count(1)
_rows: list[Cells] = []


def pytest_configure() -> None:
    """A run in the background of a shell ignores SIGINT, and so would the processes that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on PostgreSQL, so that `-m postgres` picks it."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if "postgres" in item.nodeid or "postgres" in item.fixturenames:
            item.add_marker("postgres")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """A test that needs a program this machine lacks is skipped; where CI=true it fails."""
    with _skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with _skipping():
        return (yield)


@contextmanager
def _skipping() -> Iterator[None]:
    try:
        yield
    except ProgramMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """One service for all tests that leave it running; a test that kills its service starts its own."""
    with LiveServer() as live:
        yield live


@pytest.fixture
def queue() -> str:
    """A fresh queue's name."""
    return f"test-{next(_numbers)}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests that do not crash it, each in a database of its own; skips where there is none."""
    with Postgres(fast=True) as running:
        yield running


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Tells a row of a table at the end of the run, whether or not the test goes on to fail."""
    return lambda **cells: record_property("row", cells)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _rows.extend(cells for name, cells in report.user_properties if name == "row")  # type: ignore[misc]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _rows:
        terminalreporter.section("figures")
        for line in tables(_rows):
            terminalreporter.write_line(line)
