"""Test row 3 of docs/reliability.md: after a power cut, every acknowledged write exists.

The disk is a separate ext4 on a loop device. EXT4_IOC_SHUTDOWN with NOLOGFLUSH stops it without writing the journal in
memory, so a new mount finds only what had reached the device. These tests need root.

The service is stopped right before, since a power cut also stops the processor. For a few ms after the ioctl an fsync
may return success although its journal commit was dropped, so answers after it are not acknowledgements.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from storage.__main__ import main as storage_tool
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load, Reply
from tests.support.programs import program

LONG = [pytest.mark.slow, pytest.mark.torture]
EXT4_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = struct.pack("I", 2)
MB = 1024 * 1024

WITHOUT_FSYNC = """
from pathlib import Path
from storage.sqlite.disk import file as sqlite_file
sqlite_file._PRAGMAS = sqlite_file._PRAGMAS.replace("synchronous = FULL", "synchronous = OFF")
exec(Path("gunicorn.conf.py").read_text())
"""


class Disk:
    """A small disk whose power can be cut, and whose writes to new blocks can be made to fail."""

    def __init__(self, directory: Path) -> None:
        self.memory = directory / "memory"  # the device's blocks, and nothing else
        self.image = self.memory / "image"
        self.path = directory / "disk"
        self.database = self.path / "queue.db"
        for mountpoint in (self.memory, self.path):
            mountpoint.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={100 * MB}", "none", str(self.memory))
        try:
            self.image.write_bytes(bytes(64 * MB))
            _run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", str(self.image))
            self.image.write_bytes(self.image.read_bytes())  # also the blocks that mkfs skipped
            self._mount()
        except BaseException:
            _run("umount", str(self.memory))
            raise

    def serve(self, **environment: str) -> LiveServer:
        """Return a service, not yet started, with its database on this disk."""
        return LiveServer({"QUEUE_DATABASE_URL": f"sqlite:///{self.database}", **environment})

    def cut_the_power(self, server: LiveServer) -> None:
        """Stop the service and all writes to the device at one moment, then kill it."""
        os.killpg(server.pid, signal.SIGSTOP)
        await_true(lambda: set(_states_of_threads(server.pid)) == {"T"})
        self.shut_down()
        server.kill()

    def shut_down(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NOLOGFLUSH)
        finally:
            os.close(descriptor)

    def restore_the_power(self) -> None:
        """Mount the disk again. No process may have files open on it."""
        self._unmount()
        self._mount()

    def fail_fresh_blocks(self) -> None:
        """Make writes to new blocks fail, by using up their memory; written blocks can be rewritten."""
        os.sync()
        _run("fstrim", str(self.path))
        with (self.memory / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def recover(self) -> None:
        (self.memory / "filler").unlink()

    def remove(self) -> None:
        self._unmount()
        _run("umount", str(self.memory))

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.path))

    def _unmount(self) -> None:
        def succeeded() -> bool:
            return subprocess.run(["umount", str(self.path)], capture_output=True).returncode == 0

        await_true(succeeded)  # killed processes need a moment to close their files


def _states_of_threads(group: int) -> Iterator[str]:
    """Return the states of all threads of the group; T is stopped."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the thread has ended
            if os.getpgid(int(process.name)) == group:
                for status in process.glob("task/*/stat"):
                    yield status.read_text().rpartition(")")[2].split()[0]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk and cut its power")
    program("mkfs.ext4")
    try:
        disk = Disk(tmp_path)
    except subprocess.CalledProcessError as fault:
        pytest.skip(f"no disk can be made here: {fault.stderr.decode(errors='replace').strip()}")
    try:
        disk.shut_down()
        disk.restore_the_power()
    except OSError as fault:
        disk.remove()
        pytest.skip(f"the power of a disk cannot be cut here: {fault.strerror}")
    yield disk
    disk.remove()


@pytest.mark.parametrize("cuts", [2, pytest.param(40, marks=LONG)])
def test_every_acknowledged_write_survives_power_cuts_under_load__row_3(
    cuts: int, disk: Disk, tmp_path: Path, add_row: AddRow
) -> None:
    histories = tmp_path / "histories"
    with disk.serve() as server, Load(server.port, histories) as load:
        load.write().write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        for _ in range(cuts):
            _await_progress(histories)
            time.sleep(random.uniform(0.0, 0.4))
            disk.cut_the_power(server)
            disk.restore_the_power()
            _assert_sound(disk.database)
            server.start()
        verdict = load.finish()
        server.stop()
        assert "failed" not in server.log()  # no process ran after the cut
    add_row(fault="power cut", times=cuts, **verdict.figures)
    assert verdict.faultless, verdict
    assert verdict.acknowledged > cuts
    _assert_sound(disk.database)


def test_a_power_cut_loses_acknowledged_writes_of_an_engine_without_fsync__row_3(
    disk: Disk, tmp_path: Path, add_row: AddRow
) -> None:
    config = tmp_path / "without_fsync.py"
    config.write_text(WITHOUT_FSYNC)
    with disk.serve() as proper:  # creates the file, durably
        assert _ask(proper, "POST", "/messages", {"text": "before"}).status == 200
    histories = tmp_path / "histories"
    with disk.serve(GUNICORN_CMD_ARGS=f"--config {config}") as server, Load(server.port, histories) as load:
        load.write()
        _await_progress(histories)
        disk.cut_the_power(server)
        disk.restore_the_power()
        server.start()
        verdict = load.finish()
        server.stop()
    add_row(fault="power cut, fsync left out on purpose (to see the loss seen)", times=1, **verdict.figures)
    assert verdict.lost, verdict


def test_writes_acknowledged_after_a_failed_fsync_survive_a_power_cut__row_3(disk: Disk) -> None:
    """The kernel keeps showing data that it failed to write, so the service must rewrite it before using it.

    A loop device reports a partial write as complete, so acknowledgements during the failure do not count.
    """
    with disk.serve(WEB_CONCURRENCY="1") as server:
        acknowledged = _send_until_refused(server, "before", 10)
        disk.fail_fresh_blocks()
        _send_until_refused(server, "failing", 1_000)
        assert "the storage has failed" in server.log()
        server.kill()
        disk.recover()
        with closing(apsw.Connection(str(disk.database))) as another:  # so that the log is not deleted
            another.execute("SELECT count(*) FROM messages").fetchall()
            server.start()
            acknowledged += _send_until_refused(server, "after", 10)
            disk.cut_the_power(server)
        disk.restore_the_power()
        server.start()
        there = [message["text"] for message in _ask(server, "GET", "/queues/default/peek?limit=1000").document]
        server.stop()
    assert [text for text in acknowledged if text not in there] == []
    assert len(acknowledged) == 20
    _assert_sound(disk.database)


def _send_until_refused(server: LiveServer, name: str, most: int) -> list[str]:
    """Send texts of several pages until one is refused; return the acknowledged ones."""
    acknowledged: list[str] = []
    for number in range(most):
        text = f"{name} {number} ".ljust(20_000, ".")
        if _ask(server, "POST", "/messages", {"text": text}).status != 200:
            break
        acknowledged.append(text)
    return acknowledged


def _ask(server: LiveServer, method: str, path: str, body: object = None) -> Reply:
    connection = Connection(server.port)
    assert connection.open()
    try:
        return connection.ask(method, path, body)
    finally:
        connection.close()


def _assert_sound(database: Path) -> None:
    assert storage_tool(["check", f"sqlite:///{database}"]) == 0


def _await_progress(histories: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in histories.glob("writer*.jsonl"))

    before = size()
    await_true(lambda: size() > before + 5_000)
