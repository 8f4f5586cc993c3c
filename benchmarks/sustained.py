"""receive with a lease, one message at a time, while a million messages pass through PostgreSQL.

Messages are sent, leased and acked in batches; after each 10,000 some are received one by one and timed. From 300,000
to 700,000 another session keeps a transaction open, so that PostgreSQL can remove no dead rows. Each 100,000 messages
are compared with the second 100,000, before that transaction.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack, closing

import psycopg

from benchmarks.report import Figure, Result, us
from storage import open_store
from storage.model import NewMessage, Receive
from storage.store import Store
from storage.validation import MAX_LIMIT
from tests.support.postgres import Postgres

MESSAGES = 1_000_000
WINDOW = 100_000
STEP = 10_000  # messages
TIMED = 30  # receives in a step
PINNED = range(300_000, 700_000)
BACKLOG = 20_000  # messages that always wait
MOST = 1.3  # times the cost before the transaction

ONE = Receive(lease=600.0)
MANY = Receive(limit=MAX_LIMIT, lease=600.0)


def sustained() -> list[Result]:
    with ExitStack() as stack:
        url = stack.enter_context(Postgres()).create_database("queue")
        store = stack.enter_context(closing(open_store(url)))
        _send(store, BACKLOG)
        windows: dict[int, list[float]] = {}
        for passed in range(0, MESSAGES, STEP):
            if passed == PINNED.start:
                pin = stack.enter_context(_pin(url))
            if passed == PINNED.stop:
                pin.close()
            _send(store, STEP)
            windows.setdefault(passed // WINDOW * WINDOW, []).extend(_receive(store) for _ in range(TIMED))
            _drain(store, STEP - TIMED)
    costs = {first: statistics.median(seconds) for first, seconds in windows.items()}
    before = costs.pop(WINDOW)
    del costs[0]  # caches still fill
    return [
        Result(
            "receive",
            f"from {WINDOW:,} on",
            [
                Figure(
                    f"from {first:,} on{', a transaction held open' if first in PINNED else ''}",
                    us(cost), us(before), cost / before, at_most=MOST,
                )
                for first, cost in costs.items()
            ],
        )
    ]  # fmt: skip


def _pin(url: str) -> psycopg.Connection[object]:
    connection = psycopg.connect(url)
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT count(*) FROM queue_service.queues")
    return connection


def _send(store: Store, count: int) -> None:
    for _ in range(0, count, MAX_LIMIT):
        store.send("default", [NewMessage("x" * 60)] * MAX_LIMIT)


def _receive(store: Store) -> float:
    """Receive and settle one message; return the seconds of the receive."""
    start = time.perf_counter()
    (message,) = store.receive(ONE)
    taken = time.perf_counter() - start
    store.settle(str(message.receipt))
    return taken


def _drain(store: Store, count: int) -> None:
    while count > 0:
        messages = store.receive(MANY._replace(limit=min(MAX_LIMIT, count)))
        store.ack([str(message.receipt) for message in messages])
        count -= len(messages)
