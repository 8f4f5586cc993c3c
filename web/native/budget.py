"""Limit the memory of a process for the bodies of requests and for large replies.

docs/operations.md states the resulting ceiling of the whole service.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from storage.errors import Busy
from storage.scheduling import Scheduler
from web.native.decoding import structure
from web.native.request import PIECE, Environ, read_body

BODIES = 64 * 1024 * 1024  # bytes of bodies as received
OBJECTS = 128 * 1024 * 1024  # bytes of the decoded values, estimated
REPLIES = 128 * 1024 * 1024  # bytes of the messages of large reads
WAIT = 2.0  # seconds to wait for memory
WANTED_FOR = 10.0  # seconds that a pool counts as short of memory after a refusal
SMALL = PIECE  # bytes of a body that needs no reservation
VALUE = 100  # estimated bytes of memory of a name, string, number, array or object
_SHARES = "queue_service.shares"  # in the environ
COPIES = 3  # of the text: decoded, in the message, and written to the database


class MemoryPool:
    """An amount of memory that threads share."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()
        self._wanted_until = 0.0

    def take(self, amount: int, *, wait: bool = True) -> int:
        """Take `amount`, or the whole size if that is less; return the amount taken.

        Raises Busy if it is not free within WAIT seconds, or without `wait` if it is not free now.
        """
        amount = min(amount, self._size)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= amount, WAIT if wait else 0):
                self._wanted_until = time.monotonic() + WANTED_FOR
                raise Busy("too many large requests or replies at once")
            self._free -= amount
        return amount

    @property
    def is_wanted(self) -> bool:
        """Return whether `take` raised Busy within the last WANTED_FOR seconds."""
        return time.monotonic() < self._wanted_until

    def give(self, amount: int) -> None:
        """Return this amount to the pool."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()


class MemoryBudget:
    """The memory of a process for bodies and replies; a request returns its shares after the reply.

    The store uses it as its ReadMemory. Requests that take turns in one thread call `resume` when they continue.
    """

    def __init__(self, limit: int, scheduler: Scheduler) -> None:
        """Create a budget for bodies of at most `limit` bytes. Requests wait with `scheduler`."""
        self._limit = limit
        self._scheduler = scheduler
        self._bodies, self._objects = MemoryPool(max(BODIES, limit)), MemoryPool(OBJECTS)
        self._replies = MemoryPool(REPLIES)
        self._request = threading.local()

    def run(self, environ: Environ, call: Callable[[], Iterable[bytes]]) -> Iterable[bytes]:
        """Run a request and return its reply. Closing the reply, or an error, releases the request's shares."""
        shares: dict[MemoryPool, _Share] = {}
        self._request.shares = environ[_SHARES] = shares
        try:
            reply = call()
        except BaseException:
            _release(shares.values())
            raise
        held = [share for share in shares.values() if share.taken]
        return _Held(reply, held) if held else reply

    def resume(self, environ: Environ) -> None:
        """Continue with this request, after others have run in the same thread."""
        self._request.shares = environ[_SHARES]

    def read_body(self, environ: Environ, *, is_form: bool = False) -> bytes:
        """Return the request's body once there is memory for it and its values, JSON or the fields of a form.

        Raises Busy, and the errors of web.native.request.read_body.
        """
        length = environ.get("CONTENT_LENGTH", "")
        if length.isdigit() and len(length) <= 5 and int(length) <= SMALL:
            return read_body(environ, self._limit)
        body = read_body(environ, self._limit, self._share(self._bodies).grow)
        if len(body) > SMALL:
            escapes = body.count(b"%") if is_form else 0
            width, values = (4, escapes) if escapes else (_width(body), structure(body))
            self._share(self._objects).take(len(body) * width * COPIES + values * VALUE)
        return body

    @property
    def replies_are_wanted(self) -> bool:
        """Return whether large reads lack memory, so that slow clients must take their replies faster."""
        return self._replies.is_wanted

    def take(self, size: int, *, wait: bool) -> None:
        """Replace the request's share for its reply by one of `size` bytes. Raises Busy."""
        self.keep(0)
        share = self._share(self._replies)
        if wait:
            self._scheduler.call(lambda: share.take(size))
        else:
            share.take(size, wait=False)

    def keep(self, size: int) -> None:
        """Reduce the request's share for its reply to `size` bytes. A reply that keeps any takes long to make."""
        if size:
            self._scheduler.current().is_heavy = True
        self._share(self._replies).keep(size)

    def _share(self, pool: MemoryPool) -> _Share:
        """Return the share of the request that this thread runs."""
        shares: dict[MemoryPool, _Share] = self._request.__dict__.setdefault("shares", {})
        return shares.setdefault(pool, _Share(pool))


def _width(body: bytes) -> int:
    """Return the bytes of memory per character, at most. One wide character makes every character of a text as wide."""
    is_narrow = body.isascii() and (b"\\" not in body or rb"\u" not in body)  # one byte is found far faster than two
    return 1 if is_narrow else 4


class _Share:
    """The amount that one request has taken from a pool."""

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self._length = 0
        self.taken = 0

    def grow(self, more: int) -> None:
        self._length += more
        if self._length > SMALL:
            self.take(more)

    def take(self, amount: int, *, wait: bool = True) -> None:
        self.taken += self._pool.take(amount, wait=wait)

    def keep(self, amount: int) -> None:
        if self.taken != amount:
            self._pool.give(self.taken - amount)
            self.taken = amount


class _Held:
    """A reply that releases the shares of its request when it is closed."""

    def __init__(self, reply: Iterable[bytes], shares: Collection[_Share]) -> None:
        self._reply = reply
        self._shares = shares

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reply)

    def close(self) -> None:
        """Close the reply and release the shares; a WSGI server calls this after the reply."""
        try:
            if hasattr(self._reply, "close"):
                self._reply.close()
        finally:
            _release(self._shares)


def _release(shares: Iterable[_Share]) -> None:
    for share in shares:
        share.keep(0)
