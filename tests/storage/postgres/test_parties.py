"""Test two concurrent calls; one is a connection that the test leaves open before its commit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from typing import Any

import psycopg
import pytest

from storage.errors import Interrupted, InvalidInput, Unavailable
from storage.model import IdempotencyKey, Receive
from storage.postgres import upkeep as postgres_upkeep
from storage.postgres.clock import SharedClock
from storage.postgres.maintenance import check
from storage.postgres.pool import Pool
from storage.postgres.store import PostgresStore
from storage.scheduling import Threads
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.live import await_true
from tests.support.postgres import Postgres
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take, texts

_numbers = count(1)
MORE_THAN_A_STEP = 10_050  # messages


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create_database(f"parties-{next(_numbers)}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(url: str, clock: FakeClock) -> Iterator[Store]:
    with closing(PostgresStore(url, clock=clock)) as store:
        yield store
    check(url)  # the counts are correct in every case


@pytest.fixture
def party(url: str, store: Store) -> Iterator[psycopg.Connection[Any]]:
    """Yield the second party, in its own transaction."""
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = queue_service")
        yield connection


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def _when_it_waits(url: str, doing: Future[Any]) -> None:
    """Run the call in a thread; return once it waits for a lock in this database."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as session:

        def waits() -> bool:
            assert not doing.done(), doing.result()
            return session.execute(waiting).fetchone() != (0,)

        await_true(waits)


def _now(clock: FakeClock) -> int:
    return clock.now()


def _send_by(party: psycopg.Connection[Any], clock: FakeClock, text: str, fields: dict[str, Any] | None = None) -> None:
    kept = None if fields is None else json.dumps([fields])
    party.execute(
        "SELECT send(%s::bigint, '', 'q', ARRAY[convert_to(%s, 'UTF8')], %s::json, NULL, NULL)",
        [_now(clock), text, kept],
    )


def _take_by(party: psycopg.Connection[Any], clock: FakeClock) -> str | None:
    row = party.execute(
        "SELECT text FROM receive(%s::bigint, '', ARRAY['q'], 1, ''::bytea, NULL, 1, NULL, NULL)", [_now(clock)]
    ).fetchone()
    return None if row is None else row[0].decode()


# Reads


def test_a_message_in_an_uncommitted_read_is_not_delivered_again(
    store: Store, party: psycopg.Connection[Any], clock: FakeClock
) -> None:
    send(store, "a", "b")
    assert _take_by(party, clock) == "a"
    assert take(store, 2) == ["b"]
    assert take(store, 2) == []
    party.rollback()
    assert take(store, 2) == ["a"]


def _read_again(store: Store) -> list[str]:
    return texts(store.receive(Receive(queues=("q",)), IdempotencyKey("key", b"")))


def _use_the_key(party: psycopg.Connection[Any]) -> None:
    """Use the Idempotency-Key like a concurrent request."""
    party.execute("SELECT pg_advisory_xact_lock((SELECT coalesce(max(id), 0) FROM queues)::int, hashtext('key'))")


def test_a_repeated_read_beside_the_creation_of_its_queue_takes_nothing_twice(
    store: Store, party: psycopg.Connection[Any], threads: ThreadPoolExecutor
) -> None:
    _use_the_key(party)
    first = threads.submit(_read_again, store)
    time.sleep(0.2)  # it waits, or found nothing
    send(store, "a", "b")
    party.commit()
    assert first.result() == []
    assert _read_again(store) == ["a"] == _read_again(store)


def test_a_repeated_read_beside_the_recreation_of_its_queue_takes_nothing_twice(
    url: str, store: Store, party: psycopg.Connection[Any], threads: ThreadPoolExecutor
) -> None:
    def recreate() -> None:
        store.delete_queue("q")
        send(store, "a", "b")

    send(store, "before")
    _use_the_key(party)
    first = threads.submit(_read_again, store)
    _when_it_waits(url, first)
    made = threads.submit(recreate)
    time.sleep(0.2)  # it waits, or is done
    party.commit()
    made.result()
    assert first.result() == ["before"]
    assert _read_again(store) == ["a"] == _read_again(store)


def test_a_message_in_an_uncommitted_lease_is_not_delivered_again(
    store: Store, party: psycopg.Connection[Any], clock: FakeClock
) -> None:
    send(store, "a", "b")
    party.execute("SELECT receive(%s::bigint, '', ARRAY['q'], 1, ''::bytea, 30000, 1, NULL, NULL)", [_now(clock)])
    assert texts(lease(store, 2)) == ["b"]
    party.commit()
    assert (stats(store).leased, stats(store).ready) == (2, 0)


