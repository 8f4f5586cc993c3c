"""Test row 27 of docs/reliability.md: today's code opens files of every released schema, and loses nothing.

`python -m tests.storage.sqlite.test_upgrade` writes such a file with today's code. Run it once for each schema, at its
release.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from storage.errors import StaleReceipt, UnusableDatabase
from storage.model import IdempotencyKey, Receive, State, rfc3339
from storage.sqlite.disk import file as sqlite_file
from storage.sqlite.maintenance import check
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.support.engines import FakeClock
from tests.support.live import REPOSITORY, LiveServer
from tests.support.load import Connection
from tests.support.shorthand import configure, lease, lease_one, new, peek, send, stats, take, texts

DATA = REPOSITORY / "tests/storage/data"
RELEASED = [path.stem for path in sorted(DATA.glob("version-*.sqlite"))]
WRITTEN, READ = IdempotencyKey("a write", b"fingerprint"), IdempotencyKey("a read", b"fingerprint")
ODD = "NUL \0, CR \r, LF \n, 😀 and \ufeff"
HALF_AN_HOUR, DAY, YEARS = 1_800.0, 86_400.0, 3 * 366 * 86_400.0  # seconds

BATCH = [str(number) for number in range(300)]
# Some have attributes, and some of these differ from the rest: one, two and many in succession.
BATCH_FIELDS: dict[str, dict[str, Any]] = {
    str(number): {"attributes": {"place": number, "name": f"№ {number}"} if number % 7 else {"alone": True}}
    for number in range(40, 300)
    if number % 50
}

# The result of `fill`: each queue's texts by state, oldest first.
THERE = {
    "batch": {State.READY: BATCH[15:], State.LEASED: BATCH[5:15]},
    "dead": {State.READY: ["rejected", "given up"]},
    "jobs": {
        State.READY: ["given back", "ready", ODD, "urgent", "for Ada", "kept for years", "gone in a day"],
        State.LEASED: ["held", "left alone", "head of a key"],
        State.DELAYED: ["due in an hour"],
        State.BLOCKED: ["second of its key", "last of its key"],
    },
    "paused": {State.READY: ["waits"]},
}


def long_ago() -> FakeClock:
    """Return a clock in 2024, which is in the past on any machine."""
    clock = FakeClock()
    clock.advance(-96_000_000)
    return clock


def fill(store: Store, clock: FakeClock) -> dict[str, str]:
    """Write messages in every state, settings, totals and keys; return the receipts of leased ones."""
    configure(store, "dying", max_receives=2, dead_letter_queue="dead")
    send(store, "rejected", "given up", queue="dying")
    store.reject(lease_one(store, queue="dying").receipt, "does not fit")
    for _ in range(2):
        lease_one(store, queue="dying", seconds=1)
        clock.advance(2)
    assert stats(store, "dying").dead == 2
    configure(store, "jobs", max_messages=1_000, dedup_window=YEARS)
    send(store, "acked", "held", "left alone", "given back", queue="jobs")
    send(store, "head of a key", "second of its key", "last of its key", queue="jobs", key="order 7")
    held = {one.text: one.receipt for one in lease(store, 5, queue="jobs", seconds=HALF_AN_HOUR)}
    store.settle(held.pop("acked"))
    store.release(held.pop("given back"))
    assert store.send("jobs", [new("read and removed", priority=9, dedup_id="d")], WRITTEN)
    assert texts(store.receive(Receive(("jobs",)), READ)) == ["read and removed"]
    send(store, "ready", queue="jobs")
    send(store, ODD, queue="jobs", attributes={"colour": "red", "size": 1.5, "none": None, "ä": True})
    send(store, "urgent", queue="jobs", priority=8)
    send(store, "for Ada", queue="jobs", recipient="Ada")
    send(store, "kept for years", queue="jobs", ttl=10 * 365 * DAY)
    send(store, "gone in a day", queue="jobs", ttl=DAY)
    send(store, "due in an hour", queue="jobs", delay=3_600)
    store.send("batch", [new(text, **BATCH_FIELDS.get(text, {})) for text in BATCH])
    assert take(store, 5, queue="batch") == BATCH[:5]
    assert texts(lease(store, 10, queue="batch", seconds=HALF_AN_HOUR)) == BATCH[5:15]
    configure(store, "paused", paused=True, lease=7.5)
    send(store, "waits", queue="paused")
    send(store, "deleted", queue="deleted")
    store.delete_queue("deleted")
    return held


@pytest.fixture(params=["today's", *RELEASED])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of a file filled by `fill`, by today's code or by a release; its receipts are beside it."""
    path = tmp_path / "queue.db"
    if request.param in RELEASED:
        shutil.copyfile(DATA / f"{request.param}.sqlite", path)
        shutil.copyfile(DATA / f"{request.param}.json", path.with_suffix(".json"))
    else:
        write(path)
    return path


