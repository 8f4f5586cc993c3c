"""All that a database holds, as a move reads it from one engine and writes it to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol


class MovedQueue(NamedTuple):
    """A queue without its messages. `settings` is JSON of what was set, keys sorted; the counts are those it tells."""

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
    used_at: int  # when it was last used, for the setting `expires`


class MovedMessage(NamedTuple):
    id: int
    queue: str
    state: str  # ready, leased, delayed or blocked
    priority: int
    recipient: str
    key: str | None
    due_at: int  # the end of a lease or delay; of a ready message since when it has been ready, 0: since it arrived
    token: int | None  # of the last delivery; negative: it was released, so its lease cannot be extended
    receive_count: int
    sent_at: int
    arrived_at: int  # when its life in this queue began, by which ttl and retention are reckoned
    ttl: int | None  # ms, as written; of a dead letter too, for which it means nothing
    origin: str | None  # of a dead letter: where it last died
    deaths: str | None  # of a dead letter: JSON, as with_dead_letter_history in storage/codec.py takes it
    fields: str | None
    text: str


class MovedDedup(NamedTuple):
    """A dedup_id that is remembered."""

    queue: str
    dedup_id: str
    message_id: int
    forget_at: int


class MovedReply(NamedTuple):
    """An Idempotency-Key of a send, a receive or a transaction; `queue` is "" for a request over several.

    What was answered: `ids` of what was sent, if anything could be; `messages` as JSON of the first 8 of Message's
    fields for each, if any could be received ("null": more had fallen due than one transaction deals with).
    """

    queue: str
    key: str
    fingerprint: bytes
    ids: list[int] | None
    messages: str | None
    forget_at: int


class Contents(Protocol):
    """All that a database holds."""

    fault: ClassVar[tuple[type[Exception], ...]]  # what its driver raises

    def queues(self) -> list[MovedQueue]:
        """In order of name."""

    def messages(self, after: int) -> Iterator[MovedMessage]:
        """Those with an id above `after`; those of a queue in order of id, and of a source all are."""

    def dedups(self) -> Iterator[MovedDedup]:
        """In order of queue and dedup_id."""

    def replies(self) -> Iterator[MovedReply]:
        """In order of queue and key."""

    def last_id(self) -> int:
        """The highest id ever given to a message."""

    def close(self) -> None: ...


class Source(Contents, Protocol):
    def move(self) -> str | None:
        """Names the move that was begun from it, if there is one."""

    def seal(self) -> str:
        """From now on nothing in it changes, whoever serves it, until it is unsealed; names this move of it.

        Where a move was begun before, it goes on.
        """

    def unseal(self) -> None:
        """It takes writes again, and its next move is another. Raises StoreError if its messages have been moved."""

    def is_moved(self) -> bool:
        """Whether `has_moved` was called."""

    def has_moved(self) -> None:
        """Its messages are in use elsewhere now: it is never unsealed again."""


class Target(Contents, Protocol):
    """Nobody can serve it before it is opened."""

    def move(self) -> str | None:
        """Names the move of which it has a part; None where there is nothing in it at all."""

    def begin(self, move: str) -> int:
        """It can be added to; the highest id of a message that this move has brought already."""

    def add_queues(self, queues: Sequence[MovedQueue]) -> None:
        """Those that were added before stay."""

    def add_messages(self, messages: Sequence[MovedMessage]) -> None:
        """All of them or none."""

    def add_memories(self, dedups: Iterator[MovedDedup], replies: Iterator[MovedReply], last_id: int) -> None:
        """In place of all that were added before; the next message gets an id above `last_id`."""

    def open(self) -> None:
        """All is there, on disk, and may be served."""
