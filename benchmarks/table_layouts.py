"""pages and CPU of a commit: the table of messages as it is, and one clustered by queue.

SQLite alone, in turns, with the service's schema and settings: rows with a rowid and an index by queue (`in_queue`),
and rows WITHOUT ROWID whose primary key is the queue and the id, numbered by the queues' table. A transaction sends,
leases, acks or removes one message and counts that.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from benchmarks.report import Result, compare, ours_to_other, us
from storage.sqlite.disk.file import DatabaseFile

ROUNDS = 5
SIZES = (60, 700, 2_000)  # bytes of a text
MESSAGES = 400  # sent in a round; half of them are leased and acked, and half are removed at once

_FIRST = """
    (SELECT id FROM messages WHERE queue_id = 1 AND state = 0 AND receive_count < 9 AND recipient = ''
      ORDER BY priority DESC, id LIMIT 1)
"""

Sample = tuple[float, float]  # pages written by a commit, and seconds of CPU


class _Table:
    """A database of one layout. Each method is one statement or two of a transaction."""

    def __init__(self, path: Path, is_clustered: bool) -> None:
        file = DatabaseFile(path)
        self.connection = file.connect()
        file.close()
        self.pages = 0
        self.connection.set_wal_hook(self._note_pages)
        self._is_clustered = is_clustered
        self._own = "queue_id = 1 AND" if is_clustered else ""  # part of the primary key
        self._leased: deque[int] = deque()
        if is_clustered:
            self._cluster()
        self.connection.execute("INSERT INTO queues (name) VALUES ('q')")

    def send(self, text: str) -> None:
        columns, values = ("id, ", "(SELECT swept + 1 FROM queues WHERE id = 1), ") if self._is_clustered else ("", "")
        insert = f"INSERT INTO messages ({columns}queue_id, state, sent_at, text) VALUES ({values}1, 0, 1, ?)"
        self.connection.execute(insert, (text,))
        # The column `swept` stands for a sequence beside the counts.
        self._count("ready = ready + 1, sent = sent + 1" + (", swept = swept + 1" if self._is_clustered else ""))

    def lease(self) -> None:
        set_ = "SET state = 1, token = 5, due_at = 99, receive_count = receive_count + 1, first_received_at = 1"
        self._leased += self._one(f"UPDATE messages {set_} WHERE {self._own} id = {_FIRST} RETURNING id, text")
        self._count("ready = ready - 1, leased = leased + 1, received = received + 1")

    def ack(self) -> None:
        self._one(f"DELETE FROM messages WHERE {self._own} id = ? RETURNING id", self._leased.popleft())
        self._count("leased = leased - 1, acked = acked + 1")

    def remove(self) -> None:
        self._one(f"DELETE FROM messages WHERE {self._own} id = {_FIRST} RETURNING id, text")
        self._count("ready = ready - 1, received = received + 1")

    def measure(self, do: Callable[[], object], times: int) -> Sample:
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        before = time.thread_time()
        for _ in range(times):
            self.connection.execute("BEGIN IMMEDIATE")
            do()
            self.connection.execute("COMMIT")
        cpu, pages = time.thread_time() - before, self.pages
        return pages / times, cpu / times

    def _one(self, sql: str, *values: Any) -> list[Any]:
        (row,) = self.connection.execute(sql, values).fetchall()
        return [row[0]]

    def _count(self, changes: str) -> None:
        self.connection.execute(f"UPDATE queues SET {changes} WHERE id = 1")

    def _cluster(self) -> None:
        query = "SELECT sql FROM sqlite_schema WHERE tbl_name = 'messages' AND sql IS NOT NULL AND name <> 'in_queue'"
        table, *indexes = [str(row[0]) for row in self.connection.execute(f"{query} ORDER BY type DESC")]
        table = table.replace("INTEGER PRIMARY KEY AUTOINCREMENT", "INTEGER NOT NULL")
        table = re.sub(r"\)\s*STRICT$", ", PRIMARY KEY (queue_id, id)) STRICT, WITHOUT ROWID", table)
        self.connection.execute("DROP TABLE messages")
        for sql in (table, *indexes):
            self.connection.execute(sql)

    def _note_pages(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self.pages = pages
        return apsw.SQLITE_OK


def table_layouts() -> list[Result]:
    found: dict[str, list[tuple[Sample, Sample]]] = {}
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        for size in SIZES:
            tables = [_Table(Path(folder, f"{size}-{is_clustered}.db"), is_clustered) for is_clustered in (False, True)]
            for _ in range(ROUNDS):
                rounds = [_round(table, "x" * size) for table in tables]
                for what in rounds[0]:
                    found.setdefault(f"{what}, {size:,} bytes", []).append((rounds[0][what], rounds[1][what]))
            for table in tables:
                table.connection.close()
    return [
        Result(
            "as it is",
            "clustered by queue",
            [
                compare(what, [(a[part], b[part]) for a, b in rounds], show, ratio=ours_to_other)
                for what, rounds in found.items()
            ],
            title,
        )
        for part, (title, show) in enumerate([("pages of a commit", "{:.1f}".format), ("CPU of a commit", us)])
    ]


def _round(table: _Table, text: str) -> dict[str, Sample]:
    return {
        "send": table.measure(lambda: table.send(text), MESSAGES),
        "lease": table.measure(table.lease, MESSAGES // 2),
        "ack": table.measure(table.ack, MESSAGES // 2),
        "remove": table.measure(table.remove, MESSAGES // 2),
    }
