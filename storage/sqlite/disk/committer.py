"""Run groups of operations as durable SQLite transactions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import apsw

from storage.clock import Clock
from storage.errors import Busy, DiskFull, Moved, TakesLong, Unavailable
from storage.sqlite.disk.file import DatabaseFile
from storage.sqlite.disk.group_commit import Ticket
from storage.sqlite.transaction import WriteTransaction

# Another program may hold SQLite's lock for long. A process that waits for it releases the service's own lock between
# attempts, so that the requests of the other processes get their replies in time.
TURN = 0.25  # seconds of an attempt
PAUSE = 0.01  # seconds between two attempts
CHECKPOINT_FROM = 1_000  # pages in the log that cause a checkpoint
SMALL_LOG = 50  # the same, while the disk is nearly full: the log must leave room for the database

SEALED = "this database is sealed"  # the message of a migration's triggers (storage/sqlite/migration.py)

_log = logging.getLogger(__name__)


class Committer:
    """The one writing connection of this process.

    It calls `committed` after each commit, with the queues in which messages became ready. It calls `failed` after the
    disk failed a write, and then writes nothing more. After a failed fsync, the page cache may differ from the disk, so
    further acknowledgements would be unsafe (https://www.usenix.org/conference/atc20/presentation/rebello).
    """

    def __init__(
        self, file: DatabaseFile, clock: Clock, committed: Callable[[set[str]], None], failed: Callable[[], None]
    ) -> None:
        self._file = file
        self._clock = clock
        self._committed = committed
        self._failed = failed
        self._connection = file.connect()
        # A hook replaces SQLite's own checkpoint after a commit, which does not report its errors.
        self._connection.set_wal_hook(self._note_log)
        self._pages_in_log, self._checkpoint_from = 0, CHECKPOINT_FROM
        self.broken = False
        self._committed_at = -math.inf

    def has_just_committed(self) -> bool:
        """Return whether this process has written to the disk within the last second."""
        return not self.broken and time.monotonic() - self._committed_at < 1

    def run_group(
        self,
        tickets: Sequence[Ticket[WriteTransaction]],
        gather: Callable[[], Sequence[Ticket[WriteTransaction]]] = lambda: (),
        may_wait: bool = True,
    ) -> Sequence[Ticket[WriteTransaction]]:
        """Run the operations in one transaction and commit it; the changes of an operation that fails are undone.

        Set the result or error of each ticket that it ran. Return the others for the next turn: those with time left if
        the lock was not free by the earliest deadline, and without `may_wait` those that could take long.
        """
        if not may_wait and self._pages_in_log >= self._checkpoint_from:
            return tickets
        group = list(tickets)
        try:
            woken, left = self._transact(group, gather, may_wait)
        except (apsw.IOError, apsw.CorruptError) as fault:
            self.give_up(fault)
            _refuse(group, fault)
        except apsw.BusyError as fault:
            now = time.monotonic()
            _refuse([ticket for ticket in group if ticket.deadline <= now], fault)
            return [ticket for ticket in group if ticket.deadline > now]
        except Exception as fault:
            if len(group) == 1:
                _refuse(group, fault)
            elif not may_wait:
                return group
            else:
                return self._run_each_alone(group)
        else:
            self._committed(woken)
            return left
        return []

    def give_up(self, fault: Exception) -> None:
        """Stop all writes of this process, because the disk has failed."""
        if not self.broken:
            self.broken = True
            self._file.distrust_log()
            _log.critical("the storage has failed: %s", fault)
            self._failed()

    def close(self) -> None:
        self._connection.close()

    def _transact(
        self,
        tickets: list[Ticket[WriteTransaction]],
        gather: Callable[[], Sequence[Ticket[WriteTransaction]]],
        may_wait: bool,
    ) -> tuple[set[str], list[Ticket[WriteTransaction]]]:
        if self.broken:
            raise Unavailable("the disk failed; the service is stopping")
        deadline = min(ticket.deadline for ticket in tickets) if may_wait else 0.0  # the earliest holds for all
        with self._begun(deadline) as work:
            before = self._connection.total_changes()
            if not may_wait:
                work.hurry()
            tickets += gather()  # these arrived while this process waited for the lock
            try:
                if not self._run_together(work, tickets):
                    self._connection.execute("ROLLBACK")
                    self._connection.execute("BEGIN IMMEDIATE")
                    work.forget()
                    self._run_apart(work, tickets)
                work.write_counts()
                self._connection.execute("COMMIT")
                if work.connection.total_changes() != before:
                    self._committed_at = time.monotonic()
            except apsw.FullError:
                self._pages_in_log = CHECKPOINT_FROM  # a checkpoint makes room in the log for the next transaction
                raise
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._checkpoint_from = SMALL_LOG if work.nearly_full else CHECKPOINT_FROM
                if may_wait:
                    self._checkpoint()
        left = [ticket for ticket in tickets if isinstance(ticket.error, TakesLong)]
        for ticket in left:
            ticket.task.is_heavy = True
        return work.woken, left

    def _note_log(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self._pages_in_log = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Copy a large log into the database, so that the next transaction starts it anew.

        Call this before the lock is released: after a commit of another process, the log would grow further.
        """
        if self._pages_in_log < self._checkpoint_from:
            return
        self._pages_in_log = 0
        try:
            self._connection.wal_checkpoint()
        except (apsw.IOError, apsw.CorruptError) as fault:
            self.give_up(fault)  # committed transactions are safe in the log
        except apsw.Error as fault:
            _log.warning("could not checkpoint the write-ahead log: %s", fault)

    @contextmanager
    def _begun(self, deadline: float) -> Iterator[WriteTransaction]:
        """Begin the only write transaction of all processes. Raises BusyError if it cannot begin by the deadline."""
        while True:
            with self._file.lock.held(deadline) as held:
                if not held:
                    raise apsw.BusyError("another process holds the lock")
                busy_timeout = min(TURN, max(0.0, deadline - time.monotonic()))
                self._connection.set_busy_timeout(round(busy_timeout * 1000))
                try:
                    nearly_full = self._file.is_nearly_full(self._connection)
                    self._connection.execute("BEGIN IMMEDIATE")
                except apsw.BusyError:
                    if time.monotonic() >= deadline:
                        raise
                else:
                    yield WriteTransaction(self._connection, self._clock, nearly_full)
                    return
            time.sleep(PAUSE)  # without a pause, this process would get the flock again before those that wait

    def _run_together(self, work: WriteTransaction, tickets: Sequence[Ticket[WriteTransaction]]) -> bool:
        """Run the operations without savepoints; return False if one fails after it changed something.

        The caller must then roll back all of them. Nearly all failures come before any change, so savepoints would
        cost every operation time for nothing.
        """
        for ticket in tickets:
            ticket.result = ticket.error = None
            before = work.changes
            try:
                ticket.result = ticket.operation(work)
            except Exception as fault:
                self._raise_if_lost(fault)
                if work.changes != before:
                    return False
                ticket.error = translate(fault)
        return True

    def _run_apart(self, work: WriteTransaction, tickets: Sequence[Ticket[WriteTransaction]]) -> None:
        """Run each operation in its own savepoint, and roll back those that fail."""
        for ticket in tickets:
            ticket.result = ticket.error = None
            self._connection.execute("SAVEPOINT operation")
            try:
                ticket.result = ticket.operation(work)
                work.write_counts()
            except Exception as fault:
                self._raise_if_lost(fault)
                self._connection.execute("ROLLBACK TO operation")
                work.forget()
                ticket.error = translate(fault)
            self._connection.execute("RELEASE operation")

    def _raise_if_lost(self, fault: Exception) -> None:
        """Raise the fault if the whole transaction is lost.

        It is lost if the disk failed, or if SQLite rolled it back, as it may on a full disk.
        """
        if isinstance(fault, apsw.IOError | apsw.CorruptError) or not self._connection.in_transaction:
            raise fault

    def _run_each_alone(self, tickets: Sequence[Ticket[WriteTransaction]]) -> Sequence[Ticket[WriteTransaction]]:
        """Run each operation in its own transaction, so that only the one that lost the group's transaction fails."""
        return [left for ticket in tickets for left in self.run_group([ticket])]


def _refuse(tickets: Sequence[Ticket[WriteTransaction]], fault: Exception) -> None:
    for ticket in tickets:
        ticket.error = translate(fault)


def translate(fault: Exception) -> Exception:
    """Return the store's error for a fault of SQLite, and any other fault unchanged."""
    if isinstance(fault, apsw.BusyError):
        return Busy()
    if isinstance(fault, apsw.FullError):
        return DiskFull()
    if isinstance(fault, apsw.ConstraintError) and SEALED in str(fault):
        return Moved()
    if isinstance(fault, apsw.Error):
        return Unavailable("the storage failed; the outcome is unknown")
    return fault
