"""The domain: messages, queues, settings, and the Store protocol that every engine keeps."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from storage.errors import InvalidInput, MessageNotFound
from storage.literals import encode

MAX_BATCH = 10_000  # messages in one write, receipts in one ack
MAX_LIMIT = 1_000  # messages in one read
MAX_LEASE = 43_200.0  # seconds
MAX_WAIT = 20.0  # seconds
MAX_DURATION = 10 * 366 * 86_400.0  # seconds: the longest delay, ttl, retention or dedup_window
MAX_NAME = 128  # characters of a key, recipient or dedup_id
MAX_REASON = 1_024  # characters of the reason of a rejection
MAX_ATTRIBUTES = 65_536  # bytes of the attributes, as JSON
MAX_READ_BYTES = (
    16 * 1024 * 1024
)  # bytes of text and fields in one read; the first message always comes, whatever its size
MAX_PAGE = 1_000  # queues in one listing
MAX_RECIPIENTS = 1_000  # whose messages one read with `recipient=None` puts in order
MAX_CHAIN = 1_000  # dead-letter queues one behind the other
MAX_TRANSACTION_QUEUES = 1_000  # queues in one transaction

# What one transaction does at most, where a verb has no bound of its own: no request holds the others up for long.
CHUNK = 10_000  # messages …
CHUNK_BYTES = 32 * 1024 * 1024  # … and bytes of their texts
REQUEST_WINDOW = 300.0  # seconds an Idempotency-Key is remembered, but for a send and a receive: see Once
STATES = ("ready", "leased", "delayed", "blocked")  # a state's place is the number that engines keep for it

QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
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
            if not isinstance(document, dict):
                raise InvalidInput("a message must be a JSON object with a 'text'")
            if not isinstance(document.get("text"), str):
                _no_unknown(document)
                raise InvalidInput("'text' is required and must be a string", field="text")
            _no_lone_surrogates(document["text"], "text")
            if len(document) == 1:
                return cls(document["text"])
            return _with_fields(document)
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


class Once(NamedTuple):
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
            check = _SETTINGS.get(name)
            if check is None:
                raise InvalidInput(
                    f"unknown setting '{name[:MAX_NAME]}': use {', '.join(_SETTINGS)}", field=name[:MAX_NAME]
                )
            if value is not None:
                check(name, value)
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


class Observer(Protocol):
    """Is told what a store does in this process, on the threads that do it: it must be quick, and not raise."""

    def committed(self, operations: int, seconds: float) -> None:
        """A transaction of so many operations has ended, so long after it was begun with."""

    def waiting(self, readers: int) -> None:
        """So many readers wait now."""


class ReadRoom(Protocol):
    """Memory for what large reads bring. It is called by the thread that reads."""

    def take(self, size: int, *, wait: bool) -> None:
        """Take so many bytes, in place of those this thread's read has. Raises Busy, and then it has none."""

    def keep(self, size: int) -> None:
        """Keep so many of them, until the reply has been sent, and give the others back."""


