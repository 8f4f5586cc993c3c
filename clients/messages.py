"""Received messages, outgoing messages, the results of requests, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, Protocol, TypedDict, TypeVar

Attribute = str | int | float | bool | None
Lease = float | Literal["default"]  # seconds, or the queue's own setting

Many = TypeVar("Many", bound=Iterable[object])
L = TypeVar("L", bound="Leased")


class Outgoing(TypedDict, total=False):
    """A message to send. Only `text` is required; `queue` is for transactions only.

    key: messages of one key are delivered in order, one reader at a time. priority: 0–9, higher first.
    recipient: only a reader that names it gets the message. delay, ttl: seconds; it is delivered after and before them.
    dedup_id: within the queue's window, a second message with the same one is not stored.
    attribute_types, group, trace: what clients of the SQS endpoint write and read.
    """

    text: str
    key: str
    priority: int
    recipient: str
    attributes: Mapping[str, Attribute]
    delay: float
    ttl: float
    dedup_id: str
    attribute_types: Mapping[str, str]
    group: str
    trace: str
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message that was removed from its queue, or shown. After a read of several, `id` and `sent_at` are None."""

    text: str
    queue: str
    id: str | None = None
    sent_at: datetime | None = None
    receive_count: int | None = None
    receipt: str | None = None
    leased_until: datetime | None = None
    key: str | None = None
    priority: int = 0
    recipient: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    delay: float | None = None
    ttl: float | None = None
    dedup_id: str | None = None
    attribute_types: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    trace: str | None = None
    state: str | None = None  # in a peek only
    leased_by: str | None = None  # in a peek only: the token or address that holds the lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased(Message):
    """A message that others do not get before `leased_until`, as the calls of both clients take it."""

    id: str
    sent_at: datetime
    receive_count: int
    receipt: str
    leased_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedMessage(Leased):
    """A message that others do not get before `leased_until`.

    Settle it by ack, release or reject. To work on it for longer, extend the lease.
    """

    _client: Settler = field(repr=False, compare=False)

    def ack(self) -> None:
        """Delete the message, which was worked on. Raises StaleReceipt or NotFound if the lease was lost."""
        self._client.ack(self)

    def extend(self, lease: float) -> None:
        """Let the lease end `lease` seconds from now."""
        self._client.extend(self, lease)

    def release(self, delay: float = 0, *, counted: bool = True) -> None:
        """End the lease; the message is redelivered at once, or in `delay` seconds.

        For a message that was not worked on, clear `counted`: the delivery does not count.
        """
        self._client.release(self, delay=delay, counted=counted)

    def reject(self, reason: str | None = None) -> None:
        """Move the message to the dead letters."""
        self._client.reject(self, reason=reason)

    def complete(self, send: Iterable[str | Outgoing] = ()) -> TransactionReply:
        """Ack the message and send its results, in one commit: both or neither."""
        return self._client.transact(ack=[self], send=send)


class Settler(Protocol):
    """The methods of QueueClient that its messages call."""

    def ack(self, message: Leased) -> None: ...

    def extend(self, message: Leased, lease: float) -> None: ...

    def release(self, message: Leased, *, delay: float, counted: bool) -> None: ...

    def reject(self, message: Leased, *, reason: str | None) -> None: ...

    def transact(self, *, ack: Iterable[Leased | str], send: Iterable[str | Outgoing]) -> TransactionReply: ...


class ReadingOne(TypedDict, total=False):
    """The messages to read: those of `queue`, for `recipient` or for `any_recipient`; else unaddressed ones."""

    queue: str | None
    recipient: str | None
    any_recipient: bool


class Reading(ReadingOne, total=False):
    """The messages to read; or those of several `queues`, in order of preference."""

    queues: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checked Reading, with the queue to read if it names none.

    Raises ValueError, TypeError for a contradiction: a wrong guess would lease messages of another reader.
    """

    default: str
    queue: str | None = None
    queues: Sequence[str] | None = None
    recipient: str | None = None
    any_recipient: bool = False

    def __post_init__(self) -> None:
        if self.any_recipient and self.recipient is not None:
            raise ValueError("use either recipient or any_recipient, not both")
        if self.queues is None:
            return
        if self.queue is not None:
            raise ValueError("use either queue or queues, not both")
        if not require_list(self.queues):
            raise ValueError("queues is empty: name at least one queue")

    @property
    def name(self) -> str:
        """Return the queue to read from, if it is one."""
        return self.default if self.queue is None else self.queue

    @property
    def readers(self) -> dict[str, str]:
        """Return the request parameters that select recipients."""
        if self.any_recipient:
            return {"recipients": "any"}
        return {} if self.recipient is None else {"recipient": self.recipient}


class NextMessages(TypedDict, total=False):
    """The messages that a transaction leases after its commit; the fields are as in QueueClient.receive.

    `recipients`: "any" for messages of every recipient.
    """

    queue: str | None
    recipient: str | None
    recipients: Literal["any"]
    limit: int
    wait: float
    lease: Lease


class SentId(str):
    """A sent message's id. If `duplicate`, its dedup_id was known: the id is that of the stored message."""

    duplicate = False


