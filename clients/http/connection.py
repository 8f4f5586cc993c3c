"""A connection to the service, plain or over TLS."""

from __future__ import annotations

import select
import socket
import ssl
from pathlib import Path

AT_ONCE = 64 * 1024  # bytes received at a time; for more, malloc maps new pages each time
LONGEST_POLL = 3600.0  # seconds; the system's poll takes no more than 24 days
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ProtocolError(ConnectionError):
    """The reply is not HTTP, or is not complete."""


class Connection:
    """A connection whose socket never blocks, so that a wait for its reply can end early. Raises OSError."""

    def __init__(self, address: tuple[str, int], timeout: float, tls: ssl.SSLContext | None) -> None:
        """Connect within `timeout` seconds."""
        self._socket = socket.create_connection(address, timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=address[0], suppress_ragged_eofs=False)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    def is_idle(self) -> bool:
        """Return whether nothing has arrived since the last reply: neither data nor the service's close."""
        return not self._readable.poll(0)

    def send(self, data: bytes, timeout: float) -> None:
        try:
            sent = self._socket.send(data)
        except WOULD_BLOCK:
            sent = 0
        if sent < len(data):
            self._socket.settimeout(timeout)
            try:
                self._socket.sendall(memoryview(data)[sent:])
            finally:
                self._socket.setblocking(False)

    def receive(self, timeout: float) -> bytes | None:
        """Return what has arrived, b"" at the end, or None if nothing arrives within `timeout` seconds."""
        if not self._readable.poll(min(timeout, LONGEST_POLL) * 1000):
            return None
        try:
            return self._socket.recv(AT_ONCE)
        except WOULD_BLOCK:  # over TLS: it was part of a record, or no data
            return None
        except ssl.SSLError as error:
            if error.reason == "UNEXPECTED_EOF_WHILE_READING":
                raise ProtocolError("the connection broke") from None
            raise

    def close_sending_half(self) -> None:
        # SSLSocket.shutdown would end TLS for what is received, too.
        socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


def tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return a context that trusts what `verify` says, as in requests: True, False, or the path of authorities.

    Raises ValueError if there are none.
    """
    if verify is True:
        from requests.utils import DEFAULT_CA_BUNDLE_PATH  # takes 0.1 s to import

        verify = DEFAULT_CA_BUNDLE_PATH
    path = verify or None
    is_folder = path is not None and Path(path).is_dir()
    try:
        context = ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    except OSError as error:
        raise ValueError(f"`verify` is not a file or folder of certificates: {verify!r}") from error
    if path is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.options &= (
        ~ssl.OP_IGNORE_UNEXPECTED_EOF
    )  # set by Debian's Python; a reply that was cut off would seem whole
    return context
