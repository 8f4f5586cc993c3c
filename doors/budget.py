"""Memory for the bodies of requests: a process bounds the total, however many there are.

docs/operations.md states the resulting ceiling of the whole service.
"""

from __future__ import annotations

import threading

from doors.decoding import structure
from doors.wire import PIECE, Environ, read_body
from storage.errors import Busy

BODIES = 64 * 1024 * 1024  # bytes of bodies as received
OBJECTS = 128 * 1024 * 1024  # bytes of the decoded values, estimated
WAIT = 2.0  # seconds to wait for memory
SMALL = PIECE  # bytes of a body that needs no reservation
VALUE = 100  # bytes of memory of a value, about: a name, a string, a number, an array or an object
COPIES = 3  # of the text: decoded, in the message, and in the reply

_SHARE = "queue_service.share"  # in the environ


class Room:
    """An amount of memory that threads share."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    def take(self, amount: int) -> int:
        """Take `amount`, or the whole size if that is less; return the amount taken. Raises Busy after WAIT seconds."""
        amount = min(amount, self._size)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= amount, WAIT):
                raise Busy("too many large requests at once")
            self._free -= amount
        return amount

    def give(self, amount: int) -> None:
        with self._changed:
            self._free += amount
            self._changed.notify_all()


class Budget:
    """The memory of a process for bodies; a request returns its share after the reply."""

    def __init__(self, limit: int) -> None:
        """Take the size of the largest body, in bytes."""
        self._limit = limit
        self._bodies, self._objects = Room(max(BODIES, limit)), Room(OBJECTS)

    def read_body(self, environ: Environ) -> bytes:
        """Return the request's body once there is memory for it and its values. Raises Busy, and as wire.read_body."""
        share = _Share(self._bodies)
        environ.setdefault(_SHARE, []).append(share)
        body = read_body(environ, self._limit, share.grow)
        if len(body) > SMALL:
            objects = _Share(self._objects)
            environ[_SHARE].append(objects)
            objects.take(len(body) * _width(body) * COPIES + structure(body) * VALUE)
        return body

    def release(self, environ: Environ) -> None:
        """Free the request's share."""
        for share in environ.pop(_SHARE, ()):
            share.release()


def _width(body: bytes) -> int:
    """Return bytes of memory per character: one wide character makes the whole text as wide."""
    return 1 if body.isascii() and rb"\u" not in body else 4


class _Share:
    def __init__(self, room: Room) -> None:
        self._room = room
        self._length = self._taken = 0

    def grow(self, more: int) -> None:
        self._length += more
        if self._length > SMALL:
            self.take(more)

    def take(self, amount: int) -> None:
        self._taken += self._room.take(amount)

    def release(self) -> None:
        if self._taken:
            self._room.give(self._taken)
