"""Messages that could not be dealt with: how they come to lie in the dead-letter queue, and how they come back."""

from __future__ import annotations

import json

import pytest

from storage.errors import MessageNotFound, QueueNotFound
from storage.model import State, Store, rfc3339
from tests.conformance.engines import FakeClock
from tests.conformance.shorthand import configure, lease, lease_one, new, peek, send, stats, take


def test_a_message_received_max_receives_times_without_an_ack_is_a_dead_letter(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=3)
    send(store, "poison", "good")
    for _ in range(3):
        assert lease_one(store, seconds=10).text == "poison"
        clock.advance(10)
    assert take(store, 5) == ["good"]
    assert peek(store, queue="q.dead") == ["poison"]
    assert (stats(store).dead, stats(store).dead_lettered, stats(store).leased) == (1, 1, 0)


def test_given_back_for_the_last_time_it_is_a_dead_letter_at_once(store: Store) -> None:
    configure(store, max_receives=2)
    send(store, "poison")
    for _ in range(2):
        store.release(lease_one(store).receipt)
    assert peek(store) == []
    assert peek(store, queue="q.dead") == ["poison"]


def test_a_repeated_nack_makes_one_dead_letter(store: Store) -> None:
    configure(store, max_receives=1)
    send(store, "poison", "rejected")
    nacked, rejected = lease(store, 2)
    store.release(nacked.receipt)
    store.reject(rejected.receipt)
    with pytest.raises(MessageNotFound):
        store.release(nacked.receipt)
    with pytest.raises(MessageNotFound):
        store.reject(rejected.receipt)
    assert peek(store, queue="q.dead") == ["poison", "rejected"]
    assert stats(store).dead_lettered == 2


def test_an_ack_in_time_saves_the_last_delivery(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=1)
    send(store, "a")
    held = lease_one(store, seconds=10)
    clock.advance(9)
    store.settle(held.receipt)
    clock.advance(100)
    assert stats(store).dead_lettered == 0


def test_a_lower_max_receives_holds_for_what_was_received_before(store: Store) -> None:
    send(store, "often", "never")
    for _ in range(3):
        store.release(lease_one(store).receipt)
    configure(store, max_receives=3)
    assert take(store, 5) == ["never"]
    assert peek(store, queue="q.dead") == ["often"]


@pytest.mark.parametrize("reason", ["rejected", "bad \0 'input' 🙂"])
def test_a_dead_letter_tells_where_it_came_from_and_why_and_when(store: Store, clock: FakeClock, reason: str) -> None:
    (number,) = send(store, "a", attributes={"mine": 1, "dead_letter_from": "a lie"}, key="k")
    sent = clock.now()
    clock.advance(5)
    store.reject(lease_one(store).receipt, reason)
    (letter,) = store.peek("q.dead")
    assert (letter.text, letter.queue, letter.sent_at, letter.receive_count) == ("a", "q.dead", sent, 0)
    assert json.loads(letter.fields or "") == {
        "key": "k",
        "attributes": {
            "mine": 1,
            "dead_letter_from": "q",
            "dead_letter_reason": reason,
            "dead_letter_at": rfc3339(clock.now()),
            "dead_letter_id": str(number),
            "dead_letter_receive_count": 1,
        },
    }


def test_each_way_to_die_has_its_reason(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=1, dead_letter_expired=True)
    send(store, "released", "ended")
    store.release(lease_one(store).receipt)
    lease_one(store, seconds=1)
    send(store, "expired", ttl=1)
    clock.advance(1)
    assert peek(store) == []
    reasons = [
        (letter.text, json.loads(letter.fields or "")["attributes"]["dead_letter_reason"])
        for letter in store.peek("q.dead")
    ]
    assert reasons == [("released", "max_receives"), ("ended", "max_receives"), ("expired", "expired")]


def test_dead_letters_are_read_like_any_message_and_keep_recipient_and_priority(store: Store) -> None:
    send(store, "to ann", recipient="ann")
    send(store, "low")
    send(store, "high", priority=9)
    for recipient in ("ann", "", ""):
        store.reject(lease_one(store, recipient=recipient).receipt)
    assert take(store, 5, queue="q.dead") == ["high", "low"]
    assert take(store, 5, queue="q.dead", recipient="ann") == ["to ann"]
    assert stats(store).dead == 0


def test_dead_letters_go_where_the_settings_say(store: Store) -> None:
    configure(store, dead_letter_queue="graveyard")
    send(store, "a")
    store.reject(lease_one(store).receipt)
    assert peek(store, queue="graveyard") == ["a"]
    assert [queue.name for queue in store.queues()] == ["graveyard", "q"]


