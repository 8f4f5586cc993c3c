"""batches of 10, 100 and 1,000 messages over one connection, against SQLite alone.

Send, then lease and ack: as arrays of messages, and as runs. SQLite inserts as many rows in a transaction, or reads and
deletes them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.call import Caller, Leased, batch_of, run_of
from benchmarks.raw_sqlite import RawSqlite
from benchmarks.report import Figure, Result, compare, ours_to_other, per_second
from benchmarks.server import service

SIZES = (10, 100, 1_000)
ROUNDS = 3
SECONDS = 0.5  # of each in a round


def batches() -> list[Result]:
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
    return [Result("messages", "rows of SQLite", figures, plot="batches: messages relative to rows of SQLite alone")]


def _round(caller: Caller, sqlite: RawSqlite, size: int) -> dict[str, tuple[float, float]]:
    batch, run = batch_of(size), run_of(size)
    sent = send(caller, lambda: caller.send("batches", batch), size)
    taken = take(caller, caller.lease, size)
    inserted = sqlite.insert(size, SECONDS)
    sent_runs = send(caller, lambda: caller.send_run("batches", run), size)
    taken_runs = take(caller, caller.lease_runs, size)
    deleted = sqlite.take(size, SECONDS)
    return {
        "send": (sent, inserted),
        "send, as a run": (sent_runs, inserted),
        "lease and ack": (taken, deleted),
        "lease and ack, as runs": (taken_runs, deleted),
    }


def send(caller: Caller, request: Callable[[], None], size: int) -> float:
    """Messages a second. Raise RuntimeError unless all of them are in the queue `batches`, which was empty."""
    done = 0
    start = time.perf_counter()
    while not done or time.perf_counter() - start < SECONDS:
        request()
        done += size
    taken = time.perf_counter() - start
    caller.expect("batches", ready=done)
    return done / taken


def take(caller: Caller, lease: Callable[[str, int], Leased], size: int) -> float:
    """Messages a second, as long as there are any; then the queue is emptied."""
    done = 0
    start = time.perf_counter()
    while (not done or time.perf_counter() - start < SECONDS) and (leased := lease("batches", size)).messages:
        caller.ack(leased)
        done += leased.messages
    taken = time.perf_counter() - start
    caller.call("POST", "/queues/batches/purge")
    return done / taken
