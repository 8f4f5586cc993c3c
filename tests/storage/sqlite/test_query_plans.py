"""Test that every statement on a message uses an index: none reads a whole queue, and reads do not sort."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from storage.model import IdempotencyKey, Receive, State
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, lease_one, new, peek, send, stats


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


class Statements:
    """Records all SQL of this thread since `begin`, once each, with a set of its values."""

    def __init__(self) -> None:
        self._thread: int | None = None  # a lone request leads its own commit, so this thread runs all statements
        self._seen: dict[str, Any] = {}

    def watch(self, connection: apsw.Connection) -> None:
        connection.exec_trace = self._trace

    def begin(self) -> None:
        self._thread = threading.get_ident()

    def _trace(self, cursor: apsw.Cursor, sql: str, values: Any) -> bool:
        if threading.get_ident() == self._thread:
            self._seen[sql] = values
        return True

    def plans(self, path: Path) -> dict[str, list[str]]:
        self._thread = None
        connection = apsw.Connection(str(path))
        plans = {
            sql: [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()]
            for sql, values in self._seen.items()
            if sql.split()[0] in {"SELECT", "INSERT", "UPDATE", "DELETE"}
        }
        connection.close()
        return plans


@pytest.fixture
def statements() -> Iterator[Statements]:
    statements = Statements()
    with on_each_connection(statements.watch):
        yield statements


HOT_VERBS: dict[str, Callable[[SqliteStore], object]] = {
    "send": lambda store: send(store, "a"),
    "send a batch": lambda store: send(store, "a", "b"),
    "send with fields": lambda store: send(store, "a", "b", key="k", priority=1, recipient="r", ttl=60, delay=9),
    "send with dedup_id": lambda store: send(store, "a", dedup_id="1"),
    "send once": lambda store: store.send("q", [new("a")], IdempotencyKey("key", b"")),
    "receive": lambda store: store.receive(Receive(("q",))),
    "lease": lambda store: lease(store, 10),
    "lease keys": lambda store: lease(store, 10, queue="keys"),
    "take keys": lambda store: store.receive(Receive(("keys",), 10)),
    "ack": lambda store: store.settle(lease_one(store).receipt),
    "extend": lambda store: store.extend(lease_one(store, queue="keys").receipt, 60),
    "release": lambda store: store.release(lease_one(store, queue="keys").receipt),
    "reject": lambda store: store.reject(lease_one(store, queue="keys").receipt),
    "transact": lambda store: store.transact([lease_one(store).receipt], [("q", new())], Receive(("q",), lease=9)),
    "stats": lambda store: stats(store),
    "peek": lambda store: peek(store),
    "peek ready": lambda store: store.peek("q", state=State.READY),
    "peek dead": lambda store: store.peek("q", state=State.DEAD),
    "peek a key": lambda store: store.peek("keys", key="k"),
    "search": lambda store: store.peek("q", text="a"),
    "search a key": lambda store: store.peek("keys", text="a", key="k"),
    "search the dead": lambda store: store.peek("q", reason="rejected", state=State.DEAD),
    "search a reason": lambda store: store.peek("q.dead", reason="rejected", before=2**60),
    "reasons": lambda store: store.reasons("q.dead"),
    "purge a reason": lambda store: store.purge("q.dead", reason="rejected"),
    "purge ids": lambda store: store.purge("q.dead", ids=range(1, 400)),
    "lease of any recipient": lambda store: lease(store, 10, recipient=None),
    "extend many": lambda store: store.extend_many([lease_one(store).receipt], 60),
    "reschedule": lambda store: store.reschedule("q", store.peek("q", limit=1)[0].id, 60),
    "listing": lambda store: store.queues("q"),
    "purge": lambda store: store.purge("keys"),
    "redrive": lambda store: store.redrive("q"),
}
# These scan a queue by age, or sort all of a rare set.
MAY_WALK = {"stats", "peek", "search", "peek ready", "purge", "listing", "reschedule"}


@pytest.mark.parametrize("verb", HOT_VERBS)
def test_no_statement_reads_all_messages_of_a_queue_nor_sorts_them(
    path: Path, statements: Statements, verb: str
) -> None:
    clock = FakeClock()
    store = SqliteStore(path, clock=clock)
    configure(store, max_receives=3, retention=1_000)
    send(store, *"abcdefgh")
    send(store, *"abcdefgh", key="k", queue="keys", ttl=1)
    store.reject(lease_one(store).receipt)
    send(store, "delayed", delay=1)
    send(store, *map(str, range(300)))
    lease(store, 2, seconds=1)
    peek(store)
    clock.advance(1)  # so that leases have ended and messages expired
    send(store, *"abcdefgh", key="k", queue="keys")
    statements.begin()
    HOT_VERBS[verb](store)
    plans = statements.plans(path)
    store.close()
    assert plans, "nothing was traced"
    for sql, plan in plans.items():
        bad = [step for step in plan if _reads_all(step)]
        if "LIMIT" not in sql:
            bad += [step for step in plan if "in_queue" in step and verb not in MAY_WALK]
        bad += [step for step in plan if "TEMP B-TREE" in step]
        bad += [step for step in plan if step.startswith("SEARCH dedup") and step.endswith("(queue_id=?)")]
        assert bad == [], f"{sql}\n{plan}"


def test_a_read_takes_from_the_front_of_its_own_index(path: Path, statements: Statements) -> None:
    store = SqliteStore(path)
    send(store, "a")
    statements.begin()
    lease_one(store)
    (plan,) = [plan for sql, plan in statements.plans(path).items() if "ORDER BY priority DESC, id" in sql]
    assert "SEARCH messages USING COVERING INDEX deliverable (queue_id=? AND recipient=?)" in plan
    store.close()


def test_the_lock_of_a_key_is_checked_in_its_leased_messages_alone(path: Path, statements: Statements) -> None:
    store = SqliteStore(path)
    send(store, *"abc", key="k")
    held = lease_one(store)
    statements.begin()
    store.settle(held.receipt)
    steps = [step for plan in statements.plans(path).values() for step in plan if step.startswith("SEARCH other")]
    assert steps == ["SEARCH other USING COVERING INDEX locked (queue_id=? AND key=?)"]
    store.close()


def test_removing_messages_reads_no_texts(path: Path) -> None:
    read: list[object] = []

    def note(cursor: apsw.Cursor, row: Any) -> Any:
        read.extend(row)
        return row

    def note_rows(connection: apsw.Connection) -> None:
        connection.row_trace = note

    clock = FakeClock()
    with on_each_connection(note_rows):
        store = SqliteStore(path, clock=clock)
        send(store, *["a long text"] * 4, key="k", ttl=1)
        receipts = [held.receipt for held in lease(store, 2)]
        read.clear()
        store.ack(receipts[:1])
        store.transact(receipts[1:], [])
        store.delete_message("q", store.peek("q", state=State.READY)[0].id)
        assert read.count("a long text") == 1, "by the peek"
        clock.advance(1)
        assert stats(store).expired == 1
        send(store, "a long text", priority=1)
        assert store.purge("q") == 1
        assert read.count("a long text") == 1
        store.close()


def test_one_statement_finds_what_is_due_in_a_page_of_queues(path: Path) -> None:
    asked: list[str] = []

    def note(cursor: apsw.Cursor, sql: str, values: object) -> bool:
        if threading.current_thread() is threading.main_thread():  # upkeep runs it too
            asked.append(sql)
        return True

    with on_each_connection(lambda connection: connection.set_exec_trace(note)), closing(SqliteStore(path)) as store:
        for number in range(50):
            send(store, "a", queue=f"q{number}")
        asked.clear()
        assert len(store.queues()) == 50
        assert len([sql for sql in asked if "due_at <= " in sql or "min(expires_at)" in sql]) == 1


def test_a_step_of_a_redrive_reads_no_more_rows_for_many_dead_letter_queues_than_for_one(path: Path) -> None:
    read: list[object] = []

    def note(cursor: apsw.Cursor, row: Any) -> Any:
        read.append(row)
        return row

    def count_rows(connection: apsw.Connection) -> None:
        connection.row_trace = note

    clock = FakeClock()
    with on_each_connection(count_rows):
        store = SqliteStore(path, clock=clock)
        for grave in range(20):
            configure(store, dead_letter_queue=f"grave{grave}", dead_letter_expired=True)
            send(store, *map(str, range(200)), ttl=1)
            clock.advance(2)
            peek(store)
        read.clear()
        assert store.redrive("q", limit=1) == 1
        assert len(read) < 200
        store.close()


def _reads_all(step: str) -> bool:
    """Return whether the plan scans a table, except for values of the statement, queues, or an inner select."""
    if not step.startswith("SCAN"):
        return False
    return not step.startswith(
        (
            "SCAN json_each",
            "SCAN item",
            "SCAN wanted",
            "SCAN CONSTANT ROW",
            "SCAN carray",
            "SCAN queues",
            "SCAN sqlite_sequence",
            "SCAN known",
        )
    )


def test_sqlite_does_not_prepare_statements_again_for_partial_indexes(path: Path) -> None:
    """It would at each use, without a trace in its counters, and nearly double the CPU time of reads."""
    store = SqliteStore(path)
    flags = [connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, -1) for connection in connections_of(store)]
    assert flags == [1, 1]
    store.close()


def connections_of(store: SqliteStore) -> list[apsw.Connection]:
    with store._readers.reading() as reading:
        return [store._committer._connection, reading]
