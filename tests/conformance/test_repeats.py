"""Test that duplicates count once: dedup_ids of messages, Idempotency-Keys of requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from storage.errors import IdempotencyMismatch, QueueFull, QueueNotFound
from storage.model import IdempotencyKey, Receive
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take, texts

ONCE = IdempotencyKey("key", b"the request")


def test_a_second_message_with_the_same_dedup_id_is_not_stored(store: Store) -> None:
    first = send(store, "a", dedup_id="1")
    assert send(store, "b", dedup_id="1") == first
    assert send(store, "c", dedup_id="2") != first
    assert peek(store) == ["a", "c"]
    assert stats(store).sent == 2


def test_a_dedup_id_is_remembered_after_the_message_is_deleted(store: Store) -> None:
    first = send(store, "a", dedup_id="1")
    assert take(store) == ["a"]
    assert send(store, "a", dedup_id="1") == first
    assert peek(store) == []


def test_a_dedup_id_is_forgotten_after_the_queues_window(store: Store, clock: FakeClock) -> None:
    configure(store, dedup_window=60)
    first = send(store, "a", dedup_id="1")
    clock.advance(59.999)
    assert send(store, "b", dedup_id="1") == first
    clock.advance(0.001)
    second = send(store, "c", dedup_id="1")
    assert second > first
    assert send(store, "d", dedup_id="1") == second
    assert peek(store) == ["a", "c"]


def test_a_dedup_id_twice_in_one_batch_is_stored_once(store: Store) -> None:
    ids = store.send(
        "q", [new("a", dedup_id="1"), new("b"), new("c", dedup_id="1"), new("d", dedup_id="2"), new("b")]
    ).ids
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4
    assert [(message.id, message.text) for message in store.peek("q")] == [
        (ids[0], "a"), (ids[1], "b"), (ids[3], "d"), (ids[4], "b"),
    ]  # fmt: skip


def test_a_batch_can_contain_messages_with_known_dedup_ids(store: Store) -> None:
    (known,) = send(store, "a", dedup_id="1")
    ids = store.send("q", [new("new"), new("again", dedup_id="1"), new("b", dedup_id="2")]).ids
    assert ids[1] == known
    assert peek(store) == ["a", "new", "b"]


def test_a_batch_can_end_with_a_message_with_a_known_dedup_id(store: Store) -> None:
    (known,) = send(store, "a", dedup_id="1")
    ids = store.send("q", [*[new("plain")] * 20, new("again", dedup_id="1")]).ids
    assert ids == [message.id for message in store.peek("q")[1:]] + [known]
    assert stats(store).sent == 21


def test_a_duplicate_holds_up_no_other_message_of_its_key(store: Store) -> None:
    send(store, "a", dedup_id="1")
    take(store)
    store.send("q", [new("again", key="k", dedup_id="1"), new("b", key="k", dedup_id="2"), new("c", key="k")])
    assert (stats(store).ready, stats(store).blocked) == (1, 1)
    assert [take(store), take(store)] == [["b"], ["c"]]


def test_a_dedup_id_counts_in_its_own_queue(store: Store) -> None:
    send(store, "a", dedup_id="1", queue="one")
    send(store, "b", dedup_id="1", queue="two")
    assert peek(store, queue="two") == ["b"]


@pytest.mark.parametrize("pair", [("a", "A"), ("a", "a "), ("1", "01"), ("a\0", "a\0b"), ("é", "e\u0301"), ("0", "a")])
def test_dedup_ids_are_the_same_only_when_every_character_is(store: Store, pair: tuple[str, str]) -> None:
    send(store, "first", dedup_id=pair[0])
    send(store, "second", dedup_id=pair[1])
    send(store, "first again", dedup_id=pair[0])
    assert peek(store) == ["first", "second"]


def test_a_duplicate_is_accepted_by_a_full_queue(store: Store) -> None:
    configure(store, max_messages=1)
    first = send(store, "a", dedup_id="1")
    assert send(store, "a", dedup_id="1") == first
    with pytest.raises(QueueFull):
        send(store, "b", dedup_id="2")
    take(store)
    send(store, "b", dedup_id="2")
    assert peek(store) == ["b"]


def test_one_of_two_concurrent_messages_with_one_dedup_id_is_stored(open_again: Callable[[], Store]) -> None:
    stores = [open_again(), open_again()]
    for name in "0123456789":
        ids = in_threads([partial(send, at, "a", dedup_id=name) for at in stores * 4])
        assert len({str(answer) for answer in ids}) == 1
    assert stats(stores[0]).sent == 10


def test_a_repeated_send_answers_as_the_first_did_and_stores_nothing(store: Store) -> None:
    batch = [new("a"), new("b", dedup_id="1"), new("c", dedup_id="1"), new("d")]
    first = store.send("q", batch, ONCE)
    take(store, 2)
    assert store.send("q", batch, ONCE) == first
    assert peek(store) == ["d"]
    assert stats(store).sent == 3


def test_one_of_two_concurrent_sends_with_one_idempotency_key_is_stored(open_again: Callable[[], Store]) -> None:
    stores = [open_again(), open_again()]
    answers = in_threads([partial(at.send, "q", [new("a"), new("b")], ONCE) for at in stores * 4])
    assert len({str(answer) for answer in answers}) == 1
    assert peek(stores[0]) == ["a", "b"]


def test_a_repeated_plain_read_gets_the_same_message_again(store: Store) -> None:
    send(store, "a", "b", "c")
    ask = Receive(("q",), 2)
    first = store.receive(ask, ONCE)
    assert [message.text for message in first] == ["a", "b"]
    assert store.receive(ask, ONCE) == first
    assert peek(store) == ["c"]


def test_a_repeated_leased_read_gets_the_same_receipts_again(store: Store) -> None:
    send(store, "a", "b")
    ask = Receive(("q",), lease=30)
    first = store.receive(ask, ONCE)
    assert store.receive(ask, ONCE) == first
    assert (stats(store).leased, stats(store).received) == (1, 1)
    store.settle(first[0].receipt or "")
    assert peek(store) == ["b"]


def test_a_read_that_found_nothing_may_find_something_when_repeated(store: Store) -> None:
    configure(store)
    assert store.receive(Receive(("q",)), ONCE) == []
    send(store, "a")
    assert [message.text for message in store.receive(Receive(("q",)), ONCE)] == ["a"]


def test_a_repeated_read_of_several_queues_gets_the_same_despite_newer_messages(store: Store) -> None:
    configure(store, "a")
    send(store, "b1", "b2", queue="b")
    ask = Receive(("a", "b", "not there yet"), 2)
    first = store.receive(ask, ONCE)
    assert [message.text for message in first] == ["b1", "b2"]
    send(store, "a1", "a2", queue="a")
    send(store, "c", queue="not there yet")
    assert store.receive(ask, ONCE) == first
    assert peek(store, queue="a") == ["a1", "a2"]


def test_a_repeated_transaction_answers_as_the_first_did_and_does_nothing(store: Store) -> None:
    send(store, "in", "next")
    held = lease_one(store)

    def step() -> object:
        return store.transact([held.receipt], [("out", new("result"))], Receive(("q",), lease=30), ONCE)

    first = step()
    assert step() == first
    assert peek(store, queue="out") == ["result"]
    assert (stats(store).leased, stats(store).acked) == (1, 1)


def test_a_repeated_transaction_that_had_to_wait_gets_the_same_messages(store: Store) -> None:
    configure(store)
    ask = Receive(("q",), lease=30, wait=10)
    waiting = [lambda: store.transact([], [("out", new("x"))], ask, ONCE), lambda: send(store, "a", "b")]
    first, _ = in_threads(waiting)
    assert store.transact([], [("out", new("x"))], ask, ONCE) == first
    assert stats(store).leased == 1


@pytest.mark.parametrize("verb", ["send", "receive", "transact"])
def test_a_key_used_again_for_another_request_is_a_mismatch_and_does_nothing(store: Store, verb: str) -> None:
    send(store, "a", "b")
    verbs: dict[str, Callable[[IdempotencyKey], object]] = {
        "send": lambda once: store.send("q", [new("c")], once),
        "receive": lambda once: store.receive(Receive(("q",)), once),
        "transact": lambda once: store.transact([], [("q", new("c"))], None, once),
    }
    verbs[verb](ONCE)
    before = stats(store)
    with pytest.raises(IdempotencyMismatch):
        verbs[verb](IdempotencyKey(ONCE.key, b"another request"))
    assert stats(store) == before


@pytest.mark.parametrize("window", [60, 300])
def test_an_idempotency_key_is_forgotten_after_the_window(store: Store, clock: FakeClock, window: int) -> None:
    configure(store, dedup_window=window)
    store.send("q", [new("a")], ONCE)
    clock.advance(window - 0.001)
    store.send("q", [new("a")], ONCE)
    assert stats(store).sent == 1
    clock.advance(0.001)
    store.send("q", [new("b")], IdempotencyKey(ONCE.key, b"another request"))
    assert peek(store) == ["a", "b"]


def test_a_failed_request_is_done_when_it_is_repeated(store: Store) -> None:
    configure(store, max_messages=1)
    send(store, "a")
    with pytest.raises(QueueFull):
        store.send("q", [new("b")], ONCE)
    take(store)
    store.send("q", [new("b")], ONCE)
    assert peek(store) == ["b"]


def test_a_recreated_queue_remembers_nothing(store: Store) -> None:
    store.send("q", [new("a", dedup_id="1")], ONCE)
    store.delete_queue("q")
    assert store.send("q", [new("a", dedup_id="1")], IdempotencyKey(ONCE.key, b"another request"))
    assert peek(store) == ["a"]


def test_repeats_are_known_after_a_restart(open_again: Callable[[], Store]) -> None:
    first = open_again().send("q", [new("a", dedup_id="1")], ONCE)
    again = open_again()
    assert again.send("q", [new("a", dedup_id="1")], ONCE) == first
    assert send(again, "a", dedup_id="1") == first.ids
    assert stats(again).sent == 1


def test_a_send_reports_which_messages_a_known_dedup_id_suppressed(store: Store) -> None:
    known = send(store, "a", dedup_id="1")
    batch = [new("b"), new("c", dedup_id="1"), new("d", dedup_id="2"), new("e", dedup_id="2"), new("f")]
    sent = store.send("q", batch, ONCE)
    assert (sent.ids[1:2], sent.duplicates) == (known, [1, 3])
    assert store.send("q", batch, ONCE) == sent
    assert store.send("q", [new("g")]).duplicates == []


def test_a_transaction_reports_which_messages_were_suppressed_by_their_place_in_it(store: Store) -> None:
    send(store, "a", dedup_id="1", queue="z")
    sends = [("z", new("b")), ("y", new("c", dedup_id="1")), ("z", new("d", dedup_id="1")), ("y", new("e"))]
    done = store.transact([], sends, None, ONCE)
    assert list(done.duplicates) == [2]
    assert store.transact([], sends, None, ONCE) == done
    assert (peek(store, queue="z"), peek(store, queue="y")) == (["a", "b"], ["c", "e"])


def test_a_purge_forgets_only_the_dedup_ids_of_the_messages_it_removes(store: Store) -> None:
    gone, there = send(store, "gone", dedup_id="gone"), send(store, "a", "b", dedup_id="there")
    assert take(store) == ["gone"]
    store.purge("q")
    assert send(store, "again", dedup_id="gone") == gone
    assert send(store, "anew", dedup_id="there") != there
    assert peek(store) == ["anew"]


def test_a_purge_also_forgets_the_dedup_ids_of_redriven_messages(store: Store) -> None:
    names = ["1", "2", "a\0b"]
    store.send("q", [new("never died"), *(new(name, dedup_id=name) for name in names), new("4")])
    for _ in range(2):
        for held in lease(store, 5):
            store.reject(held.receipt)
        store.reject(lease_one(store, queue="q.dead").receipt)
        assert store.redrive("q.dead.dead") + store.redrive("q") == 6
    there = {message.text: message.id for message in store.peek("q")}
    assert [send(store, "again", dedup_id=name) for name in names] == [[there[name]] for name in names]
    assert store.purge("q") == 5
    sent = store.send("q", [new(name, dedup_id=name) for name in names])
    assert sent.duplicates == []
    assert peek(store) == names


def test_a_purge_of_redriven_messages_keeps_dedup_ids_that_newer_messages_use(store: Store, clock: FakeClock) -> None:
    configure(store, dedup_window=60)
    send(store, "dead", dedup_id="1")
    store.reject(lease_one(store).receipt)
    clock.advance(60)
    other = send(store, "other", dedup_id="1")
    assert take(store) == ["other"]
    store.redrive("q")
    store.purge("q")
    assert send(store, "other", dedup_id="1") == other


def test_a_purge_of_a_dead_letter_queue_forgets_no_dedup_id_of_another(store: Store) -> None:
    first = send(store, "a", dedup_id="1")
    store.reject(lease_one(store).receipt)
    store.purge("q.dead")
    assert send(store, "a", dedup_id="1") == first


def test_a_repeated_leased_read_gets_the_rest_of_a_batch(store: Store) -> None:
    send(store, *map(str, range(250)))
    ask = Receive(("q",), 250, 30)
    first = store.receive(ask, ONCE)
    assert store.receive(ask, ONCE) == first
    store.settle(str(first[7].receipt))
    again = store.receive(ask, ONCE)
    assert list(again) == [*first[:7], *first[8:]]
    assert store.ack([str(message.receipt) for message in again]).acked == 249


def test_a_repeated_leased_read_gets_a_batch_and_the_messages_before_and_after_it(store: Store) -> None:
    sent = ["before", *map(str, range(100)), "after"]
    send(store, sent[0], key="a")
    send(store, *sent[1:-1])
    send(store, sent[-1], key="b")
    ask = Receive(("q",), 102, 30)
    first = store.receive(ask, ONCE)
    assert texts(first) == sent
    assert store.receive(ask, ONCE) == first


def test_a_repeated_leased_read_gets_nothing_that_another_reader_leased_since(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b")
    ask = Receive(("q",), 2, 10)
    store.receive(ask, ONCE)
    clock.advance(10)
    lease_one(store)
    assert [message.text for message in store.receive(ask, ONCE)] == ["b"]


def _held(store: Store) -> list[str]:
    return [held.receipt for held in lease(store, 2)]


def _dead(store: Store) -> None:
    for receipt in _held(store):
        store.reject(receipt)


def _id(store: Store) -> int:
    return store.peek("q")[0].id


# The preparation, and the change that is repeated.
CHANGES: dict[str, tuple[Callable[[Store], Any], Callable[[Store, Any, IdempotencyKey], object]]] = {
    "settle": (_held, lambda store, held, once: store.settle(held[0], "q", once)),
    "ack": (_held, lambda store, held, once: store.ack([*held, "nonsense"], None, once)),
    "extend": (_held, lambda store, held, once: store.extend(held[0], 60, None, once)),
    "extend_many": (_held, lambda store, held, once: store.extend_many([*held, "nonsense"], 60, None, once)),
    "release": (_held, lambda store, held, once: store.release(held[0], 0, None, once)),
    "reject": (_held, lambda store, held, once: store.reject(held[0], "why", None, once)),
    "delete_message": (_id, lambda store, number, once: store.delete_message("q", number, once)),
    "reschedule": (_id, lambda store, number, once: store.reschedule("q", number, 60, once)),
    "dead_letter": (_id, lambda store, number, once: store.dead_letter("q", number, "why", once)),
    "configure": (
        lambda store: store.queue("q").version,
        lambda store, version, once: store.configure("q", {"lease": 9}, version, once).settings,
    ),
    "delete_queue": (_held, lambda store, _, once: store.delete_queue("q", once)),
    "purge": (_held, lambda store, _, once: store.purge("q", once)),
    "redrive": (_dead, lambda store, _, once: store.redrive("q", 1, once=once)),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_every_change_is_made_once_and_answered_alike_when_it_is_repeated(
    store: Store, clock: FakeClock, verb: str
) -> None:
    send(store, "a", "b", "c", attributes={"n": 1})
    prepare, change = CHANGES[verb]
    prepared = prepare(store)
    first = change(store, prepared, ONCE)
    send(store, "later")
    before = [store.queue(queue.name) for queue in store.queues()]
    clock.advance(5)
    assert change(store, prepared, ONCE) == first
    assert [queue._replace(stats=queue.stats._replace(oldest_age=0)) for queue in store.queues()] == [
        queue._replace(stats=queue.stats._replace(oldest_age=0)) for queue in before
    ]
    with pytest.raises(IdempotencyMismatch):
        change(store, prepared, IdempotencyKey(ONCE.key, b"another request"))


def test_a_change_that_was_refused_is_not_remembered(store: Store) -> None:
    with pytest.raises(QueueNotFound):
        store.purge("q", ONCE)
    send(store, "a")
    assert store.purge("q", ONCE) == 1


def test_with_content_as_dedup_id_the_same_text_is_stored_once(store: Store, clock: FakeClock) -> None:
    configure(store, dedup_content=True, dedup_window=60)
    sent = store.send("q", [new("a"), new("b", attributes={"n": 1}), new("a", attributes={"n": 2}), *[new("c")] * 20])
    assert sent.duplicates == [2, *range(4, 23)]
    assert [sent.ids[place] for place in (2, 4)] == [sent.ids[0], sent.ids[3]]
    assert peek(store) == ["a", "b", "c"]
    assert send(store, "a", dedup_id="another") != [sent.ids[0]]
    hashed = hashlib.sha256(b"b").hexdigest()
    assert send(store, "not b", dedup_id=hashed) == [sent.ids[1]]
    assert all("dedup_id" not in (message.fields or "") for message in store.peek("q", limit=3))
    clock.advance(60)
    assert send(store, "a") != [sent.ids[0]]


def test_a_purge_forgets_content(store: Store) -> None:
    configure(store, dedup_content=True)
    send(store, *map(str, range(20)))
    store.purge("q")
    assert store.send("q", [new(str(number)) for number in range(20)]).duplicates == []


def test_with_the_key_as_scope_each_key_has_its_own_dedup_ids(store: Store) -> None:
    configure(store, dedup_scope="key")
    batch = [new("a", key="1", dedup_id="d"), new("b", key="2", dedup_id="d"), new("c", dedup_id="d")]
    first = store.send("q", batch)
    assert first.duplicates == []
    again = store.send("q", [*batch, new("e", key="2", dedup_id="e"), new("f", key="2", dedup_id="e")])
    assert again.duplicates == [0, 1, 2, 4]
    assert again.ids == [*first.ids, again.ids[3], again.ids[3]]
    assert peek(store) == ["a", "b", "c", "e"]


def test_with_the_queue_as_scope_keys_share_their_dedup_ids(store: Store) -> None:
    (first,) = send(store, "a", key="1", dedup_id="d")
    assert store.send("q", [new("b", key="2", dedup_id="d")]) == ([first], [0])


def test_a_redriven_message_keeps_the_dedup_id_of_its_key(store: Store) -> None:
    configure(store, dedup_scope="key")
    send(store, "a", key="1", dedup_id="d")
    (other,) = send(store, "b", key="2", dedup_id="d")
    store.reject(lease_one(store).receipt)
    store.redrive("q")
    ids = {message.text: message.id for message in store.peek("q")}
    assert store.send("q", [new("c", key="1", dedup_id="d"), new("c", key="2", dedup_id="d")]).ids == [ids["a"], other]
