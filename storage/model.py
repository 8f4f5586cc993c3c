"""The domain: messages, queues and their settings."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from storage.errors import InvalidInput, MessageNotFound
from storage.validation import MAX_BATCH, MAX_CHAIN, check_fields, check_setting, check_text, milliseconds

# What one transaction does at most, where a verb has no bound of its own: no request holds the others up for long.
CHUNK = 10_000  # messages …
CHUNK_BYTES = 32 * 1024 * 1024  # … and bytes of their texts
REQUEST_WINDOW = 300.0  # seconds an Idempotency-Key is remembered, but for a send and a receive: see IdempotencyKey
STATES = ("ready", "leased", "delayed", "blocked")  # a state's place is the number that engines keep for it
_DIGEST_NAME = re.compile(r".{62}\.[0-9a-f]{12}\.dead")  # such as dead_letter_name gives
_RECEIPT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,79})~([1-9][0-9]{0,18})(?:-([1-9][0-9]{0,18}))?~([0-9a-f]{1,16})")


class State(StrEnum):
    """Where a message stands. Only a ready one is delivered."""

    READY = "ready"
    LEASED = "leased"
    DELAYED = "delayed"
    BLOCKED = "blocked"  # an earlier message of its key is not settled yet
    DEAD = "dead"  # in the dead-letter queue; told of the queue it came from


class NewMessage(NamedTuple):
    """What a client writes, checked. Durations are in ms."""

    text: str
    fields: str | None = None  # the optional fields just as written, as a JSON object; None: only text was given
    key: str | None = None
    priority: int = 0
    recipient: str = ""  # "" means unaddressed
    delay: int | None = None  # None: the queue's own
    ttl: int | None = None
    dedup_id: str | None = None

    @property
    def size(self) -> int:
        """Bytes it counts for in max_bytes and the queue's `bytes`: text and optional fields, in UTF-8."""
        return total_size([self])

    @classmethod
    def from_document(cls, document: object, index: int | None = None) -> NewMessage:
        """Checks a decoded JSON value by the API's rules; raises InvalidInput naming the field (and the index)."""
        try:
            message = check_text(document)
            return cls(message["text"]) if len(message) == 1 else _with_fields(message)
        except InvalidInput as fault:
            fault.index = index
            raise


class Message(NamedTuple):
    """A message as a store gives it out. Times are ms since 1970, by the wall clock."""

    id: int
    queue: str
    text: str
    fields: str | None
    sent_at: int
    receive_count: int
    receipt: str | None = None  # on a leased read
    leased_until: int | None = None  # on a leased read, and of a leased message in peek
    state: State = State.READY  # told by peek


class IdempotencyKey(NamedTuple):
    """Makes a request idempotent: `key` as the client named it, `fingerprint` a digest of all it asked for.

    A send, and a receive from one queue, are remembered by that queue for its dedup_window; all other requests for
    REQUEST_WINDOW, by the store as a whole. Only what was done is remembered: neither an error nor an empty read.
    """

    key: str
    fingerprint: bytes


class Receipt(NamedTuple):
    """The handle of one delivery. Its text names the queue, the message and a token new at every delivery.

    That of `length` messages given out as a run names the first and the last of them.
    """

    queue: str
    id: int
    token: int
    length: int = 1

    def __str__(self) -> str:
        last = f"-{self.id + self.length - 1}" if self.length > 1 else ""
        return f"{self.queue}~{self.id}{last}~{self.token:x}"

    def covers(self, other: Receipt) -> bool:
        """Whether the other, of one message, is of one of these."""
        return (self.queue, self.token) == (other.queue, other.token) and 0 <= other.id - self.id < self.length

    def each(self) -> list[Receipt]:
        """One for each message."""
        return [Receipt(self.queue, number, self.token) for number in range(self.id, self.id + self.length)]

    @classmethod
    def parse_one(cls, text: str) -> Receipt:
        """Of one message. Raises MessageNotFound, and InvalidInput for one of many."""
        receipt = cls.parse(text, MAX_BATCH)
        if receipt.length > 1:
            first = receipt._replace(length=1)
            raise InvalidInput(
                f"this receipt covers {receipt.length} messages: use POST /messages/ack; the first message's is {first}"
            )
        return receipt

    @classmethod
    def parse(cls, text: str, most: int) -> Receipt:
        """Raises MessageNotFound for what cannot be a receipt of ours, of at most so many messages."""
        match = _RECEIPT.fullmatch(text)
        if match is None:
            raise MessageNotFound
        queue, first, last, token = match.groups()
        receipt = cls(queue, int(first), int(token, 16), int(last or first) - int(first) + 1)
        if int(last or first) >= 2**63 or receipt.token >= 2**63 or not 1 <= receipt.length <= most:
            raise MessageNotFound
        return receipt


class Sent(NamedTuple):
    """The ids of messages sent, in order; `duplicates` are the places of those that a known dedup_id suppressed."""

    ids: list[int]
    duplicates: list[int]


class AckResult(NamedTuple):
    """What became of a batch of receipts; `stale` and `missing` are the receipts that did not work, as given."""

    acked: int
    stale: list[str]
    missing: list[str]


