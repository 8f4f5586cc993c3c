"""A light HTTP load: many keep-alive connections, each with one request under way, driven by one epoll loop.

It costs about 20 µs of CPU a request, so on a machine of few cores most of the time is the server's.
"""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import ExitStack
from typing import NamedTuple

PATIENCE = 30.0  # seconds without any reply at all before the load gives up


class Load(NamedTuple):
    """`seconds` of load: how many 2xx replies came, how many others, and the latencies (s, ascending) of the 2xx."""

    seconds: float
    done: int
    failed: int
    latencies: list[float]

    @property
    def rate(self) -> float:
        return self.done / self.seconds


class _Client:
    __slots__ = ("asked", "got", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked = 0.0
        self.got = b""

    def ask(self, request: bytes) -> None:
        self.asked = time.perf_counter()
        self.sock.sendall(request)

    def status(self) -> int:
        """The status of the reply once it is all here, else 0."""
        piece = self.sock.recv(65_536)
        if not piece:
            raise ConnectionError("the service closed a connection in the middle of a reply")
        self.got += piece
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return 0
        self.got = b""
        return int(head[9:12])


def run(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """The same request again and again on `connections` connections for `seconds`."""
    latencies: list[float] = []
    failed = 0
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = [_Client(port) for _ in range(connections)]
        for client in clients:
            stack.enter_context(client.sock)
            selector.register(client.sock, selectors.EVENT_READ, client)
        start = time.perf_counter()
        for client in clients:
            client.ask(request)
        under_way = connections
        while under_way:
            ready = selector.select(PATIENCE)
            if not ready:
                raise TimeoutError(f"no reply in {PATIENCE:g} s")
            for key, _ in ready:
                client = key.data
                status = client.status()
                if not status:
                    continue
                now = time.perf_counter()
                if 200 <= status < 300:
                    latencies.append(now - client.asked)
                else:
                    failed += 1
                if now - start < seconds:
                    client.ask(request)
                else:
                    under_way -= 1
        taken = time.perf_counter() - start
    return Load(taken, len(latencies), failed, sorted(latencies))


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A request of JSON as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0
