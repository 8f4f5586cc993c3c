"""Test the order of writes outside SQLite's own commits, and the effects of a disk fault.

The tests record each system call that orders files on the disk, so a missing fsync shows without a power cut.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import apsw
import pytest

from storage import open_store, open_target
from storage.errors import Busy, StoreError, Unavailable, UnusableDatabase
from storage.migration import migrate
from storage.sqlite import upkeep as sqlite_upkeep
from storage.sqlite.disk import file as sqlite_file
from storage.sqlite.maintenance import backup, vacuum
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection
from tests.support.live import await_true
from tests.support.shorthand import peek, send, take

LONG = 15.0  # seconds
Event = tuple[str, str]  # a call and the name of its file


class Calls:
    """Records the calls of `os` in order; `fail` is called before each, and may raise."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.written = 0  # bytes, by pwritev
        self.fail: Callable[[Event], None] = lambda event: None

    def note(self, call: str, where: int | str | Path) -> None:
        name = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else str(where)
        event = call, Path(name).name
        self.fail(event)
        self.events.append(event)

    def of(self, *calls: str) -> list[Event]:
        return [event for event in self.events if event[0] in calls]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def record(name: str, place: int = 0) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            calls.note(name, arguments[place])
            done = real(*arguments, **more)
            if name == "pwritev":
                calls.written += done
            return done

        monkeypatch.setattr(os, name, call)

    for name, place in {"fsync": 0, "link": 1, "replace": 1, "rename": 1, "pwritev": 0, "ftruncate": 0}.items():
        record(name, place)
    return calls


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


# A new file gets its name once it is on disk, and never replaces another file.


def test_a_backup_is_on_disk_before_it_has_its_name_and_the_name_before_it_is_reported(
    path: Path, tmp_path: Path, calls: Calls
) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    calls.events.clear()
    backup(path, tmp_path / "copy.db")
    assert calls.events == [("fsync", "copy.db.part"), ("link", "copy.db"), ("fsync", tmp_path.name)]


def test_a_backup_does_not_replace_a_file_created_meanwhile(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    target = tmp_path / "copy.db"
    with on_each_connection(lambda connection: target.write_text("precious")), pytest.raises(UnusableDatabase):
        backup(path, target)
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob("*.part"))


