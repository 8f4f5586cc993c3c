"""The engines under test, and their clock."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psycopg

from storage.clock import Clock
from storage.sqlite.store import SqliteStore
from storage.store import Engine
from tests.support.postgres import Postgres


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


def _sqlite(directory: Path, clock: Clock) -> Engine:
    return SqliteStore(directory / "queue.db", clock=clock)


def _postgres(directory: Path, clock: Clock) -> Engine:
    from storage.postgres.store import PostgresStore

    return PostgresStore(postgres_database().url_for(directory), clock=clock)


class _Database:
    """One database for all tests of a session, emptied for each, since creating one takes longer."""

    def __init__(self) -> None:
        self.server = Postgres(fast=True)
        self.server.start()
        atexit.register(self.server.__exit__)
        self._url = self.server.create_database("conformance")
        self._directory: Path | None = None

    def url_for(self, directory: Path) -> str:
        if directory != self._directory:
            if self._directory is not None:
                self._empty()
            self._directory = directory
        return self._url

    def _empty(self) -> None:
        with psycopg.connect(self._url) as connection:
            tables = "queues, counts, messages, graves, dedup, replies, moves"
            connection.execute("SET search_path = queue_service")
            connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
            connection.execute("ALTER SEQUENCE message_ids RESTART")


@cache
def postgres_database() -> _Database:
    """Start PostgreSQL at the first call; skip the test if it is missing, or in CI fail it."""
    return _Database()


# Open or create the store in a directory. Another engine is another line.
ENGINES: dict[str, Callable[[Path, Clock], Engine]] = {
    "sqlite": _sqlite,
    "postgres": _postgres,
}

# How many times longer than the fastest an engine takes; random tests try so many fewer.
PACE = {"sqlite": 1, "postgres": 8}
