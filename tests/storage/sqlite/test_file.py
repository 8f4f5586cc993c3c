"""Test the SQLite file: refusals, creation, and the settings of connections."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest

from storage import open_store
from storage.errors import UnusableDatabase
from storage.model import Receive
from storage.sqlite import maintenance as sqlite_maintenance
from storage.sqlite import upkeep as sqlite_upkeep
from storage.sqlite.disk import file as sqlite_file
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from tests.support.connections import on_each_connection, still_open
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.shorthand import lease, peek, send, stats


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def refusal(path: Path) -> str:
    with pytest.raises(UnusableDatabase) as fault:
        SqliteStore(path)
    return str(fault.value)


# -- refusals


@pytest.mark.parametrize(
    ("version", "fit"),
    [("3.40.1", False), ("3.44.5", False), ("3.44.6", True), ("3.44.7", True), ("3.45.0", False), ("3.50.6", False),
     ("3.50.7", True), ("3.50.10", True), ("3.51.0", False), ("3.51.2", False), ("3.51.3", True), ("3.54.0", True),
     ("4.0.0", True)],
)  # fmt: skip
def test_a_sqlite_with_the_wal_reset_bug_is_refused__row_5(version: str, fit: bool) -> None:
    if fit:
        sqlite_file.refuse_unsafe_sqlite(version)
    else:
        with pytest.raises(UnusableDatabase, match="WAL-reset"):
            sqlite_file.refuse_unsafe_sqlite(version)


def test_a_store_checks_the_version_before_it_opens_the_file__row_5(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    assert "3.51.2" in refusal(path)
    assert not path.exists()


def test_a_file_that_is_not_a_database_is_refused_and_left_alone__row_24(path: Path) -> None:
    path.write_bytes(content := b"Dear diary, " * 1_000)
    assert refusal(path).endswith("not a database")
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone__row_24(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY)")
    connection.close()
    content = path.read_bytes()
    assert "another program" in refusal(path)
    assert path.read_bytes() == content


def test_a_newer_schema_is_refused_and_left_alone__row_24(path: Path) -> None:
    SqliteStore(path).close()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", sqlite_file.SCHEMA_VERSION + 1)
    connection.close()
    content = path.read_bytes()
    assert f"schema version {sqlite_file.SCHEMA_VERSION + 1}" in refusal(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_new_database(path: Path) -> None:
    path.touch()
    store = SqliteStore(path)
    assert send(store, "a") == [1]
    store.close()


def test_a_missing_directory_is_refused_and_not_created__row_24(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere" / "queue.db")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_instead_of_a_file_is_refused__row_24(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, whatever the mode says")
@pytest.mark.parametrize("place", ["directory", "file"])
def test_a_file_that_cannot_be_written_is_refused__row_24(path: Path, place: str) -> None:
    SqliteStore(path).close()
    locked = path if place == "file" else path.parent
    locked.chmod(0o500)
    try:
        assert "not writable" in refusal(path)
    finally:
        locked.chmod(0o700)


@pytest.mark.parametrize("place", ["directory", "file"])
def test_a_file_that_the_system_reports_as_unwritable_is_refused__row_24(
    path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake the answer of access(2), so that this also works for root."""
    SqliteStore(path).close()
    locked = path if place == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda place, mode: place != locked)
    assert f"{locked} is not writable" in refusal(path)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_network_filesystem_is_refused__row_24(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, f"server:/x {path.parent} {kind} rw 0 0")
    assert f"network filesystem ({kind})" in refusal(path)


@pytest.mark.parametrize(
    "lines",
    [
        ["server:/x {parent} nfs4 rw 0 0", "/dev/vdb {folder} ext4 rw 0 0"],  # a disk inside the network's tree
        ["server:/x {folder} nfs4 rw 0 0", "/dev/vdb {folder} ext4 rw 0 0"],  # mounted over it
        ["server:/x {folder}2 nfs4 rw 0 0"],  # a name with the same beginning
    ],
)
def test_a_local_disk_near_a_network_filesystem_is_accepted(
    path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, *(line.format(folder=path.parent, parent=path.parent.parent) for line in lines))
    SqliteStore(path).close()


