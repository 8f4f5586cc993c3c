"""Test the systemd unit: it is valid, and the service works with its restrictions."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from clients import QueueClient
from settings import Settings
from tests.support.live import REPOSITORY, STOPS_WITHIN, await_true
from tests.support.programs import program

UNIT = REPOSITORY / "deploy/queue-service.service"
EXPOSURE = 15  # of 100 points of exposure by systemd-analyze; 12 when this was written
# Apply MemoryDenyWriteExecute (PR_SET_MDWE, since Linux 6.3; skipped on an older kernel).
DENY_WRITE_EXECUTE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Sections(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr  # systemd's names have capitals


def service_section() -> dict[str, str]:
    unit = Sections(strict=False)  # of several equal names, the last counts here
    unit.read(UNIT)
    return dict(unit["Service"])


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name  # with a command that exists on this machine
    here.write_text(re.sub("ExecStart=[^ ]+", "ExecStart=/bin/true", UNIT.read_text()))
    verified = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", here], capture_output=True, check=False, text=True
    )
    assert UNIT.name not in verified.stdout + verified.stderr  # systemd may complain of other units of this machine


def test_the_service_is_confined_as_systemd_measures_it() -> None:
    counted = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=yes", f"--threshold={EXPOSURE}", UNIT],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert counted.returncode == 0, counted.stdout + counted.stderr
    assert "Overall exposure level" in counted.stdout


def test_systemd_waits_for_longer_than_a_stop_takes() -> None:
    graceful = re.search(r"^graceful_timeout = (\d+)", (REPOSITORY / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert graceful is not None
    assert int(service_section()["TimeoutStopSec"]) > int(graceful[1])


def test_the_units_settings_are_settings_of_the_service() -> None:
    name, _, value = service_section()["Environment"].partition("=")
    assert Settings.from_env({name: value}).database_url == value
    assert value == f"sqlite:////var/lib/{service_section()['StateDirectory']}/queue.db"


@contextmanager
def started(directory: Path, *before: str) -> Iterator[tuple[QueueClient, subprocess.Popen[bytes]]]:
    """Run the unit's command, with a prefix, until it notifies systemd that it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"{directory}/notify")
        systemd.settimeout(20)
        settings = {"PORT": str(port), "QUEUE_DATABASE_URL": f"sqlite:///{directory}/queue.db"}
        program, *arguments = service_section()["ExecStart"].split()
        assert (Path(program).name, arguments) == ("queue-service", ["serve"])  # it runs gunicorn, as here
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "gunicorn", "handler:app"],
            cwd=REPOSITORY, env=os.environ | settings | {"NOTIFY_SOCKET": f"{directory}/notify"},
            start_new_session=True,
        )  # fmt: skip
        try:
            assert systemd.recv(1_000).startswith(b"READY=1")
            with QueueClient(f"http://127.0.0.1:{port}") as client:
                yield client, process
        finally:
            with suppress(ProcessLookupError):  # the process has ended already
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_the_service_makes_no_system_call_that_the_unit_forbids(tmp_path: Path) -> None:
    strace = [program("strace"), "-f", "-qq", "-o", f"{tmp_path}/calls"]
    with started(tmp_path, *strace, sys.executable, "-c", DENY_WRITE_EXECUTE) as (client, process):
        client.send("one")
        client.send_many([str(number) for number in range(1_000)])
        for message in client.consume(lease=60, idle=0.1):
            assert message.text
        backup = subprocess.run(
            [*strace[:-1], f"{tmp_path}/calls-of-backup", sys.executable, "-m", "storage", "backup",
             f"sqlite:///{tmp_path}/queue.db", f"{tmp_path}/backup.db"], cwd=REPOSITORY, check=False,
        )  # fmt: skip
        assert backup.returncode == 0
        os.kill(first_child(process.pid), signal.SIGTERM)
        assert process.wait(STOPS_WITHIN) == 0
    calls = (tmp_path / "calls").read_text() + (tmp_path / "calls-of-backup").read_text()
    made = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", calls, re.MULTILINE))
    assert {"fdatasync", "flock", "accept4"} <= made
    as_root = {"fchown"}  # by SQLite, which sets the log's owner when root runs it, as in a test
    assert made - allowed_calls() - as_root == set()


def first_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    await_true(lambda: bool(children.read_text()))
    return int(children.read_text().split()[0])


def allowed_calls() -> set[str]:
    """Return the calls that the unit's two SystemCallFilter lines allow: the second line removes some."""
    allow, deny = re.findall(r"^SystemCallFilter=(.+)$", UNIT.read_text(), re.MULTILINE)
    return calls_of(*allow.split()) - calls_of(*deny.removeprefix("~").split())


def calls_of(*groups: str) -> set[str]:
    found: set[str] = set()
    for group in groups:
        printed = subprocess.run(
            [program("systemd-analyze"), "syscall-filter", group], capture_output=True, check=True, text=True
        ).stdout
        names = [line.strip() for line in printed.splitlines()[1:] if line.startswith("    ") and "#" not in line]
        found |= {name for name in names if not name.startswith("@")}
        found |= calls_of(*[name for name in names if name.startswith("@")])
    return found
