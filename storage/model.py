"""The data model: messages, queues and their settings."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from storage.errors import InvalidInput, MessageNotFound
from storage.validation import (
    MAX_ATTRIBUTES,
    MAX_BATCH,
    MAX_CHAIN,
    QUEUE_NAME,
    check_fields,
    check_setting,
    check_text,
    milliseconds,
)

# The limits of one transaction for calls without limits of their own, so that no request delays the others for long.
CHUNK = 10_000  # messages …
CHUNK_BYTES = 32 * 1024 * 1024  # … and bytes of their texts
REQUEST_WINDOW = 300.0  # seconds that an Idempotency-Key is remembered; IdempotencyKey says for what
MOVES_KEPT = 10  # newest moves of a queue
STATES = ("ready", "leased", "delayed", "blocked")  # engines store a state as its place here
_DIGEST_NAME = re.compile(r".{62}\.[0-9a-f]{12}\.dead")  # a result of dead_letter_name
_RECEIPT = re.compile(rf"({QUEUE_NAME.pattern})~([1-9][0-9]{{0,18}})(?:-([1-9][0-9]{{0,18}}))?~([0-9a-f]{{1,16}})")


class State(StrEnum):
    """The state of a message. Only a ready one is delivered."""

    READY = "ready"
    LEASED = "leased"
    DELAYED = "delayed"
    BLOCKED = "blocked"  # an earlier message of its key is unsettled
    DEAD = "dead"  # in a dead-letter queue; only a peek at the original queue shows it


class NewMessage(NamedTuple):
    """A checked message from a client. Durations are in ms."""

    text: str
    fields: str | None = None  # the optional fields as sent, as a JSON object; None: only a text
    key: str | None = None
    priority: int = 0
    recipient: str = ""  # "": no recipient
    delay: int | None = None  # None: the queue's setting
    ttl: int | None = None
    dedup_id: str | None = None

    @property
    def size(self) -> int:
        """Return the bytes that it counts for in max_bytes and the queue's `bytes`: text and fields, in UTF-8."""
        return total_size([self])

    @classmethod
    def from_document(
        cls, document: object, index: int | None = None, most_attributes: int = MAX_ATTRIBUTES
    ) -> NewMessage:
        """Check a decoded JSON value by the API's rules. Raises InvalidInput naming the field (and the index)."""
        try:
            message = check_text(document)
            return cls(message["text"]) if len(message) == 1 else _with_fields(message, most_attributes)
        except InvalidInput as fault:
            fault.index = index
            raise


class Message(NamedTuple):
    """A message that a store returns. Times are ms since 1970, by the wall clock."""

    id: int
    queue: str
    text: str
    fields: str | None
    sent_at: int
    receive_count: int
    receipt: str | None = None  # on a leased read
    leased_until: int | None = None  # on a leased read, and in peek for a leased message
    state: State = State.READY  # set by peek
    first_received_at: int | None = None  # by a leased read; set on such reads and by peek
    deaths: str | None = None  # of a dead letter: JSON, as codec.with_dead_letter_history takes it
    leased_by: str | None = None  # in peek for a leased message: the holder in Receive, None if unknown

    @property
    def origin(self) -> str | None:
        """Return the queue that a dead letter last left."""
        return self._deaths[-1]["dead_letter_from"] if self.deaths else None

    @property
    def first(self) -> tuple[str, int]:
        """Return the queue and id of the message before its first death, which identify it through all deaths."""
        if not self.deaths:
            return self.queue, self.id
        return self._deaths[0]["dead_letter_from"], int(self._deaths[0]["dead_letter_id"])

    @property
    def total_receive_count(self) -> int:
        """Return the deliveries from all queues in which it died, and from this one."""
        earlier: int = sum(death["dead_letter_receive_count"] for death in self._deaths)
        return self.receive_count + earlier

    @property
    def _deaths(self) -> list[dict[str, Any]]:
        deaths: list[dict[str, Any]] = json.loads(self.deaths or "[]")
        return deaths


class IdempotencyKey(NamedTuple):
    """Makes a request idempotent: `key` is the client's, `fingerprint` a digest of the whole request.

    A queue remembers a send, and a receive from it alone, for its dedup_window. The store remembers all other requests
    for REQUEST_WINDOW. It remembers only changes: neither an error nor an empty read.
    """

    key: str
    fingerprint: bytes


