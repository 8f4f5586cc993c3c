"""What a benchmark needs of a queue: its server, in a folder of its own, and a client as a good user writes it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

NAMES = (
    "redis_lists",
    "redis_streams",
    "rabbitmq",
    "nats",
    "postgresql",
    "beanstalkd",
    "lite_queue",
    "persist_queue",
    "sqs",
)
OURS = "ours"
BATCH = 1_000  # messages in a batch of a peer that sets no limit of its own
PATIENCE = 30.0  # seconds without any message before a client gives up


class Missing(Exception):
    """The peer cannot be measured here; `str()` says why, and what to install."""


class Server(NamedTuple):
    """A server that answers. `address` is what its clients are given; `pid` is None where there is no process."""

    address: str
    pid: int | None


class Client(Protocol):
    """One client's connection to a queue. What it has taken is acked when it asks for more, or closes."""

    def send(self, text: str) -> None:
        """It is on disk."""

    def take(self) -> str:
        """The next message; waits for it."""

    def send_all(self, batches: Iterable[list[str]]) -> None:
        """All are on disk, in order."""

    def take_all(self, count: int) -> Iterator[list[str]]:
        """As many messages in batches as they come. Each batch is acked when the next one is asked for."""

    def close(self) -> None:
        """What was taken is acked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A queue that is measured.

    `version` raises Missing where the server is. `note`: what a reader of its figures must know. `durable`: it confirms
    after its fsync. `ordered`: one reader gets messages as they were sent. `shared`: several processes may read.
    """

    name: str
    version: Callable[[], str]
    serve: Callable[[Path], AbstractContextManager[Server]]
    connect: Callable[[str], Client]
    note: str = ""
    durable: bool = True
    ordered: bool = True
    shared: bool = True


def load(name: str) -> Peer:
    """The peer of that module. Raises Missing where its client is."""
    try:
        peer: Peer = importlib.import_module(f"benchmarks.queues.{name}").PEER
    except ImportError as error:
        raise Missing(f"the Python package of {error.name} is not installed (pip install --group bench)") from error
    return peer


def program(name: str, package: str, *folders: str) -> str:
    """The path of an executable, in these folders or else on PATH. Raises Missing."""
    found = shutil.which(name, path=":".join(folders)) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed (benchmarks/get-peers, or Debian's package {package})")
    return found


def versions(*packages: str) -> str:
    """Of Python packages, as "redis 5.0, hiredis 3.0"."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def in_batches(take: Callable[[int], list[str]], count: int, most: int = BATCH) -> Iterator[list[str]]:
    """So many messages, as `take` brings them, which is told how many it may bring."""
    while count:
        texts = take(min(most, count))
        count -= len(texts)
        yield texts