def write(path: Path) -> None:
    """Write a filled file, and beside it the data that its test needs."""
    clock = long_ago()
    with closing(SqliteStore(path, clock=clock)) as store:
        receipts = fill(store, clock)
    notes = {"now": clock.now(), "receipts": receipts, "fields": BATCH_FIELDS}
    path.with_suffix(".json").write_text(json.dumps(notes, indent=1) + "\n")


def assert_nothing_is_lost(path: Path) -> None:
    """Assert that all of THERE exists and behaves as if the file had never been closed."""
    notes = json.loads(path.with_suffix(".json").read_text())
    (clock := long_ago()).advance((notes["now"] - clock.now()) / 1_000 + 60)
    SqliteStore(path, clock=clock).close()  # brings the schema to the newest version
    assert check(path).startswith("ok")
    with closing(SqliteStore(path, clock=clock)) as store:
        assert {queue.name for queue in store.queues()} == {"batch", "dead", "dying", "jobs", "paused"}
        for queue, states in THERE.items():
            assert {s: peek(store, queue=queue, state=s) for s in State if peek(store, queue=queue, state=s)} == states
        assert peek(store, queue="dying", state=State.DEAD) == ["rejected", "given up"]
        batch = {message.text: json.loads(message.fields or "{}") for message in store.peek("batch", limit=1_000)}
        assert {text: fields for text, fields in batch.items() if fields} == notes.get("fields", {})  # not in version 1
        _assert_settings_and_totals(store)
        _assert_receipts_and_keys(store, notes["receipts"])
        _assert_all_comes_out(store, clock, notes["receipts"])
    assert check(path).startswith("ok")


def _assert_settings_and_totals(store: Store) -> None:
    jobs, paused = store.queue("jobs"), store.queue("paused")
    assert (jobs.settings.max_messages, jobs.settings.dedup_window) == (1_000, YEARS)
    assert (paused.settings.paused, paused.settings.lease) == (True, 7.5)
    assert (jobs.stats.sent, jobs.stats.received, jobs.stats.acked) == (15, 6, 1)
    assert stats(store, "dying").dead_lettered == 2


def _assert_receipts_and_keys(store: Store, receipts: dict[str, str]) -> None:
    store.settle(receipts["held"])
    before = store.peek("jobs")
    (first,) = store.send("jobs", [new("read and removed", priority=9, dedup_id="d")], WRITTEN).ids
    assert store.send("jobs", [new("another text", dedup_id="d")]) == ([first], [0])
    assert texts(store.receive(Receive(("jobs",)), READ)) == ["read and removed"]
    assert store.peek("jobs") == before


def _assert_all_comes_out(store: Store, clock: FakeClock, receipts: dict[str, str]) -> None:
    clock.advance(HALF_AN_HOUR)
    again = lease_one(store, queue="jobs", seconds=HALF_AN_HOUR)
    assert (again.text, again.message.receive_count) == ("urgent", 1)
    (later,) = store.receive(Receive(("jobs",), 1, HALF_AN_HOUR, holder="shop"))
    assert (later.text, later.receive_count) == ("left alone", 2)
    assert [message.leased_by for message in store.peek("jobs", state=State.LEASED)] == ["shop", None]
    with pytest.raises(StaleReceipt):
        store.settle(receipts["left alone"])
    clock.advance(HALF_AN_HOUR)
    highest = max(message.id for message in store.peek("jobs"))
    assert send(store, "new", queue="jobs")[0] > highest
    (odd,) = [message for message in store.peek("jobs") if message.text == ODD]
    assert json.loads(odd.fields or "") == {"attributes": {"colour": "red", "size": 1.5, "none": None, "ä": True}}
    assert take(store, 100, queue="jobs", recipient="Ada") == ["for Ada"]
    assert take(store, 100, queue="jobs") == [
        "urgent", "left alone", "given back", "head of a key", "second of its key", "last of its key",
        "ready", ODD, "kept for years", "gone in a day", "due in an hour", "new",
    ]  # fmt: skip
    assert take(store, 1_000, queue="batch") == BATCH[5:]
    configure(store, "paused", paused=False)
    assert take(store, 100, queue="paused") == ["waits"]
    assert store.redrive("dying") == 2
    assert take(store, 100, queue="dying") == ["rejected", "given up"]


