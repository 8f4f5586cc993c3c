"""Test leases and receipts: which reader has a message, and what it can do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.errors import MessageNotFound, StaleReceipt
from storage.model import Receive
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import configure, in_threads, lease, lease_one, peek, send, stats, take, texts


def test_a_leased_message_is_invisible_until_its_lease_ends(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    lease(store, seconds=30)
    clock.advance(29.999)
    assert take(store) == []
    clock.advance(0.001)
    assert take(store) == ["a"]


def test_a_leased_message_has_its_receipt_and_the_end_of_its_lease(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    message = lease_one(store, seconds=1.5).message
    assert (message.leased_until, message.receive_count) == (clock.now() + 1_500, 1)


def test_a_default_lease_is_as_long_as_the_queue_says(store: Store, clock: FakeClock) -> None:
    configure(store, lease=7)
    send(store, "a")
    (message,) = store.receive(Receive(("q",), lease="default"))
    assert message.leased_until == clock.now() + 7_000


def test_an_acked_message_never_comes_back(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    held = lease_one(store)
    store.settle(held.receipt)
    clock.advance(1_000)
    assert take(store) == []
    assert (stats(store).leased, stats(store).acked) == (0, 1)


def test_a_late_worker_cannot_ack_a_message_leased_again(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    late = lease_one(store, seconds=10)
    clock.advance(10)
    holder = lease_one(store, seconds=10)
    for verb in (store.settle, store.release, store.reject, lambda receipt: store.extend(receipt, 60)):
        with pytest.raises(StaleReceipt):
            verb(late.receipt)
    assert store.ack([late.receipt]) == (0, [late.receipt], [])
    store.settle(holder.receipt)
    assert peek(store) == []


def test_a_late_worker_gets_a_stale_receipt_even_after_the_next_lease_has_ended(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    late = lease_one(store, seconds=10)
    clock.advance(10)
    lease_one(store, seconds=10)
    clock.advance(10)
    with pytest.raises(StaleReceipt):
        store.settle(late.receipt)


def test_a_receipt_whose_lease_ended_works_until_the_message_is_leased_again(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b", "c")
    acked, kept, back = lease(store, 3, seconds=10)
    clock.advance(10)
    assert stats(store).ready == 3
    store.settle(acked.receipt)
    assert store.extend(kept.receipt, 60) == clock.now() + 60_000
    store.release(back.receipt, 5)
    assert (stats(store).leased, stats(store).delayed) == (1, 1)
    assert take(store, 5) == []
    clock.advance(5)
    assert take(store, 5) == ["c"]


def test_every_delivery_has_a_new_receipt(store: Store) -> None:
    send(store, "a")
    seen = set()
    for count in range(1, 6):
        held = lease_one(store)
        assert held.message.receive_count == count
        seen.add(held.receipt)
        store.release(held.receipt)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "garbled",
    ["", "x", "q", "q~1", "q~0~1", "q~1~", "q~1~g", "q~-1~1", "q~01~1", "q~1~1~1", "~1~1", "q~1~1 ",
     f"q~{10**19 - 1}~1", "q~1~ffffffffffffffff", "q~1~00000000000000001", "../q~1~1", "q~１~1", "q~1~1\n", "\0",
     "🙂~1~1"],
)  # fmt: skip
def test_a_malformed_receipt_is_missing(store: Store, garbled: str) -> None:
    send(store, "a")
    with pytest.raises(MessageNotFound):
        store.settle(garbled)
    assert store.ack([garbled]) == (0, [], [garbled])
    assert peek(store) == ["a"]


def test_a_receipt_of_a_deleted_message_is_missing(store: Store) -> None:
    send(store, "a")
    held = lease_one(store)
    store.settle(held.receipt)
    for verb in (store.settle, store.release, store.reject, lambda receipt: store.extend(receipt, 60)):
        with pytest.raises(MessageNotFound):
            verb(held.receipt)
    assert store.ack([held.receipt]) == (0, [], [held.receipt])


def test_a_guessed_receipt_does_not_settle_a_message_that_was_never_delivered(store: Store) -> None:
    (number,) = send(store, "a")
    for token in ("0", "1", "7fffffffffffffff"):
        assert store.ack([f"q~{number}~{token}"]).acked == 0
    assert peek(store) == ["a"]


def test_a_receipt_works_in_its_own_queue_only(store: Store) -> None:
    send(store, "a")
    send(store, "b", queue="other")
    held = lease_one(store)
    for verb in (store.settle, store.release, store.reject):
        with pytest.raises(MessageNotFound):
            verb(held.receipt, queue="other")
    with pytest.raises(MessageNotFound):
        store.extend(held.receipt, 60, "other")
    assert store.ack([held.receipt], "other") == (0, [], [held.receipt])
    with pytest.raises(MessageNotFound):
        store.settle(held.receipt.replace("q~", "other~"))
    store.settle(held.receipt, "q")


def test_a_receipt_has_no_effect_on_a_recreated_queue_of_the_same_name(store: Store) -> None:
    send(store, "old")
    held = lease_one(store)
    store.delete_queue("q")
    send(store, "new")
    with pytest.raises(MessageNotFound):
        store.settle(held.receipt)
    assert peek(store) == ["new"]


def test_receipts_stay_valid_after_a_restart(open_again: Callable[[], Store]) -> None:
    send(before := open_again(), "a")
    held = lease_one(before)
    open_again().settle(held.receipt)
    assert peek(before) == []


def test_a_batch_of_receipts_settles_the_valid_ones_and_reports_the_others(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b", "c", "d")
    stale = lease_one(store, seconds=1)
    clock.advance(1)
    lease_one(store)
    good, gone, twice = lease(store, 3)
    store.settle(gone.receipt)
    asked = [good.receipt, stale.receipt, "nonsense", gone.receipt, twice.receipt, twice.receipt]
    assert store.ack(asked) == (2, [stale.receipt], ["nonsense", gone.receipt])
    assert peek(store) == ["a"]


def test_ten_thousand_receipts_of_several_queues_are_acked_at_once(store: Store) -> None:
    for queue in ("q", "r"):
        send(store, *map(str, range(5_000)), queue=queue)
    receipts = [held.receipt for queue in ("q", "r") for _ in range(5) for held in lease(store, 1_000, queue=queue)]
    assert store.ack(receipts) == (10_000, [], [])
    assert stats(store).leased == stats(store, "r").leased == 0


def test_an_extended_lease_counts_from_now(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    held = lease_one(store, seconds=30)
    clock.advance(20)
    assert store.extend(held.receipt, 15) == clock.now() + 15_000
    clock.advance(14)
    assert take(store) == []
    clock.advance(1)
    assert take(store) == ["a"]


def test_a_lease_can_be_made_shorter(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    held = lease_one(store, seconds=3600)
    store.extend(held.receipt, 1)
    clock.advance(1)
    assert take(store) == ["a"]


def test_a_released_message_is_ready_at_once(store: Store) -> None:
    send(store, "a")
    store.release(lease_one(store).receipt)
    assert take(store) == ["a"]


def test_a_message_released_with_a_delay_is_ready_after_it(store: Store, clock: FakeClock) -> None:
    send(store, "a", "b")
    store.release(lease_one(store).receipt, 5)
    assert (stats(store).delayed, stats(store).leased) == (1, 0)
    clock.advance(4.999)
    assert take(store, 5) == ["b"]
    clock.advance(0.001)
    assert take(store, 5) == ["a"]


def test_twelve_thousand_leases_that_end_at_once_all_end(store: Store, clock: FakeClock) -> None:
    for _ in range(3):
        send(store, *map(str, range(4_000)))
        for _ in range(4):
            lease(store, 1_000, seconds=10)
    clock.advance(10)
    assert (stats(store).leased, stats(store).ready) == (0, 12_000)
    assert take(store, 3) == ["0", "1", "2"]


def test_sixteen_concurrent_readers_get_each_message_once(store: Store) -> None:
    send(store, *map(str, range(320)))

    def work() -> list[str]:
        got = []
        while found := lease(store, 3):
            got += [held.text for held in found]
            assert store.ack([held.receipt for held in found]).acked == len(found)
        return got

    shares = [share for share in in_threads([work] * 16) if isinstance(share, list)]
    assert len(shares) == 16
    assert sorted(int(text) for share in shares for text in share) == list(range(320))


def test_two_concurrent_acks_of_one_receipt_settle_it_once(store: Store) -> None:
    send(store, "a")
    receipt = lease_one(store).receipt
    outcomes = in_threads([lambda: store.settle(receipt)] * 8)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["MessageNotFound"] * 7 + ["NoneType"]
    assert stats(store).acked == 1


def test_a_reader_that_disconnected_takes_nothing(store: Store) -> None:
    send(store, "a")
    assert store.receive(Receive(("q",)), present=lambda: False) == []
    assert (stats(store).ready, stats(store).received) == (1, 0)


@pytest.mark.parametrize("delay", [0, 5])
def test_a_released_message_cannot_be_leased_again_by_its_old_receipt(
    store: Store, clock: FakeClock, delay: float
) -> None:
    send(store, "a")
    held = lease_one(store)
    store.release(held.receipt, delay)
    with pytest.raises(StaleReceipt):
        store.extend(held.receipt, 60)
    assert store.extend_many([held.receipt], 60) == (0, clock.now() + 60_000, [held.receipt], [])
    clock.advance(delay)
    with pytest.raises(StaleReceipt):
        store.extend(held.receipt, 60)
    assert stats(store).ready == 1
    store.settle(held.receipt)
    assert peek(store) == []


def test_a_message_released_uncounted_is_as_if_it_had_not_been_delivered(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=1)
    send(store, "a", "b")
    for _ in range(3):
        held = lease_one(store)
        assert (held.text, held.message.receive_count) == ("a", 1)
        store.release(held.receipt, counted=False)
        store.release(held.receipt, counted=False)  # as after a lost reply
        assert store.peek("q")[0].receive_count == 0
    held = lease_one(store, seconds=1)
    clock.advance(1)
    assert lease_one(store).text == "b"
    assert (peek(store, queue="q.dead"), stats(store).dead_lettered) == (["a"], 1)


def test_one_of_a_batch_is_released_uncounted(store: Store) -> None:
    configure(store, max_receives=1)
    send(store, *map(str, range(200)))
    for held in lease(store, 200)[1:]:
        store.release(held.receipt, 5, counted=False)
    assert (stats(store).delayed, stats(store).leased, stats(store).dead_lettered) == (199, 1, 0)


def test_many_leases_are_extended_at_once_and_the_others_reported(store: Store, clock: FakeClock) -> None:
    send(store, *"abcdef")
    stale = lease_one(store, seconds=1)
    clock.advance(1)
    lease_one(store, seconds=600)
    good, ended, gone, released = lease(store, 4, seconds=10)
    store.settle(gone.receipt)
    store.release(released.receipt)
    clock.advance(10)
    asked = [good.receipt, good.receipt, stale.receipt, "nonsense", gone.receipt, ended.receipt, released.receipt]
    until = clock.now() + 60_000
    assert store.extend_many(asked, 60) == (2, until, [stale.receipt, released.receipt], ["nonsense", gone.receipt])
    assert store.extend_many(asked[:1], 60, "other") == (0, until, [], asked[:1])
    clock.advance(59)
    assert take(store, 9) == ["e", "f"]
    clock.advance(1)
    assert take(store, 9) == ["b", "c"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_ended_leases_of_one_key_the_first_messages_can_be_extended(
    store: Store, clock: FakeClock, order: int
) -> None:
    send(store, "a", "b", key="k")
    _, behind = lease(store, 2, seconds=1)
    clock.advance(1)
    ended = [lease_one(store, seconds=1).receipt, behind.receipt]
    clock.advance(1)
    assert (stats(store).ready, stats(store).blocked) == (1, 1)
    assert store.extend_many(ended[::order], 60)[::2] == (1, [behind.receipt])
    assert (stats(store).leased, stats(store).blocked) == (1, 1)


def test_a_lease_of_a_key_that_another_reader_has_is_not_extended_with_the_others(
    store: Store, clock: FakeClock
) -> None:
    send(store, "a", "b", key="k")
    late = lease(store, 2, seconds=1)
    clock.advance(1)
    holder = lease_one(store)
    assert store.extend_many([one.receipt for one in late], 60)[::2] == (0, [one.receipt for one in late])
    store.settle(holder.receipt)
    assert store.extend_many([late[1].receipt], 60).extended == 1
    assert stats(store).leased == 1


def test_a_lease_of_0_counts_and_leaves_the_message_visible(store: Store) -> None:
    send(store, "a", "b")
    for count in (1, 2):
        held = lease(store, 2, seconds=0)
        assert [(one.text, one.message.receive_count) for one in held] == [("a", count), ("b", count)]
        assert all(one.receipt for one in held)
    store.settle(held[0].receipt)
    assert take(store, 2) == ["b"]


def test_a_lease_of_0_leaves_a_whole_batch_visible(store: Store) -> None:
    send(store, *map(str, range(20)))
    assert texts(lease(store, 20, seconds=0)) == texts(lease(store, 20, seconds=0)) == list(map(str, range(20)))


def test_the_queues_lease_may_be_0(store: Store) -> None:
    configure(store, lease=0)
    send(store, "a")
    for count in (1, 2):
        (message,) = store.receive(Receive(("q",), lease="default"))
        assert message.receive_count == count


@pytest.mark.parametrize("count", [1, 20])
def test_only_a_held_message_is_settled_where_that_is_asked(store: Store, clock: FakeClock, count: int) -> None:
    send(store, *map(str, range(count)))
    first, *_ = lease(store, count, seconds=10)
    store.settle(first.receipt, held=True)
    with pytest.raises(MessageNotFound):
        store.settle(first.receipt, held=True)
    send(store, "late", "released", "acked", queue="other")
    late, released, acked = lease(store, 3, seconds=10, queue="other")
    store.release(released.receipt)
    assert store.ack([released.receipt, acked.receipt, "none"], held=True) == (1, [released.receipt], ["none"])
    clock.advance(10)
    with pytest.raises(StaleReceipt):
        store.settle(late.receipt, held=True)
    assert store.ack([late.receipt], held=True) == (0, [late.receipt], [])
    store.extend(late.receipt, 5)
    store.settle(late.receipt, held=True)
    store.settle(released.receipt)


def test_a_message_knows_when_it_was_first_received(store: Store, clock: FakeClock) -> None:
    send(store, "a")
    send(store, *map(str, range(20)), queue="batch")
    first = clock.now()
    for queue, count in (("q", 1), ("batch", 20)):
        assert {message.first_received_at for message in store.peek(queue)} == {None}
        assert {one.message.first_received_at for one in lease(store, count, seconds=1, queue=queue)} == {first}
    clock.advance(5)
    for queue, count in (("q", 1), ("batch", 20)):
        assert {one.message.first_received_at for one in lease(store, count, seconds=1, queue=queue)} == {first}
        assert {message.first_received_at for message in store.peek(queue)} == {first}
    clock.advance(5)
    assert {one.message.first_received_at for one in lease(store, 5, seconds=1, queue="batch")} == {first}
