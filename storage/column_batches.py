"""Column batches: successive plain messages stored in columns, so that many cost little more than one.

A plain message is small and has only a text and perhaps attributes. All messages of a batch have attributes with the
same names in the same order, or none has attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, repeat
from typing import Any, NamedTuple, Self, TypeGuard, TypeVar, overload

from storage.model import Message, NewMessage, Receipt, State, total_size

T = TypeVar("T")

LARGEST_MESSAGE = 4 * 1024  # characters of a plain message
_SCALARS = frozenset({str, int, float, bool, type(None)})

_json = json.JSONEncoder(ensure_ascii=False).encode


class _LazySequence(Sequence[T]):
    """A sequence that creates its items when they are read."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return list(self)[index]


class NewColumnBatch(_LazySequence[NewMessage]):
    """Plain messages to send. Iteration creates the NewMessage objects."""

    def __init__(self, texts: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Keep the columns unchecked; `of` and `of_documents` check them. `attributes`: by name a value per message."""
        self.texts = texts
        self.attributes = attributes

    @classmethod
    def of(cls, texts: object, attributes: object = None) -> Self | None:
        """Return the checked batch, or None if the columns are invalid: the check of each message finds the reason."""
        if not isinstance(texts, list) or set(map(type, texts)) != {str}:
            return None
        if not (attributes is None or _is_table(attributes, len(texts))):
            return None
        batch = cls(texts, attributes)
        return batch if batch.longest <= LARGEST_MESSAGE and batch._is_unicode() else None

    @classmethod
    def of_documents(cls, documents: Sequence[Any]) -> Self | None:
        """Return the batch of these messages in their API form, or None as `of` does."""
        if set(map(type, documents)) != {dict}:
            return None
        form, *others = set(map(frozenset, documents))
        if others or form not in ({"text"}, {"text", "attributes"}):
            return None
        texts = [document["text"] for document in documents]
        if len(form) == 1:
            return cls.of(texts)
        all_attributes = [document["attributes"] for document in documents]
        if set(map(type, all_attributes)) != {dict}:
            return None
        names, *more = set(map(tuple, all_attributes))
        if more:
            return None
        return cls.of(texts, {name: [attributes[name] for attributes in all_attributes] for name in names})

    @classmethod
    def of_messages(cls, messages: Sequence[NewMessage]) -> Self:
        """Return the batch of plain messages that all have one form."""
        texts = [message.text for message in messages]
        rows = [json.loads(message.fields)["attributes"] for message in messages if message.fields is not None]
        return cls(texts, {name: [row[name] for row in rows] for name in rows[0]} if rows else None)

    def cut(self, start: int, end: int) -> NewColumnBatch:
        attributes = self.attributes
        if attributes is not None:
            attributes = {name: values[start:end] for name, values in attributes.items()}
        return NewColumnBatch(self.texts[start:end], attributes)

    def lengths(self) -> list[int]:
        """Return the approximate number of characters of each message."""
        lengths = list(map(len, self.texts))
        for name, values in (self.attributes or {}).items():
            extra = len(name)
            lengths = [length + extra + len(str(value)) for length, value in zip(lengths, values, strict=True)]
        return lengths

    @cached_property
    def longest(self) -> int:
        """Return the approximate number of characters of the longest message."""
        return max(self.lengths())

    @cached_property
    def size(self) -> int:
        """Return the bytes that the messages count for together."""
        size = len("".join(self.texts).encode())
        if self.attributes is not None:
            names = len(_json({"attributes": dict.fromkeys(self.attributes, 0)}).encode()) - len(self.attributes)
            # A JSON array has two more bytes for each of its items.
            values = sum(len(values.encode()) - 2 * len(self) for values in self._values.values())
            size += names * len(self) + values
        return size

    def columns(self) -> tuple[str, str | None]:
        """Return texts and attributes as the JSON of a ColumnBatch."""
        if self.attributes is None:
            return _json(self.texts), None
        return _json(self.texts), f"{{{', '.join(f'{_json(name)}: {array}' for name, array in self._values.items())}}}"

    @cached_property
    def _values(self) -> dict[str, str]:
        """Return the attributes' values as JSON arrays, by name."""
        return {name: _json(values) for name, values in (self.attributes or {}).items()}

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[NewMessage]:
        return map(NewMessage, self.texts, _fields(self.attributes))

    def _is_unicode(self) -> bool:
        try:
            return self.size >= 0
        except UnicodeEncodeError:  # a lone surrogate
            return False


class ColumnBatch(NamedTuple):
    """Plain messages that one read returned together, with successive ids."""

    id: int  # of the first
    length: int  # messages
    queue: str
    texts: str  # JSON: an array of strings
    attributes: str | None  # JSON: for each name an array with one value per message; None: no attributes
    sent_at: int
    receive_count: int
    token: int | None = None  # set, as leased_until is, on a leased read
    leased_until: int | None = None
    first_received_at: int | None = None

    @property
    def receipt(self) -> str:
        """Return the receipt that covers all of them."""
        return str(Receipt(self.queue, self.id, self.token or 0, self.length))

    @property
    def receipt_parts(self) -> tuple[str, str]:
        """Return what stands before and after the id in the receipt of each message."""
        before, _, after = str(Receipt(self.queue, 0, self.token or 0)).partition("~0~")
        return f"{before}~", f"~{after}"

    def messages(self) -> Iterator[Message]:
        before, after = self.receipt_parts
        is_leased = self.token is not None
        for number, text, fields in unpack_columns(self.id, self.texts, self.attributes):
            receipt = f"{before}{number}{after}" if is_leased else None
            yield Message._make(
                (number, self.queue, text, fields, self.sent_at, self.receive_count, receipt, self.leased_until,
                 State.READY, self.first_received_at, None, None)
            )  # fmt: skip


class Messages(_LazySequence[Message]):
    """Messages in order, some still packed. It equals the list of all of them."""

    def __init__(self, parts: Sequence[Message | ColumnBatch] = ()) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum([part.length if isinstance(part, ColumnBatch) else 1 for part in self.parts])

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __iter__(self) -> Iterator[Message]:
        for part in self.parts:
            if isinstance(part, ColumnBatch):
                yield from part.messages()
            else:
                yield part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))


