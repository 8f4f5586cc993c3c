"""Test that a large read reserves memory before it takes messages, and a small one does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.errors import Busy
from storage.model import IdempotencyKey, NewMessage, Receive
from storage.size_budget import SMALL_READ_BYTES, USUAL_READ_BYTES, WIDEST
from storage.store import Engine
from storage.validation import MAX_READ_BYTES
from tests.support.shorthand import lease_one, peek, send, stats, take

LARGE = "x" * (SMALL_READ_BYTES + 1)
LEASE = Receive(("q",), 2, 60.0)
READS: dict[str, Callable[[Engine], object]] = {
    "leased": lambda store: store.receive(LEASE),
    "plain": lambda store: store.receive(Receive(("q",))),
    "by a key": lambda store: store.receive(LEASE, IdempotencyKey("key", b"")),
    "of two queues": lambda store: store.receive(Receive(("small", "q"), 2, 60.0)),
    "in a transaction": lambda store: store.transact([], [("other", NewMessage("sent"))], LEASE),
    "peek": lambda store: store.peek("q"),
    "by its id": lambda store: store.message("q", store.queue("q").stats.sent),
}


class Memory:
    """A memory budget of so many bytes."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.takes = 0
        self.asked: list[int] = []
        self.kept = 0

    def take(self, size: int, *, wait: bool) -> None:
        self.kept = 0
        self.takes += 1
        self.asked += [size] if wait else []
        if size > self.free:
            raise Busy("no room")
        self.kept = size

    def keep(self, size: int) -> None:
        self.kept = size


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_large_read_without_free_memory_is_busy_and_takes_nothing(
    store: Engine, read: Callable[[Engine], object]
) -> None:
    send(store, LARGE)
    send(store, "small", queue="small")
    store.limit_reads(memory := Memory(0))
    with pytest.raises(Busy, match="nothing was done"):
        read(store)
    (asked,) = memory.asked
    assert asked // WIDEST in (len(LARGE), len(LARGE) + len("small"))
    assert memory.kept == 0
    assert (stats(store).ready, stats(store).received) == (1, 0)
    assert (stats(store, "small").ready, peek(store, queue="other")) == (1, [])
    memory.free = MAX_READ_BYTES * WIDEST
    assert read(store)
    assert memory.kept >= len(LARGE)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_small_read_reserves_no_memory(store: Engine, read: Callable[[Engine], object]) -> None:
    send(store, "x")
    store.limit_reads(memory := Memory(0))
    assert read(store)
    assert (memory.asked, memory.kept) == ([], 0)


def test_a_read_of_one_small_message_asks_for_no_memory_at_all(store: Engine) -> None:
    send(store, "a", "b", "c")
    store.limit_reads(memory := Memory(MAX_READ_BYTES * WIDEST))
    assert take(store, 1) == ["a"]
    assert memory.takes == 0
    assert take(store, 2) == ["b", "c"]
    assert memory.takes == 1


def test_one_message_of_a_batch_of_large_characters_reserves_no_memory(store: Engine) -> None:
    send(store, *["€" * 1_000] * 1_000)
    store.limit_reads(memory := Memory(0))
    assert take(store, 1) == ["€" * 1_000]
    assert len(store.receive(Receive(("q",), 30, 60.0))) == 30
    assert memory.asked == []


def test_a_usual_read_reserves_memory_without_waiting_and_keeps_what_it_needs(store: Engine) -> None:
    send(store, *["x" * 10_000] * 50)
    store.limit_reads(memory := Memory(USUAL_READ_BYTES * WIDEST))
    assert len(take(store, 50)) == 50
    assert memory.asked == []
    assert 500_000 <= memory.kept < 510_000


def test_a_repeated_read_reserves_memory_for_its_earlier_messages(store: Engine) -> None:
    send(store, LARGE)
    (held,) = store.receive(LEASE, IdempotencyKey("key", b""))
    send(store, LARGE, queue="plain")
    store.receive(Receive(("plain",)), IdempotencyKey("plain", b""))
    store.limit_reads(memory := Memory(0))
    with pytest.raises(Busy):
        store.receive(LEASE, IdempotencyKey("key", b""))
    with pytest.raises(Busy):
        store.receive(Receive(("plain",)), IdempotencyKey("plain", b""))
    memory.free = MAX_READ_BYTES * WIDEST
    assert list(store.receive(LEASE, IdempotencyKey("key", b""))) == [held]
    assert [message.text for message in store.receive(Receive(("plain",)), IdempotencyKey("plain", b""))] == [LARGE]


def test_attributes_and_dead_letter_histories_count_like_texts(store: Engine) -> None:
    large = {"a": "x" * 60_000}
    send(store, "a", "b", "c", attributes=large)
    store.limit_reads(Memory(0))
    with pytest.raises(Busy):
        store.receive(Receive(("q",), 3))
    assert lease_one(store).text == "a"
    assert stats(store).ready == 2