def test_nothing_in_the_file_of_an_earlier_release_is_lost__row_27(old: Path) -> None:
    assert_nothing_is_lost(old)


def test_every_released_schema_has_a_test_file__row_27() -> None:
    assert set(RELEASED) >= {f"version-{number}" for number in range(1, sqlite_file.SCHEMA_VERSION)}
    for name in RELEASED:
        version = int.from_bytes((DATA / f"{name}.sqlite").read_bytes()[60:64], "big")
        assert name == f"version-{version}"  # the header's user_version


def test_a_service_started_on_the_file_of_an_earlier_release_delivers_all_of_it__row_27(old: Path) -> None:
    """Start years later: leases have ended, delays have passed, and messages kept for a day are deleted."""
    out = []
    with LiveServer({"QUEUE_DATABASE_URL": f"sqlite:///{old}"}) as server:
        connection = Connection(server.port)
        assert connection.open()
        assert connection.ask("PUT", "/queues/paused", {"paused": False}).status == 200
        for source in [*(f"{queue}/messages?" for queue in THERE), "jobs/messages?recipient=Ada&"]:
            while messages := connection.ask("GET", f"/queues/{source}limit=40").document:
                out += [message["text"] for message in messages]
        assert connection.ask("POST", "/queues/jobs/messages", {"text": "goes on"}).status == 200
        connection.close()
    everything = [text for states in THERE.values() for some in states.values() for text in some]
    assert sorted(out) == sorted(set(everything) - {"gone in a day"})


# The columns that version 4 uses, of rows as version 3 left them.

THIRD = """
    INSERT INTO queues (name, settings, ready) VALUES ('kept', '{"retention": 1000}', 5), ('dead', '{}', 1);
    INSERT INTO messages (id, queue_id, state, sent_at, expires_at, origin, death, fields, text) VALUES
        (1, 1, 0, :now - 900000, :now + 100000, NULL, NULL, NULL, 'old'),
        (2, 1, 0, :now - 800000, :now + 100000, NULL, NULL, '{"ttl": 100}', 'redriven, with a ttl'),
        (3, 1, 0, :now - 990000, :now + 900000, NULL, NULL, NULL, 'redriven long after it was sent'),
        (4, 1, 0, :now - 60000, :now + 940000, NULL, NULL, NULL, 'sent later than it came back'),
        (9, 2, 0, :now - 900000, NULL, 'kept', '{"dead_letter_from": "kept", "dead_letter_at": ' || :died || '}',
         '{"ttl": 5}', 'dead');
    INSERT INTO runs (id, queue_id, count, bytes, sent_at, texts) VALUES (5, 1, 1, 1, :now - 50000, '["packed"]');
"""


def test_arrival_and_ttl_are_computed_from_the_rows_of_an_earlier_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "queue.db", FakeClock()
    with monkeypatch.context() as earlier:
        earlier.setattr(sqlite_file, "_STEPS", sqlite_file._STEPS[:3])
        earlier.setattr(sqlite_file, "SCHEMA_VERSION", 3)
        earlier.setattr(sqlite_file, "_set_clock", lambda connection: clock)
        sqlite_file.DatabaseFile(path).close()
    with closing(apsw.Connection(str(path))) as connection:
        died = json.dumps(rfc3339(clock.now() - 300_000))
        connection.execute(THIRD, {"now": clock.now(), "died": died})
    with closing(SqliteStore(path, clock=clock)) as store:
        with closing(apsw.Connection(str(path))) as connection:
            rows = connection.execute(
                "SELECT id, coalesce(arrived_at, sent_at) - ?1, expires_at - ?1 FROM messages ORDER BY id",
                (clock.now(),),
            ).fetchall()
        assert rows == [
            (1, -900_000, None), (2, 0 - 50_000, 50_000), (3, -50_000, None), (4, -50_000, None), (9, -300_000, None),
        ]  # fmt: skip
        letter = store.peek("dead")[0]
        assert json.loads(letter.fields or "")["attributes"]["dead_letter_from"] == "kept"
        clock.advance(100)
        assert take(store, 10, queue="kept") == [
            "redriven long after it was sent", "sent later than it came back", "packed",
        ]  # fmt: skip
        assert store.redrive("kept") == 1
        clock.advance(4)
        assert peek(store, queue="kept") == ["dead"]


