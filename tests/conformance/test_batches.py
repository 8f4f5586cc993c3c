"""Test large batches: an operation on one or some of a batch works as if each had been sent alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from storage.column_batches import NewColumnBatch
from storage.errors import InvalidInput, MessageNotFound, StaleReceipt
from storage.model import Message, NewMessage, Receipt, Receive, State
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.shorthand import Held, configure, lease, lease_one, new, peek, send, stats, take, texts

BATCH = [f"m{n:03d}" for n in range(250)]


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 101, 249, 250, 1000])
def test_a_batch_comes_back_in_order_whatever_the_limit(store: Store, limit: int) -> None:
    send(store, *BATCH)
    got: list[str] = []
    while some := lease(store, limit):
        assert len(some) == min(limit, len(BATCH) - len(got))
        assert store.ack([held.receipt for held in some]).acked == len(some)
        got += texts(some)
    assert got == BATCH
    assert stats(store).acked == 250
    assert stats(store)[:5] == (0, 0, 0, 0, 0)
    assert stats(store).bytes == 0


def test_batches_single_messages_and_urgent_ones_come_in_the_order_of_the_queue(store: Store) -> None:
    rng = random.Random(7)
    sent: list[tuple[int, int, str]] = []
    for _ in range(40):
        priority = rng.choice([0, 0, 0, 3])
        names = [f"{len(sent) + n}" for n in range(rng.choice([1, 1, 9, 30, 120]))]
        ids = store.send("q", [new(name, priority=priority) if priority else new(name) for name in names]).ids
        sent += [(-priority, number, name) for number, name in zip(ids, names, strict=True)]
    got: list[str] = []
    while some := take(store, rng.choice([1, 10, 100, 300])):
        got += some
    assert got == [name for _, _, name in sorted(sent)]


def test_ids_are_consecutive_in_a_batch_and_rise_between_batches(store: Store) -> None:
    ids = send(store, "first") + send(store, *BATCH) + send(store, "between", "two") + send(store, *BATCH)
    assert ids == list(range(ids[0], ids[0] + 503))
    take(store, 1000)
    assert send(store, "last") == [ids[-1] + 1]


def test_a_batch_of_plain_and_other_messages_keeps_its_order(store: Store) -> None:
    batch = [new(text, **({"recipient": "ann"} if n % 50 == 3 else {})) for n, text in enumerate(BATCH)]
    ids = store.send("q", batch).ids
    assert ids == list(range(ids[0], ids[0] + 250))
    assert take(store, 1000, recipient="ann") == BATCH[3::50]
    assert take(store, 1000) == [text for n, text in enumerate(BATCH) if n % 50 != 3]


def test_texts_and_attributes_of_a_batch_come_back_exactly(store: Store) -> None:
    odd = ['"', "\\", "\0", "\u2028", "😀", "é" * 3_000, "", "\x7f", "x" * 70_000, "a\nb"] * 3
    attributes = [{"n": 1}, {"s": '\0é"\\', "f": 1.5e300, "none": None, "yes": True}, None] * 10
    batch = [
        new(text) if some is None else new(text, attributes=some) for text, some in zip(odd, attributes, strict=True)
    ]
    store.send("q", batch)
    assert stats(store).bytes == sum(message.size for message in batch)
    got = store.receive(Receive(("q",), 1000, 30))
    assert texts(got) == odd
    assert [json.loads(message.fields or "{}").get("attributes") for message in got] == attributes


def test_one_of_a_leased_batch_is_acked_and_the_others_stay_leased(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    held = lease(store, 250, seconds=10)
    store.settle(held[120].receipt)
    with pytest.raises(MessageNotFound):
        store.settle(held[120].receipt)
    assert stats(store).leased == 249
    clock.advance(11)
    assert take(store, 1000) == BATCH[:120] + BATCH[121:]


def test_one_of_a_leased_batch_is_extended_released_or_rejected_alone(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    held = lease(store, 250, seconds=10)
    store.extend(held[10].receipt, 60)
    store.release(held[20].receipt)
    store.reject(held[30].receipt, "why")
    assert take(store, 1000) == [BATCH[20]]
    clock.advance(11)
    assert take(store, 1000) == [text for n, text in enumerate(BATCH) if n not in (10, 20, 30)]
    assert peek(store, queue="q.dead") == [BATCH[30]]
    store.settle(held[10].receipt)
    assert stats(store)[:4] == (0, 0, 0, 0)


def test_receipts_of_an_expired_batch_lease_are_valid_until_it_is_leased_again(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    late = [held.receipt for held in lease(store, 250, seconds=10)]
    clock.advance(11)
    assert stats(store).ready == 250
    assert store.ack(late[:100]).acked == 100
    again = lease(store, 250, seconds=10)
    assert texts(again) == BATCH[100:]
    assert store.ack(late) == (0, late[100:], late[:100])
    with pytest.raises(StaleReceipt):
        store.settle(late[200])
    with pytest.raises(StaleReceipt) as refused:
        store.transact([*(held.receipt for held in again), late[101]], [])
    assert refused.value.index == 150
    assert stats(store).leased == 150
    assert store.ack([held.receipt for held in again]) == (150, [], [])


def test_old_and_new_receipts_of_a_batch_in_one_ack(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH[:20])
    old = [held.receipt for held in lease(store, 20, seconds=1)]
    clock.advance(2)
    new_ones = [held.receipt for held in lease(store, 20, seconds=1)]
    both = [receipt for pair in zip(old, new_ones, strict=True) for receipt in pair]
    assert store.ack(both) == (20, old, [])


def test_receipts_of_two_queues_batches_are_settled_in_one_ack(store: Store) -> None:
    send(store, *BATCH[:20])
    send(store, *BATCH[:20], queue="p")
    receipts = [held.receipt for name in "pq" for held in lease(store, 20, queue=name)]
    assert store.ack(receipts, "p") == (20, [], receipts[20:])
    store.transact(receipts[20:], [])
    assert stats(store).acked == stats(store, "p").acked == 20


def test_a_receipt_that_names_another_queue_settles_nothing(store: Store) -> None:
    send(store, "there", queue="p")
    send(store, *BATCH[:20])
    receipts = [str(held.receipt) for held in lease(store, 20)]
    forged = [receipt.replace("q~", "p~") for receipt in receipts]
    assert store.ack(forged) == (0, [], forged)
    assert store.ack([*receipts, *forged]) == (20, [], forged)
    assert stats(store)[:4] == (0, 0, 0, 0)
    assert take(store, queue="p") == ["there"]


def test_a_batch_received_too_often_is_dead_lettered_in_order(store: Store, clock: FakeClock) -> None:
    configure(store, max_receives=2)
    send(store, *BATCH)
    for _ in range(2):
        assert texts(lease(store, 1000, seconds=5)) == BATCH
        clock.advance(6)
    assert lease(store, 1000) == []
    assert peek(store, queue="q.dead") == BATCH
    assert stats(store).dead_lettered == stats(store).dead == 250
    assert store.redrive("q") == 250
    assert take(store, 1000) == BATCH


def test_a_lower_max_receives_applies_to_a_batch_that_was_released_before(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    for _ in range(2):
        lease(store, 1000, seconds=5)
        clock.advance(6)
        stats(store)
    configure(store, max_receives=2)
    send(store, "fresh")
    assert texts(lease(store, 1000)) == ["fresh"]
    assert stats(store).dead == 250  # a read dead-letters some of them, a peek the rest
    assert peek(store, queue="q.dead") == BATCH


def test_a_new_retention_applies_to_an_existing_batch(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    held = lease(store, 100, seconds=60)
    clock.advance(5)
    configure(store, retention=10)
    send(store, *BATCH[:20])
    clock.advance(6)
    assert stats(store).expired == 150
    assert take(store, 1000) == BATCH[:20]
    assert store.ack([one.receipt for one in held]).acked == 100


def test_peek_pages_through_batches_and_shows_their_states(store: Store) -> None:
    send(store, *BATCH)
    send(store, "alone")
    send(store, *BATCH, delay=5)
    lease(store, 130, seconds=60)
    pages: list[Message] = []
    after = 0
    while page := store.peek("q", limit=70, after=after):
        assert len(page) == min(70, 501 - len(pages))
        pages += page
        after = page[-1].id
    assert texts(pages) == [*BATCH, "alone", *BATCH]
    assert [message.state for message in pages] == [State.LEASED] * 130 + [State.READY] * 121 + [State.DELAYED] * 250
    assert [message.receive_count for message in pages] == [1] * 130 + [0] * 371
    assert all((message.leased_until is not None) == (message.state is State.LEASED) for message in pages)
    assert texts(store.peek("q", limit=5, state=State.READY)) == BATCH[130:135]
    assert texts(store.peek("q", limit=1000, state=State.LEASED)) == BATCH[:130]


@pytest.mark.parametrize("limit", [1, 5, 50, 100])
def test_peek_pages_through_many_short_batches(store: Store, limit: int) -> None:
    for start in range(0, 160, 8):
        send(store, *BATCH[start : start + 8])
    seen: list[Message] = []
    while page := store.peek("q", limit=limit, after=seen[-1].id if seen else 0):
        assert len(page) == min(limit, 160 - len(seen))
        seen += page
    assert texts(seen) == BATCH[:160]


def test_a_purge_removes_batches_ready_and_leased(store: Store) -> None:
    send(store, *BATCH)
    receipts = [held.receipt for held in lease(store, 100)]
    send(store, "alone")
    assert store.purge("q") == 251
    assert stats(store)[:4] == (0, 0, 0, 0)
    assert stats(store).bytes == 0
    assert store.ack(receipts) == (0, [], receipts)


def test_a_queue_deleted_with_batches_in_it_is_empty_when_created_again(store: Store) -> None:
    send(store, *BATCH)
    receipts = [held.receipt for held in lease(store, 100)]
    store.delete_queue("q")
    send(store, *BATCH[:9])
    assert store.ack(receipts) == (0, [], receipts)
    assert take(store, 1000) == BATCH[:9]


def test_a_transaction_settles_a_batch_and_receives_the_next(store: Store) -> None:
    send(store, *BATCH)
    first = lease(store, 100)
    done = store.transact([held.receipt for held in first], [], Receive(("q",), 100, 30))
    assert texts(done.messages) == BATCH[100:200]
    done = store.transact(
        [str(message.receipt) for message in done.messages], [("q", new("new"))], Receive(("q",), 100, 30)
    )
    assert texts(done.messages) == [*BATCH[200:], "new"]


def test_a_reader_of_two_queues_fills_its_limit_from_batches_of_both(store: Store) -> None:
    send(store, *BATCH[:30], queue="a")
    send(store, *BATCH, queue="b")
    got = store.receive(Receive(("a", "b"), 80, 30))
    assert [(message.queue, message.text) for message in got] == [
        *(("a", text) for text in BATCH[:30]),
        *(("b", text) for text in BATCH[:50]),
    ]


def test_the_oldest_age_covers_batches(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    clock.advance(3)
    send(store, "alone")
    assert stats(store).oldest_age == 3
    take(store, 250)
    assert stats(store).oldest_age == 0


def test_the_message_limit_counts_the_messages_of_batches(store: Store) -> None:
    configure(store, max_messages=300)
    send(store, *BATCH)
    with pytest.raises(Exception, match="full"):
        send(store, *BATCH[:51])
    send(store, *BATCH[:50])
    assert take(store, 1000) == BATCH + BATCH[:50]


def test_a_late_receipt_in_a_run_whose_neighbours_are_leased_again_is_stale(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH[:20])
    first = lease(store, 20, seconds=1)
    clock.advance(2)
    lease(store, 20)
    for verb in (store.settle, store.release, store.reject):
        with pytest.raises(StaleReceipt):
            verb(first[5].receipt)
    with pytest.raises(StaleReceipt):
        store.extend(first[5].receipt, 9)
    assert stats(store).leased == 20


def test_a_read_of_one_message_takes_the_head_of_a_batch(store: Store) -> None:
    send(store, *BATCH)
    assert lease_one(store).text == BATCH[0]
    assert lease_one(store).text == BATCH[1]
    assert stats(store)[:2] == (248, 2)


def test_messages_dead_lettered_by_a_lower_max_receives_hide_nothing_behind_them(
    store: Store, clock: FakeClock
) -> None:
    for start in range(0, 40, 10):
        send(store, *BATCH[start : start + 10])
    lease(store, 30, seconds=5)
    clock.advance(6)
    lease(store, 10, seconds=5)
    configure(store, max_receives=1)
    assert texts(lease(store, 1, seconds=60)) == [BATCH[30]]
    assert texts(lease(store, 100, seconds=60)) == BATCH[31:40]
    assert sorted(peek(store, queue="q.dead")) == BATCH[10:30]


def test_messages_beyond_max_receives_before_a_batch_do_not_hide_it(store: Store) -> None:
    send(store, "spent 1", "spent 2", "spent 3")
    for held in lease(store, 3):
        store.release(held.receipt)
    configure(store, max_receives=1)
    send(store, *BATCH[:8])
    send(store, "after")
    assert texts(lease(store, 1)) == [BATCH[0]]
    assert take(store, 100) == [*BATCH[1:8], "after"]


def span(held: Sequence[Held]) -> str:
    """Return one receipt for messages that were leased together and have consecutive ids."""
    return str(Receipt.parse_one(held[0].receipt)._replace(length=len(held)))


def test_one_receipt_settles_all_messages_leased_together(store: Store) -> None:
    send(store, *BATCH)
    held = lease(store, 250)
    assert store.ack([span(held[:100])]) == (100, [], [])
    assert store.ack([span(held[100:130]), span(held[130:200]), held[149].receipt]) == (100, [], [])
    store.transact([span(held[200:])], [])
    assert stats(store)[:4] == (0, 0, 0, 0)
    assert stats(store).acked == 250


def test_a_receipt_of_many_reports_invalid_ones_one_by_one(store: Store) -> None:
    send(store, *BATCH)
    held = lease(store, 250, seconds=600)
    for one in (held[20], held[199]):
        store.settle(one.receipt)
    store.release(held[50].receipt)
    assert lease_one(store).text == BATCH[50]
    assert store.ack([span(held)]) == (247, [held[50].receipt], [held[20].receipt, held[199].receipt])
    assert stats(store).leased == 1


def test_a_receipt_of_many_with_one_invalid_stops_a_transaction(store: Store) -> None:
    send(store, *BATCH)
    held = lease(store, 250, seconds=600)
    store.settle(held[150].receipt)
    with pytest.raises(StaleReceipt) as refused:
        store.transact([held[0].receipt, span(held[1:100]), span(held[100:])], [("q", new("never"))])
    assert refused.value.index == 2
    assert stats(store).leased == 249
    assert stats(store).sent == 250


@pytest.mark.parametrize(
    "forged", ["q~1-99999~1", "q~1-9223372036854775807~1", "q~3-2~1", "q~3-3-4~1", "q~-3~1", "q~3-~1"]
)
def test_a_malformed_receipt_of_many_settles_nothing(store: Store, forged: str) -> None:
    send(store, *BATCH[:20])
    lease(store, 20)
    assert store.ack([forged]) == (0, [], [forged])
    with pytest.raises(StaleReceipt):
        store.transact([forged], [])


def test_receipts_of_messages_that_were_never_delivered_settle_nothing(store: Store) -> None:
    ids = send(store, *map(str, range(20)))
    forged = [f"q~{number}~0" for number in ids]
    assert store.ack(forged).stale == forged
    assert store.ack([f"q~{ids[0]}-{ids[-1]}~0"]).stale == forged
    assert stats(store).ready == 20


def test_held_receipts_of_a_whole_batch_are_stale_after_its_lease(store: Store, clock: FakeClock) -> None:
    send(store, *map(str, range(20)))
    receipts = [str(message.receipt) for message in lease(store, 20, seconds=10)]
    clock.advance(10)
    assert store.ack(receipts, held=True) == (0, receipts, [])
    assert stats(store).ready == 20


def test_a_receipt_of_one_written_as_a_range_is_valid(store: Store) -> None:
    send(store, "alone")
    held = lease_one(store)
    assert store.ack([held.receipt.replace("~1~", "~1-1~")]).acked == 1


def test_one_receipt_of_each_of_many_runs_is_settled(store: Store) -> None:
    for _ in range(12):
        send(store, *(BATCH * 8))
    held = [one for _ in range(24) for one in lease(store, 1000, seconds=600)]
    some = [one.receipt for one in held[::20]]
    assert len(some) == 1_200
    assert store.ack([*some, *some[:5], "nonsense"]) == (1_200, [], ["nonsense"])
    assert (stats(store).leased, stats(store).acked) == (22_800, 1_200)


def test_receipts_cover_at_most_ten_thousand_messages(store: Store) -> None:
    send(store, *BATCH)
    held = lease(store, 250)
    many = ["q~1-9999~1", span(held)]
    with pytest.raises(InvalidInput):
        store.ack(many)
    with pytest.raises(InvalidInput):
        store.transact(many, [])
    assert stats(store).leased == 250


def test_a_verb_of_one_message_refuses_a_receipt_of_many(store: Store) -> None:
    send(store, *BATCH)
    receipt = span(lease(store, 250))
    refused: list[Callable[[], object]] = [
        lambda: store.settle(receipt),
        lambda: store.extend(receipt, 60),
        lambda: store.release(receipt),
        lambda: store.reject(receipt),
    ]
    for verb in refused:
        with pytest.raises(InvalidInput):
            verb()
    assert stats(store).leased == 250


FORMS: list[dict[str, Any]] = [
    {},
    {"attributes": {}},
    {"attributes": {"a": 1}},
    {"attributes": {"a": "1", "b": None}},
    {"attributes": {"b": 1.5, "a": True}},
    {"attributes": {"é\n": 10**30}},
    {"priority": 0},
    {"key": "k"},
]


def test_batches_of_mixed_messages_come_back_as_they_were_written(store: Store) -> None:
    """Some stretches are long enough to be packed, and some are not."""
    written = [new(f"{place} {n}", **form) for place, form in enumerate(FORMS * 2) for n in range(5 + 20 * (place % 2))]
    store.send("q", written)
    assert stats(store).bytes == sum(message.size for message in written)
    assert [(one.text, one.fields) for one in store.peek("q", limit=1000)] == [message[:2] for message in written]
    got = store.receive(Receive(("q",), 1000, 30))
    assert [(one.text, one.fields) for one in got] == [message[:2] for message in written]
    assert store.ack([str(one.receipt) for one in got]).acked == len(written)
    assert stats(store).bytes == 0


@pytest.mark.parametrize("form", FORMS[:6], ids=str)
def test_a_run_is_stored_like_a_batch_of_its_messages(store: Store, form: dict[str, Any]) -> None:
    documents = [{"text": f"€{n}", **form} for n in range(150)]
    run = NewColumnBatch.of_documents(documents)
    assert run is not None
    messages = [NewMessage.from_document(document) for document in documents]
    assert (list(run), run[7], run[-2:], len(run)) == (messages, messages[7], messages[-2:], 150)
    assert run.size == sum(message.size for message in messages)
    store.send("run", run)
    store.send("batch", messages)
    assert stats(store, "run") == stats(store, "batch")
    for ask in [Receive(limit=100, lease=30), Receive(limit=20), Receive(limit=30, lease=5)]:
        of_run, of_batch = (store.receive(ask._replace(queues=(name,))) for name in ("run", "batch"))
        assert [one[2:4] for one in of_run] == [one[2:4] for one in of_batch]
        assert {one[2:4] for one in of_run} <= {message[:2] for message in messages}
        assert len(of_run) == ask.limit
    assert stats(store, "run") == stats(store, "batch")


def test_a_receipt_of_many_extends_all_messages_leased_together(store: Store, clock: FakeClock) -> None:
    send(store, *BATCH)
    held = lease(store, 250, seconds=10)
    until = clock.now() + 60_000
    assert store.extend_many([span(held[:100])], 60) == (100, until, [], [])
    assert store.extend_many([span(held[100:130]), held[149].receipt], 60) == (31, until, [], [])
    clock.advance(10)
    assert stats(store).leased == 131
    assert store.extend_many([span(held)], 60).extended == 250
    assert (stats(store).ready, stats(store).leased) == (0, 250)
    assert store.ack([span(held)]).acked == 250


def test_receipts_of_single_messages_of_many_batches_are_valid_in_one_transaction(store: Store) -> None:
    receipts = []
    for number in range(120):
        send(store, *BATCH[:10], queue=f"q{number % 7}")
        receipts.append(lease(store, 10, queue=f"q{number % 7}", seconds=600)[5].receipt)
    assert store.extend_many(receipts, 900).extended == 120
    done = store.transact(receipts, [("out", new("x"))])
    assert len(done.ids) == 1
    assert sum(stats(store, f"q{n}").leased for n in range(7)) == 120 * 9
    with pytest.raises(StaleReceipt):
        store.transact(receipts, [])
