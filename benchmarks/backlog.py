"""receive with a lease, one message at a time, by how many messages wait or are leased already.

The same reads in turn from a queue of 1,000 ready messages, of 1,000,000, and of 1,000,000 with 500,000 in flight
as well; first through the Store, then through HTTP on one connection.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.load import request, run
from benchmarks.report import Figure, Found, compare, ours_to_other, us
from benchmarks.server import service
from storage import open_store
from storage.model import MAX_BATCH, MAX_LEASE, MAX_LIMIT, NewMessage, Receive, Store

FEW, MANY, IN_FLIGHT = 1_000, 1_000_000, 500_000
NAMES = (f"{MANY:,} ready", f"{MANY:,} ready, {IN_FLIGHT:,} in flight")
MOST = 1.3  # times the cost at FEW
ROUNDS = 25
READS = 60  # through the Store in one round
SECONDS = 0.1  # of HTTP in one round
ONE = Receive(lease=600.0)
READ = request("GET", "/messages?lease=600")

Read = Callable[[], tuple[float, int]]  # reads for a while: mean seconds of a read, and how many there were


def backlog() -> Found:
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        paths = [Path(folder, name) for name in ("few.db", "many.db", "in-flight.db")]
        with ExitStack() as stack:
            stores = [stack.enter_context(closing(open_store(f"sqlite:///{path}"))) for path in paths]
            for store, ready, leased in zip(stores, (FEW, MANY, MANY), (0, 0, IN_FLIGHT), strict=True):
                _fill(store, ready, leased)
            figures = _figures("Store", stores, [_reader(store) for store in stores])
            services = [stack.enter_context(service(database=path)) for path in paths]
            figures += _figures("HTTP", stores, [_http_reader(one.port) for one in services])
    return Found("backlog", f"{FEW:,} ready", figures)


def _figures(door: str, stores: Sequence[Store], readers: Sequence[Read]) -> list[Figure]:
    rounds: list[list[float]] = []
    for _ in range(ROUNDS + 1):
        rounds.append([])
        for store, read in zip(stores, readers, strict=True):
            seconds, count = read()
            rounds[-1].append(seconds)
            store.send("default", [NewMessage("x" * 60)] * count)  # as many are ready in the next round
    return [
        compare(f"{door}: {name}", [(r[place], r[0]) for r in rounds[1:]], us, ratio=ours_to_other, at_most=MOST)
        for place, name in enumerate(NAMES, start=1)
    ]


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
