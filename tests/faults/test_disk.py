"""A full disk (row 10 of docs/reliability.md) or a failing one: uncommitted writes are not acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from storage.__main__ import main as storage_tool
from tests.support.checker import Outcome
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load, Reply
from tests.support.programs import program

LONG = [pytest.mark.slow, pytest.mark.torture]
MB = 1024 * 1024


# Row 10: a full disk.


class SmallDisk:
    """Mount a tmpfs of `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.database = path / "queue.db"
        self._filler = path / "filler"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True, capture_output=True)

    def fill(self, leave_free: int = 0) -> None:
        """Use all free space except `leave_free` bytes, as another program would."""
        usage = os.statvfs(self.path)
        left = usage.f_bavail * usage.f_frsize - leave_free
        with self._filler.open("wb", buffering=0) as filler, suppress(OSError):  # the service may have used some of it
            while left > 0:
                left -= filler.write(bytes(min(left, MB)))

    def clear(self) -> None:
        self._filler.unlink()

    def remove(self) -> None:
        subprocess.run(["umount", self.path], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    try:
        disk = SmallDisk(tmp_path / "small", 24 * MB)
    except (FileNotFoundError, subprocess.CalledProcessError) as fault:
        pytest.skip(f"no small disk can be mounted here: {fault}")
    yield disk
    disk.remove()


@pytest.fixture
def service(small_disk: SmallDisk) -> Iterator[LiveServer]:
    with LiveServer({"QUEUE_DATABASE_URL": f"sqlite:///{small_disk.database}"}) as server:
        yield server


def test_a_queue_that_fills_its_disk_refuses_sends_and_serves_all_other_requests__row_10(
    service: LiveServer, small_disk: SmallDisk
) -> None:
    connection = Connection(service.port)
    assert connection.open()
    sent = 0
    while (reply := connection.ask("POST", "/messages", {"text": f"{sent} ".ljust(50_000, ".")})).status == 200:
        sent += 1
    assert sent > 100
    _assert_full(reply)
    _assert_full(connection.ask("POST", "/messages", [{"text": "small"}]))
    assert connection.ask("GET", "/ready").status == 200  # the service can still commit, so it serves readers
    leased = connection.ask("GET", "/messages?lease=60&limit=3").document
    assert connection.ask("DELETE", f"/messages/{leased[0]['receipt']}").status == 204
    assert connection.ask("PATCH", f"/messages/{leased[1]['receipt']}", {"lease": 0}).status == 204
    assert connection.ask("POST", "/messages/ack", {"receipts": [leased[2]["receipt"]]}).document["acked"] == 1
    expected = [number for number in range(sent) if number not in (0, 2)]
    taken = [connection.ask("GET", "/messages").document["text"] for _ in expected]
    assert [int(text.split()[0]) for text in taken] == expected
    assert connection.ask("GET", "/messages").status == 204
    assert connection.ask("POST", "/messages", {"text": "again"}).status == 200  # the file has free pages
    connection.close()


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=LONG)])
def test_no_message_is_lost_when_another_program_fills_the_disk_to_the_last_byte_under_load__row_10(
    times: int, service: LiveServer, small_disk: SmallDisk, tmp_path: Path, add_row: AddRow
) -> None:
    connection = Connection(service.port)
    assert connection.open()
    with Load(service.port, tmp_path / "histories") as load:
        load.write().write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        for _ in range(times):
            time.sleep(random.uniform(0.1, 0.5))
            small_disk.fill()
            await_true(lambda: connection.ask("POST", "/messages", {"text": "x"}).status == 503)
            _assert_full(connection.ask("POST", "/messages", {"text": "x"}))
            time.sleep(random.uniform(0.1, 0.5))
            small_disk.clear()
            await_true(lambda: connection.ask("POST", "/messages", {"text": "x"}).status == 200)
        verdict = load.finish()
    connection.close()
    add_row(fault="disk full to the last byte", times=times, **verdict.figures)
    assert verdict.faultless, verdict
    assert "storage has failed" not in service.log()
    _assert_sound(small_disk.database)


def test_messages_are_read_and_acknowledged_while_one_megabyte_is_free__row_10(
    service: LiveServer, small_disk: SmallDisk
) -> None:
    connection = Connection(service.port)
    assert connection.open()
    for first in range(0, 3_000, 500):
        batch = [{"text": str(number).ljust(100, ".")} for number in range(first, first + 500)]
        assert connection.ask("POST", "/messages", batch).status == 200
    small_disk.fill(leave_free=MB)  # less than the log needs before SQLite checkpoints by itself
    _assert_full(connection.ask("POST", "/messages", {"text": "x"}))
    texts = []
    for _ in range(300):
        leased = _request_with_retry(lambda: connection.ask("GET", "/messages?lease=60&limit=10")).document
        receipts = [message["receipt"] for message in leased]
        done = _request_with_retry(lambda r=receipts: connection.ask("POST", "/messages/ack", {"receipts": r}))  # type: ignore[misc]
        assert done.document["acked"] == 10
        texts += [message["text"] for message in leased]
    assert [int(text.rstrip(".")) for text in texts] == list(range(3_000))
    small_disk.clear()
    await_true(lambda: connection.ask("POST", "/messages", {"text": "x"}).status == 200)
    connection.close()


def _request_with_retry(ask: Callable[[], Reply]) -> Reply:
    """Send a request, and once more if the disk was full: the refusal checkpoints the log, which frees space."""
    reply = ask()
    if reply.status == 503:
        _assert_full(reply)
        reply = ask()
    assert reply.status == 200, reply
    return reply


def _assert_full(reply: Reply) -> None:
    assert (reply.status, reply.document["code"], reply.headers["Retry-After"]) == (503, "disk_full", "1")


# A disk that fails.


class Injection(NamedTuple):
    """Name a system call of a worker and the error that strace makes it return."""

    call: str
    error: str
    file: str  # of the database: "" or "-wal"

    def __str__(self) -> str:
        return f"{self.error} of {self.call} on queue.db{self.file}"

    def after(self, calls: int) -> str:
        """Return strace's expression that makes the calls of each thread fail from this one on."""
        return f"inject={self.call}:error={self.error}:when={calls}+"

    @property
    def rare(self) -> bool:
        """Return whether only a checkpoint makes this call."""
        return self.file == ""


HEALTHY_WITHIN = 2.0  # seconds
COMMIT_FAILS = Injection("fdatasync", "EIO", "-wal")
CHECKPOINT_FAILS = Injection("fdatasync", "EIO", "")
NO_ROOM_IN_LOG = Injection("pwrite64", "ENOSPC", "-wal")
OTHERS = [Injection("pwrite64", "EIO", "-wal"), Injection("pwrite64", "EIO", ""), Injection("pwrite64", "ENOSPC", "")]


@pytest.fixture
def worker() -> Iterator[LiveServer]:
    """Run a service with one worker, so that the test knows which worker fails."""
    program("strace")
    if os.geteuid() != 0:
        pytest.skip("takes root to attach strace")
    with LiveServer({"WEB_CONCURRENCY": "1"}) as server:
        yield server


@pytest.mark.parametrize(
    ("injection", "times"),
    [(injection, 1) for injection in (COMMIT_FAILS, CHECKPOINT_FAILS, NO_ROOM_IN_LOG)]
    + [
        pytest.param(injection, 6, marks=LONG)
        for injection in (COMMIT_FAILS, CHECKPOINT_FAILS, NO_ROOM_IN_LOG, *OTHERS)
    ],
    ids=str,
)
def test_a_write_that_could_not_be_committed_is_not_acknowledged__row_10(
    injection: Injection, times: int, worker: LiveServer, tmp_path: Path, add_row: AddRow
) -> None:
    with Load(worker.port, tmp_path / "histories") as load:
        load.write().write(batch=200, keyed=True).read().read(lease=2.0, batch=200)
        for _ in range(times):
            time.sleep(random.uniform(0.1, 0.4))
            pid = _worker_of(worker)
            after = injection.after(random.randint(1, 2 if injection.rare else 30))
            with _injected(worker, pid, injection.call, injection.file, after) as happened:
                await_true(happened)
                if injection.error == "EIO":
                    await_true(lambda: _worker_of(worker) not in (0, pid))  # noqa: B023
            await_true(lambda: _ask(worker, "GET", "/ready").status == 200)
        verdict = load.finish()
    add_row(fault=str(injection), times=times, **verdict.figures)
    assert verdict.faultless, verdict
    failures = [line for line in worker.log().splitlines() if "the storage has failed" in line]
    assert len(failures) <= times, failures
    assert bool(failures) == (injection.error == "EIO"), failures
    worker.stop()
    _assert_sound(worker.database)


@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=LONG)])
def test_a_disk_that_stalls_loses_nothing_and_kills_no_worker(
    seconds: int, worker: LiveServer, tmp_path: Path, add_row: AddRow
) -> None:
    """The only worker is inside a commit all the time. It answers new clients that ask whether it is alive."""
    stall, slowest = f"inject=fdatasync:delay_enter={seconds}s:when=20", 0.0
    with Load(worker.port, tmp_path / "histories") as load:
        load.write(4).read().read(lease=seconds + 10.0)
        pid = _worker_of(worker)
        with _injected(worker, pid, "fdatasync", "-wal", stall) as happened:
            log = worker.directory / "strace"
            await_true(lambda: log.stat().st_size > 0 and time.time() - log.stat().st_mtime > 0.5)  # no commit ends
            assert not happened()
            ends = time.monotonic() + seconds - 1.5
            while time.monotonic() < ends:
                began = time.monotonic()
                assert _ask(worker, "GET", "/health").status == 200
                slowest = max(slowest, time.monotonic() - began)
            await_true(happened)
        await_true(lambda: _ask(worker, "GET", "/ready").status == 200)
        verdict = load.finish()
        assert _worker_of(worker) == pid
    assert not any('"unknown"' in path.read_text() for path in (tmp_path / "histories").iterdir())
    add_row(fault=f"a disk that stalls for {seconds} s: /health after {slowest:.2f} s", times=1, **verdict.figures)
    assert verdict.faultless, verdict
    assert slowest < HEALTHY_WITHIN
    worker.stop()
    _assert_sound(worker.database)


@contextmanager
def _injected(server: LiveServer, pid: int, call: str, file: str, what: str) -> Iterator[Callable[[], bool]]:
    """Change calls of the process on this file of the database; yield a function that returns whether one changed."""
    log = server.directory / "strace"
    log.unlink(missing_ok=True)
    log.touch()
    tracing = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", log, "-p", str(pid), "-P", f"{server.database}{file}",
         "-e", f"trace={call}", "-e", what],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield lambda: "INJECTED" in log.read_text() or "DELAYED" in log.read_text()
    finally:
        try:
            with suppress(ProcessLookupError):
                _stop(pid, log)
        finally:
            tracing.terminate()
            tracing.wait()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stop(pid: int, log: Path) -> None:
    """Stop all threads between two calls. If strace detached during an injected call, the call would return ENOSYS."""
    os.kill(pid, signal.SIGSTOP)
    threads = len(os.listdir(f"/proc/{pid}/task"))
    await_true(lambda: log.read_text().count("--- stopped by SIGSTOP ---") >= threads)


def _worker_of(server: LiveServer) -> int:
    """Return the pid of the worker, or 0 while there is none or more than one."""
    pids = server.workers
    return pids[0] if len(pids) == 1 else 0


def _ask(server: LiveServer, method: str, path: str) -> Reply:
    connection = Connection(server.port)
    try:
        return connection.ask(method, path) if connection.open() else Reply(Outcome.UNKNOWN)
    finally:
        connection.close()


def _assert_sound(database: Path) -> None:
    assert storage_tool(["check", f"sqlite:///{database}"]) == 0
