"""Room for the bodies of requests: what a process gives them at once is bounded, however many there are.

docs/operations.md states the ceiling that follows for the service as a whole.
"""

from __future__ import annotations

import threading

from doors.decoding import structure
from doors.wire import PIECE, Environ, read_body
from storage.errors import Busy

BODIES = 64 * 1024 * 1024  # bytes of bodies, as they came
OBJECTS = 128 * 1024 * 1024  # bytes of what is made of them, as estimated
WAIT = 2.0  # seconds for room
SMALL = PIECE  # bytes of a body that needs no room: all threads together hold few of them
VALUE = 100  # bytes of memory that a value takes, about: a name, a string, a number, an array or an object
COPIES = 3  # of the text: decoded, as the message's own, and in the reply

_SHARE = "queue_service.share"  # in the environ


class Room:
    """An amount that several threads take parts of."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    def take(self, amount: int) -> int:
        """Take so much, or all there is if it is more, and return how much. Raises Busy after WAIT seconds."""
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
    """The rooms of a process; a request gives its share of them back when it has been answered."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of the largest body."""
        self._limit = limit
        self._bodies, self._objects = Room(max(BODIES, limit)), Room(OBJECTS)

    def read_body(self, environ: Environ) -> bytes:
        """Return the request's body when there is room for it and what will be made of it. Raises Busy."""
        share = _Share(self._bodies)
        environ.setdefault(_SHARE, []).append(share)
        body = read_body(environ, self._limit, share.grow)
        if len(body) > SMALL:
            objects = _Share(self._objects)
            environ[_SHARE].append(objects)
            objects.take(len(body) * _width(body) * COPIES + structure(body) * VALUE)
        return body

    def release(self, environ: Environ) -> None:
        """Take back what the request has been given."""
        for share in environ.pop(_SHARE, ()):
            share.release()


def _width(body: bytes) -> int:
    """Bytes of memory for each of the text: a single wide character makes all of it as wide."""
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
