"""The contents of a database, as a migration reads them from one engine and writes them to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol


class MovedQueue(NamedTuple):
    """A queue without its messages. `settings` is the JSON of the changed settings, with sorted keys."""

    name: str
    version: int
    settings: str
    ready: int
    leased: int
    delayed: int
    blocked: int
    bytes: int
    sent: int
    received: int
    acked: int
    expired: int
    dead_lettered: int
    used_at: int  # time of the last use, for the setting `expires`
    created_at: int
    modified_at: int


class MovedMessage(NamedTuple):
    id: int
    queue: str
    state: str  # ready, leased, delayed or blocked
    priority: int
    recipient: str
    key: str | None
    due_at: int  # end of a lease or delay; for a ready message when it became ready, 0: at its arrival
    token: int | None  # of the last delivery; negative after a release: its lease cannot be extended
    receive_count: int
    sent_at: int
    arrived_at: int  # arrival in this queue: ttl and retention count from it
    ttl: int | None  # ms, as sent; a dead letter keeps it without effect
    origin: str | None  # of a dead letter: the queue that it last left
    deaths: str | None  # of a dead letter: JSON for codec.with_dead_letter_history
    fields: str | None
    text: str
    first_received_at: int | None
    holder: str | None  # of the last lease


class MovedDedup(NamedTuple):
    """A remembered dedup_id; `key` is "" unless it is unique only among the messages of a key."""

    queue: str
    dedup_id: str
    key: str
    message_id: int
    forget_at: int


class MovedReply(NamedTuple):
    """A stored reply to a request with an Idempotency-Key; `queue` is "" for a request over several queues.

    `ids` are those of the sent messages, None for a request that sends none. `messages` is JSON: the first 8 fields of
    Message for each received one, None for a request that receives none. "null" means that too many messages were due
    for one transaction.
    """

    queue: str
    key: str
    fingerprint: bytes
    ids: list[int] | None
    messages: str | None
    forget_at: int


class MovedMove(NamedTuple):
    """A storage.model.Move, which has moved the messages above `after` and up to `last`."""

    queue: str
    task: str
    destination: str | None
    rate: int | None
    started_at: int
    status: str
    moved: int
    to_move: int
    failure: str | None
    after: int
    last: int


class Remembered(NamedTuple):
    """All that is no queue and no message."""

    dedups: Iterator[MovedDedup]
    replies: Iterator[MovedReply]
    moves: Iterator[MovedMove]
    last_id: int
    identity: bytes


class Contents(Protocol):
    """Read access to the contents of a database. Times are ms of the wall clock."""

    fault: ClassVar[tuple[type[Exception], ...]]  # the exceptions of its driver

    def queues(self) -> list[MovedQueue]:
        """Return the queues in order of name."""

    def messages(self, after: int) -> Iterator[MovedMessage]:
        """Yield the messages with an id above `after`, each queue's in order of id; those of a source all in order."""

    def dedups(self) -> Iterator[MovedDedup]:
        """Yield the remembered dedup_ids in order of queue, dedup_id and key."""

    def replies(self) -> Iterator[MovedReply]:
        """Yield the stored replies in order of queue and key."""

    def moves(self) -> Iterator[MovedMove]:
        """Yield the moves in order of queue, oldest first."""

    def last_id(self) -> int:
        """Return the highest id ever given to a message."""

    def identity(self) -> bytes:
        """Return Store.identity."""

    def close(self) -> None: ...


class Source(Contents, Protocol):
    def move(self) -> str | None:
        """Return the id of the unfinished or finished migration from it, None if there is none."""

    def seal(self) -> str:
        """Refuse all writes, of every process, until `unseal`; return the id of this migration.

        If a migration has already begun, return its id, so that it continues.
        """

    def unseal(self) -> None:
        """Accept writes again; the next migration gets a new id. Raises StoreError if the target is complete."""

    def is_moved(self) -> bool:
        """Return whether `mark_moved` was called."""

    def mark_moved(self) -> None:
        """Record that the target serves the messages now: `unseal` fails from now on."""


class Target(Contents, Protocol):
    """A database to fill. No service can open it before `open`."""

    def move(self) -> str | None:
        """Return the id of the migration that has begun to fill it; None if it is empty."""

    def begin(self, move: str) -> int:
        """Prepare it for additions; return the highest id of a message that this migration has already copied."""

    def add_queues(self, queues: Sequence[MovedQueue]) -> None:
        """Add queues; keep those that it already has."""

    def add_messages(self, messages: Sequence[MovedMessage]) -> None:
        """Add all the messages or none."""

    def add_remembered(self, remembered: Remembered) -> None:
        """Replace the dedup_ids, replies, moves and identity; the next message gets an id above the last one."""

    def open(self) -> None:
        """Sync it to disk and make it available to the service."""
