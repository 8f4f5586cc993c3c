"""Column batches, which HTTP calls runs: messages in columns, for bulk traffic.

A run has its texts in one array, each attribute's values in another, and one receipt for all of its messages.
docs/http.md specifies the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .messages import Attribute, Outgoing, encode, to_document

RUNS = "application/vnd.queue-service.runs+json"  # the media type


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """Messages of one queue that were leased together, with only their texts and attributes."""

    texts: list[str]
    attributes: Mapping[str, list[Attribute]]  # name → a value for each message; all have the same names
    id: int  # of the first; the next ones follow by one
    queue: str
    receive_count: int
    receipt: str  # of all messages

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def receipts(self) -> list[str]:
        """Return one receipt for each message."""
        if len(self.texts) == 1:
            return [self.receipt]
        before, _, token = self.receipt.split("~")
        return [f"{before}~{number}~{token}" for number in range(self.id, self.id + len(self.texts))]


def column_batches_of(documents: Iterable[Mapping[str, Any]]) -> list[ColumnBatch]:
    """Return the column batches of a reply; a message outside a run becomes one of its own."""
    return [_column_batch(document) for document in documents]


def messages_of(receipts: Iterable[str]) -> int:
    """Return the number of messages that these receipts cover."""
    return sum(map(_length, receipts))


def in_batches(receipts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Yield receipts of at most `most` messages together; a run's receipt that covers more stays alone."""
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
    """Return a batch's body and media type: a run if all are bare texts. Raises ValueError like `encode`."""
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
