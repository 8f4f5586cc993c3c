"""The same app with the plain design, as the reference: a transaction for each request, a connection for each thread.

No group commit and no lock between processes: each request takes SQLite's write lock with BEGIN IMMEDIATE and SQLite's
own busy wait, and needs its own fsync.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from handler import mount_routes
from settings import Settings
from storage.scheduling import Scheduler
from storage.sqlite.disk.group_commit import GroupCommit
from storage.sqlite.store import SqliteStore
from storage.sqlite.transaction import WriteTransaction
from storage.store import Engine
from web.native.application import Application

T = TypeVar("T")

BUSY_TIMEOUT = 60_000  # ms of SQLite's busy wait: longer than any benchmark, so that no request fails


class OneTransactionEach(GroupCommit[WriteTransaction]):
    """Replaces the group commit."""

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        work: Callable[[apsw.Connection], WriteTransaction],
        scheduler: Scheduler,
    ) -> None:
        self._scheduler = scheduler
        self._connect = connect
        self._work = work
        self._thread = threading.local()

    def run(self, operation: Callable[[WriteTransaction], T]) -> T:
        return self._scheduler.call(lambda: self._run(operation))

    def _run(self, operation: Callable[[WriteTransaction], T]) -> T:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = operation(self._work(connection))
            connection.execute("COMMIT")
            return result
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _connection(self) -> apsw.Connection:
        if not hasattr(self._thread, "connection"):
            self._thread.connection = self._connect()
            self._thread.connection.set_busy_timeout(BUSY_TIMEOUT)
        connection: apsw.Connection = self._thread.connection
        return connection


class PlainStore(SqliteStore):
    def __init__(self, path: Path, scheduler: Scheduler) -> None:
        super().__init__(path, scheduler=scheduler)
        work = partial(WriteTransaction, clock=self._clock)
        self._commits = OneTransactionEach(self._file.connect, work, scheduler)


class PlainApplication(Application):
    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(mount_routes, settings)

    @property
    def unrestricted_store(self) -> Engine:
        with self._opening:
            if self._store is None:
                path = self.settings.database_url.removeprefix("sqlite:///")
                self._store = PlainStore(Path(path), self.scheduler)
            return self._store


app = PlainApplication()
