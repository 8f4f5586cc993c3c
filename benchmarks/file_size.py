"""the database's size on disk after a backlog was drained, against its size before.

100,000 messages wait; 900,000 more are sent, and then leased and acked until 100,000 wait again. The size is the blocks
on disk of the file and its log: before, and after some time for upkeep.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.call import Caller, batch_of
from benchmarks.report import Figure, Result
from benchmarks.server import service

STAY, COME_AND_GO = 100_000, 900_000
MOST = 1.5  # times the size before
TIDIES_WITHIN = 10.0  # seconds
BATCH = 1_000


def file_size() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        path = Path(folder, "queue.db")
        with service(database=path) as server, closing(Caller(server.port)) as caller:
            _send(caller, STAY)
            before = _settled(path, caller)
            _send(caller, COME_AND_GO)
            full = _size(path)
            for _ in range(0, COME_AND_GO, BATCH):
                caller.ack(caller.lease("default", BATCH))
            after = _settled(path, caller)
    return [
        Result(
            "after",
            "before",
            [
                Figure("with the backlog", _mib(full), _mib(before), full / before),
                Figure("drained", _mib(after), _mib(before), after / before, at_most=MOST),
            ],
        )
    ]


def _send(caller: Caller, count: int) -> None:
    batch = batch_of(BATCH)
    for _ in range(0, count, BATCH):
        caller.send("default", batch)


def _settled(path: Path, caller: Caller) -> int:
    """Return the least size in bytes during TIDIES_WITHIN with a little work, as in a real service."""
    end = time.monotonic() + TIDIES_WITHIN
    least = _size(path)
    while time.monotonic() < end:
        caller.send("default", batch_of(1))
        caller.ack(caller.lease("default", 1))
        least = min(least, _size(path))
        time.sleep(0.1)
    return least


def _size(path: Path) -> int:
    """Return the bytes on disk of the database and its log."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_blocks * 512 for file in files if file.exists())


def _mib(size: float) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
