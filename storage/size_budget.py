"""The size limit of one read, and the reservation of memory for a large one before it takes any message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from storage.column_batches import ColumnBatch, Messages
from storage.errors import Busy
from storage.model import Message, ReadMemory
from storage.validation import MAX_READ_BYTES

T = TypeVar("T")

SMALL_READ_BYTES = 128 * 1024  # bytes of a read without a reservation: few, even for all threads together
USUAL_READ_BYTES = 2 * 1024 * 1024  # bytes that a read reserves without waiting; most reads need no more
WIDEST = 4  # bytes of memory per byte of UTF-8: one wide character widens the whole text


class LargeRead(Exception):
    """A read needs `size` bytes, more than its reservation; nothing was done."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class SizeBudget:
    """The bytes of text and fields that one read may return. The first message always fits."""

    def __init__(self, reserved: int, most: int = MAX_READ_BYTES) -> None:
        """Limit the read to `most` bytes; `check` compares it with the `reserved` bytes of memory."""
        self.full = False
        self.size = 0
        self._reserved = reserved
        self._most = most
        self._empty = True

    def add(self, size: int) -> bool:
        """Add a message of `size` bytes and return True, or return False if it does not fit; from then on none fits."""
        self.full = self.full or (not self._empty and self.size + size > self._most)
        self._empty = False
        self.size += 0 if self.full else size
        return not self.full

    def check(self) -> None:
        """Raise LargeRead if the messages exceed the reservation."""
        if self.size > self._reserved:
            raise LargeRead(self.size)


def read_reserved(
    memory: ReadMemory | None,
    read: Callable[[int], T],
    messages_of: Callable[[T], Sequence[Message] | None],
    *,
    of_one: bool = False,
) -> T:
    """Return the result of `read`, called with the bytes reserved for it.

    If `read` raises LargeRead, wait for more memory and call it again. `messages_of` returns the messages in its
    result. A read `of_one` message is small in most cases, so it reserves only after a LargeRead. Raises Busy, and then
    nothing was read.
    """
    if memory is None:
        return read(sys.maxsize)
    if of_one:
        with suppress(LargeRead):
            return read(SMALL_READ_BYTES)
    reserved, awaited = USUAL_READ_BYTES, 0
    try:
        memory.take(reserved * WIDEST, wait=False)
    except Busy:
        reserved = SMALL_READ_BYTES
    while True:
        try:
            result = read(reserved)
        except LargeRead as large:
            # Other messages have come first meanwhile: the second time reserve the maximum, to need no third.
            reserved = awaited = max(large.size, MAX_READ_BYTES if awaited else 0)
            memory.take(reserved * WIDEST, wait=True)
        except BaseException:
            memory.keep(0)
            raise
        else:
            memory.keep(_memory_of(messages_of(result) or ()))
            return result


def _memory_of(messages: Sequence[Message]) -> int:
    """Return the bytes of the texts and fields; 0 for a small read."""
    parts = messages.parts if isinstance(messages, Messages) else messages
    size = sum(
        sys.getsizeof(part.texts) + sys.getsizeof(part.attributes)
        if isinstance(part, ColumnBatch)
        else sys.getsizeof(part.text) + sys.getsizeof(part.fields)
        for part in parts
    )
    return size if size > SMALL_READ_BYTES else 0
