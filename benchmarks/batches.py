"""batches of 10, 100 and 1,000 messages over one connection, against SQLite alone.

Sent, and then leased and acked. The other inserts as many rows a transaction, or reads and deletes them.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.call import Caller, batch_of
from benchmarks.raw_sqlite import RawSqlite
from benchmarks.report import Figure, Found, compare, ours_to_other, per_second
from benchmarks.server import service

SIZES = (10, 100, 1_000)
ROUNDS = 3
SECONDS = 0.5  # of each in a round


def batches() -> list[Found]:
    figures: list[Figure] = []
    with (
        tempfile.TemporaryDirectory(prefix="queue-bench-") as folder,
        closing(RawSqlite(Path(folder, "raw.db"))) as sqlite,
        service() as server,
        closing(Caller(server.port)) as caller,
    ):
        for size in SIZES:
            rounds = [_round(caller, sqlite, size) for _ in range(ROUNDS + 1)][1:]
            figures += [
                compare(f"{what} of {size:,}", [r[what] for r in rounds], per_second, ratio=ours_to_other)
                for what in rounds[0]
            ]
    return [Found("messages", "rows of SQLite", figures, plot="batches: messages to rows of SQLite alone")]


def _round(caller: Caller, sqlite: RawSqlite, size: int) -> dict[str, tuple[float, float]]:
    sent = _send(caller, size)
    inserted = sqlite.insert(size, SECONDS)
    taken = _take(caller, size)
    deleted = sqlite.take(size, SECONDS)
    return {"send": (sent, inserted), "lease and ack": (taken, deleted)}


def _send(caller: Caller, size: int) -> float:
    """Messages a second."""
    batch = batch_of(size)
    done = 0
    start = time.perf_counter()
    while not done or time.perf_counter() - start < SECONDS:
        caller.send("batches", batch)
        done += size
    return done / (time.perf_counter() - start)


def _take(caller: Caller, size: int) -> float:
    """Messages a second, as long as there are any."""
    done = 0
    start = time.perf_counter()
    while (not done or time.perf_counter() - start < SECONDS) and (receipts := caller.lease("batches", size)):
        caller.ack(receipts)
        done += len(receipts)
    taken = time.perf_counter() - start
    caller.call("POST", "/queues/batches/purge")
    return done / taken
