"""Test operations on whole queues: peek, stats, purge, delete."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from storage.errors import MessageNotFound, QueueNotFound
from storage.model import State
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take


def test_peek_shows_each_message_and_its_state(store: Store, clock: FakeClock) -> None:
    store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("delayed", delay=60)])
    lease_one(store)
    shown = [(message.text, message.state, message.receive_count, message.leased_until) for message in store.peek("q")]
    assert shown == [
        ("leased", State.LEASED, 1, clock.now() + 30_000),
        ("ready", State.READY, 0, None),
        ("blocked", State.BLOCKED, 0, None),
        ("delayed", State.DELAYED, 0, None),
    ]
    assert all(message.receipt is None for message in store.peek("q"))


def test_peek_by_state_shows_messages_in_that_state(store: Store) -> None:
    store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("delayed", delay=60)])
    send(store, "dead", priority=9)
    store.reject(lease_one(store).receipt)
    lease_one(store)
    for state in State:
        found = store.peek("q", state=state)
        assert [(message.text, message.state) for message in found] == [(str(state), state)]


def test_peek_continues_after_the_last_id_seen(store: Store) -> None:
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


def test_peek_of_a_missing_queue_is_empty_and_does_not_create_it(store: Store) -> None:
    assert store.peek("q") == []
    assert store.queues() == []


def test_peek_is_by_age_whatever_the_priority(store: Store) -> None:
    send(store, "a")
    send(store, "b", priority=9)
    assert peek(store) == ["a", "b"]


def test_queues_are_listed_in_order_of_name(store: Store) -> None:
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


def test_a_missing_queue_has_no_stats(store: Store) -> None:
    with pytest.raises(QueueNotFound):
        store.queue("q")


def test_the_stats_of_an_empty_queue_have_no_oldest_age(store: Store, clock: FakeClock) -> None:
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


def test_a_purge_removes_all_messages_and_returns_their_number(store: Store) -> None:
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


def test_a_purge_of_several_transactions_removes_all_messages(store: Store) -> None:
    for _ in range(3):
        send(store, *["x"] * 7_000, key="k")
    assert store.purge("q") == 21_000
    assert stats(store).blocked == 0


@pytest.mark.parametrize("verb", ["purge", "redrive", "delete_queue"])
def test_a_missing_queue_cannot_be_purged_redriven_or_deleted(store: Store, verb: str) -> None:
    with pytest.raises(QueueNotFound) as fault:
        getattr(store, verb)("nowhere")
    assert fault.value.queue == "nowhere"


def test_deleting_a_queue_deletes_all_in_it(store: Store) -> None:
    configure(store, max_receives=4)
    send(store, "a")
    store.delete_queue("q")
    assert store.queues() == []
    assert (peek(store), take(store)) == ([], [])
    send(store, "b")
    assert (store.queue("q").settings.max_receives, stats(store).sent, peek(store)) == (0, 1, ["b"])


def test_a_deleted_queue_of_many_messages_disappears_for_every_store(open_again: Callable[[], Store]) -> None:
    here, there = open_again(), open_again()
    for _ in range(3):
        send(here, *["x"] * 7_000)
    here.delete_queue("q")
    send(there, "new")
    assert peek(here) == ["new"]


def test_deleting_a_dead_letter_queue_deletes_its_dead_letters(store: Store) -> None:
    send(store, "a", "b")
    store.reject(lease_one(store).receipt)
    store.delete_queue("q.dead")
    assert (stats(store).dead, store.redrive("q")) == (0, 0)
    assert peek(store) == ["b"]


def test_a_store_that_can_write_is_ready(store: Store) -> None:
    store.check_ready()
    assert store.queues() == []


def test_the_oldest_age_is_that_of_the_message_that_has_been_ready_for_longest(store: Store, clock: FakeClock) -> None:
    store.send("q", [new("delayed", delay=100), new("leased"), new("back"), new("fresh")])
    _, back = lease(store, 2, seconds=600)
    clock.advance(10)
    assert stats(store).oldest_age == 10
    assert take(store) == ["fresh"]
    assert stats(store).oldest_age == 0
    store.release(back.receipt)
    clock.advance(3)
    assert stats(store).oldest_age == 3
    configure(store, paused=True)
    assert stats(store).oldest_age == 0
    configure(store, paused=False)
    assert take(store) == ["back"]
    clock.advance(100)
    assert stats(store).oldest_age == 13  # since its delay ended
    clock.advance(500)
    assert take(store) == ["delayed"]
    assert stats(store).oldest_age == 13  # since its lease ended


def test_the_oldest_age_starts_again_with_a_redrive_and_a_promotion(store: Store, clock: FakeClock) -> None:
    send(store, "dead")
    store.reject(lease_one(store).receipt)
    send(store, "head", "next", key="k")
    clock.advance(50)
    store.redrive("q")
    assert take(store) == ["head"]
    assert stats(store).oldest_age == 0
    clock.advance(5)
    assert stats(store).oldest_age == 5
    assert take(store) == ["next"]
    assert stats(store).oldest_age == 5


def test_the_oldest_age_of_a_batch_counts_from_when_it_came_back(store: Store, clock: FakeClock) -> None:
    send(store, *map(str, range(100)))
    lease(store, 100, seconds=10)
    clock.advance(4)
    send(store, *map(str, range(100)), priority=0)
    clock.advance(8)
    assert stats(store).oldest_age == 8
    assert len(take(store, 100)) == 100
    assert len(take(store, 100)) == 100
    assert stats(store).oldest_age == 0


def test_peek_backwards_shows_the_newest_first(store: Store) -> None:
    texts = [str(number) for number in range(250)]
    send(store, *texts[:240])
    send(store, *texts[240:], priority=1)
    seen: list[str] = []
    before = 2**62
    while page := store.peek("q", limit=70, before=before):
        seen += [message.text for message in page]
        before = page[-1].id
    assert seen == texts[::-1]
    ids = [message.id for message in store.peek("q", limit=250)]
    assert [m.id for m in store.peek("q", after=ids[100], before=ids[110])] == ids[109:100:-1]


def test_peek_by_key_shows_the_messages_of_that_key(store: Store) -> None:
    send(store, *map(str, range(100)))
    send(store, "a", "b", key="k")
    send(store, "c", key="other")
    store.reject(lease_one(store).receipt)
    assert [message.text for message in store.peek("q", key="k")] == ["a", "b"]
    assert [message.text for message in store.peek("q", key="k", state=State.BLOCKED)] == ["b"]
    assert [message.text for message in store.peek("q", key="k", before=2**62, limit=1)] == ["b"]
    assert store.peek("q", key="unused") == []
    assert store.peek("q", key="k", state=State.DEAD) == []


def test_peek_by_key_of_dead_letters(store: Store) -> None:
    send(store, "a", "b", key="k")
    send(store, "c")
    for held in lease(store, 3):
        store.reject(held.receipt)
    assert [message.text for message in store.peek("q", key="k", state=State.DEAD)] == ["a", "b"]
    assert [message.text for message in store.peek("q", state=State.DEAD, before=2**62)] == ["c", "b", "a"]


def test_queues_are_listed_page_by_page_and_by_prefix(store: Store) -> None:
    names = ["A", "a", "a-1", "a.1", "a.2", "aa", "b", "z" * 80]
    for name in reversed(names):
        configure(store, name)
    assert [queue.name for queue in store.queues(prefix="a")] == names[1:6]
    assert [queue.name for queue in store.queues(prefix="a.", limit=1)] == ["a.1"]
    assert [queue.name for queue in store.queues("a", "a.1", 2)] == ["a.2", "aa"]
    assert [queue.name for queue in store.queues(after="b")] == ["z" * 80]
    assert [queue.name for queue in store.queues(prefix="z" * 80)] == ["z" * 80]
    assert store.queues(after="z" * 80) == []


def test_a_purge_removes_nothing_that_was_sent_after_it_began(open_again: Callable[[], Store]) -> None:
    """The first transaction alone does not remove all messages."""
    here, there = open_again(), open_again()
    for _ in range(5):
        here.send("q", [new("old", key="k")] * 8_000)
    sent: list[int] = []

    def write() -> None:
        while not sent or stats(there).ready + stats(there).blocked > 20:
            sent.extend(send(there, "later", queue="q"))
            if len(sent) >= 20:
                return

    purged, _ = in_threads([lambda: here.purge("q"), write])
    left = [message.id for message in here.peek("q", limit=1_000)]
    assert isinstance(purged, int)
    assert purged + len(left) == 40_000 + len(sent)
    assert left == sent[len(sent) - len(left) :]
