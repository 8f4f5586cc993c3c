"""Test time to live and retention: expired messages are not delivered, and free their space."""

from __future__ import annotations

from typing import Any

import pytest

from storage.errors import QueueFull
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, lease_one, new, peek, send, stats, take


def test_a_message_is_not_delivered_after_its_ttl(store: Store, clock: FakeClock) -> None:
    send(store, "short", ttl=5)
    send(store, "long", ttl=60)
    clock.advance(4.999)
    assert peek(store) == ["short", "long"]
    clock.advance(0.001)
    assert take(store, 5) == ["long"]
    assert (stats(store).expired, stats(store).ready, stats(store).bytes) == (1, 0, 0)


def test_the_ttl_counts_from_the_sending_however_long_the_delay(store: Store, clock: FakeClock) -> None:
    send(store, "never", delay=10, ttl=5)
    send(store, "briefly", delay=10, ttl=11)
    clock.advance(10)
    assert take(store, 5) == ["briefly"]
    assert stats(store).expired == 1


def test_a_leased_message_does_not_expire_before_its_lease_ends(store: Store, clock: FakeClock) -> None:
    send(store, "acked", "lost", ttl=5)
    acked, _ = lease(store, 2, seconds=60)
    clock.advance(6)
    store.settle(acked.receipt)
    assert (stats(store).leased, stats(store).expired) == (1, 0)
    clock.advance(54)
    assert take(store) == []
    assert (stats(store).leased, stats(store).expired) == (0, 1)


def test_a_message_released_after_its_ttl_expires(store: Store, clock: FakeClock) -> None:
    send(store, "a", ttl=5)
    held = lease_one(store, seconds=60)
    clock.advance(6)
    store.release(held.receipt)
    assert take(store) == []
    assert stats(store).expired == 1


def test_none_of_many_messages_that_expire_at_once_is_delivered(store: Store, clock: FakeClock) -> None:
    for _ in range(3):
        send(store, *["old"] * 8_000, ttl=5)
    send(store, "fresh")
    clock.advance(5)
    assert take(store, 5) == ["fresh"]


@pytest.mark.parametrize("batch", [["a"], ["a", "b", "c"]])
def test_retention_bounds_the_life_of_every_message(store: Store, clock: FakeClock, batch: list[str]) -> None:
    configure(store, retention=10)
    send(store, *batch)
    send(store, *batch, ttl=100)
    send(store, *batch, ttl=20, key="k")
    clock.advance(9.999)
    assert len(peek(store)) == 3 * len(batch)
    clock.advance(0.001)
    assert take(store, 100) == []
    assert stats(store).expired == 3 * len(batch)


def test_a_shorter_ttl_takes_precedence_over_a_longer_retention(store: Store, clock: FakeClock) -> None:
    configure(store, retention=10)
    send(store, "a", ttl=5)
    clock.advance(5)
    assert take(store) == []


