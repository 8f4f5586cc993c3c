"""Moving all that a database holds to another one, of whatever engine: `migrate(source, target)`.

1. The source is sealed: from then on, killed or not, whoever serves it is refused each write (503 `busy`).
2. Everything is copied with its ids, in chunks. A move that was interrupted goes on behind the last chunk.
3. Both are read from end to end, and queue by queue their counts and digests must agree.
4. The target is opened. The source stays sealed: a service left running on it gives out nothing a second time.

An engine offers a Source and a Target (open_source and open_target choose by the URL) in storage/ENGINE_moving.py.
Times are ms of the wall clock, for an engine's own time means nothing to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import ClassVar, NamedTuple, Protocol

from storage.errors import StoreError

CHUNK = 10_000  # messages that are copied in one transaction, at most …
CHUNK_BYTES = 16 * 1024 * 1024  # … and bytes of their texts, but for the last of them


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
    deaths: str | None  # of a dead letter: JSON, as with_deaths in storage/kept.py takes it
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


class Tally(NamedTuple):
    """What one queue holds. The digest is of everything a client could ever see of it."""

    messages: int
    digest: str


class MoveFailed(StoreError):
    """The source stays sealed, and the target is not opened."""


def migrate(source_url: str, target_url: str) -> dict[str, Tally]:
    """All that the source holds is at the target, which may be served; what it is, by queue.

    The same call again, after it was killed or failed, goes on. Raises StoreError.
    """
    from storage import open_source, open_target

    with closing(open_target(target_url)) as target, closing(open_source(source_url)) as source:
        try:
            return _move(source, target)
        except (*source.fault, *target.fault) as fault:
            raise MoveFailed(f"the move was interrupted: {fault}") from fault


def reopen(source_url: str) -> None:
    """A move that was begun is given up: the source takes writes again. Raises StoreError once all has been moved."""
    from storage import open_source

    with closing(open_source(source_url)) as source:
        source.unseal()


def _move(source: Source, target: Target) -> dict[str, Tally]:
    part_of = target.move()
    if part_of not in (None, source.move()):
        raise MoveFailed("the target has a part of another move; delete that if you do not need it")
    if source.is_moved() and part_of is None:
        raise MoveFailed("the messages were moved already, and may be in use at the target")
    last = target.begin(source.seal())
    target.add_queues(source.queues())
    for chunk in _chunks(source.messages(last)):
        target.add_messages(chunk)
    target.add_memories(source.dedups(), source.replies(), source.last_id())
    moved = _compare(source, target)
    source.has_moved()  # first: from now on it must not be unsealed
    target.open()
    return moved


def _chunks(messages: Iterator[MovedMessage]) -> Iterator[list[MovedMessage]]:
    chunk: list[MovedMessage] = []
    size = 0
    for message in messages:
        chunk.append(message)
        size += len(message.text)
        if len(chunk) == CHUNK or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _compare(source: Contents, target: Contents) -> dict[str, Tally]:
    theirs, ours = _tally(source), _tally(target)
    if (source.last_id(), theirs) == (target.last_id(), ours):
        return theirs
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    raise MoveFailed(f"the copy differs from the source, in: {', '.join(differing) or 'the next id'}")


def _tally(contents: Contents) -> dict[str, Tally]:
    """By queue; under "" what is remembered of requests over several."""
    digests, counts = {"": hashlib.sha256()}, {"": 0}
    for queue in contents.queues():
        digests[queue.name], counts[queue.name] = hashlib.sha256(repr(queue).encode()), 0
    for message in contents.messages(0):
        digests[message.queue].update(repr(message).encode())
        counts[message.queue] += 1
    for memory in contents.dedups():
        digests[memory.queue].update(repr(memory).encode())
    for reply in contents.replies():
        digests[reply.queue].update(repr(reply).encode())
    return {name: Tally(counts[name], digest.hexdigest()) for name, digest in digests.items()}
