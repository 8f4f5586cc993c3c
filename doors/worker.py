"""gunicorn's threaded worker, with three changes.

A request has to be read by a deadline, which moves on with what has come: a slow client cannot hold a thread. A client
that sends one request after the other is served by one thread, without a trip through the poller for each request, as
long as there are threads for all. And a reply leaves in one piece.
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

FIRST_BYTE = 0.1  # seconds a thread that nobody waits for waits for a new connection's first byte; else the poller does
# A client has PATIENCE (seconds) for a request's head, and for a body beside a second for each LEAST_RATE bytes.
# Between two pieces of either it has the _CLIENT_PATIENCE of gunicorn.conf.py.
PATIENCE = 4.0
LEAST_PATIENCE = 0.5  # … and fewer when others wait for a thread, but never less
LEAST_RATE = 10_000
HURRIED_RATE = 1_000_000  # … of a reply while others wait for a thread
SILENCE = 1.0  # seconds a connection that has sent nothing stays when there is no room for another
CLOSE_WITHIN = 1.0  # seconds for a client to close its side after the last reply
JOINED = 65_536  # bytes of a body that are sent together with its head
STAY = 20  # ms a thread waits for the next request of its connection


class Worker(gthread.ThreadWorker):
    def handle(self, conn: Any) -> Any:
        """Serves the connection's requests; what it returns is gunicorn's business."""
        if not conn.initialized:
            patience = 0.0 if self.tpool._work_queue.qsize() else FIRST_BYTE
            if not conn.data_ready and not conn.wait_for_data(patience):
                return gthread._DEFER  # type: ignore[attr-defined]  # missing in the stubs
            conn.sock.setblocking(True)
            conn.init()
            conn.sock = Joining(conn.sock, self._is_crowded)
        while True:
            conn.deadline = time.monotonic() + self._patience(conn)
            conn.parser.unreader.chunk = partial(_receive, conn, conn.parser.unreader)
            goes_on = super().handle(conn)
            conn.sock.flush()
            if not goes_on:
                return _close(conn)
            if self.nr_conns > self.cfg.threads or not self.alive or not _has_more(conn):
                return True

    def _patience(self, conn: Any) -> float:
        """Seconds for a request's head: fewer when others wait for a thread, so that they need not wait for long."""
        waiting: int = self.tpool._work_queue.qsize()
        if not waiting:
            return PATIENCE
        patience = max(LEAST_PATIENCE, PATIENCE / (1 + 2 * waiting / int(self.cfg.threads)))
        limit = struct.pack("ll", *divmod(round(patience * 1_000_000), 1_000_000))  # s and µs between two pieces
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        return patience

    def _is_crowded(self) -> bool:
        """Whether others wait for a thread."""
        return bool(self.tpool._work_queue.qsize())

    def murder_pending(self) -> None:
        """Closes connections that never sent anything: after keepalive, and when all are taken, after SILENCE.

        Else as many silent clients as there may be connections would keep all others waiting for keepalive.
        """
        if self.nr_conns >= self.worker_connections:
            silent_since = time.monotonic() + self.cfg.keepalive - SILENCE
            for conn in takewhile(lambda conn: conn.timeout < silent_since, self.pending_conns):
                conn.timeout = 0.0
        super().murder_pending()

    def _cap_keepalive(self, deadline: float) -> None:
        """A worker that stops waits no longer for connections that never sent anything than for idle ones."""
        super()._cap_keepalive(deadline)  # type: ignore[misc]  # missing in the stubs
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)  # type: ignore[type-var]  # it has one since it was deferred

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """Whether another request may follow; a body read to its end, as most are, need not be drained."""
        if keepalive and getattr(conn.parser.mesg.body.reader, "length", None) == 0:
            return True
        return bool(super()._keepalive_after(conn, keepalive))  # type: ignore[misc]  # missing in the stubs


def cached_http_date(timestamp: float | None = None) -> str:
    """As gunicorn.util.http_date, which formats the same second anew for each of its replies."""
    return _http_date(int(time.time() if timestamp is None else timestamp))


class Joining:
    """A connection's socket, which sends the head of a reply together with the first of its body.

    gunicorn sends them one by one. Each call to the system gives the interpreter lock away, and with many threads
    it takes longer to have it again than the call itself does.
    """

    def __init__(self, sock: socket.socket, is_crowded: Callable[[], bool]) -> None:
        self._sock = sock
        self._is_crowded = is_crowded
        self._head = b""
        self._began, self._length = 0.0, 0  # of the reply: when its first piece was sent, and bytes until now
        self.fileno, self.recv = sock.fileno, sock.recv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Keeps what ends like a head until more comes, or `flush`: a reply without a body has nothing else."""
        if not self._head and not self._length and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            head, self._head = self._head, b""
            self._send(head + data[:JOINED])
            if len(data) > JOINED:
                self._send(memoryview(data)[JOINED:])

    def flush(self) -> None:
        """The reply has been made."""
        if self._head:
            self.sendall(b"")
        self._began, self._length = 0.0, 0

    def _send(self, data: bytes | memoryview) -> None:
        """Raises ConnectionResetError, which gunicorn passes over, for a client that takes less than the rate it must.

        That rate is higher while others wait for a thread: else as many large replies as threads stop the service.
        """
        left = memoryview(data)
        self._length += len(data)
        try:
            while left := left[self._sock.send(left) :]:
                now = time.monotonic()
                self._began = self._began or now
                if now > self._began + PATIENCE + self._length / (HURRIED_RATE if self._is_crowded() else LEAST_RATE):
                    raise BlockingIOError
        except BlockingIOError:  # also what SO_SNDTIMEO makes of a send that took too long
            raise ConnectionResetError(errno.ECONNRESET, "the client takes its reply too slowly") from None

    def setblocking(self, flag: bool) -> None:
        if self._sock.getblocking() != flag:
            self._sock.setblocking(flag)


@lru_cache(maxsize=8)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _close(conn: Any) -> bool:
    """Waits for the client to close, here: gunicorn would in the loop that accepts connections, 2 s for each."""
    util.close_graceful(conn.sock, CLOSE_WITHIN)
    conn.close = lambda graceful=False: None
    return False


def _receive(conn: Any, unreader: Any, size_hint: int | None = None) -> bytes:
    """In place of SocketUnreader.chunk. Raises NoMoreData, as for a client that went, when the client is too slow."""
    try:
        if time.monotonic() > conn.deadline:
            raise BlockingIOError
        received: bytes = conn.sock.recv(max(unreader.mxchunk, min(size_hint or 0, unreader.max_body_chunk)))
    except BlockingIOError:  # also what SO_RCVTIMEO makes of a recv that took too long
        conn.sock.shutdown(socket.SHUT_RDWR)  # nor is it waited for at the end
        raise NoMoreData from None
    conn.deadline += len(received) / LEAST_RATE
    return received


def _has_more(conn: Any) -> bool:
    """Whether the client sends another request soon. One that was read ahead with the last is gunicorn's to find."""
    if conn.parser.unreader.buf.getvalue():
        return False
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(STAY))
