"""Moving all that a database holds to another one, of whatever engine: `migrate(source, target)`.

1. The source is sealed: from then on, killed or not, whoever serves it is refused each write (503 `busy`).
2. Everything is copied with its ids, in chunks. A move that was interrupted goes on behind the last chunk.
3. Both are read from end to end, and queue by queue their counts and digests must agree.
4. The target is opened. The source stays sealed: a service left running on it gives out nothing a second time.

An engine offers a Source and a Target (open_source and open_target choose by the URL) in storage/ENGINE/migration.py.
Times are ms of the wall clock, for an engine's own time means nothing to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from storage import open_source, open_target
from storage.contents import Contents, MovedMessage, Source, Target
from storage.errors import StoreError

CHUNK = 10_000  # messages that are copied in one transaction, at most …
CHUNK_BYTES = 16 * 1024 * 1024  # … and bytes of their texts, but for the last of them


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
    with closing(open_target(target_url)) as target, closing(open_source(source_url)) as source:
        try:
            return _move(source, target)
        except (*source.fault, *target.fault) as fault:
            raise MoveFailed(f"the move was interrupted: {fault}") from fault


def reopen(source_url: str) -> None:
    """A move that was begun is given up: the source takes writes again. Raises StoreError once all has been moved."""
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
