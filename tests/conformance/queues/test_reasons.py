"""Test how the dead letters of a queue are counted by their reasons."""

from __future__ import annotations

import pytest

from storage.errors import QueueNotFound
from storage.model import rfc3339
from storage.store import Reason, Reasons, Store
from tests.conformance.queues.test_peeks import die
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease_one, send


def test_dead_letters_are_counted_by_their_latest_reason_at_either_end(store: Store, clock: FakeClock) -> None:
    first = rfc3339(clock.now())
    die(store, "bad", "worse", "bad \0 🙂")
    clock.advance(5)
    later = rfc3339(clock.now())
    die(store, "bad")
    send(store, "no dead letter", queue="q.dead")
    expected = Reasons(
        [Reason("bad", 2, first, later), Reason("bad \0 🙂", 1, first, first), Reason("worse", 1, first, first)], True
    )
    assert store.reasons("q.dead") == store.reasons("q") == expected


def test_either_end_counts_only_its_own_dead_letters(store: Store) -> None:
    for queue in ("a", "b"):
        configure(store, queue, dead_letter_queue="morgue")
        die(store, f"of {queue}", queue=queue)
    assert [one.reason for one in store.reasons("morgue").reasons] == ["of a", "of b"]
    assert [one.reason for one in store.reasons("b").reasons] == ["of b"]
    store.reject(lease_one(store, queue="morgue").receipt, "twice")
    assert [one.reason for one in store.reasons("morgue.dead").reasons] == ["twice"]
    assert [one.reason for one in store.reasons("morgue").reasons] == ["of b", "twice"]
    assert store.reasons("a") == ([], True)


def test_a_queue_that_does_not_exist_has_no_reasons(store: Store) -> None:
    die(store, "bad")
    with pytest.raises(QueueNotFound):
        store.reasons("none")
    store.delete_queue("q.dead")
    assert store.reasons("q") == ([], True)
    store.delete_queue("q")
    with pytest.raises(QueueNotFound):
        store.reasons("q")


def test_only_the_newest_dead_letters_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"storage.{module}.inspection.MAX_LOOKED", 3)
    die(store, *"abc")
    assert [one.reason for one in store.reasons("q").reasons] == ["a", "b", "c"]
    assert store.reasons("q").complete
    die(store, "d")
    for queue in ("q", "q.dead"):
        found = store.reasons(queue)
        assert ([one.reason for one in found.reasons], found.complete) == (["b", "c", "d"], False)


def test_only_some_bytes_of_their_histories_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"storage.{module}.inspection.MAX_LOOKED_BYTES", 1_500)
    die(store, *[letter * 1_000 for letter in "abc"])
    found = store.reasons("q")
    assert ([one.reason[0] for one in found.reasons], found.complete) == (["b", "c"], False)


def test_only_the_most_frequent_reasons_are_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.store.MAX_REASONS", 2)
    die(store, *"abcbcc")
    found = store.reasons("q")
    assert [(one.reason, one.dead_letters) for one in found.reasons] == [("c", 3), ("b", 2)]
    assert not found.complete
