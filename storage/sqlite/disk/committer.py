"""Runs groups of operations as durable SQLite transactions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import apsw

from storage.clock import Clock
from storage.errors import Busy, DiskFull, Moved, Unavailable
from storage.sqlite.disk.file import DatabaseFile
from storage.sqlite.disk.group_commit import Ticket
from storage.sqlite.transaction import WriteTransaction

# A program that is not ours may hold SQLite's own lock for long. Nobody then keeps the others' lock while he waits for
# it: their requests too have to be answered in time.
TURN = 0.25  # seconds
PAUSE = 0.01  # seconds
CHECKPOINT_FROM = 1_000  # pages in the log …
SMALL_LOG = 50  # … or these, while the disk is nearly full: the file must get its share of what room is left

SEALED = "this database is sealed"  # what the triggers of a move say (storage/sqlite/migration.py)

_log = logging.getLogger(__name__)


class Committer:
    """The one writing connection of this process.

    `committed` is told, after each commit, the queues in which something became ready; `failed` is called when the
    disk has failed a write. After that nothing is written any more: what an fsync that failed has left in the page
    cache is no base for further acknowledgements (https://www.usenix.org/conference/atc20/presentation/rebello).
    """

    def __init__(
        self, file: DatabaseFile, clock: Clock, committed: Callable[[set[str]], None], failed: Callable[[], None]
    ) -> None:
        self._file = file
        self._clock = clock
        self._committed = committed
        self._failed = failed
        self._connection = file.connect()
        # SQLite's own checkpoint after a commit keeps to itself what went wrong with it; a hook takes its place.
        self._connection.set_wal_hook(self._note_log)
        self._pages_in_log = 0
        self.broken = False
        self._committed_at = -math.inf

    def has_just_committed(self) -> bool:
        """Whether this process has written something to the disk within the last second."""
        return not self.broken and time.monotonic() - self._committed_at < 1

    def run_group(
        self,
        tickets: Sequence[Ticket[WriteTransaction]],
        gather: Callable[[], Sequence[Ticket[WriteTransaction]]] = lambda: (),
    ) -> Sequence[Ticket[WriteTransaction]]:
        """Runs the operations in one transaction, in which one that fails leaves nothing, and commits.

        Returns those that were not begun with and have time left, where the lock could not be had in that of others.
        """
        group = list(tickets)
        try:
            woken = self._transact(group, gather)
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
            else:
                self._run_each_alone(group)
        else:
            self._committed(woken)
        return []

    def give_up(self, fault: Exception) -> None:
        """The disk has failed: nothing is written by this process from now on."""
        if not self.broken:
            self.broken = True
            self._file.distrust_log()
            _log.critical("the storage has failed: %s", fault)
            self._failed()

    def close(self) -> None:
        self._connection.close()

    def _transact(
        self, tickets: list[Ticket[WriteTransaction]], gather: Callable[[], Sequence[Ticket[WriteTransaction]]]
    ) -> set[str]:
        if self.broken:
            raise Unavailable("the disk failed; the service is stopping")
        with self._begun(min(ticket.deadline for ticket in tickets)) as work:  # who has waited longest gives up in time
            before = self._connection.total_changes()
            tickets += gather()  # who came while the other processes had their turn need not wait for another
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
                self._pages_in_log = CHECKPOINT_FROM  # folded in, it has room for the next
                raise
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._checkpoint(SMALL_LOG if work.nearly_full else CHECKPOINT_FROM)
        return work.woken

    def _note_log(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self._pages_in_log = pages
        return apsw.SQLITE_OK

    def _checkpoint(self, least: int) -> None:
        """Folds a log that has grown into the database, so that the next transaction begins it anew.

        While this process still has its turn: behind a commit of another, the log would go on growing.
        """
        if self._pages_in_log < least:
            return
        self._pages_in_log = 0
        try:
            self._connection.wal_checkpoint()
        except (apsw.IOError, apsw.CorruptError) as fault:
            self.give_up(fault)  # what has been committed is safe in the log
        except apsw.Error as fault:
            _log.warning("could not checkpoint the write-ahead log: %s", fault)

    @contextmanager
    def _begun(self, deadline: float) -> Iterator[WriteTransaction]:
        """A transaction, alone among all processes. Raises BusyError when it could not begin by the deadline."""
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
            time.sleep(PAUSE)  # who frees a flock and takes it again at once gets it before those that wait for it

    def _run_together(self, work: WriteTransaction, tickets: Sequence[Ticket[WriteTransaction]]) -> bool:
        """False when one has failed after it had changed something: that cannot be told from what the others did.

        Nearly all that fail have changed nothing, so savepoints would be paid for by all and used by nobody.
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
        """Each in a savepoint of its own."""
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
        """The disk has failed, or SQLite has rolled back all of the transaction, as it may when the disk is full."""
        if isinstance(fault, apsw.IOError | apsw.CorruptError) or not self._connection.in_transaction:
            raise fault

    def _run_each_alone(self, tickets: Sequence[Ticket[WriteTransaction]]) -> None:
        """The transaction was lost to one of them: alone, only that one fails."""
        for ticket in tickets:
            self.run_group([ticket])


def _refuse(tickets: Sequence[Ticket[WriteTransaction]], fault: Exception) -> None:
    for ticket in tickets:
        ticket.error = translate(fault)


def translate(fault: Exception) -> Exception:
    """SQLite's faults in the store's words; any other as it is."""
    if isinstance(fault, apsw.BusyError):
        return Busy()
    if isinstance(fault, apsw.FullError):
        return DiskFull()
    if isinstance(fault, apsw.ConstraintError) and SEALED in str(fault):
        return Moved()
    if isinstance(fault, apsw.Error):
        return Unavailable("the storage failed; the outcome is unknown")
    return fault