def test_a_backup_overwrites_the_remains_of_an_interrupted_one(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    (tmp_path / "copy.db.part").write_text("half a backup")
    backup(path, tmp_path / "copy.db")
    with closing(SqliteStore(tmp_path / "copy.db")) as store:
        assert take(store) == ["a"]


def test_the_name_of_a_moved_database_is_on_disk_when_the_move_is_reported(
    path: Path, tmp_path: Path, calls: Calls
) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    calls.events.clear()
    migrate(f"sqlite:///{path}", f"sqlite:///{tmp_path}/target.db")
    assert calls.of("link", "replace", "rename", "fsync") == [("link", "target.db"), ("fsync", tmp_path.name)]
    assert sorted(file.name for file in tmp_path.glob("target.db*")) == ["target.db", "target.db-lock"]


def test_a_move_does_not_replace_a_file_created_meanwhile_and_continues_when_it_is_deleted(
    path: Path, tmp_path: Path
) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    target = tmp_path / "target.db"
    urls = f"sqlite:///{path}", f"sqlite:///{target}"
    with on_each_connection(lambda connection: target.write_text("precious")), pytest.raises(StoreError):
        migrate(*urls)
    assert target.read_text() == "precious"
    target.unlink()
    migrate(*urls)
    with closing(open_store(urls[1])) as store:
        assert take(store, 2) == ["a"]


def test_a_moved_database_is_not_renamed_while_part_of_it_is_in_a_log(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program with the file open keeps the log, and only the file would be renamed."""
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 50)
    with closing(SqliteStore(path)) as store:
        send(store, "a")
    urls = f"sqlite:///{path}", f"sqlite:///{tmp_path}/target.db"
    open_target(urls[1]).close()
    with closing(apsw.Connection(f"{tmp_path}/target.db.part")) as another:
        another.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with pytest.raises(StoreError, match="locked"):
            migrate(*urls)
        assert not (tmp_path / "target.db").exists()
    migrate(*urls)
    with closing(open_store(urls[1])) as store:
        assert take(store, 2) == ["a"]


# A log with a failed write is rewritten entirely before it is used.


@contextmanager
def a_write_has_failed(path: Path, megabytes: int = 0) -> Iterator[None]:
    """Leave a log with a failed write during the block."""
    failing = threading.Event()

    def fail(cursor: object, statement: str, values: object) -> bool:
        if failing.is_set() and statement == "COMMIT":
            raise apsw.IOError("disk I/O error")
        return True

    with on_each_connection(lambda connection: connection.set_exec_trace(fail)):
        store = SqliteStore(path)
    another = apsw.Connection(str(path))
    another.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()  # so that the log is not deleted
    try:
        send(store, "a", *["x" * 1_000_000] * megabytes)
        failing.set()
        with pytest.raises(Unavailable):
            send(store, "lost")
        failing.clear()
        store.close()
        yield
    finally:
        another.close()


def test_a_log_with_a_failed_write_is_synced_before_it_is_trusted(path: Path, calls: Calls) -> None:
    with a_write_has_failed(path, megabytes=3):
        calls.events.clear()
        size = path.with_name("queue.db-wal").stat().st_size
        SqliteStore(path).close()
        writes = calls.of("pwritev")
        assert set(writes) == {("pwritev", "queue.db-wal")}
        assert calls.events == [*writes, ("fsync", "queue.db-wal"), ("ftruncate", "queue.db-lock")]
        assert 3_000_000 < size <= calls.written < size + mmap.PAGESIZE
        calls.events.clear()
        with closing(SqliteStore(path)) as store:
            assert peek(store)[0] == "a"
        assert calls.of("pwritev") == []  # once is enough


def test_a_log_that_cannot_be_rewritten_is_not_trusted(path: Path, calls: Calls) -> None:
    def fail(event: Event) -> None:
        if event == ("fsync", "queue.db-wal"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with a_write_has_failed(path):
        calls.fail = fail
        for _ in range(2):
            with pytest.raises(UnusableDatabase, match="Input/output error"):
                SqliteStore(path)
        calls.fail = lambda event: None
        calls.events.clear()
        SqliteStore(path).close()
        assert ("fsync", "queue.db-wal") in calls.events


def test_an_interrupted_rewrite_of_a_log_is_not_trusted(
    path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_write_has_failed(path), monkeypatch.context() as patch:
        pwritev = os.pwritev
        patch.setattr(os, "pwritev", lambda target, blocks, place: pwritev(target, [blocks[0][:4096]], place))
        with pytest.raises(UnusableDatabase, match="could not rewrite"):
            SqliteStore(path)
    assert calls.of("ftruncate") == []


def test_a_log_is_rewritten_on_a_filesystem_without_direct_writes(
    path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    tried: list[str] = []

    def without_direct(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            tried.append(Path(name).name)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags, *mode)

    with a_write_has_failed(path):
        monkeypatch.setattr(os, "open", without_direct)
        SqliteStore(path).close()
        assert tried == ["queue.db-wal"]  # a filesystem with direct writes must use them: see _rewrite
        assert ("fsync", "queue.db-wal") in calls.events


def test_a_log_is_not_rewritten_during_a_write(path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 50)
    with a_write_has_failed(path), closing(apsw.Connection(str(path))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        calls.events.clear()
        with pytest.raises(Busy):
            SqliteStore(path)
        assert calls.events == []


# A disk fault in any part stops writes.


@pytest.mark.parametrize("fault", [apsw.IOError, apsw.CorruptError])
def test_a_disk_fault_during_upkeep_stops_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, fault: type[apsw.Error]
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 0.01)
    failing, failed = threading.Event(), threading.Event()
    looked = threading.Semaphore(0)

    def fail(cursor: object, statement: str, values: object) -> bool:
        if threading.current_thread() is not threading.main_thread():
            looked.release()
            if failing.is_set():
                raise fault("the disk has failed")
        return True

    with on_each_connection(lambda connection: connection.set_exec_trace(fail)):
        store = SqliteStore(path)
        send(store, "before")
        store.on_failure(failed.set)
        for _ in range(30):  # more than it takes to connect
            assert looked.acquire(timeout=LONG)
        failing.set()
        assert failed.wait(LONG)
        failing.clear()
        with pytest.raises(Unavailable):
            send(store, "after")
    with closing(apsw.Connection(str(path))) as another:
        another.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()
        store.close()
        with closing(SqliteStore(path)) as store:
            assert peek(store) == ["before"]
    assert ("fsync", "queue.db-wal") in calls.events


def test_upkeep_retries_if_it_could_not_open_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 0.01)
    tries = count()

    def fail_twice(connection: apsw.Connection) -> None:
        if threading.current_thread() is not threading.main_thread() and next(tries) < 2:
            raise apsw.CantOpenError("too many open files")

    with on_each_connection(fail_twice), closing(SqliteStore(path)) as store:
        send(store, "expired", ttl=0.01)
        with closing(apsw.Connection(str(path))) as reader:
            await_true(lambda: reader.execute("SELECT count(*) FROM messages").get == 0)
    assert next(tries) == 3


@pytest.mark.parametrize("fault", [apsw.IOError, apsw.CorruptError])
@pytest.mark.parametrize("statement", ["INSERT", "COMMIT"])
def test_a_disk_fault_during_a_request_stops_writes(path: Path, fault: type[apsw.Error], statement: str) -> None:
    failing, failed = threading.Event(), threading.Event()

    def fail(cursor: object, sql: str, values: object) -> bool:
        if failing.is_set() and sql.strip().startswith(statement):
            raise fault("the disk has failed")
        return True

    with on_each_connection(lambda connection: connection.set_exec_trace(fail)):
        store = SqliteStore(path)
    store.on_failure(failed.set)
    failing.set()
    with pytest.raises(Unavailable):
        send(store, "a")
    failing.clear()
    assert failed.is_set()
    with pytest.raises(Unavailable):
        send(store, "b")
    called_late = threading.Event()
    store.on_failure(called_late.set)
    assert called_late.is_set()  # it had failed before
    store.close()


def test_after_a_disk_fault_in_a_tool_the_next_open_rewrites_the_log(path: Path, calls: Calls) -> None:
    def fail(cursor: object, sql: str, values: object) -> bool:
        if sql.startswith("VACUUM"):
            raise apsw.IOError("the disk has failed")
        return True

    with closing(SqliteStore(path)) as store:
        send(store, "a")
        with (
            on_each_connection(lambda connection: connection.set_exec_trace(fail)),
            pytest.raises(UnusableDatabase, match="the disk has failed"),
        ):
            vacuum(path)
        calls.events.clear()
        SqliteStore(path).close()
        assert ("fsync", "queue.db-wal") in calls.events
