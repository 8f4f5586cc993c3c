"""Background work on the SQLite file: what no request waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw

from storage.clock import Clock
from storage.errors import Moved
from storage.model import CHUNK
from storage.sqlite.disk.file import BUSY_TIMEOUT, MAX_WAL
from storage.sqlite.disk.group_commit import GroupCommit
from storage.sqlite.expiry import catch_up, is_late
from storage.sqlite.queues import (
    EXPIRED_REPLIES,
    ReplyKey,
    clear,
    delete_if_unused,
    forget_dedup_ids,
    forget_replies,
    note_time,
    shrink,
)
from storage.sqlite.redriving import running_moves, step_move
from storage.sqlite.transaction import QueueRow, WriteTransaction

UPKEEP_EVERY = 1.0  # seconds
WINDOW = 1_000  # queues in one pass; the next pass continues after them
NOTED_EVERY = 60_000  # ms, while there are writes
STEP = 2_000  # messages removed in one transaction …
STEPS = 25  # … and transactions for one queue in a pass
FREE_KEPT = 512  # pages (2 MiB) …
MAX_SHRINKS = 10  # transactions of one pass that shrink the file
FIRST_REPLY: ReplyKey = (-1, "")  # before and behind all Idempotency-Keys
LAST_REPLY: ReplyKey = (2**63 - 1, "")

_log = logging.getLogger(__name__)


class Upkeep:
    """A thread that does every second the work that no request need wait for.

    It removes expired messages, moves dead letters, forgets remembered keys, clears deleted queues, shrinks a file that
    has emptied, and truncates the log. It calls `failed` when a read or write fails.
    """

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        clock: Clock,
        commits: GroupCommit[WriteTransaction],
        failed: Callable[[Exception], None],
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._commits = commits
        self._failed = failed
        self._closing = threading.Event()
        self._version: int | None = None  # SQLite's data_version at the last pass
        self._after = 0  # the id of the last queue of the previous pass
        self._after_reply = FIRST_REPLY
        self._thread = threading.Thread(target=self._run, name="queue-upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        connection: apsw.Connection | None = None
        try:
            while not self._closing.wait(UPKEEP_EVERY):
                try:
                    connection = connection or self._connect()
                    self._run_pass(connection)
                except (apsw.IOError, apsw.CorruptError) as fault:
                    self._failed(fault)
                except Moved:
                    pass  # a moved database needs no upkeep
                except Exception:  # the next second may succeed, and no request depends on it
                    _log.exception("upkeep failed")
        finally:
            if connection is not None:
                connection.close()

    def _run_pass(self, connection: apsw.Connection) -> None:
        work = WriteTransaction(connection, self._clock)
        window = work.all("SELECT id, name FROM queues WHERE id > ? ORDER BY id LIMIT ?", (self._after, WINDOW))
        self._after = window[-1][0] if len(window) == WINDOW else 0
        for number, name in window:
            if name is None:
                self._repeat(lambda work, number=number: clear(work, number))  # type: ignore[misc]
            elif (queue := work.find_queue(name)) is not None:
                self._maintain_queue(work, queue)
        for source in running_moves(work):
            self._repeat(lambda work, source=source: step_move(work, source))  # type: ignore[misc]
        self._note_time(connection, work)
        if work.execute("SELECT EXISTS (SELECT 1 FROM dedup WHERE forget_at <= ?)", (work.now,)).get:
            self._commits.run(forget_dedup_ids)
        self._forget_replies(work)
        if _has_many_free_pages(connection):
            for _ in range(MAX_SHRINKS):
                self._commits.run(shrink)
        if _is_not_truncated(connection):
            with suppress(apsw.BusyError):  # another process does it; try again in a second
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)  # this makes the file smaller
        if _is_log_too_large(connection):
            _truncate_log(connection)

    def _note_time(self, connection: apsw.Connection, work: WriteTransaction) -> None:
        version: int = connection.pragma("data_version")
        changed, self._version = version != self._version, version
        if changed and work.now - work.execute("SELECT last_ms FROM clock").get >= NOTED_EVERY:
            self._commits.run(note_time)

    def _forget_replies(self, work: WriteTransaction) -> None:
        """Delete the expired ones among the next CHUNK Idempotency-Keys, and start again after the last one."""
        after = self._after_reply
        last = work.execute(
            "SELECT queue_id, key FROM replies WHERE (queue_id, key) > (?, ?) ORDER BY queue_id, key LIMIT 1 OFFSET ?",
            (*after, CHUNK - 1),
        ).get
        self._after_reply = last or FIRST_REPLY
        last = last or LAST_REPLY
        if work.execute(f"SELECT EXISTS (SELECT 1 {EXPIRED_REPLIES})", (*after, *last, work.now)).get:
            self._commits.run(lambda work: forget_replies(work, after, last))

    def _maintain_queue(self, work: WriteTransaction, queue: QueueRow) -> None:
        if is_late(work, queue):
            self._repeat(lambda work: catch_up(work, queue.name, STEP))
        expires = queue.settings.expires
        if expires is not None and not queue.messages and queue.used_at + expires * 1000 <= work.now:
            self._commits.run(lambda work: delete_if_unused(work, queue.name))

    def _repeat(self, step: Callable[[WriteTransaction], bool]) -> None:
        """Repeat the step until nothing is left, at most STEPS times, because other queues need upkeep too."""
        for _ in range(STEPS):
            if self._closing.is_set() or not self._commits.run(step):
                return


def _has_many_free_pages(connection: apsw.Connection) -> bool:
    """Return whether the file has more free pages than new messages will soon use."""
    free, pages, kind = map(connection.pragma, ("freelist_count", "page_count", "auto_vacuum"))
    return bool(kind == 2 and free > max(FREE_KEPT, pages // 4))  # 2: incremental


def _is_not_truncated(connection: apsw.Connection) -> bool:
    """Return whether the file has shrunk but is not truncated, for example because a reader held its end."""
    pages, size = map(connection.pragma, ("page_count", "page_size"))
    return bool(Path(connection.filename).stat().st_size > pages * size)


def _is_log_too_large(connection: apsw.Connection) -> bool:
    """Return whether the log is larger than its limit, as after a long read without later writes."""
    log = Path(connection.filename_wal)
    return log.exists() and log.stat().st_size > MAX_WAL


def _truncate_log(connection: apsw.Connection) -> None:
    """Truncate the log unless another connection reads or writes, without making it wait."""
    connection.set_busy_timeout(0)
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        pass  # try again in a second
    finally:
        connection.set_busy_timeout(BUSY_TIMEOUT)