class SentIds(list[str]):
    """The ids of sent messages, in order. `duplicates` has the places of those that were not stored; see SentId."""

    def __init__(self, ids: Iterable[str] = (), duplicates: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self.duplicates = list(duplicates)


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """The result for a batch of receipts. Stale: released, or leased by another reader. Missing: deleted.

    `leased_until` is the earliest end of the extended leases.
    """

    extended: int
    leased_until: datetime | None
    stale: list[str]
    missing: list[str]

    def __add__(self, other: ExtendResult) -> ExtendResult:
        return ExtendResult(
            self.extended + other.extended,
            self.leased_until or other.leased_until,
            self.stale + other.stale,
            self.missing + other.missing,
        )


@dataclass(frozen=True, slots=True)
class AckResult:
    """The result for a batch of receipts. Stale: another reader may have the message. Missing: it is deleted."""

    acked: int
    stale: list[str]
    missing: list[str]

    def __add__(self, other: AckResult) -> AckResult:
        return AckResult(self.acked + other.acked, self.stale + other.stale, self.missing + other.missing)


@dataclass(frozen=True, slots=True)
class TransactionReply:
    """The ids that a transaction sent, in order; the places of duplicates, as in SentIds; the messages received."""

    ids: list[str]
    duplicates: list[int]
    messages: list[LeasedMessage]


def encode(document: object) -> bytes:
    """Return the JSON of a request.

    Raises ValueError for NaN, an infinity or a lone surrogate, TypeError for bytes, or for a text that is no string.
    """
    if isinstance(document, dict) and not isinstance(document.get("text", ""), str | bytes):
        kind = type(document["text"]).__name__
        raise TypeError(f"a text is a string, not {kind}: use json.dumps, or send_many for messages with fields")
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_refuse)
    return text.encode()


def check_names(call: str, options: Mapping[str, object], known: Any) -> None:
    """Raise TypeError, as Python does, for an option of the call that is not in the `known` TypedDict."""
    for name in options:
        if name not in known.__optional_keys__:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")


def drop_none(**fields: object) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def require_list(items: Many) -> Many:
    """Return the same list. Raises TypeError for a string or a dict, which Python would iterate over."""
    if isinstance(items, str | bytes | Mapping):
        raise TypeError(f"this must be a list, not {type(items).__name__}: put it in brackets, [...]")
    return items


def to_document(message: str | Outgoing) -> Outgoing:
    """Return the message to send; a bare string is its text."""
    return {"text": message} if isinstance(message, str) else message


def parse_message(document: Mapping[str, Any], queue: str) -> Message:
    """Return the message of a reply's JSON, without the fields that this client does not know."""
    return Message(**_known_fields(document, queue))


def parse_leased(documents: Iterable[Mapping[str, Any]], queue: str, make: Callable[..., L]) -> list[L]:
    """Return the messages of the reply to a read with a lease, made by `make` from their fields."""
    return [make(**_known_fields(document, queue)) for document in documents]


def _refuse(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("a message is text, not bytes: decode them, or send binary data as base64")
    raise TypeError(f"JSON cannot hold {value!r}, which is of type {type(value).__name__}")


def _known_fields(document: Mapping[str, Any], queue: str) -> dict[str, Any]:
    known = {name: document[name] for name in _PLAIN_FIELDS if name in document}
    known.setdefault("queue", queue)
    for name in ("sent_at", "leased_until"):
        if isinstance(document.get(name), str):
            known[name] = moment(document[name])
    return known


@lru_cache(256)  # the messages of a batch share their times
def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


_PLAIN_FIELDS = (
    "text", "queue", "id", "receive_count", "receipt", "key", "priority", "recipient", "attributes",
    "delay", "ttl", "dedup_id", "attribute_types", "group", "trace", "state", "leased_by",
)  # fmt: skip
