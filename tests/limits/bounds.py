"""Measure how long others wait for a request: another process that commits, and another client of the same worker.

The bounds are multiples of the time of a batch, since they depend on the machine. The batch has MAX_BATCH messages,
each in its own row, which a client can always send.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from storage import open_store
from storage.model import Message, NewMessage, Receive
from storage.store import Engine
from storage.validation import MAX_BATCH, MAX_LIMIT
from tests.support.live import LiveServer
from tests.support.postgres import Postgres

T = TypeVar("T")

LOCKED_FOR = 4.0  # multiples of a batch's time for which a request may keep another process from committing
ANSWERED_IN = 8.0  # multiples of a batch's time for which others may wait for the same worker
BATCHES = 3
PATIENCE = 60.0  # seconds for the worst request itself: its client can wait, and retry after busy
numbers = count(1)


class Request(NamedTuple):
    method: str
    path: str
    body: bytes | None = None
    kind: str = "application/json"
    expected: range | tuple[int, ...] = (200, 204)
    beside: str = "beside"  # the queue of the other clients


class Scene:
    """A service with one worker, and the content of its database; `size` is the length of a long queue."""

    def __init__(self, server: LiveServer, store: Engine, size: int) -> None:
        self.server = server
        self.store = store
        self.size = size

    def fill(self, queue: str, total: int | None = None, **fields: object) -> None:
        """Send messages, each stored as its own row unless `fields` makes them plain."""
        fields = {"priority": 1} | fields
        # On a loaded machine a full batch of rows could exceed PostgreSQL's statement timeout.
        size = MAX_BATCH if fields["priority"] is None else 2_000
        for some in batched(range(self.size if total is None else total), size):
            self.store.send(queue, [new(f"{number}", **_each(fields, number)) for number in some])

    def lease(self, queue: str, total: int, *, limit: int = MAX_LIMIT, lease: float = 600.0) -> list[Message]:
        messages: list[Message] = []
        while len(messages) < total:
            found = self.store.receive(Receive((queue,), min(limit, total - len(messages)), lease, None))
            assert found
            messages += found
        return messages


def new(text: str, **fields: object) -> NewMessage:
    return NewMessage.from_document({"text": text, **fields})


def _each(fields: dict[str, object], number: int) -> dict[str, object]:
    return {name: value(number) if callable(value) else value for name, value in fields.items() if value is not None}


@contextmanager
def scene_on(database: Path | Postgres, size: int) -> Iterator[Scene]:
    """Run a service on its own database, in this directory or in this PostgreSQL."""
    url = f"sqlite:///{database}/queue.db" if isinstance(database, Path) else database.create_database(fresh())
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_DATABASE_URL": url}) as server:
        store = open_store(url)
        yield Scene(server, store, size)
        store.close()


class Other:
    """Another client, which repeats one operation in a thread while the block runs."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.longest = 0.0
        self._do = do
        self._stopping = threading.Event()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._do()  # warm-up
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if kind is None and self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._do()
            except Exception as fault:
                self._fault = fault
                return
            finally:
                self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.002)  # so that it does not occupy a core


class Committing:
    """Commit a message, by a process other than the service."""

    def __init__(self, store: Engine, queue: str) -> None:
        self._store = store
        self._queue = queue

    def __call__(self) -> None:
        self._store.send(self._queue, [NewMessage("beside")])


class Asking:
    """Request the health of the same worker, and send a message to it."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server

    def __call__(self) -> None:
        for request in (Request("GET", "/health"), Request("POST", "/queues/beside/messages", b'{"text": ""}')):
            assert answer(self._server, request) == 200


def answer(server: LiveServer, request: Request) -> int:
    """Return the status."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request(request.method, request.path, request.body, {"Content-Type": request.kind})
        reply = connection.getresponse()
        reply.read()
    finally:
        connection.close()
    return reply.status


def seconds_of_a_batch(store: Engine) -> float:
    """Return the longest of a few, because it is compared with the longest wait of others."""
    batch = [new(str(number), priority=1, key=str(number)) for number in range(MAX_BATCH)]
    longest = 0.0
    for _ in range(BATCHES):
        began = time.monotonic()
        store.send("batches", batch)
        longest = max(longest, time.monotonic() - began)
    return longest


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield batches, like itertools.batched of Python 3.12."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def fresh() -> str:
    return f"worst-{next(numbers)}"


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def ms(seconds: float) -> str:
    return f"{1_000 * seconds:,.0f} ms"
