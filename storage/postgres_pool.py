"""Connections to PostgreSQL: how they are made, lent and lost, and its faults in the store's words."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from storage.errors import Busy, DiskFull, IdempotencyMismatch, QueueFull, StaleReceipt, StoreError, Unavailable

CONNECTIONS = 8  # of a process: so many transactions keep a server's core busy, and 12 such processes fit in its 100
LEND_WITHIN = 4.0  # seconds a request waits for one of them before it is refused as Busy
ANSWER_WITHIN = 15.0  # seconds a statement may take: the longest waits 4 s for locks, and moves 10,000 messages
ATTEMPTS = 3  # at a statement that certainly did nothing, as the victim of a deadlock or on a lost connection

# What a URL may say otherwise. A peer that is gone is noticed within seconds, and of several hosts the one that takes
# writes is found.
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

logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each attempt while a server is down is a line else


class Connection(psycopg.Connection[Any]):
    """One that gives a server up that does not answer, be it stopped or cut off."""

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, ANSWER_WITHIN if timeout is None else timeout)


def connection_string(url: str) -> str:
    """What a URL says, and for the rest this service's own defaults. Raises psycopg.ProgrammingError."""
    said: dict[str, Any] = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo("", **(_DEFAULTS | said))


class Pool:
    """This process's connections. `run` may be called by any thread."""

    def __init__(self, url: str) -> None:
        self.observe: Callable[[int, float], None] = lambda operations, seconds: None  # after each transaction
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            connection_string(url),
            connection_class=Connection,
            # Statements prepared by one session would not be there in the next that a pooler hands out.
            kwargs={"autocommit": True, "prepare_threshold": None, "cursor_factory": psycopg.RawCursor},
            min_size=1,
            max_size=CONNECTIONS,
            timeout=LEND_WITHIN,
            reconnect_timeout=3.0,  # then the next request asks for an attempt: back within seconds after any outage
            check=_check_alive,
            open=True,
        )

    def run(self, statement: str, *values: Any) -> list[Any]:
        """The rows of a statement that is a transaction of its own.

        Raises Busy or DiskFull, nothing having been done, Unavailable when its outcome is not known, and the
        faults of the store that its functions raise.
        """
        began = time.perf_counter()
        try:
            return self._run(statement, *values)
        finally:
            self.observe(1, time.perf_counter() - began)

    def read(self, statement: str, *values: Any) -> list[Any]:
        """As `run`, of one that only reads, and so may be asked again when a connection was lost."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._run(statement, *values)
            except (Busy, DiskFull):
                raise
            except Unavailable:
                pass
        return self._run(statement, *values)

    def close(self) -> None:
        self._pool.close()

    def _run(self, statement: str, *values: Any) -> list[Any]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                connection = self._pool.getconn()
            except (PoolTimeout, PoolClosed) as fault:
                raise Busy("the database cannot be reached, or is kept busy by others") from fault
            try:
                return connection.execute(statement, values, binary=True).fetchall()
            except psycopg.Error as fault:
                known = translate(fault)
                if attempt == ATTEMPTS or not isinstance(fault, _WORTH_ANOTHER):
                    if known is None:
                        raise
                    raise known from fault
            finally:
                _abandon(connection)
                self._pool.putconn(connection)
        raise AssertionError("unreachable")


def _check_alive(connection: Connection) -> None:
    """A server that has ended an idle connection has said so: it can be seen without asking."""
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    if watch.poll(0):
        connection.close()
        raise psycopg.OperationalError("the server has ended this connection")


def _abandon(connection: Connection) -> None:
    """What the server still does for nobody is cancelled, if it can be reached; the pool makes a new connection."""
    if connection.info.transaction_status is TransactionStatus.ACTIVE:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=2)
        connection.close()


_WORTH_ANOTHER = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_DID_NOTHING = (
    *_WORTH_ANOTHER,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.OutOfMemory,
    psycopg.errors.TooManyConnections,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.ConfigurationLimitExceeded,
)


def translate(fault: psycopg.Error) -> StoreError | None:
    """PostgreSQL's faults in the store's words; None for one that is a fault of this program."""
    state, message = fault.sqlstate, fault.diag.message_primary or ""
    if state == "QS409":
        return StaleReceipt(int(message))
    if state == "QS422":
        return IdempotencyMismatch()
    if state == "QS429":
        return QueueFull(f"queue '{message}' is full; nothing was stored", queue=message)
    if isinstance(fault, psycopg.errors.DiskFull):
        return DiskFull()
    if isinstance(fault, _DID_NOTHING):
        return Busy()
    # An ERROR has undone its transaction; whatever ended the connection may have come behind the commit.
    if fault.diag.severity_nonlocalized == "ERROR":
        return None
    return Unavailable("the connection to the database was lost; what became of this is not known")


def flat(rows: Sequence[Any]) -> Any:
    """The one value of one row."""
    return rows[0][0]
