"""This service, through its own client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.queues.peer import TIMEOUT, Peer, Server, in_batches
from benchmarks.server import service
from clients import ColumnBatch, QueueClient

QUEUE = "bench"
WAIT = 5.0  # seconds of one poll
LEASE = 60.0  # seconds


@contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    with service(database=folder / "queue.db") as server:
        yield Server(server.url, server.pid)


class _Client:
    def __init__(self, address: str) -> None:
        self._client = QueueClient(address, queue=QUEUE, retry_for=TIMEOUT)
        self._held: list[str] = []

    def send(self, text: str) -> None:
        self._client.send(text)

    def take(self) -> str:
        return self._next(1)[0]

    def send_all(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            self._client.send_many(batch)

    def take_all(self, count: int) -> Iterator[list[str]]:
        yield from in_batches(self._next, count)
        self._ack()

    def close(self) -> None:
        self._ack()
        self._client.close()

    def _next(self, limit: int) -> list[str]:
        """Return the texts of the next messages; ack those before with the first request."""
        held, self._held, runs = self._held, [], list[ColumnBatch]()
        if held:
            _, runs = self._client.ack_and_receive_runs(held, limit=limit, wait=WAIT, lease=LEASE)
        while not runs:
            runs = self._client.receive_runs(limit=limit, wait=WAIT, lease=LEASE)
        self._held = [run.receipt for run in runs]
        return [text for run in runs for text in run.texts]

    def _ack(self) -> None:
        if self._held:
            self._client.ack_many(self._held)
            self._held = []


PEER = Peer(
    name="ours",
    version=lambda: f"gunicorn {version('gunicorn')}",
    serve=_serve,
    connect=_Client,
)