def test_a_reader_of_all_recipients_skips_messages_of_an_uncommitted_read(
    store: Store, party: psycopg.Connection[Any], clock: FakeClock
) -> None:
    send(store, "a", "b", recipient="ann")
    send(store, "c")
    send(store, "d", recipient="bob", priority=5)
    party.execute("SELECT receive(%s::bigint, '', ARRAY['q'], 2, NULL, 30000, 1, NULL, NULL)", [_now(clock)])
    assert texts(store.receive(Receive(("q",), 5, recipient=None))) == ["b", "c"]
    party.rollback()
    assert texts(store.receive(Receive(("q",), 5, recipient=None))) == ["d", "a"]


@pytest.mark.parametrize("limit", [2, 10])
def test_messages_of_a_key_moved_during_a_wait_for_its_lock_are_delivered_in_order(
    url: str, store: Store, clock: FakeClock, threads: ThreadPoolExecutor, limit: int
) -> None:
    """A statement that began before it got the lock sees older rows."""
    send(store, "a1", "a2", "a3", key="a")
    with psycopg.connect(url, autocommit=True) as gate, psycopg.connect(url, application_name="slow") as reader:
        gate.execute(SLOW_LOCK)
        gate.execute("SELECT pg_advisory_lock(4711)")
        reading = threads.submit(reader.execute, TRANSACT, [clock.now(), limit])
        _when_it_waits(url, reading)
        for held in lease(store, 3):
            store.release(held.receipt)
        gate.execute("SELECT pg_advisory_unlock(4711)")
        found = [row[0].decode() for row in reading.result(10).fetchall()[1:]]
        reader.commit()
        assert found == ["a1", "a2", "a3"][:limit]
    assert stats(store).leased == len(found)


SLOW_LOCK = """
    CREATE OR REPLACE FUNCTION queue_service.lock_of(p_queue bigint, p_key bytea) RETURNS bigint LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('application_name') = 'slow' THEN
            PERFORM pg_advisory_lock_shared(4711);
        END IF;
        RETURN p_queue * 64 + (hashtext(encode(p_key, 'hex')) & 63);
    END $$
"""
TRANSACT = """
    SELECT text FROM queue_service.transact(%s::bigint, '', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
                                            ARRAY['q'], %s, ''::bytea, 30000, 1, NULL, NULL)
"""


# Sends


