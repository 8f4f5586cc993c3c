"""What looks into PostgreSQL without being asked by a request: the sight of long polls, hints to others, upkeep."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import psycopg

from storage.clock import Clock
from storage.postgres_clock import SharedClock
from storage.postgres_pool import Pool, flat
from storage.waiting import Interest, Outlook

CHANNEL = "queue_service"
POLL_EVERY = 1.0  # seconds between looks while hints come …
POLL_WITHOUT = 0.1  # … and where they do not, as through a pooler in transaction mode
HINT_EVERY = 0.05  # seconds between two hints of a process: each takes a lock that all commits with one share
UPKEEP_EVERY = 1.0  # seconds
CHUNK = 10_000  # rows one transaction moves at most

_log = logging.getLogger(__name__)


class Sight:
    """Lets storage/waiting.py see what could be taken. Holds one connection of its own, on which hints arrive."""

    def __init__(self, connection_info: str, pool: Pool, clock: Clock) -> None:
        self._connection_info = connection_info
        self._pool = pool
        self._clock = clock
        self._listening: psycopg.Connection[Any] | None = None
        self._heard = False  # whether hints come at all; the first is its own
        self._listen_at = self._look_at = 0.0

    def changed(self) -> bool:
        hints = self._hints()
        now = time.monotonic()
        if not hints and now < self._look_at:
            return False
        self._look_at = now + (POLL_EVERY if self._heard else POLL_WITHOUT)
        return True

    def outlook(self, interest: Interest, most: int) -> Outlook:
        now = self._clock.now()
        (row,) = self._pool.read(
            """
            SELECT coalesce(sum(ready), 0)::bigint, min(due_at)
              FROM queue_service.queues AS q CROSS JOIN LATERAL (
                    SELECT (SELECT count(*) FROM (SELECT FROM queue_service.messages
                                                   WHERE queue_id = q.id AND recipient = $2::bytea AND state = 0
                                                   LIMIT $3::int) AS ready)
                         + (SELECT count(*) FROM (SELECT FROM queue_service.messages
                                                   WHERE queue_id = q.id AND state IN (1, 2) AND due_at <= $4::bigint
                                                   LIMIT $3::int) AS late) AS ready,
                           (SELECT min(due_at) FROM queue_service.messages
                             WHERE queue_id = q.id AND state IN (1, 2) AND due_at > $4::bigint) AS due_at
                   ) AS outlook
             WHERE name = ANY ($1::text[]) AND (settings ->> 'paused')::boolean IS NOT TRUE
            """,
            list(interest.queues),
            interest.recipient.encode(),
            most,
            now,
        )
        return Outlook(min(row[0], most), None if row[1] is None else (row[1] - now) / 1000)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()

    def _hints(self) -> int:
        """How many have come since the last call."""
        try:
            if self._listening is None:
                self._listen()
            if self._listening is None:
                return 0
            count = sum(1 for _ in self._listening.notifies(timeout=0))
        except psycopg.Error:
            self.close()
            self._listening, self._heard = None, False
            return 0
        self._heard = self._heard or count > 0
        return count

    def _listen(self) -> None:
        if time.monotonic() >= self._listen_at:
            self._listen_at = time.monotonic() + POLL_EVERY
            self._listening = psycopg.connect(self._connection_info, autocommit=True, prepare_threshold=None)
            self._listening.execute(f"LISTEN {CHANNEL}".encode())
            self._listening.execute(f"NOTIFY {CHANNEL}".encode())  # to learn whether hints come


class Hints:
    """Tells other processes, in a thread of its own, that something became ready: soon, but not each time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-hints", daemon=True)
        self._thread.start()

    def give(self) -> None:
        self._wanted.set()

    def close(self) -> None:
        self._closing.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._closing.is_set():
            self._wanted.clear()
            try:
                self._pool.run(f"SELECT pg_notify('{CHANNEL}', '')")
            except Exception as fault:  # it is a hint: others look by themselves every second
                _log.debug("no hint was given: %s", fault)
            self._closing.wait(HINT_EVERY)


