"""HTTP/1.1 over plain sockets, for a service without TLS and without a proxy.

For a small request, a general library takes several times as long as the service. Here a request is one send, one
receive and a few splits. Connections are reused. The package `requests` handles TLS and proxies.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

MOST_HEAD = 64 * 1024  # bytes of a reply's status line and headers
AT_ONCE = 256 * 1024  # bytes received at a time

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
        self._cuttable: set[socket.socket] = set()
        self._closed = False

    def ask(
        self, head: bytes, body: bytes, timeout: float, read_timeout: float, bodiless: bool, cut_at_close: bool = False
    ) -> Answer:
        """Return the reply to a request. Raises OSError, also if `close` cut it with `cut_at_close`.

        `timeout` is for connecting and `read_timeout` for the reply, in seconds. Set `bodiless` for HEAD.
        """
        with self._connection(timeout) as connection, self._cut(connection) if cut_at_close else nullcontext():
            connection.settimeout(read_timeout)
            with suppress(BrokenPipeError, ConnectionResetError):  # refused half-way: the reply may have the reason
                connection.sendall(head + body)
            reply = Reply(connection, time.monotonic() + read_timeout)
            answer = reply.read(bodiless)
            if reply.is_reusable and not self._closed and len(self._idle) < self._kept_at_most:
                self._idle.append(connection)
            else:
                connection.close()
            return answer

    def close(self) -> None:
        self._closed = True
        for connection in list(self._cuttable):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
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

    @contextmanager
    def _cut(self, connection: socket.socket) -> Iterator[None]:
        """Let `close` cut the connection during the block."""
        self._cuttable.add(connection)
        try:
            if self._closed:
                raise ProtocolError("this client was closed")
            yield
        finally:
            self._cuttable.discard(connection)

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
