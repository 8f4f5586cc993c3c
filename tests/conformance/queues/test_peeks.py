"""Test which messages a peek shows, and that it says where the next one continues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from storage.model import State
from storage.store import Peeked, Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, lease, lease_one, new, send, texts


def pages(store: Store, queue: str = "q", **options: Any) -> Iterator[Peeked]:
    """Yield a peek and all that follow."""
    direction = "before" if "before" in options else "after"
    while True:
        page = store.peek(queue, **options)
        yield page
        if page.next is None:
            return
        options[direction] = page.next


def found(store: Store, queue: str = "q", **options: Any) -> list[str]:
    return [text for page in pages(store, queue, **options) for text in texts(page)]


def die(store: Store, *reasons: str, queue: str = "q") -> None:
    """Let messages with these texts die, each for the reason that is its text."""
    send(store, *reasons, queue=queue)
    for held in lease(store, len(reasons), queue=queue):
        store.reject(held.receipt, held.text)


@pytest.mark.parametrize("fields", [{}, {"priority": 1}], ids=["packed", "single"])
@pytest.mark.parametrize("options", [{}, {"before": 2**60}], ids=["forwards", "backwards"])
def test_a_peek_says_where_the_next_one_continues_until_all_was_shown(
    store: Store, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    names = [f"{number:02}" for number in range(25)]
    send(store, *names, **fields)
    assert [len(page) for page in pages(store, limit=10, **options)] == [10, 10, 5]
    assert sorted(found(store, limit=10, **options)) == names
    assert store.peek("q", limit=26, **options).next is None


def test_a_peek_that_is_full_of_bytes_says_where_the_next_one_continues(store: Store) -> None:
    names = [letter * 5_000_000 for letter in "abcde"]
    send(store, *names)
    assert [len(page) for page in pages(store)] == [3, 2]
    assert [text[0] for text in found(store)] == list("abcde")
    assert [text[0] for text in found(store, text="bb")] == ["b"]


@pytest.mark.parametrize("fields", [{}, {"priority": 1}], ids=["packed", "single"])
def test_a_search_shows_the_messages_whose_text_contains_a_part_letter_for_letter(
    store: Store, fields: dict[str, Any]
) -> None:
    names = ["order 17", "ORDER 17", "order 170", "naïve", "nai\u0308ve", "a%b_c", "x\0y", "🙂🙃", ""]
    send(store, *names, **fields)
    assert found(store, text="order 17") == ["order 17", "order 170"]
    assert found(store, text="naïve") == ["naïve"]
    assert found(store, text="%b_") == ["a%b_c"]
    assert found(store, text="%") == ["a%b_c"]
    assert found(store, text="\0y") == ["x\0y"]
    assert found(store, text="🙃") == ["🙂🙃"]
    assert found(store, text="R 17", before=2**60) == ["ORDER 17"]
    assert found(store, text="absent") == []
    assert found(store, "none", text="order") == []


def test_a_search_goes_with_a_state_and_a_key(store: Store, clock: FakeClock) -> None:
    send(store, "a 1", "b 1", "a 2", key="k")
    send(store, "a 3")
    send(store, "a 4", delay=60)
    assert found(store, text="a", key="k") == ["a 1", "a 2"]
    assert found(store, text="a", state=State.READY) == ["a 1", "a 3"]
    assert found(store, text="a", state=State.DELAYED) == ["a 4"]
    assert found(store, text="a", state=State.BLOCKED, key="k") == ["a 2"]
    lease_one(store)
    assert found(store, text="a", state=State.LEASED) == ["a 1"]


def test_a_search_does_not_show_what_has_expired(store: Store, clock: FakeClock) -> None:
    configure(store, retention=10)
    send(store, "a 1", priority=1)
    send(store, *[f"a {number}" for number in range(2, 20)])
    clock.advance(10)
    send(store, "a 20")
    assert found(store, text="a") == ["a 20"]


def test_a_search_by_reason_shows_dead_letters_by_their_latest_reason(store: Store) -> None:
    die(store, "bad", "worse", "bad \0 'input' 🙂")
    send(store, "bad", queue="q.dead")
    for queue, state in (("q.dead", None), ("q", State.DEAD)):
        assert found(store, queue, state=state, reason="bad") == ["bad"]
        assert found(store, queue, state=state, reason="bad \0 'input' 🙂") == ["bad \0 'input' 🙂"]
        assert found(store, queue, state=state, reason="none") == []
        assert found(store, queue, state=state, reason="worse", text="r") == ["worse"]
        assert found(store, queue, state=state, reason="worse", text="b") == []
        assert found(store, queue, state=state, text="bad", before=2**60)[-1] == "bad"
    assert found(store, reason="bad") == []
    store.reject(lease_one(store, queue="q.dead").receipt, "buried twice")
    assert found(store, "q.dead.dead", reason="bad") == []
    assert found(store, "q.dead.dead", reason="buried twice") == ["bad"]


@pytest.mark.parametrize("fields", [{}, {"priority": 1}], ids=["packed", "single"])
@pytest.mark.parametrize("options", [{}, {"before": 2**60}], ids=["forwards", "backwards"])
def test_a_search_looks_at_a_bounded_number_of_messages_and_continues(
    store: Store, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"storage.{module}.inspection.MAX_LOOKED", 10)
    names = [f"{number:02}" for number in range(35)]
    send(store, *names, **fields)
    looks = [len(page) for page in pages(store, text="1", **options)]
    assert looks == ([1, 6, 5, 1] if options else [1, 10, 1, 1])
    assert sorted(found(store, text="1", **options)) == [name for name in names if "1" in name]
    assert [len(page) for page in pages(store, text="absent", **options)] == [0, 0, 0, 0]
    assert [len(page) for page in pages(store, text="1", limit=3, **options)][:2] == [1, 3]
    assert sorted(found(store, text="1", limit=3, **options)) == [name for name in names if "1" in name]


def test_a_search_looks_at_a_bounded_number_of_bytes(store: Store) -> None:
    send(store, *[letter * 5_000_000 for letter in "abcdefgh"], priority=1)
    assert [texts(page) for page in pages(store, text="x")] == [[], []]
    assert [[text[0] for text in texts(page)] for page in pages(store, text="gg")] == [[], ["g"]]


def test_a_search_by_reason_looks_at_a_bounded_number_of_dead_letters(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"storage.{module}.inspection.MAX_LOOKED", 3)
    die(store, *"abcab")
    for queue, state in (("q.dead", None), ("q", State.DEAD)):
        assert [texts(page) for page in pages(store, queue, state=state, reason="b")] == [["b"], ["b"]]
    assert texts(store.peek("q.dead", reason="b", before=2**60)) == ["b"]


def test_a_large_search_waits_for_memory_and_is_then_complete(store: Store) -> None:
    sent = [new("a" * 1_000_000, priority=1), new("b"), new("a" * 2_000_000, priority=1)]
    store.send("q", sent)
    reserved: list[int] = []

    class Memory:
        def take(self, size: int, *, wait: bool) -> None:
            reserved.append(size)

        def keep(self, size: int) -> None:
            pass

    store.limit_reads(Memory())  # type: ignore[attr-defined]
    assert [len(text) for text in texts(store.peek("q", text="aa"))] == [1_000_000, 2_000_000]
    assert len(reserved) == 2
