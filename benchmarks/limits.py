"""the limits of the other benchmarks: the disk, SQLite, and HTTP on this server.

Append 4 KiB and fdatasync; insert rows of 60 bytes with SQLite alone, in transactions of 1 to 1,000; and call a route
that does nothing (`GET /health`) with the service's own settings.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.load import request, run
from benchmarks.raw_sqlite import RawSqlite
from benchmarks.report import Result, compare, fsync_time, ours_to_other, per_second
from benchmarks.server import service

BATCHES = (1, 10, 100, 1_000)
CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SECONDS = 0.5  # of each in a round
NOTHING = request("GET", "/health")


def limits() -> list[Result]:
    rounds = []
    with (
        tempfile.TemporaryDirectory(prefix="queue-bench-") as folder,
        closing(RawSqlite(Path(folder, "raw.db"))) as sqlite,
        service() as server,
    ):
        for _ in range(ROUNDS):
            fsyncs = 1 / fsync_time(max(10, int(SECONDS * 1_000)))
            rates = {_rows(batch): sqlite.insert(batch, SECONDS) for batch in BATCHES}
            rates |= {_requests(count): run(server.port, NOTHING, count, SECONDS).rate for count in CONNECTIONS}
            rounds.append((rates, fsyncs))
    return [
        Result(
            "rate",
            "fdatasync",
            [
                compare(what, [(rates[what], fsyncs) for rates, fsyncs in rounds], per_second, ratio=ours_to_other)
                for what in rounds[0][0]
            ],
        )
    ]


def _rows(batch: int) -> str:
    return "SQLite: commits of one row" if batch == 1 else f"SQLite: rows in commits of {batch:,}"


def _requests(connections: int) -> str:
    return f"HTTP: GET /health, {connections} connection{'s' if connections > 1 else ''}"
