"""Connections to PostgreSQL: their creation, use and loss, and the translation of PostgreSQL's errors."""

from __future__ import annotations

import json
import logging
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from storage.errors import (
    Busy,
    DiskFull,
    IdempotencyMismatch,
    InvalidInput,
    MessageLeased,
    MessageNotFound,
    QueueFull,
    QueueNotFound,
    StaleReceipt,
    StoreError,
    Unavailable,
)
from storage.model import REQUEST_WINDOW, IdempotencyKey
from storage.scheduling import Scheduler
from storage.size_budget import LargeRead

T = TypeVar("T")

CONNECTIONS = 8  # in a process: enough to keep a server's core busy, and 12 processes fit in its 100
CONNECTION_TIMEOUT = 4.0  # seconds that a request waits for a connection before it fails as Busy
STATEMENT_TIMEOUT = 15.0  # seconds that a statement may take: the longest waits 4 s for locks and moves 10,000 messages
ATTEMPTS = 3  # for a statement that certainly did nothing: a deadlock's victim, or a lost connection

# Defaults that a URL may override: notice a dead server within seconds; of several hosts, use the writable one.
_DEFAULTS: dict[str, Any] = {
    "application_name": "queue_service",
    "client_encoding": "UTF8",
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "target_session_attrs": "read-write",
}

logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # else it logs each attempt while a server is down


class Connection(psycopg.Connection[Any]):
    """A connection that gives up waiting for a server that is stopped or cut off."""

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, STATEMENT_TIMEOUT if timeout is None else timeout)


def connection_string(url: str) -> str:
    """Return the connection string of a URL, with this service's defaults. Raises psycopg.ProgrammingError."""
    parameters: dict[str, Any] = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo("", **(_DEFAULTS | parameters))


class WriteTransaction:
    """A transaction of several statements at one service time, `now` (ms)."""

    def __init__(self, connection: Connection, now: int) -> None:
        self.now = now
        self._connection = connection
        self.run(
            "SELECT set_config('search_path', 'queue_service, pg_temp', true), set_config('lock_timeout', '4s', true)"
        )

    def run(self, statement: str, *values: Any) -> list[Any]:
        return self._connection.execute(statement, values, binary=True).fetchall()

    def recall(self, once: IdempotencyKey) -> Any:
        """Return the value stored under this key, None if there is none. Raises IdempotencyMismatch."""
        return scalar(self.run("SELECT remembered($1::bigint, 0, $2::text, $3::bytea)", self.now, *once))

    def remember(self, once: IdempotencyKey, value: Any) -> None:
        until = self.now + round(REQUEST_WINDOW * 1000)
        self.run("SELECT remember(0, $1::text, $2::bytea, $3::bigint, $4::jsonb)", *once, until, Jsonb(value))

    def once(self, once: IdempotencyKey | None, operation: Callable[[], Any]) -> Any:
        """Return the JSON value of an operation, or of the first call with this key."""
        if once is None:
            return operation()
        if (known := self.recall(once)) is None:
            self.remember(once, known := operation())
        return known