class Receipt(NamedTuple):
    """The handle of one delivery: the queue, the message and a token that is new at every delivery.

    The receipt of a batch of `length` messages names the first and the last one.
    """

    queue: str
    id: int
    token: int
    length: int = 1

    def __str__(self) -> str:
        last = f"-{self.id + self.length - 1}" if self.length > 1 else ""
        return f"{self.queue}~{self.id}{last}~{self.token:x}"

    def covers(self, other: Receipt) -> bool:
        """Return whether the receipt `other`, of one message, is for one of these messages."""
        return (self.queue, self.token) == (other.queue, other.token) and 0 <= other.id - self.id < self.length

    def each(self) -> list[Receipt]:
        """Return a receipt for each message."""
        return [Receipt(self.queue, number, self.token) for number in range(self.id, self.id + self.length)]

    @classmethod
    def parse_one(cls, text: str) -> Receipt:
        """Parse a receipt of one message. Raises MessageNotFound, or InvalidInput for one of several messages."""
        receipt = cls.parse(text, MAX_BATCH)
        if receipt.length > 1:
            first = receipt._replace(length=1)
            raise InvalidInput(
                f"this receipt covers {receipt.length} messages: use POST /messages/ack; the first message's is {first}"
            )
        return receipt

    @classmethod
    def parse(cls, text: str, most: int) -> Receipt:
        """Parse a receipt of at most `most` messages. Raises MessageNotFound for any other text."""
        match = _RECEIPT.fullmatch(text)
        if match is None:
            raise MessageNotFound
        queue, first, last, token = match.groups()
        start, number = int(first), int(token, 16)
        length = 1 if last is None else int(last) - start + 1
        if start + length > 2**63 or number >= 2**63 or not 1 <= length <= most:
            raise MessageNotFound
        return cls(queue, start, number, length)


class Sent(NamedTuple):
    """The ids of sent messages, in order; `duplicates` are the places of messages with a known dedup_id."""

    ids: list[int]
    duplicates: list[int]


class AckResult(NamedTuple):
    """The result of a batch of receipts; `stale` and `missing` list the failed receipts, as the client sent them."""

    acked: int
    stale: list[str]
    missing: list[str]


class ExtendResult(NamedTuple):
    """The result of a batch of receipts, as AckResult; `leased_until` in ms, by the wall clock."""

    extended: int
    leased_until: int
    stale: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """A queue's settings; durations in seconds."""

    lease: float = 30.0  # of reads with lease=default
    max_receives: int = 0  # deliveries without an ack before a message is dead-lettered; 0: no limit
    dead_letter_queue: str | None = None  # None: "{queue}.dead"
    retention: float | None = None  # the upper bound of every message's ttl; None: no bound
    max_messages: int | None = None
    max_bytes: int | None = None
    dedup_window: float = 300.0
    dead_letter_expired: bool = False
    paused: bool = False  # deliver nothing; accept writes
    delay: float = 0.0  # of messages without a delay
    expires: float | None = None  # delete the queue after so long empty and unused; None: never
    wait: float = 0.0  # of reads that leave their wait to the queue
    max_message_bytes: int | None = None  # of a text, in UTF-8
    dedup_content: bool = False  # a message without a dedup_id has the SHA-256 of its text as one
    dedup_scope: str = "queue"  # where dedup_ids are unique; "key": among the messages of one key
    key_lock: str = "run"  # see storage/validation.py
    sqs: Mapping[str, str] = field(default_factory=dict)  # attributes stored for other clients, without effect
    tags: Mapping[str, str] = field(default_factory=dict)

    def changed(self, changes: Mapping[str, Any]) -> QueueSettings:
        """Return these settings with checked changes; None resets a setting. Raises InvalidInput naming the field."""
        for name, value in changes.items():
            check_setting(name, value)
        default = QueueSettings()
        return replace(
            self, **{name: getattr(default, name) if value is None else value for name, value in changes.items()}
        )


class QueueStats(NamedTuple):
    """A queue's current counts, and its totals since its creation."""

    ready: int
    leased: int
    delayed: int
    blocked: int
    dead: int  # messages of this queue that are in a dead-letter queue
    oldest_age: float  # seconds since the oldest ready message became ready; 0.0 for none, or while paused
    bytes: int
    sent: int
    received: int
    acked: int
    expired: int
    dead_lettered: int


class Queue(NamedTuple):
    name: str
    version: int  # increases with every change of the settings
    settings: QueueSettings
    stats: QueueStats
    created_at: int  # ms since 1970, by the wall clock
    modified_at: int  # when the settings last changed


