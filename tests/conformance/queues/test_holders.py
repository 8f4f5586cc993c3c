"""Test who holds a lease, as peek shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.model import IdempotencyKey, Receive, State
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, send

BATCH = [str(number) for number in range(20)]  # packed in SQLite
KINDS = pytest.mark.parametrize(("batch", "fields"), [(["a"], {}), (BATCH, {}), (BATCH, {"key": "k"})])


def lease(store: Store, holder: str = "", limit: int = 1, queue: str = "q", seconds: float = 30) -> list[str]:
    """Lease messages as this holder, and return their receipts."""
    found = store.receive(Receive((queue,), limit, seconds, holder=holder))
    assert {message.leased_by for message in found} <= {None}  # the reader knows
    return [str(message.receipt) for message in found]


def holders(store: Store, queue: str = "q") -> list[str | None]:
    return [message.leased_by for message in store.peek(queue)]


@KINDS
def test_a_leased_message_shows_its_holder_until_another_reader_leases_it(
    store: Store, clock: FakeClock, batch: list[str], fields: dict[str, str]
) -> None:
    ids, count = send(store, *batch, **fields), len(batch)
    assert holders(store) == [None] * count
    lease(store, "shop", count)
    assert holders(store) == ["shop"] * count
    assert store.message("q", ids[-1]).leased_by == "shop"
    clock.advance(30)
    assert holders(store) == [None] * count
    lease(store, "192.0.2.7", count)
    assert holders(store) == ["192.0.2.7"] * count
    clock.advance(30)
    lease(store, "", count)
    assert holders(store) == [None] * count


@KINDS
def test_a_message_of_a_batch_keeps_its_holder_while_others_are_released(
    store: Store, batch: list[str], fields: dict[str, str]
) -> None:
    send(store, *batch, **fields)
    receipts = lease(store, "shop", len(batch))
    store.release(receipts[-1])
    assert holders(store) == ["shop"] * (len(batch) - 1) + [None]


@pytest.mark.parametrize("batch", [["a"], BATCH])
def test_an_extended_lease_keeps_its_holder_even_after_its_end(
    store: Store, clock: FakeClock, batch: list[str]
) -> None:
    send(store, *batch)
    receipts = lease(store, "shop", len(batch))
    store.extend_many(receipts, 60)
    assert holders(store) == ["shop"] * len(batch)
    clock.advance(60)
    assert holders(store) == [None] * len(batch)
    store.extend_many(receipts, 60)
    assert holders(store) == ["shop"] * len(batch)


@pytest.mark.parametrize("batch", [["a"], BATCH])
def test_a_dead_letter_has_a_holder_of_its_own(store: Store, clock: FakeClock, batch: list[str]) -> None:
    configure(store, max_receives=1)
    send(store, *batch)
    lease(store, "shop", len(batch))
    clock.advance(30)
    assert [message.leased_by for message in store.peek("q", state=State.DEAD)] == [None] * len(batch)
    lease(store, "other", len(batch), queue="q.dead")
    assert holders(store, "q.dead") == ["other"] * len(batch)


def test_a_transaction_leases_as_its_holder(store: Store) -> None:
    send(store, "a")
    store.transact([], [], Receive(("q",), 1, 30.0, holder="shop"))
    assert holders(store) == ["shop"]


@pytest.mark.parametrize("transacts", [False, True])
def test_a_repeated_request_shows_the_holder_of_the_first(store: Store, transacts: bool) -> None:
    send(store, "a")
    once = IdempotencyKey("key", b"fingerprint")

    def receive(holder: str) -> None:
        ask = Receive(("q",), 1, 30.0, holder=holder)
        found = store.transact([], [], ask, once).messages if transacts else store.receive(ask, once)
        assert len(found) == 1

    receive("first")
    receive("second")
    assert holders(store) == ["first"]


def test_a_holder_is_kept_when_the_store_is_opened_again(open_again: Callable[[], Store]) -> None:
    store = open_again()
    send(store, *BATCH)
    lease(store, "ü" * 128, len(BATCH))
    assert holders(open_again()) == ["ü" * 128] * len(BATCH)
