"""Test several web nodes on one PostgreSQL, behind a balancer; and a node behind PgBouncer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.checker import History, Operation, read_histories
from tests.support.live import LiveServer
from tests.support.load import Actor, Connection, Load
from tests.support.postgres import Balancer, PgBouncer, Postgres

NODES, CONSUMERS = 4, 32
SMALL = {"WEB_CONCURRENCY": "1", "QUEUE_THREADS": "32"}


@pytest.fixture(scope="module")
def nodes(postgres: Postgres) -> Iterator[list[LiveServer]]:
    url = postgres.create_database("nodes")
    with ExitStack() as stack:
        servers = [LiveServer({"QUEUE_DATABASE_URL": url, **SMALL}) for _ in range(NODES)]
        with ThreadPoolExecutor(NODES) as pool:  # concurrent first starts on a new database
            yield list(pool.map(stack.enter_context, servers))


@pytest.fixture(scope="module")
def balancer(nodes: list[LiveServer]) -> Iterator[Balancer]:
    with Balancer(nodes) as running:
        yield running


def test_consumers_of_all_nodes_ack_each_message_once(balancer: Balancer, queue: str, tmp_path: Path) -> None:
    messages = 3_000
    _send(balancer.port, queue, [{"text": str(number)} for number in range(messages)])
    operations = _consume(balancer.port, queue, tmp_path)
    acks = [operation for operation in operations if operation.kind == "ack"]
    receipts = [receipt for ack in acks for receipt in ack.given]
    assert (len(receipts), len(set(receipts)), [stale for ack in acks for stale in ack.got]) == (messages, messages, [])
    assert sorted(_texts(operations), key=int) == [str(number) for number in range(messages)]


def test_a_key_is_served_in_order_by_one_consumer_at_a_time_across_all_nodes(
    balancer: Balancer, queue: str, tmp_path: Path
) -> None:
    keys, of_each = 8, 40
    _send(
        balancer.port,
        queue,
        [{"text": f"{key} {place}", "key": f"key {key}"} for place in range(of_each) for key in range(keys)],
    )
    operations = _consume(balancer.port, queue, tmp_path)
    acked = {receipt: ack.asked for ack in operations if ack.kind == "ack" for receipt in ack.given}
    turns: dict[str, list[tuple[float, float, list[int]]]] = {}  # by key: times of lease and settlement, places
    for read in operations:
        by_key: dict[str, list[int]] = {}
        for message in read.got if read.kind == "read" else ():
            key, place = message["text"].split()
            by_key.setdefault(key, []).append(int(place))
        for key, places in by_key.items():
            turns.setdefault(key, []).append((read.answered, acked[read.got[0]["receipt"]], places))
    assert len(turns) == keys
    for of_one in map(sorted, turns.values()):
        assert [place for _, _, places in of_one for place in places] == list(range(of_each))
        # By the consumers' clock: the ack was requested before the next lease was answered.
        assert all(given_up <= leased for (_, given_up, _), (leased, _, _) in pairwise(of_one))


def test_no_message_is_lost_or_duplicated_through_several_nodes(balancer: Balancer, queue: str, tmp_path: Path) -> None:
    with Load(balancer.port, tmp_path, queue) as load:
        load.write(2).write(batch=10, keyed=True).read(2).read(lease=60.0, batch=20)
        load.await_progress()
        verdict = load.finish()
    assert verdict.faultless, verdict


# PgBouncer in transaction mode


@pytest.fixture(scope="module")
def pooled(postgres: Postgres) -> Iterator[LiveServer]:
    """Run two processes whose sessions change with every transaction, with fewer sessions than threads."""
    postgres.create_database("pooled")
    with (
        PgBouncer(postgres, connections=3) as bouncer,
        LiveServer({"QUEUE_DATABASE_URL": bouncer.url("pooled"), "WEB_CONCURRENCY": "2"}) as server,
    ):
        yield server


def test_no_message_is_lost_or_duplicated_through_pgbouncer(pooled: LiveServer, queue: str, tmp_path: Path) -> None:
    with Load(pooled.port, tmp_path, queue) as load:
        load.write(2).write(batch=10, keyed=True).read(2).read(lease=60.0, batch=20)
        load.await_progress()
        verdict = load.finish()
    assert verdict.faultless, verdict


def test_a_waiting_reader_is_woken_through_pgbouncer(pooled: LiveServer, queue: str) -> None:
    """Also by a write through another process, which shares no session with the reader."""
    for turn in range(4):
        with ThreadPoolExecutor(1) as pool:
            poll = pool.submit(_ask, pooled.port, "GET", f"/queues/{queue}/messages?wait=20")
            time.sleep(0.3)  # it waits in the service now
            began = time.monotonic()
            _send(pooled.port, queue, [{"text": str(turn)}])
            assert poll.result() == {"text": str(turn)}
            assert time.monotonic() - began < 15  # before the end of its wait


# Helpers


def _consume(port: int, queue: str, histories: Path) -> list[Operation]:
    """Lease and ack all messages by many concurrent consumers; return what they did."""

    def consume(number: int) -> None:
        actor = Actor(port, queue, History(histories / f"{number}.jsonl"), batch=5, lease=300.0, stopping=lambda: True)
        actor.read()
        actor.close()

    with ThreadPoolExecutor(CONSUMERS) as pool:
        list(pool.map(consume, range(CONSUMERS)))
    return list(read_histories(histories))


def _ask(port: int, method: str, path: str, body: object = None) -> Any:
    connection = Connection(port)
    assert connection.open()
    try:
        reply = connection.ask(method, path, body)
    finally:
        connection.close()
    assert reply.status == 200, reply
    return reply.document


def _send(port: int, queue: str, messages: list[dict[str, str]]) -> None:
    _ask(port, "POST", f"/queues/{queue}/messages", messages)


def _texts(operations: Iterable[Operation]) -> list[str]:
    return [message["text"] for operation in operations if operation.kind == "read" for message in operation.got]
