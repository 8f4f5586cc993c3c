"""Test `python -m storage`: its tools, also while the service runs (row 21), and their output."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from storage.__main__ import main
from storage.sqlite.disk import file as sqlite_file
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from tests.support.checker import Outcome, read_histories
from tests.support.figures import AddRow
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.load import Connection, Load
from tests.support.shorthand import lease, peek, send, take

LONG = [pytest.mark.slow, pytest.mark.torture]
PAGE = 4096


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a database with 700 messages in two queues, in all states."""
    store = SqliteStore(path := tmp_path / "queue.db")
    send(store, *(str(number) for number in range(500)))
    send(store, *(f"long {number} ".ljust(9_000, ".") for number in range(20)))
    send(store, *(str(number) for number in range(100)), key="same", priority=3)
    send(store, *(str(number) for number in range(80)), queue="other", delay=3_600, ttl=7_200)
    lease(store, 10, seconds=3_600)
    store.close()
    return path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command like a shell."""
    return subprocess.run(
        [sys.executable, "-m", "storage", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )


def url(path: Path) -> str:
    return f"sqlite:///{path}"


# backup


@pytest.mark.parametrize("backups", [1, pytest.param(15, marks=LONG)])
def test_a_backup_under_load_is_a_consistent_prefix__row_21(backups: int, tmp_path: Path, add_row: AddRow) -> None:
    copies = [tmp_path / f"copy-{number}.db" for number in range(backups)]
    histories = tmp_path / "histories"
    with LiveServer() as server, Load(server.port, histories) as load:
        load.write(2, batch=5)
        for copy in copies:
            await_true(lambda: len(list(read_histories(histories))) > 20)
            before = _written(histories, Outcome.ACKNOWLEDGED)
            done = command("backup", url(server.database), str(copy))
            assert (done.returncode, done.stderr) == (0, "")
            there = _texts(copy)
            assert before <= set(there) <= _written(histories)
            for writer in {text.rsplit("-", 1)[0] for text in there}:
                numbers = [int(text.removeprefix(f"{writer}-")) for text in there if text.startswith(writer)]
                assert numbers == list(range(len(numbers)))  # no message before the last is missing
                assert len(numbers) % 5 == 0  # and no part of a batch
        load.read(2, lease=30.0, batch=500)
        verdict = load.finish()
    add_row(fault="backup under load", times=backups, **verdict.figures)
    assert verdict.faultless, verdict
    assert not list(tmp_path.glob("*.part"))
    with LiveServer({"QUEUE_DATABASE_URL": url(copies[0])}) as restored:
        expected = _texts(copies[0])
        connection = Connection(restored.port)
        assert connection.open()
        reply = connection.ask("POST", "/queues/load/messages", {"text": "goes on"})
        assert reply.status == 200, (reply, restored.log())
        number = int(reply.document["id"])
        messages = []
        while got := connection.ask("GET", "/queues/load/messages?limit=1000&lease=60").document:
            messages += got
        connection.close()
    assert [message["text"] for message in messages] == [*expected, "goes on"]
    assert number == int(messages[-1]["id"]) > int(messages[-2]["id"])


def _written(histories: Path, *outcomes: Outcome) -> set[str]:
    """Return the texts of writes with these outcomes so far; without outcomes, of all requested writes."""
    writes = [operation for operation in read_histories(histories) if operation.kind == "write"]
    return {text for write in writes if not outcomes or write.outcome in outcomes for text in write.given}


def _texts(path: Path) -> list[str]:
    """Return the texts in the queue of a Load; check the file, and leave it unchanged."""
    copy = path.with_name("looked-at.db")
    shutil.copyfile(path, copy)
    try:
        assert check(copy).startswith("ok")
        store = SqliteStore(copy)
        texts = peek(store, queue="load")
        store.close()
    finally:
        copy.unlink()
    return texts


def test_a_backup_holds_leases_settings_and_counts_and_goes_on_with_the_ids(database: Path, tmp_path: Path) -> None:
    assert command("backup", url(database), str(tmp_path / "copy.db")).returncode == 0
    stores = [SqliteStore(path) for path in (database, tmp_path / "copy.db")]
    was, copied = [
        [queue._replace(stats=queue.stats._replace(oldest_age=0.0)) for queue in store.queues()] for store in stores
    ]
    assert was == copied
    assert send(stores[0], "next") == send(stores[1], "next")
    assert take(stores[0], 50) == take(stores[1], 50)
    for store in stores:
        store.close()


def test_a_backup_replaces_no_file(database: Path, tmp_path: Path) -> None:
    (there := tmp_path / "there").write_text("precious")
    assert error_of("backup", url(database), str(there)) == f"{there} already exists"
    assert there.read_text() == "precious"


def test_a_backup_on_a_full_disk_leaves_nothing_behind(database: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 100; exec "$0" -m storage backup "$1" "$2"',
         sys.executable, url(database), str(tmp_path / "copy.db")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("storage: the backup failed: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("copy.db*"))
    assert main(["check", url(database)]) == 0


# check


def test_check_finds_any_damaged_page(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = database.read_bytes()
    assert len(content) % PAGE == 0
    for page in range(0, len(content), PAGE):
        database.write_bytes(content[:page] + b"\xff" * PAGE + content[page + PAGE :])
        assert main(["check", url(database)]) == 1, f"page {page // PAGE + 1} was not missed"
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("storage: ")
    database.write_bytes(content)
    assert main(["check", url(database)]) == 0


@pytest.mark.parametrize("length", [0.2, 0.5, 0.99])
def test_check_finds_a_file_cut_short(database: Path, length: float, capsys: pytest.CaptureFixture[str]) -> None:
    content = database.read_bytes()
    database.write_bytes(content[: int(len(content) * length) // PAGE * PAGE])
    assert main(["check", url(database)]) == 1
    assert capsys.readouterr().err.startswith("storage: ")


@pytest.mark.parametrize("counter", ["ready", "leased", "delayed", "blocked", "bytes"])
def test_check_finds_a_wrong_count(database: Path, counter: str) -> None:
    with closing(apsw.Connection(str(database))) as connection:
        real = connection.execute(f"SELECT {counter} FROM queues WHERE name = 'q'").get
        connection.execute(f"UPDATE queues SET {counter} = {counter} + 3 WHERE name = 'q'")
    assert error_of("check", url(database)) == f"queue 'q' counts {real + 3} {counter} but has {real}"


def test_check_finds_messages_without_a_queue(database: Path) -> None:
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("UPDATE messages SET queue_id = 99 WHERE queue_id = 2; DELETE FROM queues WHERE id = 2")
    assert error_of("check", url(database)) == "80 messages are in no queue"


def test_check_and_info_work_with_a_service_under_load(tmp_path: Path) -> None:
    with LiveServer() as server, Load(server.port, tmp_path / "histories") as load:
        load.write(2, batch=10).read().read(lease=5.0, batch=20)
        await_true(lambda: len(list(read_histories(tmp_path / "histories"))) > 20)
        checked, info = command("check", url(server.database)), command("info", url(server.database))
        assert (checked.returncode, checked.stderr, info.returncode, info.stderr) == (0, "", 0, "")
        assert "queue     load: " in info.stdout
        verdict = load.finish()
    assert verdict.faultless, verdict


def test_info_reports_the_contents(database: Path) -> None:
    lines = command("info", url(database)).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["file", "size", "log", "sqlite", "queue", "queue"]
    assert lines[-2].startswith("queue     other: 0 ready, 0 leased, 80 delayed, 0 blocked; ")
    assert lines[-1].startswith("queue     q: ")


# vacuum


def test_vacuum_returns_free_space_while_the_service_runs(tmp_path: Path) -> None:
    with LiveServer() as server, Load(server.port, tmp_path / "histories") as load:
        connection = Connection(server.port)
        assert connection.open()
        for _ in range(20):
            assert connection.ask("POST", "/queues/old/messages", {"text": "x" * 1_000_000}).status == 200
        assert connection.ask("POST", "/queues/old/purge").document == {"purged": 20}
        connection.close()
        load.write(2).read(lease=5.0, batch=20)
        await_true(lambda: len(list(read_histories(tmp_path / "histories"))) > 20)
        done = command("vacuum", url(server.database))
        assert (done.returncode, done.stderr) == (0, "")
        verdict = load.finish()
        await_true(lambda: server.database.stat().st_size < 5_000_000)
    assert verdict.faultless, verdict
    assert verdict.refused == verdict.unknown == 0


# An error is one sentence, with exit code 1.


def error_of(*arguments: str) -> str:
    """Run a command, which must fail; return its one line of error."""
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("storage: ")
    return line.removeprefix("storage: ")


@pytest.fixture(params=["info", "check", "backup", "vacuum"])
def verb(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that runs the verb on a URL and returns its error."""
    more = [str(tmp_path / "copy.db")] if request.param == "backup" else []
    return lambda where: error_of(request.param, where, *more)


