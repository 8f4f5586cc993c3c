"""Test which message comes next: age, priority, recipient, delay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.model import Receive
from storage.store import Store
from storage.validation import MAX_RECIPIENTS
from tests.support.engines import FakeClock
from tests.support.shorthand import lease, lease_one, new, peek, send, stats, take, texts


def test_messages_come_out_in_the_order_they_went_in(store: Store) -> None:
    for text in "abc":
        send(store, text)
    assert [take(store), take(store), take(store), take(store)] == [["a"], ["b"], ["c"], []]


def test_a_batch_of_ten_thousand_keeps_its_order_and_follows_earlier_messages(store: Store) -> None:
    send(store, "first")
    batch = [str(number) for number in range(10_000)]
    ids = send(store, *batch)
    send(store, "last")
    assert ids == sorted(set(ids))
    out: list[str] = []
    while found := take(store, 1_000):
        out += found
    assert out == ["first", *batch, "last"]


@pytest.mark.parametrize("seconds", [None, 30], ids=["removed", "leased"])
def test_reads_of_one_message_keep_the_order_of_batches_and_single_ones(store: Store, seconds: int | None) -> None:
    def next_text() -> str:
        return take(store)[0] if seconds is None else lease_one(store, seconds=seconds).text

    first, second = ([f"{name}{number}" for number in range(60)] for name in "ab")
    send(store, *first)
    assert next_text() == first[0]  # the batch's other messages have rows of their own now
    send(store, *second)
    send(store, "last")
    out = [next_text() for _ in range(10)]
    send(store, "urgent", priority=1)
    assert next_text() == "urgent"
    out += [next_text() for _ in range(110)]
    assert out == [*first[1:], *second, "last"]


def test_a_batch_with_fields_keeps_its_order_too(store: Store) -> None:
    batch = [str(number) for number in range(2_000)]
    ids = send(store, *batch, attributes={"a": 1})
    assert ids == sorted(set(ids))
    assert peek(store) == batch


def test_the_ids_returned_are_those_of_the_messages_in_the_same_place(store: Store) -> None:
    ids = store.send("q", [new("a", priority=1), new("b"), new("c", key="k"), new("d", recipient="r")]).ids
    assert [(message.id, message.text) for message in store.peek("q")] == list(zip(ids, "abcd", strict=True))


def test_ids_rise_and_are_not_used_again_after_a_drain_and_a_restart(open_again: Callable[[], Store]) -> None:
    before = open_again()
    ids = send(before, "a", "b") + send(before, "c", queue="other")
    assert take(before, 10) == ["a", "b"]
    before.delete_queue("other")
    after = open_again()
    ids += send(after, "d")
    assert ids == sorted(set(ids))


def test_sent_messages_survive_a_restart(open_again: Callable[[], Store]) -> None:
    first = open_again()
    send(first, "a", "b", "c")
    held = lease_one(first)
    second = open_again()
    assert take(second) == ["b"]
    second.settle(held.receipt)
    assert peek(first) == ["c"]


def test_reading_a_missing_queue_returns_nothing_and_does_not_create_it(store: Store) -> None:
    assert take(store) == []
    assert store.queues() == []


def test_the_higher_priority_comes_first_and_within_one_the_oldest(store: Store) -> None:
    for text, priority in [("a0", 0), ("a9", 9), ("a5", 5), ("b9", 9), ("b0", 0)]:
        send(store, text, priority=priority)
    assert take(store, 10) == ["a9", "b9", "a5", "a0", "b0"]


def test_an_addressed_message_goes_to_its_recipient_alone(store: Store) -> None:
    send(store, "for all")
    send(store, "for ann", recipient="ann")
    assert take(store, 10, recipient="bob") == []
    assert take(store, 10) == ["for all"]
    assert take(store, 10) == []
    assert take(store, 10, recipient="ann") == ["for ann"]


def test_a_reader_with_a_name_does_not_get_unaddressed_messages(store: Store) -> None:
    send(store, "for all")
    assert take(store, recipient="ann") == []


def test_each_recipient_sees_priorities_and_age_among_its_own(store: Store) -> None:
    for text, recipient, priority in [("a", "ann", 0), ("b", "bob", 9), ("c", "ann", 3), ("d", "ann", 0)]:
        send(store, text, recipient=recipient, priority=priority)
    assert take(store, 10, recipient="ann") == ["c", "a", "d"]


def test_a_delayed_message_is_not_delivered_before_its_time(store: Store, clock: FakeClock) -> None:
    send(store, "late", delay=10)
    assert stats(store).delayed == 1
    clock.advance(9.999)
    assert take(store) == []
    clock.advance(0.001)
    assert stats(store).ready == 1
    assert take(store) == ["late"]


def test_a_delayed_message_takes_its_old_place_in_the_order_when_due(store: Store, clock: FakeClock) -> None:
    send(store, "a", delay=5)
    send(store, "b")
    send(store, "c", delay=2)
    send(store, "d")
    clock.advance(5)
    assert take(store, 10) == ["a", "b", "c", "d"]


def test_messages_whose_delays_end_at_once_keep_their_order(store: Store, clock: FakeClock) -> None:
    send(store, "oldest", delay=9)
    send(store, *map(str, range(9_999)), delay=5)
    send(store, "urgent", delay=9, priority=1)
    clock.advance(10)
    assert take(store, 3) == ["urgent", "oldest", "0"]


def test_a_message_can_have_a_delay_and_a_priority(store: Store, clock: FakeClock) -> None:
    send(store, "urgent but later", delay=5, priority=9)
    send(store, "a", "b")
    assert take(store) == ["a"]
    clock.advance(5)
    assert take(store, 2) == ["urgent but later", "b"]


def test_a_released_message_returns_to_its_old_place(store: Store) -> None:
    send(store, "a", "b", "c")
    first = lease_one(store)
    store.release(first.receipt)
    assert take(store, 3) == ["a", "b", "c"]


def test_a_leased_read_is_in_the_same_order_as_a_plain_one(store: Store) -> None:
    for text, priority in [("a", 0), ("b", 7), ("c", 7), ("d", 9)]:
        send(store, text, priority=priority)
    assert texts(lease(store, 10)) == ["d", "b", "c", "a"]


def test_queues_do_not_mix(store: Store) -> None:
    send(store, "1", queue="one")
    send(store, "2", queue="two")
    assert take(store, 5, queue="two") == ["2"]
    assert take(store, 5, queue="one") == ["1"]


def test_a_read_from_several_queues_prefers_them_in_the_order_named(store: Store) -> None:
    send(store, "a1", "a2", queue="a")
    send(store, "b1", "b2", queue="b", priority=9)
    found = store.receive(Receive(("nowhere", "b", "a"), 3))
    assert [(message.queue, message.text) for message in found] == [("b", "b1"), ("b", "b2"), ("a", "a1")]
    assert [store.receive(Receive(("b", "a")))[0].text, take(store, queue="a")] == ["a2", []]


def test_a_read_returns_at_most_its_limit(store: Store) -> None:
    send(store, *"abcdef")
    assert take(store, 4) == list("abcd")
    assert take(store, 4) == list("ef")


def test_a_message_has_its_time_of_sending_and_receive_count(store: Store, clock: FakeClock) -> None:
    sent = clock.now()
    send(store, "a")
    clock.advance(3)
    (message,) = store.receive(Receive(("q",)))
    assert (message.sent_at, message.receive_count, message.receipt) == (sent, 1, None)


def test_a_reader_of_any_recipient_takes_all_in_order(store: Store) -> None:
    store.send(
        "q", [new("1", recipient="ann"), new("2"), new("3", recipient="bob", priority=1), new("4", recipient="ann")]
    )
    send(store, *map(str, range(5, 25)))
    send(store, "25", recipient="cat")
    assert take(store, recipient=None) == ["3"]
    assert [held.text for held in lease(store, 3, recipient=None)] == ["1", "2", "4"]
    assert take(store, 100, recipient=None) == list(map(str, range(5, 26)))


def test_a_reader_of_any_recipient_takes_a_key_in_order_across_recipients(store: Store) -> None:
    store.send("q", [new("a", key="k"), new("b", key="k", recipient="ann"), new("c", key="k"), new("d", recipient="z")])
    assert take(store, 10, recipient=None) == ["a", "b", "c", "d"]


def test_a_reader_of_any_recipient_drains_many_recipients(store: Store) -> None:
    store.send("q", [new(str(n), recipient=f"r{n % 300}") for n in range(900)])
    seen: list[str] = []
    while some := take(store, 100, recipient=None):
        seen += some
    assert seen == list(map(str, range(900)))


def test_a_reader_of_any_recipient_finds_messages_of_more_recipients_than_one_read_sorts(store: Store) -> None:
    count = MAX_RECIPIENTS + 50
    store.send("q", [new(str(n), recipient=f"r{n:04}") for n in range(count)])
    assert take(store, MAX_RECIPIENTS, recipient=None) == list(map(str, range(MAX_RECIPIENTS)))
    assert take(store, 100, recipient=None) == list(map(str, range(MAX_RECIPIENTS, count)))
