"""HTTP/1.1 over plain sockets or TLS, for a service that is reached without a proxy.

For a small request, a general library takes several times as long as the service. Here a request is one send, one
receive and a few splits. Connections are reused. The package `requests` handles proxies.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from .calls import Answer
from .connection import Connection, ProtocolError

MOST_HEAD = 64 * 1024  # bytes of a reply's status line and headers
CUT_CHECKED_EVERY = 0.1  # seconds
CUT_ANSWERED_WITHIN = 3.0  # seconds; the service checks every second that a waiting reader is still connected


class ConnectionPool:
    """Connections to one address, which threads can share."""

    def __init__(self, host: str, port: int, kept: int, tls: ssl.SSLContext | None = None) -> None:
        """Keep at most `kept` idle connections open."""
        self._address = (host, port)
        self._tls = tls
        self._kept_at_most = kept
        self._idle: deque[Connection] = deque()
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
        connection = self._kept() or Connection(self._address, timeout, self._tls)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused half-way: the reply may have the reason
                connection.send(head + body, read_timeout)
            reply = Reply(connection, read_timeout, is_cut)
            answer = reply.read(bodiless)
        except BaseException:
            connection.close()
            raise
        if reply.is_reusable and not self._closed and len(self._idle) < self._kept_at_most:
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

    def _kept(self) -> Connection | None:
        """Return an idle connection that the service has not closed."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_idle():
                return connection
            connection.close()


class Reply:
    """One reply, read from a connection. After `read`, `is_reusable` says whether it can carry another request.

    Raises TimeoutError if the reply is not complete after `timeout` seconds.

    Until it begins, `is_cut` can end the wait. Then only the sending half of the connection is closed: the service
    takes no messages for a reader that has hung up, and the reply to a reader that hung up too late still arrives. So
    no message is leased unseen.
    """

    def __init__(self, connection: Connection, timeout: float, is_cut: Callable[[], bool] | None) -> None:
        self.is_reusable = False
        self._connection = connection
        self._deadline = time.monotonic() + timeout
        self._is_cut = is_cut
        self._was_cut = False
        self._received = b""
        self._read = 0  # bytes of it

    def read(self, bodiless: bool) -> Answer:
        status, version, headers = self._head()
        while 100 <= status < 200:
            status, version, headers = self._head()
        length = headers.get("content-length", "")
        if bodiless or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        elif length.isascii() and length.isdigit():
            body = self._exactly(int(length))
        else:
            return status, headers, self._to_the_end()
        wants_close = "close" in headers.get("connection", "").lower()
        is_whole = self._read == len(self._received)
        self.is_reusable = version == "HTTP/1.1" and is_whole and not (wants_close or self._was_cut)
        return status, headers, body

    def _head(self) -> tuple[int, str, dict[str, str]]:
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
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
        searched = self._read
        while (place := self._received.find(mark, searched)) < 0:
            unread = self._received[self._read :]
            if len(unread) > MOST_HEAD:
                raise ProtocolError("the reply's headers are too long")
            searched = max(0, len(unread) - len(mark) + 1)
            self._received, self._read = unread + self._piece(), 0
        found = self._received[self._read : place]
        self._read = place + len(mark)
        return found

    def _exactly(self, length: int) -> bytes:
        end = self._read + length
        if end > len(self._received):
            pieces = [self._received[self._read :]]
            missing = end - len(self._received)
            while missing > 0:
                pieces.append(self._piece())
                missing -= len(pieces[-1])
            self._received, self._read, end = b"".join(pieces), 0, length
        found = self._received[self._read : end]
        self._read = end
        return found

    def _to_the_end(self) -> bytes:
        pieces = [self._received[self._read :]]
        while piece := self._receive():
            pieces.append(piece)
        return b"".join(pieces)

    def _piece(self) -> bytes:
        piece = self._receive()
        if not piece:
            raise ProtocolError("the connection broke")
        return piece

    def _receive(self) -> bytes:
        while (left := self._deadline - time.monotonic()) > 0:
            piece = self._connection.receive(min(left, CUT_CHECKED_EVERY) if self._is_cut else left)
            if piece is not None:
                self._is_cut = None
                return piece
            if self._is_cut and self._is_cut():
                self._connection.close_sending_half()
                self._is_cut, self._was_cut = None, True
                self._deadline = time.monotonic() + CUT_ANSWERED_WITHIN
        raise TimeoutError


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise ProtocolError("the server does not speak HTTP") from None
