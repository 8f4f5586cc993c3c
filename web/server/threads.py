"""Requests that a thread runs: those that take long, and those that gunicorn's own parser reads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import Any, Protocol, cast

from gunicorn.http import RequestParser, wsgi
from gunicorn.http.errors import NoMoreData

from web.native.request import Environ
from web.server import connection as limits
from web.server.connection import Connection
from web.server.loop import Loop
from web.server.plain import Reply

PIECE = 65_536  # minimum bytes of one read
LARGE_PIECE = 16 * PIECE  # maximum bytes of one read
CHECK_EVERY = 0.25  # seconds between two checks of how fast a client reads its reply


class Worker(Protocol):
    """What the threads need of the worker."""

    wsgi: Any
    cfg: Any
    log: Any
    loop: Loop

    def answer(self, connection: Connection, environ: Environ, is_read: Callable[[], bool] = ...) -> Reply: ...

    def return_reply(self, connection: Connection, reply: Reply) -> None: ...

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None: ...


class RequestThreads:
    """The worker's threads. `server` is the address it listens on."""

    def __init__(self, worker: Worker, server: Any) -> None:
        self._worker = worker
        self._server = server
        self._most: int = worker.cfg.threads
        self._pool = ThreadPoolExecutor(self._most, "queue-request")
        self._count = 0  # requests that have a thread or wait for one

    def submit(self, connection: Connection, make: Callable[[], Reply]) -> None:
        """Call `make`, send what the reply makes while it is sent, and return the rest of the reply to the loop."""
        self._count += 1

        def finish(reply: Reply) -> None:
            self._count -= 1
            self._worker.return_reply(connection, reply)

        self._pool.submit(lambda: self._worker.loop.post(partial(finish, self._run(connection, make))))

    def read(self, connection: Connection, *, is_last: bool = False) -> Reply:
        """Read a request with gunicorn's parser, run it, and return its reply. Only for a thread."""
        sock, began = connection.sock, time.monotonic()
        sock.settimeout(self._read_timeout())
        parser = RequestParser(self._worker.cfg, sock, connection.peer)
        parser.unreader.unread(connection.inbound)
        parser.unreader.chunk = partial(  # type: ignore[method-assign]  # the only place for a deadline
            self._receive, connection, began, [len(connection.inbound)]
        )
        connection.inbound, connection.wanted, connection.closes = b"", 0, True
        request: Any = None
        try:
            request = next(parser)
            _, environ = wsgi.create(request, sock, connection.peer, self._server, self._worker.cfg)
            connection.closes = is_last or request.should_close()
            reply = self._worker.answer(
                connection, {**environ, "wsgi.multithread": True}, partial(_is_body_read, parser)
            )
            connection.inbound = parser.unreader.take_buffered()
            return reply
        except (NoMoreData, StopIteration, ConnectionError, TimeoutError):
            pass  # the client disconnected or is too slow
        except Exception as fault:
            self._worker.handle_error(request, sock, connection.peer, fault)
        connection.closes = True
        return Reply(b"")

    def serve(self, connection: Connection) -> None:
        """Serve one request of a client that the loop does not know, and close the connection."""

        def run() -> None:
            with connection.sock as sock, suppress(OSError):
                sock.sendall(self._run(connection, lambda: self.read(connection, is_last=True)).begin)
                sock.shutdown(socket.SHUT_WR)

        self._pool.submit(run)

    def _run(self, connection: Connection, make: Callable[[], Reply]) -> Reply:
        try:
            reply = make()
            return reply if reply.rest is None else self._stream(connection, reply)
        except Exception:
            self._worker.log.exception("a request failed")
            connection.closes = True
            return Reply(b"")

    def _receive(self, connection: Connection, began: float, size: list[int], hint: int | None = None) -> bytes:
        """Replace the `chunk` of gunicorn's unreader. Raises NoMoreData if the client is too slow."""
        try:
            if time.monotonic() > began + self._read_timeout() + size[0] / self._least_rate():
                raise TimeoutError
            received = connection.sock.recv(max(PIECE, min(hint or 0, LARGE_PIECE)))
        except TimeoutError:
            connection.has_ended = True
            connection.sock.shutdown(socket.SHUT_RDWR)  # the client gets no reply
            raise NoMoreData from None
        size[0] += len(received)
        return received

    def _stream(self, connection: Connection, reply: Reply) -> Reply:
        """Send the whole reply, unless the client reads it too slowly."""
        connection.sock.settimeout(CHECK_EVERY)
        began, size = time.monotonic(), 0
        try:
            with closing(cast(Any, reply.rest)) as rest:
                pieces = iter(rest)
                for piece in chain([reply.begin + next(pieces, b"")], pieces):
                    left = memoryview(piece)
                    size += len(piece)
                    while left:
                        with suppress(TimeoutError):
                            left = left[connection.sock.send(left) :]
                        if left and time.monotonic() > began + limits.READ_TIMEOUT + size / self._least_rate():
                            raise ConnectionError
        except OSError:
            connection.closes = connection.has_ended = True
        return Reply(b"")

    def _read_timeout(self) -> float:
        """Return the seconds for a request's head: fewer while others wait for a thread."""
        waiting = max(0, self._count - self._most)
        return max(limits.LEAST_READ_TIMEOUT, limits.READ_TIMEOUT / (1 + 2 * waiting / self._most))

    def _least_rate(self) -> float:
        """Return the bytes a second that a client must send or read."""
        others_wait = self._count > self._most or self._worker.wsgi.budget.replies_are_wanted
        return limits.HURRIED_RATE if others_wait else limits.LEAST_RATE


def _is_body_read(parser: RequestParser) -> bool:
    """Read the rest of the request's body; return whether that succeeded, so that the next request can be read."""
    until = time.monotonic() + limits.LEAST_READ_TIMEOUT
    return bool(parser.finish_body(until))  # type: ignore[func-returns-value]  # the stubs are older