class Pool:
    """This process's connections. Any thread may call `run`, `read` and `transact`."""

    def __init__(self, url: str, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.observe: Callable[[int, float], None] = lambda operations, seconds: None  # called after each transaction
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            connection_string(url),
            connection_class=Connection,
            # A pooler may give the next transaction another session, which has no statements of this one.
            kwargs={"autocommit": True, "prepare_threshold": None, "cursor_factory": psycopg.RawCursor},
            min_size=1,
            max_size=CONNECTIONS,
            timeout=CONNECTION_TIMEOUT,
            reconnect_timeout=3.0,  # s; then the next request starts an attempt: back within seconds after any outage
            check=_check_alive,
            open=True,
        )

    def run(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement as a transaction of its own and return its rows.

        Raises Busy or DiskFull, with nothing done; Unavailable, with an unknown outcome; or the StoreError of the
        function.
        """
        return self.run_late(statement, lambda: values)

    def run_late(self, statement: str, values: Callable[[], Sequence[Any] | None]) -> list[Any]:
        """Run a statement like `run`, with values made once there is a connection; if they are None, do nothing."""

        def execute(connection: Connection) -> list[Any]:
            made = values()
            return [] if made is None else connection.execute(statement, made, binary=True).fetchall()

        return self._run_observed(execute)

    def transact(self, now: int, operation: Callable[[WriteTransaction], T]) -> T:
        """Run an operation as one transaction, perhaps several times, and return its result. Raises as `run` does."""

        def run_in_transaction(connection: Connection) -> T:
            with connection.transaction():
                return operation(WriteTransaction(connection, now))

        return self._run_observed(run_in_transaction)

    def read(self, statement: str, *values: Any, sorts: bool = True) -> list[Any]:
        """Run a statement that only reads, and repeat it after a lost connection. Raises as `run` does.

        Unless it `sorts`, it takes each order that it names from an index, whatever PostgreSQL's statistics are.
        """

        def execute(connection: Connection) -> list[Any]:
            if sorts:
                return connection.execute(statement, values, binary=True).fetchall()
            with connection.transaction():
                # A sort that cannot be avoided then seems so expensive that PostgreSQL would compile the statement.
                connection.execute("SET LOCAL enable_sort = off; SET LOCAL jit = off")
                return connection.execute(statement, values, binary=True).fetchall()

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._retry(execute)
            except (Busy, DiskFull):
                raise
            except Unavailable:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._pool.close()

    def _run_observed(self, work: Callable[[Connection], T]) -> T:
        began = time.perf_counter()
        try:
            return self._retry(work)
        finally:
            self.observe(1, time.perf_counter() - began)

    def _retry(self, work: Callable[[Connection], T]) -> T:
        return self._scheduler.call(lambda: self._attempt(work))

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                connection = self._pool.getconn()
            except (PoolTimeout, PoolClosed) as fault:
                raise Busy("the database is unreachable or busy") from fault
            try:
                return work(connection)
            except psycopg.Error as fault:
                known = translate(fault)
                if attempt == ATTEMPTS or not isinstance(fault, _RETRYABLE):
                    if known is None:
                        raise
                    raise known from fault
            finally:
                _cancel_unfinished(connection)
                self._pool.putconn(connection)
        raise AssertionError("unreachable")


def _check_alive(connection: Connection) -> None:
    """Raise psycopg.OperationalError if the server has ended this idle connection; needs no query."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        connection.close()
        raise psycopg.OperationalError("the server has ended this connection")


def _cancel_unfinished(connection: Connection) -> None:
    """Cancel an unfinished statement if the server is reachable, and close its connection; the pool opens another."""
    if connection.info.transaction_status is TransactionStatus.ACTIVE:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=2)
        connection.close()


_RETRYABLE = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_DID_NOTHING = (
    *_RETRYABLE,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.OutOfMemory,
    psycopg.errors.TooManyConnections,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.ConfigurationLimitExceeded,
)


# The errors by the code that a function raises; its message has the details.
_ERRORS_BY_CODE: dict[str | None, Callable[[str], StoreError | LargeRead]] = {
    "QS400": lambda most: InvalidInput(f"'text' must be at most {most} bytes here (max_message_bytes)", field="text"),
    "QS404": QueueNotFound,
    "QS409": lambda message: _stale(*message.split()),
    "QS410": lambda _: MessageNotFound(),
    "QS413": lambda size: LargeRead(int(size)),
    "QS422": lambda _: IdempotencyMismatch(),
    "QS423": lambda _: MessageLeased(),
    "QS429": lambda message: QueueFull(*json.loads(message)),
}


def _stale(status: str, index: str | None = None) -> StaleReceipt:
    return StaleReceipt(None if index is None else int(index), missing=status == "missing")


def translate(fault: psycopg.Error) -> StoreError | LargeRead | None:
    """Translate an error of PostgreSQL; return None for a bug in this program."""
    state, message = fault.sqlstate, fault.diag.message_primary or ""
    if state in _ERRORS_BY_CODE:
        return _ERRORS_BY_CODE[state](message)
    if isinstance(fault, psycopg.errors.DiskFull):
        return DiskFull()
    if isinstance(fault, _DID_NOTHING):
        return Busy()
    # An ERROR has rolled its transaction back; a lost connection may have been lost after the commit.
    if fault.diag.severity_nonlocalized == "ERROR":
        return None
    return Unavailable("the connection to the database was lost; the outcome is unknown")


def scalar(rows: Sequence[Any]) -> Any:
    """Return the single value of a single row."""
    return rows[0][0]
