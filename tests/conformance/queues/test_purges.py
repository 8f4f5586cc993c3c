"""Test that a purge removes only the messages it was asked to remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from storage.errors import QueueNotFound
from storage.model import IdempotencyKey
from storage.store import Engine, Store
from tests.conformance.queues.test_peeks import die
from tests.conformance.test_meanwhile import AfterNextTransaction
from tests.support.shorthand import lease, lease_one, new, peek, send, stats, take


@pytest.mark.parametrize("fields", [{}, {"priority": 1}], ids=["packed", "single"])
def test_a_purge_of_ids_removes_only_these_and_leased_ones_too(store: Store, fields: dict[str, Any]) -> None:
    names = [f"{number:02}" for number in range(20)]
    ids = send(store, *names, **fields)
    lease(store, 3)
    assert store.purge("q", ids=[ids[1], ids[7], ids[7], 10**9]) == 2
    assert peek(store) == [name for name in names if name not in ("01", "07")]
    assert (stats(store).ready, stats(store).leased, stats(store).dead) == (16, 2, 0)
    assert store.purge("q", ids=[ids[1]]) == 0
    assert store.purge("q", ids=[]) == 0


def test_a_purge_of_ids_leaves_messages_of_other_queues(store: Store) -> None:
    mine = send(store, *map(str, range(10)))
    other = send(store, *map(str, range(10)), queue="other")
    assert store.purge("q", ids=[*mine[:2], *other[:2]]) == 2
    assert len(peek(store, queue="other")) == 10
    with pytest.raises(QueueNotFound):
        store.purge("none", ids=mine)


def test_a_purge_of_a_reason_removes_dead_letters_whose_latest_reason_it_is(store: Store) -> None:
    die(store, "bad", "worse", "bad \0 'input' 🙂", "bad")
    send(store, "bad", queue="q.dead")
    lease_one(store, queue="q.dead")
    assert store.purge("q.dead", reason="bad") == 2
    assert peek(store, queue="q.dead") == ["worse", "bad \0 'input' 🙂", "bad"]
    assert store.purge("q", reason="worse") == 0  # only the queue in which they lie
    assert store.purge("q.dead", reason="bad \0 'input' 🙂") == 1
    assert stats(store).dead == 1


def test_a_purge_of_ids_and_a_reason_removes_what_has_both(store: Store) -> None:
    die(store, "bad", "worse", "bad")
    first, second, _ = (message.id for message in store.peek("q.dead"))
    assert store.purge("q.dead", ids=[first, second], reason="bad") == 1
    assert peek(store, queue="q.dead") == ["worse", "bad"]


def test_a_purge_of_ids_forgets_their_dedup_ids_and_lets_the_next_of_a_key_go_on(store: Store) -> None:
    first, second = store.send("q", [new("a", dedup_id="1", key="k"), new("b", dedup_id="2", key="k")]).ids
    assert store.purge("q", ids=[first]) == 1
    assert store.send("q", [new("a", dedup_id="1"), new("b", dedup_id="2")]).duplicates == [1]
    assert take(store, 5) == ["b", "a"]
    assert second


def test_a_purge_continues_over_many_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sqlite.queues.MOVED", 3)
    monkeypatch.setattr("storage.sqlite.queues.UNPACKED", 2)
    die(store, *"abcabcabca")
    assert store.purge("q.dead", reason="b") == 3
    assert peek(store, queue="q.dead") == list("acacaca")
    for letter in "xyzvw":
        store.send("packed", [new(letter)] * 10)
    ids = [message.id for message in store.peek("packed")]
    assert store.purge("packed", ids=ids[1:50:3]) == 17
    assert [message.id for message in store.peek("packed")] == [id for id in ids if id not in ids[1:50:3]]


def test_a_purge_of_a_reason_leaves_dead_letters_that_died_after_it_began(
    open_again: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.queues.MOVED", 2)
    store, other = open_again(), open_again()
    die(store, "bad", "bad", "worse", "bad")

    def visit() -> None:
        die(other, "bad", "bad")
        other.delete_message("q.dead", other.peek("q.dead", limit=1)[0].id)

    meanwhile = AfterNextTransaction(visit)
    store.observe(meanwhile)
    purged = store.purge("q.dead", reason="bad")
    assert meanwhile.done
    left = peek(store, queue="q.dead")
    assert (left[-2:], len(left) + purged) == (["bad", "bad"], 5)
    assert stats(store, "q.dead").ready == len(left)


def test_a_purge_of_large_messages_continues_over_many_steps(store: Store) -> None:
    ids = send(store, *["x" * 8_000_000] * 6)
    assert store.purge("q", ids=ids[1:]) == 5
    assert len(peek(store)) == 1


def test_a_repeated_purge_of_a_reason_removes_nothing_more(store: Store) -> None:
    die(store, "bad")
    once = IdempotencyKey("key", b"")
    assert store.purge("q.dead", once, reason="bad") == 1
    die(store, "bad")
    assert store.purge("q.dead", once, reason="bad") == 1
    assert peek(store, queue="q.dead") == ["bad"]
