"""Test operations on one message by its id: show, remove, reschedule, dead-letter."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from storage.errors import MessageLeased, MessageNotFound, QueueNotFound, StaleReceipt
from storage.model import State
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, lease_one, new, peek, send, stats, take

BATCH = [f"m{n}" for n in range(120)]  # packed, if the engine packs


def test_a_message_is_shown_as_peek_shows_it(store: Store, clock: FakeClock) -> None:
    ids = store.send("q", [new("leased"), new("ready", key="k"), new("blocked", key="k"), new("late", delay=60)]).ids
    lease_one(store)
    assert [store.message("q", number) for number in ids] == store.peek("q")
    assert store.message("q", ids[0]).leased_until == clock.now() + 30_000
    assert (stats(store).received, store.message("q", ids[1]).receive_count) == (1, 0)


@pytest.mark.parametrize("place", [0, 60, 119])
def test_a_message_of_a_batch_is_shown_removed_or_delayed_alone(store: Store, place: int) -> None:
    ids = send(store, *BATCH)
    shown = store.message("q", ids[place])
    assert (shown.text, shown.state, shown.id) == (BATCH[place], State.READY, ids[place])
    store.reschedule("q", ids[place], 60)
    assert store.message("q", ids[place]).state is State.DELAYED
    store.delete_message("q", ids[place])
    assert take(store, 200) == BATCH[:place] + BATCH[place + 1 :]
    assert stats(store)[:4] == (0, 0, 0, 0)
    assert stats(store).bytes == 0


VERBS: dict[str, Callable[[Store, str, int], object]] = {
    "message": lambda store, queue, number: store.message(queue, number),
    "delete": lambda store, queue, number: store.delete_message(queue, number),
    "reschedule": lambda store, queue, number: store.reschedule(queue, number, 5),
    "dead_letter": lambda store, queue, number: store.dead_letter(queue, number),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_message_that_is_not_in_the_queue_is_not_found(store: Store, clock: FakeClock, verb: str) -> None:
    send(store, "elsewhere", queue="p")
    ids = [*send(store, "taken", *BATCH), *send(store, "expired", ttl=1)]
    take(store, 1)
    clock.advance(1)
    for number in (ids[0], ids[-1], ids[-1] + 1, ids[0] - 1):
        with pytest.raises(MessageNotFound):
            VERBS[verb](store, "q", number)
    with pytest.raises(QueueNotFound):
        VERBS[verb](store, "nowhere", ids[1])
    assert (stats(store).ready, stats(store, "p").ready) == (120, 1)


@pytest.mark.parametrize("verb", ["delete", "reschedule", "dead_letter"])
@pytest.mark.parametrize("batch", [["a"], BATCH], ids=["one", "batch"])
def test_a_leased_message_cannot_be_changed_by_its_id(
    store: Store, clock: FakeClock, verb: str, batch: list[str]
) -> None:
    ids = send(store, *batch)
    held = lease(store, 200, seconds=10)
    with pytest.raises(MessageLeased):
        VERBS[verb](store, "q", ids[-1])
    assert stats(store).leased == len(batch)
    clock.advance(10)
    VERBS[verb](store, "q", ids[-1])
    with pytest.raises(StaleReceipt if verb == "reschedule" else MessageNotFound):
        store.extend(held[-1].receipt, 60)


def test_a_delayed_message_is_made_due_now_or_later(store: Store, clock: FakeClock) -> None:
    first, second = store.send("q", [new("first", delay=60), new("second", delay=60)]).ids
    store.reschedule("q", first, 0)
    store.reschedule("q", second, 100)
    assert (stats(store).ready, stats(store).delayed) == (1, 1)
    assert take(store, 5) == ["first"]
    clock.advance(99)
    assert take(store, 5) == []
    clock.advance(1)
    assert take(store, 5) == ["second"]


def test_a_delayed_blocked_message_stays_blocked_and_is_due_later(store: Store, clock: FakeClock) -> None:
    _, second, third = send(store, "a", "b", "c", key="k")
    store.reschedule("q", second, 60)
    assert store.message("q", second).state is State.BLOCKED
    assert take(store, 5) == ["a"]
    assert store.message("q", second).state is State.DELAYED
    store.reschedule("q", third, 30)
    clock.advance(60)
    assert take(store, 5) == ["b", "c"]


def test_a_delayed_head_by_id_holds_up_its_key(store: Store, clock: FakeClock) -> None:
    first, _ = send(store, "a", "b", key="k")
    store.reschedule("q", first, 60)
    assert take(store, 5) == []
    store.reschedule("q", first, 0)
    assert take(store, 5) == ["a", "b"]


def test_the_next_of_a_key_is_ready_once_the_head_is_removed_or_dead(store: Store) -> None:
    first, second, _ = send(store, "a", "b", "c", key="k")
    store.delete_message("q", first)
    assert store.message("q", second).state is State.READY
    store.dead_letter("q", second, "poison")
    assert take(store, 5) == ["c"]


def test_a_message_dead_lettered_by_its_id_gives_the_reason(store: Store) -> None:
    (number,) = send(store, "a")
    store.dead_letter("q", number, "looked wrong")
    (letter,) = store.peek("q.dead")
    attributes = json.loads(letter.fields or "")["attributes"]
    assert (attributes["dead_letter_reason"], attributes["dead_letter_id"]) == ("looked wrong", str(number))
    assert (stats(store).dead, peek(store)) == (1, [])


def test_a_message_removed_by_its_id_leaves_room(store: Store) -> None:
    configure(store, max_messages=1)
    (number,) = send(store, "a")
    store.delete_message("q", number)
    send(store, "b")
    assert (stats(store).acked, stats(store).expired, peek(store)) == (0, 0, ["b"])