def test_a_foreign_file_is_reported_in_one_sentence(verb: Callable[[str], str], database: Path, tmp_path: Path) -> None:
    assert verb(url(tmp_path / "nowhere.db")) == f"{tmp_path}/nowhere.db does not exist"
    assert verb(url(tmp_path)) == f"{tmp_path} is a directory"
    assert verb("mysql://x").startswith("'mysql://…' names no database")
    (tmp_path / "text").write_text("Dear diary, " * 1_000)
    assert verb(url(tmp_path / "text")) == f"{tmp_path}/text cannot be used: file is not a database"
    with closing(apsw.Connection(str(tmp_path / "foreign.db"))) as foreign:
        foreign.execute("CREATE TABLE t (x)")
    assert verb(url(tmp_path / "foreign.db")) == f"{tmp_path}/foreign.db is a SQLite database of another program"
    (tmp_path / "empty.db").touch()
    assert verb(url(tmp_path / "empty.db")) == f"{tmp_path}/empty.db is empty"
    assert not list(tmp_path.glob("copy.db*"))


def test_a_damaged_database_is_reported_in_one_sentence(verb: Callable[[str], str], database: Path) -> None:
    content = database.read_bytes()
    database.write_bytes(content[:PAGE] + b"\xff" * PAGE * 3 + content[4 * PAGE :])
    assert "malformed" in verb(url(database))


def test_a_vacuum_of_a_locked_file_is_reported_in_one_sentence(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 100)
    with closing(apsw.Connection(str(database))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert main(["vacuum", url(database)]) == 1
    assert capsys.readouterr().err == f"storage: {database}: database is locked\n"


@pytest.mark.parametrize("arguments", [[], ["tidy", "x"], ["backup", "sqlite:///x"], ["check", "sqlite:///x", "more"]])
def test_a_wrong_command_prints_its_usage(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m storage")
