"""gunicorn's threaded worker, with three changes.

- It reads a request by a deadline, which advances with each piece, so that a slow client cannot hold a thread.
- A busy connection keeps its thread between requests while there are enough threads, and skips the poller.
- It sends the head of a reply together with the start of its body.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache, partial
from itertools import takewhile
from typing import Any

from gunicorn import util
from gunicorn.http.errors import NoMoreData
from gunicorn.workers import gthread

FIRST_BYTE = 0.1  # seconds an idle thread waits for a new connection's first byte before the poller does
# A client has READ_TIMEOUT seconds for a request, and one second more for each LEAST_RATE bytes that it sends. Between
# two pieces it has the _CLIENT_TIMEOUT of gunicorn.conf.py.
READ_TIMEOUT = 4.0  # seconds
LEAST_READ_TIMEOUT = 0.5  # seconds: the minimum to which waiting requests reduce READ_TIMEOUT
LEAST_RATE = 10_000  # bytes a second
HURRIED_RATE = 1_000_000  # bytes a second of a reply, while others wait for a thread or for memory
SILENCE = 1.0  # seconds until a silent connection is closed when no more connections are possible
CLOSE_WITHIN = 1.0  # seconds for a client to close its side after the last reply
JOINED = 65_536  # bytes of a body that one call sends together with its head
STAY = 20  # ms a thread waits for the next request of its connection


class Worker(gthread.ThreadWorker):
    """The worker of gunicorn.conf.py."""

    def handle(self, conn: Any) -> Any:
        """Serve the connection's requests; return what gunicorn's method does."""
        if not conn.initialized:
            read_timeout = 0.0 if self.tpool._work_queue.qsize() else FIRST_BYTE
            if not conn.data_ready and not conn.wait_for_data(read_timeout):
                return gthread._DEFER  # type: ignore[attr-defined]  # missing in the stubs
            conn.sock.setblocking(True)
            conn.init()
            conn.sock = CoalescingSocket(conn.sock, self._is_crowded)
        while True:
            conn.deadline = time.monotonic() + self._read_timeout(conn)
            conn.parser.unreader.chunk = partial(_receive, conn, conn.parser.unreader)
            goes_on = super().handle(conn)
            conn.sock.flush()
            if not goes_on:
                return _close(conn)
            if self.nr_conns > self.cfg.threads or not self.alive or not _has_more(conn):
                return True

    def _read_timeout(self, conn: Any) -> float:
        """Return the seconds for a request's head.

        While others wait for a thread, they are fewer, and also limit the time between two pieces.
        """
        waiting: int = self.tpool._work_queue.qsize()
        if not waiting:
            return READ_TIMEOUT
        read_timeout = max(LEAST_READ_TIMEOUT, READ_TIMEOUT / (1 + 2 * waiting / int(self.cfg.threads)))
        limit = struct.pack("ll", *divmod(round(read_timeout * 1_000_000), 1_000_000))  # s and µs between two pieces
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        return read_timeout

    def _is_crowded(self) -> bool:
        """Return whether other requests wait for a thread, or for the memory of a reply."""
        application: Any = self.wsgi
        return bool(self.tpool._work_queue.qsize()) or application.budget.replies_are_wanted

    def murder_pending(self) -> None:
        """Close connections that never sent anything: after keepalive, or after SILENCE if all connections are taken.

        Otherwise silent clients could take all connections, and other clients would wait for them until keepalive ends.
        """
        if self.nr_conns >= self.worker_connections:
            silent_since = time.monotonic() + self.cfg.keepalive - SILENCE
            for conn in takewhile(lambda conn: conn.timeout < silent_since, self.pending_conns):
                conn.timeout = 0.0
        super().murder_pending()

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit the wait of a stopping worker for silent connections to its wait for idle ones."""
        super()._cap_keepalive(deadline)  # type: ignore[misc]  # missing in the stubs
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)  # type: ignore[type-var]  # deferred ones have a timeout

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """Return whether another request may follow. A body that was read to its end needs no draining."""
        if keepalive and getattr(conn.parser.mesg.body.reader, "length", None) == 0:
            return True
        return bool(super()._keepalive_after(conn, keepalive))  # type: ignore[misc]  # missing in the stubs


def cached_http_date(timestamp: float | None = None) -> str:
    """Return gunicorn.util.http_date, formatted once a second instead of for each reply."""
    return _http_date(int(time.time() if timestamp is None else timestamp))


class CoalescingSocket:
    """A connection's socket that sends the head of a reply together with the first part of its body.

    gunicorn sends them separately. Each system call releases the interpreter lock. With many threads, taking it again
    lasts longer than the call itself.
    """

    def __init__(self, sock: socket.socket, is_crowded: Callable[[], bool]) -> None:
        self._sock = sock
        self._is_crowded = is_crowded
        self._head = b""
        self._began, self._length = 0.0, 0  # of the reply: time of its first partial send, and bytes so far
        self.fileno, self.recv = sock.fileno, sock.recv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Send, but hold data that ends like a head until more data or `flush`."""
        if not self._head and not self._length and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            head, self._head = self._head, b""
            self._send(head + data[:JOINED])
            if len(data) > JOINED:
                self._send(memoryview(data)[JOINED:])

    def flush(self) -> None:
        """Send a held head, and start the next reply's time limit anew."""
        if self._head:
            self.sendall(b"")
        self._began, self._length = 0.0, 0

    def _send(self, data: bytes | memoryview) -> None:
        """Send all data. Raises ConnectionResetError, which gunicorn ignores, if the client is too slow.

        The required rate is higher while others wait for a thread or for memory. Otherwise slow clients with large
        replies could take every thread.
        """
        left = memoryview(data)
        self._length += len(data)
        try:
            while left := left[self._sock.send(left) :]:
                now = time.monotonic()
                self._began = self._began or now
                if now > self._began + READ_TIMEOUT + self._length / (
                    HURRIED_RATE if self._is_crowded() else LEAST_RATE
                ):
                    raise BlockingIOError
        except BlockingIOError:  # also raised by a send that exceeds SO_SNDTIMEO
            raise ConnectionResetError(errno.ECONNRESET, "the client takes its reply too slowly") from None

    def setblocking(self, flag: bool) -> None:
        if self._sock.getblocking() != flag:
            self._sock.setblocking(flag)


@lru_cache(maxsize=8)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _close(conn: Any) -> bool:
    """Wait in this thread for the client to close. gunicorn would block its accept loop for 2 s a connection."""
    util.close_graceful(conn.sock, CLOSE_WITHIN)
    conn.close = lambda graceful=False: None
    return False


def _receive(conn: Any, unreader: Any, size_hint: int | None = None) -> bytes:
    """Replace SocketUnreader.chunk. Raises NoMoreData, as for a disconnect, if the client is too slow."""
    try:
        if time.monotonic() > conn.deadline:
            raise BlockingIOError
        received: bytes = conn.sock.recv(max(unreader.mxchunk, min(size_hint or 0, unreader.max_body_chunk)))
    except BlockingIOError:  # also raised by a recv that exceeds SO_RCVTIMEO
        conn.sock.shutdown(socket.SHUT_RDWR)  # so that _close does not wait for it
        raise NoMoreData from None
    conn.deadline += len(received) / LEAST_RATE
    return received


def _has_more(conn: Any) -> bool:
    """Return whether another request arrives within STAY ms. gunicorn itself finds one that was already read."""
    if conn.parser.unreader.buf.getvalue():
        return False
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(STAY))