class Store(Protocol):
    """A durable set of queues. Every method that returns has its change on disk (fsync) before it does.

    Any method may raise Busy or DiskFull, nothing having been done; Interrupted, which says how much was; or
    Unavailable, when what became of it is not known. With `once`, a repeated call changes nothing and returns what the
    first one did; one that was interrupted goes on where it was. Raises IdempotencyMismatch for another request's key.
    All methods are safe to call from many threads and many processes at once.
    """

    def send(self, queue: str, messages: Sequence[NewMessage], once: Once | None = None) -> Sent:
        """Store all messages, in order, behind all that are there, or none.

        A message whose dedup_id was used within the queue's dedup window is not stored: its id is the first
        one's, and its place is among the duplicates. Creates the queue. Raises QueueFull.
        """

    def receive(self, ask: Receive, once: Once | None = None, present: Callable[[], bool] = ...) -> Sequence[Message]:
        """Return at most `limit` messages in delivery order, or none when `wait` seconds brought none.

        Without a lease they are removed; with one they are invisible until it ends. `present` is asked right
        before messages are taken: when it says False (the reader has gone) nothing is. With `once`, a repeated
        call gets the same messages and receipts, as far as they have not been settled. Raises TooManyPollers.
        """

    def ack(self, receipts: Sequence[str], queue: str | None = None, once: Once | None = None) -> AckResult:
        """Remove the messages whose receipts hold, and report the others. Receipts not of `queue` are missing.

        A batch's receipt stands for one of each of its messages. Raises InvalidInput for more than MAX_BATCH messages.
        """

    def settle(self, receipt: str, queue: str | None = None, once: Once | None = None) -> None:
        """Remove the message. Raises MessageNotFound, StaleReceipt."""

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: Once | None = None) -> int:
        """Let the lease end `lease` seconds from now; return that moment (ms, wall clock).

        A lease that has ended holds again, one that was released does not. Raises MessageNotFound, StaleReceipt.
        """

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: Once | None = None
    ) -> ExtendResult:
        """Extend those that hold, as `extend` does, in one transaction, and report the others. Receipts as in `ack`."""

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: Once | None = None,
        *,
        counted: bool = True,
    ) -> None:
        """Give the message back, to be delivered again after `delay` seconds. Raises as `settle` does.

        Not `counted`: as if it had not been delivered, so that its receive_count is one less and it does not die.
        The receipt can still settle the message, and no longer extend its lease.
        """

    def reject(
        self, receipt: str, reason: str = "rejected", queue: str | None = None, once: Once | None = None
    ) -> None:
        """Move the message to the dead-letter queue now. Raises as `settle` does."""

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: Once | None = None,
        present: Callable[[], bool] = ...,
    ) -> Transacted:
        """Settle all receipts, send all messages to their queues and lease the next messages, in one commit.

        Nothing happens at all when a receipt is stale or missing (StaleReceipt, with its index) or a queue full.
        Waiting for messages, if asked for, comes after that commit. Raises InvalidInput for receipts and messages of
        more than MAX_TRANSACTION_QUEUES queues.
        """

    def message(self, queue: str, id: int) -> Message:
        """Return a message with its state, changing nothing. Raises QueueNotFound, MessageNotFound."""

    def delete_message(self, queue: str, id: int, once: Once | None = None) -> None:
        """Remove a message that is not leased. Raises QueueNotFound, MessageNotFound, MessageLeased."""

    def reschedule(self, queue: str, id: int, delay: float, once: Once | None = None) -> None:
        """Let a message that is not leased be due `delay` seconds from now, whatever its delay was. Raises as above."""

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: Once | None = None) -> None:
        """Move a message that is not leased to the dead-letter queue. Raises as above."""

    def peek(
        self,
        queue: str,
        *,
        limit: int = 100,
        after: int = 0,
        before: int | None = None,
        state: State | None = None,
        key: str | None = None,
    ) -> list[Message]:
        """Return messages with an id above `after`, in order of id, changing nothing; none for a queue not there.

        With `before`, those with a lower id than that, the newest first. `key`: only messages of this key.
        """

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        """Return the queues whose names begin with `prefix` and are greater than `after`, in order of name."""

    def queue(self, name: str) -> Queue:
        """Raises QueueNotFound."""

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: Once | None = None
    ) -> Queue:
        """Change these of QueueSettings and keep the others; touches no message. Creates the queue.

        With `version`, only if that is still the settings' version, else PreconditionFailed. Raises InvalidInput, also
        where dead letters would go round in a circle.
        """

    def delete_queue(self, name: str, once: Once | None = None) -> None:
        """Delete the queue and all in it, its settings and totals too. Raises QueueNotFound.

        Raises InvalidInput where by default, without its settings, its dead letters would come back to it.
        """

    def purge(self, queue: str, once: Once | None = None) -> int:
        """Remove all messages that are in the queue at the call, and forget their dedup_ids; return their number.

        Raises QueueNotFound.
        """

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        once: Once | None = None,
    ) -> int:
        """Move dead letters in this queue, or from it, back where they last died, in order, with a fresh count.

        At most `limit`, only these `ids`, and only those that last died of `reason`, where these are given; return
        how many. Leased ones stay. Raises QueueNotFound.
        """

    def check_ready(self) -> None:
        """Return if a write was committed within the last second, or could be just now."""


class Lifecycle(Protocol):
    """What the process that serves a store needs of it, and no request."""

    def on_failure(self, call: Callable[[], None]) -> None:
        """`call` is called, once, when the storage has failed so that only opening it anew can help.

        From then on every method raises Unavailable.
        """

    def observe(self, observer: Observer) -> None:
        """Report to this observer from now on."""

    def limit_reads(self, room: ReadRoom) -> None:
        """From now on ask this room for memory before a read that may need much. It then may raise Busy."""

    def disk(self) -> Disk:
        """As of now."""

    def stop_waiting(self) -> None:
        """Let all that wait in `receive` return empty-handed at once, and nobody wait from now on."""

    def close(self) -> None:
        """Free files, connections and threads; no other method may be called after."""


