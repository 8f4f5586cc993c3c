"""Background work on PostgreSQL: the snapshot for long polls, hints to other processes, upkeep."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg

from storage.clock import Clock
from storage.errors import InvalidInput
from storage.model import CHUNK, rfc3339
from storage.postgres.clock import SharedClock
from storage.postgres.moves import step_move
from storage.postgres.pool import Pool, scalar
from storage.postgres.queues import expire_queue
from storage.waiting import Availability, Subscription

CHANNEL = "queue_service"
POLL_EVERY = 1.0  # seconds between queries while hints arrive …
POLL_WITHOUT = 0.1  # … and where they do not arrive, as through a pooler in transaction mode
HINT_EVERY = 0.05  # seconds between two hints of a process: all commits with a hint share a lock
REMOVE_SPENT_FOR = 0.5  # seconds that a read-only call first removes expired and spent messages …
RETURN_DUE_FOR = 3.0  # … and returns ended leases and delays
UPKEEP_EVERY = 1.0  # seconds
UPKEEP_FOR = 0.8  # seconds of one pass, before other nodes and the clock get their turn
WINDOW = 1_000  # queues in one pass; the next pass continues after them
STEP = 2_000  # messages that one transaction removes: requests wait for it

GRACE = 60_000  # ms after which no transaction can still use a deleted queue

_log = logging.getLogger(__name__)


class QueueSnapshot:
    """Shows storage/waiting.py the available messages. It has its own connection, on which hints arrive."""

    def __init__(self, connection_info: str, pool: Pool, clock: Clock) -> None:
        self._connection_info = connection_info
        self._pool = pool
        self._clock = clock
        self._listening: psycopg.Connection[Any] | None = None
        self._hints_arrive = False  # whether hints arrive at all; the first is its own
        self._listen_at = self._query_at = 0.0

    def changed(self) -> bool:
        hints = self._hints()
        now = time.monotonic()
        if not hints and now < self._query_at:
            return False
        self._query_at = now + (POLL_EVERY if self._hints_arrive else POLL_WITHOUT)
        return True

    def in_use(self, queues: Sequence[str]) -> Sequence[str]:
        return queues

    def availability(self, subscription: Subscription, most: int) -> Availability:
        now = self._clock.now()
        recipient = None if subscription.recipient is None else subscription.recipient.encode()
        ((ready, due),) = self._pool.read(
            "SELECT * FROM queue_service.outlook($1::bigint, $2::text[], $3::bytea, $4::int)",
            now, list(subscription.queues), recipient, most,
        )  # fmt: skip
        return Availability(min(ready, most), None if due is None else (due - now) / 1000)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()

    def _hints(self) -> int:
        """Return the number of hints since the last call."""
        try:
            if self._listening is None:
                self._listen()
            if self._listening is None:
                return 0
            count = sum(1 for _ in self._listening.notifies(timeout=0))
        except psycopg.Error:
            self.close()
            self._listening, self._hints_arrive = None, False
            return 0
        self._hints_arrive = self._hints_arrive or count > 0
        return count

    def _listen(self) -> None:
        if time.monotonic() >= self._listen_at:
            self._listen_at = time.monotonic() + POLL_EVERY
            self._listening = psycopg.connect(self._connection_info, autocommit=True, prepare_threshold=None)
            self._listening.execute(f"LISTEN {CHANNEL}".encode())
            self._listening.execute(f"NOTIFY {CHANNEL}".encode())  # to learn whether hints arrive


class Hints:
    """A thread that notifies other processes that messages became ready: soon, but combined into few hints."""

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
            except Exception as fault:  # only a hint: others query every second anyway
                _log.debug("could not send a hint: %s", fault)
            self._closing.wait(HINT_EVERY)


class CatchUp:
    """Applies what is due to queues, and notifies their readers."""

    def __init__(self, pool: Pool, clock: Clock, notify: Callable[[Collection[str]], None]) -> None:
        self._pool = pool
        self._clock = clock
        self._notify = notify

    def all(self, names: list[str]) -> None:
        """Apply what is due to these queues, within REMOVE_SPENT_FOR or RETURN_DUE_FOR."""
        began = time.monotonic()
        for name in late_queues(self._pool, self._clock.now(), names):
            while (done := self.step(name)) >= STEP:
                if time.monotonic() - began > (RETURN_DUE_FOR if done >= CHUNK else REMOVE_SPENT_FOR):
                    break

    def step(self, name: str) -> int:
        """Apply one step of what is due to a queue; return its size: below STEP none is left, from CHUNK on more is."""
        now = self._clock.now()
        statement = "SELECT queue_service.catch_up($1::bigint, $2::text, $3::text, $4::int)"
        done: int = scalar(self._pool.run(statement, now, rfc3339(self._clock.wall(now)), name, STEP))
        self._notify([name])
        return done


class Upkeep:
    """A thread that does every second the work that no request need wait for, on one node at a time.

    It removes expired messages, moves dead letters, forgets remembered keys, deletes unused queues, clears deleted
    ones, and adjusts the clock. `catch_up` applies one step of what is due to a queue; below STEP none is left.
    """

    def __init__(self, pool: Pool, clock: Clock, catch_up: Callable[[str], int]) -> None:
        self._pool = pool
        self._clock = clock
        self._catch_up = catch_up
        self._after = 0  # the last queue of the previous pass
        self._until = 0.0
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
                if self._claim_pass():
                    self._run_pass()
            except Exception as fault:  # the next second may succeed, and no request depends on it
                _log.warning("upkeep failed: %s", fault)

    def _claim_pass(self) -> bool:
        return bool(
            self._pool.run(
                """
                UPDATE queue_service.clock SET kept_at = clock_timestamp()
                 WHERE clock_timestamp() NOT BETWEEN kept_at AND kept_at + interval '0.9 s'
                RETURNING true
                """
            )
        )

    def _run_pass(self) -> None:
        now = self._clock.now()
        self._until = time.monotonic() + UPKEEP_FOR
        window = self._pool.read(
            "SELECT id, name, coalesce(used_at + queue_service.seconds_setting(q, 'expires') <= $3::bigint, false) "
            "             AND NOT EXISTS (SELECT FROM queue_service.messages WHERE queue_id = q.id) "
            "FROM queue_service.queues AS q WHERE id > $1::bigint ORDER BY id LIMIT $2::int",
            self._after, WINDOW, now,
        )  # fmt: skip
        for name in late_queues(self._pool, now, [name for _, name, _ in window if name is not None]):
            self._repeat(lambda name=name: self._catch_up(name) >= STEP)  # type: ignore[misc]
        for (move,) in self._pool.read("SELECT id FROM queue_service.moves WHERE status = 'running'"):
            self._repeat(lambda move=move: self._pool.transact(self._clock.now(), partial(step_move, number=move)))  # type: ignore[misc]
        self._forget([0, *(number for number, _, _ in window)], now)
        for number, name, unused in window:
            if name is None:
                self._clear(number, now)
            elif unused:
                with suppress(InvalidInput):  # without its settings its dead letters would move in a cycle
                    self._pool.transact(now, lambda work, number=number: expire_queue(work, number))  # type: ignore[misc]
        self._after = window[-1][0] if len(window) == WINDOW else 0

    def _repeat(self, step: Callable[[], bool]) -> bool:
        """Repeat the step until it returns False, and return True; return False if the pass's time is over before."""
        while time.monotonic() < self._until and not self._closing.is_set():
            if not step():
                return True
        return False

    def _forget(self, queues: list[int], now: int) -> None:
        for table in ("replies", "dedup"):
            statement = f"""
                WITH forgotten AS (
                    DELETE FROM queue_service.{table} WHERE ctid = ANY (ARRAY(
                        SELECT ctid FROM queue_service.{table}
                         WHERE queue_id = ANY ($1::bigint[]) AND forget_at <= $2::bigint
                         LIMIT {CHUNK} FOR UPDATE SKIP LOCKED))
                    RETURNING 1
                ) SELECT count(*) FROM forgotten
            """
            self._repeat(lambda statement=statement: scalar(self._pool.run(statement, queues, now)) == CHUNK)  # type: ignore[misc]

    def _clear(self, queue_id: int, now: int) -> None:
        """Remove the rest of a deleted queue, and finally the queue, when no transaction can add to it any more."""
        for table in ("messages", "replies", "dedup", "counts", "graves", "moves"):
            statement = f"""
                WITH gone AS (
                    DELETE FROM queue_service.{table} WHERE ctid = ANY (ARRAY(
                        SELECT ctid FROM queue_service.{table} WHERE queue_id = $1::bigint LIMIT {CHUNK}
                           FOR UPDATE SKIP LOCKED))  -- another node may lock them in another order
                    RETURNING 1
                ) SELECT count(*) FROM gone
            """
            if not self._repeat(lambda statement=statement: scalar(self._pool.run(statement, queue_id)) == CHUNK):  # type: ignore[misc]
                return
        self._pool.run(
            "DELETE FROM queue_service.queues "
            "WHERE id = $1::bigint AND name IS NULL AND gone_at < $2::bigint "
            "AND NOT EXISTS (SELECT FROM queue_service.messages WHERE queue_id = $1::bigint) RETURNING 1",
            queue_id, now - GRACE,
        )  # fmt: skip


def late_queues(pool: Pool, now: int, names: list[str]) -> list[str]:
    """Return those of these queues for which something is due."""
    return scalar(pool.read("SELECT ARRAY(SELECT queue_service.late_queues($1::bigint, $2::text[]))", now, names))  # type: ignore[no-any-return]
