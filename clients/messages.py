"""Messages as a reader holds them and as a writer sends them, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, Protocol, TypedDict, TypeVar

Attribute = str | int | float | bool | None
Lease = float | Literal["default"]  # seconds, or the queue's own setting

Many = TypeVar("Many", bound=Iterable[object])


class Outgoing(TypedDict, total=False):
    """A message to be sent. Only `text` is required; `queue` has a meaning in a transaction only.

    key: messages of one key are delivered in order, one reader at a time. priority: 0–9, higher first.
    recipient: only a reader that names it gets the message. delay, ttl: seconds; not delivered before, not after.
    dedup_id: a second message with the same one, within the queue's window, is not stored.
    """

    text: str
    key: str
    priority: int
    recipient: str
    attributes: Mapping[str, Attribute]
    delay: float
    ttl: float
    dedup_id: str
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as it was received. `id` and `sent_at` are None in a plain read of several: the wire has none.

    With a lease it is invisible to others until `leased_until`, and has to be settled by its `receipt`: by ack,
    release or reject. Whoever holds it for longer extends the lease.
    """

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
    state: str | None = None  # in a peek only
    _client: Settler | None = field(default=None, repr=False, compare=False)

    def ack(self) -> None:
        """Done with: the message is gone. Raises StaleReceipt or NotFound if it is no longer ours."""
        self._holder().ack(self)

    def extend(self, lease: float) -> None:
        """Let the lease end `lease` seconds from now."""
        self._holder().extend(self, lease)

    def release(self, delay: float = 0, *, counted: bool = True) -> None:
        """Give it back, to be delivered again, at once or in `delay` seconds.

        Not `counted`: as if it had not been delivered, for a message that was not worked on.
        """
        self._holder().release(self, delay=delay, counted=counted)

    def reject(self, reason: str | None = None) -> None:
        """Move it to the dead letters now."""
        self._holder().reject(self, reason=reason)

    def complete(self, send: Iterable[str | Outgoing] = ()) -> TransactionReply:
        """Ack it and send what came of it, in one commit: both or neither."""
        return self._holder().transact(ack=[self], send=send)

    def _holder(self) -> Settler:
        if self._client is None:
            raise ValueError("this message did not come from a QueueClient: settle it through one")
        return self._client


class Settler(Protocol):
    """What a message needs of the client that received it: QueueClient's methods."""

    def ack(self, message: Message) -> None: ...

    def extend(self, message: Message, lease: float) -> None: ...

    def release(self, message: Message, *, delay: float, counted: bool) -> None: ...

    def reject(self, message: Message, *, reason: str | None) -> None: ...

    def transact(self, *, ack: Iterable[Message | str], send: Iterable[str | Outgoing]) -> TransactionReply: ...


class ReadingOne(TypedDict, total=False):
    """Which messages are read: those of `queue`, for `recipient`, or for `any_recipient`; else unaddressed ones."""

    queue: str | None
    recipient: str | None
    any_recipient: bool


class Reading(ReadingOne, total=False):
    """The same, or those of several `queues`, in order of preference."""

    queues: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Reading that was checked.

    Raises ValueError, TypeError: a reader that was misunderstood would take messages which are not its own.
    """

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
    def readers(self) -> dict[str, str]:
        """As whom, in the words of the wire."""
        if self.any_recipient:
            return {"recipients": "any"}
        return {} if self.recipient is None else {"recipient": self.recipient}


class NextMessages(TypedDict, total=False):
    """What a transaction receives after its commit, always with a lease; as in QueueClient.receive.

    `recipients`: "any" for messages of every recipient.
    """

    queue: str | None
    recipient: str | None
    recipients: Literal["any"]
    limit: int
    wait: float
    lease: Lease


class SentId(str):
    """A sent message's id. `duplicate`: its dedup_id was known, so nothing was stored and the id is the first one's."""

    duplicate = False


class SentIds(list[str]):
    """The ids of messages sent, in order. `duplicates`: the places of those that were not stored, as with SentId."""

    def __init__(self, ids: Iterable[str] = (), duplicates: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self.duplicates = list(duplicates)


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """What became of a batch of receipts. Stale: the lease was given back, or is another reader's. Missing: gone.

    `leased_until` is the first end of the leases that were extended.
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
    """What became of a batch of receipts. Stale: somebody else holds the message. Missing: it is gone."""

    acked: int
    stale: list[str]
    missing: list[str]

    def __add__(self, other: AckResult) -> AckResult:
        return AckResult(self.acked + other.acked, self.stale + other.stale, self.missing + other.missing)


@dataclass(frozen=True, slots=True)
class TransactionReply:
    """The ids of what a transaction sent, in order, the places of duplicates as in SentIds, and what it received."""

    ids: list[str]
    duplicates: list[int]
    messages: list[Message]


def encode(document: object) -> bytes:
    """JSON as the service takes it. Raises ValueError for NaN, an infinity or a lone surrogate."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def drop_none(**fields: object) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def require_list(items: Many) -> Many:
    """The same. Raises TypeError for one string or one dict, which Python would take for a list of its parts."""
    if isinstance(items, str | bytes | Mapping):
        raise TypeError(f"this must be a list, not {type(items).__name__}: put it in brackets, [...]")
    return items


def to_document(message: str | Outgoing) -> Outgoing:
    """A bare string is a message's text."""
    return {"text": message} if isinstance(message, str) else message


def parse_message(document: Mapping[str, Any], queue: str, client: Settler | None) -> Message:
    """The message that a reply's JSON tells of; fields this client does not know are left out."""
    known = {name: document[name] for name in _PLAIN_FIELDS if name in document}
    known.setdefault("queue", queue)
    for name in ("sent_at", "leased_until"):
        if isinstance(document.get(name), str):
            known[name] = moment(document[name])
    return Message(**known, _client=client)


@lru_cache(256)  # the messages of a batch share theirs
def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


_PLAIN_FIELDS = (
    "text", "queue", "id", "receive_count", "receipt", "key", "priority", "recipient", "attributes",
    "delay", "ttl", "dedup_id", "state",
)  # fmt: skip
