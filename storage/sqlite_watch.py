"""What looks into the SQLite file without being asked by a request: the sight of long polls, and upkeep."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw

from storage.clock import Clock
from storage.commit import GroupCommit
from storage.errors import Moved
from storage.sqlite_due import catch_up
from storage.sqlite_file import BUSY_TIMEOUT, MAX_WAL
from storage.sqlite_managing import clear, forget, shrink
from storage.sqlite_work import Work
from storage.waiting import Interest, Outlook

UPKEEP_EVERY = 1.0  # seconds
FREE_KEPT = 512  # pages (2 MiB) …
SHRINKS = 10  # transactions with which a second's upkeep shrinks the file at most

_log = logging.getLogger(__name__)


class Sight:
    """Lets storage/waiting.py see what could be taken."""

    def __init__(self, connection: apsw.Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._version: int | None = None

    def changed(self) -> bool:
        version: int = self._connection.pragma("data_version")
        before, self._version = self._version, version
        return version != before

    def outlook(self, interest: Interest, most: int) -> Outlook:
        work = Work(self._connection, self._clock)
        count, moments = 0, []
        for name in interest.queues:
            queue = work.find_queue(name)
            if queue is None or queue.settings.paused:
                continue
            ready, next_due = _outlook(work, queue.id, interest.recipient, most)
            count += ready
            if next_due is not None:
                moments.append(next_due)
        return Outlook(min(count, most), (min(moments) - work.now) / 1000 if moments else None)

    def close(self) -> None:
        self._connection.close()


class Upkeep:
    """A thread that does, every second, what no request need wait for.

    Expired messages leave, dead letters get where they are read, remembered keys are forgotten, deleted queues are
    cleared, a file that has emptied shrinks, a grown log is cut. `failed` is told when the disk fails it.
    """

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        clock: Clock,
        commits: GroupCommit[Work],
        failed: Callable[[Exception], None],
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._commits = commits
        self._failed = failed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        connection = self._connect()
        try:
            while not self._closing.wait(UPKEEP_EVERY):
                try:
                    self._once(connection)
                except (apsw.IOError, apsw.CorruptError) as fault:
                    self._failed(fault)
                except Moved:
                    pass  # there is nothing to look after any more
                except Exception:  # whatever it was, the next second may go better, and no request depends on it
                    _log.exception("upkeep failed")
        finally:
            connection.close()

    def _once(self, connection: apsw.Connection) -> None:
        work = Work(connection, self._clock)
        for name in _late_queues(work):
            while self._commits.run(lambda work, name=name: catch_up(work, name)):  # type: ignore[misc]
                pass
        for number in _disowned(work):
            self._commits.run(lambda work, number=number: clear(work, number))  # type: ignore[misc]
        if _has_to_forget(work):
            self._commits.run(forget)
        if _has_emptied(connection):
            for _ in range(SHRINKS):
                self._commits.run(shrink)
            with suppress(apsw.BusyError):  # another process is at it
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)  # only now does the file get smaller
        if _has_grown(connection):
            _cut_log(connection)


def _has_emptied(connection: apsw.Connection) -> bool:
    """Whether more of the file is free than what comes next will want."""
    free, pages, kind = map(connection.pragma, ("freelist_count", "page_count", "auto_vacuum"))
    return bool(kind == 2 and free > max(FREE_KEPT, pages // 4))  # 2: incremental


def _has_grown(connection: apsw.Connection) -> bool:
    """Whether the log is larger than it may stay: a long read has held it, and nothing was written since."""
    log = Path(connection.filename_wal)
    return log.exists() and log.stat().st_size > MAX_WAL


def _cut_log(connection: apsw.Connection) -> None:
    """The log is empty, unless somebody reads or writes just now; nobody is made to wait for it."""
    connection.set_busy_timeout(0)
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        pass  # in a second it is tried again
    finally:
        connection.set_busy_timeout(BUSY_TIMEOUT)


def _outlook(work: Work, queue_id: int, recipient: str, most: int) -> tuple[int, int | None]:
    """How many messages could be taken now (told up to `most`), and when the next lease or delay ends."""
    row: tuple[float, int | None] = work.execute(
        """
        SELECT (SELECT count(*) FROM (SELECT 1 FROM messages
                                       WHERE queue_id = ?1 AND recipient = ?2 AND state = 0 LIMIT ?3))
             + (SELECT count(*) FROM (SELECT 1 FROM messages
                                       WHERE queue_id = ?1 AND state IN (1, 2) AND due_at <= ?4 LIMIT ?3))
             + (SELECT total(count) FROM (SELECT count FROM runs INDEXED BY deliverable_runs
                                           WHERE queue_id = ?1 AND ?2 = '' AND state = 0 LIMIT ?3))
             + (SELECT total(count) FROM (SELECT count FROM runs
                                           WHERE queue_id = ?1 AND ?2 = '' AND state = 1 AND due_at <= ?4 LIMIT ?3)),
               (SELECT min(due_at)
                  FROM (SELECT min(due_at) AS due_at FROM messages
                         WHERE queue_id = ?1 AND state IN (1, 2) AND due_at > ?4
                         UNION ALL
                        SELECT min(due_at) FROM runs WHERE queue_id = ?1 AND state = 1 AND due_at > ?4))
        """,
        (queue_id, recipient, most, work.now),
    ).get
    return int(row[0]), row[1]


def _late_queues(work: Work) -> list[str]:
    """Queues in which a lease or delay has ended, or a message expired, and no request has come by to see it."""
    return [
        row[0]
        for row in work.all(
            """
            SELECT name FROM queues
             WHERE name IS NOT NULL
               AND (EXISTS (SELECT 1 FROM messages WHERE queue_id = queues.id AND state IN (1, 2) AND due_at <= ?1)
                 OR EXISTS (SELECT 1 FROM runs WHERE queue_id = queues.id AND state = 1 AND due_at <= ?1)
                 OR EXISTS (SELECT 1 FROM messages WHERE queue_id = queues.id AND expires_at IS NOT NULL
                                                     AND state <> 1 AND expires_at <= ?1))
            """,
            (work.now,),
        )
    ]


def _disowned(work: Work) -> list[int]:
    return [row[0] for row in work.all("SELECT id FROM queues WHERE name IS NULL", ())]


def _has_to_forget(work: Work) -> bool:
    return bool(
        work.execute(
            "SELECT EXISTS (SELECT 1 FROM replies WHERE forget_at <= ?1) "
            "OR EXISTS (SELECT 1 FROM dedup WHERE forget_at <= ?1)",
            (work.now,),
        ).get
    )
