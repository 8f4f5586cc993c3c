"""Test the PostgreSQL engine: refusals, several nodes, lost connections, the tools."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from storage import open_store
from storage.__main__ import main as storage_tool
from storage.errors import Busy, QueueFull, StaleReceipt, Unavailable, UnusableDatabase
from storage.model import IdempotencyKey, NewMessage, Receive
from storage.postgres.schema import SCHEMA_VERSION
from storage.postgres.store import PostgresStore
from storage.store import Engine, Store
from tests.support.engines import postgres_database
from tests.support.live import await_true
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    return postgres_database().url_for(tmp_path)


@pytest.fixture
def nodes(url: str) -> Iterator[list[Engine]]:
    """Return three stores, like three processes."""
    stores = [open_store(url) for _ in range(3)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def store(nodes: list[Engine]) -> Store:
    return nodes[0]


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


# Several nodes


def test_a_limit_is_exact_with_many_concurrent_senders(nodes: list[Engine]) -> None:
    configure(nodes[0], max_messages=25)

    def fill(node: Store) -> int:
        stored = 0
        for _ in range(20):
            with suppress(QueueFull):
                stored += len(send(node, "x"))
        return stored

    stored = in_threads([lambda node=node: fill(node) for node in nodes * 2])  # type: ignore[misc]
    assert sum(count for count in stored if isinstance(count, int)) == 25
    assert stats(nodes[0]).ready == 25


def test_one_of_concurrent_writes_with_one_key_is_stored_and_all_get_its_answer(nodes: list[Engine]) -> None:
    key = IdempotencyKey("k", b"1")
    answers = in_threads([lambda node=node: node.send("q", [new("a")], key) for node in nodes * 4])  # type: ignore[misc]
    assert len({str(answer) for answer in answers}) == 1
    assert peek(nodes[0]) == ["a"]


def test_one_of_concurrent_messages_with_one_dedup_id_is_stored(nodes: list[Engine]) -> None:
    batches = [["a", "b", "c"], ["c", "b", "a"]] * 6

    def work(node: Store, batch: list[str]) -> list[int]:
        return node.send("q", [new(text, dedup_id=text) for text in batch]).ids

    jobs = [lambda n=n, b=b: work(n, b) for n, b in zip(nodes * 4, batches, strict=True)]
    answers = in_threads(jobs)
    ids = {tuple(sorted(answer)) for answer in answers if isinstance(answer, list)}
    assert len(ids) == 1
    assert sorted(peek(nodes[0])) == ["a", "b", "c"]


def test_concurrent_readers_with_one_key_get_the_same_message(nodes: list[Engine]) -> None:
    send(nodes[0], "a", "b", "c")
    ask = Receive(("q",), lease=30)
    found = in_threads([lambda node=node: node.receive(ask, IdempotencyKey("k", b"1")) for node in nodes * 4])  # type: ignore[misc]
    assert len({str(messages) for messages in found}) == 1
    assert stats(nodes[0]).leased == 1


def test_each_key_stays_serial_and_in_order_across_nodes(nodes: list[Engine]) -> None:
    keys = "abcdef"
    held: set[str] = set()
    seen: dict[str, list[int]] = {key: [] for key in keys}
    guard = threading.Lock()
    done = threading.Event()

    def write(node: Store, mine: str) -> None:
        for number in range(25):
            for key in mine:
                send(node, f"{key}{number}", key=key)

    def read(node: Store) -> None:
        while not done.is_set() or stats(node).ready:
            for message in lease(node, 1):
                key, number = message.text[0], int(message.text[1:])
                with guard:
                    assert key not in held, f"two have messages of key {key}"
                    held.add(key)
                    seen[key].append(number)
                with guard:
                    held.discard(key)
                node.settle(message.receipt)

    with ThreadPoolExecutor(9) as pool:
        writers = [pool.submit(write, node, mine) for node, mine in zip(nodes, ("ab", "cd", "ef"), strict=True)]
        readers = [pool.submit(read, node) for node in nodes * 2]
        for writer in writers:
            writer.result()
        done.set()
        for reader in readers:
            reader.result()
    assert seen == {key: list(range(25)) for key in keys}
    assert stats(nodes[0]).acked == 150


def test_senders_and_readers_of_two_queues_keep_the_counts_correct(nodes: list[Engine], url: str) -> None:
    def work(number: int) -> None:
        node = nodes[number % 3]
        for turn in range(15):
            queue, other = ("q", "r") if (number + turn) % 2 else ("r", "q")
            send(node, str(turn), queue=queue, key=str(turn % 3))
            for message in lease(node, 2, queue=other):
                if turn % 5 == 0:
                    node.reject(message.receipt)
                else:
                    node.transact([message.receipt], [(queue, new("handed on", key="h")), (other, new("back"))])

    failures = [result for result in in_threads([lambda n=n: work(n) for n in range(9)]) if result is not None]  # type: ignore[misc]
    assert failures == []
    assert storage_tool(["check", url]) == 0


def test_two_concurrent_acks_of_one_receipt_settle_it_once(nodes: list[Engine]) -> None:
    send(nodes[0], "a")
    held = lease_one(nodes[0])
    answers = in_threads([lambda node=node: node.ack([held.receipt]).acked for node in nodes * 3])  # type: ignore[misc]
    assert sum(answer for answer in answers if isinstance(answer, int)) == 1
    assert stats(nodes[0]).acked == 1


def test_a_reader_of_one_node_is_woken_by_a_write_of_another(nodes: list[Engine]) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(nodes[0].receive, Receive(("q",), wait=20))
        send(nodes[1], "a")
        assert [message.text for message in reading.result(15)] == ["a"]


def test_a_waiting_reader_has_no_transaction_and_no_lock(nodes: list[Engine], url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(nodes[0].receive, Receive(("q",), wait=20))
        listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'NOTIFY%'"
        await_true(lambda: sql(url, listening) == [(1,)])
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert sql(url, idle) == [(0,)]
        nodes[0].stop_waiting()
        assert reading.result(10) == []


# Lost connections


def terminate(url: str) -> None:
    """End all connections to the database."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    pids = [row[0] for row in sql(url, f"SELECT pid {others}")]
    sql(url, f"SELECT pg_terminate_backend(pid) {others}")
    await_true(lambda: not [row for row in sql(url, f"SELECT pid {others}") if row[0] in pids])