def test_a_send_waits_for_a_concurrent_settlement_of_its_key(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    """Otherwise it would see the key's first message, and its own would stay blocked."""
    send(store, "first", key="k")
    assert _take_by(party, clock) == "first"
    sending = threads.submit(send, store, "next", key="k")
    _when_it_waits(url, sending)
    party.commit()
    sending.result(10)
    assert stats(store).ready == 1
    assert take(store) == ["next"]


def test_a_deletion_waits_for_a_send_under_way(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    send(store, "before")
    _send_by(party, clock, "under way")
    deleting = threads.submit(store.delete_queue, "q")
    _when_it_waits(url, deleting)
    party.commit()
    deleting.result(10)
    assert [queue.name for queue in store.queues()] == []
    await_true(lambda: party.execute("SELECT count(*) FROM messages").fetchone() == (0,))


def test_a_send_during_the_deletion_of_its_queue_goes_to_a_new_queue(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    send(store, "old")
    party.execute("SELECT delete_queue(%s::bigint, 'q')", [_now(clock)])
    sending = threads.submit(send, store, "new")
    _when_it_waits(url, sending)
    party.commit()
    sending.result(10)
    assert peek(store) == ["new"]


def test_an_unused_queue_is_not_deleted_under_a_send(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock
) -> None:
    configure(store, expires=5)
    _send_by(party, clock, "under way")
    clock.advance(60)
    with psycopg.connect(url, autocommit=True) as upkeep:
        statement = "SELECT queue_service.expire_queue(%s::bigint, id) FROM queue_service.queues WHERE name = 'q'"
        assert upkeep.execute(statement, [_now(clock)]).fetchone() == (None,)
    party.commit()
    assert peek(store) == ["under way"]


def test_a_new_retention_applies_to_a_send_that_was_under_way(
    store: Store, party: psycopg.Connection[Any], clock: FakeClock
) -> None:
    send(store, "before")
    _send_by(party, clock, "under way")
    configure(store, retention=10)
    party.commit()
    clock.advance(9.9)
    assert peek(store) == ["before", "under way"]
    clock.advance(0.1)
    assert peek(store) == []
    assert stats(store).expired == 2


def test_a_new_retention_updates_no_message(store: Store, party: psycopg.Connection[Any]) -> None:
    send(store, "a", "b", ttl=100)
    written = "SELECT id, xmin::text FROM messages ORDER BY id"
    before = party.execute(written).fetchall()
    configure(store, retention=50)
    configure(store, retention=None, max_receives=1)
    assert party.execute(written).fetchall() == before


# Verbs of several transactions


def test_a_purge_continues_after_messages_that_another_removed(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    _send_many(store)
    party.execute("SELECT purge(%s::bigint, 'q', NULL, NULL, NULL)", [_now(clock)])
    purging = threads.submit(store.purge, "q")
    _when_it_waits(url, purging)
    party.commit()
    assert purging.result(20) == MORE_THAN_A_STEP - 10_000
    assert stats(store).ready == 0


def test_a_redrive_continues_after_messages_that_another_moved(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    _dead_letter_many(store, clock)
    party.execute("SELECT redrive(%s::bigint, 'q', NULL, NULL, NULL, NULL)", [_now(clock)])
    redriving = threads.submit(store.redrive, "q")
    _when_it_waits(url, redriving)
    party.commit()
    assert redriving.result(20) == MORE_THAN_A_STEP - 10_000
    assert (stats(store).ready, stats(store).dead) == (MORE_THAN_A_STEP, 0)


def test_a_redrive_continues_after_messages_that_a_reader_leased(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    _dead_letter_many(store, clock)
    party.execute(
        "SELECT receive(%s::bigint, '', ARRAY['q.dead'], 1000, ''::bytea, 30000, 1, NULL, NULL)", [_now(clock)]
    )
    redriving = threads.submit(store.redrive, "q")
    _when_it_waits(url, redriving)
    party.commit()
    assert redriving.result(20) == MORE_THAN_A_STEP - 1_000
    assert (stats(store, "q.dead").leased, stats(store, "q.dead").ready) == (1_000, 0)


def test_an_interrupted_purge_reports_what_it_removed_and_continues_when_repeated(
    store: Store, party: psycopg.Connection[Any]
) -> None:
    ids = _send_many(store)
    once = IdempotencyKey("purge", b"")
    party.execute("SELECT FROM messages WHERE id = %s FOR UPDATE", [ids[0]])
    with pytest.raises(Interrupted, match=r"^10,000 messages were purged"):
        store.purge("q", once)
    party.rollback()
    assert stats(store).ready == MORE_THAN_A_STEP - 10_000
    send(store, "sent later")
    assert store.purge("q", once) == MORE_THAN_A_STEP
    assert store.purge("q", once) == MORE_THAN_A_STEP
    assert peek(store) == ["sent later"]


def test_a_purge_forgets_a_dedup_id_that_a_concurrent_sender_uses(
    url: str, store: Store, party: psycopg.Connection[Any], clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
    send(store, "first", dedup_id="d")
    party.execute("SELECT purge(%s::bigint, 'q', NULL, NULL, NULL)", [_now(clock)])
    sending = threads.submit(store.send, "q", [new("again", dedup_id="d")])
    _when_it_waits(url, sending)
    party.commit()
    assert sending.result(10).duplicates == []
    assert peek(store) == ["again"]


def test_one_read_dead_letters_a_bounded_number_after_a_lowered_max_receives(
    store: Store, party: psycopg.Connection[Any]
) -> None:
    send(store, *map(str, range(3_000)))
    for _ in range(3):
        lease(store, 1_000)
    party.execute("SELECT release(0, '', 'q', id, token, 0, true) FROM messages WHERE state = 1")
    party.commit()
    send(store, "good")
    with psycopg.connect(party.info.dsn) as upkeep:  # which cannot process the rest meanwhile
        upkeep.execute("SELECT pg_advisory_lock(-id) FROM queue_service.queues WHERE name = 'q'")
        configure(store, max_receives=1)
        assert take(store) == ["good"]
        assert upkeep.execute("SELECT count(*) FROM queue_service.messages WHERE origin = 'q'").fetchone() == (0,)
        upkeep.execute("SELECT pg_advisory_unlock_all()")
        upkeep.commit()
    await_true(lambda: stats(store).dead == 3_000)
    assert take(store) == []


def test_a_redrive_of_one_by_its_reason_reads_few_of_many_dead_letters(
    url: str, store: Store, clock: FakeClock
) -> None:
    for dead_letters in ("one", "two"):
        configure(store, dead_letter_expired=True, dead_letter_queue=dead_letters)
        send(store, *["x"] * 5_000, ttl=1)
        clock.advance(1)
        assert peek(store) == []
    read = "SELECT idx_tup_fetch FROM pg_stat_xact_all_tables WHERE relname = 'messages'"
    with psycopg.connect(url) as session:
        redrive = "SELECT queue_service.redrive(%s::bigint, 'q', NULL, 1, NULL, 'expired') ->> 'count'"
        assert session.execute(redrive, [_now(clock)]).fetchone() == ("1",)
        rows = session.execute(read).fetchone()
    assert rows is not None
    assert rows[0] < 3_000


# Deadlocks


def test_redrives_of_keyed_dead_letters_of_two_queues_never_deadlock(url: str, store: Store) -> None:
    configure(store, queue="a", dead_letter_queue="z")
    configure(store, queue="z", dead_letter_queue="m")
    with ExitStack() as stack:
        nodes = [stack.enter_context(closing(PostgresStore(url))) for _ in range(2)]

        def die(node: Store, queue: str) -> None:
            for _ in range(30):
                send(node, "x", "y", queue=queue, key="k")
                for held in node.receive(Receive((queue,), 5, 30.0)):
                    node.reject(str(held.receipt))

        def rise(node: Store, queue: str) -> None:
            for _ in range(60):
                node.redrive(queue)

        assert in_threads([
            partial(die, nodes[0], "a"), partial(die, nodes[1], "a"), partial(die, nodes[0], "z"),
            partial(rise, nodes[0], "a"), partial(rise, nodes[1], "z"), partial(rise, nodes[1], "a"),
        ]) == [None] * 6  # fmt: skip
    with psycopg.connect(url) as session:
        found = session.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert found == (0,)


def test_two_concurrent_settings_close_no_circle_of_dead_letter_queues(
    url: str, store: Store, party: psycopg.Connection[Any], threads: ThreadPoolExecutor
) -> None:
    party.execute("SELECT pg_advisory_xact_lock(-2, 0)")
    party.execute("SELECT queue_for_writing(0, 'a')")
    party.execute("UPDATE queues SET settings = '{\"dead_letter_queue\": \"b\"}' WHERE name = 'a'")
    setting = threads.submit(store.configure, "b", {"dead_letter_queue": "a"})
    _when_it_waits(url, setting)
    party.commit()
    with pytest.raises(Exception, match="would come back"):
        setting.result(10)


def test_a_deletion_waits_for_a_setting_that_would_close_a_circle(
    url: str, store: Store, party: psycopg.Connection[Any], threads: ThreadPoolExecutor
) -> None:
    configure(store, dead_letter_queue="graves")
    configure(store, "q.dead")
    party.execute("SELECT pg_advisory_xact_lock(-2, 0)")
    party.execute("UPDATE queues SET settings = '{\"dead_letter_queue\": \"q\"}' WHERE name = 'q.dead'")
    deletion = threads.submit(store.delete_queue, "q")
    _when_it_waits(url, deletion)
    party.commit()
    with pytest.raises(InvalidInput, match="would come back"):
        deletion.result(10)
    assert store.queue("q").settings.dead_letter_queue == "graves"


# Clocks and hints


def test_a_nodes_time_stands_still_while_the_shared_time_is_corrected_backwards(url: str, store: Store) -> None:
    pool = Pool(url, Threads())
    try:
        clock = SharedClock(pool)
        shown = clock.now()
        pool.run("UPDATE queue_service.clock SET ahead = ahead - 5000 RETURNING ahead")
        clock.adjust()
        assert clock.now() >= shown
        assert clock.now() - shown < 5_000
    finally:
        pool.close()


def test_a_waiting_reader_is_woken_by_another_nodes_hint(
    url: str, store: Store, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_upkeep, "POLL_EVERY", 3_600.0)
    monkeypatch.setattr(postgres_upkeep, "POLL_WITHOUT", 3_600.0)
    with closing(PostgresStore(url)) as another:
        reading = threads.submit(store.receive, Receive(("q",), wait=20.0))
        listens = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'NOTIFY%'"
        with psycopg.connect(url, autocommit=True) as session:
            await_true(lambda: session.execute(listens).fetchone() == (1,))
        time.sleep(0.3)  # the reader's own first hint has arrived now
        send(another, "from another node")
        assert texts(reading.result(25)) == ["from another node"]


def test_a_waiting_reader_is_woken_by_every_operation_of_its_own_node(
    store: Store, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_upkeep, "POLL_EVERY", 3_600.0)
    monkeypatch.setattr(postgres_upkeep, "POLL_WITHOUT", 3_600.0)
    leased: dict[str, Callable[[str, str], object]] = {
        "ack": lambda queue, receipt: store.ack([receipt]),
        "settle": lambda queue, receipt: store.settle(receipt),
        "release": lambda queue, receipt: store.release(receipt),
        "reject": lambda queue, receipt: store.reject(receipt),
        "transact": lambda queue, receipt: store.transact([receipt], []),
    }
    delayed: dict[str, Callable[[str, int], object]] = {
        "delete_message": store.delete_message,
        "reschedule": lambda queue, number: store.reschedule(queue, number, 0),
        "dead_letter": store.dead_letter,
        "send": lambda queue, number: send(store, "urgent", queue=queue),
    }

    def first_read(queue: str, act: Callable[[], object]) -> list[str]:
        reading = threads.submit(store.receive, Receive((queue,), recipient=None, wait=20.0))
        time.sleep(0.3)  # it has looked, and waits now
        act()
        return texts(reading.result(25))

    found = {}
    for how, of_receipt in leased.items():
        send(store, "head", "next", queue=how, key="k")
        found[how] = first_read(how, partial(of_receipt, how, lease_one(store, queue=how).receipt))
    for how, of_number in delayed.items():
        (head,) = send(store, "head", queue=how, key="k", delay=3_600)
        send(store, "next", queue=how, key="k")
        found[how] = first_read(how, partial(of_number, how, head))
    found["redrive"] = first_read("reject", partial(store.redrive, "reject"))
    send(store, "kept", queue="paused")
    configure(store, "paused", paused=True)
    found["configure"] = first_read("paused", partial(configure, store, "paused", paused=False))
    assert found == {
        "ack": ["next"], "settle": ["next"], "release": ["head"], "reject": ["next"], "transact": ["next"],
        "delete_message": ["next"], "reschedule": ["head"], "dead_letter": ["next"], "send": ["urgent"],
        "redrive": ["head"], "configure": ["kept"],
    }  # fmt: skip


def test_readiness_is_checked_on_disk_once_a_second(store: Store, party: psycopg.Connection[Any]) -> None:
    store.check_ready()
    party.execute("SELECT FROM clock FOR UPDATE")
    store.check_ready()  # otherwise it would wait for the row


@pytest.mark.parametrize("verb", ["receive", "transact"])
def test_a_reader_that_left_while_it_waited_for_a_connection_takes_nothing(
    store: PostgresStore, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, "x")
    present, get = [True], store._pool._pool.getconn

    def get_late() -> Any:
        present[0] = False  # the client disconnects meanwhile
        return get()

    ask = Receive(("q",), lease=60.0)
    with monkeypatch.context() as patch:
        patch.setattr(store._pool._pool, "getconn", get_late)
        if verb == "receive":
            assert store.receive(ask, present=lambda: present[0]) == []
        else:
            assert store.transact([], [("other", new("y"))], ask, present=lambda: present[0]).messages == []
    assert stats(store).received == 0
    assert take(store) == ["x"]


def test_an_abandoned_request_is_not_remembered_as_done_under_its_key(
    store: Store, party: psycopg.Connection[Any]
) -> None:
    send(store, "a")
    held = lease_one(store)
    party.execute("SELECT FROM messages FOR UPDATE")
    with pytest.raises(Unavailable):
        store.settle(held.receipt, once=IdempotencyKey("k", b""))
    party.rollback()
    store.settle(held.receipt, once=IdempotencyKey("k", b""))
    store.settle(held.receipt, once=IdempotencyKey("k", b""))
    assert (stats(store).acked, stats(store).leased) == (1, 0)


def _send_many(store: Store) -> list[int]:
    ids = send(store, *["x"] * 10_000) + send(store, *["x"] * (MORE_THAN_A_STEP - 10_000))
    assert len(ids) == MORE_THAN_A_STEP
    return ids


def _dead_letter_many(store: Store, clock: FakeClock) -> None:
    configure(store, dead_letter_expired=True)
    send(store, *["x"] * 10_000, ttl=1)
    send(store, *["x"] * (MORE_THAN_A_STEP - 10_000), ttl=1)
    clock.advance(1)
    await_true(lambda: stats(store).dead == MORE_THAN_A_STEP)
