"""Test that each verb reads few rows for each message, whatever statistics PostgreSQL had when it planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count

import pytest

from storage.model import Message, NewMessage, Receive, State
from storage.postgres.store import PostgresStore
from tests.support.engines import FakeClock
from tests.support.postgres import Postgres
from tests.support.shorthand import configure, new

MESSAGES = 1_000  # of a call
OTHERS = 4_000  # messages that were there before
ROWS = 60  # that a verb may read for each message, in tables and indexes; a plan that reads a queue reads hundreds

_numbers = count()

Store = PostgresStore


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Yield a server that gathers statistics only when it is told to."""
    with Postgres(fast=True, options=("autovacuum=off",)) as running:
        yield running


def every_field(number: int) -> NewMessage:
    return new(str(number), key=f"k{number}", recipient=f"r{number % 20}", dedup_id=f"d{number}", priority=number % 10,
               ttl=1e6 + number)  # fmt: skip


def keyed(number: int) -> NewMessage:
    return new(str(number), key=f"k{number}", priority=1)


def plain(number: int) -> NewMessage:
    return new(str(number), priority=1)


# Each prepares the statistics, and perhaps the cached plans, of a moment unlike the one of the calls.


def nothing(store: Store, analyze: Callable[[], object]) -> None:
    pass


def empty_tables(store: Store, analyze: Callable[[], object]) -> None:
    analyze()


def a_few_plain_messages(store: Store, analyze: Callable[[], object]) -> None:
    store.send("others", [plain(number) for number in range(5)])
    analyze()


def many_plain_messages(store: Store, analyze: Callable[[], object]) -> None:
    store.send("others", [plain(number) for number in range(OTHERS)])
    analyze()


def many_messages_of_every_field(store: Store, analyze: Callable[[], object]) -> None:
    store.send("queue", [every_field(-1 - number) for number in range(OTHERS)])
    analyze()
    store.purge("queue")


def many_messages_of_one_key(store: Store, analyze: Callable[[], object]) -> None:
    store.send("others", [new(str(number), key="one") for number in range(OTHERS)])
    analyze()


def plans_of_small_calls(store: Store, analyze: Callable[[], object]) -> None:
    for number in range(12):  # PostgreSQL keeps a plan from the sixth call on
        store.send("others", [every_field(number)])
        store.ack([str(message.receipt) for message in lease_all(store, "others", 1)])
    analyze()


@pytest.mark.parametrize(
    "prepare",
    [nothing, empty_tables, a_few_plain_messages, many_plain_messages, many_messages_of_every_field,
     many_messages_of_one_key, plans_of_small_calls],
    ids=lambda prepare: prepare.__name__.replace("_", " "),
)  # fmt: skip
def test_no_verb_reads_a_whole_queue_for_each_message(
    server: Postgres, prepare: Callable[[Store, Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.pool.CONNECTIONS", 1)  # each reports what it read when it runs a statement
    url = server.create_database(name := f"plans-{next(_numbers)}")
    clock = FakeClock()
    read: dict[str, float] = {}
    with closing(PostgresStore(url, clock=clock)) as store:
        store._upkeep.close()  # it would read too, at times of its own

        def rows() -> int:
            store._pool.run("SELECT pg_stat_force_next_flush()")
            return int(
                server.sql(
                    "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)"
                    " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)",
                    name,
                )
            )

        def measure(verb: str, call: Callable[[], object], messages: int = MESSAGES) -> None:
            before = rows()
            call()
            read[verb] = (rows() - before) / messages

        prepare(store, lambda: server.sql("ANALYZE", name))
        configure(store, "queue", max_receives=3)
        measure("send every field", lambda: store.send("queue", [every_field(number) for number in range(MESSAGES)]))
        measure("send duplicates", lambda: store.send("queue", [every_field(number) for number in range(MESSAGES)]))
        measure("read recipients", lambda: lease_all(store, "queue", 1))  # some of each recipient's messages
        for turn in ("first", "second"):  # of each key
            measure(f"send keyed, {turn}", lambda: store.send("keyed", [keyed(number) for number in range(MESSAGES)]))
        receipts = [str(message.receipt) for message in lease_all(store, "keyed", MESSAGES)]
        measure("extend", lambda: store.extend_many(receipts, 60))
        measure("look for due messages", lambda: store.receive(Receive(("keyed",), 1, 60.0, "nobody")), 1)
        measure("ack", lambda: store.ack(receipts))
        measure("lease", lambda: lease_all(store, "keyed", MESSAGES))
        clock.advance(700)  # the leases end
        measure("return ended leases", lambda: store.receive(Receive(("keyed",), 1, 60.0, "nobody")))
        configure(store, "keyed", max_receives=1)
        measure("dead-letter", lambda: store.receive(Receive(("keyed",), 1, 60.0, "nobody")))
        measure("take", lambda: store.receive(Receive(("queue",), 500, None, None)), 500)
        for before in (None, 2**60):
            measure("search", partial(store.peek, "queue", text="x", before=before))
            measure("search the dead", partial(store.peek, "keyed", text="x", state=State.DEAD, before=before))
            measure("search a reason", partial(store.peek, "keyed.dead", reason="x", before=before))
        measure("reasons", partial(store.reasons, "keyed"))
        measure("reasons here", partial(store.reasons, "keyed.dead"))
        ids = [message.id for message in store.peek("keyed.dead", limit=500)]
        measure("purge a reason", lambda: store.purge("keyed.dead", reason="x"))
        measure("purge ids", lambda: store.purge("keyed.dead", ids=ids), 500)
        measure("redrive", lambda: store.redrive("keyed"))
        measure("purge", lambda: store.purge("queue"), MESSAGES)
    assert {verb: figure for verb, figure in read.items() if figure > ROWS} == {}


def lease_all(store: Store, queue: str, total: int) -> list[Message]:
    found = store.receive(Receive((queue,), total, 600.0, None))
    assert len(found) == total
    return found
