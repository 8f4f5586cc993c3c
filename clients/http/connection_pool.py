"""HTTP/1.1 over plain sockets, for a service without TLS and without a proxy.

For a small request, a general library takes several times as long as the service. Here a request is one send, one
receive and a few splits. Connections are reused. The package `requests` handles TLS and proxies.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

MOST_HEAD = 64 * 1024  # bytes of a reply's status line and headers
AT_ONCE = 256 * 1024  # bytes received at a time
CUT_CHECKED_EVERY = 0.1  # seconds
CUT_ANSWERED_WITHIN = 3.0  # seconds; the service checks every second that a waiting reader is still connected

Answer = tuple[int, Mapping[str, str], bytes]  # status, headers by lower-case name, body


class ProtocolError(ConnectionError):
    """The reply is not HTTP, or is not complete."""


class ConnectionPool:
    """Connections to one address, which threads can share."""

    def __init__(self, host: str, port: int, kept: int) -> None:
        """Keep at most `kept` idle connections open."""
        self._address = (host, port)
        self._kept_at_most = kept
        self._idle: deque[socket.socket] = deque()
        self._closed = False

    def ask(
        self,
        head: bytes,
        body: bytes,
        timeout: float,
        read_timeout: float,
        bodiless: bool,
        is_cut: Callable[[], bool] | None = None,
    ) -> Answer:
        """Return the reply to a request. Raises OSError.

        `timeout` is for connecting and `read_timeout` for the reply, in seconds. Set `bodiless` for HEAD. Once `is_cut`
        returns True, the service need not wait any longer: it replies at once.
        """
        with self._connection(timeout) as connection:
            connection.settimeout(read_timeout)
            with suppress(BrokenPipeError, ConnectionResetError):  # refused half-way: the reply may have the reason
                connection.sendall(head + body)
            was_cut = is_cut is not None and _await_reply(connection, read_timeout, is_cut)
            reply = Reply(connection, time.monotonic() + read_timeout)
            answer = reply.read(bodiless)
            is_reusable = reply.is_reusable and not was_cut and not self._closed
            if is_reusable and len(self._idle) < self._kept_at_most:
                self._idle.append(connection)
            else:
                connection.close()
            return answer

    def close(self) -> None:
        self._closed = True
        self.forget()

    def forget(self) -> None:
        """Close this process's idle connections; after a fork the other process can keep using its own."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        self.forget()

    @contextmanager
    def _connection(self, timeout: float) -> Iterator[socket.socket]:
        """Yield a connection, and close it if the request fails."""
        connection = self._kept() or self._fresh(timeout)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise

    def _kept(self) -> socket.socket | None:
        """Return an idle connection that the service has not closed."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()

    def _fresh(self, timeout: float) -> socket.socket:
        connection = socket.create_connection(self._address, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _await_reply(connection: socket.socket, timeout: float, is_cut: Callable[[], bool]) -> bool:
    """Wait for the reply and return whether the request was cut. Raises TimeoutError.

    A cut closes only the sending half: the service takes no messages for a reader that has hung up, and the reply to a
    reader that hung up too late still arrives. So no message is leased unseen.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    deadline, was_cut = time.monotonic() + timeout, False
    while not poll.poll(CUT_CHECKED_EVERY * 1000):
        if time.monotonic() > deadline:
            raise TimeoutError
        if not was_cut and is_cut():
            connection.shutdown(socket.SHUT_WR)
            deadline, was_cut = time.monotonic() + CUT_ANSWERED_WITHIN, True
    return was_cut


class Reply:
    """One reply, read from a connection. After `read`, `is_reusable` says whether it can carry another request.

    Raises TimeoutError if no data arrived within the connection's timeout, or not all by the deadline.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.is_reusable = False
        self._deadline = deadline
        self._connection = connection
        self._received = bytearray()

    def read(self, bodiless: bool) -> Answer:
        status, version, headers = self._head()
        while 100 <= status < 200:
            status, version, headers = self._head()
        wants_close = "close" in headers.get("connection", "").lower()
        length = headers.get("content-length", "")
        if bodiless or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        elif length.isascii() and length.isdigit():
            body = self._exactly(int(length))
        else:
            return status, headers, self._to_the_end()
        self.is_reusable = version == "HTTP/1.1" and not wants_close and not self._received
        return status, headers, body

    def _head(self) -> tuple[int, str, dict[str, str]]:
        head = self._until(b"\r\n\r\n").decode("latin-1")
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ProtocolError("the server does not speak HTTP")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), version, headers

    def _chunks(self) -> Iterator[bytes]:
        while size := _chunk_size(self._until(b"\r\n")):
            yield self._exactly(size)
            self._until(b"\r\n")
        while self._until(b"\r\n"):
            pass  # trailers

    def _until(self, mark: bytes) -> bytes:
        """Return what precedes the mark, and skip the mark."""
        searched = 0
        while (place := self._received.find(mark, searched)) < 0:
            if len(self._received) > MOST_HEAD:
                raise ProtocolError("the reply's headers are too long")
            searched = max(0, len(self._received) - len(mark) + 1)
            self._received += self._piece()
        found = bytes(self._received[:place])
        del self._received[: place + len(mark)]
        return found

    def _exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            self._received += self._piece()
        found = bytes(self._received[:length])
        del self._received[:length]
        return found

    def _to_the_end(self) -> bytes:
        while piece := self._receive():
            self._received += piece
        return bytes(self._received)

    def _piece(self) -> bytes:
        piece = self._receive()
        if not piece:
            raise ProtocolError("the connection broke")
        return piece

    def _receive(self) -> bytes:
        piece = self._connection.recv(AT_ONCE)
        if time.monotonic() > self._deadline:  # a reply that drips keeps within the socket's timeout
            raise TimeoutError
        return piece


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise ProtocolError("the server does not speak HTTP") from None