class Engine(Store, Lifecycle, Protocol):
    """What `open_store` returns."""


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


def check_queue_name(name: str, field: str | None = "queue") -> str:
    """The name itself; raises InvalidInput."""
    if not QUEUE_NAME.fullmatch(name):
        raise InvalidInput(
            "a queue name must be 1 to 80 of A-Z a-z 0-9 . _ - and start with a letter or a digit", field=field
        )
    return name


@lru_cache(maxsize=4096)
def rfc3339(moment: int) -> str:
    """A time in ms since 1970 as RFC 3339, UTC, with milliseconds."""
    seconds, ms = divmod(moment, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


def milliseconds(value: object, field: str, *, least: float = 0.0, most: float = MAX_DURATION) -> int:
    """A duration in seconds as whole ms, rounded up so that nothing greater than 0 becomes 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidInput(f"'{field}' must be a number of seconds from {least:g} to {most:.12g}", field=field)
    return math.ceil(value * 1000)


def _no_unknown(document: Mapping[str, Any]) -> None:
    for name in document:
        if name != "text" and name not in _CHECKS:
            raise InvalidInput(
                f"unknown field '{name[:MAX_NAME]}': use text, {', '.join(_CHECKS)}", field=name[:MAX_NAME]
            )


def _with_fields(document: dict[str, Any]) -> NewMessage:
    fields = document.copy()
    del fields["text"]
    for name, value in fields.items():
        check = _CHECKS.get(name)
        if check is None:
            _no_unknown(document)
        else:
            check(name, value)
    written = encode(fields)
    if "attributes" in fields:  # all other fields are checked, and small
        _no_lone_surrogates(written, "attributes")
        if len(written) > MAX_ATTRIBUTES // 4 and len(written.encode()) > MAX_ATTRIBUTES:
            raise InvalidInput(f"'attributes' must be at most {MAX_ATTRIBUTES} bytes", field="attributes")
        if len(fields) == 1:
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


def check_name(field: str, value: object, most: int = MAX_NAME) -> str:
    """A key, recipient or dedup_id (or reason): the string itself; raises InvalidInput."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise InvalidInput(f"'{field}' must be a string of 1 to {most} characters", field=field)
    _no_lone_surrogates(value, field)
    return value


def _check_priority(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise InvalidInput("'priority' must be a whole number from 0 to 9", field=field)


def _check_attributes(field: str, value: object) -> None:
    if isinstance(value, dict):
        for item in value.values():
            if not isinstance(item, _SCALARS):
                break
        else:
            return
    raise InvalidInput("'attributes' must be an object of strings, numbers, booleans and nulls", field=field)


_SCALARS = (str, int, float, bool, type(None))


def _check_ttl(field: str, value: object) -> None:
    if milliseconds(value, field) == 0:
        raise InvalidInput(f"'{field}' must be a number of seconds greater than 0", field=field)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "key": check_name,
    "priority": _check_priority,
    "recipient": check_name,
    "attributes": _check_attributes,
    "delay": lambda field, value: milliseconds(value, field),
    "ttl": _check_ttl,
    "dedup_id": check_name,
}


def _check_whole(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise InvalidInput(f"'{field}' must be a whole number of at least {least}", field=field)


def _check_yes_or_no(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"'{field}' must be true or false", field=field)


def _check_queue(field: str, value: object) -> None:
    check_queue_name(value if isinstance(value, str) else "", field)


_SETTINGS: dict[str, Callable[[str, Any], object]] = {
    "lease": lambda field, value: milliseconds(value, field, least=1, most=MAX_LEASE),
    "max_receives": lambda field, value: _check_whole(field, value, 0),
    "dead_letter_queue": _check_queue,
    "retention": _check_ttl,
    "max_messages": lambda field, value: _check_whole(field, value, 1),
    "max_bytes": lambda field, value: _check_whole(field, value, 1),
    "dedup_window": lambda field, value: milliseconds(value, field),
    "dead_letter_expired": _check_yes_or_no,
    "paused": _check_yes_or_no,
    "delay": lambda field, value: milliseconds(value, field),
    "expires": lambda field, value: milliseconds(value, field, least=1),
}


def _no_lone_surrogates(text: str, field: str) -> None:
    if text.isascii():  # most are, and a string knows
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"'{field}' must be Unicode text without lone surrogates", field=field) from None
