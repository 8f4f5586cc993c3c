"""Test that several nodes can clear the same deleted queue at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from storage.postgres import upkeep as postgres_upkeep
from storage.postgres.store import PostgresStore
from tests.support.engines import FakeClock
from tests.support.live import await_true
from tests.support.postgres import Postgres
from tests.support.shorthand import peek, send


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create_database("clearing")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresStore]:
    monkeypatch.setattr(postgres_upkeep, "UPKEEP_EVERY", 0.05)
    with closing(PostgresStore(url, clock=clock)) as store:
        yield store


def test_two_nodes_can_clear_a_deleted_queue_at_once(store: PostgresStore, url: str, clock: FakeClock) -> None:
    """Nodes skip each other's rows, so they do not deadlock; the queue's row stays until all are deleted."""
    send(store, *["x"] * 50)
    with psycopg.connect(url) as node, psycopg.connect(url, autocommit=True) as onlooker:

        def count(table: str, which: str = "true") -> int:
            row = onlooker.execute(f"SELECT count(*) FROM queue_service.{table} WHERE {which}".encode()).fetchone()
            assert row is not None
            return int(row[0])

        node.execute("SELECT FROM queue_service.messages ORDER BY id DESC LIMIT 1 FOR UPDATE")
        store.delete_queue("q")
        clock.advance(24 * 3_600)  # more than the limit for a sender that has the queue's number
        await_true(lambda: count("messages") == 1)
        send(store, "new", queue="another")
        await_true(
            lambda: count("counts", "queue_id NOT IN (SELECT id FROM queue_service.queues WHERE name <> '')") == 0
        )
        assert count("queues", "name IS NULL") == 1  # otherwise no node would clear the last message
        node.rollback()
        await_true(lambda: count("queues", "name IS NULL") == 0)
        assert count("messages") == 1
    assert peek(store, queue="another") == ["new"]