def test_a_queue_with_the_longest_name_has_dead_letters_of_its_own(store: Store) -> None:
    name = "n" * 80
    send(store, "a", queue=name)
    store.reject(lease_one(store, queue=name).receipt)
    assert peek(store, queue=name) == []
    assert peek(store, queue=name, state=State.DEAD) == ["a"]
    assert store.redrive(name) == 1
    assert peek(store, queue=name) == ["a"]


def test_messages_that_die_at_the_same_moment_keep_their_order(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=1)
    send(store, *"abcdef")
    for held in reversed(lease(store, 6, seconds=60)):
        store.extend(held.receipt, 10)
    clock.advance(10)
    assert peek(store) == []
    assert peek(store, queue="q.dead") == list("abcdef")


@pytest.mark.parametrize("end", ["q", "q.dead"])
def test_a_redrive_from_either_end_brings_dead_letters_home_in_order_with_a_fresh_count(
    store: Store, clock: FakeClock, end: str
) -> None:
    configure(store, max_receives=1)
    store.send("q", [new("a", priority=3, attributes={"mine": 1}), new("b"), new("c", recipient="ann")])
    lease(store, 3)
    lease(store, 3, recipient="ann")
    clock.advance(60)
    assert peek(store, queue="q", state=State.DEAD) == list("abc")
    assert store.redrive(end) == 3
    assert peek(store, queue="q.dead") == []
    home = store.peek("q")
    assert [(message.text, message.receive_count) for message in home] == [("a", 0), ("b", 0), ("c", 0)]
    assert json.loads(home[0].fields or "") == {"priority": 3, "attributes": {"mine": 1}}
    assert (stats(store).dead, stats(store).ready, stats(store, "q.dead").bytes) == (0, 3, 0)


def test_a_redrive_moves_no_more_than_its_limit_and_the_oldest_dead_first(store: Store) -> None:
    send(store, *"abcde")
    for held in lease(store, 5):
        store.reject(held.receipt)
    assert [store.redrive("q", 2), store.redrive("q", 2), store.redrive("q", 2), store.redrive("q", 2)] == [2, 2, 1, 0]
    assert take(store, 5) == list("abcde")


def test_a_redrive_of_a_shared_dead_letter_queue_sends_each_back_to_its_own(store: Store) -> None:
    for queue in ("one", "two"):
        configure(store, queue, dead_letter_queue="shared")
        send(store, f"{queue} a", f"{queue} b", queue=queue)
        for held in lease(store, 2, queue=queue):
            store.reject(held.receipt)
    send(store, "at home there", queue="shared")
    assert store.redrive("one") == 2
    assert peek(store, queue="shared") == ["two a", "two b", "at home there"]
    assert store.redrive("shared") == 2
    assert peek(store, queue="one") == ["one a", "one b"]
    assert peek(store, queue="two") == ["two a", "two b"]
    assert peek(store, queue="shared") == ["at home there"]


def test_a_leased_dead_letter_stays_where_it_is(store: Store) -> None:
    send(store, "a", "b")
    for held in lease(store, 2):
        store.reject(held.receipt)
    examined = lease_one(store, queue="q.dead")
    assert store.redrive("q") == 1
    store.settle(examined.receipt)
    assert peek(store) == ["b"]


def test_twelve_thousand_dead_letters_come_back_in_order(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=1)
    batch = [str(number) for number in range(6_000)]
    send(store, *batch)
    send(store, *batch)
    while lease(store, 1_000, seconds=10):
        pass
    clock.advance(10)
    assert peek(store) == []
    assert store.redrive("q", 11_000) == 11_000
    assert store.redrive("q") == 1_000
    assert peek(store) == batch + batch


def test_a_redrive_brings_a_deleted_queue_to_life_again(store: Store) -> None:
    send(store, "a")
    store.reject(lease_one(store).receipt)
    store.delete_queue("q")
    with pytest.raises(QueueNotFound):
        store.redrive("q")
    assert store.redrive("q.dead") == 1
    assert peek(store) == ["a"]


def test_dead_letters_of_a_deleted_queue_are_not_told_of_it(store: Store) -> None:
    send(store, "a")
    store.reject(lease_one(store).receipt)
    assert len(store.peek("q", state=State.DEAD)) == 1
    store.delete_queue("q")
    assert store.peek("q", state=State.DEAD) == []
    assert peek(store, queue="q.dead") == ["a"]
