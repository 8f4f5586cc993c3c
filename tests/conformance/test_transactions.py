"""Test several acks, sends and a read in one commit: all of it or nothing."""

from __future__ import annotations

from functools import partial

import pytest

from storage.errors import QueueFull, StaleReceipt
from storage.model import Receive, Transacted
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, lease_one, new, peek, send, stats, take


def test_a_worker_acks_its_input_and_sends_its_output(store: Store) -> None:
    send(store, "in", queue="input")
    held = lease_one(store, queue="input")
    done = store.transact([held.receipt], [("output", new("out")), ("log", new("line")), ("output", new("more"))])
    assert done.messages == []
    assert peek(store, queue="input") == []
    assert [(message.id, message.text) for message in store.peek("output")] == [
        (done.ids[0], "out"), (done.ids[2], "more"),
    ]  # fmt: skip
    assert [message.id for message in store.peek("log")] == [done.ids[1]]


def test_a_transaction_with_a_stale_receipt_does_nothing(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b")
    stale, good = lease_one(store, seconds=1), lease_one(store)
    clock.advance(1)
    lease_one(store)
    before = stats(store)
    with pytest.raises(StaleReceipt, match="leased again"):
        store.transact([good.receipt, stale.receipt], [("q", new("c")), ("made by it", new("d"))])
    assert stats(store) == before
    assert [queue.name for queue in store.queues()] == ["q"]


@pytest.mark.parametrize("missing", ["garbled", "nowhere~1~1", "acked"])
def test_a_transaction_with_a_missing_receipt_does_nothing(store: Store, missing: str) -> None:
    send(store, "a", "b")
    good, acked = lease(store, 2)
    store.settle(acked.receipt)
    with pytest.raises(StaleReceipt, match="no such message") as fault:
        store.transact([good.receipt, acked.receipt if missing == "acked" else missing], [("q", new("c"))])
    assert fault.value.index == 1
    assert peek(store) == ["a"]


def test_a_transaction_with_a_full_queue_does_nothing(store: Store) -> None:
    send(store, "a")
    held = lease_one(store)
    configure(store, "full", max_messages=1)
    with pytest.raises(QueueFull) as fault:
        store.transact([held.receipt], [("out", new("b")), ("full", new("c")), ("full", new("d"))])
    assert fault.value.queue == "full"
    assert (peek(store), peek(store, queue="out"), peek(store, queue="full")) == (["a"], [], [])


def test_an_ack_frees_the_space_that_the_same_transaction_fills(store: Store) -> None:
    configure(store, max_messages=1)
    send(store, "a")
    store.transact([lease_one(store).receipt], [("q", new("b"))])
    assert peek(store) == ["b"]


def test_the_next_messages_come_with_the_same_commit(store: Store, clock: FakeClock) -> None:
    send(store, "a1", "a2", key="a")
    held = lease_one(store)
    done = store.transact([held.receipt], [("q", new("b"))], Receive(("q",), 10, 30))
    assert [message.text for message in done.messages] == ["a2", "b"]
    assert {message.leased_until for message in done.messages} == {clock.now() + 30_000}
    assert store.ack([message.receipt or "" for message in done.messages]).acked == 2


def test_without_next_messages_the_rest_of_the_transaction_is_done(store: Store) -> None:
    send(store, "a")
    done = store.transact([lease_one(store).receipt], [("out", new("b"))], Receive(("q",), 10, 30))
    assert (len(done.ids), done.messages) == (1, [])
    assert peek(store, queue="out") == ["b"]


def test_a_reader_that_disconnected_gets_no_messages_but_its_acks_are_done(store: Store) -> None:
    send(store, "a", "b")
    held = lease_one(store)
    done = store.transact([held.receipt], [], Receive(("q",), 10, 30), present=lambda: False)
    assert done.messages == []
    assert (stats(store).acked, stats(store).ready) == (1, 1)


def test_a_receipt_named_twice_is_settled_once(store: Store) -> None:
    send(store, "a")
    held = lease_one(store)
    store.transact([held.receipt, held.receipt], [])
    assert (stats(store).acked, stats(store).leased) == (1, 0)


def test_an_empty_transaction_does_nothing(store: Store) -> None:
    assert store.transact([], []) == Transacted([], [])


def test_two_workers_with_one_input_send_one_output(store: Store) -> None:
    for number in range(10):
        send(store, str(number))
        receipt = lease_one(store).receipt
        in_threads([partial(store.transact, [receipt], [("out", new("x"))])] * 4)
        assert take(store, 10, queue="out") == ["x"]
