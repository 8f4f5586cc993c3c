"""Test how the SQLite file stores batches: packed while they are leased and settled whole."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from storage.column_batches import NewColumnBatch
from storage.model import Receive
from storage.sqlite.column_batches import LONGEST, SHORTEST
from storage.sqlite.settling import UNPACKED
from storage.sqlite.store import SqliteStore
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, new, peek, send, stats, take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def store(path: Path) -> SqliteStore:
    return SqliteStore(path)


def rows(path: Path) -> tuple[int, int]:
    """Return the number of messages with their own row, and the number of runs."""
    connection = apsw.Connection(str(path))
    found: tuple[int, int] = connection.execute(
        "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM runs)"
    ).get
    connection.close()
    return found


def test_a_batch_leased_and_acked_whole_never_has_one_row_per_message(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(1000)))
    assert rows(path) == (0, 1000 // LONGEST)
    held = store.receive(Receive(("q",), 1000, 30))
    receipts = [str(part.receipt) for part in held.parts]
    assert len(receipts) == 1000 // LONGEST
    assert store.extend_many(receipts, 60).extended == 1000
    assert rows(path) == (0, 1000 // LONGEST)
    assert store.ack(receipts).acked == 1000
    assert rows(path) == (0, 0)
    store.close()


@pytest.mark.parametrize("verb", ["ack", "ack of held leases", "transact", "extend"])
def test_receipts_of_each_message_of_a_batch_settle_it_whole(store: SqliteStore, path: Path, verb: str) -> None:
    send(store, *map(str, range(250)))
    receipts = [str(message.receipt) for message in lease(store, 250)]
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(
            "CREATE TRIGGER unpacked BEFORE INSERT ON messages BEGIN SELECT raise(ABORT, 'unpacked'); END"
        )
    if verb == "extend":
        assert store.extend_many(receipts, 60).extended == 250
        assert stats(store).leased == 250
    elif verb == "transact":
        store.transact(receipts, [])
        assert stats(store).acked == 250
    else:
        assert store.ack(receipts, held=verb == "ack of held leases").acked == 250
        assert stats(store).acked == 250
    store.close()


def test_limits_that_are_multiples_of_the_longest_run_unpack_nothing(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(500)))
    (held,) = store.receive(Receive(("q",), LONGEST, 30)).parts
    done = store.transact([str(held.receipt)], [], Receive(("q",), 2 * LONGEST, 30))
    assert len(done.messages) == 2 * LONGEST
    assert rows(path) == (0, 4)
    store.close()


def test_settling_one_message_unpacks_only_its_run(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(300)))
    held = lease(store, 300)
    store.settle(held[150].receipt)
    assert rows(path) == (LONGEST - 1, 2)
    store.close()


def test_reads_of_one_message_unpack_a_run_only_after_the_previous_one(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(5 * LONGEST)))
    for number in range(LONGEST):
        assert take(store) == [str(number)]
        assert rows(path) == (LONGEST - number - 1, 4)
    store.close()


@pytest.mark.parametrize("lease_for", [None, 30.0])
@pytest.mark.parametrize("limit", [10, LONGEST - 1, LONGEST + 1, 333])
def test_a_read_that_ends_within_a_run_unpacks_only_that_run(
    store: SqliteStore, path: Path, limit: int, lease_for: float | None
) -> None:
    texts = list(map(str, range(1000)))
    send(store, *texts, attributes={"a": 1})
    first = store.receive(Receive(("q",), limit, lease_for))
    assert [message.text for message in first] == texts[:limit]
    left = LONGEST - limit % LONGEST if lease_for is None else LONGEST
    taken = limit // LONGEST + 1 if lease_for is None else 1
    assert rows(path) == (left, 10 - taken)
    got = [message.text for message in first]
    while more := store.receive(Receive(("q",), limit, lease_for)):
        got += [message.text for message in more]
    assert got == texts
    assert store.queue("q").stats.bytes == (0 if lease_for is None else sum(map(len, texts)) + 1000 * 24)
    store.close()


def test_messages_among_the_runs_unpack_nothing(store: SqliteStore, path: Path) -> None:
    store.send("q", [new("later", priority=0)])
    send(store, *map(str, range(LONGEST)))
    store.send("q", [new("first", priority=5)])
    send(store, *map(str, range(LONGEST, 2 * LONGEST)))
    numbers = list(map(str, range(2 * LONGEST)))
    assert [one.text for one in lease(store, 1000)] == ["first", "later", *numbers]
    assert rows(path) == (2, 2)
    store.close()


def test_looking_unpacks_nothing(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(300)))
    assert len(peek(store)) == 300
    assert stats(store).ready == 300
    assert take(store, recipient="ann") == []
    assert rows(path) == (0, 3)
    store.close()


def test_stale_receipts_unpack_nothing(store: SqliteStore, path: Path) -> None:
    send(store, *map(str, range(300)))
    held = lease(store, 300)
    stale = [one.receipt[:-1] + ("0" if one.receipt[-1] != "0" else "1") for one in held]
    assert store.ack(stale).stale == stale
    assert rows(path) == (0, 3)
    store.close()


@pytest.mark.parametrize(
    "fields",
    [{"key": "k"}, {"priority": 1}, {"recipient": "ann"}, {"delay": 1}, {"ttl": 9}, {"attributes": {"a": "x" * 9_000}}],
    ids=lambda fields: next(iter(fields)),
)
def test_messages_that_are_not_plain_or_not_small_are_not_packed(
    store: SqliteStore, path: Path, fields: dict[str, object]
) -> None:
    store.send("q", [new(str(n), **fields) for n in range(50)])
    assert rows(path) == (50, 0)
    store.close()


def test_a_queue_with_a_retention_packs_too_and_one_with_a_delay_does_not(store: SqliteStore, path: Path) -> None:
    configure(store, retention=60)
    send(store, *map(str, range(50)))
    assert rows(path) == (0, 1)
    configure(store, delay=1)
    send(store, *map(str, range(50)))
    assert rows(path) == (50, 1)
    store.close()


def test_a_transaction_unpacks_many_runs_some_at_a_time(store: SqliteStore) -> None:
    """It happens in steps, so others wait for less than all of it."""
    receipts = []
    for _ in range(25):
        send(store, *map(str, range(10 * LONGEST)))
        held = store.receive(Receive(("q",), 10 * LONGEST, 600))
        receipts += [str(message.receipt) for message in list(held)[::LONGEST]]
    groups = Groups()
    store.observe(groups)
    store.transact(receipts, [])
    assert len(receipts) == 250
    assert groups.count == 1 + 250 // UNPACKED
    store.close()


class Groups:
    """Counts transactions."""

    count = 0

    def committed(self, operations: int, seconds: float) -> None:
        self.count += 1

    def waiting(self, readers: int) -> None:
        pass


@pytest.mark.parametrize("count", range(SHORTEST - 1, 3 * LONGEST + SHORTEST, 13))
def test_no_run_is_too_short_or_too_long(store: SqliteStore, path: Path, count: int) -> None:
    send(store, *map(str, range(count)))
    connection = apsw.Connection(str(path))
    lengths = [row[0] for row in connection.execute("SELECT count FROM runs")]
    connection.close()
    assert sum(lengths) == (count if count >= SHORTEST else 0)
    assert all(SHORTEST <= length < LONGEST + SHORTEST for length in lengths)
    store.close()


def test_the_size_of_a_message_with_very_many_names_is_measured_correctly() -> None:
    names = {f"n{number}": [number] for number in range(50_000)}
    assert NewColumnBatch.of(["text"], names) is None
    run = NewColumnBatch(["text", "longer text"], {"a": [1, 22], "bb": [None, True]})
    assert run.lengths() == [4 + 1 + 1 + 2 + 4, 11 + 1 + 2 + 2 + 4]


def test_the_age_of_a_message_that_is_unpacked_behind_later_ones_still_counts(path: Path) -> None:
    clock = FakeClock()
    store = SqliteStore(path, clock=clock)
    send(store, *map(str, range(SHORTEST)))
    clock.advance(5)
    send(store, "later", delay=60)  # in a row that the search for the oldest ready message passes
    assert store.queue("q").stats.oldest_age == 5
    store.reschedule("q", store.peek("q")[0].id, 0)
    assert store.queue("q").stats.oldest_age == 5
    store.close()
