"""A gunicorn configuration with a deliberately broken engine: it acknowledges before it commits.

Only tests/faults/test_checker.py uses it, to check that the checker finds losses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from settings import Settings
from storage.sqlite import store as sqlite_store
from storage.sqlite.disk.committer import Committer
from storage.sqlite.disk.group_commit import Ticket
from storage.sqlite.transaction import WriteTransaction

COMMIT_EVERY = 0.3  # seconds; a kill loses what was acknowledged since the last commit

wsgi_app = "handler:app"
bind = f"127.0.0.1:{Settings.from_env().port}"
workers = 1  # a second worker would wait for the first one's transaction
worker_class = "gthread"
threads = 16
control_socket_disable = True


class AcknowledgesTooEarly(Committer):
    """Runs all groups in one open transaction, answers at once, and commits at intervals."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._turn = threading.Lock()
        threading.Thread(target=self._commit_late, daemon=True).start()

    def _transact(
        self,
        tickets: Sequence[Ticket[WriteTransaction]],
        gather: Callable[[], Sequence[Ticket[WriteTransaction]]],
        may_wait: bool,
    ) -> tuple[set[str], list[Ticket[WriteTransaction]]]:
        with self._turn:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            work = WriteTransaction(self._connection, self._clock)
            self._run_apart(work, tickets)
        return set(), []

    def _commit_late(self) -> None:
        while True:
            time.sleep(COMMIT_EVERY)
            with self._turn:
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")


def post_worker_init(worker: Any) -> None:
    # No setting selects such an engine.
    sqlite_store.Committer = AcknowledgesTooEarly  # type: ignore[attr-defined, assignment]
    assert isinstance(worker.wsgi.unrestricted_store._committer, AcknowledgesTooEarly)
