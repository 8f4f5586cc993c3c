"""Test what other calls do between the transactions of one call, and what expires."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from psycopg import sql

from storage.model import REQUEST_WINDOW, IdempotencyKey, Receive
from storage.postgres import upkeep as postgres_upkeep
from storage.sqlite import upkeep as sqlite_upkeep
from storage.store import Engine
from tests.support.engines import FakeClock, postgres_database
from tests.support.live import await_true
from tests.support.shorthand import configure, new, peek, send, stats, texts

LONG = 15.0  # seconds


class AfterNextTransaction:
    """An observer that calls a function once, after the next transaction of this thread."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.done = False
        self._do = do
        self._thread = threading.current_thread()

    def committed(self, operations: int, seconds: float) -> None:
        if not self.done and threading.current_thread() is self._thread:
            self.done = True
            self._do()

    def waiting(self, readers: int) -> None:
        pass


@pytest.mark.parametrize("fields", [{}, {"key": "k"}, {"delay": 60}], ids=["plain", "with a key", "delayed"])
def test_a_purge_leaves_messages_sent_after_it_began(open_again: Callable[[], Engine], fields: dict[str, Any]) -> None:
    store, other = open_again(), open_again()
    for _ in range(3):
        send(store, *["before"] * 7_000, **fields)
    meanwhile = AfterNextTransaction(lambda: send(other, *["after"] * 500, **fields))
    store.observe(meanwhile)
    assert (store.purge("q"), meanwhile.done) == (21_000, True)
    assert peek(store) == ["after"] * 500
    now = stats(store)
    assert now.ready + now.delayed + now.blocked == 500


def test_a_transactions_reader_of_several_queues_waits_although_its_key_is_remembered(store: Engine) -> None:
    def transact() -> tuple[list[int], list[str], list[str | None]]:
        ask = Receive(("a", "b"), 1, 60.0, wait=LONG)
        done = store.transact([], [("out", new("result"))], ask, IdempotencyKey("key", b"fingerprint"))
        return done.ids, texts(done.messages), [message.receipt for message in done.messages]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(transact)
        await_true(lambda: peek(store, queue="out") == ["result"])
        send(store, "next", queue="b")
        ids, found, receipts = first.result(LONG)
    assert (found, peek(store, queue="out")) == (["next"], ["result"])
    assert transact() == (ids, found, receipts)
    assert peek(store, queue="out") == ["result"]


def test_keys_and_dedup_ids_are_forgotten_when_they_expire(
    open_again: Callable[[], Engine], clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the database would grow with every request."""
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 0.05)
    monkeypatch.setattr(postgres_upkeep, "UPKEEP_EVERY", 0.05)
    store = open_again()
    configure(store, dedup_window=60.0)
    send(store, "a", dedup_id="another")
    before = _rows(tmp_path)
    for number in range(30):
        store.send("q", [new(dedup_id=str(number))], IdempotencyKey(f"send {number}", b""))
        store.receive(Receive(("q",)), IdempotencyKey(f"receive {number}", b""))
        store.configure("q", {"lease": 1.0 + number}, once=IdempotencyKey(f"put {number}", b""))
    grown = {table for table, count in _rows(tmp_path).items() if count >= before[table] + 30}
    assert len(grown) == 2  # keys and dedup_ids
    clock.advance(REQUEST_WINDOW + 1)
    await_true(lambda: all(_rows(tmp_path)[table] <= before[table] for table in grown))


def _rows(directory: Path) -> dict[str, int]:
    """Return the number of rows in each table of the test's database."""
    if (path := directory / "queue.db").exists():
        with closing(apsw.Connection(str(path))) as file:
            tables = [str(row[0]) for row in file.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            return {name: file.execute(f"SELECT count(*) FROM {name}").get for name in tables}
    with psycopg.connect(postgres_database().url_for(directory)) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'queue_service'").fetchall()
        counts = {}
        for (name,) in names:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("queue_service", name))
            row = connection.execute(query).fetchone()
            counts[name] = row[0] if row else 0
        return counts
