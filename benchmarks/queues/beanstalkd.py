"""beanstalkd, with an fsync for every write to its log; greenstalk for single messages, pipelined batches."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import greenstalk

from benchmarks.queues.peer import BATCH, TIMEOUT, Peer, Server, program, versions
from benchmarks.queues.process import free_port, output, running

TIME_TO_RUN = 600  # seconds


def _version() -> str:
    return f"{output(_program(), '-v').strip()}, {versions('greenstalk')}"


def _program() -> str:
    return program("beanstalkd", "beanstalkd", "/usr/sbin", "/usr/bin")


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [_program(), "-l", "127.0.0.1", "-p", str(port), "-b", str(folder), "-f0"]
    with running(command, folder, port) as pid:
        yield Server(str(port), pid)


class _Client:
    def __init__(self, address: str) -> None:
        place = ("127.0.0.1", int(address))
        self._client = greenstalk.Client(place)
        self._job: greenstalk.Job | None = None
        self._socket = socket.create_connection(place, timeout=TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")

    def send(self, text: str) -> None:
        self._client.put(text, ttr=TIME_TO_RUN)

    def take(self) -> str:
        self._ack()
        self._job = self._client.reserve(timeout=int(TIMEOUT))
        return str(self._job.body)

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            bodies = [text.encode() for text in batch]
            self._socket.sendall(
                b"".join(b"put 65536 0 %d %d\r\n%b\r\n" % (TIME_TO_RUN, len(body), body) for body in bodies)
            )
            for _ in bodies:
                self._expect(b"INSERTED")

    def take_all(self, count: int) -> Iterator[list[str]]:
        done: list[bytes] = []
        while count:
            # Delete the last batch, wait with one reserve, and take as many more as are ready.
            wanted = min(BATCH, count)
            deletes = b"".join(b"delete %b\r\n" % job for job in done)
            reserves = b"reserve\r\n" + b"reserve-with-timeout 0\r\n" * (wanted - 1)
            self._socket.sendall(deletes + reserves)
            for _ in done:
                self._expect(b"DELETED")
            jobs = [job for _ in range(wanted) if (job := self._reserved()) is not None]
            done = [number for number, _ in jobs]
            count -= len(jobs)
            yield [body.decode() for _, body in jobs]
        self._socket.sendall(b"".join(b"delete %b\r\n" % job for job in done))
        for _ in done:
            self._expect(b"DELETED")

    def close(self) -> None:
        self._ack()
        self._client.close()
        self._socket.close()

    def _ack(self) -> None:
        if self._job is not None:
            self._client.delete(self._job)
            self._job = None

    def _expect(self, word: bytes) -> list[bytes]:
        words = self._replies.readline().split()
        if not words or words[0] != word:
            raise RuntimeError(f"beanstalkd answered {words!r}")
        return words[1:]

    def _reserved(self) -> tuple[bytes, bytes] | None:
        word, *values = self._replies.readline().split()
        if word == b"TIMED_OUT":
            return None
        if word != b"RESERVED":
            raise RuntimeError(f"beanstalkd answered {word!r}")
        body = self._replies.read(int(values[1]) + 2)
        return values[0], body[:-2]


PEER = Peer(name="beanstalkd", version=_version, serve=_serve, connect=_Client)
