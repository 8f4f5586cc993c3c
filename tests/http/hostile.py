"""Run hostile clients in a separate process: `python -m tests.http.hostile KIND PORT CONNECTIONS`, until killed."""

from __future__ import annotations

import random
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

HEAD = b"POST /queues/hostile/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\n"
LARGE = "large"  # a queue larger than the socket buffers of a connection
DROP = 0.3  # seconds between two pieces of a slow request


def slow_heads(port: int) -> None:
    with _connected(port, HEAD) as client:
        _drip(client, b"X-Drop: 1\r\n")


def slow_bodies(port: int) -> None:
    with _connected(port, HEAD + b"Content-Length: 100000\r\n\r\n") as client:
        _drip(client, b"x")


def slow_readers(port: int) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET /queues/{LARGE}/peek HTTP/1.1\r\nHost: q\r\n\r\n".encode())
        while client.recv(1_000):
            time.sleep(DROP)


def resets(port: int) -> None:
    poll = b"GET /queues/hostile/messages?wait=5 HTTP/1.1\r\nHost: q\r\n\r\n"
    sent = random.choice([b"", HEAD, HEAD + b"Content-Length: 10\r\n\r\nx", poll])
    with _connected(port, sent) as client:
        time.sleep(random.choice([0, 0.01]))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(port: int) -> None:
    with _connected(port, b"") as client:
        client.recv(1)


def smuggling(port: int) -> None:
    inner = HEAD + b"Content-Length: 8\r\n\r\nintruder"
    framing = random.choice(
        [
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n",
            b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
            b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            b"Content-Length: +0\r\n\r\n",
        ]
    )
    with _connected(port, HEAD + framing + inner) as client:
        while client.recv(65_536):
            pass


def oversized_bodies(port: int) -> None:
    with _connected(port, HEAD + b"Content-Length: 1000000000\r\n\r\n") as client:
        while True:
            client.sendall(bytes(100_000))


def endless_bodies(port: int) -> None:
    with _connected(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        while True:
            client.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")


KINDS: dict[str, Callable[[int], None]] = {
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "slow readers": slow_readers,
    "resets": resets,
    "floods of connections": silence,
    "smuggling": smuggling,
    "oversized bodies": oversized_bodies,
    "endless bodies": endless_bodies,
}


def _connected(port: int, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(sent)
    return client


def _drip(client: socket.socket, drop: bytes) -> None:
    while True:
        client.sendall(drop)
        time.sleep(DROP)


def main(kind: str, port: int, connections: int) -> None:
    """Open connections, reopen each that the service closes, and print a line for each one opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    threading.stack_size(256 * 1024)

    def attack() -> None:
        while True:
            print(flush=True)
            with suppress(OSError):
                KINDS[kind](port)

    for _ in range(connections):
        threading.Thread(target=attack).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
