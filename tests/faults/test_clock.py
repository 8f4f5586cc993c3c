"""Test row 25 of docs/reliability.md: a clock set forward or back changes the length of no lease."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import apsw
import pytest

from storage.model import Receive
from storage.sqlite.store import SqliteStore
from tests.support.checker import read_histories
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load
from tests.support.programs import ProgramMissing
from tests.support.shorthand import lease_one, send, texts

LONG = [pytest.mark.slow, pytest.mark.torture]
HOUR = 3_600
LEASE = 2.0  # seconds

# A gunicorn configuration with a settable clock. The service itself reads only Python's time.time().
BY_PYTHON = """
import time
from pathlib import Path
_true = time.time
time.time = lambda: _true() + float(Path({clock!r}).read_text())
exec(Path("gunicorn.conf.py").read_text())
"""
# libfaketime sets the clock of all calls of the processes, also SQLite's and the C library's. Under it
# clock_nanosleep fails, which is time.sleep().
BY_LIBFAKETIME = """
import select, time
from pathlib import Path
time.sleep = lambda seconds: select.select([], [], [], seconds)
exec(Path("gunicorn.conf.py").read_text())
"""


class WallClock:
    """The wall clock of a service."""

    def __init__(self, directory: Path, by: str) -> None:
        self.by = by
        self._file = directory / "clock"
        self._config = directory / "config.py"
        self._config.write_text((BY_PYTHON if by == "python" else BY_LIBFAKETIME).format(clock=str(self._file)))
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set the clock this many seconds ahead of the true time, or behind it."""
        (new := self._file.with_suffix(".new")).write_text(f"{seconds:+}")
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a service that uses this clock."""
        config = {"GUNICORN_CMD_ARGS": f"--config {self._config}"}
        return config | (_libfaketime(self._file) if self.by == "libfaketime" else {})


def _libfaketime(clock: Path) -> dict[str, str]:
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ProgramMissing("libfaketime is not on this machine; .ci/get-programs installs it")
    environment = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    asked = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=os.environ | environment | {"FAKETIME": "-1y"}, capture_output=True, text=True,
    )  # fmt: skip
    if asked.returncode != 0:
        pytest.skip(f"libfaketime does not go with this Python: {asked.stderr.strip()}")
    return environment


@pytest.fixture
def wall(request: pytest.FixtureRequest, tmp_path: Path) -> WallClock:
    return WallClock(tmp_path, request.param)


@pytest.fixture
def service(wall: WallClock) -> Iterator[LiveServer]:
    with LiveServer(wall.environment) as server:
        yield server


FORTH_AND_BACK = [HOUR, -HOUR]
AT_RANDOM = [random.Random(25).choice([-HOUR, 0, HOUR]) for _ in range(15)]


@pytest.mark.parametrize(
    ("wall", "steps"),
    [
        pytest.param("python", FORTH_AND_BACK, id="forth and back"),
        pytest.param("libfaketime", FORTH_AND_BACK, marks=pytest.mark.slow, id="forth and back, libfaketime"),
        pytest.param("libfaketime", AT_RANDOM, marks=LONG, id="at random, libfaketime"),
    ],
    indirect=["wall"],
)
def test_a_clock_set_an_hour_forward_or_back_changes_the_length_of_no_lease__row_25(
    wall: WallClock, steps: list[int], service: LiveServer, tmp_path: Path, add_row: AddRow
) -> None:
    histories = tmp_path / "histories"
    with Load(service.port, histories) as load:
        load.write(2).read(lease=LEASE, batch=10).read(lease=60.0)
        await_true(lambda: len(list(read_histories(histories))) > 20)
        for number, step in enumerate(steps):
            _assert_leases_and_delays_keep_their_length(service, lambda step=step: wall.set(step))  # type: ignore[misc]
            assert abs(_shown(service) - time.time() - step) < HOUR / 2  # the service saw the clock move
            if number % 5 == 4:
                service.restart()
        verdict = load.finish()
    add_row(fault=f"clock set an hour forward or back, by {wall.by}", times=len(steps), **verdict.figures)
    assert verdict.faultless, verdict


def _assert_leases_and_delays_keep_their_length(service: LiveServer, happens: Callable[[], object]) -> None:
    connection = Connection(service.port)
    assert connection.open()

    def ask(method: str, path: str, document: object = None) -> Any:
        reply = connection.ask(method, path, document)
        assert reply.status in (200, 204), reply
        return reply.document

    began = time.monotonic()
    ask("POST", "/queues/watched/messages", [{"text": "short"}, {"text": "long"}])
    ask("GET", f"/queues/watched/messages?lease={LEASE:g}")
    long = ask("GET", "/queues/watched/messages?lease=600")
    ask("POST", "/queues/watched/messages", {"text": "late", "delay": LEASE})
    happens()
    for text in ("short", "late"):
        again = ask("GET", "/queues/watched/messages?wait=20&lease=600")
        assert again is not None, f"'{text}' did not come within 20 s"
        assert again["text"] == text
        assert time.monotonic() >= began + LEASE - 0.005
        ask("DELETE", f"/messages/{again['receipt']}")
    assert ask("GET", "/queues/watched/messages") is None
    ask("DELETE", f"/messages/{long['receipt']}")
    connection.close()


def _shown(service: LiveServer) -> float:
    """Return the time that the service shows to clients, in s since 1970."""
    connection = Connection(service.port)
    assert connection.open()
    assert connection.ask("POST", "/queues/watched/messages", {"text": "now"}).status == 200
    sent_at = connection.ask("GET", "/queues/watched/messages").headers["Message-Sent-At"]
    connection.close()
    return datetime.fromisoformat(sent_at).timestamp()


# Between two starts of the service.


@pytest.mark.parametrize("booted", [False, True], ids=["restarted", "booted"])
@pytest.mark.parametrize("step", FORTH_AND_BACK, ids=["forward", "back"])
def test_a_clock_set_while_the_service_was_stopped_changes_the_length_of_no_lease__row_25(
    step: int, booted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot, an hour forward cannot be distinguished from an hour without power."""
    path = tmp_path / "queue.db"
    with closing(SqliteStore(path)) as store:
        (first,) = send(store, "leased")
        began = time.monotonic()
        lease_one(store, seconds=LEASE)
    if booted:
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute("UPDATE clock SET boot_id = 'of another boot', offset_ms = offset_ms + 86400000")
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + step)
    with closing(SqliteStore(path)) as store:
        assert texts(store.receive(Receive(("q",), lease=60.0, wait=20.0))) == ["leased"]
        came = time.monotonic()
        (second,) = send(store, "later")
        assert second > first
        assert abs(store.peek("q")[-1].sent_at / 1_000 - true() - step) < HOUR / 2
    assert came >= began + LEASE - 0.005 or (booted and step > 0)


def test_after_a_boot_with_the_clock_back_a_day_the_times_of_messages_do_not_go_back__row_25(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db"
    with closing(SqliteStore(path)) as store:
        send(store, "before")
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE clock SET boot_id = 'of another boot'")
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() - 24 * HOUR)
    with closing(SqliteStore(path)) as store:
        send(store, "after")
        kept = [row[0] for row in _rows(path, "SELECT sent_at FROM messages ORDER BY id")]
    assert kept == sorted(kept)
    assert kept[1] - kept[0] < HOUR * 1_000


def _rows(path: Path, statement: str) -> list[Any]:
    with closing(apsw.Connection(str(path))) as connection:
        return connection.execute(statement).fetchall()
