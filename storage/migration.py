"""Move the contents of one database to another, of any engine: `migrate(source, target)`.

1. Seal the source: from now on every service on it refuses writes (503 `busy`), even if the migration is killed.
2. Copy everything with its ids, in chunks. An interrupted migration continues after the last chunk.
3. Read both databases completely and compare the counts and digests of each queue.
4. Open the target. The source stays sealed, so a service left running on it delivers nothing a second time.

An engine implements Source and Target in storage/ENGINE/migration.py; open_source and open_target choose by the URL.
Times are ms of the wall clock, because the service's time of one engine means nothing to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from storage import open_source, open_target
from storage.contents import Contents, MovedMessage, Remembered, Source, Target
from storage.errors import StoreError

CHUNK = 10_000  # messages in one transaction …
CHUNK_BYTES = 16 * 1024 * 1024  # … and bytes of their texts; the last message may exceed them


class Tally(NamedTuple):
    """The contents of one queue; the digest covers everything that a client can see."""

    messages: int
    digest: str


class MoveFailed(StoreError):
    """The migration failed: the source stays sealed, and the target is not opened."""


def migrate(source_url: str, target_url: str) -> dict[str, Tally]:
    """Move everything from the source to the target, which may then be served; return the contents by queue.

    Call it again after an interruption to continue. Raises StoreError.
    """
    with closing(open_target(target_url)) as target, closing(open_source(source_url)) as source:
        try:
            return _move(source, target)
        except (*source.fault, *target.fault) as fault:
            raise MoveFailed(f"the move was interrupted: {fault}") from fault


def reopen(source_url: str) -> None:
    """Cancel an unfinished migration: the source accepts writes again. Raises StoreError if it has finished."""
    with closing(open_source(source_url)) as source:
        source.unseal()


def _move(source: Source, target: Target) -> dict[str, Tally]:
    begun = target.move()
    if begun not in (None, source.move()):
        raise MoveFailed("the target has a part of another move; delete that if you do not need it")
    if source.is_moved() and begun is None:
        raise MoveFailed("the messages were moved already, and may be in use at the target")
    last = target.begin(source.seal())
    target.add_queues(source.queues())
    for chunk in _chunks(source.messages(last)):
        target.add_messages(chunk)
    target.add_remembered(
        Remembered(source.dedups(), source.replies(), source.moves(), source.last_id(), source.identity())
    )
    moved = _compare(source, target)
    source.mark_moved()  # before the target opens: from then on `unseal` must fail
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
    expected, copied = _tally(source), _tally(target)
    if (source.last_id(), source.identity(), expected) == (target.last_id(), target.identity(), copied):
        return expected
    differing = sorted(name for name in expected.keys() | copied.keys() if expected.get(name) != copied.get(name))
    raise MoveFailed(f"the copy differs from the source, in: {', '.join(differing) or 'the next id'}")


def _tally(contents: Contents) -> dict[str, Tally]:
    """Return the contents by queue; "" stands for stored replies to requests over several queues."""
    digests, counts = {"": hashlib.sha256()}, {"": 0}
    for queue in contents.queues():
        digests[queue.name], counts[queue.name] = hashlib.sha256(repr(queue).encode()), 0
    for message in contents.messages(0):
        digests[message.queue].update(repr(message).encode())
        counts[message.queue] += 1
    for dedup in contents.dedups():
        digests[dedup.queue].update(repr(dedup).encode())
    for reply in contents.replies():
        digests[reply.queue].update(repr(reply).encode())
    for move in contents.moves():
        digests[move.queue].update(repr(move).encode())
    return {name: Tally(counts[name], digest.hexdigest()) for name, digest in digests.items()}
