"""receive with a lease, one message at a time, by the number of waiting and leased messages.

The same reads from a queue of 1,000 ready messages, of 10,000, 100,000 and 1,000,000, and of 1,000,000 with 500,000 in
flight, in turn. First through the Store, then through HTTP on one connection.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.load import request, run
from benchmarks.report import Figure, Result, compare, ours_to_other, us
from benchmarks.server import service
from storage import open_store
from storage.model import NewMessage, Receive
from storage.store import Store
from storage.validation import MAX_BATCH, MAX_LEASE, MAX_LIMIT

# (ready, in flight); the first is the reference of the others
SIZES = ((1_000, 0), (10_000, 0), (100_000, 0), (1_000_000, 0), (1_000_000, 500_000))
MOST = 1.2  # times the cost at the first size
ROUNDS = 25
READS = 60  # through the Store in one round
SECONDS = 0.1  # of HTTP in one round
ONE = Receive(lease=600.0)
READ = request("GET", "/messages?lease=600")

Read = Callable[[], tuple[float, int]]  # reads for a while; returns the mean seconds of a read, and their number


def backlog() -> list[Result]:
    return at_sizes(SIZES)


def at_sizes(sizes: Sequence[tuple[int, int]]) -> list[Result]:
    """Measure the cost of a read at each of the sizes (ready, in flight), against the first."""
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        paths = [Path(folder, f"{number}.db") for number in range(len(sizes))]
        with ExitStack() as stack:
            stores = [stack.enter_context(closing(open_store(f"sqlite:///{path}"))) for path in paths]
            for store, (ready, leased) in zip(stores, sizes, strict=True):
                _fill(store, ready, leased)
            figures = _figures("Store", sizes, stores, [_reader(store) for store in stores])
            services = [stack.enter_context(service(database=path)) for path in paths]
            figures += _figures("HTTP", sizes, stores, [_http_reader(one.port) for one in services])
    return [Result("backlog", _label(*sizes[0]), figures, plot="a read by backlog: cost relative to 1,000 messages")]


def _figures(
    layer: str, sizes: Sequence[tuple[int, int]], stores: Sequence[Store], readers: Sequence[Read]
) -> list[Figure]:
    rounds: list[list[float]] = []
    for _ in range(ROUNDS + 1):
        rounds.append([])
        for store, read in zip(stores, readers, strict=True):
            seconds, count = read()
            rounds[-1].append(seconds)
            store.send("default", [NewMessage("x" * 60)] * count)  # as many are ready in the next round
    return [
        compare(
            f"{layer}: {_label(*size)}", [(r[place], r[0]) for r in rounds[1:]], us, ratio=ours_to_other, at_most=MOST
        )
        for place, size in enumerate(sizes[1:], start=1)
    ]


def _label(ready: int, leased: int) -> str:
    return f"{ready:,} ready, {leased:,} in flight" if leased else f"{ready:,} ready"


def _fill(store: Store, ready: int, leased: int) -> None:
    batch = [NewMessage("x" * 60)] * min(ready, MAX_BATCH)
    for _ in range(0, ready + leased, len(batch)):
        store.send("default", batch)
    for _ in range(0, leased, MAX_LIMIT):
        store.receive(Receive(limit=MAX_LIMIT, lease=MAX_LEASE))


def _reader(store: Store) -> Read:
    def read() -> tuple[float, int]:
        start = time.perf_counter()
        for _ in range(READS):
            store.receive(ONE)
        return (time.perf_counter() - start) / READS, READS

    return read


def _http_reader(port: int) -> Read:
    def read() -> tuple[float, int]:
        load = run(port, READ, 1, SECONDS)
        return load.seconds / load.done, load.done

    return read
