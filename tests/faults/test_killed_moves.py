"""Test a move that is killed at any step: restarted it completes, and each message is in exactly one database.

Each case is a separate process, forked from one without open files. It is killed right before a call of the source or
the target: to SQLite, the driver or the system.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import psycopg
import pytest

from storage import open_store
from storage.errors import Moved, StoreError, UnusableDatabase
from storage.migration import migrate, reopen
from tests.support.live import REPOSITORY
from tests.support.postgres import Postgres
from tests.support.shorthand import lease_one, send, take

LONG = [pytest.mark.slow, pytest.mark.torture]

# Moves sources one by one, each to its target: the child is killed when its nth call comes, and the numbers of all
# calls are printed, those from the first change to the source after it was sealed apart.
KILLED = """
import json, os, signal, sys
from storage.sqlite import migration as sqlite_moving
from storage.postgres import migration as postgres_moving  # nothing is opened by that
from storage import migration
from storage.migration import migrate

CALLERS = {module.__file__ for module in (migration, sqlite_moving, postgres_moving)}


class Steps:
    def __init__(self, kill_at):
        self.count, self.marked_from, self.kill_at = 0, 0, kill_at

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_call"):
            return
        caller = frame if event == "c_call" else frame.f_back
        if event == "call" and frame.f_code.co_name == "mark_moved":
            self.marked_from = self.count
        if caller is not None and caller.f_code.co_filename in CALLERS:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def move(source, target, kill_at):
    child = os.fork()
    if child == 0:
        steps = Steps(kill_at)
        sys.setprofile(steps)
        migrate(source, target)
        sys.setprofile(None)
        print(json.dumps([steps.marked_from, steps.count]), flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for source, target, kill_at in json.loads(sys.argv[1]):
    assert move(source, target, kill_at) == (0 if kill_at == 0 else -signal.SIGKILL), kill_at
"""


def moves(*cases: tuple[str, str, int]) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(cases)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [number for line in done.stdout.splitlines() for number in json.loads(line)]


class Places:
    """Yields sources with two messages, one of them leased, and new targets of an engine."""

    def __init__(self, directory: Path, new_target: Callable[[], str]) -> None:
        self._template = directory / "template.db"
        self._directory = directory
        self._new_target = new_target
        self._count = 0
        with closing(open_store(f"sqlite:///{self._template}")) as store:
            send(store, "held", "free")
            self.receipt = lease_one(store, seconds=3_600).receipt

    def next(self) -> tuple[str, str]:
        self._count += 1
        source = self._directory / f"source-{self._count}.db"
        source.write_bytes(self._template.read_bytes())
        return f"sqlite:///{source}", self._new_target()


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    numbers = count(1)
    if request.param == "sqlite":
        return Places(tmp_path, lambda: f"sqlite:///{tmp_path}/target-{next(numbers)}.db")
    postgres: Postgres = request.getfixturevalue("postgres")
    return Places(tmp_path, lambda: postgres.create_database(f"{tmp_path.name}-{next(numbers)}"))


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=LONG)])
def test_a_move_killed_at_any_step_completes_when_restarted_and_keeps_each_message_once(
    places: Places, every: int
) -> None:
    marked_from, last = moves((*places.next(), 0))
    assert 0 < marked_from < last
    steps = [*range(1, marked_from, 20 * every), *range(marked_from, last + 1, every)]  # most between its last two
    cases = [(*places.next(), step) for step in steps]
    moves(*cases)
    for source, target, step in cases:
        if _can_be_served(target):
            with pytest.raises(StoreError, match="were moved"):  # otherwise both could be served
                reopen(source)
        else:
            migrate(source, target)
        with closing(open_store(source)) as store, pytest.raises(Moved):
            take(store)
        with closing(open_store(target)) as store:
            assert take(store, 2) == ["free"], step
            store.settle(places.receipt)


def _can_be_served(url: str) -> bool:
    if not _is_there(url):
        return False
    try:
        open_store(url).close()
    except UnusableDatabase:
        return False
    return True


def _is_there(url: str) -> bool:
    """Return whether the target exists, without opening it, which would create it."""
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///")).exists()
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT to_regnamespace('queue_service') IS NOT NULL").fetchone()
    return row == (True,)
