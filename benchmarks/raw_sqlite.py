"""SQLite alone, without a service or a queue around it: what the disk and the database allow."""

from __future__ import annotations

import time
from pathlib import Path

import apsw

TEXT = "x" * 60


class RawSqlite:
    """A table of texts, one connection; each batch is a transaction that is on disk when it ends."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL)")

    def insert(self, batch: int, seconds: float) -> float:
        """Rows a second."""
        rows = [(TEXT,)] * batch
        start = time.perf_counter()
        done = 0
        while not done or time.perf_counter() - start < seconds:
            with self._connection:
                self._connection.executemany("INSERT INTO texts (text) VALUES (?)", rows)
            done += batch
        return done / (time.perf_counter() - start)

    def take(self, batch: int, seconds: float) -> float:
        """Rows a second, read and deleted, as long as there are any."""
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
