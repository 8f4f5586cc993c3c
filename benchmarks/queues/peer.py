"""The parts of a queue in a benchmark: a server in its own folder, and a client as a good user would write it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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
TIMEOUT = 30.0  # seconds without any message before a client gives up


class NotInstalled(Exception):
    """The peer cannot be measured here; `str()` gives the reason, and what to install."""


class Server(NamedTuple):
    """A running server. `address` is for its clients; `pid` is None if it has no process."""

    address: str
    pid: int | None


class Client(Protocol):
    """One client's connection to a queue. A request for more messages, and `close`, ack those taken before."""

    def send(self, text: str) -> None:
        """Send a message and return when it is on disk."""

    def take(self) -> str:
        """Wait for the next message and return it."""

    def send_all(self, batches: Iterable[list[str]]) -> None:
        """Send all messages in order and return when they are on disk."""

    def take_all(self, count: int) -> Iterator[list[str]]:
        """Yield so many messages in batches as they arrive. The request for the next batch acks the last."""

    def close(self) -> None:
        """Ack the taken messages and close the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A measured queue.

    `version` raises NotInstalled if the server is not installed. `note` is for readers of its figures. `durable`: it
    confirms after its fsync. `ordered`: a single reader gets messages in the order of sending. `shared`: several
    processes may read.
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
    """Return the peer in that module. Raises NotInstalled if its Python package is not installed."""
    try:
        peer: Peer = importlib.import_module(f"benchmarks.queues.{name}").PEER
    except ImportError as error:
        raise _lacks(error) from error
    return peer


def program(name: str, package: str, *folders: str) -> str:
    """Return the path of an executable, in these folders or else on PATH. Raises NotInstalled."""
    found = shutil.which(name, path=":".join(folders)) or shutil.which(name)
    if found is None:
        raise NotInstalled(f"{name} is not installed (benchmarks/get-peers, or Debian's package {package})")
    return found


def versions(*packages: str) -> str:
    """Format the versions of Python packages, as "redis 5.0, hiredis 3.0". Raises NotInstalled."""
    try:
        return ", ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError as error:  # only another Python has it, and PATH its program
        raise _lacks(error) from error


def _lacks(error: ImportError) -> NotInstalled:
    return NotInstalled(f"the Python package of {error.name} is not installed (pip install --group bench)")


def batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def in_batches(take: Callable[[int], list[str]], count: int, most: int = BATCH) -> Iterator[list[str]]:
    """Yield `count` messages as `take`, called with the maximum number, returns them."""
    while count:
        texts = take(min(most, count))
        count -= len(texts)
        yield texts