def test_a_network_filesystem_is_detected_behind_a_link_and_with_spaces_in_its_name__row_24(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (far := tmp_path / "far away ü").mkdir()
    (tmp_path / "near").symlink_to(far)
    mounted(monkeypatch, f"server:/x {str(far).replace(' ', chr(92) + '040')} nfs4 rw 0 0")
    assert "network filesystem" in refusal(tmp_path / "near" / "queue.db")


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    real = Path.read_text
    table = "\n".join(["/dev/vda / ext4 rw 0 0", *lines, ""])

    def read_text(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        return table if str(path) == "/proc/self/mounts" else real(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize("url", ["", "queue.db", "sqlite:queue.db", "sqlite://queue.db", "sqlite:///", "mysql:///x"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(UnusableDatabase):
        open_store(url)


@pytest.mark.parametrize("what", ["text", "foreign", "newer", "read-only"])
def test_a_service_refuses_an_unusable_file_and_says_why__row_24(
    what: str, path: Path, read_only: Callable[[Path], None]
) -> None:
    reason = {
        "text": f"{path} cannot be used: file is not a database",
        "foreign": f"{path} is a SQLite database of another program",
        "newer": f"{path} has schema version 99; this program knows up to {sqlite_file.SCHEMA_VERSION}",
        "read-only": f"{path.parent} is not writable",
    }[what]
    if what == "text":
        path.write_text("Dear diary, " * 1_000)
    else:
        SqliteStore(path).close()
        with closing(apsw.Connection(str(path))) as connection:
            connection.pragma("application_id", 42 if what == "foreign" else sqlite_file.APPLICATION_ID)
            connection.pragma("user_version", 99 if what == "newer" else sqlite_file.SCHEMA_VERSION)
    if what == "read-only":
        read_only(path.parent)
    server = LiveServer({"QUEUE_DATABASE_URL": f"sqlite:///{path}"})
    try:
        with pytest.raises(RuntimeError, match=re.escape(f"queue_service: QUEUE_DATABASE_URL: {reason}\n")):
            server.start()
    finally:
        shutil.rmtree(server.directory)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Mount a directory read-only, which stops even root."""
    mounted_on: list[Path] = []

    def mount(directory: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may mount")
        for options in (["--bind", directory, directory], ["-o", "remount,bind,ro", directory]):
            done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"nothing can be mounted read-only here: {done.stderr.strip()}")
            mounted_on[:] = [directory]

    yield mount
    for directory in mounted_on:
        subprocess.run(["umount", directory], check=True)


# -- opening


def test_two_concurrent_first_starts_create_one_schema__row_27(path: Path) -> None:
    program = (
        "import sys; from storage import open_store; from storage.model import NewMessage\n"
        "print('imported', flush=True); sys.stdin.readline()\n"
        "store = open_store('sqlite:///' + sys.argv[1])\n"
        "for number in range(50): store.send('q', [NewMessage(str(number))])\n"
        "store.close()"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for start in starts:
        assert start.stdout is not None
        assert start.stdout.readline() == "imported\n"
    ends = [start.communicate("go\n", timeout=60) for start in starts]
    assert [(start.returncode, end[1]) for start, end in zip(starts, ends, strict=True)] == [(0, "")] * 4
    store = SqliteStore(path)
    assert stats(store).ready == len(peek(store)) == 200
    store.close()


def test_the_file_has_the_application_id(path: Path) -> None:
    SqliteStore(path).close()
    connection = apsw.Connection(str(path))
    assert connection.pragma("application_id") == int.from_bytes(b"QUEU", "big")
    assert connection.pragma("user_version") == sqlite_file.SCHEMA_VERSION
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


def test_every_connection_writes_through_the_log_and_syncs_each_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_upkeep, "UPKEEP_EVERY", 3_600.0)  # this test queries its connection
    connections: list[apsw.Connection] = []
    with on_each_connection(connections.append):
        store = SqliteStore(path)
        send(store, "a")
        peek(store)
        store.receive(Receive(("nowhere",), wait=0.05))
        await_true(lambda: len(connections) >= 4)  # to write, to read, to watch for waiting readers, for upkeep
    there = still_open(connections)
    for connection in there:
        pragmas = [connection.pragma(name) for name in ("journal_mode", "synchronous", "mmap_size")]
        assert pragmas == ["wal", 2, 0]  # 2: FULL
        assert 0 < connection.pragma("journal_size_limit") <= 64 * 1024 * 1024
    store.close()
    assert still_open(connections) == []
    assert sorted(child.name for child in path.parent.iterdir()) == ["queue.db", "queue.db-lock"]


# The size of the file.


def test_an_emptied_file_shrinks_and_keeps_the_remaining_messages(path: Path) -> None:
    store = SqliteStore(path)
    try:
        for _ in range(100):
            send(store, *["x" * 160] * 1_000)  # a quarter of the file is more than the 2 MiB that stay free
        left = [f"{number}" for number in range(2_000)]
        send(store, *left, key="k")  # at the file's end, each in its own row
        with closing(apsw.Connection(str(path))) as beside:  # the file's own size lags until a checkpoint
            full = beside.pragma("page_count") * beside.pragma("page_size")
        for _ in range(100):
            store.ack([held.receipt for held in lease(store, 1_000)])
        await_true(lambda: path.stat().st_size < full / 4)
        assert peek(store) == left
    finally:
        store.close()
    assert check(path).startswith("ok: 2,000 messages")


# -- real path and owner


def test_files_beside_a_linked_database_are_beside_its_real_path__row_35(tmp_path: Path) -> None:
    (real := tmp_path / "disk").mkdir()
    (link := tmp_path / "queue.db").symlink_to(real / "real.db")
    with closing(SqliteStore(link)) as store, closing(SqliteStore(real / "real.db")) as other:
        send(store, "a")
        assert peek(other) == ["a"]
        assert store.disk().log == (real / "real.db-wal").stat().st_size > 0
        assert {path.name for path in real.iterdir()} == {"real.db", "real.db-wal", "real.db-shm", "real.db-lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "queue.db"}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second disk here")
def test_the_watched_disk_is_that_of_the_real_path__row_35(path: Path) -> None:
    if path.parent.stat().st_dev == Path("/dev/shm").stat().st_dev:
        pytest.skip("the tests' own files are on the second disk")
    with TemporaryDirectory(dir="/dev/shm") as other:
        path.symlink_to(Path(other) / "real.db")
        with closing(SqliteStore(path)) as store:
            room = os.statvfs(other)
            free = store.disk().disk_free
            assert free is not None
            assert abs(free - room.f_bavail * room.f_frsize) < abs(free - _free(path.parent))


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another's")
def test_a_tool_run_by_root_leaves_no_lock_that_the_service_cannot_open__row_35(path: Path) -> None:
    SqliteStore(path).close()
    lock = Path(f"{path}-lock")
    lock.unlink()
    os.chown(path, 12_345, 12_346)
    assert check(path).startswith("ok")
    assert (lock.stat().st_uid, lock.stat().st_gid) == (12_345, 12_346)


def test_a_refusal_names_the_file_that_is_in_the_way(path: Path) -> None:
    SqliteStore(path).close()
    lock = Path(f"{path}-lock")
    lock.unlink()
    lock.mkdir()
    assert str(lock) in refusal(path)


def older(path: Path) -> Path:
    shutil.copyfile(REPOSITORY / "tests/storage/data/version-1.sqlite", path)
    return path


@pytest.mark.parametrize("verb", ["info", "backup", "vacuum"])
def test_a_tool_leaves_the_schema_of_a_running_older_service_as_it_is(path: Path, tmp_path: Path, verb: str) -> None:
    older(path)
    copy = tmp_path / "copy.db"
    report = sqlite_maintenance.backup(path, copy) if verb == "backup" else getattr(sqlite_maintenance, verb)(path)
    assert report
    for file in [path, *([copy] if verb == "backup" else [])]:
        with closing(apsw.Connection(str(file))) as connection:
            assert connection.pragma("user_version") == 1


def test_a_check_of_an_older_file_says_which_version_it_needs_and_changes_nothing(path: Path) -> None:
    older(path)
    with pytest.raises(UnusableDatabase, match=f"schema version 1, but this check needs {sqlite_file.SCHEMA_VERSION}"):
        check(path)
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.pragma("user_version") == 1


# -- time


def reboot(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE clock SET boot_id = 'of another boot', offset_ms = 0")


def test_a_file_dated_in_the_future_expires_nothing_at_the_next_boot__row_35(path: Path) -> None:
    with closing(SqliteStore(path)) as store:
        send(store, "a", ttl=3_600)
    reboot(path)
    os.utime(path, (time.time() + 86_400,) * 2)
    with closing(SqliteStore(path)) as store:
        assert peek(store) == ["a"]
        assert abs(store.peek("q")[0].sent_at / 1_000 - time.time()) < 600


@pytest.mark.parametrize("left", [[], ["a message"]], ids=["empty", "with messages"])
def test_a_wall_clock_set_back_across_a_boot_does_not_set_back_the_services_time(
    path: Path, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the time of its messages and of the last upkeep."""
    with closing(SqliteStore(path)) as store:
        send(store, "gone")
        await_true(lambda: _kept_time(path) > 0)
        if left:
            send(store, *left)
        assert len(store.receive(Receive(("q",), 1))) == 1
    before = time.time()
    reboot(path)
    monkeypatch.setattr(time, "time", lambda: before - 3_600)
    with closing(SqliteStore(path)) as store:
        assert store._clock.now() / 1_000 > before - 70


def _kept_time(path: Path) -> int:
    with closing(apsw.Connection(str(path))) as connection:
        kept: int = connection.execute("SELECT last_ms FROM clock").get
        return kept
