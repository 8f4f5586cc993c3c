"""Test the order of messages beside a transaction that the test's own connection leaves open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count

import psycopg
import pytest

from storage.postgres.store import PostgresStore
from storage.store import Store
from tests.support.live import await_true
from tests.support.postgres import Postgres
from tests.support.shorthand import lease, send, take

_numbers = count(1)


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create_database(f"order-{next(_numbers)}")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(PostgresStore(url)) as store:
        send(store, *(str(number) for number in range(300)))
        yield store


def test_a_send_that_commits_late_is_not_passed_over(url: str, store: Store) -> None:
    with psycopg.connect(url) as sender, psycopg.connect(url, autocommit=True) as reader:
        sender.execute(SEND, ["late"])
        send(store, *(f"after {number}" for number in range(300)))
        for _ in range(300):
            _take_by(reader)
        assert [_take_by(reader) for _ in range(200)] == [f"after {number}" for number in range(200)]
        sender.commit()
        assert _take_by(reader) == "late"
        assert _take_by(reader) == "after 200"


def test_a_rolled_back_read_leaves_its_message_first(url: str, store: Store) -> None:
    with psycopg.connect(url) as failing, psycopg.connect(url, autocommit=True) as reader:
        _take_by(reader)
        assert _take_by(failing) == "1"
        assert [_take_by(reader) for _ in range(200)] == [str(number) for number in range(2, 202)]
        failing.rollback()
        assert [_take_by(reader) for _ in range(2)] == ["1", "202"]


def test_a_released_message_comes_first_again(url: str, store: Store) -> None:
    held = lease(store, 3)
    with psycopg.connect(url, autocommit=True) as reader:
        assert [_take_by(reader) for _ in range(200)] == [str(number) for number in range(3, 203)]
        for one in reversed(held):
            store.release(one.receipt)
        assert [_take_by(reader) for _ in range(4)] == ["0", "1", "2", "203"]


def test_a_higher_priority_comes_first_after_reads_of_others(url: str, store: Store) -> None:
    with psycopg.connect(url, autocommit=True) as reader:
        for _ in range(200):
            _take_by(reader)
        send(store, "urgent", priority=1)
        send(store, "keyed", key="k")
        assert [_take_by(reader) for _ in range(2)] == ["urgent", "200"]
        assert take(store, 300)[-1] == "keyed"


RECEIVE = "SELECT text FROM queue_service.receive(0, '', ARRAY['q'], 1, '', NULL, 1, NULL, NULL)"
SEND = "SELECT queue_service.send(0, '', 'q', ARRAY[convert_to(%s, 'UTF8')], NULL, NULL, NULL)"


def _take_by(session: psycopg.Connection[tuple[object, ...]]) -> str:
    """Return what the next read of this session removes; remembered places belong to a session."""
    row = session.execute(RECEIVE).fetchone()
    assert row is not None
    text = row[0]
    assert isinstance(text, bytes)
    return text.decode()


def test_a_read_waits_for_a_concurrent_release_of_the_first_message(url: str) -> None:
    with closing(PostgresStore(url)) as store, psycopg.connect(url) as another, ThreadPoolExecutor(1) as thread:
        send(store, "second")
        send(store, "first", priority=1)
        lease(store, 1, seconds=0.2)
        late = round(time.time() * 1000) + 60_000  # long after the end of the lease
        another.execute("SELECT queue_service.catch_up(%s::bigint, '', 'q', 10)", [late])
        time.sleep(0.3)
        read = thread.submit(take, store)
        await_true(lambda: _waits_for_a_lock(url))
        another.commit()
        assert read.result(10) == ["first"]


def _waits_for_a_lock(url: str) -> bool:
    with psycopg.connect(url) as session:
        found = session.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return found is not None and found[0] > 0
