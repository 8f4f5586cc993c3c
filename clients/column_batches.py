"""Runs: messages in columns, for who sends and receives them by the thousand.

On the wire a run has its texts in one array and each attribute's values in another, and one receipt for all of its
messages; docs/http.md tells the form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .messages import Attribute, Outgoing, encode, to_document

RUNS = "application/vnd.queue-service.runs+json"  # the media type


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """Messages of one queue that were leased together. Only their texts and attributes are told."""

    texts: list[str]
    attributes: Mapping[str, list[Attribute]]  # by name a value for each message; all have the same names
    id: int  # of the first; the others' follow one by one
    queue: str
    receive_count: int
    receipt: str  # of all of them

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def receipts(self) -> list[str]:
        """One for each message."""
        if len(self.texts) == 1:
            return [self.receipt]
        before, _, token = self.receipt.split("~")
        return [f"{before}~{number}~{token}" for number in range(self.id, self.id + len(self.texts))]


def column_batches_of(documents: Iterable[Mapping[str, Any]]) -> list[ColumnBatch]:
    """Of what a reply tells: runs, and messages that are in none."""
    return [_column_batch(document) for document in documents]


def messages_of(receipts: Iterable[str]) -> int:
    """How many messages these are receipts of."""
    return sum(map(_length, receipts))


def in_batches(receipts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Cut so that each is of at most so many messages, as far as a run's receipt is not of more."""
    batch: list[str] = []
    size = 0
    for receipt in receipts:
        length = _length(receipt)
        if batch and size + length > most:
            yield batch
            batch, size = [], 0
        batch.append(receipt)
        size += length
    if batch:
        yield batch


def encode_batch(messages: Sequence[str | Outgoing]) -> tuple[bytes, str]:
    """A batch as the service takes it, and its media type: a run where that can be. Raises ValueError as `encode`."""
    if set(map(type, messages)) == {str}:
        return encode({"texts": messages}), RUNS
    return encode([to_document(message) for message in messages]), "application/json"


def _column_batch(document: Mapping[str, Any]) -> ColumnBatch:
    texts, attributes = document.get("texts"), document.get("attributes", {})
    if texts is None:
        texts, attributes = [document["text"]], {name: [value] for name, value in attributes.items()}
    return ColumnBatch(
        texts, attributes, int(document["id"]), document["queue"], document["receive_count"], document["receipt"]
    )


def _length(receipt: str) -> int:
    first, dash, last = receipt.split("~")[1].partition("-") if receipt.count("~") == 2 else (receipt, "", "")
    return int(last) - int(first) + 1 if dash and first.isdigit() and last.isdigit() else 1