# The upgrade from one schema to the next, with an invented one.

NEXT = """
    ALTER TABLE messages ADD COLUMN colour TEXT;
    {between}
    CREATE INDEX coloured ON messages (colour) WHERE colour IS NOT NULL;
    CREATE TABLE colours (name TEXT PRIMARY KEY) STRICT;
    INSERT INTO colours SELECT DISTINCT name FROM queues WHERE name IS NOT NULL;
"""


class NextRelease:
    """Today's code with one more step from schema to schema."""

    def __init__(self, patch: pytest.MonkeyPatch, script: Path) -> None:
        self._patch = patch
        self._script = script
        self._steps = [*sqlite_file._STEPS, str(script)]

    def add_to_todays_code(self, between: str = "") -> None:
        """Make the new step today's; `between` are statements in the middle of it."""
        self._script.write_text(NEXT.format(between=between))
        self._patch.setattr(sqlite_file, "_STEPS", self._steps)
        self._patch.setattr(sqlite_file, "SCHEMA_VERSION", len(self._steps))


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NextRelease:
    return NextRelease(monkeypatch, tmp_path / "next.sql")


def schema_of(path: Path) -> list[str]:
    """Return the schema's version, and the names of all objects in it."""
    with closing(apsw.Connection(str(path))) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
        return [str(connection.pragma("user_version")), *names]


@pytest.mark.parametrize("fresh", [False, True], ids=["old", "fresh"])
def test_a_file_is_upgraded_to_the_next_schema_and_nothing_is_lost__row_27(
    fresh: bool, old: Path, next_release: NextRelease
) -> None:
    next_release.add_to_todays_code()
    if fresh:
        old.unlink()
        write(old)
    assert_nothing_is_lost(old)
    version, *names = schema_of(old)
    assert version == str(sqlite_file.SCHEMA_VERSION)
    assert {"colours", "coloured"} <= set(names)


def test_a_failed_upgrade_is_reported_and_leaves_the_file_unchanged__row_27(
    old: Path, next_release: NextRelease
) -> None:
    before = schema_of(old)
    next_release.add_to_todays_code(between="INSERT INTO nowhere VALUES (1);")
    with pytest.raises(UnusableDatabase, match="no such table: nowhere"):
        SqliteStore(old)
    assert schema_of(old) == before
    next_release.add_to_todays_code()
    assert_nothing_is_lost(old)


UPGRADE = """
import os, signal, sys
import apsw
from storage import open_store
from storage.sqlite.disk import file as sqlite_file
path, script = sys.argv[1:]
sqlite_file._STEPS.append(script)
sqlite_file.SCHEMA_VERSION += 1
apsw.connection_hooks.append(lambda c: c.create_scalar_function("die", lambda: os.kill(os.getpid(), signal.SIGKILL)))
print("imported", flush=True); sys.stdin.readline()
open_store("sqlite:///" + path).close()
"""


def upgrades(path: Path, script: Path, count: int) -> list[int]:
    """Run concurrent upgrades in so many processes; return their exit codes."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, str(path), str(script)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"imported\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=60)
    return [process.returncode for process in running]


def test_an_upgrade_killed_in_the_middle_leaves_the_file_unchanged__row_27(
    old: Path, tmp_path: Path, next_release: NextRelease
) -> None:
    before = schema_of(old)
    script = tmp_path / "dying.sql"
    script.write_text(NEXT.format(between="SELECT die();"))
    assert upgrades(old, script, 1) == [-signal.SIGKILL]
    assert schema_of(old) == before
    next_release.add_to_todays_code()
    assert_nothing_is_lost(old)


def test_four_concurrent_upgrades_do_it_once__row_27(old: Path, tmp_path: Path, next_release: NextRelease) -> None:
    script = tmp_path / "together.sql"
    script.write_text(NEXT.format(between=""))
    assert upgrades(old, script, 4) == [0] * 4
    next_release.add_to_todays_code()
    assert_nothing_is_lost(old)


if __name__ == "__main__":
    write(DATA / f"version-{sqlite_file.SCHEMA_VERSION}.sqlite")
