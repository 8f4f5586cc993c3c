"""How much one read brings, and that a large one waits for memory before it takes any message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from storage.column_batches import ColumnBatch, Messages
from storage.errors import Busy
from storage.model import Message, ReadRoom
from storage.validation import MAX_READ_BYTES

T = TypeVar("T")

SMALL_READ_BYTES = 128 * 1024  # bytes of a read that needs no room: all threads together hold few of them
USUAL_READ_BYTES = 2 * 1024 * 1024  # bytes that a read asks for without waiting, so that it mostly need not be repeated
WIDEST = 4  # bytes of memory for a byte of UTF-8: a single wide character makes a whole text as wide


class LargeRead(Exception):
    """A read would have brought `size` bytes, more than are reserved for it; nothing was done."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class SizeBudget:
    """The bytes of text and fields one read may bring. Its first message finds room whatever its size."""

    def __init__(self, reserved: int, most: int = MAX_READ_BYTES) -> None:
        """`reserved`: bytes up to which there is memory, to be asked for by `check`."""
        self.full = False
        self.size = 0
        self._reserved = reserved
        self._most = most
        self._empty = True

    def holds(self, size: int) -> bool:
        """Whether a message of this size comes along; after the first that does not the room is full."""
        self.full = self.full or (not self._empty and self.size + size > self._most)
        self._empty = False
        self.size += 0 if self.full else size
        return not self.full

    def check(self) -> None:
        """Raise LargeRead when what comes along is more than is reserved."""
        if self.size > self._reserved:
            raise LargeRead(self.size)


def in_room(room: ReadRoom | None, read: Callable[[int], T], messages_of: Callable[[T], Sequence[Message] | None]) -> T:
    """Return what `read` does, given the bytes reserved for it; it raises LargeRead for more, and they are waited for.

    `messages_of` finds the messages in what it returns. Raises Busy, and then nothing was read.
    """
    if room is None:
        return read(sys.maxsize)
    reserved, awaited = USUAL_READ_BYTES, 0
    try:
        room.take(reserved * WIDEST, wait=False)
    except Busy:
        reserved = SMALL_READ_BYTES
    while True:
        try:
            found = read(reserved)
        except LargeRead as large:
            # At the second time other messages have come first, and not all that may are awaited one by one.
            reserved = awaited = max(large.size, MAX_READ_BYTES if awaited else 0)
            room.take(reserved * WIDEST, wait=True)
        except BaseException:
            room.keep(0)
            raise
        else:
            room.keep(_memory_of(messages_of(found) or ()))
            return found


def _memory_of(messages: Sequence[Message]) -> int:
    """Bytes that the texts and fields take; 0 for those of a small read."""
    parts = messages.parts if isinstance(messages, Messages) else messages
    size = sum(
        sys.getsizeof(part.texts) + sys.getsizeof(part.attributes)
        if isinstance(part, ColumnBatch)
        else sys.getsizeof(part.text) + sys.getsizeof(part.fields)
        for part in parts
    )
    return size if size > SMALL_READ_BYTES else 0
