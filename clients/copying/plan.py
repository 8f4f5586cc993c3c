"""Common to both halves of a file copy: the identity of the copy, and the marks at its beginning and end.

A copy is a sequence of messages: a begin mark, the file's lines in order, an end mark. Attributes alone distinguish
them, so a line may have any text. No reader uses the begin mark's recipient, so the mark stays until the queue is
deleted. A peek at it identifies the copy, however often either half is killed and restarted.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..client import QueueClient
from ..errors import Forbidden, NotFound
from ..queues import QueueStats

FORMAT = 3  # of messages and batches; with a new number, no unfinished copy is continued
STDIN = "/dev/stdin"
MARK_READER = "copy-begin-mark"  # the recipient of begin marks, which no reader uses


class CopyError(Exception):
    """The copy failed; `str()` of it is one line with the reason."""


class Unresumable(CopyError):
    """The copy failed, and another run cannot continue it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A copy of a file as it is now. A change of size, time, inode, mode, path or batch size makes it another copy.

    Bytes that are appended to the file later are not part of it. A stream, which is a pipe or a file that is followed,
    has no size, and no other run can continue its copy.
    """

    source: str
    target: str | None
    batch: int
    size: int | None  # None for a stream
    modified: int  # ns
    inode: int
    mode: int | None  # permissions for a new target; None for a pipe
    id: str

    @classmethod
    def of(cls, source: str, target: str | None, batch: int, follow: bool = False) -> Self:
        """Return the plan for a file, or a pipe; "-" is stdin. Raises CopyError, OSError."""
        source = STDIN if source == "-" else source
        found = os.stat(source)
        is_pipe = stat.S_ISFIFO(found.st_mode)
        if not (is_pipe or stat.S_ISREG(found.st_mode)):
            raise CopyError(f"{source}: neither a regular file nor a pipe")
        real = source if is_pipe else os.path.realpath(source)  # the link to a pipe leads to no file
        target = None if target is None else os.path.realpath(target)
        size = None if is_pipe or follow else found.st_size
        mode = None if is_pipe else stat.S_IMODE(found.st_mode) & 0o777
        parts = (real, target, batch, size, found.st_mtime_ns, found.st_ino, mode)
        digest = hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:12]
        return cls(*parts, id=secrets.token_hex(6) if size is None else digest)

    @property
    def queue(self) -> str:
        """Return the name of this copy's own queue."""
        return queue_of(self.id)

    def holds(self, descriptor: int, sha256: Callable[[], str], sent: str) -> bool:
        """Return whether the open file is still as planned, except for appended bytes.

        If bytes were appended, `sha256` reads the planned ones again, and their digest must be `sent`.
        """
        if self.size is None:
            return True
        now = os.fstat(descriptor)
        if now.st_ino != self.inode or now.st_size < self.size:
            return False
        return now.st_mtime_ns == self.modified or (now.st_size > self.size and sha256() == sent)


@dataclass(frozen=True, slots=True)
class BeginMark:
    copy: str


@dataclass(frozen=True, slots=True)
class EndMark:
    copy: str
    size: int
    count: int  # messages between the marks
    sha256: str
    mode: int | None = None  # permissions for a new target


def queue_of(copy: str) -> str:
    return f"copy-{copy}"


def find_begin_mark(client: QueueClient) -> BeginMark | None:
    """Return the mark of the copy in the client's queue; None if the queue is empty or does not exist.

    Raises CopyError if the queue contains other messages.
    """
    first = client.peek(limit=1)
    if not first:
        return None
    attributes: Any = first[0].attributes
    if first[0].recipient != MARK_READER or "copy" not in attributes:
        raise CopyError(f"queue '{client.queue}' contains messages that do not belong to a file copy")
    return BeginMark(str(attributes["copy"]))


def totals(client: QueueClient) -> QueueStats | None:
    """Return the stats of the client's queue; None if it does not exist."""
    try:
        return client.stats()
    except NotFound:
        return None


def delete_queue(client: QueueClient, queue: str | None = None) -> None:
    """Delete the queue if it exists."""
    try:
        client.delete_queue(queue)
    except NotFound:
        return


def clear_away(client: QueueClient, say: Callable[[str], object]) -> None:
    """Delete the queue of a complete copy, or say why the service refuses to."""
    try:
        delete_queue(client)
    except Forbidden as refusal:
        say(f"the copy is complete; its queue '{client.queue}' stays: {refusal}")