class ExtendResult(NamedTuple):
    """What became of a batch of receipts, as AckResult; `leased_until` in ms, by the wall clock."""

    extended: int
    leased_until: int
    stale: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """A queue's settings; durations in seconds."""

    lease: float = 30.0  # for readers that say lease=default
    max_receives: int = 0  # deliveries without an ack before a message is dead-lettered; 0: no limit
    dead_letter_queue: str | None = None  # None: "{queue}.dead"
    retention: float | None = None  # an upper bound of every message's ttl; None: kept until read
    max_messages: int | None = None
    max_bytes: int | None = None
    dedup_window: float = 300.0
    dead_letter_expired: bool = False
    paused: bool = False  # nothing is delivered; writes go on
    delay: float = 0.0  # of messages that name none
    expires: float | None = None  # an empty queue that has not been used for so long is deleted; None: never

    def changed(self, changes: Mapping[str, Any]) -> QueueSettings:
        """These settings with the changes, checked; None sets a setting back. Raises InvalidInput naming the field."""
        for name, value in changes.items():
            check_setting(name, value)
        default = QueueSettings()
        return replace(
            self, **{name: getattr(default, name) if value is None else value for name, value in changes.items()}
        )


class QueueStats(NamedTuple):
    """A queue now, and its running totals since it came into being."""

    ready: int
    leased: int
    delayed: int
    blocked: int
    dead: int  # messages that came from this queue and lie in a dead-letter queue
    oldest_age: float  # seconds that the longest-waiting ready message has been ready; 0.0 for none, or while paused
    bytes: int
    sent: int
    received: int
    acked: int
    expired: int
    dead_lettered: int


class Queue(NamedTuple):
    name: str
    version: int  # rises with every change of the settings
    settings: QueueSettings
    stats: QueueStats


class Receive(NamedTuple):
    """What a reader asks for. `lease` in seconds, "default" for the queue's setting, None to remove and take.

    `recipient` "" is for unaddressed messages, None for all; of more than MAX_RECIPIENTS names in a queue, a read
    for all takes the messages of the first so many, in order among themselves.
    """

    queues: tuple[str, ...] = ("default",)  # in order of preference
    limit: int = 1
    lease: float | str | None = None
    recipient: str | None = ""
    wait: float = 0.0  # seconds


class Transacted(NamedTuple):
    """What a transaction brought: the ids of what was sent, and the next messages."""

    ids: list[int]
    messages: Sequence[Message]
    crowded: bool = False  # no place was left to wait for messages: ask again later
    duplicates: Sequence[int] = ()  # as in Sent


class Disk(NamedTuple):
    """Bytes that the messages take and may yet take; None where an engine cannot tell."""

    database: int | None
    log: int | None  # the write-ahead log
    disk_free: int | None


class ReadRoom(Protocol):
    """Memory for what large reads bring. It is called by the thread that reads."""

    def take(self, size: int, *, wait: bool) -> None:
        """Take so many bytes, in place of those this thread's read has. Raises Busy, and then it has none."""

    def keep(self, size: int) -> None:
        """Keep so many of them, until the reply has been sent, and give the others back."""


def dead_letter_name(queue: str, settings: QueueSettings) -> str:
    """The dead-letter queue of a queue: the one that is set, or else `{queue}.dead`.

    A long name is cut to make room; of one that is itself a long dead-letter queue's a digest stands for the rest, so
    that no queue comes round to itself by such names. A queue with a digest in its name has no other one set.
    """
    if settings.dead_letter_queue is not None:
        return settings.dead_letter_queue
    if len(queue) <= 75 or not queue.endswith(".dead"):
        return f"{queue[:75]}.dead"
    return f"{queue[:62]}.{hashlib.sha256(queue.encode()).hexdigest()[:12]}.dead"


def check_chain(name: str, settings: QueueSettings, settings_of: Callable[[str], QueueSettings]) -> None:
    """Raise InvalidInput if dead letters of this queue, with these settings, would come back to it.

    `settings_of` returns those of any other queue, the default ones where it does not exist. Engines check each change
    of a dead-letter queue, and each deletion, which sets the default one back: so no circle is ever closed.
    """
    if settings.dead_letter_queue is not None and _DIGEST_NAME.fullmatch(name):
        raise InvalidInput("a queue with such a name keeps its default dead-letter queue", field="dead_letter_queue")
    first = queue = dead_letter_name(name, settings)
    for _ in range(MAX_CHAIN):
        if queue == name:
            by_default = "" if settings.dead_letter_queue else ", as by default"
            detail = f"with the dead-letter queue '{first}'{by_default}, dead letters of '{name}' would come back to it"
            raise InvalidInput(detail, field="dead_letter_queue")
        if _DIGEST_NAME.fullmatch(queue):
            return  # so do all that follow have such names, each another
        queue = dead_letter_name(queue, settings_of(queue))
    raise InvalidInput(f"a chain has at most {MAX_CHAIN} dead-letter queues", field="dead_letter_queue")


def check_receipts(receipts: Iterable[Receipt]) -> None:
    """Raises InvalidInput when they are of more messages than one request may settle."""
    if sum(receipt.length for receipt in receipts) > MAX_BATCH:
        raise InvalidInput(f"the receipts cover more than {MAX_BATCH} messages")


def total_size(messages: Sequence[NewMessage]) -> int:
    """Bytes that the messages count for together."""
    parts = [message.text for message in messages] + [message.fields for message in messages if message.fields]
    return len("".join(parts).encode())


@lru_cache(maxsize=4096)
def rfc3339(moment: int) -> str:
    """A time in ms since 1970 as RFC 3339, UTC, with milliseconds."""
    seconds, ms = divmod(moment, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


def _with_fields(document: dict[str, Any]) -> NewMessage:
    fields, written = check_fields(document)
    if fields.keys() == {"attributes"}:
        return NewMessage(document["text"], written)
    return NewMessage(
        text=document["text"],
        fields=written,
        key=fields.get("key"),
        priority=int(fields.get("priority", 0)),
        recipient=fields.get("recipient", ""),
        delay=milliseconds(fields["delay"], "delay") if "delay" in fields else None,
        ttl=milliseconds(fields["ttl"], "ttl") if "ttl" in fields else None,
        dedup_id=fields.get("dedup_id"),
    )
