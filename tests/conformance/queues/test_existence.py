"""Test which queues exist: those that a call may create, their names, their times and the store's identity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from storage.errors import InvalidInput, PreconditionFailed, QueueNotFound
from storage.model import QueueSettings, Receive
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, new, send, take, texts


def test_a_send_that_must_not_create_its_queue_needs_one(store: Store) -> None:
    with pytest.raises(QueueNotFound):
        store.send("q", [new("a")], create=False)
    assert store.names() == []
    configure(store)
    store.send("q", [new("b")], create=False)
    store.delete_queue("q")
    with pytest.raises(QueueNotFound):
        store.send("q", [new("c")], create=False)
    assert store.names() == []


def test_a_read_of_queues_that_must_exist_needs_each(store: Store) -> None:
    send(store, "a")
    with pytest.raises(QueueNotFound) as fault:
        store.receive(Receive(("q", "other"), must_exist=True))
    assert fault.value.queue == "other"
    with pytest.raises(QueueNotFound):
        store.transact([], [("q", new("b"))], Receive(("other",), lease=30, must_exist=True))
    assert texts(store.receive(Receive(("q",), 5, must_exist=True))) == ["a"]


def test_version_0_configures_only_a_queue_that_does_not_exist(store: Store) -> None:
    configure(store, version=0, lease=5)
    with pytest.raises(PreconditionFailed):
        configure(store, version=0, lease=6)
    assert store.settings("q").lease == 5
    store.delete_queue("q")
    configure(store, version=0, lease=7)
    assert store.settings("q").lease == 7


def test_one_of_eight_clients_creates_the_queue(open_again: Callable[[], Store]) -> None:
    stores = [open_again(), open_again()]
    outcomes = in_threads([partial(configure, store, version=0, max_receives=1) for store in stores * 4])
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 7
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1


def test_names_are_listed_in_pages_by_prefix(store: Store) -> None:
    for name in ("a", "b-1", "b-2", "b.3", "c", "_x", "-y"):
        configure(store, name)
    assert store.names() == [queue.name for queue in store.queues()]
    assert store.names("b") == ["b-1", "b-2", "b.3"]
    assert store.names("b", after="b-1", limit=1) == ["b-2"]


def test_settings_are_read_without_the_queue(store: Store) -> None:
    with pytest.raises(QueueNotFound):
        store.settings("q")
    send(store, "a")
    assert store.settings("q") == QueueSettings()
    configure(store, tags={"a": "b"})
    assert store.settings("q").tags == {"a": "b"}


def test_the_sources_of_a_dead_letter_queue_are_found(store: Store) -> None:
    configure(store, "a", dead_letter_queue="graves")
    configure(store, "b", dead_letter_queue="graves")
    configure(store, "c")
    configure(store, "d", dead_letter_queue="c.dead")
    assert store.sources("graves") == ["a", "b"]
    assert store.sources("graves", after="a", limit=1) == ["b"]
    assert store.sources("c.dead") == ["c", "d"]
    assert store.sources("a.dead") == []
    configure(store, "a", dead_letter_queue=None)
    assert (store.sources("graves"), store.sources("a.dead")) == (["b"], ["a"])


@pytest.mark.parametrize("name", ["_", "-", "_a", "-a.fifo", "--"])
def test_a_name_may_begin_with_a_dash_or_an_underscore(store: Store, name: str) -> None:
    send(store, "a", queue=name)
    (message,) = store.receive(Receive((name,), lease=30))
    store.settle(str(message.receipt))
    assert take(store, queue=name) == []


def test_a_queue_knows_when_it_was_created_and_changed(store: Store, clock: FakeClock) -> None:
    created = clock.now()
    send(store, "a")
    clock.advance(10)
    changed = clock.now()
    configure(store, lease=5)
    clock.advance(10)
    send(store, "b")
    assert (store.queue("q").created_at, store.queue("q").modified_at) == (created, changed)


def test_the_store_keeps_its_identity(open_again: Callable[[], Store]) -> None:
    identity = open_again().identity
    assert len(identity) == 16
    assert open_again().identity == identity


def test_a_text_over_max_message_bytes_is_refused_with_its_batch(store: Store) -> None:
    configure(store, max_message_bytes=4)
    with pytest.raises(InvalidInput) as fault:
        send(store, "1", "12345")
    assert fault.value.field == "text"
    with pytest.raises(InvalidInput):
        store.transact([], [("other", new("a")), ("q", new("ééé"))])
    send(store, "1234", "éé", attributes={"long": "attribute"})
    assert take(store, 5) == ["1234", "éé"]
    assert take(store, queue="other") == []


def test_the_key_lock_changes_only_while_the_queue_is_empty(store: Store) -> None:
    send(store, "a")
    with pytest.raises(InvalidInput) as fault:
        configure(store, key_lock="head")
    assert fault.value.field == "key_lock"
    assert take(store) == ["a"]
    configure(store, key_lock="head")
    send(store, "b")
    configure(store, key_lock="head", lease=5)