def test_connections_that_ended_while_idle_are_replaced_silently(store: Store, url: str) -> None:
    for number in range(5):
        terminate(url)
        send(store, str(number))
    assert take(store, 9) == ["0", "1", "2", "3", "4"]


def test_an_operation_whose_connection_ended_has_an_unknown_outcome(store: Store, url: str) -> None:
    send(store, "a")
    held = lease_one(store)
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT FROM queue_service.messages FOR UPDATE")
        settling = pool.submit(store.settle, held.receipt)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await_true(lambda: sql(url, waiting) == [(1,)])
        sql(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with pytest.raises(Unavailable) as fault:
            settling.result(10)
    assert not isinstance(fault.value, Busy)
    store.settle(held.receipt)


def test_a_lock_timeout_reports_that_nothing_was_done(store: Store, url: str) -> None:
    send(store, "a")
    held = lease_one(store)
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM queue_service.messages FOR UPDATE")
        with pytest.raises(Busy):
            store.settle(held.receipt)
    store.settle(held.receipt)
    with pytest.raises(Exception, match="no such message"):
        store.settle(held.receipt)


# Opening


def test_concurrent_first_starts_create_one_schema(url: str) -> None:
    sql(url, "DROP SCHEMA queue_service CASCADE")
    stores = in_threads([lambda: open_store(url)] * 6)
    assert all(isinstance(store, PostgresStore) for store in stores)
    for store in stores:
        assert isinstance(store, PostgresStore)
        send(store, "a")
        store.close()
    assert sql(url, "SELECT count(*) FROM queue_service.messages") == [(6,)]


@pytest.mark.parametrize(
    ("change", "back", "reason"),
    [
        (
            "UPDATE queue_service.version SET version = 99",
            f"UPDATE queue_service.version SET version = {SCHEMA_VERSION}",
            "version 99",
        ),
        ("ALTER ROLE queue SET synchronous_commit = off", "ALTER ROLE queue RESET ALL", "synchronous_commit"),
    ],
)
def test_an_unsuitable_database_is_refused_with_the_reason(change: str, back: str, reason: str, url: str) -> None:
    open_store(url).close()
    sql(url, change)
    try:
        with pytest.raises(UnusableDatabase, match=reason):
            open_store(url)
    finally:
        sql(url, back)


def test_an_encoding_other_than_utf_8_is_refused() -> None:
    server = postgres_database().server
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(UnusableDatabase, match="LATIN1"):
        open_store(server.url("latin"))


def test_an_unreachable_server_is_reported() -> None:
    with pytest.raises(UnusableDatabase, match="cannot be used"):
        open_store("postgresql://queue@127.0.0.1:1/none")
    with pytest.raises(UnusableDatabase, match="cannot be used"):
        open_store("postgresql://queue@127.0.0.1:1/none?nonsense=1")


# The tools


def test_info_and_check_report_the_contents(store: Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    send(store, "a", "b", "c")
    lease_one(store)
    assert storage_tool(["info", url]) == 0
    assert "queue     q: 2 ready, 1 leased, 0 delayed, 0 blocked; 3 bytes\n" in capsys.readouterr().out
    assert storage_tool(["check", url]) == 0
    assert capsys.readouterr().out == "ok: 3 messages in 1 queues\n"


def test_check_finds_wrong_counts_and_messages_without_a_queue(
    store: Store, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    send(store, "a", "b", key="k")
    sql(url, "UPDATE queue_service.messages SET state = 0")
    sql(url, "INSERT INTO queue_service.messages (queue_id, sent_at, arrived_at, state, text) VALUES (99, 0, 0, 0, '')")
    assert storage_tool(["check", url]) == 1
    printed = capsys.readouterr().err
    assert "queue 'q' counts 1 ready but has 2" in printed
    assert "queue 'q' has a key with 0 leased and 2 free messages" in printed
    assert "1 messages are in no queue" in printed


def test_check_accepts_a_free_head_beside_leased_messages_of_its_key(store: Store, url: str) -> None:
    configure(store, key_lock="head")
    send(store, "a", "b", key="k")
    one, _ = lease(store, 2)
    store.release(one.receipt)
    assert (stats(store).ready, stats(store).leased) == (1, 1)
    assert storage_tool(["check", url]) == 0
    sql(url, "UPDATE queue_service.queues SET settings = '{}'")
    assert storage_tool(["check", url]) == 1


@pytest.mark.parametrize(("arguments", "program"), [(["vacuum"], "autovacuum"), (["backup", "copy"], "pg_dump")])
def test_commands_that_postgresql_provides_itself_are_refused(
    arguments: list[str], program: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *file = arguments
    assert storage_tool([verb, url, *file]) == 1
    assert program in capsys.readouterr().err


def test_a_stale_receipt_stops_a_transaction_with_its_place(store: Store) -> None:
    send(store, "a", "b")
    held = lease(store, 2)
    store.settle(held[1].receipt)
    with pytest.raises(StaleReceipt) as fault:
        store.transact([held[0].receipt, held[1].receipt], [("q", NewMessage("never"))])
    assert fault.value.index == 1
    assert peek(store) == ["a"]


# Locks are taken in one order, since detecting a deadlock takes a second.


@pytest.mark.parametrize("settings", [{"max_receives": 5}, {"max_messages": 100_000}], ids=str)
def test_senders_transactors_and_readers_of_keys_never_deadlock(
    nodes: list[Engine], url: str, settings: dict[str, int]
) -> None:
    nodes[0].configure("q", settings)

    def batch(number: int) -> list[NewMessage]:
        return [new("x", key=f"k{(number * 7 + n * 3) % 8}", dedup_id=f"{number}-{n}") for n in range(4)]

    def send_some(node: Store, start: int) -> None:
        for number in range(start, start + 40):
            node.send("q", batch(number))

    def transact_some(node: Store, start: int) -> None:
        for number in range(start, start + 40):
            node.transact([], [("q", message) for message in batch(number)])

    def read_some(node: Store) -> None:
        for _ in range(60):
            node.ack([str(message.receipt) for message in node.receive(Receive(("q",), 5, 30.0))])

    work = [
        *(lambda node=node, n=n: send_some(node, n * 1_000) for n, node in enumerate(nodes)),
        *(lambda node=node, n=n: transact_some(node, n * 1_000 + 500) for n, node in enumerate(nodes)),
        *(lambda node=node: read_some(node) for node in nodes),
    ]
    assert in_threads(work) == [None] * len(work)
    assert _deadlocks(url) == 0


def _deadlocks(url: str) -> int:
    found = sql(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert isinstance(found[0][0], int)
    return found[0][0]


@pytest.mark.parametrize(
    "setting",
    ["default_transaction_isolation = 'repeatable read'", "standard_conforming_strings = off", "array_nulls = off"],
)
def test_a_database_with_unsuitable_settings_is_refused(url: str, setting: str) -> None:
    database = sql(url, "SELECT current_database()")[0][0]
    sql(url, f'ALTER DATABASE "{database}" SET {setting}')
    try:
        with pytest.raises(UnusableDatabase, match="it must be"):
            open_store(url)
    finally:  # the next test uses the database
        sql(url, f'ALTER DATABASE "{database}" RESET ALL')
