"""Test message keys: in order, one consumer at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from storage.errors import StaleReceipt
from storage.model import Receive, State
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take, texts


def states(store: Store) -> list[State]:
    return [message.state for message in store.peek("q")]


def test_only_the_head_of_a_key_is_deliverable(store: Store) -> None:
    send(store, "a1", "a2", key="a")
    send(store, "b1", key="b")
    send(store, "plain")
    assert states(store) == ["ready", "blocked", "ready", "ready"]
    assert [lease_one(store).text for _ in range(3)] == ["a1", "b1", "plain"]
    assert lease(store) == []


def test_the_next_of_a_key_is_ready_once_the_head_is_acked(store: Store) -> None:
    send(store, "a1", "a2", key="a")
    store.settle(lease_one(store).receipt)
    assert states(store) == ["ready"]
    assert take(store) == ["a2"]


def test_a_plain_read_of_the_head_makes_the_next_ready(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    assert [take(store), take(store), take(store)] == [["a1"], ["a2"], ["a3"]]


def test_one_read_can_lease_several_messages_of_a_key_in_order(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    assert take(store, 2) == ["a1", "a2"]
    assert texts(lease(store, 2)) == ["a3"]


def test_a_key_stays_locked_until_all_its_leased_messages_are_settled(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    first, second = lease(store, 2)
    assert take(store, 5) == []
    store.settle(first.receipt)
    assert take(store, 5) == []
    store.settle(second.receipt)
    assert take(store, 5) == ["a3"]


def test_the_end_of_a_run_settled_first_leaves_the_key_locked(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    first, second = lease(store, 2)
    store.settle(second.receipt)
    assert states(store) == ["leased", "blocked"]
    store.settle(first.receipt)
    assert take(store, 5) == ["a3"]


def test_a_released_message_of_a_key_stays_blocked_until_the_rest_is_settled(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    first, second = lease(store, 2)
    store.release(first.receipt)
    assert states(store) == ["blocked", "leased", "blocked"]
    assert take(store, 5) == []
    store.settle(second.receipt)
    assert take(store, 5) == ["a1", "a3"]


def test_a_message_of_a_key_whose_lease_ends_waits_for_the_rest(store: Store, clock: FakeClock) -> None:
    send(store, "a1", "a2", key="a")
    _, second = lease(store, 2, seconds=10)
    store.extend(second.receipt, 60)
    clock.advance(10)
    assert states(store) == ["blocked", "leased"]
    assert take(store, 5) == []
    clock.advance(50)
    assert take(store, 5) == ["a1", "a2"]


def test_a_lease_extended_after_its_end_locks_its_key_again(store: Store, clock: FakeClock) -> None:
    send(store, "a1", "a2", "a3", key="a")
    first, second = lease(store, 2, seconds=10)
    clock.advance(10)
    assert states(store) == ["ready", "blocked", "blocked"]
    store.extend(second.receipt, 30)
    assert states(store) == ["blocked", "leased", "blocked"]
    assert take(store, 5) == []
    store.extend(first.receipt, 30)
    assert states(store) == ["leased", "leased", "blocked"]
    assert (stats(store).leased, stats(store).blocked) == (2, 1)


def test_a_late_worker_cannot_extend_a_lease_behind_another_workers(store: Store, clock: FakeClock) -> None:
    send(store, "a1", "a2", key="a")
    _, second = lease(store, 2, seconds=10)
    clock.advance(10)
    assert lease_one(store).text == "a1"
    with pytest.raises(StaleReceipt):
        store.extend(second.receipt, 30)
    assert states(store) == ["leased", "blocked"]


def test_a_released_head_is_the_head_again(store: Store) -> None:
    send(store, "a1", "a2", key="a")
    store.release(lease_one(store).receipt)
    assert states(store) == ["ready", "blocked"]
    assert take(store, 5) == ["a1", "a2"]


def test_a_head_released_with_a_delay_holds_up_its_key(store: Store, clock: FakeClock) -> None:
    send(store, "a1", "a2", key="a")
    store.release(lease_one(store).receipt, 5)
    assert states(store) == ["delayed", "blocked"]
    assert take(store, 5) == []
    clock.advance(5)
    assert take(store, 5) == ["a1", "a2"]


def test_a_delayed_head_holds_up_its_key(store: Store, clock: FakeClock) -> None:
    send(store, "a1", key="a", delay=5)
    send(store, "a2", key="a")
    send(store, "b1", key="b")
    assert states(store) == ["delayed", "blocked", "ready"]
    assert take(store, 5) == ["b1"]
    clock.advance(5)
    assert take(store, 5) == ["a1", "a2"]


def test_a_run_stops_before_a_delayed_message(store: Store, clock: FakeClock) -> None:
    store.send("q", [new("a1", key="a"), new("a2", key="a", delay=5), new("a3", key="a")])
    assert take(store, 5) == ["a1"]
    assert states(store) == ["delayed", "blocked"]
    clock.advance(5)
    assert take(store, 5) == ["a2", "a3"]


def test_an_expired_head_makes_way_for_the_next(store: Store, clock: FakeClock) -> None:
    send(store, "a1", key="a", ttl=5)
    send(store, "a2", key="a")
    clock.advance(5)
    assert take(store, 5) == ["a2"]


def test_a_dead_lettered_head_makes_way_for_the_next(store: Store) -> None:
    send(store, "a1", "a2", key="a")
    store.reject(lease_one(store).receipt)
    assert take(store, 5) == ["a2"]


def test_after_a_purge_of_the_heads_the_next_message_of_the_key_is_ready(store: Store) -> None:
    send(store, "a1", "a2", key="a")
    lease(store)
    assert store.purge("q") == 2
    send(store, "a3", key="a")
    assert take(store) == ["a3"]


def test_a_head_competes_by_its_own_priority(store: Store) -> None:
    send(store, "a1", key="a")
    send(store, "a2", key="a", priority=9)
    send(store, "b1", key="b", priority=5)
    send(store, "plain", priority=3)
    assert take(store, 10) == ["b1", "plain", "a1", "a2"]


def test_in_one_read_the_next_of_a_key_competes_once_its_head_is_taken(store: Store) -> None:
    send(store, "a1", key="a", priority=5)
    send(store, "a2", key="a", priority=1)
    send(store, "a3", key="a", priority=9)
    send(store, "plain", priority=3)
    one_by_one = ["a1", "plain", "a2", "a3"]
    held = lease(store, 10)
    assert texts(held) == one_by_one
    for message in held:
        store.release(message.receipt)
    assert [take(store)[0] for _ in range(4)] == one_by_one


def test_the_next_of_a_key_waits_for_its_own_recipient(store: Store) -> None:
    send(store, "to ann", key="a", recipient="ann")
    send(store, "to all", key="a")
    assert take(store, 5) == []
    assert take(store, 5, recipient="ann") == ["to ann"]
    assert take(store, 5, recipient="ann") == []
    assert take(store, 5) == ["to all"]


def test_a_run_stops_before_a_message_to_another_recipient(store: Store) -> None:
    for text, recipient in [("1", "ann"), ("2", "ann"), ("3", "bob"), ("4", "ann")]:
        send(store, text, key="a", recipient=recipient)
    assert take(store, 5, recipient="ann") == ["1", "2"]
    assert take(store, 5, recipient="bob") == ["3"]
    assert take(store, 5, recipient="ann") == ["4"]


def test_keys_of_two_queues_are_independent(store: Store) -> None:
    send(store, "1", key="a", queue="one")
    send(store, "2", key="a", queue="two")
    assert lease_one(store, queue="one").text == "1"
    assert lease_one(store, queue="two").text == "2"


def test_dead_letters_of_a_key_keep_their_order_through_death_and_redrive(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    for held in lease(store, 3):
        store.reject(held.receipt)
    assert [message.state for message in store.peek("q.dead")] == ["ready", "blocked", "blocked"]
    store.redrive("q")
    assert states(store) == ["ready", "blocked", "blocked"]
    assert take(store, 5) == ["a1", "a2", "a3"]


def test_a_run_of_a_key_ends_before_a_message_received_too_often(store: Store) -> None:
    send(store, "a1", "a2", "a3", key="a")
    for held in lease(store, 2):
        store.release(held.receipt)
    configure(store, max_receives=1)
    assert take(store, 5) == ["a3"]
    assert peek(store, queue="q.dead") == ["a1", "a2"]


def test_unusual_keys_work_like_any_other(store: Store) -> None:
    for key in ["\0", "a\0b", "'", '"', "%", "🙂", "null", "1", " ", "a\n", "\ufffe"]:
        send(store, f"{key}1", f"{key}2", key=key)
        held = lease_one(store)
        assert held.text == f"{key}1"
        assert lease(store) == []
        store.settle(held.receipt)
        assert take(store) == [f"{key}2"]


def test_a_thousand_keys_each_give_their_first(store: Store) -> None:
    store.send("q", [new(f"{place}/{key}", key=str(key)) for place in range(3) for key in range(1_000)])
    assert texts(lease(store, 1_000)) == [f"0/{key}" for key in range(1_000)]
    assert lease(store) == []


@pytest.fixture
def head(store: Store) -> Store:
    """Return the store, with key_lock "head" in the queue "q"."""
    configure(store, key_lock="head", max_receives=3)
    return store


def test_with_a_head_lock_the_first_message_is_delivered_again_while_later_ones_are_leased(
    head: Store, clock: FakeClock
) -> None:
    send(head, "1", "2", "3", "4", key="k")
    one, two, three = lease(head, 3, seconds=10)
    head.release(one.receipt)
    assert texts(lease(head, 5, seconds=20)) == ["1"]  # and not 4, which stands behind 2 and 3
    assert lease(head, 5) == []
    head.settle(two.receipt)
    assert lease(head, 5) == []
    clock.advance(10)  # 3's lease ends before 1's
    assert lease(head, 5) == []
    clock.advance(10)
    assert texts(lease(head, 5)) == ["1", "3", "4"]
    with pytest.raises(StaleReceipt):
        head.settle(three.receipt)


def test_with_a_head_lock_a_run_ends_before_the_first_leased_message(head: Store) -> None:
    send(head, "1", "2", "3", "4", "5", key="k")
    one, two, three, four = lease(head, 4)
    for held in (two, one):
        head.release(held.receipt)
    assert texts(lease(head, 5)) == ["1", "2"]
    for held in (three, four):
        head.settle(held.receipt)
    assert lease(head, 5) == []


def test_with_a_head_lock_a_settled_head_leaves_the_key_to_the_leased_one(head: Store) -> None:
    send(head, "1", "2", "3", key="k")
    one, two = lease(head, 2)
    head.settle(one.receipt)
    assert lease(head, 5) == []
    head.release(two.receipt)
    assert texts(lease(head, 5)) == ["2", "3"]


def test_with_a_head_lock_a_delayed_head_holds_its_key(head: Store, clock: FakeClock) -> None:
    send(head, "1", "2", "3", key="k")
    one, two = lease(head, 2)
    head.release(one.receipt, 5)
    head.settle(two.receipt)
    assert lease(head, 5) == []
    clock.advance(5)
    assert texts(lease(head, 5)) == ["1", "3"]


def test_with_a_head_lock_the_death_of_the_head_frees_the_next(head: Store) -> None:
    send(head, "1", "2", "3", key="k")
    one, two = lease(head, 2)
    head.release(two.receipt)
    head.reject(one.receipt)
    assert texts(lease(head, 5)) == ["2", "3"]
    assert peek(head, queue="q.dead") == ["1"]


def test_with_a_head_lock_an_ended_lease_is_renewed_beside_another(head: Store, clock: FakeClock) -> None:
    send(head, "1", "2", "3", key="k")
    one, two = lease(head, 2, seconds=10)
    head.extend(two.receipt, 60)
    clock.advance(10)
    (again,) = lease(head, 5, seconds=20)
    assert again.text == "1"
    with pytest.raises(StaleReceipt):
        head.extend(one.receipt, 60)
    clock.advance(60)
    assert peek(head) == ["1", "2", "3"]  # both leases have ended
    head.extend(two.receipt, 60)
    assert texts(lease(head, 5)) == ["1"]
    assert (stats(head).leased, stats(head).blocked, stats(head).ready) == (2, 1, 0)
    head.ack([two.receipt])


@pytest.mark.parametrize(("limit", "taken"), [(1, ["a1"]), (2, ["a1", "a2"]), (4, ["a1", "a2", "a3", "b1"])])
def test_with_a_head_lock_a_read_takes_one_key_after_the_other(head: Store, limit: int, taken: list[str]) -> None:
    for text in ("a1", "b1", "a2", "c1", "b2", "a3"):
        send(head, text, key=text[0])
    assert texts(lease(head, limit)) == taken


def test_with_a_head_lock_each_key_keeps_its_order_under_many_readers(open_again: Callable[[], Store]) -> None:
    stores = [open_again(), open_again()]
    configure(stores[0], key_lock="head")
    stores[0].send("q", [new(f"{number}", key=f"k{number % 5}") for number in range(200)])
    settled: list[str] = []

    def work(at: Store) -> None:
        while messages := at.receive(Receive(("q",), 7, 30)):
            for message in messages:
                settled.append(message.text)  # in order within a key, as its later ones wait or are in this read
                at.settle(str(message.receipt))

    failed = [outcome for outcome in in_threads([partial(work, at) for at in stores * 2]) if outcome is not None]
    assert failed == []
    while left := take(stores[0], 50):
        settled += left
    assert sorted(settled, key=int) == list(map(str, range(200)))
    for key in range(5):
        of_key = [int(text) for text in settled if int(text) % 5 == key]
        assert of_key == sorted(of_key)
