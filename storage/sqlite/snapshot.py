"""The messages available now, for storage/waiting.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw

from storage.clock import Clock
from storage.sqlite.receiving import available
from storage.sqlite.transaction import WriteTransaction
from storage.waiting import Availability, Subscription


class QueueSnapshot:
    """Shows storage/waiting.py the available messages."""

    def __init__(self, connection: apsw.Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._version: int | None = None

    def changed(self) -> bool:
        version: int = self._connection.pragma("data_version")
        before, self._version = self._version, version
        return version != before

    def in_use(self, queues: Sequence[str]) -> list[str]:
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT name FROM queues WHERE name IN (SELECT value FROM json_each(?)) AND ready + leased + delayed > 0",
            (json.dumps(queues),),
        ).fetchall()
        return [name for (name,) in rows]

    def availability(self, subscription: Subscription, most: int) -> Availability:
        work = WriteTransaction(self._connection, self._clock)
        count, due_times = 0, []
        for name in subscription.queues:
            queue = work.find_queue(name)
            if queue is None or queue.settings.paused:
                continue
            ended, next_due = _due(work, queue.id, most)
            count += ended + (available(work, queue, subscription.recipient, most) if count + ended < most else 0)
            if next_due is not None:
                due_times.append(next_due)
        return Availability(min(count, most), (min(due_times) - work.now) / 1000 if due_times else None)

    def close(self) -> None:
        self._connection.close()


def _due(work: WriteTransaction, queue_id: int, most: int) -> tuple[int, int | None]:
    """Return how many leases and delays have ended (at most `most`), and when the next one ends."""
    row: tuple[float, int | None] = work.execute(
        """
        SELECT (SELECT count(*) FROM (SELECT 1 FROM messages
                                       WHERE queue_id = ?1 AND state IN (1, 2) AND due_at <= ?2 LIMIT ?3))
             + (SELECT total(count) FROM (SELECT count FROM runs
                                           WHERE queue_id = ?1 AND state = 1 AND due_at <= ?2 LIMIT ?3)),
               (SELECT min(due_at)
                  FROM (SELECT min(due_at) AS due_at FROM messages
                         WHERE queue_id = ?1 AND state IN (1, 2) AND due_at > ?2
                         UNION ALL
                        SELECT min(due_at) FROM runs WHERE queue_id = ?1 AND state = 1 AND due_at > ?2))
        """,
        (queue_id, work.now, most),
    ).get
    return int(row[0]), row[1]
