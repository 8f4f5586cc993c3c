"""Test that every text comes back exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storage.model import Message, Receive
from storage.store import Store
from storage.validation import MAX_READ_BYTES
from tests.support.shorthand import lease, new, peek, send, stats, take

TEXTS = {
    "empty": "",
    "blank": " \t\r\n",
    "NUL": "\0",
    "NUL inside": "a\0b\0",
    "emoji": "👩‍👩‍👧‍👦🙂",
    "U+FFFE": "\ufffe",
    "U+FFFF": "\uffff",
    "BOM": "\ufefftext",
    "end of Unicode": "\U0010ffff",
    "line ends": "a\nb\r\nc\rd\x85e\u2028f\u2029g\x0ch",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "JSON": '{"text": "\\u0000", "a": [1, null]}',
    "quotes": "'\"`\\ '' \\\\ \\u0041 %s ?1 :name",
    "not normalized": "e\u0301 \u00e9",
    "right to left": "שלום \u202e abc",
    "number": "007",
    "null": "null",
    "5 MB": "0123456789é🙂" * 312_500,
}


def all_of(store: Store) -> list[Message]:
    """Return all messages by several peeks, since each returns a limited number of bytes."""
    found: list[Message] = []
    while page := store.peek("q", after=found[-1].id if found else 0):
        found += page
    return found


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_text_comes_back_exactly(store: Store, text: str) -> None:
    send(store, text)  # alone,
    send(store, text, text)  # in a batch of texts,
    send(store, text, text, priority=0)  # in a batch with fields
    assert stats(store).bytes == sum(message.size for message in [new(text)] * 3 + [new(text, priority=0)] * 2)
    assert [message.text for message in all_of(store)] == [text] * 5
    assert [held.text for held in lease(store, 1)] == [text]
    assert [found for _ in range(4) for found in take(store)] == [text] * 4


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_text_survives_death_and_redrive(store: Store, text: str) -> None:
    send(store, text)
    (held,) = lease(store)
    store.reject(held.receipt)
    assert peek(store, queue="q.dead") == [text]
    store.redrive("q")
    assert take(store) == [text]


@pytest.mark.parametrize(
    "fields",
    [
        {"attributes": {}},
        {"attributes": {"": "", "\0": "\0", "🙂": "\ufffe", "n": None, "t": True, "i": 2**70, "f": 0.1, "e": 1e300}},
        {"key": "\0", "recipient": "é\u2028", "dedup_id": "'\"\\", "priority": 0, "delay": 0, "ttl": 1e6},
        {"attributes": {"b": 1, "a": 2}, "priority": 9},
    ],
)
def test_fields_come_back_as_written(store: Store, fields: dict[str, Any]) -> None:
    for batch in ([new("a", **fields)], [new("b", **fields | {"dedup_id": "x"}), new("c")]):
        store.send("q", batch)
    (first, second) = (
        store.receive(Receive(("q",), 2, recipient=fields.get("recipient", "")))[:2]
        if not fields.get("key")
        else store.receive(Receive(("q",), 2, recipient=fields["recipient"]))
    )
    assert json.loads(first.fields or "{}") == fields
    assert json.loads(second.fields or "{}") == fields | {"dedup_id": "x"}


def test_a_read_is_cut_where_its_texts_get_too_large(store: Store) -> None:
    third = "x" * (MAX_READ_BYTES // 3)
    send(store, *[third] * 4, "small")
    assert [len(text) for text in take(store, 10)] == [len(third)] * 3
    assert [len(held.text) for held in lease(store, 10)] == [len(third), 5]


def test_the_first_message_is_always_returned_however_large(store: Store) -> None:
    large = "x" * (MAX_READ_BYTES + 1)
    send(store, large, "small")
    assert take(store, 10) == [large]
    assert take(store, 10) == ["small"]


def test_the_cut_counts_bytes_and_not_characters(store: Store) -> None:
    half = "é" * (MAX_READ_BYTES // 4 + 1)
    send(store, half, half)
    assert len(take(store, 10)) == 1


def test_the_cut_applies_within_a_run_of_a_key(store: Store) -> None:
    half = "x" * (MAX_READ_BYTES // 2 + 1)
    send(store, half, half, key="k")
    assert len(lease(store, 10)) == 1
    assert (stats(store).leased, stats(store).blocked) == (1, 1)


def test_the_cut_applies_across_several_queues(store: Store) -> None:
    half = "x" * (MAX_READ_BYTES // 2 + 1)
    send(store, half, half, queue="a")
    send(store, half, "small", queue="b")
    found = store.receive(Receive(("a", "b"), 10))
    assert [(message.queue, len(message.text)) for message in found] == [("a", len(half))]
