"""gunicorn's threaded worker, with two changes: a slow client cannot hold a thread, and a busy one keeps its own.

A request has to be read by a deadline, which moves on with what has come. And a client that sends one request after the
other is served by one thread, without a trip through the poller for each request, as long as there are threads for all.
"""

from __future__ import annotations

import select
import socket
import time
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http.errors import NoMoreData
from gunicorn.workers import gthread

FIRST_BYTE = 0.1  # seconds a thread waits for a new connection's first byte; after that the poller does
PATIENCE = 4.0  # seconds a client has for a request's head, and for a body beside …
LEAST_RATE = (
    10_000  # … a second for each so many bytes. Between two pieces it has the _CLIENT_PATIENCE of gunicorn.conf.py
)
CLOSE_WITHIN = 1.0  # seconds for a client to close its side after the last reply
STAY = 20  # ms a thread waits for the next request of its connection


class Worker(gthread.ThreadWorker):
    def handle(self, conn: Any) -> Any:
        """Serves the connection's requests; what it returns is gunicorn's business."""
        if not conn.initialized:
            if not conn.data_ready and not conn.wait_for_data(FIRST_BYTE):
                return gthread._DEFER  # type: ignore[attr-defined]  # missing in the stubs
            conn.sock.setblocking(True)
            conn.init()
        while True:
            conn.deadline = time.monotonic() + PATIENCE
            conn.parser.unreader.chunk = partial(_receive, conn, conn.parser.unreader)
            if not super().handle(conn):
                return _close(conn)
            if self.nr_conns > self.cfg.threads or not self.alive or not _has_more(conn):
                return True

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """Whether another request may follow; a body read to its end, as most are, need not be drained."""
        if keepalive and getattr(conn.parser.mesg.body.reader, "length", None) == 0:
            return True
        return bool(super()._keepalive_after(conn, keepalive))  # type: ignore[misc]  # missing in the stubs


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
