"""persist-queue's SQLiteAckQueue, a library over one file: WAL, synchronous=FULL, a commit for each call."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import persistqueue

from benchmarks.queues.peer import TIMEOUT, Peer, Server, in_batches, versions

POLL = 0.001  # seconds between two attempts of a reader


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    (address := folder / "queue").mkdir()  # else clients that start together fail to create it
    yield Server(str(address), None)


class _Client:
    def __init__(self, address: str) -> None:
        self._queue = persistqueue.SQLiteAckQueue(address, auto_resume=False, timeout=TIMEOUT)
        self._taken: list[int] = []

    def send(self, text: str) -> None:
        self._queue.put(text)

    def take(self) -> str:
        self._ack()
        return self._next(1)[0]

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            for text in batch:
                self._queue.put(text)

    def take_all(self, count: int) -> Iterator[list[str]]:
        for texts in in_batches(self._next, count):
            yield texts
            self._ack()

    def close(self) -> None:
        self._ack()
        self._queue.close()

    def _next(self, most: int) -> list[str]:
        texts: list[str] = []
        deadline = time.monotonic() + TIMEOUT
        while len(texts) < most:
            try:
                item = self._queue.get(block=False, raw=True)
            except persistqueue.Empty:
                if texts:
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL)
            else:
                self._taken.append(item["pqid"])
                texts.append(item["data"])
        return texts

    def _ack(self) -> None:
        for number in self._taken:
            self._queue.ack(id=number)
        self._taken = []


PEER = Peer(
    name="persist-queue",
    version=lambda: f"{versions('persist-queue')}, SQLite {sqlite3.sqlite_version}",
    serve=_serve,
    connect=_Client,
    note="no server: a file that all clients open; no batches; only one process may read",
    shared=False,
)
