"""Test verbs of several transactions: bounded, exact when interrupted, and continued when repeated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage import steps
from storage.errors import Busy, IdempotencyMismatch, Interrupted, InvalidInput, Unavailable
from storage.model import CHUNK, IdempotencyKey, Receive
from storage.sqlite.expiry import bring_up_to_date
from storage.sqlite.queues import MOVED
from storage.sqlite.store import SqliteStore
from storage.sqlite.transaction import LETTER, WriteTransaction
from storage.validation import MAX_READ_BYTES, MAX_TRANSACTION_QUEUES
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, new, peek, send, stats, take

ONCE = IdempotencyKey("key", b"the request")


class Cut:
    """Lets a store commit so often, and then refuses commits until it is repaired."""

    def __init__(self, store: SqliteStore, fault: Unavailable | None = None) -> None:
        self.left = 1_000_000
        self._run = store._commits.run
        self._fault = fault or Busy()
        store._commits.run = self.run  # type: ignore[method-assign]

    def run(self, operation: Callable[[WriteTransaction], Any]) -> Any:
        if not self.left:
            raise self._fault
        self.left -= 1
        return self._run(operation)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Any:
    with closing(SqliteStore(tmp_path / "queue.db", clock=clock)) as store:
        store._upkeep.close()  # these tests count the transactions
        yield store


def fill(store: SqliteStore, count: int) -> None:
    store.send("q", [new("x", priority=1)] * count)


def dead(store: SqliteStore, count: int) -> None:
    fill(store, count)
    while held := lease(store, 1_000):
        for one in held:
            store.reject(one.receipt)


def test_an_interrupted_purge_reports_what_was_done(store: SqliteStore) -> None:
    fill(store, MOVED)
    fill(store, MOVED)
    cut = Cut(store)
    cut.left = 1
    with pytest.raises(Interrupted, match=f"{MOVED:,} messages were purged") as refused:
        store.purge("q")
    assert isinstance(refused.value.__cause__, Busy)
    assert "nothing" not in str(refused.value)
    cut.left = 10
    assert (stats(store).ready, store.purge("q")) == (MOVED, MOVED)


def test_a_verb_refused_before_any_change_says_so(store: SqliteStore) -> None:
    fill(store, 5)
    receipts = [held.receipt for held in lease(store, 5)]
    Cut(store).left = 0
    for verb in (lambda: store.purge("q"), lambda: store.redrive("q"), lambda: store.ack(receipts)):
        with pytest.raises(Busy, match="nothing was done"):
            verb()


def test_a_purge_repeated_by_its_key_continues_and_removes_nothing_sent_since(store: SqliteStore) -> None:
    fill(store, MOVED)
    fill(store, MOVED)
    cut = Cut(store)
    cut.left = 1
    with pytest.raises(Interrupted):
        store.purge("q", ONCE)
    cut.left = 100
    send(store, "later")
    assert store.purge("q", ONCE) == 2 * MOVED
    send(store, "later still")
    assert store.purge("q", ONCE) == 2 * MOVED
    assert peek(store) == ["later", "later still"]
    with pytest.raises(IdempotencyMismatch):
        store.purge("q", IdempotencyKey(ONCE.key, b"another request"))


def test_a_redrive_repeated_by_its_key_moves_no_more_than_its_limit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.redriving.MOVED", 3)
    dead(store, 10)
    cut = Cut(store)
    cut.left = 2
    with pytest.raises(Interrupted, match="6 messages were redriven"):
        store.redrive("q", 8, once=ONCE)
    cut.left = 100
    assert store.redrive("q", 8, once=ONCE) == 8
    assert store.redrive("q", 8, once=ONCE) == 8
    assert (stats(store).ready, stats(store).dead) == (8, 2)


def test_an_ack_repeated_by_its_key_reports_all_its_receipts(store: SqliteStore) -> None:
    fill(store, 2_500)
    receipts = [held.receipt for _ in range(3) for held in lease(store, 1_000)]
    cut = Cut(store)
    cut.left = 2
    with pytest.raises(Interrupted, match="2,000 messages were acked"):
        store.ack([*receipts, "nonsense"], None, ONCE)
    cut.left = 100
    assert store.ack([*receipts, "nonsense"], None, ONCE) == (2_500, [], ["nonsense"])
    assert stats(store).acked == 2_500


def test_a_purge_of_a_queue_deleted_meanwhile_ends(store: SqliteStore) -> None:
    fill(store, MOVED)
    fill(store, MOVED)
    run = store._commits.run
    deleted: list[bool] = []

    def delete_between(operation: Callable[[WriteTransaction], Any]) -> Any:
        result = run(operation)
        if not deleted:
            deleted.append(True)
            store.delete_queue("q")
            send(store, "of a new queue")
        return result

    store._commits.run = delete_between  # type: ignore[method-assign]
    assert store.purge("q") == MOVED
    assert peek(store) == ["of a new queue"]


def test_a_purge_beside_a_reader_that_unpacks_a_batch_leaves_nothing(store: SqliteStore) -> None:
    send(store, *map(str, range(300)))
    run = store._commits.run
    read: list[str] = []

    def read_between(operation: Callable[[WriteTransaction], Any]) -> Any:
        store._commits.run = run  # type: ignore[method-assign]
        read.extend(take(store, 1))
        try:
            return run(operation)
        finally:
            store._commits.run = read_between  # type: ignore[method-assign]

    store._commits.run = read_between  # type: ignore[method-assign]
    purged = store.purge("q")
    store._commits.run = run  # type: ignore[method-assign]
    assert read == ["0", "1"]
    assert purged + len(read) == 300
    assert peek(store) == []


def test_a_deleted_queue_stays_deleted_though_its_messages_are_not_cleared_yet(store: SqliteStore) -> None:
    fill(store, 5)
    cut = Cut(store)
    cut.left = 1
    store.delete_queue("q")
    assert store.queues() == []


def test_a_read_that_runs_out_of_time_is_busy_and_does_nothing(
    store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RETRY_FOR", 0.0)
    for _ in range(3):
        store.send("q", [new("old", ttl=1)] * CHUNK)
    clock.advance(1)
    with pytest.raises(Busy, match="nothing was done"):
        store.receive(Receive(("q",)))
    assert stats(store).expired == 3 * CHUNK


def test_many_readers_of_one_transaction_share_one_limit_for_due_messages(store: SqliteStore, clock: FakeClock) -> None:
    for _ in range(3):
        store.send("q", [new("old", ttl=1)] * CHUNK)
    clock.advance(1)
    found = store._commits.run(
        lambda work: [store._claim(work, Receive(("q",)), None, MAX_READ_BYTES) for _ in range(5)]
    )
    assert found == [None] * 5
    assert store._commits.run(lambda work: work.queue("q").messages) == 2 * CHUNK


@pytest.mark.parametrize("of_two", [False, True])
def test_a_transaction_dead_letters_fewer_messages_than_it_can_delete(
    store: SqliteStore, clock: FakeClock, of_two: bool
) -> None:
    names = ["q", "other"][: 1 + of_two]
    for name in names:
        configure(store, name, dead_letter_expired=True)
        store.send(name, [new("old", ttl=1)] * CHUNK)
    clock.advance(1)
    store._commits.run(lambda work: [bring_up_to_date(work, work.queue(name)) for name in names])
    left = store._commits.run(lambda work: sum(work.queue(name).messages for name in names))
    assert left == len(names) * CHUNK - CHUNK // LETTER
    assert [stats(store, name).dead for name in names] == [CHUNK] * len(names)


def test_a_full_queue_refuses_a_send_instead_of_deleting_many_expired_messages_at_once(
    store: SqliteStore, clock: FakeClock
) -> None:
    for _ in range(3):
        store.send("q", [new("old", ttl=1)] * CHUNK)
    clock.advance(1)
    configure(store, max_messages=CHUNK // 2)
    with pytest.raises(Exception, match="full"):
        send(store, "new")
    stats(store)
    assert send(store, "new")


def test_a_transaction_of_very_many_queues_is_refused_before_any_lookup(store: SqliteStore) -> None:
    Cut(store).left = 0
    with pytest.raises(InvalidInput):
        store.transact([f"q{number}~1~1" for number in range(MAX_TRANSACTION_QUEUES + 1)], [])
    with pytest.raises(InvalidInput):
        store.transact(["q~1~1"], [(f"q{number}", new("x")) for number in range(MAX_TRANSACTION_QUEUES)])


@pytest.mark.parametrize("most", [1, 2, 9])
def test_steps_remembered_under_a_key_are_the_committed_ones(most: int) -> None:
    """However often it is interrupted, each step is done once."""
    kept: dict[str, Any] = {}
    made: list[int] = []

    class Transaction:
        def recall(self, once: IdempotencyKey) -> Any:
            return kept.get(once.key)

        def remember(self, once: IdempotencyKey, value: Any) -> None:
            kept[once.key] = value

    def attempt() -> steps.Progress:
        left = most

        def run(operation: Callable[[Transaction], Any]) -> Any:
            nonlocal left
            if not left:
                raise Busy
            left -= 1
            return operation(Transaction())

        def step(work: Transaction, at: steps.Progress) -> tuple[steps.Progress, bool]:
            made.append(at["n"])
            return {"n": at["n"] + 1}, at["n"] < 8

        return steps.in_steps(run, {"n": 0}, step, lambda at: f"{at['n']} of 9" if at["n"] else None, ONCE)

    while len(made) + most < 9:
        with pytest.raises(Interrupted, match=f"{len(made) + most} of 9"):
            attempt()
    assert attempt() == attempt() == {"n": 9}
    assert made == list(range(9))


def test_a_list_of_queues_leaves_out_one_that_another_process_deletes_meanwhile(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, "deleted", retention=60)
    configure(store, "kept", retention=60)
    select = WriteTransaction.all
    with closing(SqliteStore(tmp_path / "queue.db")) as other:

        def select_and_delete(work: WriteTransaction, sql: str, values: tuple[Any, ...]) -> list[Any]:
            rows = select(work, sql, values)
            if "settings <> '{}'" in sql:
                monkeypatch.undo()
                other.delete_queue("deleted")
            return rows

        monkeypatch.setattr(WriteTransaction, "all", select_and_delete)
        assert [queue.name for queue in store.queues()] == ["kept"]
