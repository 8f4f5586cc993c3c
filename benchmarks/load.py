"""A light HTTP load: many keep-alive connections, each with one request in progress, in one epoll loop.

It uses about 20 µs of CPU a request, so on a machine with few cores the server uses most of the time.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

TIMEOUT = 30.0  # seconds without any reply at all before the load gives up


# A request, or a function from the last reply's body to the next request; b"" ends the work of a connection.
Script = bytes | Callable[[bytes], bytes]


class Load(NamedTuple):
    """`seconds` of load: the number of each status, and the latencies (s, ascending) of the 2xx replies."""

    seconds: float
    statuses: Counter[int]
    latencies: list[float]

    @property
    def done(self) -> int:
        """Return the number of 2xx replies."""
        return len(self.latencies)

    @property
    def failed(self) -> int:
        """Return the number of other replies."""
        return self.statuses.total() - self.done

    @property
    def rate(self) -> float:
        return self.done / self.seconds


class _Client:
    __slots__ = ("body", "ended", "latencies", "port", "received", "script", "sent_at", "sock", "statuses")

    def __init__(self, port: int, script: Script) -> None:
        self.port = port
        self.script = script
        self.connect()
        self.sent_at = 0.0
        self.received = self.body = b""
        self.latencies: list[float] = []
        self.statuses: list[int] = []

    def connect(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ended = False

    def close(self) -> None:
        self.sock.close()

    def send(self) -> bool:
        """Send the next request; return whether there is one."""
        request = self.script if isinstance(self.script, bytes) else self.script(self.body)
        self.sent_at = time.perf_counter()
        self.sock.sendall(request)
        return bool(request)

    def has_reply(self) -> bool:
        """Read from the socket; return whether the reply is complete, and then record it."""
        piece = self.sock.recv(65_536)
        if not piece:
            raise ConnectionError("the service closed a connection in the middle of a reply")
        self.received += piece
        head, found, self.body = self.received.partition(b"\r\n\r\n")
        if not found or len(self.body) < _length(head):
            return False
        self.received = b""
        self.ended = b"\r\nconnection: close" in head.lower()
        status = int(head[9:12])
        self.statuses.append(status)
        if 200 <= status < 300:
            self.latencies.append(time.perf_counter() - self.sent_at)
        return True


def run(port: int, script: Script, connections: int, seconds: float) -> Load:
    """Send the script's requests on each of the `connections` for `seconds`."""
    return run_together(port, [(script, connections)], seconds)[0]


def run_together(port: int, kinds: Sequence[tuple[Script, int]], seconds: float) -> list[Load]:
    """Run several scripts at the same time, each on its own connections."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        groups = [[_Client(port, script) for _ in range(connections)] for script, connections in kinds]
        clients = [client for group in groups for client in group]
        for client in clients:
            stack.callback(client.close)
            selector.register(client.sock, selectors.EVENT_READ, client)
        start = time.perf_counter()
        under_way = sum(client.send() for client in clients)
        while under_way:
            ready = selector.select(TIMEOUT)
            if not ready:
                raise TimeoutError(f"no reply in {TIMEOUT:g} s")
            for key, _ in ready:
                client = key.data
                if client.has_reply():
                    if client.ended:
                        _reconnect(client, selector)
                    if time.perf_counter() - start >= seconds or not client.send():
                        under_way -= 1
        taken = time.perf_counter() - start
    return [
        Load(
            taken,
            Counter(status for client in group for status in client.statuses),
            sorted(latency for client in group for latency in client.latencies),
        )
        for group in groups
    ]


def _reconnect(client: _Client, selector: selectors.BaseSelector) -> None:
    """Replace the connection that the server closes after its reply."""
    selector.unregister(client.sock)
    client.close()
    client.connect()
    selector.register(client.sock, selectors.EVENT_READ, client)


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """Return the bytes of a request with a JSON body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0
