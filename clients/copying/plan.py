"""What both halves of a file copy agree on: which copy it is, and the marks at its beginning and end.

A copy is a sequence of messages: a begin mark, the file's lines in order, an end mark. Only attributes tell what a
message is, so a line may hold any text. The begin mark is addressed to nobody who reads: it stays in the queue until
the queue is deleted, and says by a peek whose lines these are, however often either half is killed and run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..client import QueueClient
from ..errors import Forbidden, NotFound

FORMAT = 2  # of the messages and their cut into batches; a new one makes every unfinished copy another copy
MARK_READER = "copy-begin-mark"  # the recipient of begin marks, which nobody reads as


class CopyError(Exception):
    """The copy cannot go on, or went wrong; `str()` of it is one line that says why."""


class Unresumable(CopyError):
    """The copy failed for good: nothing of it is of use to another run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A copy of a file as it is now. Another size, time, inode, place or batch size makes another copy.

    What is appended to the file later is not part of it.
    """

    source: str
    target: str | None
    batch: int
    size: int
    modified: int  # ns
    inode: int

    @classmethod
    def of(cls, source: str, target: str | None, batch: int) -> Self:
        """Raises CopyError, OSError."""
        found = os.stat(source)
        if not stat.S_ISREG(found.st_mode):
            raise CopyError(f"{source}: not a regular file")
        target = None if target is None else os.path.realpath(target)
        return cls(os.path.realpath(source), target, batch, found.st_size, found.st_mtime_ns, found.st_ino)

    @property
    def id(self) -> str:
        parts = [FORMAT, self.source, self.target, self.batch, self.size, self.modified, self.inode]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def queue(self) -> str:
        """The queue of this copy and no other."""
        return queue_of(self.id)

    def holds(self, descriptor: int, sha256: Callable[[], str], sent: str) -> bool:
        """Whether the open file has been as it was when the plan was made, but for what was appended.

        Where something was, the planned bytes have to have the digest `sent` still: `sha256` reads them again.
        """
        now = os.fstat(descriptor)
        if now.st_ino != self.inode or now.st_size < self.size:
            return False
        return now.st_mtime_ns == self.modified or (now.st_size > self.size and sha256() == sent)


@dataclass(frozen=True, slots=True)
class BeginMark:
    copy: str
    size: int


@dataclass(frozen=True, slots=True)
class EndMark:
    copy: str
    size: int
    count: int  # messages between the marks
    sha256: str


def queue_of(copy: str) -> str:
    return f"copy-{copy}"


def find_begin_mark(client: QueueClient) -> BeginMark | None:
    """The mark of the copy in the client's queue, or None for a queue that is empty or not there.

    Raises CopyError when the queue holds something else.
    """
    first = client.peek(limit=1)
    if not first:
        return None
    attributes: Any = first[0].attributes
    if first[0].recipient != MARK_READER or "copy" not in attributes:
        raise CopyError(f"queue '{client.queue}' contains messages that do not belong to a file copy")
    return BeginMark(str(attributes["copy"]), int(attributes["size"]))


def totals(client: QueueClient) -> dict[str, int | float] | None:
    """The counts of the client's queue, or None if there is no such queue."""
    try:
        return client.stats()
    except NotFound:
        return None


def delete_queue(client: QueueClient, queue: str | None = None) -> None:
    """It is gone, or was not there."""
    try:
        client.delete_queue(queue)
    except NotFound:
        return


def clear_away(client: QueueClient, say: Callable[[str], object]) -> None:
    """The queue of a copy that is complete is gone; or it is said why it stays, which takes nothing from the copy."""
    try:
        delete_queue(client)
    except Forbidden as refusal:
        say(f"the copy is complete; its queue '{client.queue}' stays: {refusal}")
