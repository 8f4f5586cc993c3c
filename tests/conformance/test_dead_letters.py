"""Test how messages become dead letters, and how a redrive returns them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from storage.errors import InvalidInput, MessageNotFound, QueueNotFound
from storage.model import QueueSettings, State, dead_letter_name, rfc3339
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.live import await_true
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take


def test_a_message_received_max_receives_times_without_an_ack_is_a_dead_letter(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=3)
    send(store, "poison", "good")
    for _ in range(3):
        assert lease_one(store, seconds=10).text == "poison"
        clock.advance(10)
    assert take(store, 5) == ["good"]
    assert peek(store, queue="q.dead") == ["poison"]
    assert (stats(store).dead, stats(store).dead_lettered, stats(store).leased) == (1, 1, 0)


def test_the_last_allowed_release_makes_a_dead_letter_at_once(store: Store) -> None:
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


def test_a_lower_max_receives_applies_to_messages_received_before(store: Store) -> None:
    send(store, "often", "never")
    for _ in range(3):
        store.release(lease_one(store).receipt)
    configure(store, max_receives=3)
    assert take(store, 5) == ["never"]
    assert peek(store, queue="q.dead") == ["often"]


def test_a_lower_max_receives_applies_to_the_next_of_a_key_in_the_same_read(store: Store) -> None:
    send(store, "first", "next", key="k")
    first, following = lease(store, 2)
    store.release(following.receipt)
    store.release(first.receipt, counted=False)
    configure(store, max_receives=1)
    assert take(store, 2) == ["first"]
    assert take(store, 2) == []
    assert peek(store, queue="q.dead") == ["next"]


@pytest.mark.parametrize("reason", ["rejected", "bad \0 'input' 🙂"])
def test_a_dead_letter_shows_its_origin_reason_and_time(store: Store, clock: FakeClock, reason: str) -> None:
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


def test_a_queue_with_the_longest_name_has_its_own_dead_letters(store: Store) -> None:
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


def test_a_peek_at_the_dead_letters_of_a_queue_names_where_each_lies(store: Store) -> None:
    for place in ("one", "two"):
        configure(store, max_receives=0, dead_letter_queue=place)
        send(store, place)
        store.reject(lease_one(store).receipt, "bad")
    dead = store.peek("q", state=State.DEAD)
    assert [message.queue for message in dead] == ["one", "two"]
    for message in dead:
        store.delete_message(message.queue, message.id)
    assert store.peek("q", state=State.DEAD) == []


@pytest.mark.parametrize("end", ["q", "q.dead"])
def test_a_redrive_of_either_queue_returns_dead_letters_in_order_with_a_fresh_count(
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


@pytest.mark.parametrize("queue", ["q", "q.dead"])
def test_a_redrive_takes_what_was_leased_until_just_now(store: Store, clock: FakeClock, queue: str) -> None:
    send(store, "x")
    store.reject(lease_one(store).receipt)
    lease_one(store, queue="q.dead", seconds=1)
    clock.advance(1)
    assert store.redrive(queue) == 1
    assert take(store) == ["x"]


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


def test_a_redrive_creates_a_deleted_queue_again(store: Store) -> None:
    send(store, "a")
    store.reject(lease_one(store).receipt)
    store.delete_queue("q")
    with pytest.raises(QueueNotFound):
        store.redrive("q")
    assert store.redrive("q.dead") == 1
    assert peek(store) == ["a"]


def test_dead_letters_of_a_deleted_queue_do_not_name_it(store: Store) -> None:
    send(store, "a")
    store.reject(lease_one(store).receipt)
    assert len(store.peek("q", state=State.DEAD)) == 1
    store.delete_queue("q")
    assert store.peek("q", state=State.DEAD) == []
    assert peek(store, queue="q.dead") == ["a"]


def history_of(store: Store, queue: str) -> list[tuple[str, str]]:
    """Return the origin and reason of each dead-lettering of the one message in a queue, oldest first."""
    (message,) = store.peek(queue)
    attributes = json.loads(message.fields or "{}").get("attributes", {})
    if "dead_letter_from" not in attributes:
        return []
    deaths = [*json.loads(attributes.get("dead_letter_history", "[]")), attributes]
    return [(death["dead_letter_from"], death["dead_letter_reason"]) for death in deaths]


def test_a_dead_letter_that_dies_again_keeps_its_whole_dead_letter_history(store: Store, clock: FakeClock) -> None:
    configure(store, "q.dead", retention=10, dead_letter_expired=True)
    send(store, "a", attributes={"mine": 1})
    store.reject(lease_one(store).receipt, "first")
    clock.advance(10)
    assert peek(store, queue="q.dead") == []
    store.reject(lease_one(store, queue="q.dead.dead").receipt, "third")
    last = "q.dead.dead.dead"
    assert history_of(store, last) == [("q", "first"), ("q.dead", "expired"), ("q.dead.dead", "third")]
    attributes = json.loads(store.peek(last)[0].fields or "")["attributes"]
    assert (attributes["mine"], attributes["dead_letter_at"]) == (1, rfc3339(clock.now()))
    assert [stats(store, queue).dead for queue in ("q", "q.dead", "q.dead.dead")] == [0, 0, 1]


def test_a_redrive_undoes_one_death_at_a_time(store: Store, clock: FakeClock) -> None:
    send(store, "a", ttl=20)
    store.reject(lease_one(store).receipt, "first")
    store.reject(lease_one(store, queue="q.dead").receipt, "second")
    clock.advance(100)
    assert store.redrive("q.dead") == 1
    assert (history_of(store, "q.dead"), stats(store).dead, stats(store, "q.dead").dead) == (
        [("q", "first")],
        1,
        0,
    )
    clock.advance(100)
    assert store.redrive("q") == 1
    assert (history_of(store, "q"), stats(store).dead) == ([], 0)
    clock.advance(19)
    assert peek(store) == ["a"]
    clock.advance(1)
    assert peek(store) == []


def test_a_dead_letter_that_died_twice_in_one_queue_returns_to_it(store: Store) -> None:
    send(store, "a")
    for reason in ("first", "second"):
        store.reject(lease_one(store).receipt, reason)
        assert history_of(store, "q.dead") == [("q", reason)]
        assert store.redrive("q.dead") == 1
    assert history_of(store, "q") == []


def test_one_redrive_does_not_undo_two_deaths(store: Store) -> None:
    configure(store, "first", dead_letter_queue="second")
    send(store, "a", queue="first")
    store.reject(lease_one(store, queue="first").receipt)
    store.reject(lease_one(store, queue="second").receipt)
    assert store.redrive("second") == 1
    assert (peek(store, queue="second"), peek(store, queue="first")) == (["a"], [])


def test_a_redrive_takes_only_the_ids_it_names(store: Store) -> None:
    send(store, *"abcde")
    for held in lease(store, 5):
        store.reject(held.receipt)
    letters = {message.text: message.id for message in store.peek("q.dead")}
    other = send(store, "no dead letter", queue="q.dead")
    assert store.redrive("q", ids=[letters["d"], letters["b"], letters["b"], *other, 999_999]) == 2
    assert store.redrive("q.dead", 1, ids=[letters["e"], letters["c"]]) == 1
    assert peek(store) == ["b", "d", "c"]
    assert store.redrive("q", ids=[]) == 0
    assert peek(store, queue="q.dead") == ["a", "e", "no dead letter"]


def test_a_redrive_takes_only_those_that_last_died_of_a_reason(store: Store) -> None:
    send(store, *map(str, range(300)))
    for number, held in enumerate(lease(store, 300)):
        store.reject(held.receipt, "bad" if number % 100 == 99 else "worse")
    assert store.redrive("q", reason="never") == 0
    assert store.redrive("q", 2, reason="bad") == 2
    assert store.redrive("q.dead", reason="bad") == 1
    assert peek(store) == ["99", "199", "299"]


def test_a_redrive_of_one_moves_the_first_that_is_not_leased(store: Store) -> None:
    send(store, *map(str, range(300)))
    for held in lease(store, 300):
        store.reject(held.receipt)
    lease(store, 250, queue="q.dead")
    assert store.redrive("q", 1) == 1
    assert peek(store) == ["250"]


@pytest.mark.parametrize("length", [2, 3, 50])
def test_dead_letter_queues_form_no_circle_however_long(store: Store, length: int) -> None:
    for number in range(length - 1):
        configure(store, f"q{number}", dead_letter_queue=f"q{number + 1}")
    with pytest.raises(InvalidInput) as fault:
        configure(store, f"q{length - 1}", max_receives=2, dead_letter_queue="q0")
    assert fault.value.field == "dead_letter_queue"
    configure(store, f"q{length - 1}", dead_letter_queue="elsewhere")


def test_the_default_dead_letter_queue_is_part_of_a_circle_too(store: Store) -> None:
    with pytest.raises(InvalidInput):
        configure(store, "q.dead", dead_letter_queue="q")
    configure(store, dead_letter_queue="graves")
    configure(store, "q.dead", dead_letter_queue="q")
    with pytest.raises(InvalidInput):
        configure(store, dead_letter_queue=None)


def test_a_queue_is_not_deleted_while_its_default_dead_letter_queue_would_close_a_circle(store: Store) -> None:
    configure(store, dead_letter_queue="graves", max_receives=1)
    configure(store, "q.dead", dead_letter_queue="q", max_receives=1)
    with pytest.raises(InvalidInput, match=r"'q.dead', as by default, .*'q' would come back") as fault:
        store.delete_queue("q")
    assert fault.value.field == "dead_letter_queue"
    assert store.queue("q").settings.dead_letter_queue == "graves"
    configure(store, "q.dead", dead_letter_queue=None)
    store.delete_queue("q")
    with pytest.raises(InvalidInput):
        configure(store, "q.dead", dead_letter_queue="q")


def test_an_unused_queue_does_not_expire_while_that_would_close_a_circle(store: Store, clock: FakeClock) -> None:
    configure(store, dead_letter_queue="graves", expires=1)
    configure(store, "q.dead", dead_letter_queue="q")
    configure(store, "other", dead_letter_queue="graves", expires=1)
    clock.advance(2)
    await_true(lambda: "other" not in [queue.name for queue in store.queues()])
    assert store.queue("q").settings.dead_letter_queue == "graves"
    configure(store, "q.dead", dead_letter_queue=None)
    await_true(lambda: "q" not in [queue.name for queue in store.queues()])


def test_no_circle_is_closed_through_any_number_of_default_dead_letter_queues(store: Store) -> None:
    name = "q"
    for _ in range(40):
        name = dead_letter_name(name, QueueSettings())
        with pytest.raises(InvalidInput) as fault:
            configure(store, name, dead_letter_queue="q")
        assert fault.value.field == "dead_letter_queue"


def test_a_concurrent_deletion_and_setting_cannot_close_a_circle(
    open_again: Callable[[], Store],
) -> None:
    here, there = open_again(), open_again()
    for _ in range(10):
        configure(here, "q.dead", dead_letter_queue=None)
        configure(here, dead_letter_queue="graves")
        outcomes = in_threads(
            [lambda: here.delete_queue("q"), lambda: configure(there, "q.dead", dead_letter_queue="q")]
        )
        assert [isinstance(outcome, InvalidInput) for outcome in outcomes].count(True) == 1


def test_a_read_passes_over_many_messages_beyond_a_lower_max_receives(store: Store) -> None:
    """It may need several transactions: the valid one comes at once, the others are dead-lettered."""
    texts = [str(number) for number in range(3_000)]
    for start in range(0, 3_000, 1_000):
        store.send("q", [new(text, priority=1) for text in texts[start : start + 1_000]])
    while held := lease(store, 1_000, seconds=600):
        for one in held:
            store.release(one.receipt, 1)
    send(store, "good")
    configure(store, max_receives=1)
    assert take(store, 1) == ["good"]


def test_a_message_received_too_often_blocks_its_key_only_until_it_is_dead_lettered(store: Store) -> None:
    send(store, "spent", "spent too", "next", key="k")
    for held in lease(store, 2):
        store.release(held.receipt)
    configure(store, max_receives=1)
    assert stats(store)[:4] == (1, 0, 0, 0)
    assert take(store) == ["next"]
    assert peek(store, queue="q.dead") == ["spent", "spent too"]


def test_a_dead_letter_knows_its_first_id_and_all_its_deliveries(store: Store, clock: FakeClock) -> None:
    (first,) = send(store, "a", attributes={"dead_letter_from": "the client's own"})
    received = clock.now()
    store.release(lease_one(store).receipt)
    alive = lease_one(store).message
    assert (alive.origin, alive.first, alive.total_receive_count, alive.deaths) == (None, ("q", first), 2, None)
    for queue, origin in (("q.dead", "q"), ("q.dead.dead", "q.dead")):
        store.reject(str(lease_one(store, queue=origin).receipt) if origin != "q" else str(alive.receipt))
        clock.advance(10)
        (dead,) = store.peek(queue)
        assert (dead.origin, dead.first, dead.first_received_at) == (origin, ("q", first), received)
    assert (dead.total_receive_count, dead.receive_count) == (3, 0)
    held = lease_one(store, queue="q.dead.dead").message
    assert (held.origin, held.first, held.total_receive_count) == ("q.dead", ("q", first), 4)
    store.release(str(held.receipt))
    assert store.redrive("q.dead.dead") == store.redrive("q.dead") == 1
    (back,) = store.peek("q")
    assert (back.origin, back.first, back.first_received_at, back.total_receive_count) == (
        None,
        ("q", back.id),
        None,
        0,
    )
    assert back.id != first
