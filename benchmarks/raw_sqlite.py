"""SQLite alone, without a service or a queue: the limit of the disk and the database."""

from __future__ import annotations

import time
from pathlib import Path

import apsw

TEXT = "x" * 60


class RawSqlite:
    """A table of texts and one connection; each batch is a transaction with an fsync."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL)")

    def insert(self, batch: int, seconds: float) -> float:
        """Insert batches for so many seconds; return the rows per second."""
        rows = [(TEXT,)] * batch
        start = time.perf_counter()
        done = 0
        while not done or time.perf_counter() - start < seconds:
            with self._connection:
                self._connection.executemany("INSERT INTO texts (text) VALUES (?)", rows)
            done += batch
        return done / (time.perf_counter() - start)

    def take(self, batch: int, seconds: float) -> float:
        """Read and delete batches for so many seconds or until the table is empty; return the rows per second."""
        start = time.perf_counter()
        done = 0
        while not done or time.perf_counter() - start < seconds:
            with self._connection:
                taken = self._connection.execute(
                    "DELETE FROM texts WHERE id IN (SELECT id FROM texts ORDER BY id LIMIT ?) RETURNING id, text",
                    (batch,),
                ).fetchall()
            if not taken:
                break
            done += len(taken)
        return done / (time.perf_counter() - start)

    def close(self) -> None:
        self._connection.close()