def test_a_new_retention_applies_to_existing_messages(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b")
    send(store, "c", ttl=5)
    configure(store, retention=10)
    clock.advance(5)
    assert peek(store) == ["a", "b"]
    clock.advance(5)
    assert peek(store) == []


def test_without_retention_each_message_has_its_own_ttl_again(store: Store, clock: FakeClock) -> None:
    configure(store, retention=10)
    send(store, "a")
    send(store, "b", ttl=20)
    configure(store, retention=None)
    clock.advance(15)
    assert peek(store) == ["a", "b"]
    clock.advance(5)
    assert peek(store) == ["a"]


def test_an_expired_message_goes_to_the_dead_letters_if_the_queue_says_so(store: Store, clock: FakeClock) -> None:
    configure(store, dead_letter_expired=True)
    send(store, "a", ttl=5, attributes={"mine": 1})
    clock.advance(5)
    assert take(store) == []
    assert peek(store, queue="q.dead") == ["a"]
    now = stats(store)
    assert (now.expired, now.dead_lettered, now.dead, now.bytes) == (1, 1, 1, 0)


def test_an_expired_dead_letter_stays_although_its_ttl_has_passed(store: Store, clock: FakeClock) -> None:
    configure(store, dead_letter_expired=True)
    send(store, "a", ttl=5)
    clock.advance(5)
    assert peek(store) == []
    clock.advance(1_000)
    assert take(store, queue="q.dead") == ["a"]


@pytest.mark.parametrize("retentions", [[1_000], [1_000, None], [2_000, 1_000]])
def test_a_dead_letter_queues_retention_counts_from_the_death(
    store: Store, clock: FakeClock, retentions: list[float | None]
) -> None:
    configure(store, dead_letter_expired=True)
    send(store, "a", ttl=5_000)
    clock.advance(5_000)
    assert peek(store) == []
    for retention in retentions:
        configure(store, "q.dead", retention=retention)
    clock.advance(999)
    assert peek(store, queue="q.dead") == ["a"]
    clock.advance(1)
    assert peek(store, queue="q.dead") == (["a"] if retentions[-1] is None else [])


def test_a_redriven_message_lives_its_whole_ttl_again(store: Store, clock: FakeClock) -> None:
    send(store, "a", ttl=10)
    store.reject(lease_one(store).receipt)
    clock.advance(100)
    store.redrive("q")
    configure(store, retention=50)
    clock.advance(9)
    assert peek(store) == ["a"]
    clock.advance(1)
    assert peek(store) == []


@pytest.mark.parametrize("fields", [{"ttl": 5}, {"ttl": 5, "key": "k"}, {"ttl": 5, "delay": 60}])
def test_expired_messages_free_space_without_a_read(store: Store, clock: FakeClock, fields: dict[str, Any]) -> None:
    configure(store, max_messages=2)
    send(store, "a", "b", **fields)
    with pytest.raises(QueueFull):
        send(store, "c")
    clock.advance(5)
    send(store, "c", "d")
    with pytest.raises(QueueFull):
        send(store, "e")
    assert peek(store) == ["c", "d"]


def test_a_message_whose_lease_and_ttl_have_ended_frees_space(store: Store, clock: FakeClock) -> None:
    mortal = new("0123456789", ttl=5)
    configure(store, max_bytes=mortal.size)
    store.send("q", [mortal])
    lease(store, seconds=60)
    clock.advance(59)
    with pytest.raises(QueueFull):
        send(store, "c")
    clock.advance(1)
    store.send("q", [mortal])


def test_a_change_of_retention_takes_effect_at_once_and_can_be_undone(store: Store, clock: FakeClock) -> None:
    send(store, *map(str, range(50)))
    send(store, "single")
    clock.advance(10)
    send(store, "young")
    configure(store, retention=100)
    configure(store, retention=10.001)
    assert len(peek(store)) == 52
    configure(store, retention=10)
    assert take(store, 100) == ["young"]
    assert stats(store).expired == 51


def test_a_message_released_after_the_retention_expires_and_one_before_it_does_not(
    store: Store, clock: FakeClock
) -> None:
    configure(store, retention=10)
    send(store, "a", "b", "c")
    first, second, third = lease(store, 3, seconds=600)
    clock.advance(5)
    send(store, "d")
    clock.advance(5)
    assert take(store, 5) == ["d"]
    store.release(first.receipt)
    assert take(store, 5) == []
    assert stats(store).expired == 1
    configure(store, retention=100)
    store.release(second.receipt, 1)
    clock.advance(1)
    assert take(store) == ["b"]
    store.release(third.receipt)
    configure(store, retention=10)
    assert take(store) == []
    assert stats(store).expired == 2


def test_a_redriven_message_starts_its_retention_again(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    store.reject(lease_one(store).receipt)
    clock.advance(100)
    store.redrive("q")
    configure(store, retention=50)
    assert peek(store) == ["a"]
    clock.advance(49)
    assert peek(store) == ["a"]
    clock.advance(1)
    assert peek(store) == []


def test_the_shortest_retention_is_not_zero(store: Store, clock: FakeClock) -> None:
    configure(store, retention=0.0004)
    send(store, "a")
    assert peek(store) == ["a"]
    clock.advance(0.001)
    assert peek(store) == []


def test_many_messages_past_retention_do_not_hide_the_others_from_a_read(store: Store, clock: FakeClock) -> None:
    for n in range(3):
        store.send("q", [new("old", priority=n % 2)] * 10_000)
    clock.advance(10)
    send(store, "low", "lower", attributes={"n": 1})
    send(store, "high", priority=3)
    configure(store, retention=10)
    assert take(store, 5) == ["high", "low", "lower"]
    assert take(store, 5) == []


def test_batches_past_retention_are_deleted_or_dead_lettered_by_the_settings(store: Store, clock: FakeClock) -> None:
    configure(store, retention=10, dead_letter_expired=True)
    send(store, *map(str, range(150)))
    lease(store, 100, seconds=60)
    clock.advance(10)
    send(store, "young")
    assert take(store, 200) == ["young"]
    assert peek(store, queue="q.dead") == list(map(str, range(100, 150)))
    assert stats(store).leased == 100