class Upkeep:
    """A thread that does, every second, what no request need wait for; of all nodes one does it at a time.

    Expired messages leave, dead letters get where they are read, remembered keys are forgotten, deleted queues are
    cleared; and the clock follows the shared one. `catch_up` brings a queue up to date.
    """

    def __init__(self, pool: Pool, clock: Clock, catch_up: Callable[[str], None]) -> None:
        self._pool = pool
        self._clock = clock
        self._catch_up = catch_up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(UPKEEP_EVERY):
            try:
                if isinstance(self._clock, SharedClock):
                    self._clock.adjust()
                if self._is_its_turn():
                    self._once()
            except Exception as fault:  # whatever it was, the next second may go better, and no request depends on it
                _log.warning("upkeep failed: %s", fault)

    def _is_its_turn(self) -> bool:
        return bool(
            self._pool.run(
                """
                UPDATE queue_service.clock SET kept_at = clock_timestamp()
                 WHERE clock_timestamp() NOT BETWEEN kept_at AND kept_at + interval '0.9 s'
                RETURNING true
                """
            )
        )

    def _once(self) -> None:
        now = self._clock.now()
        for name in late_queues(self._pool, now, None):
            self._catch_up(name)
        self._forget(now)
        for (queue_id,) in self._pool.read("SELECT id FROM queue_service.queues WHERE name IS NULL"):
            clear(self._pool, queue_id, now)

    def _forget(self, now: int) -> None:
        for table, key in (("replies", "key"), ("dedup", "dedup_id")):
            while (
                flat(
                    self._pool.run(
                        f"""
                    WITH forgotten AS (
                        DELETE FROM queue_service.{table} AS old USING (
                            SELECT queue_id, {key}
                              FROM (SELECT id FROM queue_service.queues UNION ALL SELECT 0) AS q
                              JOIN queue_service.{table} AS known ON queue_id = id AND forget_at <= $1::bigint
                             LIMIT {CHUNK} FOR UPDATE OF known SKIP LOCKED
                        ) AS late
                        WHERE old.queue_id = late.queue_id AND old.{key} = late.{key}
                        RETURNING 1
                    ) SELECT count(*) FROM forgotten
                    """,
                        now,
                    )
                )
                == CHUNK
            ):
                pass


def late_queues(pool: Pool, now: int, names: Collection[str] | None) -> list[str]:
    """Of these (or all) queues those in which a lease or delay has ended, or a message expired, and nobody saw it."""
    return [
        row[0]
        for row in pool.read(
            """
            SELECT name FROM queue_service.queues AS q
             WHERE name IS NOT NULL AND ($2::text[] IS NULL OR name = ANY ($2::text[]))
               AND (EXISTS (SELECT FROM queue_service.messages
                             WHERE queue_id = q.id AND state IN (1, 2) AND due_at <= $1::bigint)
                 OR EXISTS (SELECT FROM queue_service.messages
                             WHERE queue_id = q.id AND expires_at IS NOT NULL AND state <> 1
                               AND expires_at <= $1::bigint))
             ORDER BY name
            """,
            now,
            None if names is None else list(names),
        )
    ]


GRACE = 60_000  # ms: a send that found the queue just before it was deleted has ended by then


def clear(pool: Pool, queue_id: int, now: int) -> None:
    """Removes what is left of a deleted queue; in the end, when nobody can be adding to it any more, itself."""
    for table, key in (("messages", "id"), ("replies", "key"), ("dedup", "dedup_id"), ("counts", "slot"),
                       ("graves", "origin")):  # fmt: skip
        while (
            flat(
                pool.run(
                    f"""
                WITH gone AS (
                    DELETE FROM queue_service.{table} WHERE queue_id = $1::bigint AND {key} IN (
                        SELECT {key} FROM queue_service.{table} WHERE queue_id = $1::bigint LIMIT {CHUNK})
                    RETURNING 1
                ) SELECT count(*) FROM gone
                """,
                    queue_id,
                )
            )
            == CHUNK
        ):
            pass
    pool.run(
        "DELETE FROM queue_service.queues WHERE id = $1::bigint AND name IS NULL AND gone_at < $2::bigint RETURNING 1",
        queue_id,
        now - GRACE,
    )
