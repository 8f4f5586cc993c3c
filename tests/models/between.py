"""Run a second party in the middle of a call: between its transactions, or its PostgreSQL statements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import psycopg

from storage.model import STATES
from storage.postgres.store import PostgresStore
from storage.sqlite.store import SqliteStore
from storage.store import Engine
from tests.models.parties import Row

GATE = 2**62  # the advisory lock at which the first party stops
BOUND = 20.0  # seconds that a party may take


@contextmanager
def around_transactions(store: Engine, visit: Callable[[], None]) -> Iterator[None]:
    """Call `visit` before and after each transaction of this thread's calls of the store."""
    caller = threading.get_ident()

    def visiting(run: Callable[..., Any]) -> Callable[..., Any]:
        def run_and_visit(*arguments: Any) -> Any:
            if threading.get_ident() != caller:
                return run(*arguments)
            visit()
            try:
                return run(*arguments)
            finally:
                visit()

        return run_and_visit

    if isinstance(store, SqliteStore):
        place, name = store._commits, "run"
    else:
        assert isinstance(store, PostgresStore)
        place, name = store._pool, "_retry"  # type: ignore[assignment]
    setattr(place, name, visiting(getattr(place, name)))
    try:
        yield
    finally:
        delattr(place, name)


class Gate:
    """Stops the session of the first party (by its application_name) between two statements of a function.

    Triggers on the tables, and a replacement of the function that numbers a key's lock, call the gate. It lets some
    calls pass and stops the next one until it is opened.
    """

    FIRST, SECOND = "first", "second"

    def __init__(self, url: str) -> None:
        self._url = url
        self._control: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)
        self._control.execute(_INSTALL.encode())

    def url(self, party: str) -> str:
        return f"{self._url}?application_name={party}"

    def meet(self, first: Callable[[], None], store: Engine, second: Callable[[], None], passing: int) -> bool:
        """Run `second` while `first`, a call of `store`, waits at the gate, after `passing` earlier passes.

        If the second party waits for the first one's locks, the gate opens. The first then waits after its
        transaction until the second is done. Return whether the first reached the gate.
        """
        execute = self._control.execute
        execute("SELECT setval('parties.passed', 1, false), setval('parties.stop_at', %s)", [passing + 1])
        execute("SELECT pg_advisory_lock(%s)", [GATE])
        opened, done = threading.Event(), threading.Event()
        closed = True

        def wait_for_second() -> None:
            if opened.is_set():
                done.wait(BOUND)

        def run_first() -> None:
            with around_transactions(store, wait_for_second):
                first()

        with ThreadPoolExecutor(2) as threads:
            try:
                leading = threads.submit(run_first)
                stood = self._until_done_or_waiting(leading, self.FIRST)
                following = threads.submit(second)
                following.add_done_callback(lambda _: done.set())
                self._until_done_or_waiting(following, self.SECOND)
                opened.set()
                execute("SELECT pg_advisory_unlock(%s)", [GATE])
                closed = False
                following.result(BOUND)
                leading.result(BOUND)
            finally:
                opened.set()
                done.set()
                if closed:
                    execute("SELECT pg_advisory_unlock(%s)", [GATE])
        return stood

    def rows(self) -> list[Row]:
        """Return all messages that have been committed, waiting for no lock."""
        found = self._control.execute(
            "SELECT name, m.id, convert_from(text, 'UTF8'), state, origin FROM queue_service.messages AS m "
            "JOIN queue_service.queues AS q ON q.id = queue_id WHERE name IS NOT NULL ORDER BY m.id"
        ).fetchall()
        return [Row(name, id, text, STATES[state], origin) for name, id, text, state, origin in found]

    def deadlocks(self) -> int:
        row = self._control.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self._control.close()

    def _until_done_or_waiting(self, party: Future[None], name: str) -> bool:
        deadline = time.monotonic() + BOUND
        while time.monotonic() < deadline and not party.done():
            if self._is_waiting(name):
                return True
            time.sleep(0.001)
        return False

    def _is_waiting(self, name: str) -> bool:
        return self._control.execute(_WAITING, [name]).fetchone() is not None


_WAITING = (
    "SELECT 1 FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'"
)
_INSTALL = f"""
    CREATE SCHEMA parties;
    CREATE SEQUENCE parties.passed;
    CREATE SEQUENCE parties.stop_at;
    CREATE FUNCTION parties.pass_by() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('application_name') = 'first'
           AND nextval('parties.passed') = (SELECT last_value FROM parties.stop_at) THEN
            PERFORM pg_advisory_lock_shared({GATE});
            PERFORM pg_advisory_unlock_shared({GATE});
        END IF;
    END $$;
    CREATE FUNCTION parties.before_a_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM parties.pass_by();
        RETURN NULL;
    END $$;
    CREATE TRIGGER pass_by BEFORE INSERT OR UPDATE OR DELETE ON queue_service.messages
        EXECUTE FUNCTION parties.before_a_change();
    CREATE TRIGGER pass_by BEFORE INSERT OR UPDATE OR DELETE ON queue_service.counts
        EXECUTE FUNCTION parties.before_a_change();
    ALTER FUNCTION queue_service.lock_of RENAME TO number_of_lock;
    CREATE FUNCTION queue_service.lock_of(p_queue bigint, p_key bytea) RETURNS bigint LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM parties.pass_by();
        RETURN queue_service.number_of_lock(p_queue, p_key);
    END $$;
"""