class Move(NamedTuple):
    """A task that moves all messages of a dead-letter queue, for which no request waits."""

    task: str  # its id
    source: str
    to: str | None  # None: each to the queue that it last left
    rate: int | None  # messages a second at most; None: no limit
    started_at: int  # ms since 1970, by the wall clock
    status: str  # running, completed, cancelled or failed
    moved: int
    to_move: int  # messages in the source when it started
    failure: str | None  # no_origin, or queue_not_found


class Receive(NamedTuple):
    """A reader's request. `lease` is in seconds, "default" for the queue's setting, None to receive and remove.

    `recipient` "" selects messages without a recipient, None all messages. With None, a read of a queue with more than
    MAX_RECIPIENTS names considers only the first MAX_RECIPIENTS of them.
    """

    queues: tuple[str, ...] = ("default",)  # in order of preference
    limit: int = 1
    lease: float | str | None = None
    recipient: str | None = ""
    wait: float = 0.0  # seconds
    must_exist: bool = False  # raise QueueNotFound if one of the queues does not exist
    holder: str = ""  # the name under which peek shows a lease: at most 128 characters, no U+0000; "": unknown


class Transacted(NamedTuple):
    """The result of a transaction: the ids of the sent messages, and the received messages."""

    ids: list[int]
    messages: Sequence[Message]
    crowded: bool = False  # too many readers were waiting: retry later
    duplicates: Sequence[int] = ()  # as in Sent


class Disk(NamedTuple):
    """Bytes that the database uses and may still use; None if an engine does not know."""

    database: int | None
    log: int | None  # the write-ahead log
    disk_free: int | None


class ReadMemory(Protocol):
    """Memory reserved for large reads. The reading thread calls it."""

    def take(self, size: int, *, wait: bool) -> None:
        """Reserve `size` bytes in place of this thread's reservation. Raises Busy, and then the thread has none."""

    def keep(self, size: int) -> None:
        """Keep `size` of the reserved bytes until the reply has been sent, and free the others."""


def dead_letter_name(queue: str, settings: QueueSettings) -> str:
    """Return the name of a queue's dead-letter queue: the one that is set, or else `{queue}.dead`.

    A long name is cut. If it is itself a long dead-letter queue's, a digest replaces the rest, so that default names
    never form a cycle. A queue with a digest in its name cannot set another dead-letter queue.
    """
    if settings.dead_letter_queue is not None:
        return settings.dead_letter_queue
    if len(queue) <= 75 or not queue.endswith(".dead"):
        return f"{queue[:75]}.dead"
    return f"{queue[:62]}.{hashlib.sha256(queue.encode()).hexdigest()[:12]}.dead"


def check_chain(name: str, settings: QueueSettings, settings_of: Callable[[str], QueueSettings]) -> None:
    """Raise InvalidInput if dead letters of this queue, with these settings, would come back to it.

    `settings_of` returns the settings of any other queue, the default ones if it does not exist. Engines check each
    change of a dead-letter queue, and each deletion, because it restores the default. So no cycle can arise.
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
            return  # all that follow have such names, each a different one
        queue = dead_letter_name(queue, settings_of(queue))
    raise InvalidInput(f"a chain has at most {MAX_CHAIN} dead-letter queues", field="dead_letter_queue")


def check_key_lock(before: QueueSettings, after: QueueSettings, *, is_empty: bool) -> None:
    """Raise InvalidInput for another key_lock of a queue with messages, whose states follow from it."""
    if before.key_lock != after.key_lock and not is_empty:
        raise InvalidInput("'key_lock' can only change while the queue is empty", field="key_lock")


def check_receipts(receipts: Iterable[Receipt]) -> None:
    """Raise InvalidInput if the receipts are for more messages than one request may settle."""
    if sum(receipt.length for receipt in receipts) > MAX_BATCH:
        raise InvalidInput(f"the receipts cover more than {MAX_BATCH} messages")


def total_size(messages: Sequence[NewMessage]) -> int:
    """Return the bytes that the messages count for together."""
    parts = [message.text for message in messages] + [message.fields for message in messages if message.fields]
    return len("".join(parts).encode())


@lru_cache(maxsize=4096)
def rfc3339(moment: int) -> str:
    """Format a time in ms since 1970 as RFC 3339, UTC, with milliseconds."""
    seconds, ms = divmod(moment, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


def _with_fields(document: dict[str, Any], most_attributes: int) -> NewMessage:
    fields, written = check_fields(document, most_attributes)
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
