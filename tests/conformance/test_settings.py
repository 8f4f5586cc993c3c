"""Test a queue's settings: stored, versioned, and the limits they set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from storage.errors import InvalidInput, PreconditionFailed, QueueFull
from storage.model import IdempotencyKey, QueueSettings, Receive
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease_one, new, peek, send, stats, take, until

SETTINGS: dict[str, Any] = {
    "lease": 5.5,
    "max_receives": 3,
    "dead_letter_queue": "graves",
    "retention": 86_400.0,
    "max_messages": 7,
    "max_bytes": 700,
    "dedup_window": 0.5,
    "dead_letter_expired": True,
    "paused": True,
    "delay": 2.5,
    "expires": 3_600.0,
    "wait": 20.0,
    "max_message_bytes": 1_024,
    "dedup_content": True,
    "dedup_scope": "key",
    "key_lock": "head",
    "sqs": {"Policy": '{"Version": "2012-10-17"}'},
    "tags": {"team": "é", "": ""},
}


def test_settings_are_kept_across_a_restart(open_again: Callable[[], Store]) -> None:
    queue = open_again().configure("q", SETTINGS)
    assert queue.settings == QueueSettings(**SETTINGS)
    assert open_again().queue("q") == queue


def test_a_new_queue_has_the_default_settings(store: Store) -> None:
    send(store, "a")
    assert store.queue("q").settings == QueueSettings()


def test_settings_not_named_stay_and_none_resets_one(store: Store) -> None:
    store.configure("q", SETTINGS)
    queue = store.configure("q", {"lease": None, "max_receives": 9})
    assert queue.settings == QueueSettings(**SETTINGS | {"lease": 30.0, "max_receives": 9})


def test_the_version_rises_only_with_a_change(store: Store) -> None:
    first = configure(store, max_receives=1)
    send(store, "a")
    assert store.queue("q").version == first.version
    assert configure(store, max_receives=2).version > first.version


def test_a_change_to_an_outdated_version_is_refused(store: Store) -> None:
    seen = configure(store, max_receives=1)
    configure(store, max_receives=2)
    with pytest.raises(PreconditionFailed):
        configure(store, version=seen.version, max_receives=3)
    assert store.queue("q").settings.max_receives == 2
    configure(store, version=store.queue("q").version, max_receives=3)
    assert store.queue("q").settings.max_receives == 3


def test_a_change_to_a_version_of_a_missing_queue_is_refused(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        configure(store, version=1)
    assert store.queues() == []


def test_one_of_eight_concurrent_changes_to_one_version_succeeds(store: Store) -> None:
    seen = configure(store)
    outcomes = in_threads([partial(configure, store, version=seen.version, max_receives=n) for n in range(8)])
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 7


def test_a_queue_cannot_be_its_own_dead_letter_queue(store: Store) -> None:
    with pytest.raises(InvalidInput) as fault:
        configure(store, dead_letter_queue="q")
    assert fault.value.field == "dead_letter_queue"
    assert store.queues() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("lease", -1), ("lease", "5"), ("max_receives", -1), ("max_receives", 1.5), ("max_receives", True),
     ("dead_letter_queue", "../x"), ("dead_letter_queue", 5), ("retention", 0), ("max_messages", 0), ("max_bytes", -1),
     ("dedup_window", -1), ("dedup_window", float("nan")), ("paused", 1), ("delay", -1), ("expires", 0),
     ("wait", 20.1), ("max_message_bytes", 0), ("dedup_content", "true"), ("dedup_scope", "message"), ("key_lock", []),
     ("sqs", "{}"), ("tags", {"team": 1}), ("tags", {"team": "\0"}), ("tags", {"\ud800": ""}),
     ("tags", {"team": "x" * 32_768}), ("no_such_setting", 1)],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name_and_changes_nothing(store: Store, name: str, value: object) -> None:
    before = configure(store, max_receives=2)
    with pytest.raises(InvalidInput) as fault:
        store.configure("q", {"max_receives": 5, name: value})
    assert fault.value.field == name
    assert store.queue("q") == before


def test_a_queue_accepts_exactly_max_messages(store: Store) -> None:
    configure(store, max_messages=3)
    send(store, "a", "b")
    with pytest.raises(QueueFull, match=r"2 of 3 messages \(max_messages\), and 2 more"):
        send(store, "c", "d")
    send(store, "c")
    with pytest.raises(QueueFull):
        send(store, "d")
    assert peek(store) == ["a", "b", "c"]


def test_leased_delayed_and_blocked_messages_count_for_the_limit(store: Store) -> None:
    configure(store, max_messages=4)
    store.send("q", [new("leased"), new("delayed", delay=60), new("head", key="k"), new("blocked", key="k")])
    held = lease_one(store)
    with pytest.raises(QueueFull):
        send(store, "no")
    store.settle(held.receipt)
    send(store, "yes")


def test_a_queue_accepts_exactly_max_bytes_of_utf8_and_fields(store: Store) -> None:
    with_fields = new("é", attributes={"a": "🙂"})
    configure(store, max_bytes=with_fields.size + 6)
    store.send("q", [with_fields])
    assert stats(store).bytes == with_fields.size
    size = with_fields.size
    with pytest.raises(QueueFull, match=rf"{size} of {size + 6} bytes \(max_bytes\), and 7 more"):
        send(store, "1234567")
    send(store, "éé\0" + "x")
    with pytest.raises(QueueFull):
        send(store, "x")
    send(store, "")
    assert stats(store).bytes == with_fields.size + 6


def test_sixteen_writers_at_once_fill_a_queue_to_the_last_place_and_no_further(
    open_again: Callable[[], Store],
) -> None:
    stores = [open_again(), open_again()]
    configure(stores[0], max_messages=25, max_bytes=100_000)

    def write(at: Store) -> int:
        stored = 0
        for size in (2, 1, 2, 1):
            with suppress(QueueFull):
                stored += len(at.send("q", [new("x")] * size).ids)
        return stored

    stored = in_threads([partial(write, at) for at in stores * 8])
    assert sum(count for count in stored if isinstance(count, int)) == len(peek(stores[0])) == 25


def test_sixteen_writers_at_once_fill_a_queue_to_the_last_byte_and_no_further(store: Store) -> None:
    configure(store, max_bytes=100)
    outcomes = in_threads([lambda: send(store, "0123456789")] * 16)
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 6
    assert stats(store).bytes == 100


def test_a_full_queue_accepts_dead_letters(store: Store) -> None:
    configure(store, "q.dead", max_messages=1)
    for text in ("a", "b"):
        send(store, text)
        store.reject(lease_one(store).receipt)
    assert peek(store, queue="q.dead") == ["a", "b"]


def test_a_paused_queue_delivers_nothing_and_accepts_writes(store: Store) -> None:
    send(store, "a", "b")
    held = lease_one(store)
    configure(store, paused=True)
    assert take(store) == []
    send(store, "c")
    store.extend(held.receipt, 60)
    store.settle(held.receipt)
    assert peek(store) == ["b", "c"]
    configure(store, paused=False)
    assert take(store, 5) == ["b", "c"]


def test_a_read_of_several_queues_passes_over_the_paused_one(store: Store) -> None:
    send(store, "a", queue="a")
    send(store, "b", queue="b")
    configure(store, "a", paused=True)
    assert [message.text for message in store.receive(Receive(("a", "b"), 5))] == ["b"]


def test_messages_that_name_no_delay_have_the_queues(store: Store, clock: FakeClock) -> None:
    configure(store, delay=10)
    send(store, *map(str, range(20)))
    send(store, "now", delay=0)
    send(store, "sooner", delay=5)
    assert (stats(store).delayed, stats(store).ready) == (21, 1)
    assert take(store, 50) == ["now"]
    clock.advance(5)
    assert take(store, 50) == ["sooner"]
    clock.advance(5)
    assert take(store, 50) == list(map(str, range(20)))
    configure(store, delay=None)
    send(store, "at once")
    assert take(store) == ["at once"]


def test_an_empty_unused_queue_is_deleted(store: Store, clock: FakeClock) -> None:
    configure(store, "unused", expires=100)
    configure(store, "full", expires=100)
    configure(store, "read", expires=100)
    configure(store, "kept")
    send(store, "a", queue="full")
    store.send("unused", [new("a", dedup_id="1")])
    take(store, queue="unused")
    clock.advance(60)
    assert take(store, queue="read") == []
    clock.advance(45)
    assert until(lambda: "unused" not in [queue.name for queue in store.queues()])
    assert [queue.name for queue in store.queues()] == ["full", "kept", "read"]
    assert store.send("unused", [new("b", dedup_id="1")]).duplicates == []
    assert store.queue("unused").settings.expires is None


def test_an_emptied_queue_stays_for_its_expires_setting(store: Store, clock: FakeClock) -> None:
    configure(store, expires=100)
    configure(store, "other", expires=1)
    send(store, "a")
    clock.advance(90)
    take(store)
    clock.advance(20)
    assert until(lambda: "other" not in [queue.name for queue in store.queues()])
    assert [queue.name for queue in store.queues()] == ["q"]


def test_settings_set_again_with_their_key_are_reported_as_they_were_set(store: Store) -> None:
    key = IdempotencyKey("k", b"the request")
    first = store.configure("q", {"lease": 10}, once=key)
    configure(store, lease=12)
    again = store.configure("q", {"lease": 10}, once=key)
    assert (again.version, again.settings) == (first.version, first.settings)
    assert store.queue("q").settings.lease == 12