def plain_form(message: NewMessage) -> tuple[str, ...] | None:
    """Return the form of a plain message, None for any other. Messages of one form can share a batch."""
    if message[2:] != _PLAIN or len(message.text) + len(message.fields or "") > LARGEST_MESSAGE:
        return None
    return _form(message.fields)


def packed(messages: Sequence[Message]) -> Iterator[Message | ColumnBatch]:
    """Yield the same leased messages, with small adjacent ones as batches."""
    known = messages.parts if isinstance(messages, Messages) else messages
    for together, group in groupby(enumerate(known), _batch_key):
        some = [part for _, part in group]
        yield from [_to_batch(some)] if together and len(some) > 1 else some


def _batch_key(item: tuple[int, Message | ColumnBatch]) -> tuple[object, ...] | None:
    """Return a key that is equal for adjacent messages of one batch; None for a message that cannot be in one."""
    index, part = item
    if isinstance(part, ColumnBatch) or part.receipt is None or len(part.text) > 2 * LARGEST_MESSAGE:
        return None
    if (form := _form(part.fields)) is None:
        return None
    token = part.receipt.rpartition("~")[2]
    return form, part.id - index, part.queue, part.sent_at, part.receive_count, token, part.leased_until


def _to_batch(messages: Sequence[Any]) -> ColumnBatch:
    first = messages[0]
    texts, attributes = NewColumnBatch.of_messages([NewMessage(m.text, m.fields) for m in messages]).columns()
    return ColumnBatch(
        first.id, len(messages), first.queue, texts, attributes, first.sent_at, first.receive_count,
        Receipt.parse_one(first.receipt).token, first.leased_until,
    )  # fmt: skip


def _form(fields: str | None) -> tuple[str, ...] | None:
    """Return the attribute names, or None if it has other fields, or numbers that the columns would rewrite."""
    if fields is None:
        return ()
    known = json.loads(fields)
    return ("attributes", *known["attributes"]) if known.keys() == {"attributes"} and _json(known) == fields else None


_PLAIN = NewMessage("")[2:]  # the parsed fields, without the text and their JSON


def size_of(messages: Sequence[NewMessage]) -> int:
    """Return the bytes that the messages count for together."""
    return messages.size if isinstance(messages, NewColumnBatch) else total_size(messages)


def _is_table(attributes: object, rows: int) -> TypeGuard[dict[str, list[Any]]]:
    return isinstance(attributes, dict) and all(
        isinstance(values, list) and len(values) == rows and _SCALARS.issuperset(map(type, values))
        for values in attributes.values()
    )


def unpack_columns(first: int, texts: str, attributes: str | None) -> Iterable[tuple[int, str, str | None]]:
    """Yield the id, text and fields of each message in the columns of a ColumnBatch."""
    known: list[str] = json.loads(texts)
    return zip(
        range(first, first + len(known)),
        known,
        _fields(None if attributes is None else json.loads(attributes)),
        strict=False,
    )


def _fields(attributes: Mapping[str, Sequence[Any]] | None) -> Iterable[str | None]:
    """Yield NewMessage.fields of each message. Without attributes the sequence does not end."""
    if not attributes:
        return repeat(None if attributes is None else _json({"attributes": {}}))
    return (
        _json({"attributes": dict(zip(attributes, row, strict=True))}) for row in zip(*attributes.values(), strict=True)
    )
