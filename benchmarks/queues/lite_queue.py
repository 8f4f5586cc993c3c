"""litequeue, a library over one file: SQLite's WAL, with synchronous=FULL instead of its default NORMAL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import litequeue

from benchmarks.queues.peer import TIMEOUT, Peer, Server, in_batches, versions

POLL = 0.001  # seconds between two attempts of a reader


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    path = str(folder / "queue.db")
    litequeue.LiteQueue(path).close()
    yield Server(path, None)


class _Client:
    def __init__(self, address: str) -> None:
        self._queue = litequeue.LiteQueue(address, timeout=TIMEOUT)
        self._queue.conn.execute("PRAGMA synchronous = FULL")
        self._taken: list[str] = []

    def send(self, text: str) -> None:
        self._queue.put(text)

    def take(self) -> str:
        self._ack()
        return self._next(1)[0]

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            with self._queue.transaction(mode="IMMEDIATE"):
                for text in batch:
                    self._queue.put(text)

    def take_all(self, count: int) -> Iterator[list[str]]:
        for texts in in_batches(self._next, count):
            yield texts
            with self._queue.transaction(mode="IMMEDIATE"):
                self._ack()

    def close(self) -> None:
        self._ack()
        self._queue.close()

    def _next(self, most: int) -> list[str]:
        """Pop messages one by one, because litequeue makes each pop a transaction."""
        texts: list[str] = []
        deadline = time.monotonic() + TIMEOUT
        while len(texts) < most:
            message = self._queue.pop()
            if message is not None:
                self._taken.append(message.message_id)
                texts.append(message.data)
            elif texts:
                break
            elif time.monotonic() > deadline:
                raise TimeoutError("no message")
            else:
                time.sleep(POLL)
        return texts

    def _ack(self) -> None:
        for message_id in self._taken:
            self._queue.done(message_id)
        self._taken = []


PEER = Peer(
    name="litequeue",
    version=lambda: f"{versions('litequeue')}, SQLite {sqlite3.sqlite_version}",
    serve=_serve,
    connect=_Client,
    note="no server: a file that all clients open",
)
