"""What is seen of a queue and done to all of it: peek, stats, purge, delete."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from storage.errors import MessageNotFound, QueueNotFound
from storage.model import State, Store
from tests.conformance.engines import FakeClock
from tests.conformance.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take


def test_peek_tells_each_message_and_its_state(store: Store, clock: FakeClock) -> None:
    store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("delayed", delay=60)])
    lease_one(store)
    told = [(message.text, message.state, message.receive_count, message.leased_until) for message in store.peek("q")]
    assert told == [
        ("leased", State.LEASED, 1, clock.now() + 30_000),
        ("ready", State.READY, 0, None),
        ("blocked", State.BLOCKED, 0, None),
        ("delayed", State.DELAYED, 0, None),
    ]
    assert all(message.receipt is None for message in store.peek("q"))


def test_peek_by_state_tells_those_of_that_state(store: Store) -> None:
    store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("delayed", delay=60)])
    send(store, "dead", priority=9)
    store.reject(lease_one(store).receipt)
    lease_one(store)
    for state in State:
        found = store.peek("q", state=state)
        assert [(message.text, message.state) for message in found] == [(str(state), state)]


def test_peek_goes_on_after_the_last_id_seen(store: Store) -> None:
    batch = [str(number) for number in range(25)]
    send(store, *batch)
    seen: list[str] = []
    after = 0
    while page := store.peek("q", limit=10, after=after):
        seen += [message.text for message in page]
        after = page[-1].id
    assert seen == batch


def test_peek_changes_nothing_not_even_counters(open_again: Callable[[], Store]) -> None:
    store = open_again()
    send(store, "a", "b", key="k")
    before = store.queues(), store.peek("q")
    for state in (None, *State):
        store.peek("q", state=state)
    assert (store.queues(), store.peek("q")) == before
    assert take(store, 5) == ["a", "b"]


def test_peek_of_a_queue_that_is_not_there_is_empty_and_does_not_make_it(store: Store) -> None:
    assert store.peek("q") == []
    assert store.queues() == []


def test_peek_is_by_age_whatever_the_priority(store: Store) -> None:
    send(store, "a")
    send(store, "b", priority=9)
    assert peek(store) == ["a", "b"]


def test_queues_are_told_in_order_of_name(store: Store) -> None:
    for name in ("b", "a.b", "B", "a", "a-b"):
        send(store, "x", queue=name)
    assert [queue.name for queue in store.queues()] == ["B", "a", "a-b", "a.b", "b"]


def test_the_stats_add_up(store: Store, clock: FakeClock) -> None:
    send(store, "abc", "def", "ghi")
    clock.advance(2.5)
    take(store)
    store.settle(lease_one(store).receipt)
    assert stats(store)._asdict() == {
        "ready": 1, "leased": 0, "delayed": 0, "blocked": 0, "dead": 0, "oldest_age": 2.5, "bytes": 3,
        "sent": 3, "received": 2, "acked": 1, "expired": 0, "dead_lettered": 0,
    }  # fmt: skip


def test_the_stats_of_a_queue_that_is_not_there_are_not_there(store: Store) -> None:
    with pytest.raises(QueueNotFound):
        store.queue("q")


def test_the_stats_of_an_empty_queue_know_no_oldest_message(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    clock.advance(5)
    take(store)
    assert stats(store).oldest_age == 0.0


def test_the_stats_equal_a_real_count_at_all_times_under_sixteen_threads(open_again: Callable[[], Store]) -> None:
    stores = [open_again(), open_again()]
    configure(stores[0], max_receives=2)

    def work(at: Store, chance: random.Random) -> None:
        for _ in range(15):
            at.send("q", [new("x" * chance.randrange(9), key=chance.choice("ab")), new("é", delay=60), new("z")])
            for held in lease(at, chance.randrange(1, 4)):
                verb = chance.choice([at.settle, at.release, at.reject, None])
                if verb is not None:
                    verb(held.receipt)
            take(at, 2)

    failures = in_threads([partial(work, stores[n % 2], random.Random(n)) for n in range(16)])
    assert failures == [None] * 16
    for name in ("q", "q.dead"):
        rows, now = stores[0].peek(name, limit=100_000), stats(stores[0], name)
        counts = Counter(message.state for message in rows)
        assert [now.ready, now.leased, now.delayed, now.blocked] == [counts[state] for state in list(State)[:4]]
    assert stats(stores[0]).dead == len(rows) == stats(stores[0]).dead_lettered


def test_a_purge_takes_all_and_says_how_many(store: Store) -> None:
    send(store, "dead")
    store.reject(lease_one(store).receipt)
    store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("delayed", delay=60)])
    lease_one(store)
    assert store.purge("q") == 4
    now = stats(store)
    assert (now.ready, now.leased, now.delayed, now.blocked, now.bytes, now.dead) == (0, 0, 0, 0, 0, 1)
    assert store.purge("q") == 0
    assert peek(store, queue="q.dead") == ["dead"]


def test_a_purged_message_cannot_be_acked(store: Store) -> None:
    send(store, "a")
    held = lease_one(store)
    store.purge("q")
    with pytest.raises(MessageNotFound):
        store.settle(held.receipt)
    assert stats(store).acked == 0


def test_a_purge_leaves_the_settings_and_the_totals(store: Store) -> None:
    configure(store, max_receives=4)
    send(store, "a")
    store.purge("q")
    assert (store.queue("q").settings.max_receives, stats(store).sent) == (4, 1)


def test_a_purge_of_more_than_one_transactions_worth(store: Store) -> None:
    for _ in range(3):
        send(store, *["x"] * 7_000, key="k")
    assert store.purge("q") == 21_000
    assert stats(store).blocked == 0


@pytest.mark.parametrize("verb", ["purge", "redrive", "delete_queue"])
def test_a_queue_that_is_not_there_can_be_neither_purged_nor_redriven_nor_deleted(store: Store, verb: str) -> None:
    with pytest.raises(QueueNotFound) as fault:
        getattr(store, verb)("nowhere")
    assert fault.value.queue == "nowhere"


def test_a_deleted_queue_is_gone_with_all_in_it(store: Store) -> None:
    configure(store, max_receives=4)
    send(store, "a")
    store.delete_queue("q")
    assert store.queues() == []
    assert (peek(store), take(store)) == ([], [])
    send(store, "b")
    assert (store.queue("q").settings.max_receives, stats(store).sent, peek(store)) == (0, 1, ["b"])


def test_a_deleted_queue_of_many_messages_is_gone_for_everybody(open_again: Callable[[], Store]) -> None:
    here, there = open_again(), open_again()
    for _ in range(3):
        send(here, *["x"] * 7_000)
    here.delete_queue("q")
    send(there, "new")
    assert peek(here) == ["new"]


def test_a_deleted_dead_letter_queue_takes_its_dead_letters_along(store: Store) -> None:
    send(store, "a", "b")
    store.reject(lease_one(store).receipt)
    store.delete_queue("q.dead")
    assert (stats(store).dead, store.redrive("q")) == (0, 0)
    assert peek(store) == ["b"]


def test_a_store_that_can_write_is_ready(store: Store) -> None:
    store.check_ready()
    assert store.queues() == []
